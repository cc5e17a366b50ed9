"""Every experiment's file is parsed and its model, data, loggers and callbacks are built."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lmdvid.cli import build_cli, main
from lmdvid.video import write_video

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


TINY = """
model: {init_args: {size: 32, dim: 16, directions: 3, width: 0.02}}
data: {init_args: {root: clips, size: 32, num_workers: 0}}
trainer:
  accelerator: cpu
  devices: 1
  strategy: auto
  enable_progress_bar: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: runs, name: lia_taichi}
"""


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*bf16.*")
def test_an_experiment_is_tested(tmp_path, monkeypatch, capsys):
    """Its protocols score two tiny clips: in half precision, by their own and another's motion."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMDVID_WEIGHTS", raising=False)
    for index in range(2):
        video = torch.randint(256, (16, 32, 32, 3), dtype=torch.uint8)
        write_video(Path("clips", "test", f"video{index}#0#15.mp4"), video, 10)
    Path("tiny.yaml").write_text(TINY)
    line = ["test", "--config", str(ROOT / "experiments/lia_taichi.yaml"), "--config", "tiny.yaml"]
    assert main(line) == 0
    assert (
        "left out, without their weights: lia_reconstruction, cross_ide" in capsys.readouterr().out
    )
    (file,) = tmp_path.glob("runs/lia_taichi/*/scores.json")
    stored = json.loads(file.read_text())
    results = {result["protocol"]["name"]: result for result in stored["protocols"]}
    assert results["reconstruction"]["counts"] == {"videos": 2}
    assert results["cross_identity_effnetlite0"]["counts"] == {"real_frames": 32, "fake_frames": 32}
    assert set(stored["left_out"]) == {"lia_reconstruction", "cross_identity"}
    scores = stored["scores"]
    # The protocol's mean has the source frame, too.
    assert scores["ssim"] == pytest.approx(scores["reconstruction_ssim"], rel=0.1)
    assert scores["cross_identity_effnetlite0"] > 0
    capsys.readouterr()
    assert main([*line, "--data.init_args.cross", "false"]) == 1
    error = capsys.readouterr().err
    assert "compares videos that another's motion drives, which this data does not give" in error
    assert "Traceback" not in error


def test_there_are_experiments():
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_builds(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):  # millions of first values would take seconds to draw
        cli = build_cli(["--config", str(path)], run=False)
    assert isinstance(cli.model, LightningModule)
    assert isinstance(cli.datamodule, LightningDataModule)
    # The first logger's folder takes config.yaml; with wandb's, a second run would overwrite it.
    assert isinstance(cli.trainer.loggers[0], CSVLogger)
    assert cli.trainer.loggers[0].name == path.stem
    # A kill costs no more than what is between two of these.
    savers = [c for c in cli.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    assert any(0 < saver._every_n_train_steps <= 1000 for saver in savers)
    assert not any(saver.save_weights_only for saver in savers)
    assert not list(tmp_path.iterdir()), "building must not write anything"


FEW = {
    "train_identities": 3,
    "test_identities": 2,
    "clip_frames": 32,
    "eval_clips": 2,
    "eval_frames": 16,
    "num_workers": 0,
}
SMALL = sorted(path.stem for path in EXPERIMENTS if "_puppets" in path.stem)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A current directory for all, where what one has drawn another finds."""
    return tmp_path_factory.mktemp("small")


def run_fast(name: str, *more: str, **data: object) -> int | None:
    words = ["fit", f"--config={ROOT}/experiments/{name}.yaml"]
    words += [f"--data.init_args.{key}={value}" for key, value in (data or FEW).items()]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    return main([*words, *more])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*bf16.*")
@pytest.mark.parametrize("name", SMALL)
def test_a_small_experiment_runs(name, place, monkeypatch):
    """One batch of training and one of validation, which leave nothing but the drawings."""
    monkeypatch.chdir(place)
    if name.endswith("_avd"):  # goes on with what the first stage has written
        first = name.removesuffix("_avd")
        assert run_fast(first, "--trainer.max_steps=1", "--trainer.log_every_n_steps=1") == 0
    before = {path.name for path in place.iterdir()} | {"data"}
    assert run_fast(name, "--trainer.fast_dev_run=true") == 0
    assert {path.name for path in place.iterdir()} == before


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_clips_of_ones_own_run(tmp_path, monkeypatch):
    """One clip is enough."""
    monkeypatch.chdir(tmp_path)
    write_video(Path("mine/a.mp4"), torch.randint(256, (40, 64, 64, 3), dtype=torch.uint8), 25)
    own = {"root": "mine", "eval_frames": 4}
    assert run_fast("lia_clips", "--trainer.fast_dev_run=true", **own) == 0
