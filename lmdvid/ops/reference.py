"""What every operation computes, in plain PyTorch: the definition that faster forms are held to.

Convention: normalised coordinates, x first; bilinear with zeros outside. With `align_corners=True`
-1 and +1 are the centres of the outermost pixels, otherwise their outer borders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(features: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """Sample (B, C, H, W) where (B, 2, H', W') says; in the higher precision of the two."""
    exact = torch.promote_types(features.dtype, grid.dtype)
    return F.grid_sample(
        features.to(exact), grid.to(exact).movedim(1, -1), align_corners=align_corners
    )


def flow(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, 3, H, W) to the grid (B, 2, H, W) and the mask (B, 1, H, W) that they mean.

    The grid is that of pixel centres plus a displacement, tanh of the first two; the mask is the
    sigmoid of the third.
    """
    height, width = logits.shape[-2:]
    y = torch.linspace(-1, 1, height, device=logits.device, dtype=logits.dtype)
    x = torch.linspace(-1, 1, width, device=logits.device, dtype=logits.dtype)
    grid = logits[:, :2].tanh() + torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return grid, logits[:, 2:].sigmoid()


def paint(warped: Tensor, mask: Tensor, h: Tensor) -> Tensor:
    """What a mask leaves free of warped features, filled with others: warped + (1 - mask) h."""
    if warped.dtype == h.dtype:
        return torch.addcmul(warped, h, (1 - mask).to(h.dtype))
    return (h * (1 - mask) + warped).to(h.dtype)


def flow_warp(
    logits: Tensor, features: Tensor, h: Tensor | None, align_corners: bool
) -> tuple[Tensor, Tensor | None]:
    """LIA's warp, see `lmdvid.ops.warp.flow_warp`."""
    grid, mask = flow(logits)
    warped = mask * warp(features, grid, align_corners)
    return warped.to(features.dtype), None if h is None else paint(warped, mask, h)


def fir_kernel(like: Tensor, gain: float = 1.0) -> Tensor:
    """The [1, 3, 3, 1] low-pass filter as depth-wise weights (C, 1, 4, 4) that sum to `gain`."""
    # Computed on the device: copying a list there would make it wait at every layer.
    taps = (2 - (torch.arange(4, dtype=like.dtype, device=like.device) - 1.5).abs()) / 4
    return (gain * taps[:, None] * taps).expand(like.shape[1], 1, 4, 4)


def resample(
    x: Tensor,
    up: int,
    down: int,
    padding: int,
    gain: float,
    scale: Tensor | None,
    bias: Tensor | None,
    slope: float | None,
) -> Tensor:
    """Low-pass filter and what follows it, see `lmdvid.ops.resample.resample`.

    One depth-wise convolution: on a CPU the usual detour through single-channel images costs
    several times as much.
    """
    kernel, channels = fir_kernel(x, gain), x.shape[1]
    inside = bias if scale is None else None
    if up == 2:
        x = F.conv_transpose2d(x, kernel, inside, stride=2, padding=1, groups=channels)
    else:
        x = F.conv2d(x, kernel, inside, stride=down, padding=padding, groups=channels)
    if scale is None:
        return x if slope is None else F.leaky_relu_(x, slope)
    return activate(x, scale, bias, slope)


def activate(x: Tensor, scale: Tensor | None, bias: Tensor | None, slope: float | None) -> Tensor:
    """What surrounds a convolution, see `lmdvid.ops.modulation.activate`."""
    sides = [1] * (x.ndim - 2)
    if scale is not None:
        scale = scale.to(x.dtype).view(*scale.shape, *sides)
    if bias is not None:
        bias = bias.to(x.dtype).view(1, -1, *sides)
    if scale is not None and bias is not None:
        x = torch.addcmul(bias, x, scale)
    elif scale is not None:
        x = x * scale
    elif bias is not None:
        x = x + bias
    else:
        return x if slope is None else F.leaky_relu(x, slope)
    return x if slope is None else F.leaky_relu_(x, slope)
