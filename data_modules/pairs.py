"""No data set: files of pictures and videos, which the program itself opens."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from data_modules.index import DataError


class Pairs(LightningDataModule):
    """A table of pictures and the videos that move them, for `lightning predict`.

    What is made, kept, tried again and noted is what `lmdvid animate --pairs` would, and either
    goes on where the other has stopped; see `lmdvid.jobs`. A batch holds this class's arguments by
    name, once for each process: the processes agree among themselves who animates which pair.
    With `--trainer.enable_progress_bar false` a bar counts pairs.

    Args:
        pairs: csv with the columns source, driving and perhaps output; paths are below its folder.
        output: folder of the results and of summary.csv.
        how: options of `animate` by the names of `lmdvid.Animator.animate_file`, such as
            `{mode: absolute, fit: pad}`.
        dtype: of the network, `float32` or `bfloat16`; null chooses as `animate` does. The
            trainer's precision is not asked.
        jobs: processes that animate, for each of the trainer's.
        retry_failed: try again what failed before.
    """

    def __init__(
        self,
        pairs: str,
        output: str,
        how: dict[str, Any] | None = None,
        dtype: str | None = None,
        jobs: int = 1,
        retry_failed: bool = False,
    ):
        super().__init__()
        if jobs < 1:
            raise DataError(f"jobs is {jobs}; it must be 1 or more")
        if dtype not in (None, "float32", "bfloat16"):
            raise DataError(f"dtype is {dtype}; choose float32 or bfloat16")
        self.order = {
            "pairs": pairs,
            "output": output,
            "how": how or {},
            "dtype": dtype,
            "jobs": jobs,
            "retry_failed": retry_failed,
        }

    def predict_dataloader(self) -> DataLoader:
        """The arguments, for each process of the training once."""
        processes = self.trainer.world_size if self.trainer else 1
        return DataLoader([self.order] * processes, batch_size=None)  # type: ignore[arg-type]
