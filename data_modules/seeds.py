"""No data: numbers of videos to make from noise."""

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from data_modules.index import DataError
from data_modules.sampling import seed_loader


class Seeds(LightningDataModule):
    """Batches of `index` (B,), the numbers 0 to `count` - 1, for prediction from noise.

    Args:
        count: how many videos to make, over all processes.
        batch_size: per process.
    """

    def __init__(self, count: int = 16, batch_size: int = 8):
        super().__init__()
        for name, value in (("count", count), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"{name} is {value}; it must be 1 or more")
        self.count = count
        self.batch_size = batch_size

    def predict_dataloader(self) -> DataLoader:
        """The numbers in order; Lightning shares them out over processes, none twice."""
        processes = self.trainer.world_size if self.trainer else 1
        return seed_loader(self.count, self.batch_size, processes)
