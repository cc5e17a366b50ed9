"""3x3 convolutions in rows, with half the multiplications (Winograd 1980; Lavin and Gray 2016).

Four rows of the result come from six rows of the input, of which six combinations are each
convolved along the row, with a combination of the weight's rows, and combined again; direct, it
would be twelve such convolutions. The combinations cost passes over memory, which is why it pays
for many channels only. Along the rows themselves nothing is saved.

The combinations are the Toom-Cook algorithm's, transposed: with the points p at which it evaluates
polynomials,

    row p of the input's      coefficients of prod_{q != p} (x - q), last those of prod_q (x - q)
    row p of the weight's     (1, p, p^2) / prod_{q != p} (p - q), last (0, 0, 1)
    row j of the result's     p^j at every p, and for j = 3 also the last

The points 0, ±5/8 and ±3/2 are ours. In bfloat16 the error of the result is a third below that with
the usual 0, ±1, ±2, and the factors of the input's rows are exact.
"""

import torch
from torch import Tensor

from lmdvid.ops import onednn

ROWS = 4  # of the result, computed together
_NEAR, _FAR = 5 / 8, 3 / 2

# From where on it was measured to be faster.
least_height = 16
least_channels = 128


def takes(shape: torch.Size) -> bool:
    """Whether inputs (B, C, H, W) can be convolved so, and are large enough for it to be faster."""
    return shape[1] >= least_channels and shape[2] >= least_height and shape[2] % ROWS == 0


def saves(shape: torch.Size) -> bool:
    """Whether it is faster with a weight of this shape, (O, C, 3, 3)."""
    return shape[2:] == (3, 3) and shape[0] >= least_channels


class Convolution:
    """A 3x3 convolution with a padding of 1, on a CPU outside training.

    Args:
        weight: (O, C, 3, 3).
        dtype: To compute in, float32 or bfloat16.
        shape: (B, C, H, W) of the inputs, roughly.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
        batch, channels, height, width = shape
        reduced = torch.Size((batch, channels, height // ROWS, width))
        weight = weight.float()
        kernels = torch.einsum("pr,ocrs->pocs", _of_the_weight().to(weight), weight)
        self.kernels = [
            onednn.laid_out(kernel[:, :, None].to(dtype), reduced, padding=(0, 1))
            for kernel in kernels
        ]
        # Depth-wise, since each channel is combined for itself.
        self.combinations = [
            onednn.laid_out(
                row.to(dtype).view(1, 1, 6, 1).expand(channels, 1, 6, 1),
                shape, (ROWS, 1), (1, 0), channels,
            )
            for row in _of_the_input()
        ]  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W), channels last, to (B, O, H, W); H is a multiple of 4."""

        def product(p: int, plus: Tensor | None = None) -> Tensor:
            combined = onednn.convolve(
                x, self.combinations[p], None, (ROWS, 1), (1, 0), groups=x.shape[1]
            )
            return onednn.convolve(combined, self.kernels[p], padding=(0, 1), plus=plus)

        positive, negative = product(1), product(2)
        near, near_odd = positive + negative, positive.sub_(negative)
        positive, negative = product(3), product(4)
        far, far_odd = positive + negative, positive.sub_(negative)  # each _FAR times
        result = x.new_empty(len(x), near.shape[2], ROWS, x.shape[3], near.shape[1])
        rows = [row.movedim(-1, 1) for row in result.unbind(2)]
        torch.add(product(0, plus=near), far, alpha=1 / _FAR, out=rows[0])
        torch.add(far_odd, near_odd, alpha=_NEAR, out=rows[1])
        torch.add(far.mul_(_FAR), near, alpha=_NEAR**2, out=rows[2])
        last = product(5).add_(near_odd, alpha=_NEAR**3)
        torch.add(last, far_odd, alpha=_FAR**2, out=rows[3])
        return result.flatten(1, 2).movedim(-1, 1)


def _of_the_input() -> Tensor:
    n, f = _NEAR**2, _FAR**2
    return torch.tensor([
        [n * f, 0, -n - f, 0, 1, 0],
        [0, -_NEAR * f, -f, _NEAR, 1, 0],
        [0, _NEAR * f, -f, -_NEAR, 1, 0],
        [0, -_FAR * n, -n, _FAR, 1, 0],
        [0, _FAR * n, -n, -_FAR, 1, 0],
        [0, n * f, 0, -n - f, 0, 1],
    ], dtype=torch.float64, device="cpu")  # fmt: skip


def _of_the_weight() -> Tensor:
    """(6, 3); rows 3 and 4 times 3/2, so that the far products come with that factor."""
    points = torch.tensor([0, _NEAR, -_NEAR, _FAR, -_FAR], dtype=torch.float64, device="cpu")
    apart = (points[:, None] - points).fill_diagonal_(1).prod(1)
    rows = torch.stack([torch.ones_like(points), points, points**2], 1) / apart[:, None]
    rows[3:] *= _FAR
    return torch.cat([rows, rows.new_tensor([[0, 0, 1]])])
