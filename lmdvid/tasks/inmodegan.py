"""How InMoDeGAN learns: its videos against real ones, frame by frame and at several speeds."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lmdvid.generate import Plan, VideoGenerator, generate
from lmdvid.metrics.frechet import FrechetDistance
from lmdvid.navigator import Orthogonal
from lmdvid.networks.features import EfficientNetClips
from lmdvid.networks.inmodegan import Discriminators, Generator, Noise, VideoKind
from lmdvid.tasks.adversarial import AdversarialTask, Batch, PredictionError
from lmdvid.tasks.nonfinite import Policy


class InMoDeGAN(AdversarialTask):
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
        if adversarial <= 0:
            raise ValueError(f"adversarial={adversarial}: nothing else trains this; choose above 0")
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
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        self.save_hyperparameters(ignore=["prediction"])
        # A quarter faster in bf16, on a CPU as well; no value changes. 3-D kernels gain nothing.
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.frames = frames
        self.rows = rows
        self.columns = columns
        self.prediction = prediction or Plan(frames=frames)
        self.features: EfficientNetClips | None = None
        self.distance: FrechetDistance | None = None

    def setup(self, stage: str) -> None:
        """Refuse a precision that cannot work; load what scores."""
        super().setup(stage)
        if stage in ("fit", "validate"):
            self.features = self.features or EfficientNetClips().to(self.device)
            # A new one for each run, whose held-out clips are the same every time.
            self.distance = FrechetDistance(self.features.dim, keep_real=True).to(self.device)

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Draw as many videos as there are real ones."""
        real = batch["video"]
        network = cast(Generator, self.generator)
        z_a = torch.randn(len(real), network.appearance_noise, device=real.device)
        z_m = torch.randn(len(real), self.frames - 1, network.motion_noise, device=real.device)
        codes = network.sample_codes(z_a, z_m)
        mean = codes.appearance.detach().mean(dim=0)
        network.centre.lerp_(self.trainer.strategy.reduce(mean, reduce_op="mean"), 0.005)
        return {}, network.render(codes), real

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any] | None:
        """Compare as many videos from noise with held-out ones; the first batch shows samples."""
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any] | None:
        """As in validation; the distances are those of the protocols that `StoreScores` names."""
        return self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Videos by their indices, `index` (B,)."""
        if "index" not in batch:
            raise PredictionError(
                "InMoDeGAN makes videos from noise and animates no pairs: say how many, such as "
                "--data.init_args.generate 16"
            )
        indices = batch["index"].tolist()
        videos = generate(
            cast(VideoGenerator, self.generator_ema.network), self.prediction, indices
        )
        return {"key": [f"{index:06d}" for index in indices], "video": videos}

    def on_validation_epoch_start(self) -> None:
        """Find out whether the held-out clips have been embedded before."""
        self._embed_real = self.distance is not None and self.distance.real_count == 0
        self._batch_size = 0

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> dict[str, Any] | None:
        """Log how much as many fakes as reals move and, in validation, their Fréchet distance.

        Its name says what it is: EfficientNet-Lite0's features, as many frames as in training. It
        is no FVD, and depends on the number of clips, which is logged.
        """
        if self.trainer.sanity_checking:
            return None
        real = batch["video"]
        self._batch_size = max(self._batch_size, len(real))  # the last batch may be smaller
        network = cast(VideoGenerator, self.generator_ema.network)
        first = (batch_idx * self.trainer.world_size + self.global_rank) * self._batch_size
        fake = generate(network, Plan(frames=self.frames), range(first, first + len(real)))
        if stage == "val":
            self._embed(real, fake)
        scores = {
            f"{stage}/motion": (fake[:, 1:] - fake[:, :-1]).abs().mean(),
            f"{stage}/real_motion": (real[:, 1:] - real[:, :-1]).abs().mean(),
        }
        # A multiple of the number of processes, see `AnimationTask`.
        weight = len(real) * self.trainer.world_size
        self.log_dict(scores, batch_size=weight, on_epoch=True, sync_dist=True)
        self.log(f"{stage}/clips", float(len(real)), reduce_fx="sum", on_epoch=True, sync_dist=True)
        panels = self._samples() if batch_idx == 0 and self.global_rank == 0 else {}
        return panels | {"compared": {"noise": (fake, real)}}

    def _embed(self, real: Tensor, fake: Tensor) -> None:
        if self.features is None or self.distance is None:
            raise RuntimeError("setup() has not run")
        if self._embed_real:
            self.distance.update(self.features(real), real=True)
        self.distance.update(self.features(fake), real=False)
        self.log(f"val/fd_effnetlite0_{self.frames}f", self.distance, on_epoch=True)

    def _samples(self) -> dict[str, Tensor]:
        """Panels of a grid of videos: appearances as rows, motions as columns."""
        network = cast(VideoGenerator, self.generator_ema.network)
        random = torch.Generator().manual_seed(0)
        z_a = torch.randn(self.rows, network.appearance_noise, generator=random)
        z_m = torch.randn(self.columns, self.frames - 1, network.motion_noise, generator=random)
        panels = {}
        with torch.no_grad():
            for column, motion in enumerate(z_m):
                codes = network.sample_codes(
                    z_a.to(self.device), motion.expand(self.rows, -1, -1).to(self.device)
                )
                panels[f"motion {column}"] = network.render(codes).float().clamp(-1, 1)
        return panels
