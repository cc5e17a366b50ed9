"""Losses and gradients that are no numbers: found before a step, named, left out or returned from.

The weights never take a step along such a gradient, and running statistics forget the batch; but a
generator that draws from noise, sees no clip and steps first has taken its step. Where several
processes train, all of them see the same averaged gradient, and so decide alike.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lmdvid import checkpoints

log = logging.getLogger(__name__)

Policy = Literal["stop", "skip"]

KEY = "lmdvid_nonfinite"
"""Where checkpoints keep the counts."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite; the message names the step and the batch."""


class Skipping:
    """Counts batches that were left out, and finds the way back when they are too many in a row.

    Args:
        limit: how many in a row are left out before the last good checkpoint is taken up.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped = self.in_a_row = self.returns = 0
        self._returned_to: list[tuple[str, int]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def state(self) -> dict[str, Any]:
        """What checkpoints keep."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "returns": self.returns,
            "returned_to": list(self._returned_to),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.returns = state["returns"]
        self._returned_to = list(state["returned_to"])

    def remember(self, *networks: nn.Module | None) -> None:
        """Keep the running statistics, which see a batch before anybody knows its loss."""
        buffers = [b for network in networks if network is not None for b in network.buffers()]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def skip(self, reason: str) -> bool:
        """Undo and count a batch, and return whether there were too many in a row."""
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self.skipped += 1
        self.in_a_row += 1
        log.warning(
            "%s. It is left out (%d so far, %d in a row)", reason, self.skipped, self.in_a_row
        )
        return self.in_a_row > self.limit

    def go_back(self, trainer: L.Trainer, reason: str) -> None:
        """Load weights and optimisers of this run's last good checkpoint; the data go on.

        Good is one that was written when the step before it was, with weights that are numbers.
        Each is returned to once, so that it comes to an end.

        Raises:
            NonFiniteLossError: if there is none.
        """
        found = self._last_good(trainer) if trainer.is_global_zero else None
        found = trainer.strategy.broadcast(found)
        if found is None:
            raise NonFiniteLossError(
                f"{reason}. That was number {self.in_a_row} in a row, and no earlier good "
                "checkpoint of this run is left to return to: lower lr, remove the clips, or let "
                "ModelCheckpoint write more often and keep more (every_n_train_steps, save_top_k)"
            )
        path, step = found
        content = torch.load(path, map_location="cpu", weights_only=True)
        module = trainer.lightning_module
        trainer.strategy.load_model_state_dict(content, strict=module.strict_loading)
        trainer.strategy.load_optimizer_state_dict(content)
        log.warning(
            "%d batches in a row were not finite: weights and optimisers are those of %s (step %d) "
            "again, and training goes on from there with the next batch",
            self.in_a_row,
            path,
            step,
        )
        self._returned_to.append((path, step))
        self.returns += 1
        self.in_a_row = 0

    def _last_good(self, trainer: L.Trainer) -> tuple[str, int] | None:
        for path in _of_this_run(trainer):
            try:
                step = checkpoints.check(path)
            except (checkpoints.CheckpointError, OSError) as error:
                log.warning("passed over: %s", error)
                continue
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            good = not content.get(KEY, {}).get("in_a_row", 0) and all(
                value.isfinite().all()
                for value in content["state_dict"].values()
                if value.is_floating_point()
            )
            if good and (str(path), step) not in self._returned_to:
                return str(path), step
        return None


def _of_this_run(trainer: L.Trainer) -> list[Path]:
    """Its checkpoints, newest first, and the one that it goes on from."""
    folders = {
        Path(saved).parent
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint)
        for saved in (callback.last_model_path, callback.best_model_path)
        if saved
    }
    paths = {path for folder in folders for path in folder.glob("*.ckpt") if path.is_file()}
    newest = sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    begun = Path(trainer.ckpt_path) if trainer.ckpt_path else None
    return newest + ([begun] if begun and begun.is_file() and begun not in paths else [])
