"""Motions of puppet heads that have a name: paths of poses that all begin at rest."""

import numpy as np

from data_modules import puppetry

MOTIONS = ("smile", "turn", "nod", "speak")
"""Classes of motions, in the order of their numbers."""


def motion_of(seed: int) -> int:
    """The number of the motion that the clip of a seed performs; all are equally frequent."""
    return seed % len(MOTIONS)


def motion_path(seed: int, frames: int, fps: float = 25.0) -> np.ndarray:
    """Draw the path of poses of one motion, which takes about a second.

    The head begins at rest, somewhere near the middle. How far and how fast it moves, and whether
    it turns left or right, is drawn; a first frame tells none of it.

    Args:
        seed: a non-negative integer; it decides the class, see `motion_of`, and all that is drawn.
        frames: number of poses T, at least 1.
        fps: frames per second.

    Returns:
        (T, P) float32 within `puppetry.POSE_RANGES["head"]`.
    """
    rng = np.random.default_rng((seed, 2))
    path = np.tile(puppetry.neutral_pose("head").astype(np.float64), (frames, 1))
    coordinate = {name: path[:, i] for i, name in enumerate(puppetry.POSE_NAMES["head"])}
    for name, reach in (("x", 0.1), ("y", 0.06), ("roll", 0.12), ("gaze_x", 0.5), ("gaze_y", 0.4)):
        coordinate[name][:] = reach * rng.uniform(-1, 1)
    t = np.arange(frames) / fps
    share = np.clip(t / rng.uniform(0.6, 1.0), 0, 1)
    there = share * share * (3 - 2 * share)
    strength, side = rng.uniform(0.7, 1.0), rng.choice((-1.0, 1.0))
    match MOTIONS[motion_of(seed)]:
        case "smile":
            coordinate["smile"][:] = strength * there
            coordinate["brows"][:] = 0.6 * strength * there
        case "turn":
            coordinate["yaw"][:] = 0.7 * side * strength * there
        case "nod":
            turns = rng.uniform(1.1, 1.6) * t
            coordinate["pitch"][:] = 0.42 * side * strength * np.sin(2 * np.pi * turns)
        case "speak":
            turns = rng.uniform(2.0, 2.8) * t
            coordinate["mouth_open"][:] = strength * (0.5 - 0.5 * np.cos(2 * np.pi * turns))
    low, high = np.array(puppetry.POSE_RANGES["head"]).T
    return np.clip(path, low, high).astype(np.float32)
