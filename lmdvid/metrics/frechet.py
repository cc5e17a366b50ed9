"""Fréchet distance of features: FVD, FID and their relatives differ in the features alone."""

from typing import Any

import torch
from torch import Tensor

from lmdvid.metrics.samples import TwoSampleMetric


class FrechetDistance(TwoSampleMetric):
    """Squared Fréchet distance between Gaussians fitted to real and generated features.

    |m_r - m_g|^2 + tr S_r + tr S_g - 2 tr (S_r S_g)^(1/2) (Dowson & Landau, 1982; FID: Heusel et
    al., 2017; FVD: Unterthiner et al., 2018). Lower is better. It depends on the numbers of
    samples, so distances of different numbers must not be compared: two samples of n and m from
    one Gaussian have a distance near `expected_distance`, not 0.

    Sums of features and of their products stream in float64. While a side has at most F samples
    its rows are kept as well (never more than the F x F products take): covariances without full
    rank have an exact route. Rounding can leave the distance of equal samples just below 0.

    Args:
        dim: Number of features F.
        ddof: Covariances divide by N - ddof: 1 for the unbiased one (TF-GAN, pytorch-fid), 0 as
            StyleGAN-V and cd-fvd do.
        keep_real: `reset()` forgets the generated samples only.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: `ddof` is neither 0 nor 1; from `compute`: fewer than two samples on a side,
            or features that are not finite.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    real_sum: Tensor
    fake_sum: Tensor
    real_products: Tensor
    fake_products: Tensor

    def __init__(self, dim: int, ddof: int = 1, keep_real: bool = False, **kwargs: Any) -> None:
        super().__init__(dim, keep_real, **kwargs)
        if ddof not in (0, 1):
            raise ValueError(f"ddof is {ddof}; covariances divide by N - 1 (1) or by N (0)")
        self.ddof = ddof
        for side in ("real", "fake"):
            zeros = torch.zeros(dim, dtype=torch.float64)
            self.add_state(f"{side}_sum", zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.diag(zeros), dist_reduce_fx="sum")

    def _add(self, side: str, features: Tensor) -> None:
        total, products = f"{side}_sum", f"{side}_products"
        setattr(self, total, getattr(self, total) + features.sum(0))
        setattr(self, products, torch.addmm(getattr(self, products), features.T, features))
        rows: list[Tensor] = getattr(self, f"{side}_rows")
        if getattr(self, f"{side}_count") > self.dim:
            rows.clear()  # nor does any other process need its rows now
        else:
            rows.append(features)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        self._check()
        (distance,) = self._once(lambda: [self._distance()], results=1)
        return distance

    def _check(self) -> None:
        super()._check()
        for side, name in (("real", "real"), ("fake", "generated")):
            if not getattr(self, f"{side}_sum").isfinite().all():
                raise ValueError(f"FrechetDistance: features of {name} samples are not finite")

    def real_eigenvalues(self) -> Tensor:
        """Return the eigenvalues (F,) of the real covariance, for `expected_distance`."""
        _, covariance = self._gaussian("real")
        return torch.linalg.svdvals(covariance.factor).square()

    def _distance(self) -> Tensor:
        sides = [self._gaussian("real"), self._gaussian("fake")]
        (mean_real, real), (mean_fake, fake) = sides
        gap = (mean_real - mean_fake).square().sum()
        return gap + _spread(real, fake)

    def _gaussian(self, side: str) -> tuple[Tensor, "_Covariance"]:
        count = int(getattr(self, f"{side}_count"))
        mean = getattr(self, f"{side}_sum") / count
        if count <= self.dim:
            rows = (self.rows(side) - mean) / (count - self.ddof) ** 0.5
            return mean, _Covariance(factor=rows.T)
        products = getattr(self, f"{side}_products")
        covariance = (products - count * torch.outer(mean, mean)) / (count - self.ddof)
        return mean, _Covariance(covariance)


class ExtrapolatedFrechetDistance(TwoSampleMetric):
    """Fréchet distance as it would be with infinitely many samples (Chong & Forsyth, CVPR 2020).

    The bias falls as 1/N. Distances of random subsets of N samples on both sides, N from half of
    the smaller side to all of it, are fitted by a line in 1/N, whose value at 0 this is. It can
    be negative for equal distributions. Half of the samples must be twice the features or more,
    since the law holds only there.

    Args:
        dim: Number of features F.
        ddof: As in `FrechetDistance`.
        points: How many N.
        seed: Of the subsets.
        keep_real: `reset()` forgets the generated samples only.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: From `compute`: fewer than 4 F samples on a side.
    """

    higher_is_better = False

    def __init__(
        self,
        dim: int,
        ddof: int = 1,
        points: int = 8,
        seed: int = 0,
        keep_real: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, keep_real, **kwargs)
        if points < 2:
            raise ValueError(f"points is {points}; a line needs 2 or more")
        self.ddof = ddof
        self.points = points
        self.seed = seed
        self.minimum = 4 * dim

    def compute(self) -> Tensor:
        """Return the distance at 1/N = 0, a float64 scalar."""
        self._check()
        (distance,) = self._once(lambda: [self._distance()], results=1)
        return distance

    def _distance(self) -> Tensor:
        real, fake = self.drawable("real"), self.drawable("fake")
        largest = min(len(real), len(fake))
        generator = torch.Generator().manual_seed(self.seed)
        inverse = torch.linspace(2 / largest, 1 / largest, self.points, dtype=torch.float64)
        found = []
        for size in (1 / inverse).round().long().tolist():
            metric = FrechetDistance(self.dim, self.ddof)
            for rows, side in ((real, True), (fake, False)):
                chosen = torch.randperm(len(rows), generator=generator)[:size]
                metric.update(rows[chosen.to(rows.device)].cpu(), real=side)
            found.append(metric._distance())
        line = torch.stack([torch.ones_like(inverse), inverse], dim=1)
        return torch.linalg.lstsq(line, torch.stack(found)[:, None]).solution[0, 0].to(real.device)


def frechet_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> Tensor:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians.

    Args:
        mean_a: (F,).
        covariance_a: (F, F) symmetric and positive semidefinite, of any rank.
        mean_b: (F,).
        covariance_b: (F, F).

    Returns:
        A float64 scalar.
    """
    gap = (mean_a.double() - mean_b.double()).square().sum()
    return gap + _spread(_Covariance(covariance_a.double()), _Covariance(covariance_b.double()))


def expected_distance(eigenvalues: Tensor, real: int, fake: int) -> Tensor:
    """Distance to expect of two independent samples of the *same* Gaussian: what N adds.

    (1/n + 1/m) (sum_i l_i + sum_ij l_i l_j (1 + [i = j]) / (2 (l_i + l_j))), to second order,
    for n and m well above the number of features; d (d + 5) / 4 (1/n + 1/m) for equal l = 1.

    Args:
        eigenvalues: (F,) l of the covariance.
        real: n.
        fake: m.
    """
    l = eigenvalues.double().clamp(min=0)  # noqa: E741 - the letter of the formula
    sums = l[:, None] + l
    pairs = torch.where(sums > 0, l[:, None] * l / (2 * sums), 0.0)
    return (1 / real + 1 / fake) * (l.sum() + pairs.sum() + pairs.diagonal().sum())


class _Covariance:
    """A covariance S, or a factor F of it with F F^T = S, whichever is at hand."""

    def __init__(self, matrix: Tensor | None = None, factor: Tensor | None = None) -> None:
        self.matrix = matrix
        self.full_rank = False
        if matrix is not None:
            factor, failed = torch.linalg.cholesky_ex(matrix)
            self.full_rank = not failed
            if failed:
                values, vectors = torch.linalg.eigh(matrix)
                kept = values > values[-1].abs() * len(values) * torch.finfo(values.dtype).eps
                factor = vectors[:, kept] * values[kept].sqrt()
        assert factor is not None
        self.factor = factor

    def trace(self) -> Tensor:
        return self.factor.square().sum() if self.matrix is None else self.matrix.trace()


def _spread(a: _Covariance, b: _Covariance) -> Tensor:
    """Return tr A + tr B - 2 tr (A B)^(1/2)."""
    # (A B)^(1/2) has the trace of the symmetric root of F^T B F where A = F F^T, and this is
    # the sum of the singular values of F^T G where B = G G^T. Without full rank the eigenvalues
    # that should be 0 are rounding errors of which a root would be taken: singular values are
    # exact there. Where both have full rank eigenvalues are, too, and take a third of the time.
    if a.full_rank and b.full_rank:
        assert b.matrix is not None
        eigenvalues = torch.linalg.eigvalsh(a.factor.T @ b.matrix @ a.factor)
        root = eigenvalues.clamp(min=0).sqrt().sum()
    else:
        root = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    return a.trace() + b.trace() - 2 * root
