"""Folders of pictures as clips, and single pictures as clips of one frame (Pillow)."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from lmdvid.video.info import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    VideoInfo,
    VideoReadError,
    check_indices,
    check_size,
    read_bytes,
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


def read(path: Path, indices: Sequence[int], data: bytes | None = None) -> "Tensor":
    """The pictures at `indices`, uint8 (T,H,W,3), of a folder, or of what `packed` made of it."""
    from lmdvid.video.frames import stack

    if data is not None:
        return stack(path, _unpacked(path, data, indices))
    files = _files(path)
    check_indices(path, indices, len(files))
    return stack(path, [load(path / files[index]) for index in indices])


def stream(path: Path) -> "Iterator[Tensor]":
    """Each picture in order, uint8 (H,W,3)."""
    return (frame() for _, frame in stream_lazily(path))


def stream_lazily(path: Path) -> "Iterator[tuple[int, Callable[[], Tensor]]]":
    """Each picture's number, in order, and a call that loads it."""
    return ((number, partial(load, path / name)) for number, name in enumerate(_files(path)))


def load(file: Path, data: BinaryIO | None = None) -> "Tensor":
    """One picture, uint8 (H,W,3): upright as its EXIF tag asks, grey replicated, alpha dropped."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(_upright(file, data)[0]))


def packed(folder: Path) -> bytes:
    """The pictures of a folder in their order, as one uncompressed zip file.

    They are named by their numbers there: names of files may be no text, which a zip file's are.
    """
    content = BytesIO()
    with ZipFile(content, "w", ZIP_STORED) as archive:
        for number, name in enumerate(_files(folder)):
            suffix = os.path.splitext(name)[1]
            archive.writestr(ZipInfo(f"{number}{suffix}"), read_bytes(folder / name))
    return content.getvalue()


def _unpacked(path: Path, data: bytes, indices: Sequence[int]) -> "list[Tensor]":
    try:
        with ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
            check_indices(path, indices, len(entries))
            wanted = [entries[index] for index in indices]
            # What was compressed may unpack to any size; `packed` compresses nothing.
            if any(entry.compress_type != ZIP_STORED for entry in wanted):
                raise VideoReadError(path, "pictures in it are compressed once more")
            return [load(path / entry.filename, BytesIO(archive.read(entry))) for entry in wanted]
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise VideoReadError(path, f"damaged ({error})") from None


def _upright(file: Path, data: BinaryIO | None = None) -> "tuple[Image.Image, str]":
    """The picture in RGB, as its EXIF tag turns it, and its format."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file if data is None else data) as image:
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
