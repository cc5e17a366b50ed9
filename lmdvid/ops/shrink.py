"""Smaller pictures without aliasing, as FOMM makes them for its losses and its motion networks."""

import math

import torch
from torch import Tensor


def shrink(images: Tensor, factor: int) -> Tensor:
    """Blur and keep every `factor`-th pixel, beginning with the first.

    A Gaussian of sigma = (factor - 1) / 2 and 2 round(4 sigma) + 1 taps, zeros outside.

    Args:
        images: (B, C, H, W) float.
        factor: 1 or more; 1 gives the images themselves.

    Returns:
        (B, C, ceil(H / factor), ceil(W / factor)), in the precision of the images whatever
        autocast says.
    """
    if factor == 1:
        return images
    rows, columns = (_blur(size, factor, images) for size in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):
        return rows @ images @ columns.T


def _blur(size: int, factor: int, like: Tensor) -> Tensor:
    """Matrix (ceil(size / factor), size) that blurs and sub-samples along one axis.

    On a CPU ten times as fast as two 1-D convolutions at 64 px, half again at 256 px, half as
    fast at 512 px, where the network it feeds takes all the time anyway.
    """
    sigma = (factor - 1) / 2
    radius = round(4 * sigma)
    centres = torch.arange(0, size, factor, dtype=like.dtype, device=like.device)
    offsets = torch.arange(size, dtype=like.dtype, device=like.device) - centres[:, None]
    weights = torch.exp(-offsets.square() / (2 * sigma**2)) * (offsets.abs() <= radius)
    total = sum(math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-radius, radius + 1))
    return weights / total
