"""Scores of animations against the truth: pixels, perception, key points, identity."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lmdvid.metrics.samples import ExactMetric, TooFewError
from lmdvid.ops.precision import exact

Reduction = Literal["video", "frame"]


class ReconstructionScores(ExactMetric):
    """L1, PSNR, SSIM and perhaps LPIPS between videos and the truth, streaming.

    `l1` is on the scale of [0, 1]. `psnr` is that of each frame's mean squared error, at most
    100 dB. `ssim` is torchmetrics' (11 x 11 Gaussian of sigma 1.5, padded by reflection).

    Args:
        reduction: "video" averages over the frames of each video, then over videos (LIA's code);
            "frame" over all frames, so that long videos weigh more (FOMM's).
        lpips: From (B, 3, H, W) twice to (B,), for example `LPIPS`; None leaves it out.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: Unknown reduction; from `compute`, `TooFewError`: no video.
    """

    count: Tensor
    totals: Tensor

    def __init__(
        self,
        reduction: Reduction = "video",
        lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reduction not in ("video", "frame"):
            raise ValueError(f'reduction is "{reduction}"; possible are "video" and "frame"')
        self.reduction = reduction
        self._lpips = [lpips]  # in a list, so that it is no part of the metric's state
        self.names = ("l1", "psnr", "ssim", *(("lpips",) if lpips else ()))
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("totals", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add videos (B, T, 3, H, W), RGB in [-1, 1]; the prediction is clamped.

        Raises:
            ValueError: The shapes differ.
        """
        if prediction.shape != truth.shape or prediction.ndim != 5:
            raise ValueError(
                f"videos must be (B, T, 3, H, W) twice, not {tuple(prediction.shape)} and "
                f"{tuple(truth.shape)}"
            )
        for pair in zip(prediction, truth, strict=True):
            parts = zip(*(video.split(16) for video in pair), strict=True)  # of long videos, too
            self.add_video(torch.cat([self.frame_scores(*part) for part in parts]))

    def frame_scores(self, video: Tensor, truth: Tensor) -> Tensor:
        """Return the scores (T, len(names)) of frames (T, 3, H, W): a part of a long video."""
        with exact(video.device):  # autocast would blur in bfloat16
            return self._frame_scores(video.float().clamp(-1, 1), truth.float())

    def _frame_scores(self, video: Tensor, truth: Tensor) -> Tensor:
        gap = (video - truth) / 2
        # On [0, 1]: SSIM is not indifferent to a shift, and on [-1, 1] lower.
        ssim = structural_similarity_index_measure(
            video * 0.5 + 0.5, truth * 0.5 + 0.5, data_range=1.0, reduction="none"
        )
        assert isinstance(ssim, Tensor)
        error = gap.square().flatten(1).mean(1).clamp(min=1e-10)
        scores = [gap.abs().flatten(1).mean(1), -10 * error.log10(), ssim.view(-1)]
        if (lpips := self._lpips[0]) is not None:
            scores.append(lpips(video, truth))
        return torch.stack(scores, dim=1)

    def add_video(self, scores: Tensor) -> None:
        """Add the scores of all frames of one video, as `frame_scores` gives them."""
        scores = scores.to(self.totals.device).double()
        if self.reduction == "video":
            scores = scores.mean(0, keepdim=True)
        self.totals = self.totals + scores.sum(0)
        self.count = self.count + len(scores)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean scores by name, float64 scalars."""
        if self.count == 0:
            raise TooFewError("ReconstructionScores: no video was compared")
        return dict(zip(self.names, self.totals / self.count, strict=True))


class KeypointScores(ExactMetric):
    """AKD and MKR as the pose-evaluation code of FOMM and MRAA defines them.

    `akd`: mean over frames of the mean *absolute* difference of x and of y, in pixels (not the
    Euclidean distance), over the points that both have; frames without such points are passed
    over. `mkr`: mean over frames, with at least one point in the truth, of the share of those
    points that the prediction misses. `euclidean` is the mean Euclidean distance, which papers
    that say "distance" may mean.

    Raises:
        TooFewError: From `compute`: no frame has a point in the truth.
    """

    totals: Tensor
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("totals", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add frames.

        Args:
            prediction: (T, K, 2) x and y in pixels; a missing point is NaN, or (-1, -1).
            truth: (T, K, 2).

        Raises:
            ValueError: The shapes differ.
        """
        if prediction.shape != truth.shape or truth.ndim != 3 or truth.shape[2] != 2:
            raise ValueError(
                f"key points must be (T, K, 2) twice, not {tuple(prediction.shape)} and "
                f"{tuple(truth.shape)}"
            )
        prediction, truth = prediction.double(), truth.double()
        seen, true = _present(prediction), _present(truth)
        both = (seen & true).to(self.totals.device)
        gap = (prediction - truth).to(self.totals.device).nan_to_num()
        shared = both.sum(1)
        share = both / shared.clamp(min=1)[:, None]
        missed = ((true & ~seen).sum(1) / true.sum(1).clamp(min=1)).to(self.totals.device)
        distances = [(d * share).sum() for d in (gap.abs().mean(2), gap.norm(dim=2))]
        self.totals = self.totals + torch.stack([distances[0], missed.sum(), distances[1]])
        frames, with_truth = (shared > 0).sum(), true.any(1).sum().to(self.totals.device)
        self.counts = self.counts + torch.stack([frames, with_truth, frames])

    def true_frames(self) -> int:
        """Return the number of frames with a point in the truth."""
        return int(self.counts[1])

    def compute(self) -> dict[str, Tensor]:
        """Return `akd`, `mkr`, `euclidean`: float64 scalars, NaN where no frame counts."""
        if self.counts[1] == 0:
            raise TooFewError("KeypointScores: no frame has a key point in the truth")
        return dict(zip(("akd", "mkr", "euclidean"), self.totals / self.counts, strict=True))


class IdentityScores(ExactMetric):
    """AED and CSIM of identity embeddings.

    `aed`: mean over frames of the *sum of squared* differences, as the pose-evaluation code
    computes what it calls average Euclidean distance. `euclidean`: mean Euclidean distance.
    `csim`: mean cosine of the angle. Frames without a face on either side are left out of all
    three; `missed` is the share of the truth's faces that the prediction lacks.

    Raises:
        TooFewError: From `compute`: no frame has a face in the truth.
    """

    totals: Tensor
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("totals", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add frames.

        Args:
            prediction: (T, D) embeddings; a frame without a face is NaN.
            truth: (T, D).

        Raises:
            ValueError: The shapes differ.
        """
        if prediction.shape != truth.shape or truth.ndim != 2:
            raise ValueError(
                f"embeddings must be (T, D) twice, not {tuple(prediction.shape)} and "
                f"{tuple(truth.shape)}"
            )
        device = self.totals.device
        prediction, truth = prediction.to(device).double(), truth.to(device).double()
        seen, true = (~x.isnan().any(1) for x in (prediction, truth))
        a, b = (x[seen & true] for x in (prediction, truth))
        squares = (a - b).square().sum(1)
        cosine = torch.cosine_similarity(a, b, dim=1)
        missed = (true & ~seen).sum()
        sums = [squares.sum(), squares.sqrt().sum(), cosine.sum(), missed.double()]
        self.totals = self.totals + torch.stack(sums)
        both, all_true = torch.tensor(len(a), device=device), true.sum()
        self.counts = self.counts + torch.stack([both, both, both, all_true])

    def true_frames(self) -> int:
        """Return the number of frames with a face in the truth."""
        return int(self.counts[3])

    def compute(self) -> dict[str, Tensor]:
        """Return `aed`, `euclidean`, `csim`, `missed`: float64 scalars."""
        if self.counts[3] == 0:
            raise TooFewError("IdentityScores: no frame has a face in the truth")
        names = ("aed", "euclidean", "csim", "missed")
        return dict(zip(names, self.totals / self.counts, strict=True))


def _present(points: Tensor) -> Tensor:
    return ~(points.isnan().any(2) | (points == -1).all(2))


def pairs_of(
    prediction: Mapping[str, Tensor], truth: Mapping[str, Tensor], fill: bool = False
) -> list[tuple[str, Tensor, Tensor]]:
    """Join two detectors' outputs by the clips' names: every clip of the truth, frame by frame.

    Args:
        prediction: Arrays (T, ...) by clip.
        truth: The same for the real videos.
        fill: Frames at the end that one side lacks count as missing there, since a csv has no
            row for them.

    Raises:
        ValueError: A clip of the truth is missing, or has another number of frames.
    """
    if missing := sorted(set(truth) - set(prediction)):
        raise ValueError(
            f"{len(missing)} clips have no detections of the generated video, the first is "
            f"{missing[0]}; both files must name their clips alike"
        )
    joined = []
    for clip, true in sorted(truth.items()):
        found = prediction[clip]
        if len(found) != len(true) and not fill:
            raise ValueError(
                f"{clip} has {len(found)} frames of detections in the generated video and "
                f"{len(true)} in the real one"
            )
        frames = max(len(found), len(true))
        joined.append((clip, _filled(found, frames), _filled(true, frames)))
    return joined


def _filled(rows: Tensor, frames: int) -> Tensor:
    missing = rows.new_full((frames - len(rows), *rows.shape[1:]), float("nan"))
    return torch.cat([rows, missing])
