"""wandb without an account, from the command line to the folder that `wandb sync` sends."""

import pytest
from runs import Run, experiment, long, prepare

from lmdvid.video import probe

pytestmark = pytest.mark.slow


@long
def test_a_run_offline_has_configuration_metrics_and_videos(zygote, clips, tmp_path):
    configuration = experiment("lia", clips)
    configuration["trainer"] |= {
        "max_steps": 6,
        "logger": [
            configuration["trainer"]["logger"],
            {
                "class_path": "lmdvid.loggers.WandbLogger",
                "init_args": {"project": "lmdvid", "name": "tiny", "save_dir": "runs"},
            },
        ],
    }
    configuration["trainer"]["callbacks"].append({"class_path": "lmdvid.callbacks.SampleVideos"})
    folder = prepare(tmp_path / "tracked", configuration)
    alone = {
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
    }
    run = Run(zygote, folder, **alone)
    assert run.wait() == 0, run.said
    assert run.said.count("no API key, so the run stays offline in runs/wandb") == 1
    (kept,) = folder.glob("runs/wandb/offline-run-*")
    (records,) = kept.glob("run-*.wandb")
    content = records.read_bytes()  # keys and values of its records are plain text
    for text in ("generator/l1", "discriminator/adversarial", "directions", "sample"):
        assert text.encode() in content, text
    assert any(f"val/{score}".encode() in content for score in ("psnr", "ssim", "l1"))
    (video,) = kept.glob("files/media/videos/*.mp4")
    assert probe(video).frames == 4
    assert probe(video).width == 3 * 32  # source, driving, result
