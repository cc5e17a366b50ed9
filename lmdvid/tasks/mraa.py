"""How MRAA learns: first to rebuild frames by regions, then to tell shapes from poses."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lmdvid import losses
from lmdvid.networks import WeightsError
from lmdvid.networks.keypoints import Keypoints
from lmdvid.networks.mraa import Background, Generator
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.keypoints import KeypointTask
from lmdvid.tasks.nonfinite import Policy


class MRAA(KeypointTask):
    """Motion Representations for Articulated Animation (Siarohin et al., CVPR 2021).

    The first stage, `reconstruction`, is trained with perceptual + equivariance losses; the second
    one, `avd`, trains the AVD network alone on what the first one has learnt. Defaults are the
    original's unless said otherwise.

    Args:
        size: Side of the pictures in pixels.
        regions: Number K of regions.
        width: Factor on the channels of all networks; 1 is the original.
        shrink: Regions and motion are found on pictures so many times smaller.
        blocks: Halvings in their hourglasses; size / shrink must be a multiple of 2^blocks.
        padding: Of the region predictor's head, see `RegionPredictor`.
        background: What the background may do: stand still (`none`), `shift`, move `affine` or in
            `perspective`.
        align_corners: True (ours) makes no motion exact identity; the original has False.
        stage: `reconstruction`, or `avd`, which begins with the other's network: `start_from`.
        l1: Weight of the L1 loss (ours; the original has none).
        perceptual: Network of the perceptual loss; the paper's is `vgg19`, `efficientnet` needs no
            file and is ours.
        vgg19_weights: Path of the published VGG-19 file; without it, it is looked for in the
            folder that the environment variable LMDVID_WEIGHTS names.
        perceptual_weight: Weight of each term of the perceptual loss.
        perceptual_layers: Feature maps that it compares, 1 to 5 from the shallow end.
        perceptual_scales: Sizes at which it compares, as shares of the picture's.
        equivariance: Weights of the equivariance losses of positions and of axes.
        deformation_affine: Standard deviation of the random affine part of a deformation.
        deformation_spline: Standard deviation of its spline's coefficients.
        deformation_points: Control points of the spline along each side.
        stretch: In the stage `avd` poses are stretched along x and y by random factors between
            1 - `stretch` and 1 + `stretch`, which the shape of the source must undo.
        lr: Adam's learning rate; the original's is 2e-4, and 1e-3 in the stage `avd`.
        betas: Adam's betas.
        milestones: Epochs at which it falls to a tenth.
        ema: Decay of the generator's moving average; the original has none, which is 0.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
        start_from: Converted folder or training checkpoint to begin with.
    """

    def __init__(
        self,
        size: int = 256,
        regions: int = 10,
        width: float = 1.0,
        shrink: int = 4,
        blocks: int = 5,
        padding: int = 0,
        background: Background = "affine",
        align_corners: bool = True,
        stage: Literal["reconstruction", "avd"] = "reconstruction",
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
        stretch: float = 0.25,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        milestones: Sequence[int] = (60, 90),
        ema: float = 0.0,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
        start_from: str | None = None,
    ) -> None:
        super().__init__(
            generator=Generator(
                size,
                regions,
                width,
                shrink,
                blocks,
                padding,
                background,
                align_corners=align_corners,
            ),
            discriminator=None,
            flips=True,
            l1=l1,
            perceptual="none" if stage == "avd" else perceptual,
            vgg19_weights=vgg19_weights,
            perceptual_weight=perceptual_weight,
            perceptual_layers=perceptual_layers,
            perceptual_scales=perceptual_scales,
            equivariance=equivariance,
            deformation_affine=deformation_affine,
            deformation_spline=deformation_spline,
            deformation_points=deformation_points,
            adversarial=0.0,
            lr=lr,
            betas=betas,
            milestones=milestones,
            ema=ema,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            start_from=start_from,
        )
        self.save_hyperparameters()
        self.stage = stage
        self.stretch = stretch
        self.mode = "avd" if stage == "avd" else "absolute"
        if stage == "avd":  # the rest stays as it is, and no process sends gradients of it
            network = cast(Generator, self.generator)
            network.requires_grad_(False)
            if network.avd is not None:
                network.avd.requires_grad_(True)

    def on_fit_start(self) -> None:
        """Refuse a second stage without a first one."""
        super().on_fit_start()
        untrained = self.start_from is None and not self.trainer.ckpt_path
        if self.stage == "avd" and untrained:
            raise WeightsError(
                "the stage avd begins with the network of the stage reconstruction: give its "
                "checkpoint as model.init_args.start_from"
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the networks that the stage trains."""
        optimizers = super().configure_optimizers()
        (group,) = optimizers[0].param_groups
        network = cast(Generator, self.generator)
        second = set() if network.avd is None else set(network.avd.parameters())
        group["params"] = [p for p in group["params"] if (p in second) == (self.stage == "avd")]
        return optimizers

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Rebuild the second frame of each clip, or its regions from a stretched pose."""
        if self.stage == "reconstruction":
            return super().generator_step(batch)
        source, target = batch["video"][:, 0], batch["video"][:, 1]
        network = cast(Generator, self.generator)
        network.regions.eval()  # what it has learnt stays, the statistics of its batches as well
        with torch.no_grad():
            identity, true = network.detect(source), network.detect(target)
            scale = 1 + self.stretch * (2 * torch.rand_like(true.position[:, :1]) - 1)
            pose = Keypoints(scale * true.position, scale[..., None] * true.shape)
        made = network.avd(identity, pose)  # pyright: ignore[reportOptionalCall]
        terms = {
            "position": losses.l1(made.position, true.position),
            "shape": losses.l1(made.shape, true.shape),
        }
        return terms, target, target

    def render(self, network: Any, source: Any, frames: Tensor, same: bool) -> Tensor:
        """A clip is rebuilt as in training, by its own regions and with its background's motion."""
        codes = network.encode_motion(frames)
        if not same:
            return network.render(source, codes, None, self.mode)
        background = network.background(source, frames)
        return network.render(source, codes, None, "absolute", background=background)
