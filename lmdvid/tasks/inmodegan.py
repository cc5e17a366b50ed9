"""How InMoDeGAN learns: its videos against real ones, frame by frame and at several speeds."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lmdvid.generate import Plan
from lmdvid.navigator import Orthogonal
from lmdvid.networks.inmodegan import Discriminators, Generator, Noise, VideoKind
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.generation import GenerationTask
from lmdvid.tasks.nonfinite import Policy


class InMoDeGAN(GenerationTask):
    """InMoDeGAN (Wang, Bremond, Dantcheva, arXiv 2101.03049, 2021): videos from noise.

    The generator's loss is the sum of its adversarial losses against an image discriminator and a
    pyramid of video discriminators, which is what the paper's figure shows. The authors published
    no code: the loss's form, the optimiser and all numbers here are StyleGAN2's (ours).

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024; the paper's are 64 and
            128.
        frames: Frames T of a clip in training; the data module is to give as many consecutive ones.
        dim: Size D of the latent space.
        directions: Number N of motion directions.
        width: Factor on the channels of all networks.
        orthogonal: How the motion bank is made orthonormal, see `Generator`.
        appearance_noise: Size of z_a.
        motion_noise: Size of each step's z_m.
        mapping_layers: Layers of the appearance network.
        motion_layers: Layers of the motion network after its GRU.
        motion_init: Factor on the initial weights of the last of them.
        motion_lr_mul: Factor on their learning rate.
        noise: `none`, or `shared`: one noise map per layer for all frames of a clip.
        speeds: Of the pyramid: 1 sees every frame, 2 every second one, ...
        video_kind: `3d` kernels, or `2d`: a clip's frames as channels, at a fraction of the cost.
        image_frames: Random frames of a clip that the image discriminator judges; the paper's is 1.
        checkpointing: Compute the synthesis again in the backward pass: less memory, a third more
            work.
        adversarial: Weight of the adversarial losses.
        r1: Weight gamma of the R1 penalty of each discriminator, every `discriminator_every` steps.
        lr: Adam's learning rate, before the scaling by `generator_every` / `discriminator_every`.
        betas: Adam's betas, before the same scaling.
        generator_every: See `AdversarialTask`; 0, since there is no penalty on the generator: that
            of path lengths would punish motion.
        discriminator_every: See `AdversarialTask`.
        ema: Decay of the generator's moving average.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
        rows: Appearances in the sample video.
        columns: Motions in it.
        prediction: What `lightning predict` makes; the data module's `generate` says how many.
    """

    def __init__(
        self,
        size: int = 64,
        frames: int = 16,
        dim: int = 512,
        directions: int = 512,
        width: float = 1.0,
        orthogonal: Orthogonal = "polar",
        appearance_noise: int = 512,
        motion_noise: int = 512,
        mapping_layers: int = 8,
        motion_layers: int = 4,
        motion_init: float = 0.1,
        motion_lr_mul: float = 0.1,
        noise: Noise = "none",
        speeds: Sequence[int] = (1, 2, 4),
        video_kind: VideoKind = "3d",
        image_frames: int = 1,
        checkpointing: bool = False,
        adversarial: float = 1.0,
        r1: float = 10.0,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.0, 0.99),
        generator_every: int = 0,
        discriminator_every: int = 16,
        ema: float = 0.999,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
        rows: int = 4,
        columns: int = 4,
        prediction: Plan | None = None,
    ) -> None:
        generator = Generator(
            size=size,
            dim=dim,
            directions=directions,
            width=width,
            orthogonal=orthogonal,
            appearance_noise=appearance_noise,
            motion_noise=motion_noise,
            mapping_layers=mapping_layers,
            motion_layers=motion_layers,
            motion_init=motion_init,
            motion_lr_mul=motion_lr_mul,
            noise=noise,
            checkpointing=checkpointing,
        )
        super().__init__(
            generator=generator,
            discriminator=Discriminators(size, frames, speeds, width, video_kind, image_frames),
            lr=lr,
            betas=betas,
            generator_every=generator_every,
            discriminator_every=discriminator_every,
            adversarial=adversarial,
            r1=r1,
            ema=ema,
            frames=frames,
            rows=rows,
            columns=columns,
            prediction=prediction,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        self.save_hyperparameters(ignore=["prediction"])
        # A quarter faster in bf16, on a CPU as well; no value changes. 3-D kernels gain nothing.
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Draw as many videos as there are real ones."""
        real = batch["video"]
        network = cast(Generator, self.generator)
        codes = network.sample_codes(*self.draw_noise(len(real)))
        mean = codes.appearance.detach().mean(dim=0)
        network.centre.lerp_(self.trainer.strategy.reduce(mean, reduce_op="mean"), 0.005)
        return {}, network.render(codes), real
