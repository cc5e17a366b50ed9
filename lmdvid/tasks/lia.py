"""How LIA learns: a frame of a clip is rebuilt from another frame of the same clip."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from lmdvid import losses
from lmdvid.navigator import Orthogonal
from lmdvid.networks.layers import ImageDiscriminator
from lmdvid.networks.lia import Generator
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.animation import AnimationTask
from lmdvid.tasks.nonfinite import Policy


class LIA(AnimationTask):
    """Latent Image Animator (Wang et al., ICLR 2022; TPAMI 2024).

    Total loss of the generator: L1 + perceptual + adversarial, each with the paper's weight 1
    (the factor 10 of the perceptual terms is `perceptual_weight`). Defaults are the original's
    unless said otherwise.

    Args:
        size: Side of the pictures in pixels, a power of two from 32 to 1024.
        dim: Size D of the latent space.
        directions: Number N of motion directions.
        width: Factor on the channels of all three networks; 1 is the original.
        orthogonal: How the motion dictionary is made orthonormal.
        align_corners: True (ours) makes zero displacement exact identity, False is the original's.
        flow_init: Factor on the initial weights of the flows, see `Generator`; the original's is 1.
        both_ways: Rebuild each of the two frames from the other: a third more work, twice the
            pictures to learn from (ours; the original rebuilds the second from the first).
        l1: Weight of the L1 loss.
        perceptual: Network of the perceptual loss; the paper's is `vgg19`, `efficientnet` needs no
            file and is ours.
        vgg19_weights: Path of the published VGG-19 file; without it, it is looked for in the
            folder that the environment variable LMDVID_WEIGHTS names.
        perceptual_weight: Weight of each term of the perceptual loss.
        perceptual_layers: Feature maps that it compares, 1 to 5 from the shallow end.
        perceptual_scales: Sizes at which it compares, as shares of the picture's.
        adversarial: Weight of the adversarial loss; at 0 the discriminator rests.
        sparsity: Weight of the mean |alpha| of the driving magnitudes (LIA-X's idea; LIA has none).
        r1: Weight gamma of the R1 penalty on real pictures; the original has none.
        lr: Adam's learning rate, before the scaling by `generator_every` / `discriminator_every`.
        betas: Adam's betas, before the same scaling.
        generator_every: See `AdversarialTask`.
        discriminator_every: See `AdversarialTask`.
        ema: Decay of the generator's moving average (ours; the original has none).
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
    """

    def __init__(
        self,
        size: int = 256,
        dim: int = 512,
        directions: int = 20,
        width: float = 1.0,
        orthogonal: Orthogonal = "qr",
        align_corners: bool = True,
        flow_init: float = 1.0,
        both_ways: bool = False,
        l1: float = 1.0,
        perceptual: Literal["vgg19", "efficientnet", "none"] = "vgg19",
        vgg19_weights: str | None = None,
        perceptual_weight: float = 10.0,
        perceptual_layers: int = 5,
        perceptual_scales: Sequence[float] = losses.SCALES,
        adversarial: float = 1.0,
        sparsity: float = 0.0,
        r1: float = 0.0,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.0, 0.99),
        generator_every: int = 4,
        discriminator_every: int = 16,
        ema: float = 0.999,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
    ) -> None:
        super().__init__(
            generator=Generator(size, dim, directions, width, align_corners, orthogonal, flow_init),
            discriminator=ImageDiscriminator(size, width),
            lr=lr,
            betas=betas,
            generator_every=generator_every,
            discriminator_every=discriminator_every,
            adversarial=adversarial,
            r1=r1,
            ema=ema,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            perceptual=perceptual,
            vgg19_weights=vgg19_weights,
            perceptual_weight=perceptual_weight,
            perceptual_layers=perceptual_layers,
            perceptual_scales=perceptual_scales,
        )
        self.save_hyperparameters()
        self.both_ways = both_ways
        self.l1 = l1
        self.sparsity = sparsity

    def discriminate(self, samples: Tensor, batch: Batch) -> Tensor:
        """Logits of pictures."""
        return self.judge_replayed(samples)

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Rebuild the second frame of each clip from the first one, perhaps the first as well."""
        source, target = batch["video"][:, 0], batch["video"][:, 1]
        given = source, target, self.both_ways
        if cast(Generator, self.generator).navigator.orthogonal == "qr":
            picture, alpha = self.replayed("generator", self.generator, *given)
        else:  # a GPU's SVD has the host wait
            picture, alpha = self.generator(*given)
        if self.both_ways:
            target = torch.cat([target, source])
        terms = {"l1": self.l1 * losses.l1(picture, target)}
        if self.perceptual is not None:
            terms["perceptual"] = self.replayed("perceptual", self.perceptual, picture, target)
        if self.sparsity > 0:
            terms["sparsity"] = self.sparsity * losses.sparsity(alpha)
        return terms, picture, target
