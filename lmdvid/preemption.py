"""Runs that are told to end: the step under way is finished, and a checkpoint written after it."""

import logging
import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)

NAME = "interrupted.ckpt"


class Preemption(L.Callback):
    """Let SIGTERM and SIGUSR1 end training with a checkpoint: the command line adds this.

    Lightning's own handlers write one in the middle of a step, from which nothing resumes exactly.
    Here the step is finished first, in all processes the same one, whichever of them got the
    signal; `interrupted.ckpt` goes where the first ModelCheckpoint writes, and the exit code is 128
    and the signal's number. In a SLURM job SIGUSR1 also asks for the job to be queued again.

    Signals that come during validation are heeded after the next training step; the time that is
    given must allow for that.

    Args:
        requeue: on SIGUSR1 in a SLURM job, run `scontrol requeue`.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self._signal = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, which gives them back after the run."""
        self._signal = 0
        if threading.current_thread() is threading.main_thread() and os.name == "posix":
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._heed)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Write the checkpoint and leave, where any of the processes was told to."""
        number = self._signal
        if trainer.world_size > 1:
            told = torch.tensor(float(number), device=pl_module.device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number:
            return
        name = signal.Signals(number).name
        folder = _folder(trainer)
        if folder is None:
            log.warning("%s: the run ends; it has no ModelCheckpoint, so nothing is kept", name)
        else:
            trainer.save_checkpoint(folder / NAME)
            if trainer.is_global_zero:
                log.warning(
                    "%s: the run ends after step %d; go on with --ckpt_path last (%s)",
                    name,
                    trainer.global_step,
                    folder / NAME,
                )
        if number == signal.SIGUSR1 and self.requeue and trainer.is_global_zero:
            _requeue()
        raise SystemExit(128 + number)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number


def _folder(trainer: L.Trainer) -> Path | None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            return Path(callback.dirpath)
    return None


def _requeue() -> None:
    """Put this SLURM job, or this task of an array, back into the queue."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"[0-9_]+", job):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        log.warning("cannot queue job %s again: scontrol: %s", job, error.strerror)
        return
    if done.returncode:
        log.warning("cannot queue job %s again: %s", job, done.stderr.strip())
    else:
        log.warning("job %s is queued again", job)
