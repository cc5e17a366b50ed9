"""Moving feature maps: what a mask lets through of features sampled where a grid says.

Convention: normalised coordinates, x first; bilinear with zeros outside. With `align_corners=True`
-1 and +1 are the centres of the outermost pixels, otherwise their outer borders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdvid.ops import reference
from lmdvid.ops.dispatch import Impl, runs_triton
from lmdvid.ops.layout import check_addressable, dense, empty


def warp(features: Tensor, grid: Tensor, align_corners: bool, impl: Impl = "auto") -> Tensor:
    """Sample feature maps or images where a grid says.

    Convention: see above.

    Args:
        features: (B, C, H, W); may be one map expanded to B.
        grid: (B, 2, H', W') coordinates, finite.
        align_corners: See the convention.
        impl: Which implementation, see `lmdvid.ops.use`.

    Returns:
        (B, C, H', W') in the precision of the features or of the grid, whichever is higher.

    Raises:
        ValueError: For other shapes.
    """
    if grid.ndim != 4 or features.ndim != 4 or grid.shape[:2] != (len(features), 2):
        raise ValueError(
            f"features {tuple(features.shape)} and grid {tuple(grid.shape)}: "
            "expected (B, C, H, W) and (B, 2, H', W')"
        )
    if runs_triton(impl, features, grid):
        exact = torch.promote_types(features.dtype, grid.dtype)
        return _warp(features.to(exact), grid.to(exact), align_corners)
    return reference.warp(features, grid, align_corners)


def flow_warp(
    logits: Tensor,
    features: Tensor,
    h: Tensor | None = None,
    *,
    align_corners: bool,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None]:
    """LIA's warp: features moved along a flow and masked; what the mask leaves free is painted in.

    Convention: see above; the grid to which the displacement is added is that of pixel centres,
    whatever `align_corners` is (with False it zooms by half a pixel at the edges, as the original).

    Several pixels may be sampled from one of the source, whose gradient a kernel adds up as they
    come: in float32, but in no fixed order, unless torch.use_deterministic_algorithms(True) asks
    for one, which costs a sort.

    Args:
        logits: (B, 3, H, W) in float32 or better: tanh of the first two is the displacement in x
            and y, up to half the image each way; sigmoid of the third is the mask.
        features: (B, C, H, W); may be one map expanded to B.
        h: (B, C, H, W) what is painted in, or None.
        align_corners: See the convention.
        impl: Which implementation, see `lmdvid.ops.use`.

    Returns:
        mask * sample (B, C, H, W) in the features' dtype; that + (1 - mask) h, in the dtype of h,
        or None without h. Sums are in float32 or better before they are rounded; in bfloat16 on a
        CPU outside training their weights, and what h is added to, were rounded to it before.

    Raises:
        ValueError: For other shapes.
    """
    expected = (*features.shape[:1], 3, *features.shape[2:])
    if logits.shape != expected or (h is not None and h.shape != features.shape):
        raise ValueError(
            f"logits {tuple(logits.shape)}, features {tuple(features.shape)}"
            f"{'' if h is None else f', h {tuple(h.shape)}'}: "
            "expected (B, 3, H, W) and one shape (B, C, H, W)"
        )
    if runs_triton(impl, logits, features, h):
        warped, painted = _flow_warp(logits, features, h, align_corners)
        return warped, None if h is None else painted
    grid, mask = reference.flow(logits)
    warped = masked_warp(features, grid, mask, align_corners, "reference")
    painted = None if h is None else reference.paint(warped, mask, h)
    return warped.to(features.dtype), painted


def masked_warp(
    features: Tensor, grid: Tensor, mask: Tensor, align_corners: bool, impl: Impl = "auto"
) -> Tensor:
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
        impl: Which implementation samples, see `lmdvid.ops.use`.

    Returns:
        (B, C, H', W') in the precision of the features or of the grid, whichever is higher; as a
        sum of rows in that of the features, to which the weights are rounded; it is added up in
        float32.
    """
    if _by_rows(features):
        return _sum_of_rows(features, grid, mask, align_corners)
    return mask * warp(features, grid, align_corners, impl)


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


@torch.library.custom_op("lmdvid::warp", mutates_args=())
def _warp(features: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    from lmdvid.ops import kernels

    warped = empty(features, *features.shape[:2], *grid.shape[2:])
    check_addressable(features, warped)
    kernels.warp(grid.contiguous(), dense(features), None, warped, None, False, align_corners)
    return warped


@_warp.register_fake
def _(features: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    return empty(features, *features.shape[:2], *grid.shape[2:])


@torch.library.custom_op("lmdvid::warp_backward", mutates_args=())
def _warp_backward(
    gradient: Tensor, features: Tensor, grid: Tensor, align_corners: bool, to_features: bool
) -> tuple[Tensor, Tensor]:
    from lmdvid.ops import kernels

    made = _room(features, to_features)
    to_grid = torch.empty_like(grid, memory_format=torch.contiguous_format)
    kernels.warp_backward(
        dense(gradient), None, grid.contiguous(), dense(features), None,
        to_grid, made if to_features else None, None,
        False, align_corners, torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return made, to_grid


@_warp_backward.register_fake
def _(gradient, features, grid, align_corners, to_features):
    return _room(features, to_features), torch.empty_like(
        grid, memory_format=torch.contiguous_format
    )


def _save_warp(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.align_corners = inputs[2]


def _differentiate_warp(ctx, gradient):
    to_features, to_grid = ctx.needs_input_grad[:2]
    one, two = _warp_backward(gradient, *ctx.saved_tensors, ctx.align_corners, to_features)
    return one if to_features else None, two if to_grid else None, None


_warp.register_autograd(_differentiate_warp, setup_context=_save_warp)


@torch.library.custom_op("lmdvid::flow_warp", mutates_args=())
def _flow_warp(
    logits: Tensor, features: Tensor, h: Tensor | None, align_corners: bool
) -> tuple[Tensor, Tensor]:
    from lmdvid.ops import kernels

    check_addressable(features, logits)
    warped, painted = _room(features, True), _room(h, True, features)
    kernels.warp(
        logits.contiguous(), dense(features), None if h is None else dense(h),
        warped, None if h is None else painted, True, align_corners,
    )  # fmt: skip
    return warped, painted


@_flow_warp.register_fake
def _(logits, features, h, align_corners):
    return _room(features, True), _room(h, True, features)


@torch.library.custom_op("lmdvid::flow_warp_backward", mutates_args=())
def _flow_warp_backward(
    to_warped: Tensor,
    to_painted: Tensor,
    logits: Tensor,
    features: Tensor,
    h: Tensor | None,
    align_corners: bool,
    to_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from lmdvid.ops import kernels

    to_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    made, to_h = _room(features, to_features), _room(h, True, features)
    kernels.warp_backward(
        dense(to_warped), None if h is None else dense(to_painted),
        logits.contiguous(), dense(features), None if h is None else dense(h),
        to_logits, made if to_features else None, None if h is None else to_h,
        True, align_corners, torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return to_logits, made, to_h


@_flow_warp_backward.register_fake
def _(to_warped, to_painted, logits, features, h, align_corners, to_features):
    to_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return to_logits, _room(features, to_features), _room(h, True, features)


def _room(x: Tensor | None, wanted: bool, like: Tensor | None = None) -> Tensor:
    """For a result shaped as `x` is; an operator cannot return None, so without it nothing."""
    if x is None or not wanted:
        return (like if x is None else x).new_empty(0)  # pyright: ignore[reportOptionalMemberAccess]
    return empty(x, *x.shape)


def _save_flow_warp(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.align_corners = inputs[3]


def _differentiate_flow_warp(ctx, to_warped, to_painted):
    to_logits, to_features, to_h = ctx.needs_input_grad[:3]
    one, two, three = _flow_warp_backward(
        to_warped, to_painted, *ctx.saved_tensors, ctx.align_corners, to_features
    )
    return one if to_logits else None, two if to_features else None, three if to_h else None, None


_flow_warp.register_autograd(_differentiate_flow_warp, setup_context=_save_flow_warp)
