"""What FOMM and MRAA share in learning: equivariance of keypoints, epochs with falling rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid import losses
from lmdvid.networks import WeightsError
from lmdvid.networks.keypoints import Keypoints, inverse, unflipped
from lmdvid.ops.reference import identity_grid
from lmdvid.pretrained import load_network
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.animation import AnimationTask
from lmdvid.tasks.nonfinite import Policy


@dataclass(frozen=True)
class Deformation:
    """A random smooth map W of the plane for each picture: affine, and a spline of control points.

    W(z) = A z + t + (s, s), s = sum_p c_p k(|z - p|_1), k(u) = u^2 log(u + 1e-6): one coefficient
    for both coordinates, and the distance in L1, as in FOMM's training program.

    Convention: normalised coordinates, x first; -1 and +1 are pixel centres where
    `align_corners=True`.

    Attributes:
        affine: (B, 2, 3), A and t.
        coefficients: (B, P), one for each control point.
        points: (P, 2) control points, a square grid over the picture.
    """

    affine: Tensor
    coefficients: Tensor
    points: Tensor

    @classmethod
    def draw(
        cls, batch: int, affine: float, spline: float, points: int, like: Tensor
    ) -> "Deformation":
        """Draw from normal distributions.

        Args:
            batch: B.
            affine: Standard deviation of A - I and t.
            spline: Standard deviation of the coefficients.
            points: Control points along each side.
            like: Gives device and precision.
        """
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        theta = torch.eye(2, 3, **options) + affine * torch.randn(batch, 2, 3, **options)
        coefficients = spline * torch.randn(batch, points**2, **options)
        grid = identity_grid(points, points, like)
        return cls(theta, coefficients, grid.flatten(1).T)

    def __call__(self, z: Tensor) -> Tensor:
        """W of places (B, N, 2)."""
        distance = (z[:, :, None] - self.points).abs().sum(dim=-1)
        kernel = distance.square() * (distance + 1e-6).log()
        bent = (kernel * self.coefficients[:, None]).sum(dim=-1, keepdim=True)
        return z @ self.affine[:, :, :2].mT + self.affine[:, None, :, 2] + bent

    def jacobian(self, z: Tensor) -> Tensor:
        """dW/dz at places (B, N, 2): (B, N, 2, 2)."""
        offset = z[:, :, None] - self.points
        distance = offset.abs().sum(dim=-1)
        slope = 2 * distance * (distance + 1e-6).log() + distance.square() / (distance + 1e-6)
        weights = (slope * self.coefficients[:, None])[..., None]
        bent = (weights * offset.sign()).sum(dim=2)
        return self.affine[:, None, :, :2] + bent[:, :, None]

    def warp(self, images: Tensor, align_corners: bool) -> Tensor:
        """Pictures (B, C, H, W) as W sees them, T(z) = D(W(z)), reflected at the borders."""
        height, width = images.shape[-2:]
        grid = identity_grid(height, width, like=self.affine).flatten(1).T
        places = self(grid.expand(len(images), -1, -1)).unflatten(1, (height, width))
        return F.grid_sample(
            images, places.to(images.dtype), padding_mode="reflection", align_corners=align_corners
        )


def equivariance(
    original: Keypoints, moved: Keypoints, deformation: Deformation, flips: bool
) -> dict[str, Tensor]:
    """How far keypoints of a deformed picture are from the deformed keypoints (FOMM, eq. 9, 11).

    mean |mu_D - W(mu_T)| and mean |I - J_D^-1 (dW/dz)(mu_T) J_T|.

    Args:
        original: Of the pictures D.
        moved: Of the deformed pictures T.
        deformation: W.
        flips: The sign of a map means nothing; see `unflipped`.
    """
    product = inverse(original.shape) @ deformation.jacobian(moved.position) @ moved.shape
    if flips:
        product = unflipped(product)
    unit = torch.eye(2, dtype=product.dtype, device=product.device)
    return {
        "position": losses.l1(original.position, deformation(moved.position)),
        "shape": (unit - product).abs().mean(),
    }


class KeypointTask(AnimationTask):
    """An `AnimationTask` whose network moves pictures by keypoints.

    Args:
        generator: Has `detect` and, from two pictures, the second one's picture and keypoints.
        discriminator: See `AdversarialTask`.
        flips: See `equivariance`.
        l1: Weight of the L1 loss.
        perceptual: See `AnimationTask`.
        vgg19_weights: See `AnimationTask`.
        perceptual_weight: See `AnimationTask`.
        perceptual_layers: See `AnimationTask`.
        perceptual_scales: See `AnimationTask`.
        equivariance: Weights of both equivariance losses, that of positions and that of shapes.
        deformation_affine: See `Deformation.draw`.
        deformation_spline: See `Deformation.draw`.
        deformation_points: See `Deformation.draw`.
        adversarial: See `AdversarialTask`.
        lr: Adam's learning rate.
        betas: Adam's betas.
        milestones: Epochs at which the learning rates fall to a tenth.
        ema: See `AdversarialTask`.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
        start_from: Converted folder or training checkpoint whose network training begins with.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        flips: bool,
        l1: float,
        perceptual: Literal["vgg19", "efficientnet", "none"],
        vgg19_weights: str | None,
        perceptual_weight: float,
        perceptual_layers: int,
        perceptual_scales: Sequence[float],
        equivariance: tuple[float, float],
        deformation_affine: float,
        deformation_spline: float,
        deformation_points: int,
        adversarial: float,
        lr: float,
        betas: tuple[float, float],
        milestones: Sequence[int],
        ema: float,
        nonfinite: Policy,
        nonfinite_limit: int,
        start_from: str | None,
    ) -> None:
        super().__init__(
            generator=generator,
            discriminator=discriminator,
            lr=lr,
            betas=betas,
            generator_every=0,
            discriminator_every=0,
            adversarial=adversarial,
            r1=0.0,
            ema=ema,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            perceptual=perceptual,
            vgg19_weights=vgg19_weights,
            perceptual_weight=perceptual_weight,
            perceptual_layers=perceptual_layers,
            perceptual_scales=perceptual_scales,
        )
        self.flips = flips
        self.l1 = l1
        self.equivariance = equivariance
        self.deformation = (deformation_affine, deformation_spline, deformation_points)
        self.milestones = tuple(milestones)
        self.start_from = start_from

    def setup(self, stage: str) -> None:
        """Load what training begins with, unless a checkpoint continues one."""
        super().setup(stage)
        if stage == "fit" and self.start_from is not None and not self.trainer.ckpt_path:
            state = load_network(self.start_from).state_dict()
            for network in (self.generator, self.generator_ema.network):
                ours = network.state_dict()
                strange = [k for k, v in state.items() if k not in ours or v.shape != ours[k].shape]
                # MRAA's first stage may have been trained without the network of the second one.
                strange += [k for k in ours.keys() - state.keys() if not k.startswith("avd.")]
                if strange:
                    raise WeightsError(
                        f"{self.start_from} holds another network than this experiment's: they "
                        f"differ first in {min(strange)}"
                    )
                network.load_state_dict(state, strict=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates, which depend on the epoch alone: nothing to resume."""
        super().on_train_batch_start(batch, batch_idx)
        factor = 0.1 ** sum(self.current_epoch >= epoch for epoch in self.milestones)
        for optimizer in self._both_optimizers():
            for group in () if optimizer is None else optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for all generating networks together, and for a discriminator."""
        optimizers = super().configure_optimizers()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        return optimizers

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Rebuild the second frame of each clip from the first one."""
        source, target = batch["video"][:, 0], batch["video"][:, 1]
        picture, keypoints = self.generator(source, target)
        terms = {}
        if self.l1 > 0:
            terms["l1"] = self.l1 * losses.l1(picture, target)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(picture, target)
        for (name, loss), weight in zip(
            self._equivariance(target, keypoints).items(), self.equivariance, strict=True
        ):
            terms[f"equivariance_{name}"] = weight * loss
        return terms, *self._samples(picture, target, keypoints)

    def _equivariance(self, target: Tensor, keypoints: Keypoints) -> dict[str, Tensor]:
        network = cast(Any, self.generator)
        deformation = Deformation.draw(len(target), *self.deformation, like=keypoints.position)
        bent = deformation.warp(target, network.config["align_corners"])
        with torch.autocast(target.device.type, enabled=False):
            return equivariance(keypoints, network.detect(bent), deformation, self.flips)

    def _samples(
        self, picture: Tensor, target: Tensor, keypoints: Keypoints
    ) -> tuple[Tensor, Tensor]:
        """What a discriminator tells apart."""
        return picture, target
