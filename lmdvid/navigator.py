"""The motion dictionary: orthonormal directions along which a latent code walks.

LIA (ICLR 2022) takes one step from a reference, w_t = w_0 + sum_i alpha_{t,i} d_i. InMoDeGAN (2021)
adds increments up over time, w_t = w_0 + sum_{tau <= t} sum_i alpha_{tau,i} d_i. Both are
`LatentNavigator.forward`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Orthogonal = Literal["qr", "polar", "svd"]


class LatentNavigator(nn.Module):
    """Linear motion decomposition: an orthonormal dictionary with one trainable matrix.

    The basis is a pure function of the saved tensors, computed in float32 or better whatever
    autocast says. In evaluation mode with gradients off it is computed once and kept until the
    weight, its device or its dtype changes.

    Args:
        dim: Size D of the latent space.
        directions: Number N <= D of motion directions.
        orthogonal: How the matrix becomes orthonormal. `qr` is Gram-Schmidt (Householder QR with a
            positive diagonal of R, which makes it unique, hence continuous in the weight).
            `polar` is U V^T of the SVD, the nearest orthonormal matrix and the smoothest choice,
            advisable where N = D. `svd` is the left singular vectors by falling singular value
            (InMoDeGAN's literal form), signs aligned to a saved buffer; its directions still swap
            where singular values cross, so it is here for comparison.

    Raises:
        ValueError: If N is not in 1..D or `orthogonal` is unknown.
    """

    signs: Tensor

    def __init__(self, dim: int = 512, directions: int = 20, orthogonal: Orthogonal = "qr") -> None:
        super().__init__()
        if not 1 <= directions <= dim:
            raise ValueError(
                f"directions={directions} cannot be orthonormal in {dim} dimensions: "
                f"choose 1 to {dim}"
            )
        if orthogonal not in ("qr", "polar", "svd"):
            raise ValueError(f"orthogonal={orthogonal!r}: choose 'qr', 'polar' or 'svd'")
        self.dim = dim
        self.directions = directions
        self.orthogonal = orthogonal
        self.weight = nn.Parameter(torch.randn(dim, directions))
        if orthogonal == "svd":
            self.register_buffer("signs", self._left_singular_vectors(self.weight.detach()))
        self._cache: tuple[object, Tensor] | None = None

    def extra_repr(self) -> str:
        """The constructor's arguments, for `print(module)`."""
        return f"dim={self.dim}, directions={self.directions}, orthogonal={self.orthogonal!r}"

    def basis(self) -> Tensor:
        """The motion directions.

        Returns:
            (N, D) orthonormal rows, float32 (float64 where the weight is).
        """
        if self.training or torch.is_grad_enabled():
            self._cache = None
            return self._orthonormal()
        key = self._cache_key()
        kept = self._cache  # which another thread may drop
        if kept is None or kept[0] != key:
            self._cache = kept = (key, self._orthonormal().detach())
        return kept[1]

    def displace(self, alpha: Tensor) -> Tensor:
        """The displacement sum_i alpha_i d_i.

        Args:
            alpha: (..., N) magnitudes.

        Returns:
            (..., D) displacement, float32 or better.
        """
        return _product(alpha, self.basis())

    def magnitudes(self, displacement: Tensor) -> Tensor:
        """How far a displacement goes along each direction: its dot products with the basis.

        Args:
            displacement: (..., D), that is w - w_0.

        Returns:
            (..., N) magnitudes alpha; `displace` inverts it within the span of the directions.
        """
        return _product(displacement, self.basis().T)

    def forward(self, w0: Tensor, alpha: Tensor, accumulate: bool = False) -> Tensor:
        """Walk from an appearance code.

        Args:
            w0: (B, D) appearance codes.
            alpha: (B, N) magnitudes of one step, or (B, T, N) of T frames.
            accumulate: Add the increments of (B, T, N) up over time (InMoDeGAN) instead of taking
                each frame's step from `w0` (LIA).

        Returns:
            (B, D), or (B, T, D) holding w_1 ... w_T; w_0 itself is not among them.

        Raises:
            ValueError: If the shapes do not fit together.
        """
        if w0.ndim != 2 or w0.shape[-1] != self.dim:
            raise ValueError(f"w0 has shape {tuple(w0.shape)}: expected (B, {self.dim})")
        if alpha.ndim not in (2, 3) or alpha.shape[-1] != self.directions:
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)}: expected (B, {self.directions}) "
                f"or (B, T, {self.directions})"
            )
        if accumulate and alpha.ndim == 2:
            raise ValueError("accumulate=True adds up over time: give alpha as (B, T, N)")
        steps = self.displace(alpha)
        if alpha.ndim == 2:
            return w0 + steps
        if accumulate:
            steps = steps.cumsum(dim=1)
        return w0[:, None] + steps

    def _orthonormal(self) -> Tensor:
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        with torch.autocast(weight.device.type, enabled=False):
            if self.orthogonal == "qr":
                if weight.is_cuda and weight.dtype == torch.float32:
                    return _gram_schmidt(weight).T
                q, r = torch.linalg.qr(weight)
                # Householder's signs flip between two optimiser steps; a positive diagonal is
                # Gram-Schmidt's, which is unique and therefore continuous.
                flip = torch.where(r.diagonal() < 0, -1.0, 1.0).to(weight.dtype)
                return (q * flip.detach()).T
            if self.orthogonal == "polar":
                return _polar(weight).T
            return self._left_singular_vectors(weight, self.signs).T

    @staticmethod
    def _left_singular_vectors(weight: Tensor, signs: Tensor | None = None) -> Tensor:
        u: Tensor = _LeftVectors.apply(weight)  # pyright: ignore[reportAssignmentType]
        if signs is not None:
            agreement = (u.detach() * signs.to(u.dtype)).sum(dim=0)
            u = u * torch.where(agreement < 0, -1.0, 1.0).to(u.dtype)
        return u

    @torch.no_grad()
    def align_signs(self) -> None:
        """Store the present `svd` directions as the reference that later signs follow.

        Whoever trains with `svd` calls this after each optimiser step. No effect for the others.
        """
        if self.orthogonal == "svd":
            self.signs.copy_(self._left_singular_vectors(self.weight, self.signs))

    def _cache_key(self) -> object:
        tensors = [self.weight, *self.buffers()]
        # Inference tensors count no versions: they can only be replaced, which moves their data.
        versions = [None if t.is_inference() else t._version for t in tensors]
        return [(t.data_ptr(), t.dtype, t.device) for t in tensors], versions

    def train(self, mode: bool = True) -> "LatentNavigator":
        """Switch the mode and drop the kept basis."""
        self._cache = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._cache = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._cache = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}


def _product(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors (..., K) @ matrix (K, M) in the matrix's precision, whatever autocast says."""
    with torch.autocast(vectors.device.type, enabled=False):
        if matrix.is_cuda:
            # TF32, where it is switched on, would keep 10 bits of these few numbers.
            return (vectors.double() @ matrix.double()).to(matrix.dtype)
        return vectors.to(matrix.dtype) @ matrix


def _gram_schmidt(weight: Tensor) -> Tensor:
    """The QR with a positive diagonal, from the Cholesky factor of the small Gram matrix.

    W = QR gives W^T W = R^T R, and the Cholesky factor's diagonal is positive. A handful of small
    steps that the host need not wait for, where Householder's are hundreds on a GPU. The Gram
    matrix squares the condition number, which float64 makes up for: of float32 weights the basis
    is nearer to the exact one than float32's Householder. Linearly dependent columns give NaN.
    """
    exact = weight.double()
    factor, info = torch.linalg.cholesky_ex(exact.T @ exact)
    factor = factor.where(info == 0, float("nan"))
    q = torch.linalg.solve_triangular(factor.T, exact, upper=True, left=False)
    return q.to(weight.dtype)


class _Polar(torch.autograd.Function):
    """Orthonormal factor U V^T of W = U S V^T, with a gradient that never divides by a difference.

    The gradient of the SVD's vectors has 1 / (s_i^2 - s_j^2); that of their product has only
    1 / (s_i + s_j): with A = U^T G V, dW = U ((A - A^T) / (s_i + s_j)) V^T
    + (I - U U^T) G V diag(1 / s) V^T.
    """

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        ctx.save_for_backward(u, s, vh)
        return _product(u, vh)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        v = vh.T
        a = u.T @ grad @ v
        # A singular value of zero has no polar factor; the floor keeps training finite there.
        s = _above_zero(s)
        inner = (a - a.T) / (s[:, None] + s[None, :])
        outer = (grad @ v - u @ a) / s
        return (u @ inner + outer) @ vh


def _polar(weight: Tensor) -> Tensor:
    return _Polar.apply(weight)  # pyright: ignore[reportReturnType]


class _LeftVectors(torch.autograd.Function):
    """Left singular vectors U of W = U S V^T, with a gradient that is finite everywhere.

    With A = U^T G and B_ij = A_ij / (s_j^2 - s_i^2), dW = U (B + B^T) S V^T
    + (I - U U^T) G S^-1 V^T. Where two values meet, the vectors are not differentiable: there
    1 / d becomes d / (d^2 + e^2) with e the rounding error of the squares.
    """

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        ctx.save_for_backward(u, s, vh)
        return u

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        squares = s.square()
        gap = squares[None, :] - squares[:, None]
        rounding = torch.finfo(s.dtype).eps * squares.max()
        a = u.T @ grad
        b = a * gap / (gap.square() + rounding.square())
        inner = (b + b.T) * s
        outer = (grad - u @ a) / _above_zero(s)
        return (u @ inner + outer) @ vh


def _above_zero(s: Tensor) -> Tensor:
    return s.clamp_min(torch.finfo(s.dtype).eps * s.max())
