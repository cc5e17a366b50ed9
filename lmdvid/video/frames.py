"""Frames in memory: number format, size, square."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdvid.video.info import VideoReadError


def to_float(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) to float32 (..., 3, H, W) in [-1, 1]: x / 127.5 - 1."""
    return frames.movedim(-1, -3).contiguous().float().div_(127.5).sub_(1)


def to_uint8(video: Tensor) -> Tensor:
    """Float (..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3): round(127.5 (x + 1)), clamped.

    The inverse of `to_float` for each of the 256 values.
    """
    levels = video.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()


def resize(frames: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize of uint8 frames, the same whichever backend decoded them.

    Args:
        frames: (T, H, W, 3) uint8.
        size: (height, width), or one int for a square.

    Returns:
        (T, height, width, 3) uint8; `frames` itself where the size is right already.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if frames.shape[1:3] == (height, width):
        return frames
    # Seen as channels-last: torch's uint8 kernel is at its fastest and needs no copy.
    planes = frames.permute(0, 3, 1, 2)
    if frames.is_cpu:
        planes = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    else:  # only the CPU has that kernel for bytes; by floats the values differ by 1 at most
        planes = F.interpolate(planes.float(), (height, width), mode="bilinear", antialias=True)
        planes = planes.round_().clamp_(0, 255).to(torch.uint8)
    return planes.permute(0, 2, 3, 1).contiguous()


def centre_square(frames: Tensor, how: Literal["crop", "pad"] = "crop") -> Tensor:
    """The centred square of frames (..., H, W, 3), never squashed.

    Args:
        frames: (..., H, W, 3), any type.
        how: `crop` to the shorter side, or `pad` to the longer one by repeating the edge pixels.

    Returns:
        (..., S, S, 3) with S = min(H, W) or max(H, W); a crop is a view of `frames`.
    """
    if how not in ("crop", "pad"):
        raise ValueError(f"centre_square(how={how!r}): use 'crop' or 'pad'")
    height, width = frames.shape[-3:-1]
    side = min(height, width) if how == "crop" else max(height, width)
    for axis, length in ((-3, height), (-2, width)):
        if length > side:
            frames = frames.narrow(axis, (length - side) // 2, side)
        elif length < side:
            before = (side - length) // 2
            source = torch.arange(-before, side - before, device=frames.device)
            frames = frames.index_select(axis, source.clamp(0, length - 1))
    return frames


def stack(path: Path, frames: Sequence[Tensor]) -> Tensor:
    """Frames (H,W,3) of one size as (T,H,W,3)."""
    sizes = list(dict.fromkeys(tuple(frame.shape[:2]) for frame in frames))
    if len(sizes) > 1:
        (h0, w0), (h1, w1) = sizes[:2]
        raise VideoReadError(path, f"its frames change size, from {w0}x{h0} to {w1}x{h1}")
    return torch.stack(list(frames))
