"""What every task shares that moves pictures with clips: its perceptual loss and its scores."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from lmdvid import losses
from lmdvid.animate import AnimationNetwork
from lmdvid.jobs import animate_pairs, read_pairs
from lmdvid.losses import PerceptualLoss
from lmdvid.networks import Mode
from lmdvid.networks.features import perceptual_features
from lmdvid.ops.precision import exact
from lmdvid.tasks.adversarial import AdversarialTask, Batch, PredictionError
from lmdvid.tasks.nonfinite import Policy


class AnimationTask(AdversarialTask):
    """An `AdversarialTask` whose generator is an animation network.

    A task defines `generator_step`; how the network is validated, tested and used is here.

    Args:
        generator: An `AnimationNetwork`; see `AdversarialTask`.
        discriminator: See `AdversarialTask`.
        lr: See `AdversarialTask`.
        betas: See `AdversarialTask`.
        generator_every: See `AdversarialTask`.
        discriminator_every: See `AdversarialTask`.
        adversarial: See `AdversarialTask`.
        r1: See `AdversarialTask`.
        ema: See `AdversarialTask`.
        perceptual: Network of the perceptual loss.
        vgg19_weights: Path of the published VGG-19 file; without it, it is looked for in the
            folder that the environment variable LMDVID_WEIGHTS names.
        perceptual_weight: Weight of each term of the perceptual loss.
        perceptual_layers: Feature maps that it compares, counted from the shallow end.
        perceptual_scales: Sizes at which it compares, as shares of the picture's.
        nonfinite: See `AdversarialTask`.
        nonfinite_limit: See `AdversarialTask`.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        lr: float,
        betas: tuple[float, float],
        generator_every: int,
        discriminator_every: int,
        adversarial: float,
        r1: float,
        ema: float,
        perceptual: Literal["vgg19", "efficientnet", "none"],
        vgg19_weights: str | None,
        perceptual_weight: float,
        perceptual_layers: int,
        perceptual_scales: Sequence[float],
        nonfinite: Policy = "stop",
        nonfinite_limit: int = 10,
    ) -> None:
        if perceptual not in ("vgg19", "efficientnet", "none"):  # a file may give null
            raise ValueError(f"perceptual={perceptual}: choose vgg19, efficientnet or none")
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
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        self._perceptual_features = (perceptual, vgg19_weights, perceptual_layers)
        self._perceptual_terms = (perceptual_scales, perceptual_weight)
        self.perceptual: PerceptualLoss | None = None
        self.mode: Mode = "absolute"

    def setup(self, stage: str) -> None:
        """Refuse a precision that cannot work; load what only training needs."""
        super().setup(stage)
        if stage == "fit" and self.perceptual is None:
            features = perceptual_features(*self._perceptual_features)
            if features is not None:
                self.perceptual = PerceptualLoss(features, *self._perceptual_terms).to(self.device)

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """Move pictures by clips with the averaged generator, in the task's `mode`.

        Args:
            source: (B, 3, H, W) in [-1, 1].
            driving: (B, T, 3, H, W) in [-1, 1].

        Returns:
            (B, T, 3, H, W) clamped to [-1, 1].
        """
        return self._show(source, driving, same=False)

    def _show(self, source: Tensor, driving: Tensor, same: bool) -> Tensor:
        network = cast(AnimationNetwork, self.generator_ema.network)
        videos = []
        for picture, clip in zip(source, driving, strict=True):
            encoded = network.encode_source(picture[None])
            # A few frames at a time, so that a whole clip needs no more memory than a short one.
            parts = [self.render(network, encoded, frames, same) for frames in clip.split(8)]
            videos.append(torch.cat(parts))
        return torch.stack(videos).float().clamp(-1, 1)

    def render(self, network: Any, source: Any, frames: Tensor, same: bool) -> Tensor:
        """Show a source in the poses of frames (T, 3, H, W).

        Args:
            network: The averaged generator.
            source: What it made of the picture.
            frames: The driving frames.
            same: Whether they are of the source's own clip, so that nothing but the pose differs.
        """
        return network.render(source, network.encode_motion(frames), None, self.mode)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Score held-out clips; return the panels of a sample video, and what protocols compare."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As in validation."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Animate pairs of a picture and a driving clip, or the files of a table of `pairs`."""
        if "pairs" in batch:
            self._animate_files(**batch)
            return {"key": [], "video": []}
        if "source" not in batch:
            raise PredictionError(
                f"{type(self).__name__} animates pairs and makes no videos from noise: leave "
                "data.init_args.generate out"
            )
        return {"key": batch["key"], "video": self(batch["source"], batch["driving"])}

    def _animate_files(self, pairs: str, output: str, **options: Any) -> None:
        """Do what `lmdvid animate --pairs` does, in the same processes, beside this one."""
        checkpoint = self.trainer.ckpt_path
        if not checkpoint:
            raise PredictionError("which network animates the pairs? Give --ckpt_path")
        with _ended_by_sigterm():
            summary = animate_pairs(
                read_pairs(pairs),
                checkpoint,
                output,
                device=str(self.device),
                # Two bars would draw over each other, and the trainer's counts one batch.
                progress=self.trainer.is_global_zero and self.trainer.progress_bar_callback is None,
                **options,
            )
        if self.trainer.is_global_zero:
            print(summary)
        if summary.failed:
            raise PredictionError("\n  ".join(["some pairs have failed", *summary.failures()]))

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Any]:
        """Rebuild each clip from its first frame; where another drives it, animate it so, too.

        `compared` of what is returned has the results by whose motion drives them, see
        `lmdvid.callbacks.StoreScores`. The source frame itself is left out of the scores (not out
        of the `cross_` ones, whose frames are all new). `psnr` is that of each clip's mean squared
        error, averaged over clips; `copy_psnr` is what repeating the source would score.
        """
        video = batch["video"]
        source = video[:, 0]
        result = self._show(source, video, same=True)
        # A clip of one frame has nothing but its source: it counts for nothing.
        new = slice(min(1, video.shape[1] - 1), None)
        counts = int(video.shape[1] > 1)
        scores = reconstruction_scores(result[:, new], video[:, new], source)
        self._log_scores(f"{stage}/", scores, batch, counts)
        panels = {"source": source, "driving": video, "result": result}
        compared = {"own": (result, video)}
        if "cross_driving" in batch:
            driving = batch["cross_driving"]
            result = self(source, driving)
            panels = {"source": source, "driving": driving, "result": result}
            compared["other"] = (result, video)
        if "cross_truth" in batch:
            panels["truth"] = batch["cross_truth"]
            cross = reconstruction_scores(result, panels["truth"], source)
            self._log_scores(f"{stage}/cross_", cross, batch)
        return panels | {"compared": compared}

    def _log_scores(
        self, prefix: str, scores: dict[str, Tensor], batch: Batch, counts: int = 1
    ) -> None:
        self.log_dict(
            {f"{prefix}{name}": value for name, value in scores.items()},
            # Lightning 2.6 averages these over processes as whole numbers, rounding down: so that
            # nothing is lost where shares are uneven, a multiple of their number.
            batch_size=counts * len(batch["video"]) * self.trainer.world_size,
            on_epoch=True,
            sync_dist=True,
        )


def reconstruction_scores(result: Tensor, truth: Tensor, source: Tensor) -> dict[str, Tensor]:
    """How close videos (B, T, 3, H, W) come to the truth, beside what repeating `source` scores.

    `l1` on a scale of [0, 1], `psnr` of each clip's mean squared error, `ssim` of frames.
    """

    def psnr(video: Tensor) -> Tensor:
        return peak_signal_noise_ratio(
            video, truth, data_range=2.0, dim=(1, 2, 3, 4), reduction="elementwise_mean"
        )

    # SSIM's constants are for pixels from 0 on; on [-1, 1] it comes out lower. It takes many
    # times the memory of the frames: of long clips, a part at a time.
    made, true = ((video.flatten(0, 1) + 1) / 2 for video in (result, truth))
    with exact(made.device):  # autocast would blur in bfloat16
        parts = [
            structural_similarity_index_measure(a, b, data_range=1.0, reduction="sum")
            for a, b in zip(made.split(64), true.split(64), strict=True)
        ]
    ssim = torch.stack(cast(list[Tensor], parts)).sum() / len(made)
    return {
        # On a scale of [0, 1], as LIA reports it.
        "l1": 0.5 * losses.l1(result, truth),
        "psnr": psnr(result),
        "ssim": ssim,
        "copy_psnr": psnr(source[:, None].expand_as(truth)),
    }


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lightning only notes the signal and waits for the end of the batch, here of a whole table."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
