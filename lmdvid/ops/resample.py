"""Doubling and halving of feature maps with a low-pass filter, and what follows it in one step.

Convention: zeros outside; a pixel that is doubled covers two, neither of which is its centre.
"""

import torch
from torch import Tensor

from lmdvid.ops import onednn, reference
from lmdvid.ops.dispatch import Impl, runs_triton
from lmdvid.ops.layout import check_addressable, dense, empty

_FILTER = reference.fir_kernel(torch.empty(1, 1, device="cpu"))


def resample(
    x: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: int = 1,
    gain: float = 1.0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """leaky_relu(scale * gain * FIR(x) + bias): the filter is [1, 3, 3, 1] along both axes.

    Source: `upfirdn2d` with `fused_leaky_relu` of Karras et al. 2020. A gain of the activation goes
    into `gain` (or `scale`) and `bias`, since leaky_relu(a x) = a leaky_relu(x) for a > 0. Can be
    differentiated any number of times.

    Args:
        x: (B, C, H, W).
        up: 2 puts zeros between the pixels first; the filter should then have gain 4.
        down: 2 keeps every second pixel; 1 where `up` is 2.
        padding: Zeros at each side, 0 to 3; `up` 2 has those that make 2H x 2W.
        gain: Sum of the filter.
        scale: (B, C), or None.
        bias: (C,), or None.
        slope: Of the leaky ReLU for negative values, 0 or more; None for none.
        impl: Which implementation, see `lmdvid.ops.use`.

    Returns:
        (B, C, (H + 2 padding - 4) // down + 1, ...), or (B, C, 2H, 2W) where `up` is 2; in the
        dtype of x. The sums of the kernels are in float32 or better.

    Raises:
        ValueError: For other shapes or numbers.
    """
    if (up, down) not in ((1, 1), (1, 2), (2, 1)) or not 0 <= padding <= 3:
        raise ValueError(
            f"up={up}, down={down}, padding={padding}: choose 1 and 1, 1 and 2, or 2 and 1, "
            "and a padding from 0 to 3"
        )
    check(x, scale, bias, slope)
    height, width = (2 * n if up == 2 else (n + 2 * padding - 4) // down + 1 for n in x.shape[2:])
    if height < 1 or width < 1:
        raise ValueError(f"{tuple(x.shape)} with padding={padding} is smaller than the filter")
    if not runs_triton(impl, x, scale, bias):
        if impl == "auto" and up == 1 and onednn.takes(x, scale):
            kernel = (gain * _FILTER).to(x.dtype).expand(x.shape[1], 1, 4, 4)
            if scale is not None:
                kernel = kernel * scale.to(x.dtype).view(-1, 1, 1, 1)
            inside = None if bias is None else bias.to(x.dtype)
            sides = (down, down), (padding, padding)
            return onednn.convolve(x, kernel, inside, *sides, x.shape[1], slope=slope)
        return reference.resample(x, up, down, padding, gain, scale, bias, slope)
    before = 2 if up == 2 else padding
    return operator(
        x, None, scale, bias, up, down, 4, before, height, width,
        gain, 1.0 if slope is None else slope, slope is not None,
    )  # fmt: skip


def check(x: Tensor, scale: Tensor | None, bias: Tensor | None, slope: float | None) -> None:
    """Refuse what does not fit (B, C, ...).

    Raises:
        ValueError: With what was given, and what is expected.
    """
    if x.ndim < 4:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (B, C, H, W)")
    if scale is not None and scale.shape != x.shape[:2]:
        raise ValueError(f"scale has shape {tuple(scale.shape)}: expected {tuple(x.shape[:2])}")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}: expected {tuple(x.shape[1:2])}")
    if slope is not None and slope < 0:
        raise ValueError(f"slope={slope}: choose 0 or more")


# The two operators below are closed under differentiation. With L the filter between two sizes,
# a' the slope of the activation where `gate` is its result (which does not change with it), and
# <,> the sum over the pixels of each channel:
#   operator    y = a(s L(a'(gate) x) + b)    to x: a'(gate) s L^T(a'(y) g), the operator again
#                                             to s: <L(a'(gate) x), a'(y) g>   to b: <a'(y), g>
#   inner       n = <a'(gate) p, q>           to p: a'(gate) g q, the operator without a filter
# and L^T of the symmetric filter is L with up and down exchanged.


@torch.library.custom_op("lmdvid::resample", mutates_args=())
def operator(
    x: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    up: int,
    down: int,
    taps: int,
    pad: int,
    height: int,
    width: int,
    gain: float,
    slope: float,
    activate: bool,
) -> Tensor:
    """See the formulae above; `taps` is 4, or 1 for no filter, `pad` the zeros before x."""
    from lmdvid.ops import kernels

    out = empty(x, *x.shape[:2], height, width)
    check_addressable(x, out)
    kernels.resample(
        dense(x), None if gate is None else dense(gate),
        None if scale is None else scale.contiguous(), None if bias is None else bias.contiguous(),
        out, up, down, taps, pad, gain, slope, activate,
    )  # fmt: skip
    return out


@operator.register_fake
def _(x, gate, scale, bias, up, down, taps, pad, height, width, gain, slope, activate):
    return empty(x, *x.shape[:2], height, width)


def pointwise(
    x: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    activate: bool = False,
) -> Tensor:
    """The operator without a filter: a(scale a'(gate) x + bias)."""
    return operator(x, gate, scale, bias, 1, 1, 1, 0, x.shape[2], x.shape[3], 1.0, slope, activate)


def _save(ctx, inputs, output) -> None:
    x, gate, scale, bias, *ctx.geometry, ctx.gain, ctx.slope, activate = inputs
    ctx.size = x.shape[2:]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(
        x if ctx.needs_input_grad[2] else None, gate, scale, output if activate else None
    )


def _differentiate(ctx, gradient):
    x, gate, scale, result = ctx.saved_tensors
    up, down, taps, pad, height, width = ctx.geometry
    to_x = to_scale = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = operator(
            gradient, result, scale, None, down, up, taps, taps - 1 - pad, *ctx.size,
            ctx.gain, ctx.slope, False,
        )  # fmt: skip
        if gate is not None:
            to_x = pointwise(to_x, gate, None, slope=ctx.slope)
    if ctx.needs_input_grad[2]:
        plain = x
        if taps > 1 or gate is not None or ctx.gain != 1:
            plain = operator(
                x, gate, None, None, up, down, taps, pad, height, width, ctx.gain, ctx.slope, False
            )
        to_scale = inner(plain, gradient, result, ctx.slope).to(scale.dtype)
    if ctx.needs_input_grad[3]:
        to_bias = inner(gradient, None, result, ctx.slope).sum(0).to(ctx.bias_dtype)
    return to_x, None, to_scale, to_bias, *[None] * 9


operator.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("lmdvid::inner", mutates_args=())
def inner(first: Tensor, second: Tensor | None, gate: Tensor | None, slope: float) -> Tensor:
    """(B, C) sums over pixels of a'(gate) * first * second, float32 or better."""
    from lmdvid.ops import kernels

    second = None if second is None else dense(second)
    gate = None if gate is None else dense(gate)
    return kernels.inner(dense(first), second, gate, slope)


@inner.register_fake
def _(first, second, gate, slope):
    exact = torch.promote_types(first.dtype, torch.float32)
    return first.new_empty(first.shape[:2], dtype=exact)


def _save_inner(ctx, inputs, output) -> None:
    first, second, gate, ctx.slope = inputs
    ctx.save_for_backward(first, second, gate)


def _differentiate_inner(ctx, gradient):
    first, second, gate = ctx.saved_tensors
    to_first = to_second = None
    if ctx.needs_input_grad[0]:
        other = torch.ones_like(first) if second is None else second
        to_first = pointwise(other, gate, gradient, slope=ctx.slope).to(first.dtype)
    if second is not None and ctx.needs_input_grad[1]:
        to_second = pointwise(first, gate, gradient, slope=ctx.slope).to(second.dtype)
    return to_first, to_second, None, None


inner.register_autograd(_differentiate_inner, setup_context=_save_inner)
