"""Magnitudes over a data set: which directions move, together with which, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmdvid.directions import PERCENTILES


@dataclass(frozen=True)
class MagnitudeStatistics:
    """What the magnitudes alpha of N directions do over a data set.

    Attributes:
        mean: (N,).
        std: (N,).
        percentiles: (N, 7), `PERCENTILES` of each direction.
        correlation: (N, N) of the magnitudes; 0 where one never changes.
        spectrum: (N,) eigenvalues of their covariance, falling: the variance along the best axes.
        effective_dimension: Participation ratio (sum lambda)^2 / sum lambda^2 of the spectrum: N
            where all axes carry the same variance, 1 where one carries all.
        dimensions_90: Axes that carry 90 % of the variance.
        activity: (N,) mean |alpha_t - alpha_{t-1}| per frame.
        activity_over_time: (T - 1, N) the same in each frame, over the clips that last that long.
    """

    mean: np.ndarray
    std: np.ndarray
    percentiles: np.ndarray
    correlation: np.ndarray
    spectrum: np.ndarray
    effective_dimension: float
    dimensions_90: int
    activity: np.ndarray
    activity_over_time: np.ndarray


def magnitude_statistics(clips: Sequence[np.ndarray]) -> MagnitudeStatistics:
    """Measure magnitudes (T, N) of consecutive frames of clips."""
    alpha = np.concatenate([clip.astype(np.float64) for clip in clips])
    covariance = np.atleast_2d(np.cov(alpha.T, bias=True))
    std = np.sqrt(covariance.diagonal())
    unit = np.where(std > 0, std, np.inf)
    spectrum = np.linalg.eigvalsh(covariance)[::-1].clip(0)
    total = max(spectrum.sum(), 1e-30)
    steps = [np.abs(np.diff(clip, axis=0)) for clip in clips]
    longest = max(map(len, steps))
    over_time = np.array(
        [np.mean([s[t] for s in steps if len(s) > t], axis=0) for t in range(longest)]
    ).reshape(longest, alpha.shape[1])
    return MagnitudeStatistics(
        mean=alpha.mean(0),
        std=std,
        percentiles=np.percentile(alpha, PERCENTILES, axis=0).T,
        correlation=covariance / np.outer(unit, unit),
        spectrum=spectrum,
        effective_dimension=float(total**2 / max((spectrum**2).sum(), 1e-30)),
        dimensions_90=int(np.searchsorted(spectrum.cumsum() / total, 0.9 - 1e-9)) + 1,
        activity=np.concatenate([*steps, np.empty((0, alpha.shape[1]))]).mean(0)
        if longest
        else np.zeros(alpha.shape[1]),
        activity_over_time=over_time,
    )
