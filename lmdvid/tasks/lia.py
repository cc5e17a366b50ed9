"""How LIA learns: a frame of a clip is rebuilt from another frame of the same clip."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from lmdvid import losses
from lmdvid.navigator import Orthogonal
from lmdvid.networks.layers import ImageDiscriminator
from lmdvid.networks.lia import Generator
from lmdvid.tasks.adversarial import AdversarialTask, Batch


class LIA(AdversarialTask):
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

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Rebuild the second frame of each clip from the first one, perhaps the first as well."""
        source, target = batch["video"][:, 0], batch["video"][:, 1]
        picture, alpha = self.generator(source, target, self.both_ways)
        if self.both_ways:
            target = torch.cat([target, source])
        terms = {"l1": self.l1 * losses.l1(picture, target)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(picture, target)
        if self.sparsity > 0:
            terms["sparsity"] = self.sparsity * losses.sparsity(alpha)
        return terms, picture, target

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """Move pictures by clips with the averaged generator, absolute mode.

        Args:
            source: (B, 3, H, W) in [-1, 1].
            driving: (B, T, 3, H, W) in [-1, 1].

        Returns:
            (B, T, 3, H, W) clamped to [-1, 1].
        """
        network = cast(Generator, self.generator_ema.network)
        videos = []
        for picture, clip in zip(source, driving, strict=True):
            encoded = network.encode_source(picture[None])
            # A few frames at a time, so that a whole clip needs no more memory than a short one.
            parts = [
                network.render(encoded, network.encode_motion(frames), mode="absolute")
                for frames in clip.split(8)
            ]
            videos.append(torch.cat(parts))
        return torch.stack(videos).float().clamp(-1, 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score held-out clips; return the panels of a sample video."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """As in validation."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Animate pairs of a picture and a driving clip."""
        return {"key": batch["key"], "video": self(batch["source"], batch["driving"])}

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """Rebuild each clip from its first frame; with ground truth, also another's motion.

        The source frame itself is left out of the scores (not out of the `cross_` ones, whose
        frames are all new). `psnr` is that of each clip's mean squared error, averaged over clips;
        `copy_psnr` is what repeating the source would score.
        """
        video = batch["video"]
        source = video[:, 0]
        result = self(source, video)
        scores = self._scores(result[:, 1:], video[:, 1:], source)
        panels = {"source": source, "driving": video, "result": result}
        if "cross_truth" in batch:
            driving, truth = batch["cross_driving"], batch["cross_truth"]
            result = self(source, driving)
            cross = self._scores(result, truth, source)
            scores |= {f"cross_{name}": value for name, value in cross.items()}
            panels = {"source": source, "driving": driving, "result": result, "truth": truth}
        self.log_dict(
            {f"{stage}/{name}": value for name, value in scores.items()},
            batch_size=len(video),
            on_epoch=True,
            sync_dist=True,
        )
        return panels

    @staticmethod
    def _scores(result: Tensor, truth: Tensor, source: Tensor) -> dict[str, Tensor]:
        def psnr(video: Tensor) -> Tensor:
            return peak_signal_noise_ratio(
                video, truth, data_range=2.0, dim=(1, 2, 3, 4), reduction="elementwise_mean"
            )

        result_frames = rearrange(result, "b t c h w -> (b t) c h w")
        true_frames = rearrange(truth, "b t c h w -> (b t) c h w")
        ssim = structural_similarity_index_measure(result_frames, true_frames, data_range=2.0)
        return {
            # On a scale of [0, 1], as LIA reports it.
            "l1": 0.5 * losses.l1(result, truth),
            "psnr": psnr(result),
            "ssim": ssim,  # pyright: ignore[reportReturnType]
            "copy_psnr": psnr(source[:, None].expand_as(truth)),
        }
