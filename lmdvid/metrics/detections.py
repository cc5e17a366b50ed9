"""What detectors find in frames: read from files, or asked of a detector that is installed."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmdvid.npz import load_arrays
from lmdvid.video import IMAGE_SUFFIXES, without_suffix

_LARGEST = 1 << 31  # bytes, of all arrays of a file
_MOST_FRAMES = 1_000_000  # of a clip

SCORES = {"keypoints": ("akd", "mkr"), "identity": ("aed", "csim", "missed")}
"""Names of the scores by what a detector finds."""

Detector = Callable[[Tensor], Tensor]
"""Frames (T, H, W, 3) uint8 RGB to (T, K, 2) key points or (T, D) embeddings, NaN where missing."""


class DetectionsError(ValueError):
    """A file of detections, or a detector, cannot be used; the text says which and why."""


def load_detector(name: str) -> tuple[Detector, dict[str, str]]:
    """Import a detector by its dotted path, such as `my_faces.embed`.

    Args:
        name: Of a function that takes frames (T, H, W, 3) uint8 RGB as a numpy array and returns an
            array: (T, K, 2) key points in pixels or (T, D) embeddings, NaN where it finds nothing.

    Returns:
        The detector of tensors, and what a result must say of it: its name, and the version of the
        package it comes from.

    Raises:
        DetectionsError: There is no such function; from the detector: it gives another shape.
    """
    module, _, attribute = name.rpartition(".")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DetectionsError(
            f"detector {name}: {error}; give the dotted path of an installed function of frames, "
            "such as package.module.function"
        ) from None
    about = {"detector": name}
    for distribution in packages_distributions().get(module.split(".")[0], [])[:1]:
        about["version"] = f"{distribution} {version(distribution)}"

    def detect(frames: Tensor) -> Tensor:
        found = torch.as_tensor(np.asarray(function(frames.numpy()), dtype=np.float64))
        if found.ndim not in (2, 3) or len(found) != len(frames):
            raise DetectionsError(
                f"detector {name} gives {tuple(found.shape)} of {len(frames)} frames; it must give "
                "(T, K, 2) key points or (T, D) embeddings"
            )
        return found

    return detect, about


def load_detections(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what a detector found.

    Clips are named as `lmdvid evaluate` finds them, by their path below the folder of videos. An
    `.npz` has an array for each clip, named after it: (T, K, 2) key points or (T, D) embeddings,
    NaN for what is missing; it may have a text `detector`. A `.csv` has the columns `clip`,
    `frame` and then the values of a row (x0, y0, x1, y1, ... or the embedding), empty where
    missing; frames that have no row are missing as a whole.

    Returns:
        By clip, its path without the suffix, float64 arrays: (T, D), or (T, K, 2) of an npz;
        and what a result must say of the file: its SHA-256, and the detector where it is named.

    Raises:
        DetectionsError: The file is missing or of another form, or two clips have one name.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        about = {"file": path.name, "sha256": sha256(data).hexdigest()}
        found, more = _from_csv(path) if path.suffix == ".csv" else _from_npz(path)
        clips: dict[str, Tensor] = {}
        for name, values in found.items():
            if _name(name) in clips:
                raise ValueError(f"two clips are called {_name(name)}")
            clips[_name(name)] = values
    except OSError as error:
        raise DetectionsError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, KeyError) as error:
        raise DetectionsError(
            f"{path} holds no detections: {error}\nan .npz has an array of each clip's frames; "
            "a .csv the columns clip, frame and values"
        ) from error
    if not clips:
        raise DetectionsError(f"{path} holds no detections")
    return clips, about | more


def as_points(values: Tensor) -> Tensor:
    """Rows x0, y0, x1, y1, ... (T, 2 K), or points already, as (T, K, 2).

    Raises:
        DetectionsError: An odd number of values.
    """
    if values.ndim == 3:
        return values
    if values.shape[1] % 2:
        raise DetectionsError(f"{values.shape[1]} values in a row are not pairs of x and y")
    return values.view(len(values), -1, 2)


def _name(clip: str) -> str:
    stem, suffix = os.path.splitext(Path(clip).as_posix())
    # Some data sets keep a clip as a picture, its frames side by side.
    return stem if suffix.lower() in IMAGE_SUFFIXES else without_suffix(stem + suffix)


def _from_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    clips, about = {}, {}
    for name, values in load_arrays(path, _LARGEST).items():
        if name == "detector":
            about["detector"] = str(values)
        elif values.ndim not in (2, 3) or values.dtype.kind not in "fiu":
            raise ValueError(f"{name} is {values.shape} {values.dtype}")
        else:
            clips[name] = torch.from_numpy(values.astype(np.float64))
    return clips, about


def _from_csv(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    rows: dict[str, dict[int, list[float]]] = defaultdict(dict)
    with path.open(newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header[:2] != ["clip", "frame"] or len(header) < 3:
            raise ValueError(f"its first line is {','.join(header[:4])}")
        for line in reader:
            if len(line) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(line)} of {len(header)} values")
            frame = int(line[1])
            if not 0 <= frame < _MOST_FRAMES:
                raise ValueError(f"line {reader.line_num} names frame {frame}")
            if frame in rows[line[0]]:
                raise ValueError(f"line {reader.line_num} names frame {frame} of {line[0]} again")
            rows[line[0]][frame] = [float(v) if v else float("nan") for v in line[2:]]
    clips = {}
    for clip, frames in rows.items():
        values = torch.full((max(frames) + 1, len(header) - 2), float("nan"), dtype=torch.float64)
        for frame, row in frames.items():
            values[frame] = torch.tensor(row, dtype=torch.float64)
        clips[clip] = values
    return clips, {}
