"""A small data set, trainer and trials for tasks that make videos."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset):
    """Clips of a bright square that moves to the right (class 0) or left; deterministic."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        video = torch.full((16, 3, 32, 32), -0.5)
        for t in range(16):
            left = (5 * index + t * (1 - 2 * (index % 2))) % 20
            video[t, :, 8:20, left : left + 12] = 0.7
        return {
            "video": video,
            "label": index % 2,
            "key": f"clip{index}",
            "frames": torch.arange(16),
        }


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Squares(), batch_size=4)

    val_dataloader = test_dataloader = train_dataloader

    def predict_dataloader(self):
        return DataLoader([{"index": i} for i in range(3)], batch_size=2)


def trainer(folder, **options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="run"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**defaults, **options})


def fit_and_resume(task, folder) -> tuple[dict, dict]:
    """The state after four steps, and that of a run that went on after the second one."""

    def fit(place, steps, resume=None):
        L.seed_everything(1, verbose=False)
        one = task()
        kept = ModelCheckpoint(place / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(place, max_steps=steps, callbacks=[kept])
        run.fit(one, Data(), ckpt_path=resume, weights_only=True)
        optimizers = {
            f"{i}.{n}.{name}": value
            for i, optimizer in enumerate(run.optimizers)
            for n, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        return one.state_dict() | optimizers

    whole = fit(folder / "whole", 4)
    return whole, fit(folder / "rest", 4, folder / "whole" / "kept" / "step=2.ckpt")


def differences(a: dict, b: dict) -> list[str]:
    """Names whose tensors differ in any bit."""
    return sorted(a.keys() ^ b.keys()) + [k for k in a if not torch.equal(a[k], b[k])]


def two_processes(module: str, task: str, folder: Path) -> tuple[dict, dict]:
    """Train and validate with two gloo processes; what both hold afterwards, and their score."""
    script = folder / "two.py"
    script.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parent), module=module, task=task, folder=str(folder)
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(folder / f"rank{i}.pt") for i in range(2))
    return first, second


SCRIPT = """
import sys

import torch

sys.path.insert(0, {tests!r})
import {module} as t

t.L.seed_everything(3, verbose=False)
task = {task}
run = t.trainer(
    {folder!r},
    devices=2,
    strategy="ddp_find_unused_parameters_true",
    max_steps=2,
    limit_val_batches=1.0,
)
run.fit(task, t.Data())
state = dict(task.generator_ema.state_dict())
state |= {{name: value.detach() for name, value in task.named_parameters()}}
state["score"] = run.callback_metrics["val/fd_effnetlite0_16f"]
state["clips"] = run.callback_metrics["val/clips"]
assert state["clips"] == 8
torch.save(state, {folder!r} + f"/rank{{run.global_rank}}.pt")
"""
