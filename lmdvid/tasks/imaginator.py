"""How ImaGINator learns: each clip is imagined again from its first frame and its class."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lmdvid import losses
from lmdvid.generate import MOTION, Plan, noise
from lmdvid.networks.imaginator import MUG, Generator, discriminators
from lmdvid.tasks.adversarial import Batch
from lmdvid.tasks.animation import reconstruction_scores
from lmdvid.tasks.generation import GenerationTask
from lmdvid.tasks.nonfinite import Policy


class ImaGINator(GenerationTask):
    """ImaGINator (Wang, Bilinski, Bremond, Dantcheva, WACV 2020): a picture and a class to a video.

    Total loss of the generator: 100 L1 to the real clip, and its adversarial losses against an
    image discriminator, which sees one random frame, and a video discriminator, which is told the
    class. The generator steps first. Defaults are the original code's unless said otherwise.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024; the original's is 64.
            Clips have size / 2 frames: the data module is to give as many.
        classes: Their names, in the order of the data's numbers.
        width: Factor on the channels of all networks.
        appearance: Channels of the picture's last features.
        motion_noise: Size of the noise.
        l1: Weight of the L1 loss.
        adversarial: Weight of the adversarial losses.
        r1: Weight gamma of the R1 penalty of each discriminator; the original has none.
        lr: Adam's learning rate.
        betas: Adam's betas.
        discriminator_every: Steps between two R1 penalties, see `AdversarialTask`.
        ema: Decay of the generator's moving average; the original has none.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
        prediction: What `lightning predict` makes of numbers (`generate` of the data module): its
            picture, and its class. Pictures that the data module gives instead, as sources of
            pairs, perform that class, or all of them.
    """

    compared = "own"

    def __init__(
        self,
        size: int = 64,
        classes: Sequence[str] = MUG,
        width: float = 1.0,
        appearance: int = 100,
        motion_noise: int = 512,
        l1: float = 100.0,
        adversarial: float = 1.0,
        r1: float = 0.0,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        discriminator_every: int = 0,
        ema: float = 0.0,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
        prediction: Plan | None = None,
    ) -> None:
        generator = Generator(size, classes, width, appearance, motion_noise)
        super().__init__(
            generator=generator,
            discriminator=discriminators(size, len(classes), width),
            lr=lr,
            betas=betas,
            generator_every=0,
            discriminator_every=discriminator_every,
            adversarial=adversarial,
            r1=r1,
            ema=ema,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            frames=generator.frames,
            rows=0,
            columns=0,
            prediction=prediction,
        )
        self.save_hyperparameters(ignore=["prediction"])
        self.l1 = l1

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Imagine each clip from its first frame, its class and fresh noise."""
        real, label = self._clips(batch)
        network = cast(Generator, self.generator)
        z = torch.randn(len(real), 1, network.motion_noise, device=real.device)
        fake = network(real[:, 0], z, label)
        return {"l1": self.l1 * losses.l1(fake, real)}, fake, real

    def discriminate(self, samples: Tensor, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Judge frames, and videos of their classes."""
        return self.discriminator(samples, batch["label"])

    def fakes(self, batch: Batch, numbers: Sequence[int]) -> Tensor:
        """Imagine each held-out clip from its first frame and class, with the noise of a number."""
        real, label = self._clips(batch)
        return self._imagine(real[:, 0], numbers, label)

    def scores(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Also how close they come to what really happened, without the frame that was given."""
        close = reconstruction_scores(fake[:, 1:], real[:, 1:], real[:, 0])
        return super().scores(real, fake) | close

    def samples(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Panels: the picture, what really happened, and what was imagined."""
        return {"source": real[:, 0], "driving": real, "result": fake}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Videos by their indices, or of pictures, `source` (B, 3, H, W), with their `key`."""
        if "source" not in batch:
            return super().predict_step(batch, batch_idx)
        network = cast(Generator, self.averaged)
        wanted = self.prediction.label
        labels = range(len(network.classes)) if wanted is None else [network.class_number(wanted)]
        keys, videos = [], []
        first = (batch_idx * self.trainer.world_size + self.global_rank) * len(batch["source"])
        for number, (picture, key) in enumerate(zip(batch["source"], batch["key"], strict=True)):
            for label in labels:
                keys.append(f"{key}_{network.classes[label]}")
                videos.append(
                    self._imagine(
                        picture[None], [first + number], torch.tensor([label], device=self.device)
                    )
                )
        return {"key": keys, "video": torch.cat(videos)}

    @torch.no_grad()
    def _imagine(self, image: Tensor, numbers: Sequence[int], label: Tensor) -> Tensor:
        network = cast(Generator, self.averaged)
        size, seed = [1, network.motion_noise], self.prediction.seed
        z = torch.stack([noise(seed, MOTION, number, size) for number in numbers])
        with torch.autocast(self.device.type, enabled=False):
            return network(image.float(), z.to(image.device), label)

    def _clips(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if "label" not in batch:
            raise ValueError(
                "ImaGINator learns from clips with a class each, `label`: use a data module that "
                "knows it, such as data_modules.mug.MUG, or Puppets with `motions`"
            )
        video = batch["video"]
        if video.shape[1] != self.frames:
            size = video.shape[-1]
            raise ValueError(
                f"clips have {video.shape[1]} frames: at {size} px ImaGINator makes {self.frames}; "
                f"set frames and eval_frames of the data to {self.frames}"
            )
        return video, batch["label"]
