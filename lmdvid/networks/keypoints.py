"""What FOMM and MRAA share: keypoints that are found, moved, and carry a picture along.

A network reads keypoints off a picture as centres of heatmaps, each with a linear map that says how
the picture is stretched around it. From where they are in two pictures follows, for each of them, a
local motion; another network blends these into one flow and says what must be painted anew; a third
warps the source's features along it and paints.

Inside these networks images are in [0, 1].
Convention: normalised coordinates, x first, -1 and +1 at the centres of the outermost pixels.
Shapes: B batch, K keypoints, C channels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.ops.reference import identity_grid
from lmdvid.ops.warp import masked_warp, warp


class Keypoints(NamedTuple):
    """Places in pictures, and how the picture is stretched there.

    Attributes:
        position: (B, K, 2), x and y in [-1, 1].
        shape: (B, K, 2, 2), linear map from a frame common to all pictures to this one: FOMM's
            Jacobians, MRAA's affine maps.
    """

    position: Tensor
    shape: Tensor

    def codes(self) -> Tensor:
        """As one tensor (B, K, 6): position, then the rows of the map."""
        return torch.cat([self.position, self.shape.flatten(2)], dim=2)

    @classmethod
    def of(cls, codes: Tensor) -> "Keypoints":
        """Of codes (B, K, 6)."""
        return cls(codes[..., :2], codes[..., 2:].unflatten(2, (2, 2)))


@dataclass(frozen=True)
class Source:
    """What is computed once for a picture that is going to move.

    Attributes:
        codes: (B, K, 6) its keypoints, see `Keypoints.codes`.
        small: (B, 3, h, w) the picture as the motion network sees it.
        features: Feature maps from the picture's own resolution downwards.
        image: (B, 3, H, W) the picture.
    """

    codes: Tensor
    small: Tensor
    features: tuple[Tensor, ...]
    image: Tensor

    def expand(self, count: int) -> "Source":
        """One picture for `count` frames; nothing is copied."""
        return Source(
            self.codes.expand(count, -1, -1),
            self.small.expand(count, -1, -1, -1),
            tuple(f.expand(count, -1, -1, -1) for f in self.features),
            self.image.expand(count, -1, -1, -1),
        )


@contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """Leave autocast: in half precision a coordinate is off by a quarter of a pixel at 256 px."""
    with torch.autocast(like.device.type, enabled=False):
        yield


def inverse(matrix: Tensor) -> Tensor:
    """Inverse of (..., 2, 2); of a determinant nearer to 0 than 1e-12, as if it were that."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    determinant = a * d - b * c
    determinant = torch.where(
        determinant.abs() < 1e-12, torch.where(determinant < 0, -1e-12, 1e-12), determinant
    )
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return adjugate / determinant[..., None, None]


def unflipped(matrix: Tensor) -> Tensor:
    """The matrices (..., 2, 2) times the sign of their upper left entry (MRAA's axis swap)."""
    return torch.where(matrix[..., :1, :1] < 0, -matrix, matrix)


def hull_area(points: Tensor) -> float:
    """Area of the convex hull of (K, 2) points (Andrew's monotone chain, the shoelace formula)."""
    chain: list[tuple[float, float]] = []
    ordered = sorted(tuple(point) for point in points.tolist())
    for half in (ordered, ordered[::-1]):
        start = len(chain)
        for x, y in half:
            while len(chain) - start >= 2:
                (x0, y0), (x1, y1) = chain[-2:]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chain.pop()
    pairs = zip(chain, chain[1:] + chain[:1], strict=True)
    return 0.5 * sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)


def extent(keypoints: Keypoints) -> Tensor:
    """Size of each set of keypoints, (B,): the root of its hull's area."""
    areas = [max(hull_area(points), 1e-12) for points in keypoints.position]
    return keypoints.position.new_tensor(areas).sqrt()


def pose_distance(source: Keypoints, driving: Keypoints) -> Tensor:
    """How unlike the poses are, whatever place and size: (T,) for one source and T drivings.

    Squared distance of the keypoints after centring and division by their `extent`: FOMM's search
    for the best frame, with its own keypoints instead of a face detector's.
    """

    def normalised(keypoints: Keypoints) -> Tensor:
        centred = keypoints.position - keypoints.position.mean(dim=1, keepdim=True)
        return centred / extent(keypoints)[:, None, None]

    return (normalised(driving) - normalised(source)).square().sum(dim=(1, 2))


def transfer(
    source: Keypoints,
    driving: Keypoints,
    reference: Keypoints,
    adapt_scale: bool,
    magnitude: float,
    flips: bool = False,
) -> Keypoints:
    """Move the source's keypoints by the driver's change since the reference.

    mu_S + s m (mu_D - mu_R) and (I + m (J_D J_R^-1 - I)) J_S.

    Args:
        source: (1, K, ...) or (T, K, ...).
        driving: (T, K, ...).
        reference: (1, K, ...).
        adapt_scale: s is the ratio of the extents of source and reference; otherwise 1.
        magnitude: m.
        flips: Maps of one region may differ in sign, which is no motion.
    """
    change = driving.shape @ inverse(reference.shape)
    if flips:
        change = unflipped(change)
    if magnitude != 1:
        unit = torch.eye(2, dtype=change.dtype, device=change.device)
        change = unit + magnitude * (change - unit)
    scale = magnitude
    if adapt_scale:
        ratio = extent(Keypoints(source.position[:1], source.shape)) / extent(reference)
        scale = magnitude * ratio[:, None, None]
    position = source.position + scale * (driving.position - reference.position)
    return Keypoints(position, change @ source.shape)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the kernel, odd.
        resize: `up` repeats every pixel twice before, `down` averages 2x2 pixels after.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        resize: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs)
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ...)."""
        if self.resize == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = F.relu(self.norm(self.conv(x)))
        return F.avg_pool2d(x, 2) if self.resize == "down" else x


class ResidualBlock(nn.Module):
    """x + two convolutions, each after batch normalisation and ReLU; (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        inner = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(inner)))


def widened(channels: int, width: float) -> int:
    """`width` times as many channels, never below 4."""
    return max(4, round(channels * width))


def encoder(inputs: int, base: int, blocks: int, width: float) -> nn.ModuleList:
    """Blocks that halve the resolution; the i-th has 2^(i + 1) `base` channels, at most 1024."""
    sizes = [inputs, *(widened(min(1024, base * 2 ** (i + 1)), width) for i in range(blocks))]
    return nn.ModuleList(ConvBlock(a, b, resize="down") for a, b in pairwise(sizes))


class Hourglass(nn.Module):
    """A pyramid of halvings and back, each level beside the one it came from.

    Args:
        inputs: Channels C of what comes in, and goes out again beside what was made of it.
        base: Channels at full resolution, which double at each halving, up to 1024.
        blocks: Halvings; the resolution must be a multiple of 2^blocks.
        width: Factor on the channels.

    Attributes:
        outputs: Channels that come out.
    """

    def __init__(self, inputs: int, base: int, blocks: int, width: float) -> None:
        super().__init__()
        self.encoder = encoder(inputs, base, blocks, width)
        self.decoder = nn.ModuleList()
        for i in reversed(range(blocks)):
            deeper = widened(min(1024, base * 2 ** (i + 1)), width)
            outputs = widened(min(1024, base * 2**i), width)
            skipped = 1 if i == blocks - 1 else 2
            self.decoder.append(ConvBlock(deeper * skipped, outputs, resize="up"))
        self.outputs = widened(base, width) + inputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, H, W)."""
        levels = [x]
        for block in self.encoder:
            levels.append(block(levels[-1]))
        x = levels.pop()
        for block in self.decoder:
            x = torch.cat([block(x), levels.pop()], dim=1)
        return x


def heatmaps(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Softmax over places, and the mean place.

    Convention: the grid is that of the heatmaps, corner to corner, whatever rim of the picture they
    leave out.

    Args:
        logits: (B, K, h, w).
        temperature: Divides the logits.

    Returns:
        Heatmaps (B, K, h, w) that sum to 1, and positions (B, K, 2).
    """
    heat = (logits.flatten(2) / temperature).softmax(dim=2).view(logits.shape)
    grid = identity_grid(*logits.shape[-2:], like=heat)
    return heat, torch.einsum("bkhw,chw->bkc", heat, grid)


def bumps(position: Tensor, precision: Tensor, size: Sequence[int]) -> Tensor:
    """Gaussians exp(-(z - mu)^T P (z - mu) / 2), of height 1.

    Args:
        position: mu, (B, K, 2).
        precision: P, (B, K, 2, 2) or what expands to it.
        size: h and w.

    Returns:
        (B, K, h, w).
    """
    offset = identity_grid(*size, like=position) - position[..., None, None]
    distance = torch.einsum(
        "bkihw,bkij,bkjhw->bkhw", offset, precision.expand(*position.shape, 2), offset
    )
    return torch.exp(-distance / 2)


def local_motions(driving: Keypoints, source: Keypoints, size: Sequence[int], flips: bool):
    """Where each keypoint's motion takes a place of the driving picture in the source.

    T_k(z) = mu_S + J_S J_D^-1 (z - mu_D) (FOMM, equation 4).

    Args:
        driving: (B, K, ...).
        source: (B, K, ...).
        size: h and w of the grid of places z.
        flips: The sign of J_S J_D^-1 means nothing; see `unflipped`.

    Returns:
        (B, K, 2, h, w) coordinates.
    """
    linear = source.shape @ inverse(driving.shape)
    if flips:
        linear = unflipped(linear)
    offset = identity_grid(*size, like=linear) - driving.position[..., None, None]
    return torch.einsum("bkij,bkjhw->bkihw", linear, offset) + source.position[..., None, None]


class DenseMotion(nn.Module):
    """Blends the background's and the keypoints' motions into one flow.

    Convention: `align_corners` is that of `lmdvid.ops.warp`; flows are coordinates in the source.

    Args:
        keypoints: K.
        blocks: Halvings of the hourglass.
        width: Factor on the channels.
        align_corners: See the convention.
    """

    def __init__(self, keypoints: int, blocks: int, width: float, align_corners: bool) -> None:
        super().__init__()
        motions = keypoints + 1
        self.hourglass = Hourglass(4 * motions, 64, blocks, width)
        self.mask = nn.Conv2d(self.hourglass.outputs, motions, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.outputs, 1, 7, padding=3)
        self.align_corners = align_corners

    def forward(self, source: Tensor, heat: Tensor, motions: Tensor) -> tuple[Tensor, Tensor]:
        """Find the flow.

        Args:
            source: (B, 3, h, w) the small source picture.
            heat: (B, K, h, w) where each keypoint is in the driving picture, minus where it is in
                the source.
            motions: (B, K + 1, 2, h, w), the background's first.

        Returns:
            The flow (B, 2, h, w), and (B, 1, h, w) how much of the source is seen there.
        """
        batch, count, *_ = motions.shape
        copies = source[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        moved = warp(copies, motions.flatten(0, 1), self.align_corners).unflatten(0, (batch, count))
        heat = torch.cat([torch.zeros_like(heat[:, :1]), heat], dim=1)
        features = self.hourglass(torch.cat([heat[:, :, None], moved], dim=2).flatten(1, 2))
        with full_precision(motions):
            features = features.to(motions.dtype)
            mask = self.mask(features).softmax(dim=1)
            flow = (mask[:, :, None] * motions).sum(dim=1)
            return flow, self.occlusion(features).sigmoid()


class Painter(nn.Module):
    """Warps the source's features along a flow and paints what the source does not show.

    Convention: as in `DenseMotion`.

    Args:
        width: Factor on the channels.
        align_corners: See the convention.
        skips: Show the warped source again before every doubling and in the picture itself, as far
            as it is seen (MRAA); no parameter more.
    """

    def __init__(self, width: float, align_corners: bool, skips: bool) -> None:
        super().__init__()
        c1, c2, c3 = (widened(c, width) for c in (64, 128, 256))
        self.first = ConvBlock(3, c1, 7)
        self.down = nn.ModuleList([ConvBlock(a, b, resize="down") for a, b in ((c1, c2), (c2, c3))])
        self.bottleneck = nn.Sequential(*(ResidualBlock(c3) for _ in range(6)))
        self.up = nn.ModuleList([ConvBlock(a, b, resize="up") for a, b in ((c3, c2), (c2, c1))])
        self.final = nn.Conv2d(c1, 3, 7, padding=3)
        self.align_corners = align_corners
        self.skips = skips

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Of pictures (B, 3, H, W), at H, H/2 and H/4; without skips only the last is needed."""
        levels = [self.first(image)]
        for block in self.down:
            levels.append(block(levels[-1]))
        return tuple(levels) if self.skips else (levels[-1],)

    def forward(self, source: Source, flow: Tensor, occlusion: Tensor) -> Tensor:
        """Paint.

        Args:
            source: As many as there are flows.
            flow: (B, 2, h, w).
            occlusion: (B, 1, h, w), 1 where the source is seen.

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        moved = _along(flow, occlusion, self.align_corners)
        levels = list(source.features)
        x = self.bottleneck(moved(levels[-1])[0])
        for block in self.up:
            if self.skips:
                shown, seen = moved(levels.pop())
                x = shown + (1 - seen) * x
            x = block(x)
        if self.skips:
            shown, seen = moved(levels.pop())
            x = shown + (1 - seen) * x
        picture = self.final(x).float().sigmoid()
        if self.skips:
            shown, seen = moved(source.image)
            picture = shown + (1 - seen) * picture
        return picture


def _along(
    flow: Tensor, occlusion: Tensor, align_corners: bool
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Warps features (B, C, H, W) and masks them; also gives the mask (B, 1, H, W)."""

    def moved(features: Tensor) -> tuple[Tensor, Tensor]:
        grid, mask = flow, occlusion
        if features.shape[-2:] != flow.shape[-2:]:
            both = torch.cat([flow, occlusion], dim=1)
            both = F.interpolate(both, features.shape[-2:], mode="bilinear", align_corners=False)
            grid, mask = both[:, :2], both[:, 2:]
        return masked_warp(features, grid, mask, align_corners), mask

    return moved


def check_motion_size(size: int, shrink: int, blocks: int, padding: int) -> None:
    """Refuse sizes that hourglasses cannot halve so often.

    Raises:
        ValueError: If `size` / `shrink` is no multiple of 2^blocks or leaves no heatmap.
    """
    small = size // shrink if shrink > 0 else 0
    if shrink < 1 or size % (4 * shrink) or small % 2**blocks or small + 2 * padding < 7:
        raise ValueError(
            f"size={size}, shrink={shrink}, blocks={blocks}: size must be a multiple of 4 shrink, "
            f"and size / shrink one of 2^blocks, at least 7 - 2 padding"
        )


def renamed(
    state: Mapping[str, Tensor], prefixes: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the authors' file in our names, and the keys of all others.

    Args:
        state: By dotted name.
        prefixes: Theirs to ours, the longer of two that begin alike first.
    """
    ours: dict[str, Tensor] = {}
    rest = []
    for key, value in state.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is None or key.endswith("down.weight"):
            rest.append(key)
            continue
        name = prefixes[prefix] + key.removeprefix(prefix)
        for theirs, our in (
            ("encoder.down_blocks.", "encoder."),
            ("decoder.up_blocks.", "decoder."),
            ("down_blocks.", "down."),
            ("up_blocks.", "up."),
            ("bottleneck.r", "bottleneck."),
        ):
            name = name.replace(theirs, our)
        ours[name] = value.float() if value.is_floating_point() else value
    return ours, rest


def shrink_of(filters: Iterable[Tensor]) -> int:
    """By how much pictures are shrunk, from the side 2 round(2 (shrink - 1)) + 1 of the filters.

    Raises:
        ValueError: If there is none, or they are of several sizes.
    """
    sides = {value.shape[-1] for value in filters}
    if len(sides) != 1:
        raise ValueError(f"its filters `down.weight` have {sorted(sides) or 'no'} sizes, not one")
    return (sides.pop() - 1) // 4 + 1


def completed(
    network: Callable[..., nn.Module], config: dict[str, Any], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state, when it is that of the network with this configuration.

    Counters of batches, which old files lack and nothing reads, are filled with 0.

    Raises:
        ValueError: Names what is unknown, misshapen or missing.
    """
    with torch.device("meta"):
        expected = network(**config).state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            state[name] = state.get(name, torch.zeros(())).to(value.dtype)
    unknown = [
        f"{name} {tuple(value.shape)}"
        for name, value in state.items()
        if name not in expected or value.shape != expected[name].shape
    ]
    if unknown or expected.keys() != state.keys():
        raise ValueError(
            f"unknown or misshapen {unknown[:5] or 'none'}, "
            f"missing {sorted(expected.keys() - state.keys())[:5] or 'none'}"
        )
    return state
