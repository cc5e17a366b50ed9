"""Clips kept as numpy arrays: `.npy` files of frames, uint8 (T,H,W,3)."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lmdvid.video.info import (
    DEFAULT_FPS,
    VIDEO_SUFFIXES,
    VideoInfo,
    VideoReadError,
    check_indices,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ARRAY_SUFFIXES = frozenset({".npy"})


def is_array(name: str) -> bool:
    """Whether this is the name of a file that holds an array."""
    return os.path.splitext(name)[1].lower() in ARRAY_SUFFIXES


def without_suffix(key: str) -> str:
    """Drop the suffix of a video or array; a frame folder's dot is part of its name."""
    stem, suffix = os.path.splitext(key)
    return stem if suffix.lower() in VIDEO_SUFFIXES | ARRAY_SUFFIXES else key


def probe(path: Path) -> VideoInfo:
    """Facts of an array."""
    frames, height, width, _ = _open(path).shape
    return VideoInfo(frames, DEFAULT_FPS, width, height, False, "npy", "array")


def read(path: Path, indices: Sequence[int]) -> "Tensor":
    """The frames at `indices`, uint8 (T,H,W,3); no others are read."""
    import torch

    array = _open(path)
    check_indices(path, indices, len(array))
    return torch.from_numpy(array[list(indices)])


def stream(path: Path) -> "Iterator[Tensor]":
    """Each frame in order, uint8 (H,W,3)."""
    return (frame() for _, frame in stream_lazily(path))


def stream_lazily(path: Path) -> "Iterator[tuple[int, Callable[[], Tensor]]]":
    """Each frame's number, in order, and a call that reads it."""
    return ((index, partial(_frame, path, index)) for index in range(len(_open(path))))


def _frame(path: Path, index: int) -> "Tensor":
    return read(path, [index])[0]


def _open(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise VideoReadError(path, str(error.strerror or error).lower()) from None
    except (ValueError, EOFError) as error:
        reason, *_ = str(error).splitlines() or ["cut off"]
        raise VideoReadError(path, f"no whole .npy file ({reason})") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise VideoReadError(
            path, f"holds {array.dtype} {array.shape}; frames are uint8 (T, H, W, 3)"
        )
    return array
