"""How operands and results of kernels lie in memory."""

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """(B, C, H, W) itself where a kernel can read it, otherwise copied.

    Plane by plane or channels last, samples at any distance: one may be expanded to all.
    """
    one = x[:1]
    if one.is_contiguous() or one.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a result, laid out as `like` is."""
    planes = like[:1].is_contiguous()
    layout = torch.contiguous_format if planes else torch.channels_last
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def check_addressable(*tensors: Tensor | None) -> None:
    """Kernels count the elements of a sample in 32 bits.

    Raises:
        ValueError: A sample is larger than that.
    """
    for tensor in tensors:
        if tensor is not None and tensor.numel() // len(tensor) >= 2**31:
            raise ValueError(f"a sample of {tuple(tensor.shape)} has 2^31 elements or more")
