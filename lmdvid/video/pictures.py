"""Folders of pictures as clips, and single pictures as clips of one frame (Pillow)."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmdvid.video.info import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    VideoInfo,
    VideoReadError,
    check_indices,
    stack,
)


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture (hidden files, as macOS leaves them, are none)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def probe(path: Path) -> VideoInfo:
    """Facts of a folder of pictures or of one picture; the first picture's size counts."""
    from PIL import Image

    files = _files(path)
    height, width = load(files[0]).shape[:2]
    with Image.open(files[0]) as image:
        codec = str(image.format).lower()
    kind = "frames" if path.is_dir() else "image"
    return VideoInfo(len(files), DEFAULT_FPS, width, height, False, codec, kind)


def read(path: Path, indices: Sequence[int]) -> Tensor:
    """The pictures at `indices`, uint8 (T,H,W,3)."""
    files = _files(path)
    check_indices(path, indices, len(files))
    return stack(path, [load(files[index]) for index in indices])


def stream(path: Path) -> Iterator[Tensor]:
    """Each picture in order, uint8 (H,W,3)."""
    yield from map(load, _files(path))


def load(file: Path) -> Tensor:
    """One picture, uint8 (H,W,3): upright as its EXIF tag asks, grey replicated, alpha dropped."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise VideoReadError(file, "more than 8 bits a channel; convert it to 8 bits")
            upright = ImageOps.exif_transpose(image)
            return torch.from_numpy(np.array(upright.convert("RGB")))
    except Image.UnidentifiedImageError:
        raise VideoReadError(file, "not a picture, or damaged") from None
    # Pillow's PNG reader answers damage with SyntaxError, a huge picture is no OSError either.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoReadError(file, str(error)) from None


def _files(path: Path) -> tuple[Path, ...]:
    return _listing(path, path.stat().st_mtime_ns) if path.is_dir() else (path,)


@lru_cache(maxsize=4096)
def _listing(folder: Path, _mtime_ns: int) -> tuple[Path, ...]:
    """Pictures of a folder in natural order: 2.png before 10.png."""
    files = [file for file in folder.iterdir() if is_picture(file)]
    if not files:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise VideoReadError(folder, f"a folder without pictures ({kinds})")

    def natural(file: Path) -> list[tuple[int, str]]:
        parts = re.split("([0-9]+)", file.name)
        return [(int(part), part) if n % 2 else (0, part) for n, part in enumerate(parts)]

    return tuple(sorted(files, key=natural))
