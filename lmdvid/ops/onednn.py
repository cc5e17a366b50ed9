"""Convolutions of oneDNN, PyTorch's CPU library, with all that follows in one pass over memory.

Outside training alone: none of this can be differentiated. A depth-wise convolution is also the
fastest way to scale channels, add a bias and activate, several times as fast in bfloat16 as the
operations one by one.
"""

import platform
from functools import cache

import torch
from torch import Tensor

from lmdvid.ops.dispatch import setting

_OPERATORS = (
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
)
_DTYPES = (torch.float32, torch.bfloat16)
Pair = tuple[int, int]
_ONE = (1, 1)


def obstacle(dtype: torch.dtype) -> str | None:
    """Why it cannot be used in a dtype on this machine; None where it can."""
    if dtype not in _DTYPES:
        return f"{dtype} is neither float32 nor bfloat16"
    if setting() == "reference":
        return "plain PyTorch was asked for (LMDVID_OPS, or lmdvid.ops.use)"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn.enabled is False"
    return _lacking(dtype)


@cache
def _lacking(dtype: torch.dtype) -> str | None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"it was never measured on {platform.machine()}"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "the processor has no AVX-512 for bfloat16"
    for name in _OPERATORS:
        if not hasattr(torch.ops.mkldnn, name):
            return f"torch {torch.__version__} has no mkldnn::{name}"
    return None


def inference_dtype(device: torch.device) -> torch.dtype:
    """What networks compute in outside training unless asked otherwise.

    bfloat16 on a CPU with instructions for it, where convolutions take half the time (measured by
    `benchmarks/animate.py`); float32 everywhere else.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.enabled or _lacking(torch.bfloat16):
        return torch.float32
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return torch.bfloat16 if instructions() else torch.float32


def outside_training(x: Tensor) -> bool:
    """Whether a tensor is on a CPU, and what becomes of it is neither differentiated nor traced."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor  # not one of those without values that are traced with
    )


def takes(x: Tensor, scale: Tensor | None = None) -> bool:
    """Whether a depth-wise convolution is the faster way for (B, C, H, W).

    Factors (B, C) are its weights, so that they are those of a single sample.
    """
    return (
        outside_training(x)
        and (scale is None or len(x) == 1)
        and x.ndim == 4
        and x.shape[1] >= 16  # others are laid out plane by plane
        and x.is_contiguous(memory_format=torch.channels_last)
        and not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != x.dtype)
        and obstacle(x.dtype) is None
    )


def laid_out(
    weight: Tensor,
    shape: torch.Size,
    stride: Pair = _ONE,
    padding: Pair = (0, 0),
    groups: int = 1,
    transposed: bool = False,
) -> Tensor:
    """A weight as oneDNN wants it for inputs of about this shape; see `convolve`."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    operators = torch.ops.mkldnn
    if transposed:
        return operators._reorder_convolution_transpose_weight(
            weight, padding, (0, 0), stride, _ONE, groups, shape
        )
    return operators._reorder_convolution_weight(weight, padding, stride, _ONE, groups, shape)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = _ONE,
    padding: Pair = (0, 0),
    groups: int = 1,
    transposed: bool = False,
    slope: float | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """leaky_relu(conv(x) + bias), or conv(x) + bias + plus.

    Args:
        x: (B, C, H, W), channels last.
        weight: (O, C / groups, k, l) in the dtype of x, or (C, O / groups, k, l) where
            `transposed`; may be `laid_out`.
        bias: (O,) in the dtype of x, or None.
        stride: Along both axes.
        padding: Zeros at each side along both axes.
        groups: Of the channels.
        transposed: Transposed convolution, to which nothing can be added.
        slope: Of the leaky ReLU; None for none.
        plus: As the result, or None.

    Returns:
        (B, O, ...), channels last.
    """
    operators = torch.ops.mkldnn
    bias = None if bias is None else bias.contiguous()  # strides are not looked at
    after = ("none", [], "") if slope is None else ("leaky_relu", [slope], "")
    if transposed:
        return operators._convolution_transpose_pointwise(
            x, weight, bias, padding, (0, 0), stride, _ONE, groups, *after
        )
    if plus is None:
        return operators._convolution_pointwise(
            x, weight, bias, padding, stride, _ONE, groups, *after
        )
    return operators._convolution_pointwise.binary(
        x, plus, weight, bias, padding, stride, _ONE, groups, "add", 1.0, None, [], None
    )
