"""Folders of pictures as clips, and single pictures as clips of one frame (Pillow)."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lmdvid.video.info import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    VideoInfo,
    VideoReadError,
    check_indices,
    check_size,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_ANY_DIGIT = str.maketrans("123456789", "000000000")


def is_picture(name: str) -> bool:
    """Whether this file name is that of a picture (hidden ones, as macOS leaves them, are none)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def probe(path: Path) -> VideoInfo:
    """Facts of a folder of pictures or of one picture; the first picture's size counts."""
    files = _files(path)
    image, codec = _upright(path / files[0])
    kind = "frames" if path.is_dir() else "image"
    return VideoInfo(len(files), DEFAULT_FPS, image.width, image.height, False, codec, kind)


def read(path: Path, indices: Sequence[int]) -> "Tensor":
    """The pictures at `indices`, uint8 (T,H,W,3)."""
    from lmdvid.video.frames import stack

    files = _files(path)
    check_indices(path, indices, len(files))
    return stack(path, [load(path / files[index]) for index in indices])


def stream(path: Path) -> "Iterator[Tensor]":
    """Each picture in order, uint8 (H,W,3)."""
    return (frame() for _, frame in stream_lazily(path))


def stream_lazily(path: Path) -> "Iterator[tuple[int, Callable[[], Tensor]]]":
    """Each picture's number, in order, and a call that loads it."""
    return ((number, partial(load, path / name)) for number, name in enumerate(_files(path)))


def load(file: Path) -> "Tensor":
    """One picture, uint8 (H,W,3): upright as its EXIF tag asks, grey replicated, alpha dropped."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(_upright(file)[0]))


def _upright(file: Path) -> "tuple[Image.Image, str]":
    """The picture in RGB, as its EXIF tag turns it, and its format."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise VideoReadError(file, "more than 8 bits a channel; convert it to 8 bits")
            check_size(file, *image.size)
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB"), str(image.format).lower()
    except Image.UnidentifiedImageError:
        raise VideoReadError(file, "not a picture, or damaged") from None
    except VideoReadError:
        raise
    # Pillow's PNG reader answers damage with SyntaxError and texts that unpack to very much with
    # ValueError; a huge picture is no OSError either.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoReadError(file, str(error)) from None


def names(folder: Path) -> list[str]:
    """Names of the pictures in a folder, in no order.

    Raises:
        VideoReadError: The folder may not be listed.
    """
    try:
        return [name for name in os.listdir(folder) if is_picture(name)]
    except OSError as error:
        raise VideoReadError(folder, str(error.strerror).lower()) from None


def _files(path: Path) -> list[str]:
    """Names of the pictures in a folder in natural order, 2.png before 10.png; "" for a picture.

    Joined to `path`, each gives a file.
    """
    if not path.is_dir():
        return [""]
    # Listed anew each time: quick, while the lists of all folders of a large set fill memory.
    found = names(path)
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise VideoReadError(path, f"a folder without pictures ({kinds})")
    found.sort()
    if len({name.translate(_ANY_DIGIT) for name in found}) > 1:  # else they are in order
        found.sort(key=lambda name: re.sub("[0-9]+", lambda number: number[0].zfill(20), name))
    return found
