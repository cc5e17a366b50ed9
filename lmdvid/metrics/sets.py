"""All scores of a protocol that compares two sets of videos, streaming."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lmdvid.metrics.frechet import ExtrapolatedFrechetDistance, FrechetDistance, expected_distance
from lmdvid.metrics.kernel import KernelDistance
from lmdvid.metrics.precision_recall import PrecisionRecall
from lmdvid.metrics.protocols import Protocol, ProtocolError
from lmdvid.metrics.samples import TooFewError, TwoSampleMetric
from lmdvid.networks.features.frozen import VideoFeatures


class SetScores:
    """The Fréchet distance of a protocol and, where its limit bounds them, what all rows tell.

    In a process group every process brings its share; what is returned is that of all of them.

    Args:
        by: The protocol.
        network: Of its features.
        device: Where sums are kept.
        extrapolate: Also estimate the distance for infinitely many clips.

    Raises:
        ProtocolError: An extrapolation needs rows, which the protocol does not keep, or more of
            them than it takes.
    """

    def __init__(
        self,
        by: Protocol,
        network: VideoFeatures,
        device: torch.device | str = "cpu",
        extrapolate: bool = False,
    ) -> None:
        self.by = by
        self.network = network
        self.distance = FrechetDistance(network.dim, by.ddof).to(device)
        self.metrics: dict[str, TwoSampleMetric] = {by.name: self.distance}
        # Rows are kept, and compared with each other, only where a limit bounds their number.
        self.keeps_rows = not network.per_frame and by.limit is not None
        if extrapolate and not self.keeps_rows:
            raise ProtocolError(f"{by.name} keeps no features: it cannot be extrapolated")
        if self.keeps_rows:
            self.metrics["kvd"] = KernelDistance(network.dim).to(device)
            self.metrics["precision_recall"] = PrecisionRecall(network.dim).to(device)
        if extrapolate:
            metric = ExtrapolatedFrechetDistance(network.dim, by.ddof).to(device)
            if by.limit is not None and by.limit < metric.minimum:
                raise ProtocolError(
                    f"{by.name} takes {by.limit} clips, but an extrapolation in {network.dim} "
                    f"features needs {metric.minimum}: leave it out, or take a protocol of fewer "
                    "features, such as fvd2048_16f"
                )
            self.metrics[f"{by.name}_extrapolated"] = metric

    def update(self, clips: Tensor, real: bool) -> None:
        """Add clips (B, T, 3, H, W) in [-1, 1] to one side: the frames that the protocol chose."""
        rows = self.network(clips)
        for metric in self.metrics.values():
            metric.update(rows, real)

    def counts(self) -> dict[str, int]:
        """Return N of both sides, of all processes: real ones first."""
        unit = "frames" if self.network.per_frame else "clips"
        found = {"real": self.distance.real_count, "fake": self.distance.fake_count}
        return {f"{side}_{unit}": _total(count) for side, count in found.items()}

    @property
    def minimum(self) -> int:
        """Samples that each side must have."""
        return max(metric.minimum for metric in self.metrics.values())

    def compute(self) -> dict[str, float]:
        """Return the scores by name, the protocol's own first.

        Raises:
            TooFewError: A set has too few samples.
        """
        real, fake = self.counts().values()
        least = self.minimum
        if min(real, fake) < least:
            raise TooFewError(
                f"{self.by.name}: {real} real and {fake} generated samples can be used; at least "
                f"{least} of each are needed"
            )
        scores: dict[str, float] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            parts = value if isinstance(value, dict) else {name: value}
            scores |= {part: v.item() for part, v in parts.items()}
        return scores

    def bias(self) -> dict[str, Any]:
        """Return what the distance owes to the number of samples."""
        real, fake = self.counts().values()
        note: dict[str, Any] = {"real": real, "fake": fake, "features": self.distance.dim}
        if self.network.per_frame:
            note["note"] = "frames of one video are not independent: the bias is not known"
        elif min(real, fake) < 2 * self.distance.dim:
            note["note"] = (
                "fewer samples than twice the features: compare with distances of the same "
                "numbers only"
            )
        else:
            with self.distance.sync_context():
                eigenvalues = self.distance.real_eigenvalues()
            note["expected"] = expected_distance(eigenvalues, real, fake).item()
            note["note"] = "about what as many samples of one and the same distribution would give"
        if self.by.limit is not None and min(real, fake) < self.by.limit:
            note["fewer"] = (
                f"{real} real and {fake} generated clips, not {self.by.limit} of each: not to be "
                f"compared with what others call {self.by.name}"
            )
        return note

    def describe(self) -> dict[str, Any]:
        """Return the network as plain data, for a result."""
        network = self.network
        return {"name": self.by.features, "dim": network.dim, "resize": network.resize}

    def snapshot(self) -> dict[str, Tensor]:
        """Return the real side of all processes: the rows where they are kept, else the sums."""
        metric = self.metrics["kvd"] if self.keeps_rows else self.distance
        with metric.sync_context():
            found = {"rows": metric.rows("real"), "count": metric.real_count}
            if isinstance(metric, FrechetDistance):
                found |= {"sum": metric.real_sum, "products": metric.real_products}
            return {name: tensor.cpu().clone().contiguous() for name, tensor in found.items()}

    def restore(self, statistics: dict[str, Tensor]) -> None:
        """Take a real side over, in one of the processes."""
        device = self.distance.real_count.device
        statistics = {name: tensor.to(device) for name, tensor in statistics.items()}
        if self.keeps_rows:
            for metric in self.metrics.values():
                metric.update(statistics["rows"], real=True)
        else:
            self.distance.real_sum = statistics["sum"]
            self.distance.real_products = statistics["products"]
            self.distance.real_count = statistics["count"]
            self.distance.real_rows = [statistics["rows"]]


def _total(count: Tensor) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return int(count)
    return sum(int(part) for part in gather_all_tensors(count))
