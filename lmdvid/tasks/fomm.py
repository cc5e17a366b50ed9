"""How FOMM learns: a frame of a clip is rebuilt from another one, by keypoints of its own."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lmdvid import losses
from lmdvid.networks.fomm import Generator, PatchDiscriminator
from lmdvid.networks.keypoints import Keypoints, bumps
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.keypoints import KeypointTask
from lmdvid.tasks.nonfinite import Policy


class FOMM(KeypointTask):
    """First Order Motion Model (Siarohin et al., NeurIPS 2019).

    Total loss of generator and keypoint detector: perceptual + equivariance of positions and
    Jacobians, and in the adversarial experiments LSGAN + feature matching. Defaults are the
    original's unless said otherwise.

    Args:
        size: Side of the pictures in pixels.
        keypoints: Number K of keypoints.
        width: Factor on the channels of all networks; 1 is the original.
        shrink: Keypoints and motion are found on pictures so many times smaller.
        blocks: Halvings in their hourglasses; size / shrink must be a multiple of 2^blocks.
        padding: Of the keypoint detector's heads, see `KeypointDetector`.
        single_jacobian: One map of Jacobians for all keypoints.
        align_corners: True (ours) makes no motion exact identity; today's PyTorch runs the original
            with False.
        l1: Weight of the L1 loss (ours; the original has none).
        perceptual: Network of the perceptual loss; the paper's is `vgg19`, `efficientnet` needs no
            file and is ours.
        vgg19_weights: Path of the published VGG-19 file; without it, it is looked for in the
            folder that the environment variable LMDVID_WEIGHTS names.
        perceptual_weight: Weight of each term of the perceptual loss.
        perceptual_layers: Feature maps that it compares, 1 to 5 from the shallow end.
        perceptual_scales: Sizes at which it compares, as shares of the picture's.
        equivariance: Weights of the equivariance losses of positions and of Jacobians.
        deformation_affine: Standard deviation of the random affine part of a deformation.
        deformation_spline: Standard deviation of its spline's coefficients.
        deformation_points: Control points of the spline along each side.
        adversarial: Weight of the LSGAN loss; at 0 there is no discriminator.
        feature_matching: Weight of the distance of the discriminator's features, for each block.
        spectral: Spectral normalisation in the discriminator.
        show_keypoints: Show the discriminator where the driving keypoints are.
        lr: Adam's learning rate.
        detector_lr: The keypoint detector's; None is `lr`, 0 keeps its weights as they are.
        betas: Adam's betas.
        milestones: Epochs at which the learning rates fall to a tenth.
        ema: Decay of the generator's moving average; the original has none, which is 0.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
        start_from: Converted folder or training checkpoint to begin with, as the original's
            adversarial experiments begin with the others' networks.

    Raises:
        ValueError: If the pictures are too small for the networks.
    """

    generator_loss = staticmethod(losses.least_squares_generator_loss)
    discriminator_loss = staticmethod(losses.least_squares_discriminator_loss)

    def __init__(
        self,
        size: int = 256,
        keypoints: int = 10,
        width: float = 1.0,
        shrink: int = 4,
        blocks: int = 5,
        padding: int = 0,
        single_jacobian: bool = False,
        align_corners: bool = True,
        l1: float = 0.0,
        perceptual: Literal["vgg19", "efficientnet", "none"] = "vgg19",
        vgg19_weights: str | None = None,
        perceptual_weight: float = 10.0,
        perceptual_layers: int = 5,
        perceptual_scales: Sequence[float] = losses.SCALES,
        equivariance: tuple[float, float] = (10.0, 10.0),
        deformation_affine: float = 0.05,
        deformation_spline: float = 0.005,
        deformation_points: int = 5,
        adversarial: float = 0.0,
        feature_matching: float = 10.0,
        spectral: bool = True,
        show_keypoints: bool = False,
        lr: float = 2e-4,
        detector_lr: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        milestones: Sequence[int] = (60, 90),
        ema: float = 0.0,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
        start_from: str | None = None,
    ) -> None:
        if adversarial > 0 and size < 61:
            raise ValueError(
                f"size={size}: the discriminator does not pad, and needs 61 pixels; choose 64 or "
                "more, or adversarial: 0"
            )
        inputs = 3 + (keypoints if show_keypoints else 0)
        super().__init__(
            generator=Generator(
                size,
                keypoints,
                width,
                shrink,
                blocks,
                padding,
                single_jacobian,
                align_corners=align_corners,
            ),
            discriminator=PatchDiscriminator(inputs, width, spectral) if adversarial > 0 else None,
            flips=False,
            l1=l1,
            perceptual=perceptual,
            vgg19_weights=vgg19_weights,
            perceptual_weight=perceptual_weight,
            perceptual_layers=perceptual_layers,
            perceptual_scales=perceptual_scales,
            equivariance=equivariance,
            deformation_affine=deformation_affine,
            deformation_spline=deformation_spline,
            deformation_points=deformation_points,
            adversarial=adversarial,
            lr=lr,
            betas=betas,
            milestones=milestones,
            ema=ema,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            start_from=start_from,
        )
        self.save_hyperparameters()
        self.feature_matching = feature_matching
        self.show_keypoints = show_keypoints
        self.detector_lr = lr if detector_lr is None else detector_lr

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """As `KeypointTask`, with the detector's own learning rate."""
        optimizers = super().configure_optimizers()
        detector = list(self.generator.detector.parameters())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        (group,) = optimizers[0].param_groups
        group["params"] = [p for p in group["params"] if all(p is not q for q in detector)]
        own = {"params": detector, "lr": self.detector_lr, "initial_lr": self.detector_lr}
        optimizers[0].add_param_group({**group, **own})
        return optimizers

    def adversarial_terms(self, fake: Tensor, real: Tensor, batch: Batch) -> dict[str, Tensor]:
        """LSGAN and feature matching."""
        scores, made = self.discriminator(fake)
        with torch.no_grad():
            _, true = self.discriminator(real)
        distances = [losses.l1(a, b) for a, b in zip(made, true, strict=True)]
        return {
            "adversarial": self.adversarial * self.generator_loss(scores),
            "feature_matching": self.feature_matching * torch.stack(distances).sum(),
        }

    def discriminate(self, samples: Tensor, batch: Batch) -> Tensor:
        """Scores of patches."""
        return self.discriminator(samples)[0]

    def _samples(
        self, picture: Tensor, target: Tensor, keypoints: Keypoints
    ) -> tuple[Tensor, Tensor]:
        if not (self.show_keypoints and self.adversarial > 0):
            return picture, target
        position = keypoints.position.detach()
        precision = torch.eye(2).to(position) / self.generator.variance  # pyright: ignore[reportOperatorIssue]
        shown = bumps(position, precision, target.shape[-2:])  # pyright: ignore[reportArgumentType]
        return torch.cat([picture, shown], dim=1), torch.cat([target, shown], dim=1)
