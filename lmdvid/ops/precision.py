"""Float32 that is float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in plain float32 without gradients, whatever autocast and TF32 say outside."""
    matmul = torch.backends.cuda.matmul
    conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
