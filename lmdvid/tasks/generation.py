"""What every task shares that makes videos from noise: its scores, samples and predictions."""

from collections.abc import Sequence, Sized
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lmdvid.generate import Plan, VideoGenerator, generate
from lmdvid.metrics.frechet import FrechetDistance
from lmdvid.networks.features import EfficientNetClips
from lmdvid.tasks.adversarial import AdversarialTask, Batch, PredictionError
from lmdvid.tasks.nonfinite import Policy


class GenerationTask(AdversarialTask):
    """An `AdversarialTask` whose generator is a `VideoGenerator`.

    A task defines `generator_step`; how the network is validated, tested and used is here.
    `compared` says which kind of pair fakes and reals are, see `StoreScores`.

    Args:
        generator: A `VideoGenerator`; see `AdversarialTask`.
        discriminator: See `AdversarialTask`.
        lr: See `AdversarialTask`.
        betas: See `AdversarialTask`.
        generator_every: See `AdversarialTask`.
        discriminator_every: See `AdversarialTask`.
        adversarial: See `AdversarialTask`.
        r1: See `AdversarialTask`.
        ema: See `AdversarialTask`.
        frames: Frames T of a clip in training.
        rows: Appearances in the sample video.
        columns: Motions in it.
        prediction: What `lightning predict` makes; the data module's `generate` says how many.
        discriminator_first: See `AdversarialTask`.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.

    Raises:
        ValueError: If the adversarial weight is not above 0.
    """

    compared: Literal["noise", "own"] = "noise"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        lr: float,
        betas: tuple[float, float],
        generator_every: int,
        discriminator_every: int,
        adversarial: float,
        r1: float,
        ema: float,
        frames: int,
        rows: int,
        columns: int,
        prediction: Plan | None,
        discriminator_first: bool = False,
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
    ) -> None:
        if adversarial <= 0:
            raise ValueError(f"adversarial={adversarial}: nothing else trains this; choose above 0")
        super().__init__(
            generator,
            discriminator,
            lr=lr,
            betas=betas,
            generator_every=generator_every,
            discriminator_every=discriminator_every,
            adversarial=adversarial,
            r1=r1,
            ema=ema,
            discriminator_first=discriminator_first,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        self.frames = frames
        self.rows = rows
        self.columns = columns
        self.prediction = prediction or Plan(frames=frames)
        self.features: EfficientNetClips | None = None
        self.distance: FrechetDistance | None = None

    @property
    def averaged(self) -> VideoGenerator:
        """The network that is shown."""
        return cast(VideoGenerator, self.generator_ema.network)

    def draw_noise(self, videos: int) -> tuple[Tensor, Tensor]:
        """Fresh noise of appearance (B, Z) and motion (B, steps, M), for training."""
        network = self.averaged
        z_a = torch.randn(videos, network.appearance_noise, device=self.device)
        steps = network.motion_steps(self.frames)
        return z_a, torch.randn(videos, steps, network.motion_noise, device=self.device)

    def setup(self, stage: str) -> None:
        """Refuse a precision that cannot work; load what scores."""
        super().setup(stage)
        if stage in ("fit", "validate"):
            self.features = self.features or EfficientNetClips().to(self.device)
            # A new one for each run, whose held-out clips are the same every time.
            self.distance = FrechetDistance(self.features.dim, keep_real=True).to(self.device)

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
                f"{type(self).__name__} makes videos from noise and animates no pairs: say how "
                "many, such as --data.init_args.generate 16"
            )
        indices = batch["index"].tolist()
        videos = generate(self.averaged, self.prediction, indices)
        return {"key": [f"{index:06d}" for index in indices], "video": videos}

    def on_validation_epoch_start(self) -> None:
        """Find out whether the held-out clips have been embedded before, and are enough."""
        self._embed_real = self.distance is not None and self.distance.real_count == 0
        self._seen = 0
        loader = self.trainer.val_dataloaders
        dataset = getattr(loader, "dataset", None)
        batches = sum(self.trainer.num_val_batches) * self.trainer.world_size
        most = batches * (getattr(loader, "batch_size", None) or 1)
        self._enough = not isinstance(dataset, Sized) or min(len(dataset), most) > 1
        if not self._enough and not self.trainer.sanity_checking:
            # Hours may have gone into training until now, and the other scores need no more.
            rank_zero_warn(
                "validation sees one clip, of which there is no Fréchet distance: hold more out, "
                "or raise data.init_args.eval_clips or trainer.limit_val_batches"
            )

    def on_test_epoch_start(self) -> None:
        """Begin to count."""
        self._seen = 0

    def fakes(self, batch: Batch, numbers: Sequence[int]) -> Tensor:
        """The videos of B numbers, which stand against a batch's B held-out clips.

        Returns:
            (B, T, 3, H, W) in [-1, 1].
        """
        return generate(self.averaged, Plan(frames=self.frames), numbers)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> dict[str, Any] | None:
        """Log how much as many fakes as reals move and, in validation, their Fréchet distance.

        Its name says what it is: EfficientNet-Lite0's features, as many frames as in training. It
        is no FVD, and depends on the number of clips, which is logged.
        """
        if self.trainer.sanity_checking:
            return None
        real = batch["video"]
        # As clips are dealt to processes: the same videos on any number of them, each once.
        places = range(self._seen, self._seen + len(real))
        self._seen += len(real)
        world = self.trainer.world_size
        fake = self.fakes(batch, [place * world + self.global_rank for place in places])
        if stage == "val" and self._enough:
            self._embed(real, fake)
        self.log_dict(
            {f"{stage}/{name}": value for name, value in self.scores(real, fake).items()},
            batch_size=len(real) * self.trainer.world_size,  # a multiple, see `AnimationTask`
            on_epoch=True,
            sync_dist=True,
        )
        self.log(f"{stage}/clips", float(len(real)), reduce_fx="sum", on_epoch=True, sync_dist=True)
        shown = self.samples(real, fake) if batch_idx == 0 and self.global_rank == 0 else {}
        return shown | {"compared": {self.compared: (fake, real)}}

    def _embed(self, real: Tensor, fake: Tensor) -> None:
        if self.features is None or self.distance is None:
            raise RuntimeError("setup() has not run")
        if self._embed_real:
            self.distance.update(self.features(real), real=True)
        self.distance.update(self.features(fake), real=False)
        self.log(f"val/fd_effnetlite0_{self.frames}f", self.distance, on_epoch=True)

    def scores(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Means over a batch that say how both move: of |change between two frames|."""
        return {
            "motion": (fake[:, 1:] - fake[:, :-1]).abs().mean(),
            "real_motion": (real[:, 1:] - real[:, :-1]).abs().mean(),
        }

    def samples(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Panels of a grid of videos: appearances as rows, motions as columns."""
        network = self.averaged
        random = torch.Generator().manual_seed(0)
        z_a = torch.randn(self.rows, network.appearance_noise, generator=random)
        steps = network.motion_steps(self.frames)
        z_m = torch.randn(self.columns, steps, network.motion_noise, generator=random)
        panels = {}
        with torch.no_grad():
            for column, motion in enumerate(z_m):
                codes = network.sample_codes(
                    z_a.to(self.device), motion.expand(self.rows, -1, -1).to(self.device)
                )
                video = network.render(codes, stop=self.frames)
                panels[f"motion {column}"] = video.float().clamp(-1, 1)
        return panels
