"""What surrounds the shared-weight form of a modulated convolution (StyleGAN2, Section 2.2).

The convolution itself is the library's. Before it every channel of every sample is scaled by the
style; after it by the demodulation, which is where bias and activation follow in the same step.
"""

from torch import Tensor

from lmdvid.ops import onednn, reference
from lmdvid.ops.dispatch import Impl, runs_triton
from lmdvid.ops.resample import check, pointwise


def activate(
    x: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """leaky_relu(scale * x + bias), each part where it is given.

    Can be differentiated any number of times.

    Args:
        x: (B, C, H, W), or (B, C, T, H, W).
        scale: (B, C), or None.
        bias: (C,), or None.
        slope: Of the leaky ReLU for negative values, 0 or more; None for none.
        impl: Which implementation, see `lmdvid.ops.use`.

    Returns:
        As `x`, also in dtype.

    Raises:
        ValueError: For other shapes or a negative slope.
    """
    check(x, scale, bias, slope)
    if not runs_triton(impl, x, scale, bias):
        if impl == "auto" and onednn.takes(x, scale) and not (scale is None and bias is None):
            return _depthwise(x, scale, bias, slope)
        return reference.activate(x, scale, bias, slope)
    flat = x if x.ndim == 4 else x.flatten(2, -2)
    number = 1.0 if slope is None else slope
    return pointwise(flat, None, scale, bias, number, slope is not None).view(x.shape)


def _depthwise(x: Tensor, scale: Tensor | None, bias: Tensor | None, slope: float | None) -> Tensor:
    factors = x.new_ones(x.shape[1]) if scale is None else scale
    return onednn.convolve(
        x,
        factors.to(x.dtype).view(-1, 1, 1, 1),
        None if bias is None else bias.to(x.dtype),
        groups=x.shape[1],
        slope=slope,
    )
