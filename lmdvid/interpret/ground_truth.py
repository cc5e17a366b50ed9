"""Magnitudes against known factors of variation: who encodes what, and how purely.

Arrays are numpy, float64: magnitudes alpha (n, N) and factors (n, K) of the same n frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SHRINKAGE = (0.001, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Factors:
    """Known factors of variation, without those that say nothing new.

    Attributes:
        names: K of them; factors that always change together share one, `left eye + right eye`.
        columns: The column of the data that each is read from.
    """

    names: Sequence[str]
    columns: Sequence[int]


def distinct(values: np.ndarray, names: Sequence[str]) -> Factors:
    """Leave out factors (n, K) that never change, and merge those that differ in scale alone."""
    kept: list[int] = []
    shown: list[str] = []
    correlation = _correlation(values, values)
    for column, name in enumerate(names):
        if values[:, column].std() < 1e-6:
            continue
        same = [place for place, k in enumerate(kept) if abs(correlation[k, column]) > 0.999]
        if same:
            shown[same[0]] += f" + {name}"
        else:
            kept.append(column)
            shown.append(name)
    return Factors(shown, kept)


def r2_matrix(alpha: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Share (N, K) of each factor's variance that a line on one magnitude alone explains."""
    return _correlation(alpha, factors) ** 2


@dataclass(frozen=True)
class Disentanglement:
    """DCI of Eastwood & Williams (ICLR 2018), with lasso regressions.

    Attributes:
        importance: (N, K) |weights| of standardised magnitudes for each standardised factor.
        disentanglement: Whether each direction serves one factor, 1 - entropy over factors,
            averaged by the directions' importance. 0 to 1, as the next.
        completeness: Whether each factor is served by one direction, 1 - entropy over directions.
        informativeness: (K,) R^2 of each factor on other clips, from all directions; it can be
            below 0.
    """

    importance: np.ndarray
    disentanglement: float
    completeness: float
    informativeness: np.ndarray


def dci(
    alpha: np.ndarray, factors: np.ndarray, held_alpha: np.ndarray, held_factors: np.ndarray
) -> Disentanglement:
    """Measure disentanglement, completeness and informativeness.

    Args:
        alpha: (n, N) to regress on.
        factors: (n, K) to predict.
        held_alpha: (m, N) of other clips: they choose the lasso's strength for each factor, and
            score it.
        held_factors: (m, K).
    """
    x, scale = _standardised(alpha, alpha)
    y, unit = _standardised(factors, factors)
    held_x, held_y = scale(held_alpha), unit(held_factors)
    spread = np.maximum(held_y.var(0), 1e-12)
    fits = [_lasso(x, y, strength) for strength in _SHRINKAGE]
    scores = np.array([1 - ((held_x @ w - held_y) ** 2).mean(0) / spread for w in fits])
    best = scores.argmax(0)
    columns = np.arange(factors.shape[1])
    importance = np.abs(np.stack([fits[b][:, k] for k, b in enumerate(best)], axis=1))
    total = max(importance.sum(), 1e-12)
    purity = _purity(importance)
    return Disentanglement(
        importance,
        float((purity * importance.sum(1)).sum() / total),
        float(_purity(importance.T).mean()),
        scores[best, columns],
    )


def varimax(loadings: np.ndarray, steps: int = 500, tolerance: float = 1e-12) -> np.ndarray:
    """The rotation that makes the columns of loadings simple: few large entries, many near 0.

    It maximises the variance of the squared entries of each column (Kaiser, 1958), by steps to the
    orthogonal matrix nearest to the gradient.

    Args:
        loadings: (p, N).
        steps: At most so many.
        tolerance: Ends where the criterion grows by less, as a share.

    Returns:
        (N, N) orthogonal Q; loadings @ Q are the simple ones.
    """
    rotation = np.eye(loadings.shape[1])
    before = 0.0
    for _ in range(steps):
        turned = loadings @ rotation
        gradient = loadings.T @ (turned**3 - turned * (turned**2).mean(0))
        u, s, vh = np.linalg.svd(gradient)
        rotation = u @ vh
        if s.sum() <= before * (1 + tolerance):
            break
        before = s.sum()
    return rotation


def supervised_rotation(alpha: np.ndarray, factors: np.ndarray, steps: int = 500) -> np.ndarray:
    """The rotation after which single directions explain single factors best.

    It maximises the sum over factors of the R^2 between factor k and (alpha Q)_k by gradient
    ascent over orthogonal matrices, from several starts. With more factors than directions, those
    that all directions together explain best are served. Directions that serve none follow by
    falling variance.

    Returns:
        (N, N) orthogonal Q; direction k grows with its factor.
    """
    a = alpha - alpha.mean(0)
    f, _ = _standardised(factors, factors)
    covariance = a.T @ a / len(a)
    cross = a.T @ f / len(a)
    n = len(covariance)
    # With R^2 of all directions together known, factors beyond N that they explain least are left.
    solved = np.linalg.lstsq(covariance + 1e-9 * np.trace(covariance) * np.eye(n), cross)[0]
    together = (solved * cross).sum(0)
    served = np.sort(np.argsort(-together)[:n])
    wanted = cross[:, served]
    starts = [solved[:, served], wanted, covariance @ solved[:, served]]
    found = [_ascend(_nearest_orthonormal(start), covariance, wanted, steps) for start in starts]
    best = max(found, key=lambda q: _explained(q, covariance, wanted).sum())
    best = best * np.where((best * wanted).sum(0) < 0, -1.0, 1.0)
    rest = np.linalg.svd(best, full_matrices=True)[0][:, best.shape[1] :]
    values, vectors = np.linalg.eigh(rest.T @ covariance @ rest)
    return np.concatenate([best, rest @ vectors[:, np.argsort(-values)]], axis=1)


def same_pose_difference(alpha: np.ndarray, others: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How much identity changes magnitudes: two identities in the same poses, (n, N) each.

    Args:
        alpha: Of one identity.
        others: Of another one in the same pose, frame by frame.
        spread: (N,) standard deviations over the whole set.

    Returns:
        (N,) E|a - b|^2 / 2 over the variance: 0 where the pose alone decides, 1 where the same pose
        says nothing. For all directions together, average with the variances as weights.
    """
    return ((alpha - others) ** 2).mean(0) / 2 / np.maximum(spread**2, 1e-12)


def within_identity_share(codes: Sequence[np.ndarray]) -> float:
    """Share of the variance of codes, (T, D) of each identity, that lies within identities.

    0 where pose never changes an identity's code, 1 where identities do not differ.
    """
    everything = np.concatenate(codes)
    within = sum(((c - c.mean(0)) ** 2).sum() for c in codes)
    return float(within / max(((everything - everything.mean(0)) ** 2).sum(), 1e-12))


def _standardised(values: np.ndarray, by: np.ndarray):
    mean, std = by.mean(0), np.maximum(by.std(0), 1e-12)

    def scale(x: np.ndarray) -> np.ndarray:
        return (x - mean) / std

    return scale(values), scale


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, K) correlation of columns; 0 where one never changes."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    return np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 1e-12)


def _lasso(x: np.ndarray, y: np.ndarray, strength: float, rounds: int = 300) -> np.ndarray:
    """Weights (N, K) minimising |y - x w|^2 / 2n + strength |w|_1 by coordinate descent."""
    gram, target = x.T @ x / len(x), x.T @ y / len(x)
    w = np.zeros_like(target)
    for _ in range(rounds):
        before = w.copy()
        for i in range(len(w)):
            if gram[i, i] <= 0:
                continue
            pull = target[i] - gram[i] @ w + gram[i, i] * w[i]
            w[i] = np.sign(pull) * np.maximum(np.abs(pull) - strength, 0) / gram[i, i]
        if np.abs(w - before).max() < 1e-8:
            break
    return w


def _purity(importance: np.ndarray) -> np.ndarray:
    """1 - entropy of each row as a distribution, to the base of its length; 0 for an empty row."""
    if importance.shape[1] == 1:
        return np.ones(len(importance))
    total = importance.sum(1, keepdims=True)
    p = np.divide(importance, total, out=np.zeros_like(importance), where=total > 0)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(importance.shape[1])
    return np.where(total[:, 0] > 0, 1 - entropy, 0.0)


def _explained(q: np.ndarray, covariance: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """R^2 (K,) of each factor by its column of q (N, K)."""
    return (q * cross).sum(0) ** 2 / np.maximum((q * (covariance @ q)).sum(0), 1e-12)


def _nearest_orthonormal(matrix: np.ndarray) -> np.ndarray:
    u, _, vh = np.linalg.svd(matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-12), False)
    return u @ vh


def _ascend(q: np.ndarray, covariance: np.ndarray, cross: np.ndarray, steps: int) -> np.ndarray:
    """Follow the gradient of the explained variance over matrices with orthonormal columns."""
    value, rate = _explained(q, covariance, cross).sum(), 1.0
    for _ in range(steps):
        pull, variance = (q * cross).sum(0), (q * (covariance @ q)).sum(0)
        variance = np.maximum(variance, 1e-12)
        gradient = 2 * cross * (pull / variance) - 2 * (covariance @ q) * (pull / variance) ** 2
        while rate > 1e-12:
            step = _polar(q + rate * gradient)
            reached = _explained(step, covariance, cross).sum()
            if reached > value:
                break
            rate /= 2
        else:
            break
        gain = reached - value
        q, value, rate = step, reached, 2 * rate
        if gain < 1e-10:
            break
    return q


def _polar(matrix: np.ndarray) -> np.ndarray:
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    return u @ vh
