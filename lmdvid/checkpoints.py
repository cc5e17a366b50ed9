"""Checkpoints that outlive a kill: there whole or not at all, checked before use, found again.

Where several processes train, process 0 chooses the checkpoint for all of them.
"""

import logging
import math
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import RestartStage

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file is no usable checkpoint; the message names it and says why."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, each of them there whole or not at all.

    Lightning moves a finished file into place from the system's temporary folder, which copies it
    piece by piece where that folder is on another disk, and does not wait for the disk. Here a
    checkpoint is written to `NAME.part` beside its place, synced, and renamed: whatever ends the
    process, the file that was there before stays. What a killed save leaves behind is never taken
    for a checkpoint; the next save to the same name overwrites it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; object storage (`s3://...`) is Lightning's business.

        Raises:
            OSError: the file cannot be written, for example on a full disk.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            # torch hides what the disk said behind an error about positions in an archive
            disk = error.__context__ if isinstance(error, RuntimeError) else error
            if isinstance(disk, OSError) and disk.filename is None:
                raise OSError(disk.errno, disk.strerror, str(path)) from error
            raise
        if os.name == "posix":  # the new name, too, is to survive a power cut
            # The checkpoint is there; some network disks sync no folders, and that ends no run.
            with suppress(OSError):
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


class Trainer(L.Trainer):
    """Lightning's trainer, whose processes all take up the checkpoint that process 0 was given.

    Each of them looks for `last` on its own disk, or is told something of its own; they would load
    different states, or wait for each other for ever.

    A task puts what a progress bar shows in training into `shown`, tensors by name, instead of
    logging it with `prog_bar=True`, for which the host would wait at every step. It is read twice a
    second.

    Raises:
        CheckpointError: on every process, if one of them does not find that file.
    """

    shown: dict[str, torch.Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown = {}
        self._read: dict[str, float] = {}
        self._read_again = -math.inf

    @property
    def progress_bar_metrics(self) -> dict[str, Any]:
        """Values for a progress bar, by the names they were logged by."""
        if self.training and self.shown and time.monotonic() > self._read_again:
            self._read_again = time.monotonic() + 0.5
            values = torch.stack([value.float() for value in self.shown.values()]).tolist()
            self._read = dict(zip(self.shown, values, strict=True))
        return super().progress_bar_metrics | self._read

    def _run(
        self,
        model: L.LightningModule,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        self.shown, self._read, self._read_again = {}, {}, -math.inf
        # Lightning has no hook between the moment when processes can talk and the loading.
        if self.world_size > 1:
            self.strategy.connect(model)
            self.strategy.setup_environment()  # the second time, in `_run`, it finds all done
            ckpt_path = self.strategy.broadcast(ckpt_path)
            here = ckpt_path is None or "://" in str(ckpt_path) or Path(ckpt_path).is_file()
            if not self.strategy.reduce_boolean_decision(here):
                where = "here" if not here else "on another process's machine"
                raise CheckpointError(
                    f"process 0 goes on from {ckpt_path}, which does not exist {where} (process "
                    f"{self.global_rank}): keep checkpoints on a disk that all machines share"
                )
        # Lightning tells it only after `setup`, where tasks ask whether a run goes on.
        self._checkpoint_connector._ckpt_path = ckpt_path
        return super()._run(model, ckpt_path=ckpt_path, weights_only=weights_only)


def check(path: Path, training: bool = True, weights_only: bool = True) -> int:
    """Read all of a checkpoint once, comparing checksums, which torch does not do.

    Args:
        path: of the file.
        training: whether it is to have what training goes on from, or just weights.
        weights_only: see `torch.load`.

    Returns:
        The number of training steps that it has seen.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint of this kind.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except Exception as error:  # a garbled archive raises nearly anything
            raise CheckpointError(f"{path} is no checkpoint, or was cut off: {error}") from error
    if broken is not None:
        raise CheckpointError(f"{path} is damaged (checksum of {broken})")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
    except Exception as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    needed = ("state_dict", "loops", "optimizer_states") if training else ("state_dict",)
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise CheckpointError(f"{path} is no checkpoint that `fit` wrote: no {missing[0]} in it")
    return int(content.get("global_step", 0))


def folders(trainer: L.Trainer) -> list[Path]:
    """Folders where runs of the trainer's experiment, this one and earlier ones, keep checkpoints.

    An experiment is known by its first logger's folder and name; every run has a version there.
    """
    found = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            found.append(Path(callback.dirpath))
        elif not trainer.loggers:
            found.append(Path(trainer.default_root_dir, "checkpoints"))
        else:
            logger = trainer.loggers[0]
            root = Path(logger.save_dir or trainer.default_root_dir, str(logger.name))
            found += root.glob("*/checkpoints")
    return found


def folders_beside(path: Path) -> list[Path]:
    """Folders with checkpoints of the same experiment as that of the file `path`."""
    folder = path.absolute().parent
    return [folder, *(folder.parent.parent.glob("*/checkpoints"))]


def newest(
    places: Iterable[Path],
    training: bool = True,
    weights_only: bool = True,
    besides: Path | None = None,
) -> tuple[Path, int] | None:
    """Find the usable checkpoint that was written last.

    Damaged files are passed over with a warning that names them.

    Args:
        places: folders.
        training: see `check`.
        weights_only: see `check`.
        besides: a file that is known to be of no use.

    Returns:
        Its path and number of steps, or None.
    """
    written: dict[Path, tuple[int, bool]] = {}
    for place in places:
        for path in place.glob("*.ckpt"):
            # a link, whose target may be gone, is as old as its target
            if path.is_file() and path.absolute() != (besides and besides.absolute()):
                written[path] = (path.stat().st_mtime_ns, path.stem == "last")
    for path in sorted(written, key=written.__getitem__, reverse=True):
        try:
            return path, check(path, training, weights_only)
        except (CheckpointError, OSError) as error:
            log.warning("passed over: %s", error)
    return None


def continue_epoch(trainer: L.Trainer) -> None:
    """Begin the next epoch after a checkpoint of an epoch's end; go on with one that was stopped.

    Lightning 2.6 counts neither rightly where steps limit the run. For `on_train_start`.
    """
    fit: Any = trainer.fit_loop
    epoch, batches = fit.epoch_progress, fit.epoch_loop.batch_progress
    if fit.restarted_on_epoch_end:
        whole = batches.current.completed >= trainer.num_training_batches
        if batches.is_last_batch or whole:
            for count in (epoch.total, epoch.current):
                count.completed = count.processed
            fit.epoch_loop.restarting = False
            fit._restart_stage = RestartStage.NONE
        else:  # the time or the steps were up in its middle
            for count in (epoch.total, epoch.current):
                count.completed = count.processed = count.processed - 1
            fit._restart_stage = RestartStage.RESTARTED_MID_EPOCH
    elif fit.restarted_mid_epoch and epoch.total.processed == epoch.total.started:
        fit._restart_stage = RestartStage.NONE  # saved at its last batch: the next one is a new one


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether the run goes on from a checkpoint after whose step comes a validation.

    Lightning takes it for made. For `on_train_start`.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    if not loop.restarted_on_train_batch_end:
        return False
    with _as_when_saved(trainer):
        return loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def make_up_validation(trainer: L.Trainer) -> None:
    """Validate if it is due, as the run that wrote the checkpoint did or would have done.

    What remembers scores, such as a ModelCheckpoint that monitors one, does not know them from the
    checkpoint. For `on_train_start`, after `continue_epoch`.
    """
    if not validation_is_due(trainer):
        return
    loop = trainer.fit_loop.epoch_loop.val_loop
    counts = loop.batch_progress.state_dict()
    with _as_when_saved(trainer):
        trainer.validating = True
        loop.restarting = False  # all of it, whatever an earlier one had come to
        loop.run()
        trainer.training = True
    loop.batch_progress.load_state_dict(counts)  # which go on as if it had been made


@contextmanager
def _as_when_saved(trainer: L.Trainer) -> Iterator[None]:
    """Let counters say what they did just after a checkpoint was written at a batch's end.

    So do checkpoints that are written in between: their batch is over.
    """
    fit: Any = trainer.fit_loop
    batches, epoch = fit.epoch_loop.batch_progress, fit.epoch_progress
    # Lightning ends the epoch of its last batch's checkpoint before training begins.
    ended = batches.is_last_batch and epoch.total.processed == epoch.total.started
    for part in ("total", "current"):
        getattr(batches, part).completed += 1
        for count in ("processed", "completed") if ended else ():
            setattr(getattr(epoch, part), count, getattr(getattr(epoch, part), count) - 1)
    try:
        yield
    finally:
        for part in ("total", "current"):
            getattr(batches, part).completed -= 1
            for count in ("processed", "completed") if ended else ():
                setattr(getattr(epoch, part), count, getattr(getattr(epoch, part), count) + 1)
