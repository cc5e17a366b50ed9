"""wandb without an account, from the command line to the folder that `wandb sync` sends."""

import json

import pytest
import yaml
from runs import Run, experiment, prepare

from lmdvid.video import probe

pytestmark = pytest.mark.slow


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
    assert kept.glob("run-*.wandb")
    written = yaml.safe_load((kept / "files/config.yaml").read_text())
    assert written["directions"]["value"] == 3
    summary = json.loads((kept / "files/wandb-summary.json").read_text())
    assert summary["trainer/global_step"] == 5
    assert {"generator/l1", "discriminator/adversarial", "val/psnr"} <= summary.keys()
    (video,) = kept.glob("files/media/videos/*.mp4")
    assert probe(video).frames == 4
    assert probe(video).width == 3 * 32  # source, driving, result
