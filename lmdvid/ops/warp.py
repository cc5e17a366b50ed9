"""Moving feature maps: what a mask lets through of features sampled where a grid says.

Convention: normalised coordinates, x first; bilinear with zeros outside. With `align_corners=True`
-1 and +1 are the centres of the outermost pixels, otherwise their outer borders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def identity_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Coordinates of every pixel centre, x first, as `align_corners=True` counts them.

    Args:
        height: H.
        width: W.
        like: Gives device and precision.

    Returns:
        (2, H, W), from -1 to 1.
    """
    x, y = (torch.linspace(-1, 1, n, device=like.device, dtype=like.dtype) for n in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def warp(features: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """Sample feature maps or images where a grid says.

    Convention: see above.

    Args:
        features: (B, C, H, W); may be one map expanded to B.
        grid: (B, 2, H', W') coordinates, finite.
        align_corners: See the convention.

    Returns:
        (B, C, H', W') in the precision of the features or of the grid, whichever is higher.
    """
    exact = torch.promote_types(features.dtype, grid.dtype)
    return F.grid_sample(
        features.to(exact), grid.to(exact).movedim(1, -1), align_corners=align_corners
    )


def masked_warp(features: Tensor, grid: Tensor, mask: Tensor, align_corners: bool) -> Tensor:
    """Sample feature maps and multiply with a mask.

    Convention: see above.

    On a CPU outside training, with the channels of a pixel beside each other in memory, each pixel
    is a weighted sum of four rows of a table (F.embedding_bag), the mask being part of the weights:
    several times as fast as sampling channel by channel.

    Args:
        features: (B, C, H, W); may be one map expanded to B.
        grid: (B, 2, H', W') coordinates, finite.
        mask: (B, 1, H', W').
        align_corners: See the convention.

    Returns:
        (B, C, H', W') in the precision of the features or of the grid, whichever is higher; as a
        sum of rows in that of the features.
    """
    if _by_rows(features):
        return _sum_of_rows(features, grid, mask, align_corners)
    return mask * warp(features, grid, align_corners)


def _by_rows(features: Tensor) -> bool:
    return (
        features.device.type == "cpu"
        and features.dtype in (torch.float32, torch.bfloat16)
        and features.shape[1] >= 16  # with few channels the weights are most of the work
        and features[:1].is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _sum_of_rows(features: Tensor, grid: Tensor, mask: Tensor, align_corners: bool) -> Tensor:
    batch, channels, height, width = features.shape
    shared = batch == 1 or features.stride(0) == 0
    table = (features[:1] if shared else features).movedim(1, -1).reshape(-1, channels)
    columns, across = _neighbours(grid[:, 0], width, align_corners)
    rows, down = _neighbours(grid[:, 1], height, align_corners)
    places = rows[..., :, None] * width + columns[..., None, :]  # (B, H', W', 2, 2)
    if not shared:
        first = torch.arange(batch, dtype=torch.int32) * (height * width)
        places = places + first.view(-1, 1, 1, 1, 1)
    weights = (down * mask[:, 0, ..., None])[..., :, None] * across[..., None, :]
    warped = F.embedding_bag(
        places.view(-1, 4), table, mode="sum", per_sample_weights=weights.view(-1, 4).to(table)
    )
    return warped.view(batch, *grid.shape[2:], channels).movedim(-1, 1)


def _neighbours(position: Tensor, size: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The two pixels beside normalised positions along an axis, and their weights, (..., 2)."""
    if align_corners:
        position = (position + 1) * ((size - 1) / 2)
    else:
        position = (position + 1) * (size / 2) - 0.5
    position = position.clamp(-1, size)  # from there on all is zero
    lower = position.floor()
    share = position - lower
    pixels = lower.int()[..., None] + torch.arange(2, dtype=torch.int32)
    weights = torch.stack([1 - share, share], -1) * ((pixels >= 0) & (pixels < size))
    return pixels.clamp_(0, size - 1), weights
