"""What a network does along its directions, and what it makes of data whose truth is known."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmdvid.generate import Plan, VideoGenerator, sample_codes, stack_codes
from lmdvid.interpret import InterpretationError
from lmdvid.interpret import ground_truth as truth
from lmdvid.interpret.flow import (
    REGION_NAMES,
    Motion,
    Regions,
    motion_by_angle,
    motion_by_place,
    opposition,
    optical_flow,
    rose,
)
from lmdvid.interpret.statistics import MagnitudeStatistics
from lmdvid.manipulate import Manipulator
from lmdvid.ops.precision import exact
from lmdvid.video import to_uint8

Batches = Iterable[Mapping[str, Any]]
Flow = Callable[[int, "Sweeps"], tuple[np.ndarray, np.ndarray]]
"""Flow fields (K, T - 1, H, W, 2) of a direction's sweeps, there and the opposite way."""

CHUNK = 16  # frames at once
_NAMED_BY_FACTOR = 0.3  # R^2 from which a factor gives a direction its name
_NAMED_BY_FLOW = 0.5  # share of the flow from which a region does
_STILL = 0.002  # heights of a frame per step below which a direction is said to stand still


@dataclass
class Observed:
    """What a network made of clips.

    Attributes:
        alpha: (T, N) magnitudes of each clip.
        appearance: (T, D) codes w_0 of each clip's frames.
        pose: (T, P) known poses of each clip; empty where none are known.
        pictures: (K, 3, size, size), first frames of the first clips.
        same_pose: Magnitudes (n, N) of two identities in the same poses; empty where none are.
        transfer: PSNR in dB of each clip's cross-identity animation, and of its source standing
            still; empty where the truth is not known.
    """

    alpha: list[np.ndarray] = field(default_factory=list)
    appearance: list[np.ndarray] = field(default_factory=list)
    pose: list[np.ndarray] = field(default_factory=list)
    pictures: Tensor = field(default_factory=lambda: torch.empty(0))
    same_pose: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    transfer: list[tuple[float, float]] = field(default_factory=list)

    def rotated(self, rotation: np.ndarray) -> "Observed":
        """The same in coordinates alpha Q."""
        return replace(
            self,
            alpha=[a @ rotation for a in self.alpha],
            same_pose=[(a @ rotation, b @ rotation) for a, b in self.same_pose],
        )


def observe(
    manipulator: Manipulator,
    batches: Batches,
    frames: int | None = None,
    pictures: int = 12,
    transfer: bool = True,
) -> Observed:
    """Encode clips, and animate across identities where the truth is known.

    Args:
        manipulator: The network.
        batches: With `video` (B, T, 3, size, size) in [-1, 1], and, where known, `pose` (B, T, P),
            `cross_driving` and `cross_truth`, see `data_modules.puppets.Puppets`.
        frames: Stop after so many.
        pictures: K first frames to keep.
        transfer: Whether to animate.

    Raises:
        InterpretationError: If there is no clip.
    """
    network, found, kept, seen = manipulator.network, Observed(), [], 0
    for batch in batches:
        for b, video in enumerate(batch["video"]):
            code, alpha = _encode(manipulator, video)
            found.alpha.append(alpha)
            found.appearance.append(code)
            if "pose" in batch:
                found.pose.append(batch["pose"][b].double().cpu().numpy())
            if len(kept) < pictures:
                kept.append(video[0])
            seen += len(video)
            if not transfer or "cross_truth" not in batch:
                continue
            driving, drawn = batch["cross_driving"][b], batch["cross_truth"][b]
            codes, others = _encode(manipulator, driving)[1], _encode(manipulator, drawn)[1]
            found.same_pose.append((codes, others))
            with exact(manipulator.device):
                source = network.encode_source(video[:1].to(manipulator.device))
                made = [
                    network.render(source, part.to(source.codes), None, "absolute").clamp(-1, 1)
                    for part in torch.from_numpy(codes).split(CHUNK)
                ]
            made = torch.cat(made).float().cpu()
            found.transfer.append((psnr(made, drawn), psnr(video[:1].expand_as(drawn), drawn)))
        if frames is not None and seen >= frames:
            break
    if not seen:
        raise InterpretationError("the data have no clip to look at")
    found.pictures = torch.stack(kept).cpu()
    return found


def psnr(made: Tensor, drawn: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    error = (made.double() - drawn.double().cpu()).square().mean().clamp(min=1e-12)
    return float(10 * torch.log10(4 / error))


def _encode(manipulator: Manipulator, frames: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Appearance codes (T, D) and magnitudes (T, N) of frames."""
    codes, alphas = [], []
    with exact(manipulator.device):
        for part in frames.split(CHUNK):
            source = manipulator.network.encode_source(part.to(manipulator.device))
            codes.append(source.appearance.double().cpu().numpy())
            alphas.append(source.codes.double().cpu().numpy())
    return np.concatenate(codes), np.concatenate(alphas)


@dataclass(frozen=True)
class Sweeps:
    """Videos of one direction alone, uint8 (K, T, H, W, 3): alpha growing, and falling."""

    positive: np.ndarray
    negative: np.ndarray


def picture_sweeps(
    manipulator: Manipulator, pictures: Tensor, direction: int, steps: int = 4
) -> Sweeps:
    """Pictures (K, 3, size, size) moved along one direction, all else being as it is.

    The magnitude goes in equal steps from its median to its 99th percentile, and to its first.
    """
    low, high = manipulator.reach(direction)
    middle = manipulator.known[direction].middle if manipulator.known else 0.0
    with exact(manipulator.device):
        own = manipulator.network.encode_source(pictures.to(manipulator.device)).codes.cpu()
    videos = []
    for end in (high, low):
        path = middle + np.linspace(0, end, steps + 1)
        made = [
            manipulator.sweep(picture, direction, (path - start).tolist())
            for picture, start in zip(pictures, own[:, direction].tolist(), strict=True)
        ]
        videos.append(to_uint8(torch.stack(made).cpu()).numpy())
    return Sweeps(*videos)


def activated(codes: Any, direction: int, sign: float = 1.0) -> Any:
    """Codes of videos from noise with the magnitudes along one direction alone."""
    alpha = torch.zeros_like(codes.alpha)
    alpha[..., direction] = sign * codes.alpha[..., direction]
    return replace(codes, alpha=alpha)


def walk_sweeps(network: VideoGenerator, codes: Any, direction: int) -> Sweeps:
    """Videos from noise that move along one direction alone, by their own magnitudes and -1 x."""
    with exact(codes.appearance.device):
        made = [
            to_uint8(network.render(activated(codes, direction, sign)).clamp(-1, 1).cpu()).numpy()
            for sign in (1.0, -1.0)
        ]
    return Sweeps(*made)


def walks(network: VideoGenerator, videos: int, frames: int, seed: int) -> Any:
    """Codes of videos from noise, the first `videos` of `lmdvid generate --seed`."""
    plan = Plan(frames=frames, seed=seed)
    return stack_codes([sample_codes(network, plan, index) for index in range(videos)])


@dataclass(frozen=True)
class DirectionMotion:
    """Where one direction moves pictures to.

    Attributes:
        positive: Motion by angle while its magnitude grows.
        negative: While it falls.
        opposition: See `flow.opposition`.
        rose: Share of the motion by angle, while it grows.
        mean_flow: (H, W, 2) mean over videos and steps, while it grows.
        length: Mean length of the vectors in pixels.
        places: Motion inside of masks by their names, while it grows.
    """

    positive: Motion
    negative: Motion
    opposition: float | None
    rose: np.ndarray
    mean_flow: np.ndarray
    length: float
    places: Mapping[str, tuple[float, float]]


def dis_flow(direction: int, sweeps: Sweeps) -> tuple[np.ndarray, np.ndarray]:
    """`optical_flow` of every video."""
    there, back = (
        np.stack([optical_flow(video) for video in videos])
        for videos in (sweeps.positive, sweeps.negative)
    )
    return there, back


def direction_motion(
    direction: int,
    sweeps: Sweeps,
    flow: Flow = dis_flow,
    threshold: float = 0.1,
    regions: Regions = "axes",
    masks: Mapping[str, np.ndarray] | None = None,
) -> DirectionMotion:
    """Measure where sweeps of a direction move to.

    Args:
        direction: Its number, for `flow`.
        sweeps: Its videos.
        flow: Who computes flow.
        threshold: See `motion_by_angle`.
        regions: See `motion_by_angle`.
        masks: (H, W) by name, see `motion_by_place`.
    """
    there, back = flow(direction, sweeps)
    positive, negative = (motion_by_angle(f, threshold, regions) for f in (there, back))
    places = {}
    if masks:
        inside = motion_by_place(there, np.stack(list(masks.values())), threshold)
        pairs = zip(inside.phi.tolist(), inside.share.tolist(), strict=True)
        places = dict(zip(masks, pairs, strict=True))
    return DirectionMotion(
        positive,
        negative,
        opposition(positive, negative),
        rose(there, threshold=threshold),
        there.mean(axis=tuple(range(there.ndim - 3))),
        float(np.linalg.norm(there, axis=-1).mean()),
        places,
    )


def picture_jacobian(manipulator: Manipulator, pictures: Tensor, step: float) -> np.ndarray:
    """How pictures change along every direction: finite differences (K 3 32 32, N)."""
    columns = []
    for direction in range(manipulator.count):
        deltas = torch.zeros(len(pictures), manipulator.count)
        deltas[:, direction] = step
        change = manipulator.move(pictures, deltas) - manipulator.move(pictures, -deltas)
        small = F.adaptive_avg_pool2d(change, 32)
        columns.append((small / (2 * step)).flatten().double().cpu().numpy())
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Scores:
    """How well single directions and single factors belong together.

    Attributes:
        r2: (N, K) on held-out clips, see `ground_truth.r2_matrix`.
        dci: See `ground_truth.Disentanglement`.
    """

    r2: np.ndarray
    dci: truth.Disentanglement

    @property
    def best(self) -> float:
        """Mean over factors of the largest R^2 by one direction."""
        return float(self.r2.max(0).mean())


@dataclass(frozen=True)
class GroundTruth:
    """Magnitudes against known poses.

    Attributes:
        factors: The poses that were compared with.
        scores: As trained, and after each rotation, by its name.
        rotations: (N, N) by name.
    """

    factors: truth.Factors
    scores: Mapping[str, Scores]
    rotations: Mapping[str, np.ndarray]


def compare_with_truth(
    fit: Observed, held: Observed, names: Sequence[str], jacobian: np.ndarray
) -> GroundTruth:
    """Regress poses on magnitudes, as trained and in rotated coordinates.

    Args:
        fit: Clips to learn regressions and rotations from.
        held: Other clips, to score them.
        names: Of the pose's coordinates.
        jacobian: Of `picture_jacobian`, whose varimax is the rotation that needs no truth.
    """
    alpha, pose = np.concatenate(fit.alpha), np.concatenate(fit.pose)
    held_alpha, held_pose = np.concatenate(held.alpha), np.concatenate(held.pose)
    factors = truth.distinct(np.concatenate([pose, held_pose]), names)
    pose, held_pose = pose[:, factors.columns], held_pose[:, factors.columns]
    rotations = {
        "as trained": np.eye(alpha.shape[1]),
        "varimax": truth.varimax(jacobian),
        "supervised": truth.supervised_rotation(alpha, pose),
    }
    scores = {
        name: Scores(
            truth.r2_matrix(held_alpha @ q, held_pose),
            truth.dci(alpha @ q, pose, held_alpha @ q, held_pose),
        )
        for name, q in rotations.items()
    }
    return GroundTruth(factors, scores, rotations)


def name_of(
    direction: int,
    motion: DirectionMotion | None,
    scores: Scores | None,
    factors: truth.Factors | None,
    regions: Regions,
) -> str:
    """Name a direction by what was measured of it: its factor, or else where it moves to."""
    if scores is not None and factors is not None:
        row = scores.r2[direction]
        best = int(row.argmax())
        if row[best] >= _NAMED_BY_FACTOR:
            return f"{factors.names[best].replace('_', ' ')}, R² {row[best]:.2f}"
    if motion is None:
        return ""
    most = int(motion.positive.share.argmax())
    if motion.length / motion.mean_flow.shape[0] < _STILL:
        return "hardly moves"
    if motion.positive.share[most] >= _NAMED_BY_FLOW:
        where = REGION_NAMES[regions][most]
        return f"moves {where}, {motion.positive.share[most]:.0%} of flow"
    return "moves in several ways"


def leakage(held: Observed, statistics: MagnitudeStatistics) -> dict[str, Any]:
    """How much identity is in the magnitudes and pose in the appearance code.

    Returns:
        `identity_in_alpha`, of all directions; `identity_in_each_direction`; `pose_in_appearance`.
        Empty where the truth is not known.
    """
    found: dict[str, Any] = {}
    if held.same_pose:
        one, other = (np.concatenate(part) for part in zip(*held.same_pose, strict=True))
        each = truth.same_pose_difference(one, other, statistics.std)
        weights = statistics.std**2 / max((statistics.std**2).sum(), 1e-12)
        found["identity_in_alpha"] = float((each * weights).sum())
        found["identity_in_each_direction"] = each
        found["pose_in_appearance"] = truth.within_identity_share(held.appearance)
    return found
