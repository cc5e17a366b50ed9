"""What is known about a clip without its frames, and the one error of reading."""

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

VIDEO_SUFFIXES = frozenset(
    ".avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split(),
)
IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())

MOST_PIXELS = 2**27
"""Of a frame: those of 16384 x 8192. A few bytes of a file may ask for any number of them."""

DEFAULT_FPS = Fraction(25)
"""Frame rate of what states none: folders of pictures, single pictures."""


class VideoReadError(ValueError):
    """A clip that cannot be read.

    Args:
        path: The file or folder.
        reason: One line, without the path.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"cannot read {self.args[0]}: {self.reason}"  # as given: an URL is no Path


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a clip.

    Attributes:
        frames: Number of frames as stored; a variable frame rate repeats and drops none.
        fps: Exact frame rate; the mean one where it varies, 25 where the clip states none.
        width: Pixels, after the rotation that the file asks for.
        height: Pixels, after the rotation that the file asks for.
        has_audio: Whether there is a sound track.
        codec: FFmpeg's name of the video codec, or the format of the pictures.
        kind: What holds the frames.
    """

    frames: int
    fps: Fraction
    width: int
    height: int
    has_audio: bool
    codec: str
    kind: Literal["video", "frames", "gif", "image", "array", "records"]


def to_numbers(path: str | Path, indices: Iterable[int]) -> list[int]:
    """Frame numbers as plain ints; at least one."""
    numbers = [operator.index(index) for index in indices]
    if not numbers:
        raise ValueError(f"read_clip({path}): indices is empty; ask for one frame or more")
    return numbers


def in_order(frames: "Tensor", ordered: Sequence[int], numbers: Sequence[int]) -> "Tensor":
    """Frames that were read as `ordered` arranged as `numbers`."""
    if list(numbers) == ordered:
        return frames
    import torch

    place = {number: row for row, number in enumerate(ordered)}
    # Many times faster than frames[[...]], which copies byte by byte.
    rows = torch.tensor([place[number] for number in numbers], device=frames.device)
    return frames.index_select(0, rows)


def check_size(path: str | Path, width: int, height: int) -> None:
    """Refuse frames that would take too much memory."""
    if width * height > MOST_PIXELS:
        raise VideoReadError(path, f"{width}x{height} are more than the {MOST_PIXELS} pixels read")


def check_indices(path: str | Path, indices: Sequence[int], count: int) -> None:
    """Refuse the first index that is not in `range(count)`."""
    for index in indices:
        if not 0 <= index < count:
            raise VideoReadError(path, f"frame {index} of {count} (the first is 0)")


def read_bytes(path: str | Path) -> bytes:
    """A whole file.

    Raises:
        VideoReadError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise VideoReadError(path, str(error.strerror).lower()) from None


def status(path: Path) -> os.stat_result:
    """What the file system says of a file or folder; refuses what is missing, barred or empty."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise VideoReadError(path, "no such file or folder") from None
    except OSError as error:
        raise VideoReadError(path, str(error.strerror).lower()) from None
    if S_ISREG(found.st_mode) and found.st_size == 0:
        raise VideoReadError(path, "the file is empty")
    return found
