"""FOMM, the First Order Motion Model (Siarohin et al., NeurIPS 2019).

A picture moves with another video's keypoints. Around each keypoint the motion is known to first
order: where it went and its Jacobian. The networks' shapes, numbers and names of weights are those
of the published files; the code is our own.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.networks import Mode, check_images, check_mode
from lmdvid.networks.keypoints import (
    DenseMotion,
    Hourglass,
    Keypoints,
    Painter,
    Source,
    bumps,
    check_motion_size,
    completed,
    full_precision,
    heatmaps,
    local_motions,
    pose_distance,
    renamed,
    shrink_of,
    transfer,
    widened,
)
from lmdvid.ops.reference import identity_grid
from lmdvid.ops.shrink import shrink


class KeypointDetector(nn.Module):
    """Small picture to keypoints and their Jacobians: 14,215,368 parameters for 10 keypoints.

    Args:
        keypoints: K.
        blocks: Halvings of the hourglass.
        width: Factor on the channels.
        padding: Zeros around the features before the heads' 7x7 convolutions. With less than 3 the
            heatmaps leave out a rim.
        single_jacobian: One map of Jacobians for all keypoints, read at each one's place.
        temperature: Of the softmax over places.
    """

    def __init__(
        self,
        keypoints: int,
        blocks: int,
        width: float,
        padding: int,
        single_jacobian: bool,
        temperature: float,
    ) -> None:
        super().__init__()
        self.hourglass = Hourglass(3, 32, blocks, width)
        maps = 1 if single_jacobian else keypoints
        self.heatmaps = nn.Conv2d(self.hourglass.outputs, keypoints, 7, padding=padding)
        self.jacobians = nn.Conv2d(self.hourglass.outputs, 4 * maps, 7, padding=padding)
        nn.init.zeros_(self.jacobians.weight)
        with torch.no_grad():
            self.jacobians.bias.copy_(torch.eye(2).flatten().repeat(maps))  # pyright: ignore[reportOptionalMemberAccess]
        self.temperature = temperature

    def forward(self, small: Tensor) -> Keypoints:
        """(B, 3, h, w) in [0, 1] to K keypoints; in full precision, whatever autocast says."""
        with full_precision(small):
            features = self.hourglass(small)
            heat, position = heatmaps(self.heatmaps(features), self.temperature)
            jacobians = self.jacobians(features).unflatten(1, (-1, 4))
            jacobians = jacobians.expand(-1, heat.shape[1], -1, -1, -1)
            shape = torch.einsum("bkhw,bkjhw->bkj", heat, jacobians)
            return Keypoints(position, shape.unflatten(2, (2, 2)))


class Generator(nn.Module):
    """FOMM's keypoint detector and generator: 59,790,759 parameters together.

    Convention: as in `lmdvid.ops.warp`.

    Args:
        size: Side of the pictures in pixels.
        keypoints: Number K of keypoints.
        width: Factor on the channels of all networks.
        shrink: Keypoints and motion are found on pictures so many times smaller.
        blocks: Halvings in their hourglasses; size / shrink must be a multiple of 2^blocks.
        padding: See `KeypointDetector`; 0 or 3.
        single_jacobian: See `KeypointDetector`.
        temperature: See `KeypointDetector`.
        variance: Of the Gaussians that tell the motion network where keypoints are.
        align_corners: True makes no motion exact identity. Published weights run with False in
            today's PyTorch; they were trained with a version that had True.
    """

    modes: tuple[Mode, ...] = ("relative", "adaptive", "absolute")
    directions = 0

    def __init__(
        self,
        size: int = 256,
        keypoints: int = 10,
        width: float = 1.0,
        shrink: int = 4,
        blocks: int = 5,
        padding: int = 0,
        single_jacobian: bool = False,
        temperature: float = 0.1,
        variance: float = 0.01,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        check_motion_size(size, shrink, blocks, padding)
        self.config = {
            "size": size,
            "keypoints": keypoints,
            "width": width,
            "shrink": shrink,
            "blocks": blocks,
            "padding": padding,
            "single_jacobian": single_jacobian,
            "temperature": temperature,
            "variance": variance,
            "align_corners": align_corners,
        }
        self.size = size
        self.shrink = shrink
        self.variance = variance
        self.detector = KeypointDetector(
            keypoints, blocks, width, padding, single_jacobian, temperature
        )
        self.motion = DenseMotion(keypoints, blocks, width, align_corners)
        self.painter = Painter(width, align_corners, skips=False)

    def forward(self, source: Tensor, driving: Tensor) -> tuple[Tensor, Keypoints]:
        """Reconstruct the driving picture from the source picture, as in training.

        Args:
            source: (B, 3, size, size) in [-1, 1].
            driving: (B, 3, size, size) in [-1, 1], of the same clip when training.

        Returns:
            The pictures (B, 3, size, size) in [-1, 1], and the driving pictures' keypoints.
        """
        keypoints = self.detect(driving)
        return self.paint(self.encode_source(source), keypoints), keypoints

    def detect(self, images: Tensor) -> Keypoints:
        """Keypoints of pictures (B, 3, size, size) in [-1, 1]."""
        check_images(images, self.size)
        return self.detector(shrink((images + 1) / 2, self.shrink))

    def encode_source(self, image: Tensor) -> Source:
        """Compute once what every frame needs of the picture (B, 3, size, size) in [-1, 1]."""
        check_images(image, self.size)
        image = (image + 1) / 2
        small = shrink(image, self.shrink)
        return Source(self.detector(small).codes(), small, self.painter.features(image), image)

    def encode_motion(self, frames: Tensor) -> Tensor:
        """Keypoints of driving frames (T, 3, size, size) in [-1, 1] as codes (T, K, 6)."""
        return self.detect(frames).codes()

    def render(
        self,
        source: Source,
        codes: Tensor,
        reference: Tensor | None = None,
        mode: Mode = "relative",
        magnitude: float = 1.0,
    ) -> Tensor:
        """Show the source in other poses.

        Args:
            source: One picture, or as many as there are codes.
            codes: (T, K, 6) keypoints of driving frames.
            reference: (1, K, 6) keypoints of the driving frame in which the driver is posed as the
                source is; all modes but `absolute` need them.
            mode: `absolute` takes the driver's keypoints as they are, and with them its shape;
                `relative` moves the source's own by the change since the reference; `adaptive`
                also scales their paths by the ratio of the extents of both figures.
            magnitude: Factor on the change since the reference.

        Returns:
            (T, 3, size, size) in [-1, 1].

        Raises:
            ValueError: For an unknown mode, or one without its reference.
        """
        check_mode(mode, self.modes, reference)
        keypoints = Keypoints.of(codes)
        if reference is not None and mode != "absolute":
            keypoints = transfer(
                Keypoints.of(source.codes),
                keypoints,
                Keypoints.of(reference),
                mode == "adaptive",
                magnitude,
            )
        return self.paint(source.expand(len(codes)), keypoints)

    def pose_distance(self, source: Source, codes: Tensor) -> Tensor:
        """How unlike the source's pose the codes (T, K, 6) are, (T,)."""
        return pose_distance(Keypoints.of(source.codes), Keypoints.of(codes))

    def paint(self, source: Source, driving: Keypoints) -> Tensor:
        """The source with its keypoints moved to the driving ones, (B, 3, size, size)."""
        flow, occlusion = self.flow(source, driving)
        return 2 * self.painter(source, flow, occlusion) - 1

    def flow(self, source: Source, driving: Keypoints) -> tuple[Tensor, Tensor]:
        """Where places (B, 2, h, w) of the driving picture come from, and whether they are seen."""
        own = Keypoints.of(source.codes)
        size = source.small.shape[-2:]
        with full_precision(source.small):
            precision = torch.eye(2).to(own.position) / self.variance
            heat = bumps(driving.position, precision, size) - bumps(own.position, precision, size)
            motions = local_motions(driving, own, size, flips=False)
            still = identity_grid(*size, like=motions).expand(len(motions), 1, -1, -1, -1)
            motions = torch.cat([still, motions], dim=1)
        return self.motion(source.small, heat, motions)


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches, without padding: 2,758,849 parameters for three colours.

    Args:
        inputs: Channels: three colours, and perhaps maps of keypoints.
        width: Factor on the channels.
        spectral: Spectral normalisation of every convolution.
    """

    def __init__(self, inputs: int = 3, width: float = 1.0, spectral: bool = True) -> None:
        super().__init__()
        sizes = [inputs, *(widened(c, width) for c in (64, 128, 256, 512))]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.InstanceNorm2d(b, affine=True) for b in sizes[2:])
        self.score = nn.Conv2d(sizes[-1], 1, 1)
        if spectral:
            for conv in (*self.convs, self.score):
                nn.utils.parametrizations.spectral_norm(conv)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, inputs, H, W), colours in [-1, 1], to scores (B, 1, h, w) and blocks' features."""
        x = torch.cat([(images[:, :3] + 1) / 2, images[:, 3:]], dim=1)
        features = []
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = F.leaky_relu(self.norms[i - 1](x) if i else x, 0.2)
            if i < 3:
                x = F.avg_pool2d(x, 2)
            features.append(x)
        return self.score(x), features


PRESETS = {
    # What today's users run, and what the networks were probably trained with.
    "fomm": {"align_corners": False},
    "fomm-corners": {"align_corners": True},
}


def matches(keys: Iterable[str]) -> bool:
    """Whether keys are those of a file of FOMM's training program."""
    needed = {"generator.dense_motion_network.mask.weight", "kp_detector.kp.weight"}
    return needed <= set(keys)


def from_original(
    state: Mapping[str, Tensor], preset: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Translate the authors' weights.

    Args:
        state: Tensors of their file: `generator.…`, `kp_detector.…`, and what else is in it.
        preset: One of `PRESETS`, for what weights cannot tell; None is `fomm`.

    Returns:
        The `Generator`'s arguments, its state dict, and the keys that were left out.

    Raises:
        ValueError: If a key is unknown or missing, or a shape fits no configuration.
    """
    converted, rest = renamed(
        state,
        {
            "generator.dense_motion_network.": "motion.",
            "generator.": "painter.",
            "kp_detector.predictor.": "detector.hourglass.",
            "kp_detector.kp.": "detector.heatmaps.",
            "kp_detector.jacobian.": "detector.jacobians.",
            "kp_detector.": "detector.",
        },
    )
    shrink = shrink_of(v for k, v in state.items() if k.endswith("down.weight"))
    keypoints = len(state["kp_detector.kp.weight"])
    config = {
        "size": 64 * shrink,
        "keypoints": keypoints,
        "width": len(converted["painter.first.conv.weight"]) / 64,
        "shrink": shrink,
        "single_jacobian": len(converted.get("detector.jacobians.weight", ()))
        == 4
        != 4 * keypoints,
        **PRESETS[preset or "fomm"],
    }
    return config, completed(Generator, config, converted), rest
