"""A small probe that reads pose or identity off pictures: trained on real ones, shown generated."""

import torch
from torch import Tensor, nn

from lmdvid.networks.features import EfficientNetLite0

_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class ProbeError(ValueError):
    """A probe cannot learn from what it is given; the text says why."""


class PictureProbe(nn.Module):
    """Ridge regression from frozen features of pictures to numbers that are known of real ones.

    The features are two middle maps of `EfficientNetLite0` (40 and 112 channels), which still know
    where things are. The ridge is the best of six on a quarter of the groups; a coordinate counts
    as readable where the probe explains half of its variance there, and only such are predicted.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    scale: Tensor
    weight: Tensor
    readable: Tensor
    """(P,) whether the probe can tell this coordinate."""

    def __init__(self, network: EfficientNetLite0 | None = None) -> None:
        super().__init__()
        self.network = network or EfficientNetLite0(taps=4)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return (B, F) features, float64, of images (B, 3, H, W) in [-1, 1]."""
        parts = []
        for part in images.float().split(32):
            maps = self.network(part)
            parts.append(torch.cat([maps[2].flatten(1), maps[3].flatten(1)], dim=1))
        return torch.cat(parts).double()

    def fit(self, features: Tensor, targets: Tensor, groups: Tensor) -> "PictureProbe":
        """Learn from real pictures.

        Args:
            features: (n, F) of `features`.
            targets: (n, P) what is known of them.
            groups: (n,) whole numbers: pictures of one group are never in both parts of the split
                that chooses the ridge; for a pose that is to be read off strangers, the identity.

        Raises:
            ProbeError: Fewer than four groups.
        """
        names = groups.unique()
        if len(names) < 4:
            raise ProbeError(f"a probe needs 4 groups of pictures or more, not {len(names)}")
        held_out = torch.isin(groups, names[::4])
        best = torch.full((), -torch.inf, dtype=torch.float64)
        chosen, self.readable = _RIDGES[-1], targets.new_zeros(targets.shape[1]).bool()
        targets = targets.double()
        for ridge in _RIDGES:
            self._solve(features[~held_out], targets[~held_out], ridge)
            wanted = (targets[held_out] - self.centre) / self.scale
            missed = (self._predict(features[held_out]) - wanted).square().mean(0)
            explained = 1 - missed / wanted.var(0, correction=0).clamp(min=1e-6)
            if (value := explained.clamp(min=0).mean()) > best:
                best, chosen, self.readable = value, ridge, explained >= 0.5
        self._solve(features, targets, chosen)
        return self

    def _solve(self, features: Tensor, targets: Tensor, ridge: float) -> None:
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        self.centre, self.scale = targets.mean(0), targets.std(0).clamp(min=1e-6)
        x = self._normalised(features)
        # The dual form: there are fewer pictures than features.
        gram = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
        self.weight = x.T @ torch.linalg.solve(gram, (targets - self.centre) / self.scale)

    def _normalised(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std / features.shape[1] ** 0.5

    def _predict(self, features: Tensor) -> Tensor:
        return self._normalised(features) @ self.weight

    def forward(self, images: Tensor) -> Tensor:
        """Return the readable coordinates (B, R) in standard deviations of the training pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1], of the size that the probe was trained on.
        """
        return self._predict(self.features(images))[:, self.readable]

    def normalise(self, targets: Tensor) -> Tensor:
        """Return what is known, (B, P), in the units of the prediction, (B, R)."""
        return ((targets.double() - self.centre) / self.scale)[:, self.readable]


def leakage(result: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """How far generated pictures have gone from their own identity towards another.

    Args:
        result: (B, R) what a probe reads off generated pictures.
        own: (B, R) off true pictures of the identity that they should show.
        other: (B, R) off pictures of the identity whose motion drives them.

    Returns:
        Sums over the batch of <result - own, other - own> and of |other - own|^2. Their ratio is 0
        where nothing leaks, 1 where the result shows the other identity.
    """
    way = other - own
    return ((result - own) * way).sum(), way.square().sum()
