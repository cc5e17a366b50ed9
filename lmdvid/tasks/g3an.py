"""How G3AN learns: its videos against real ones, as frames and as clips."""

from typing import cast

from torch import Tensor

from lmdvid.generate import Plan
from lmdvid.networks.g3an import Generator, VideoKind, discriminators
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.generation import GenerationTask
from lmdvid.tasks.nonfinite import Policy


class G3AN(GenerationTask):
    """G3AN (Wang, Bilinski, Bremond, Dantcheva, CVPR 2020): videos from noise.

    The generator's loss is the sum of its adversarial losses against an image discriminator, which
    sees one random frame, and a video discriminator. The discriminators step first. Defaults are
    those of the original code unless said otherwise.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024; the original's is 64.
        frames: Frames T of a clip in training; the data module is to give as many. The generator
            makes 4 (k + 3) of k motion steps, and what is too many is cut off.
        width: Factor on the channels of all networks.
        attention: Self-attention in time and space. The original's training script leaves it out
            unless asked, its released weights and the paper have it.
        appearance_noise: Size of z_a.
        motion_noise: Size of each step's z_m.
        video_kind: Kernels of the video discriminator: `2+1d` is the original code's, `3d` the
            paper's.
        adversarial: Weight of the adversarial losses.
        r1: Weight gamma of the R1 penalty of each discriminator; the original has none.
        lr: Adam's learning rate.
        betas: Adam's betas.
        discriminator_every: Steps between two R1 penalties, see `AdversarialTask`.
        ema: Decay of the generator's moving average; the original has none.
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
        width: float = 1.0,
        attention: bool = True,
        appearance_noise: int = 128,
        motion_noise: int = 10,
        video_kind: VideoKind = "2+1d",
        adversarial: float = 1.0,
        r1: float = 0.0,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        discriminator_every: int = 0,
        ema: float = 0.0,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
        rows: int = 4,
        columns: int = 4,
        prediction: Plan | None = None,
    ) -> None:
        super().__init__(
            generator=Generator(
                size=size,
                width=width,
                attention=attention,
                appearance_noise=appearance_noise,
                motion_noise=motion_noise,
            ),
            discriminator=discriminators(size, frames, width, video_kind),
            lr=lr,
            betas=betas,
            generator_every=0,
            discriminator_every=discriminator_every,
            adversarial=adversarial,
            r1=r1,
            ema=ema,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            frames=frames,
            rows=rows,
            columns=columns,
            prediction=prediction,
            discriminator_first=True,
        )
        self.save_hyperparameters(ignore=["prediction"])

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Draw as many videos as there are real ones."""
        real = batch["video"]
        network = cast(Generator, self.generator)
        codes = network.sample_codes(*self.draw_noise(len(real)))
        return {}, network.render(codes, stop=self.frames), real
