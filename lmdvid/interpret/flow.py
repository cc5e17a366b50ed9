"""Where pictures move to: optical flow, and how much of it goes into each of four directions.

The measure is the one of InMoDeGAN's authors' talk, with its symbols read as follows: x_{t,j} is
the flow vector of pixel j between frames t and t + 1, lambda its length, R_i a region of vectors,
H the height of the frames, and

    phi_i = 1 / N_i  sum_{t,j} lambda(x_{t,j}) / H  1[x_{t,j} in R_i],    i = 0 .. 3

with N_i the number of vectors in R_i: a mean length inside the region. Vectors shorter than a
threshold are left out, since their angle is noise. S_i = sum_{R_i} lambda / sum lambda is the share
of all motion, which does not hide how rarely a region is visited.

Convention: flow (..., H, W, 2) in pixels per step, u to the right and v downwards; angles are
mathematical, atan2(-v, u), so that up is 90 degrees.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lmdvid.interpret import InterpretationError
from lmdvid.npz import load_arrays

Regions = Literal["axes", "quadrants"]
REGION_NAMES = {
    "axes": ("right", "up", "left", "down"),
    "quadrants": ("right and up", "left and up", "left and down", "right and down"),
}
_LEAST_SIDE = 256  # DIS finds small motion better in large frames


@dataclass(frozen=True)
class Motion:
    """Motion in regions.

    Attributes:
        phi: (R,) mean length of the vectors in each region, in heights of a frame per step; 0 where
            there is none.
        share: (R,) of all motion; 0 where nothing moves.
        counts: (R,) vectors N_i.
    """

    phi: np.ndarray
    share: np.ndarray
    counts: np.ndarray


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Dense flow between consecutive frames by OpenCV's DIS (Kroeger et al., ECCV 2016).

    Frames smaller than 256 px are enlarged for it; vectors are in pixels of the given size.

    Args:
        frames: uint8 (T, H, W, 3).

    Returns:
        float32 (T - 1, H, W, 2).
    """
    import cv2

    preset = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
    estimator = cv2.DISOpticalFlow_create(preset)  # pyright: ignore[reportAttributeAccessIssue]
    estimator.setFinestScale(1)
    height, width = frames.shape[1:3]
    scale = max(1, round(_LEAST_SIDE / min(height, width)))
    size = (width * scale, height * scale)
    grey = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)
        for frame in frames
    ]
    fields = np.empty((len(frames) - 1, height, width, 2), np.float32)
    for field, before, after in zip(fields, grey, grey[1:], strict=False):
        flow = estimator.calc(before, after, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
        field[:] = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / scale
    return fields


def motion_by_angle(flow: np.ndarray, threshold: float = 0.1, regions: Regions = "axes") -> Motion:
    """Motion to the right, up, to the left and down, R_0 .. R_3.

    Args:
        flow: (..., H, W, 2), see the convention.
        threshold: Vectors shorter than this, in pixels, are left out.
        regions: Sectors of 90 degrees centred on the axes, R_0 = [-45, 45), or `quadrants`, R_0 =
            [0, 90), counted against the clock.
    """
    turn = {"axes": 0.5, "quadrants": 0.0}[regions]
    quarter = np.floor(angles(flow) / (np.pi / 2) + turn).astype(int) % 4
    return _motion(flow, threshold, quarter == np.arange(4).reshape(-1, *[1] * quarter.ndim))


def motion_by_place(flow: np.ndarray, masks: np.ndarray, threshold: float = 0.1) -> Motion:
    """Motion inside of masks (R, H, W), the same function with places instead of angles."""
    members = masks.astype(bool).reshape(len(masks), *[1] * (flow.ndim - 3), *masks.shape[1:])
    return _motion(flow, threshold, np.broadcast_to(members, (len(masks), *flow.shape[:-1])))


def _motion(flow: np.ndarray, threshold: float, members: np.ndarray) -> Motion:
    length = np.linalg.norm(flow.astype(np.float64), axis=-1)
    length[length < threshold] = 0
    axes = tuple(range(1, members.ndim))
    sums = (length * members).sum(axes)
    counts = (members & (length > 0)).sum(axes)
    return Motion(
        sums / flow.shape[-3] / np.maximum(counts, 1), sums / max(length.sum(), 1e-12), counts
    )


def angles(flow: np.ndarray) -> np.ndarray:
    """Angle of every vector in radians, counted against the clock from the right."""
    return np.arctan2(-flow[..., 1], flow[..., 0])


def rose(flow: np.ndarray, bins: int = 24, threshold: float = 0.1) -> np.ndarray:
    """Share of all motion by angle, (bins,); the first bin is centred on the right."""
    length = np.linalg.norm(flow.astype(np.float64), axis=-1)
    length[length < threshold] = 0
    bin_of = np.floor(angles(flow) / (2 * np.pi) * bins + 0.5).astype(int) % bins
    sums = np.bincount(bin_of.ravel(), length.ravel(), bins)
    return sums / max(sums.sum(), 1e-12)


def opposition(positive: Motion, negative: Motion) -> float | None:
    """How far alpha -> -alpha swaps right with left and up with down.

    Returns:
        1 - 1/2 sum_i |S_i(alpha) - S_{i+2}(-alpha)|: 1 where they swap exactly, 0 where the two
        have nothing in common; None where one of them does not move.
    """
    if not positive.share.any() or not negative.share.any():
        return None
    return float(1 - np.abs(positive.share - np.roll(negative.share, 2)).sum() / 2)


def read_flow(path: Path, frames: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flow fields that another program computed of a direction's sweeps.

    Args:
        path: `.npz` with `positive` and `negative`, (K, T - 1, H, W, 2) in pixels.
        frames: Shape (K, T, H, W, 3) of the sweeps.

    Raises:
        InterpretationError: If it is not there, or of another shape.
    """
    wanted = (frames[0], frames[1] - 1, *frames[2:4], 2)
    try:
        arrays = load_arrays(path, 2 * 8 * math.prod(wanted), {"positive", "negative"})
        found = arrays["positive"], arrays["negative"]
    except (OSError, ValueError, LookupError) as error:
        raise InterpretationError(
            f"{path} is no npz file with `positive` and `negative` flow: {error}"
        ) from None
    for field in found:
        if field.shape != wanted:
            raise InterpretationError(
                f"{path} has flow of shape {field.shape}: the sweeps' is {wanted}"
            )
        if not np.isfinite(field).all():
            raise InterpretationError(f"{path} has flow that is no number")
    return found
