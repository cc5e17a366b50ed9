"""Every experiment's file is parsed and its model, data, loggers and callbacks are built."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lmdvid.cli import build_cli

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


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
