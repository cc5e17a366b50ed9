"""Callbacks: videos of what a task shows, and a log that survives a kill."""

import csv
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from einops import rearrange
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lmdvid.loggers import log_video
from lmdvid.video import to_uint8, write_image, write_video


class SampleVideos(L.Callback):
    """Write a task's panels side by side as one video per validation, for every logger.

    A task's `validation_step` and `test_step` return panels by name: pictures (B, 3, H, W) or
    clips (B, T, 3, H, W) in [-1, 1]. They become the columns of a video whose rows are clips.

    Args:
        clips: Rows, the first clips of the validation set.
        fps: Frames per second.
        output: Where testing writes its video and, beside it, a picture (`.png`) of moments spread
            over time; None writes neither.
    """

    def __init__(self, clips: int = 4, fps: int = 10, output: str | None = None) -> None:
        self.clips = clips
        self.fps = fps
        self.output = output
        self._rows: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the first clips' panels."""
        self._collect(trainer, outputs)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the first clips' panels."""
        self._collect(trainer, outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the video to every logger."""
        if not (rows := self._take()) or trainer.sanity_checking:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sample.mp4"
            write_video(path, to_uint8(stack(rows)), self.fps)
            log_video(trainer.loggers, "sample", path, trainer.global_step)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `output` and the picture beside it."""
        if not (rows := self._take()) or self.output is None:
            return
        output = Path(self.output)
        write_video(output, to_uint8(stack(rows)), self.fps)
        write_image(output.with_suffix(".png"), to_uint8(moments(rows)))
        print(f"wrote {output} and {output.with_suffix('.png')}")

    def _collect(self, trainer: L.Trainer, outputs: Any) -> None:
        if not trainer.is_global_zero or not isinstance(outputs, dict):
            return
        length = max((p.shape[1] for p in outputs.values() if p.ndim == 5), default=1)
        panels = [
            panel if panel.ndim == 5 else panel[:, None].expand(-1, length, -1, -1, -1)
            for panel in outputs.values()
        ]
        for row in zip(*panels, strict=True):
            if len(self._rows) < self.clips:
                self._rows.append(torch.stack([p.detach().float().cpu() for p in row]))

    def _take(self) -> list[Tensor]:
        rows, self._rows = self._rows, []
        return rows


class PredictionVideos(L.Callback):
    """Write what `lightning predict` makes, one video per key.

    A task's `predict_step` returns `key`, a list of names, and `video` (B, T, 3, H, W) in [-1, 1].

    Args:
        folder: Where `<key>.mp4` goes.
        fps: Frames per second.
    """

    def __init__(self, folder: str, fps: int = 25) -> None:
        self.folder = Path(folder)
        self.fps = fps

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Write this batch's videos."""
        for key, video in zip(outputs["key"], outputs["video"], strict=True):
            name = str(key).replace("/", "_").removesuffix(".mp4")
            write_video(self.folder / f"{name}.mp4", to_uint8(video.cpu()), self.fps)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where they are."""
        if trainer.is_global_zero:
            print(f"wrote the videos in {self.folder}")


class ContinuedLog(L.Callback):
    """Keep metrics.csv whole through kills: the command line adds this to every training.

    Every row is written as it is logged. A resumed run has a folder of its own; its metrics.csv
    begins with the rows that the run it goes on from logged before the checkpoint, so that each
    step is there once. The earlier run's file stays as it is. A step's row is logged after its
    checkpoint: only a kill between the two costs a row.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the earlier rows."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger._flush_logs_every_n_steps = 1  # Lightning writes at every hundredth step
                if trainer.ckpt_path:
                    earlier = Path(trainer.ckpt_path).parent.parent / "metrics.csv"
                    rows = earlier_rows(earlier, trainer.global_step)
                    logger.experiment.metrics = rows + logger.experiment.metrics
                    logger.save()


def earlier_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Rows of a metrics.csv, none where there is no such file, that were logged before a step."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]


def stack(rows: list[Tensor]) -> Tensor:
    """Rows of panels (P, T, 3, H, W) to one clip (T, 3, rows H, P W) of the shortest length."""
    length = min(row.shape[1] for row in rows)
    grid = torch.stack([row[:, :length] for row in rows])
    return rearrange(grid, "r p t c h w -> t c (r h) (p w)")


def moments(rows: list[Tensor]) -> Tensor:
    """Rows of panels (P, T, 3, H, W) to a picture (3, rows H, P W), each row at another time."""
    lines = []
    for i, row in enumerate(rows):
        frame = row[:, (i + 1) * row.shape[1] // (len(rows) + 1)]
        lines.append(rearrange(frame, "p c h w -> c h (p w)"))
    return torch.cat(lines, dim=1)
