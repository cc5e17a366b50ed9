"""A protocol's scores of videos in memory, as a task makes them, batch by batch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from lmdvid.metrics.animation import IdentityScores, KeypointScores, ReconstructionScores
from lmdvid.metrics.detections import SCORES, Detector, load_detector
from lmdvid.metrics.protocols import NETWORKS, Protocol, Side
from lmdvid.metrics.samples import TooFewError
from lmdvid.metrics.sets import SetScores
from lmdvid.networks.features.frozen import VideoFeatures
from lmdvid.networks.features.lpips import LPIPS
from lmdvid.video import to_uint8


class BatchScores:
    """The scores of one protocol.

    In a process group every process brings its share, clip n of process r of w being clip
    n w + r of all, and all get the same result. Windows lie within the frames that are given.

    Args:
        by: The protocol.
        weights: File of its network, or a folder; None looks in LMDVID_WEIGHTS.
        device: Where networks run.
        detectors: Dotted paths of installed detectors by what they find, see `load_detector`.
            Scores that need others are None.
        networks: Those loaded before, by their names in `NETWORKS`; shared and added to.

    Raises:
        WeightsError: The network's file is missing or is another one.
        DetectionsError: There is no such detector.
    """

    def __init__(
        self,
        by: Protocol,
        weights: str | Path | None = None,
        device: torch.device | str = "cpu",
        detectors: Mapping[str, str] | None = None,
        networks: dict[str, VideoFeatures] | None = None,
    ) -> None:
        self.by = by
        self.weights: dict[str, str] = {}
        self.sets: SetScores | None = None
        self.pixels: ReconstructionScores | None = None
        networks = {} if networks is None else networks
        if by.features:
            if by.features not in networks:
                networks[by.features] = NETWORKS[by.features](weights).to(device)
            self.sets = SetScores(by, networks[by.features], device)
            self.weights[by.features] = networks[by.features].digest
        if by.pixels:
            lpips = LPIPS(by.lpips, weights).to(device) if by.lpips else None
            if lpips:
                self.weights[f"lpips_{by.lpips}"] = lpips.digest
            self.pixels = ReconstructionScores(by.pixels, lpips).to(device)
        kinds = {"keypoints": KeypointScores, "identity": IdentityScores}
        self.detectors: dict[str, dict[str, str]] = {}
        self._detected: dict[str, tuple[Detector, KeypointScores | IdentityScores]] = {}
        for kind in by.detections:
            if detectors and kind in detectors:
                detect, self.detectors[kind] = load_detector(detectors[kind])
                self._detected[kind] = detect, kinds[kind]().to(device)
        self.too_short: list[str] = []
        self._seen = 0

    def update(self, keys: Sequence[str], result: Tensor, real: Tensor, source: Tensor) -> None:
        """Add generated videos and the real ones they are compared with.

        Args:
            keys: Names of the B real videos.
            result: (B, T, 3, H, W), RGB in [-1, 1].
            real: (B, T', 3, H, W); T' = T where pixels or detections of pairs are compared.
            source: (B, 3, H, W) pictures that are animated: whom identities are compared with
                where another's motion drives.
        """
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if group else 0
        world = torch.distributed.get_world_size() if group else 1
        clips: dict[Side, list[Tensor]] = {"real": [], "fake": []}
        for key, made, true, picture in zip(keys, result, real, source, strict=True):
            place = self._seen * world + rank
            self._seen += 1
            if self.by.limit is not None and place >= self.by.limit:
                continue
            if self.sets:
                videos: dict[Side, Tensor] = {"real": true, "fake": made}
                for side, video in videos.items():
                    indices = self.by.indices(key, len(video), side)
                    if indices is None:
                        self.too_short.append(f"{side} {key}")
                    else:
                        clips[side].append(video[indices])
            if self.pixels:
                self.pixels.update(made[None], true[None])
            for detect, metric in self._detected.values():
                found = detect(to_uint8(made.cpu()))
                shown = picture[None] if self.by.motion == "other" else true
                known = detect(to_uint8(shown.cpu()))
                metric.update(found, known.expand_as(found) if len(known) == 1 else known)
        if self.sets:
            for side, chosen in clips.items():
                if chosen:
                    self.sets.update(torch.stack(chosen), real=side == "real")

    def compute(self) -> dict[str, Any]:
        """Return the result, in the form of `lmdvid.evaluate.evaluate`.

        Scores for which there are too few videos, or too little in them, are None; `missing` says
        why, by their names.
        """
        result: dict[str, Any] = {
            "scores": {},
            "protocol": self.by.describe(),
            "network": self.sets.describe() if self.sets else None,
            "weights": self.weights,
            "detectors": self.detectors,
            "counts": self.sets.counts() if self.sets else {},
            "bias": None,
            "missing": {},
        }
        for part, names in self.by.scores().items():
            scores: dict[str, float | None] = dict.fromkeys(names)
            try:
                scores |= self._compute(part, result)
            except TooFewError as error:  # the same in every process
                result["missing"] |= dict.fromkeys(names, str(error))
            result["scores"] |= {
                name: value if value is not None and math.isfinite(value) else None
                for name, value in scores.items()
            }
        return result

    def _compute(self, part: str, result: dict[str, Any]) -> dict[str, float]:
        counts = result["counts"]
        if part == "sets" and self.sets:
            scores = self.sets.compute()
            result["bias"] = self.sets.bias()
            return scores
        if part == "pixels" and self.pixels:
            values = self.pixels.compute()
            with self.pixels.sync_context():
                counted = "videos" if self.by.pixels == "video" else "frames"
                counts[counted] = int(self.pixels.count)
            return {name: value.item() for name, value in values.items()}
        if part in self._detected:
            metric = self._detected[part][1]
            values = metric.compute()
            with metric.sync_context():
                counts[f"{part}_frames"] = metric.true_frames()
            return {name: values[name].item() for name in SCORES[part]}
        return {}
