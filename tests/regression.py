"""A linear regression that trains in no time: the model and data of the command line's tests."""

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lmdvid.video import VideoReadError


class Head(nn.Linear):
    """A linear layer.

    Args:
        width: outputs.
        bound: what is done with them.
    """

    def __init__(self, width: int = 1, bound: Literal["none", "tanh"] = "none"):
        super().__init__(4, width)
        self.bound = bound


class Regression(LightningModule):
    """One linear layer.

    Args:
        size: inputs; even.
        lr: learning rate.
        head: a further layer, not trained.
        fails: what goes wrong in the first training step.
    """

    def __init__(
        self,
        size: int = 4,
        lr: float = 0.1,
        head: Head | None = None,
        fails: Literal["never", "bug", "clip", "interrupt"] = "never",
    ):
        super().__init__()
        if size % 2:
            raise ValueError(f"size must be even; got {size}")
        self.save_hyperparameters(ignore=["head"])
        self.line = nn.Linear(size, 1)
        self.lr = lr
        self.fails = fails

    def training_step(self, batch: Tensor) -> Tensor:
        if self.fails == "bug":
            raise RuntimeError("a bug")
        if self.fails == "clip":
            raise VideoReadError("clip.mp4", "it is empty")
        if self.fails == "interrupt":
            raise KeyboardInterrupt
        loss = self.line(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_fit_end(self) -> None:
        weights = self.line.weight.flatten().tolist()
        Path(f"rank{self.global_rank}.txt").write_text(str(weights))


class Rows(LightningDataModule):
    """Random rows.

    Args:
        size: columns.
        root: a folder that has to exist.
    """

    def __init__(self, size: int = 4, root: str | None = None):
        super().__init__()
        self.size = size
        self.root = root

    def setup(self, stage: str) -> None:
        if self.root is not None:
            next(Path(self.root).iterdir())

    def train_dataloader(self) -> DataLoader:
        rows = torch.arange(8.0 * self.size).reshape(8, self.size) / 10
        return DataLoader(rows, batch_size=2)  # pyright: ignore[reportArgumentType]
