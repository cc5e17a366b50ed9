"""What is known about a clip without its frames, and the one error of reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

VIDEO_SUFFIXES = frozenset(
    ".avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split(),
)
IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())

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
        return f"cannot read {self.path}: {self.reason}"


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
    kind: Literal["video", "frames", "gif", "image"]


def check_indices(path: Path, indices: Sequence[int], count: int) -> None:
    """Refuse the first index that is not in `range(count)`."""
    for index in indices:
        if not 0 <= index < count:
            raise VideoReadError(path, f"frame {index} of {count} (the first is 0)")


def stack(path: Path, frames: Sequence[Tensor]) -> Tensor:
    """Frames (H,W,3) of one size as (T,H,W,3)."""
    sizes = list(dict.fromkeys(tuple(frame.shape[:2]) for frame in frames))
    if len(sizes) > 1:
        (h0, w0), (h1, w1) = sizes[:2]
        raise VideoReadError(path, f"its frames change size, from {w0}x{h0} to {w1}x{h1}")
    return torch.stack(list(frames))
