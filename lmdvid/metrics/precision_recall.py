"""Precision and recall: how real generated samples are, and how much of what is real they show."""

from typing import Any

import torch
from torch import Tensor

from lmdvid.metrics.samples import TwoSampleMetric


class PrecisionRecall(TwoSampleMetric):
    """Improved precision and recall (Kynkäänniemi et al., NeurIPS 2019) on features of clips.

    Around every sample of a side lies a ball that reaches to its k-th nearest neighbour on the
    same side. Precision is the share of generated samples within a ball of the real ones, recall
    the share of real samples within a ball of the generated ones. Both depend on the numbers of
    samples and on the features.

    Args:
        dim: Number of features F.
        neighbours: k.
        keep_real: `reset()` forgets the generated samples only.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: From `compute`: k samples or fewer on a side.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self, dim: int, neighbours: int = 3, keep_real: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(dim, keep_real, **kwargs)
        self.neighbours = neighbours
        self.minimum = neighbours + 1

    def compute(self) -> dict[str, Tensor]:
        """Return `precision` and `recall`, float64 scalars in [0, 1]."""
        self._check()
        values = self._once(self._shares, results=2)
        return {"precision": values[0], "recall": values[1]}

    def _shares(self) -> list[Tensor]:
        real, fake = self.rows("real"), self.rows("fake")
        return [self._covered(fake, by=real), self._covered(real, by=fake)]

    def _covered(self, samples: Tensor, by: Tensor) -> Tensor:
        # Exact differences: distances by products of rows lose the nearest neighbours' digits.
        exact = "donot_use_mm_for_euclid_dist"
        radii = torch.cat(
            [
                torch.cdist(part, by, compute_mode=exact).kthvalue(self.neighbours + 1).values
                for part in by.split(512)  # + 1: the nearest is the sample itself
            ]
        )
        within = [
            (torch.cdist(part, by, compute_mode=exact) <= radii).any(1)
            for part in samples.split(512)
        ]
        return torch.cat(within).double().mean()
