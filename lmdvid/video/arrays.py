"""Clips kept as numpy arrays: `.npy` files of frames, uint8 (T,H,W,3)."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
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


def read(path: Path, indices: Sequence[int], data: bytes | None = None) -> "Tensor":
    """The frames at `indices`, uint8 (T,H,W,3), of a file or its content `data`, and no others."""
    import torch

    array = _open(path, data)
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


def _open(path: Path, data: bytes | None = None) -> "np.ndarray":
    import numpy as np

    try:
        if data is None:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            array = _view(data)
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


def _view(data: bytes) -> "np.ndarray":
    """The array in the content of a file, without a copy: its header may promise any size."""
    import numpy as np

    file = BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]}")
    first = version == (1, 0)
    header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if by_columns else "C")
