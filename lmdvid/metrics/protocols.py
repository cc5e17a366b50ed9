"""Protocols: what exactly a published number, or one of ours, compares.

The name of a score says nothing without them: features, which frames of which clips, how they are
resized, how many clips, which covariance. A result carries all of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any, Literal

from lmdvid.metrics.animation import Reduction
from lmdvid.metrics.detections import SCORES
from lmdvid.networks.features.efficientnet import EfficientNetClips, EfficientNetFrames
from lmdvid.networks.features.frozen import VideoFeatures
from lmdvid.networks.features.i3d import I3DClips, TorchScriptI3D
from lmdvid.networks.features.inception import InceptionFrames
from lmdvid.networks.features.resnext3d import ResNeXtClips

Window = Literal["random", "first", "centre", "spread"]
Side = Literal["real", "fake"]

NETWORKS: dict[str, type[VideoFeatures]] = {
    "efficientnet": EfficientNetClips,
    "efficientnet_frames": EfficientNetFrames,
    "i3d": I3DClips,
    "i3d_torchscript": TorchScriptI3D,
    "inception": InceptionFrames,
    "resnext": ResNeXtClips,
}
"""Networks by the names that protocols use, each made from the path of its weights or None."""


@dataclass(frozen=True)
class Protocol:
    """How a set of generated videos is scored.

    Attributes:
        name: also of its first score.
        about: in one line, where it comes from.
        features: what the two sets are compared in, one of `NETWORKS`; None compares no sets.
        frames: frames T of a clip.
        stride: distance between them; a clip needs T x stride frames, as StyleGAN-V asks.
        real_window: where in a real video they lie: at a `random` place drawn from `seed` and the
            video's name, at the `first` frames, in the `centre`, or `spread` over all of it.
        fake_window: the same for generated videos.
        limit: of each set the first so many videos that can be used, in the order of their names;
            None takes all.
        motion: which animations of a task it compares: driven by the source's `own` video, or by
            that of an `other` identity. What a folder holds is not checked.
        ddof: what covariances divide by, N - ddof.
        seed: of random places.
        pixels: pairs of videos are compared, averaged by video or by frame; None compares none.
        lpips: network of LPIPS between pairs; None leaves it out.
        detections: scores from detectors' outputs: `keypoints` (AKD, MKR), `identity` (AED, CSIM).
        split: which videos the real set should hold; not checked.
        codec: how generated videos should be written; not checked.
    """

    name: str
    about: str
    features: str | None = None
    frames: int = 16
    stride: int = 1
    real_window: Window = "random"
    fake_window: Window = "first"
    limit: int | None = None
    motion: Literal["own", "other"] = "own"
    ddof: int = 1
    seed: int = 0
    pixels: Reduction | None = None
    lpips: Literal["alex", "vgg"] | None = None
    detections: tuple[str, ...] = ()
    split: str = "as the paper of the data set says"
    codec: str = "the same for both sides"

    def indices(self, key: str, length: int, side: Side) -> list[int] | None:
        """Return the numbers of a video's frames to compare.

        Args:
            key: The video's name; decides where a random window lies.
            length: Its number of frames.
            side: "real" or "fake".

        Returns:
            T numbers, or None where the video is too short.
        """
        window = self.real_window if side == "real" else self.fake_window
        if window == "spread":
            places = range(self.frames)
            return [(2 * i + 1) * length // (2 * self.frames) for i in places] if length else None
        span = self.frames * self.stride
        if length < span:
            return None
        start = {
            "first": 0,
            "centre": length // 2 - span // 2,
            "random": _draw(f"{self.seed} {key}", length - span + 1),
        }[window]
        return list(range(start, start + span, self.stride))

    def scores(self, extrapolate: bool = False) -> dict[str, tuple[str, ...]]:
        """Return the names of its scores by what gives them, in a result's order.

        Args:
            extrapolate: The distance for infinitely many clips is estimated, too.

        Returns:
            For `sets`, `pixels`, `keypoints` and `identity`, as far as it uses them.
        """
        found: dict[str, tuple[str, ...]] = {}
        if self.features:
            found["sets"] = (self.name,)
            # All rows are kept, and compared, only where a limit bounds their number.
            if self.limit is not None and not NETWORKS[self.features].per_frame:
                found["sets"] += ("kvd", "precision", "recall")
            if extrapolate:
                found["sets"] += (f"{self.name}_extrapolated",)
        if self.pixels:
            found["pixels"] = ("l1", "psnr", "ssim", *(("lpips",) if self.lpips else ()))
        return found | {kind: SCORES[kind] for kind in self.detections}

    def describe(self) -> dict[str, Any]:
        """Return all of it as plain data, for a result.

        Its `split` and `codec` are those that it `asks_for`, not those of the videos compared.
        """
        found = json.loads(json.dumps(asdict(self)))
        return found | {"asks_for": {name: found.pop(name) for name in ("split", "codec")}}


def _draw(text: str, places: int) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8]) % places


_FVD = Protocol(
    name="fvd2048_16f",
    about="FVD of StyleGAN-V: 2048 clips of 16 consecutive frames, I3D logits",
    features="i3d",
    limit=2048,
    ddof=0,
    split="UCF-101: train and test; other sets: train",
    codec="frames as images, without loss",
)
_LONG = replace(_FVD, name="fvd2048_128f", about="as fvd2048_16f, of 128 frames", frames=128)
_CROSS = Protocol(
    name="cross_identity",
    about="another's motion: FID of frames against the real ones; CSIM with the source pictures",
    features="inception",
    real_window="spread",
    fake_window="spread",
    motion="other",
    detections=("identity",),
    split="test",
)

PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            name="fd_effnetlite0_16f",
            about="no FVD: as fvd2048_16f in features that are installed with lmdvid",
            features="efficientnet",
            limit=2048,
        ),
        _FVD,
        _LONG,
        replace(
            _FVD,
            name="fvd2048_128f_subsample8f",
            about="as fvd2048_16f, of every 8th of 128 frames",
            stride=8,
        ),
        replace(
            _FVD,
            name="fvd2048_16f_torchscript",
            about="fvd2048_16f with StyleGAN-V's own TorchScript file",
            features="i3d_torchscript",
        ),
        Protocol(
            name="video_fid_resnext",
            about="video-FID of G3AN, as the InMoDeGAN line reports it: 3-D ResNeXt-101",
            features="resnext",
            real_window="centre",
            fake_window="centre",
            split="train",
            codec="libx264 mp4; G3AN compares 5000 generated videos",
        ),
        Protocol(
            name="fid_frames",
            about="FID of 16 frames spread over each video; they are not independent",
            features="inception",
            real_window="spread",
            fake_window="spread",
        ),
        Protocol(
            name="fd_effnetlite0_frames",
            about="no FID: as fid_frames in features that are installed with lmdvid",
            features="efficientnet_frames",
            real_window="spread",
            fake_window="spread",
        ),
        Protocol(
            name="reconstruction",
            about="each video against the real one of its name; no network",
            pixels="video",
        ),
        Protocol(
            name="lia_reconstruction",
            about="LIA: L1 and LPIPS (alex), averaged by video",
            pixels="video",
            lpips="alex",
            split="test",
        ),
        Protocol(
            name="fomm_reconstruction",
            about="FOMM, MRAA: L1 averaged by frame; AKD, MKR, AED from detectors' outputs",
            pixels="frame",
            detections=("keypoints", "identity"),
            split="test",
            codec="png, without loss",
        ),
        _CROSS,
        replace(
            _CROSS,
            name="cross_identity_effnetlite0",
            about="no FID: as cross_identity in features that are installed with lmdvid",
            features="efficientnet_frames",
        ),
    )
}
"""Protocols by name."""


class ProtocolError(ValueError):
    """No such protocol, or results of which no two may be compared."""


def protocol(name: str) -> Protocol:
    """Return a protocol by its name.

    Raises:
        ProtocolError: There is none of that name.
    """
    if name not in PROTOCOLS:
        raise ProtocolError(f"no protocol {name}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Refuse to compare two results that differ in more than the generated videos.

    Args:
        a: A result of `lmdvid.evaluate.evaluate`, or its JSON.
        b: Another.

    Raises:
        ProtocolError: They differ in protocol, weights, detectors, real set or numbers, or in
            where the videos came from; says how.
    """
    differences = []
    for part in _SETTING:
        left, right = (_of_the_setting(part, side.get(part)) for side in (a, b))
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            differences += [
                f"{part}.{key}: {left.get(key)} and {right.get(key)}"
                for key in {**left, **right}
                if left.get(key) != right.get(key)
            ]
        elif left != right:
            differences.append(f"{part}: {left} and {right}")
    if differences:
        raise ProtocolError("results that must not be compared: " + "; ".join(differences))


_SETTING = (
    "protocol",
    "weights",
    "detectors",
    "counts",
    "real_content",
    "split",
    "codec",
    "size_given",
    "frames_given",
)


def beyond(
    scores: Mapping[str, float | None],
    above: Mapping[str, float] | None = None,
    below: Mapping[str, float] | None = None,
) -> list[str]:
    """Say which scores are beyond their limits; one that is missing is.

    Args:
        scores: By name.
        above: Highest values that are allowed.
        below: Lowest values that are allowed.

    Returns:
        A line for each.
    """
    lines = []
    for limits, kind in ((above or {}, "highest"), (below or {}, "lowest")):
        for name, limit in limits.items():
            if name not in scores:
                lines.append(f"there is no score {name}, only {', '.join(scores)}")
            elif (value := scores[name]) is None:
                lines.append(f"{name} is missing, the {kind} value allowed is {limit:g}")
            elif value > limit if kind == "highest" else value < limit:
                lines.append(f"{name} is {value:.6g}, the {kind} value allowed is {limit:g}")
    return lines


def _of_the_setting(part: str, value: Any) -> Any:
    """What may not differ: of detectors' files, not what is in that of the generated videos."""
    if part != "detectors" or value is None:
        return value
    found = {}
    for kind, about in value.items():
        if "fake" in about:
            real = {name: about["real"].get(name) for name in ("sha256", "detector")}
            about = {"real": real, "fake": about["fake"].get("detector")}
        found[kind] = about
    return found
