"""What the networks are trained with: adversarial, reconstruction, perceptual, sparsity."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.networks.features import FrozenFeatures
from lmdvid.ops.shrink import shrink

SCALES = (1, 1 / 2, 1 / 4, 1 / 8)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss, mean softplus(-D(fake)) (Goodfellow et al., 2014, section 3).

    Args:
        fake_logits: Discriminator's scores of generated images, any shape; higher is more real.
    """
    return F.softplus(-_at_least_float32(fake_logits)).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss, mean softplus(-D(real)) + mean softplus(D(fake)).

    Args:
        real_logits: Scores of real images, any shape.
        fake_logits: Scores of generated images, computed from detached images.
    """
    real = F.softplus(-_at_least_float32(real_logits)).mean()
    return real + F.softplus(_at_least_float32(fake_logits)).mean()


def least_squares_generator_loss(fake_scores: Tensor) -> Tensor:
    """Mean (1 - D(fake))^2 (LSGAN, Mao et al., 2017).

    Args:
        fake_scores: Discriminator's scores of generated images, any shape; 1 is real.
    """
    return (1 - _at_least_float32(fake_scores)).square().mean()


def least_squares_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Mean (1 - D(real))^2 + mean D(fake)^2 (LSGAN).

    Args:
        real_scores: Scores of real images, any shape.
        fake_scores: Scores of generated images, computed from detached images.
    """
    real = (1 - _at_least_float32(real_scores)).square().mean()
    return real + _at_least_float32(fake_scores).square().mean()


def r1_penalty(real_images: Tensor, real_logits: Tensor, gamma: float = 10.0) -> Tensor:
    """Gradient penalty gamma / 2 E |dD/dx|^2 on real images (Mescheder et al., 2018, equation 9).

    The squared norm is the sum over all pixels of a sample. A lazy penalty, computed every k-th
    step (StyleGAN2, appendix B), is multiplied by k by the caller.

    Args:
        real_images: (B, ...) with `requires_grad`, the tensor the scores were computed from.
        real_logits: (B,) or (B, 1) scores, with their graph.
        gamma: Weight; 10 is StyleGAN2's default.

    Raises:
        ValueError: `real_images` does not require gradients.
    """
    if not real_images.requires_grad:
        raise ValueError(
            "r1_penalty: the real images do not require gradients; call "
            "real_images.requires_grad_() before the discriminator sees them"
        )
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gamma / 2 * _at_least_float32(gradient).square().flatten(1).sum(1).mean()


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two tensors of one shape.

    Raises:
        ValueError: The shapes differ.
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"l1 compares tensors of one shape, not {shapes}")
    return (_at_least_float32(prediction) - target).abs().mean()


def sparsity(magnitudes: Tensor) -> Tensor:
    """Mean |alpha| of motion magnitudes (..., N): few directions per motion (LIA-X, S(A))."""
    return _at_least_float32(magnitudes).abs().mean()


def image_pyramid(images: Tensor, scales: Sequence[float] = SCALES) -> list[Tensor]:
    """Blurred and sub-sampled copies of `images`, as FOMM and LIA make them for their losses.

    For scale s they are shrunk by 1/s, see `shrink`. Scale 1 is the input itself.

    Args:
        images: (B, C, H, W) float.
        scales: Each the inverse of a whole number.

    Returns:
        For each scale (B, C, ceil(s H), ceil(s W)), at least float32.

    Raises:
        ValueError: A scale is not the inverse of a whole number.
    """
    images = _at_least_float32(images)
    return [shrink(images, _factor(scale)) for scale in scales]


def _factor(scale: float) -> int:
    factor = round(1 / scale) if scale > 0 else 0
    if factor < 1 or abs(factor * scale - 1) > 1e-6:
        raise ValueError(f"scale is {scale}; possible are 1, 1/2, 1/3, ... (1 / whole number)")
    return factor


class PerceptualLoss(nn.Module):
    """Distance of two images in the features of a frozen network, at several scales.

    sum over scales and feature maps of weight * mean |f(prediction) - f(target)|, the target
    without gradient: FOMM's and LIA's loss with VGG-19, 4 scales x 5 maps = 20 terms of weight 10.
    Where an image is too small for a deep feature map (VGG-19 below 16 px, that is the scale 1/8
    of a 64 px image) the network leaves the map out and the sum has fewer terms.

    Args:
        features: From `perceptual_features`.
        scales: Scales of the `image_pyramid`.
        weight: Factor of every term.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        scales: Sequence[float] = SCALES,
        weight: float = 10.0,
    ):
        super().__init__()
        self.features = features
        self.scales = tuple(scales)
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of two batches (B, 3, H, W), RGB in [-1, 1]."""
        # Apart rather than as one batch: the target's half then needs no graph and no backward.
        with torch.no_grad():
            targets = [self.features(x) for x in image_pyramid(target, self.scales)]
        terms = [
            l1(map_of_prediction, map_of_target)
            for x, maps in zip(image_pyramid(prediction, self.scales), targets, strict=True)
            for map_of_prediction, map_of_target in zip(self.features(x), maps, strict=True)
        ]
        return self.weight * torch.stack(terms).sum()
