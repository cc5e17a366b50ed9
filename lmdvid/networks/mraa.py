"""MRAA, Motion Representations for Articulated Animation (Siarohin et al., CVPR 2021).

A picture moves with another video's regions. Each region's place and axes are the mean and the
principal components of a heatmap; the background has a motion of its own; and a small network can
put the driver's poses into the source's shape (animation via disentanglement, AVD). Written from
the method's description; shapes, numbers and names of weights are those of the published files.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
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
    encoder,
    full_precision,
    heatmaps,
    inverse,
    local_motions,
    pose_distance,
    renamed,
    shrink_of,
    transfer,
    widened,
)
from lmdvid.ops.reference import identity_grid
from lmdvid.ops.shrink import shrink

Background = Literal["none", "shift", "affine", "perspective"]
_ROWS: dict[Background, int] = {"none": 0, "shift": 2, "affine": 6, "perspective": 8}


def principal_axes(covariance: Tensor) -> Tensor:
    """Axes of ellipses: U diag(sqrt(S)) of the singular value decompositions U S U^T.

    In closed form, with the signs that LAPACK gives U: the AVD network of published weights reads
    them. U is a reflection; its first column points left, but right where c > 0 and
    a b - c^2 > a^2 + c^2, for C = [[a, c], [c, b]]. Of a diagonal matrix both columns point right
    and up. Where both axes are equal no direction is distinguished: it then has gradient 0.

    Args:
        covariance: (..., 2, 2), symmetric and positive.

    Returns:
        (..., 2, 2), each axis a column, the longer one first; never shorter than 1e-4.
    """
    a, c, _, b = covariance.flatten(-2).unbind(-1)
    mean, x = (a + b) / 2, (a - b) / 2
    determinant = a * b - c * c
    squared = x * x + c * c
    distinct = squared > (torch.finfo(a.dtype).eps * mean).square()
    # Both branches of `where` have a gradient, and that of the one not taken must be finite, too.
    angle = torch.atan2(torch.where(distinct, c, 0.0), torch.where(distinct, x, 1.0)) / 2
    radius = torch.where(distinct, torch.where(distinct, squared, 1.0).sqrt(), 0.0)
    first = (mean + radius).clamp_min(1e-8)
    second = (determinant / first).clamp_min(1e-8)
    right = (c > 0) & (determinant > a * a + c * c)
    sign = torch.where(right | (c == 0), 1.0, -1.0)
    across, up = sign * angle.cos(), sign * angle.sin()
    turn = torch.where((c == 0) & (a >= b), -1.0, 1.0)
    u = torch.stack([across, turn * up, up, -turn * across], dim=-1).unflatten(-1, (2, 2))
    return u * torch.stack([first, second], dim=-1).sqrt()[..., None, :]


class RegionPredictor(nn.Module):
    """Small picture to regions: 14,146,728 parameters for 10.

    Args:
        regions: K.
        blocks: Halvings of the hourglass.
        width: Factor on the channels.
        padding: Zeros around the features before the 7x7 convolution that makes heatmaps. With less
            than 3 they leave out a rim.
        temperature: Of the softmax over places.
    """

    def __init__(
        self, regions: int, blocks: int, width: float, padding: int, temperature: float
    ) -> None:
        super().__init__()
        self.hourglass = Hourglass(3, 32, blocks, width)
        self.heatmaps = nn.Conv2d(self.hourglass.outputs, regions, 7, padding=padding)
        self.temperature = temperature

    def forward(self, small: Tensor) -> Keypoints:
        """(B, 3, h, w) in [0, 1] to K regions, whose shape times its transpose is the covariance.

        In full precision, whatever autocast says.
        """
        with full_precision(small):
            heat, position = heatmaps(self.heatmaps(self.hourglass(small)), self.temperature)
            offset = identity_grid(*heat.shape[-2:], like=heat) - position[..., None, None]
            covariance = torch.einsum("bkhw,bkihw,bkjhw->bkij", heat, offset, offset)
            return Keypoints(position, principal_axes(covariance))


class BackgroundPredictor(nn.Module):
    """Two pictures to the motion of what is behind: 6,282,438 parameters where it is affine.

    Args:
        blocks: Halvings.
        width: Factor on the channels.
        kind: `shift`, `affine` or `perspective`.
    """

    def __init__(self, blocks: int, width: float, kind: Background) -> None:
        super().__init__()
        self.encoder = encoder(6, 32, blocks, width)
        self.motion = nn.Linear(widened(min(1024, 32 * 2**blocks), width), _ROWS[kind])
        nn.init.zeros_(self.motion.weight)
        with torch.no_grad():
            still = torch.eye(3).flatten()[: _ROWS[kind]] if kind != "shift" else torch.zeros(2)
            self.motion.bias.copy_(still)
        self.kind: Background = kind

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """Two pictures (B, 3, H, W) in [0, 1] to matrices (B, 3, 3), driving to source."""
        with full_precision(source):
            x = torch.cat([source, driving], dim=1)
            for block in self.encoder:
                x = block(x)
            numbers = self.motion(x.mean(dim=(2, 3)))
            matrix = torch.eye(3).to(numbers).flatten().repeat(len(numbers), 1)
            if self.kind == "shift":
                matrix[:, 2], matrix[:, 5] = numbers[:, 0], numbers[:, 1]
            else:
                matrix[:, : numbers.shape[1]] = numbers
            return matrix.unflatten(1, (3, 3))


class Perceptron(nn.Sequential):
    """Linear layers with batch normalisation and ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes[:-1]):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Disentangler(nn.Module):
    """The AVD network: whose regions, and in which pose, to regions; 2,290,620 parameters for 10.

    Args:
        regions: K.
        width: Factor on the hidden layers.
    """

    def __init__(self, regions: int, width: float) -> None:
        super().__init__()
        small, middle, large = (widened(n, width) for n in (256, 512, 1024))
        self.identity = Perceptron(6 * regions, small, middle, large, 64)
        self.pose = Perceptron(6 * regions, small, middle, large, 64)
        self.regions = Perceptron(2 * 64, large, middle, small, 6 * regions)

    def forward(self, identity: Keypoints, pose: Keypoints) -> Keypoints:
        """Regions (B, K, ...) of one body in another's pose."""
        with full_precision(pose.position):
            # The signs of axes mean nothing: take those that are nearest to the pose's.
            flipped = (identity.shape @ inverse(pose.shape))[..., :1, :1] < 0
            whose = identity._replace(shape=torch.where(flipped, -identity.shape, identity.shape))
            code = torch.cat(
                [self.pose(pose.codes().flatten(1)), self.identity(whose.codes().flatten(1))], dim=1
            )
            return Keypoints.of(self.regions(code).unflatten(1, (-1, 6)))


class Generator(nn.Module):
    """MRAA's four networks; 68,295,177 parameters together with 10 regions.

    Convention: as in `lmdvid.ops.warp`.

    Args:
        size: Side of the pictures in pixels.
        regions: Number K of regions.
        width: Factor on the channels of all networks.
        shrink: Regions and motion are found on pictures so many times smaller.
        blocks: Halvings in their hourglasses; size / shrink must be a multiple of 2^blocks.
        padding: See `RegionPredictor`; 0 or 3.
        background: What the background may do in reconstruction; in animation it stands still.
        temperature: See `RegionPredictor`.
        align_corners: True makes no motion exact identity; published weights need False.
        avd: Whether there is a network for the mode `avd`.
    """

    directions = 0

    def __init__(
        self,
        size: int = 256,
        regions: int = 10,
        width: float = 1.0,
        shrink: int = 4,
        blocks: int = 5,
        padding: int = 0,
        background: Background = "affine",
        temperature: float = 0.1,
        align_corners: bool = True,
        avd: bool = True,
    ) -> None:
        super().__init__()
        check_motion_size(size, shrink, blocks, padding)
        self.config = {
            "size": size,
            "regions": regions,
            "width": width,
            "shrink": shrink,
            "blocks": blocks,
            "padding": padding,
            "background": background,
            "temperature": temperature,
            "align_corners": align_corners,
            "avd": avd,
        }
        self.size = size
        self.shrink = shrink
        self.regions = RegionPredictor(regions, blocks, width, padding, temperature)
        self.motion = DenseMotion(regions, blocks, width, align_corners)
        self.painter = Painter(width, align_corners, skips=True)
        self.behind = (
            None if background == "none" else BackgroundPredictor(blocks, width, background)
        )
        self.avd = Disentangler(regions, width) if avd else None

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that its networks allow."""
        return ("relative", "adaptive", "absolute", *(("avd",) if self.avd is not None else ()))

    def forward(self, source: Tensor, driving: Tensor) -> tuple[Tensor, Keypoints]:
        """Reconstruct the driving picture from the source picture, as in training.

        Args:
            source: (B, 3, size, size) in [-1, 1].
            driving: (B, 3, size, size) in [-1, 1], of the same clip when training.

        Returns:
            The pictures (B, 3, size, size) in [-1, 1], and the driving pictures' regions.
        """
        regions = self.detect(driving)
        encoded = self.encode_source(source)
        return self.paint(encoded, regions, regions, self.background(encoded, driving)), regions

    def detect(self, images: Tensor) -> Keypoints:
        """Regions of pictures (B, 3, size, size) in [-1, 1]."""
        check_images(images, self.size)
        return self.regions(shrink((images + 1) / 2, self.shrink))

    def background(self, source: Source, driving: Tensor) -> Tensor | None:
        """Motion of what is behind, (B, 3, 3), from (B, 3, size, size) in [-1, 1] to the source."""
        if self.behind is None:
            return None
        return self.behind(source.image.expand_as(driving), (driving + 1) / 2)

    def encode_source(self, image: Tensor) -> Source:
        """Compute once what every frame needs of the picture (B, 3, size, size) in [-1, 1]."""
        check_images(image, self.size)
        image = (image + 1) / 2
        small = shrink(image, self.shrink)
        return Source(self.regions(small).codes(), small, self.painter.features(image), image)

    def encode_motion(self, frames: Tensor) -> Tensor:
        """Regions of driving frames (T, 3, size, size) in [-1, 1] as codes (T, K, 6)."""
        return self.detect(frames).codes()

    def render(
        self,
        source: Source,
        codes: Tensor,
        reference: Tensor | None = None,
        mode: Mode = "relative",
        magnitude: float = 1.0,
        background: Tensor | None = None,
    ) -> Tensor:
        """Show the source in other poses.

        Args:
            source: One picture, or as many as there are codes.
            codes: (T, K, 6) regions of driving frames.
            reference: (1, K, 6) regions of the driving frame in which the driver is posed as the
                source is; `relative` and `adaptive` need them.
            mode: `absolute` takes the driver's regions as they are, and with them its shape;
                `relative` moves the source's own by the change since the reference; `adaptive`
                (which the original calls relative) also scales their paths by the ratio of the
                extents of both figures; `avd` puts the driver's pose into the source's shape.
            magnitude: Factor on the change since the reference.
            background: (T, 3, 3) motion of what is behind; None lets it stand still.

        Returns:
            (T, 3, size, size) in [-1, 1].

        Raises:
            ValueError: For an unknown mode, or one without its reference.
        """
        check_mode(mode, self.modes, reference)
        source = source.expand(len(codes))
        own, driving = Keypoints.of(source.codes), Keypoints.of(codes)
        # The original leaves the driver's covariances where it moves the source's regions.
        moved = covering = driving
        if mode == "avd" and self.avd is not None:
            moved = covering = self.avd(own, driving)
        elif reference is not None and mode != "absolute":
            moved = transfer(
                own, driving, Keypoints.of(reference), mode == "adaptive", magnitude, flips=True
            )
        return self.paint(source, moved, covering, background)

    def pose_distance(self, source: Source, codes: Tensor) -> Tensor:
        """How unlike the source's pose the codes (T, K, 6) are, (T,)."""
        return pose_distance(Keypoints.of(source.codes), Keypoints.of(codes))

    def paint(
        self,
        source: Source,
        driving: Keypoints,
        covering: Keypoints,
        background: Tensor | None = None,
    ) -> Tensor:
        """The source with its regions moved to the driving ones, (B, 3, size, size).

        Args:
            source: B pictures.
            driving: Where the regions move.
            covering: Whose shapes say how much a region covers.
            background: (B, 3, 3), or None.
        """
        own = Keypoints.of(source.codes)
        size = source.small.shape[-2:]
        with full_precision(source.small):
            heat = bumps(driving.position, _precision(covering), size)
            heat = heat - bumps(own.position, _precision(own), size)
            motions = local_motions(driving, own, size, flips=True)
            still = identity_grid(*size, like=motions).expand(len(motions), -1, -1, -1)
            if background is not None:
                matrix = background.to(still.dtype)
                moved = torch.einsum("bij,bjhw->bihw", matrix[:, :, :2], still)
                moved = moved + matrix[:, :, 2, None, None]
                still = moved[:, :2] / moved[:, 2:]
            motions = torch.cat([still[:, None], motions], dim=1)
        flow, occlusion = self.motion(source.small, heat, motions)
        return 2 * self.painter(source, flow, occlusion) - 1


def _precision(regions: Keypoints) -> Tensor:
    return inverse(regions.shape @ regions.shape.mT)


PRESETS = {
    "mraa-vox256": {"size": 256, "padding": 3},
    "mraa-taichi256": {"size": 256, "padding": 0},
    "mraa-ted384": {"size": 384, "padding": 0},  # also ted-youtube384
    "mraa-mgif256": {"size": 256, "padding": 0},
}
# SHA-256 of the authors' files.
RELEASED = {
    "a8c59e0b38f96195eac6414265dcf8e4b15e0675cea2622489b735edc61b3b66": "mraa-vox256",
    "6fd5ebb68953d6c7d02ff765986efa1c8a62d349817fe736a6069e07dc8c17af": "mraa-taichi256",
    "5c88fb60718a64a8fd87043b0e95781b50e500457d03bf3b4fd26cca6b70c3f7": "mraa-ted384",
    "75ce78089fc2f0b0a276346bf8f14c2043895845ed869bdbe9b2656d3feec13b": "mraa-ted384",
    "58b796e31f763ccfbb240f959c9d92c2afe8a6e57da303e07d8fabd1f2921c68": "mraa-mgif256",
}


def matches(keys: Iterable[str]) -> bool:
    """Whether keys are those of a file of MRAA's training program."""
    needed = {"generator.pixelwise_flow_predictor.mask.weight", "region_predictor.regions.weight"}
    return needed <= set(keys)


def from_original(
    state: Mapping[str, Tensor], preset: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Translate the authors' weights.

    Args:
        state: Tensors of their file: `generator.…`, `region_predictor.…`, `bg_predictor.…`,
            `avd_network.…`, and what else is in it.
        preset: One of `PRESETS`, for what weights cannot tell: size and padding.

    Returns:
        The `Generator`'s arguments, its state dict, and the keys that were left out.

    Raises:
        ValueError: Without a preset; if a key is unknown or missing, or a shape fits no
            configuration.
    """
    if preset is None:
        raise ValueError(
            "weights do not tell MRAA's picture size and padding, and this is none of the "
            f"authors' files: name what it was trained as, --preset {' or '.join(PRESETS)}"
        )
    converted, rest = renamed(
        state,
        {
            "generator.pixelwise_flow_predictor.": "motion.",
            "generator.": "painter.",
            "region_predictor.predictor.": "regions.hourglass.",
            "region_predictor.regions.": "regions.heatmaps.",
            "region_predictor.": "regions.",
            "bg_predictor.fc.": "behind.motion.",
            "bg_predictor.": "behind.",
            "avd_network.id_encoder.": "avd.identity.",
            "avd_network.pose_encoder.": "avd.pose.",
            "avd_network.decoder.": "avd.regions.",
            "avd_network.": "avd.",
        },
    )
    rows = len(converted.get("behind.motion.bias", ()))
    config = {
        "regions": len(state["region_predictor.regions.weight"]),
        "width": len(converted["painter.first.conv.weight"]) / 64,
        "shrink": shrink_of(v for k, v in state.items() if k.endswith("down.weight")),
        "background": next((kind for kind, count in _ROWS.items() if count == rows), "none"),
        "align_corners": False,
        "avd": any(key.startswith("avd.") for key in converted),
        **PRESETS[preset],
    }
    return config, completed(Generator, config, converted), rest
