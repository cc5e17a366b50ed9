"""LIA, the Latent Image Animator (Wang et al., ICLR 2022; TPAMI 2024).

A picture is moved with another video's motion: the code of the source walks along orthonormal
directions, by the magnitudes read off each driving frame, and the source's features are warped to
where the new code says.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.navigator import LatentNavigator, Orthogonal
from lmdvid.networks import Mode, check_images, check_mode
from lmdvid.networks.layers import (
    DownPyramid,
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    StyledConv,
    channels,
    check_size,
    upsample,
)
from lmdvid.ops.convolution import Convolution
from lmdvid.ops.reference import fir_kernel
from lmdvid.ops.warp import flow_warp


@dataclass(frozen=True)
class Source:
    """What is computed once for a picture that is going to move.

    Attributes:
        appearance: (B, D) code w_0 of the picture on the way to the implicit reference, z_{s->r}.
        codes: (B, N) magnitudes of the picture's own pose, a(x_s).
        features: Feature maps (B, C, r, r) for r = 8, 16, ..., size.
        colours: (B, 3, size, size) what the last scale warps, which is read off the last features.
    """

    appearance: Tensor
    codes: Tensor
    features: tuple[Tensor, ...]
    colours: Tensor


class Encoder(nn.Module):
    """Picture to appearance code, motion magnitudes and feature maps; one network for both roles.

    Args:
        size: Side of the pictures in pixels, a power of two from 32 to 1024.
        dim: Size D of the latent space.
        directions: Number N of motion magnitudes.
        width: Factor on the channels.
    """

    def __init__(self, size: int, dim: int, directions: int, width: float = 1.0) -> None:
        super().__init__()
        self.pyramid = DownPyramid(size, width)
        self.code = EqualConv2d(channels(4, width), dim, 4, activated=False, padding=0)
        # Five linear layers with nothing between them: one affine map, but other training dynamics.
        self.motion = nn.Sequential(
            *(EqualLinear(dim, dim) for _ in range(4)), EqualLinear(dim, directions)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Pictures (B, 3, size, size) to codes (B, D), magnitudes (B, N), features from 8 px up."""
        *features, top = self.pyramid(image)
        # Differences of these few numbers are the motion, so they keep float32.
        with torch.autocast(image.device.type, enabled=False):
            code = self.code(top.to(self.code.weight.dtype)).flatten(1)
            alpha = self.motion(code)
        return code, alpha, tuple(reversed(features))


class Flow(nn.Module):
    """Reads a flow and a mask off the decoder's features and warps the source's features with it.

    Convention: normalised coordinates, x first; bilinear with zeros outside. With
    `align_corners=True` -1 and +1 are pixel centres and zero displacement is exact identity. False
    reproduces the original weights: a grid made for pixel centres is sampled as if -1 and +1 were
    pixel borders, which zooms by half a pixel at the edges.

    Args:
        inputs: Channels C of both feature maps.
        dim: Size D of the latent code.
        align_corners: See the convention.
        init: Factor on the initial weights; at 0 training begins with a source that stands still.
    """

    def __init__(self, inputs: int, dim: int, align_corners: bool, init: float = 1.0) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, 3, 1, dim, demodulate=False)
        if init != 1:
            with torch.no_grad():
                self.conv.weight.mul_(init)
        self.bias = nn.Parameter(torch.zeros(3))
        self.align_corners = align_corners

    def forward(
        self, h: Tensor, w: Tensor, features: Tensor, coarser: Tensor | None, paint: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Warp the source's features to where the latent code wants them.

        Args:
            h: (B, C, H, W) decoder features.
            w: (B, D) latent codes.
            features: (B, ..., H, W) source features, or what becomes of them.
            coarser: (B, 3, H/2, W/2) logits of the scale below, or None.
            paint: Also fill what the mask leaves free with h.

        Returns:
            The masked warped source features (B, ..., H, W); those with h painted in, or None; and
            the logits (B, 3, H, W), whose tanh is the displacement in x and y (up to half the image
            each way) and whose sigmoid is the mask. Logits are in float32 or better.
        """
        # Coordinates need float32: half precision rounds them to a quarter of a pixel at 256 px.
        exact = torch.promote_types(h.dtype, torch.float32)
        with torch.autocast(h.device.type, enabled=False):
            # Planes, whatever the layout of the features: what follows is computed on each.
            logits = self.conv(h.to(exact), w).contiguous() + self.bias.view(1, 3, 1, 1)
            if coarser is not None:
                logits = logits + upsample(coarser)
            painted_in = h if paint else None
            warped, painted = flow_warp(
                logits, features, painted_in, align_corners=self.align_corners
            )
        return warped, painted, logits


class ToRGB(nn.Module):
    """1x1 convolution to colours. It activates before its last bias, unlike StyleGAN2's.

    A 1x1 convolution and a warp can change places, and where the features are not needed
    otherwise, warping three colours is less work.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = EqualConv2d(inputs, 3, 1)
        self.bias = nn.Parameter(torch.zeros(3))
        self.linear = Convolution()

    def colours(self, features: Tensor) -> Tensor:
        """The linear part, (B, C, H, W) to (B, 3, H, W)."""
        return self.linear.prepared(features, self, self._linear, self.conv.weight)

    def _linear(self) -> tuple[Tensor, None]:
        return self.conv.weight * self.conv.scale, None

    def forward(self, colours: Tensor, coarser: Tensor | None) -> Tensor:
        """Warped colours and the picture (B, 3, H/2, W/2) so far, or None, to (B, 3, H, W)."""
        bias = self.conv.bias * self.conv.gain  # pyright: ignore[reportOptionalOperand]
        rgb = F.leaky_relu(colours + bias.view(1, 3, 1, 1), 0.2) + self.bias.view(1, 3, 1, 1)
        return rgb if coarser is None else rgb + upsample(coarser)


class Scale(nn.Module):
    """One doubling of the decoder's resolution: two convolutions, a flow, a picture.

    The picture is read off the warped source alone; what is painted in acts on the next scale's
    flow and mask, so that the `last` scale paints nothing.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dim: int,
        align_corners: bool,
        flow_init: float,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.last = last
        self.up = StyledConv(inputs, outputs, dim, up=True)
        self.conv = StyledConv(outputs, outputs, dim)
        self.flow = Flow(outputs, dim, align_corners, flow_init)
        self.rgb = ToRGB(outputs)

    def forward(
        self, h: Tensor, w: Tensor, features: Tensor, logits: Tensor | None, rgb: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features, flow logits and picture of the scale below to those of this one.

        Of the source come its features, or for the `last` scale its colours.
        """
        h = self.conv(self.up(h, w), w)
        if self.last:
            colours, _, flow = self.flow(h, w, features, logits, paint=False)
            return h, flow, self.rgb(colours, rgb)
        warped, painted, flow = self.flow(h, w, features, logits)
        return painted, flow, self.rgb(self.rgb.colours(warped), rgb)  # pyright: ignore[reportReturnType]


class Synthesis(nn.Module):
    """Latent code and source features to a picture, from 4 px up.

    Args:
        size: Side of the pictures in pixels.
        dim: Size D of the latent code.
        width: Factor on the channels.
        align_corners: See `Flow`.
        flow_init: See `Flow`.
    """

    def __init__(
        self, size: int, dim: int, width: float, align_corners: bool, flow_init: float
    ) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, channels(4, width), 4, 4))
        self.conv = StyledConv(channels(4, width), channels(4, width), dim)
        self.scales = nn.ModuleList(
            Scale(
                channels(r // 2, width),
                channels(r, width),
                dim,
                align_corners,
                flow_init,
                r == size,
            )
            for r in (2**i for i in range(3, int(math.log2(size)) + 1))
        )

    def colours(self, features: tuple[Tensor, ...]) -> Tensor:
        """What the last scale warps of the source's features: (B, 3, size, size)."""
        last: Scale = self.scales[-1]  # pyright: ignore[reportAssignmentType]
        colours = last.rgb.colours(features[-1])
        # They are the picture's own, so they keep float32.
        return colours.to(torch.promote_types(colours.dtype, torch.float32))

    def forward(
        self, w: Tensor, features: tuple[Tensor, ...], colours: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Render.

        Args:
            w: (B, D) latent codes.
            features: Source features (B, C, r, r) for r = 8, 16, ..., size.
            colours: Of `colours`, where they are known.

        Returns:
            The picture (B, 3, size, size), unbounded, and the flow logits (B, 3, r, r) per scale.
        """
        h = self.conv(self.constant.expand(len(w), -1, -1, -1), w)
        logits = rgb = None
        flows = []
        warped = (*features[:-1], self.colours(features) if colours is None else colours)
        for scale, feature in zip(self.scales, warped, strict=True):
            h, logits, rgb = scale(h, w, feature, logits, rgb)
            flows.append(logits)
        return rgb, flows  # pyright: ignore[reportReturnType]  # there is at least one scale


class Generator(nn.Module):
    """LIA's generator: 45,114,762 parameters at 256 px.

    Args:
        size: Side of the pictures in pixels, a power of two from 32 to 1024.
        dim: Size D of the latent space.
        directions: Number N of motion directions; the paper's ablation found 20 best.
        width: Factor on the channels of every layer (the latent space keeps its size).
        align_corners: True makes zero displacement exact identity. False is the original's grid;
            converted weights need it.
        orthogonal: How the motion dictionary is made orthonormal, see `LatentNavigator`.
        flow_init: Factor on the initial weights of the flows. The original's is 1: it begins with
            large random flows. At 0 it begins with a source that stands still, which saves small
            models the time to unlearn them.
    """

    modes: tuple[Mode, ...] = ("relative", "absolute")
    replays = True  # the same operations at every call, none of which the host waits for

    def __init__(
        self,
        size: int = 256,
        dim: int = 512,
        directions: int = 20,
        width: float = 1.0,
        align_corners: bool = True,
        orthogonal: Orthogonal = "qr",
        flow_init: float = 1.0,
    ) -> None:
        super().__init__()
        check_size(size)
        self.config = {
            "size": size,
            "dim": dim,
            "directions": directions,
            "width": width,
            "align_corners": align_corners,
            "orthogonal": orthogonal,
        }
        self.size = size
        self.encoder = Encoder(size, dim, directions, width)
        self.navigator = LatentNavigator(dim, directions, orthogonal)
        self.synthesis = Synthesis(size, dim, width, align_corners, flow_init)

    @property
    def directions(self) -> int:
        """Number N of motion directions."""
        return self.navigator.directions

    def forward(
        self, source: Tensor, driving: Tensor, both_ways: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct the driving picture from the source picture, as in training.

        Args:
            source: (B, 3, size, size) in [-1, 1].
            driving: (B, 3, size, size) in [-1, 1], of the same clip when training.
            both_ways: Also reconstruct the source from the driving picture. Both are encoded
                anyway, so it costs a third more and gives twice the pictures to learn from.

        Returns:
            The pictures (B, 3, size, size), unbounded, and their magnitudes (B, N); with
            `both_ways` (2B, ...), those of the sources after those of the driving pictures.
        """
        check_images(source, self.size)
        check_images(driving, self.size)
        batch = len(source)
        if source.is_cuda and not both_ways:
            # One pass would have to fill up the gradient of features that nobody needs.
            code, _, features = self.encoder(source)
            alpha = self.encoder(driving)[1]
        else:
            code, alpha, features = self.encoder(torch.cat([source, driving]))
            alpha = alpha.roll(batch, dims=0)
            if not both_ways:
                code, alpha = code[:batch], alpha[:batch]
                features = tuple(f[:batch] for f in features)
        return self.synthesis(self.navigator(code, alpha), features)[0], alpha

    def encode_source(self, image: Tensor) -> Source:
        """Compute once what every frame needs of the picture (B, 3, size, size) in [-1, 1]."""
        check_images(image, self.size)
        code, alpha, features = self.encoder(image)
        return Source(code, alpha, features, self.synthesis.colours(features))

    def encode_motion(self, frames: Tensor) -> Tensor:
        """Motion magnitudes (T, N) of driving frames (T, 3, size, size) in [-1, 1]."""
        check_images(frames, self.size)
        return self.encoder(frames)[1]

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
            codes: (T, N) magnitudes a(x_t).
            reference: (1, N) magnitudes a(x_1) of the driving video's first frame; `relative`
                needs them.
            mode: `absolute` walks z_{s->r} + m D a(x_t); `relative` moves from the source's own
                pose by the change since the reference, z_{s->r} + D (a(x_s) + m (a(x_t) - a(x_1))).
            magnitude: The factor m.

        Returns:
            (T, 3, size, size), unbounded; clamp to [-1, 1] to show it.

        Raises:
            ValueError: For a mode that LIA lacks, or `relative` without a reference.
        """
        check_mode(mode, self.modes, reference)
        if reference is not None and mode == "relative":
            codes = source.codes + magnitude * (codes - reference)
        else:
            codes = magnitude * codes
        count = len(codes)
        w = self.navigator(source.appearance.expand(count, -1), codes)
        *features, colours = (
            f.expand(count, -1, -1, -1) for f in (*source.features, source.colours)
        )
        return self.synthesis(w, tuple(features), colours)[0]

    def edit_source(self, source: Source, delta: Tensor) -> Source:
        """Move a picture along directions before it is animated (LIA-X's "edit, warp, render").

        Args:
            source: Of `encode_source`.
            delta: (N,) or (B, N) magnitudes, added in every mode: w_0 + sum_i delta_i d_i.
        """
        return replace(source, appearance=source.appearance + self.navigator.displace(delta))

    def rotate_directions(self, rotation: Tensor) -> None:
        """Measure every walk along other axes of the directions' span; no picture changes.

        With d'_j = sum_i Q_ij d_i and a' = a Q, a' D' = a Q Q^T D = a D.

        Args:
            rotation: (N, N) orthogonal Q.

        Raises:
            ValueError: If it is not.
        """
        self.navigator = self.navigator.rotated(rotation)
        self.config["orthogonal"] = self.navigator.orthogonal
        last: EqualLinear = self.encoder.motion[-1]  # pyright: ignore[reportAssignmentType]
        last.rotate(rotation)

    def pose_distance(self, source: Source, codes: Tensor) -> Tensor:
        """How unlike the source's pose the magnitudes (T, N) are, (T,)."""
        return (codes - source.codes).square().sum(dim=1)


def matches(keys: Iterable[str]) -> bool:
    """Whether keys are those of the authors' LIA generator, alone or in a training file."""
    keys = {key.removeprefix("gen.") for key in keys}
    return {"enc.net_app.convs.0.0.weight", "dec.direction.weight", "dec.input.input"} <= keys


# Fixed filters, noise that is never added, a 4 px picture that is never read.
_DEAD = re.compile(r"\.kernel$|^dec\.(conv1|convs\.\d+)\.noise\.weight$|^dec\.to_rgb1\.")
_RENAMES = [
    (re.compile(pattern), name)
    for pattern, name in [
        (r"enc\.net_app\.convs\.0\.\d\.(weight|bias)", r"encoder.pyramid.stem.\1"),
        (
            r"enc\.net_app\.convs\.(\d+)\.(\w+)\.\d\.(weight|bias)",
            r"encoder.pyramid.blocks.{0}.\2.\3",
        ),
        (r"enc\.net_app\.convs\.\d+\.weight", r"encoder.code.weight"),
        (r"enc\.fc\.(\d)\.(weight|bias)", r"encoder.motion.\1.\2"),
        (r"dec\.direction\.weight", r"navigator.weight"),
        (r"dec\.input\.input", r"synthesis.constant"),
        (r"dec\.conv1\.activate\.bias", r"synthesis.conv.bias"),
        (r"dec\.conv1\.(conv\..+)", r"synthesis.conv.\1"),
        (r"dec\.convs\.(\d+)\.activate\.bias", r"synthesis.scales.{1}.bias"),
        (r"dec\.convs\.(\d+)\.(conv\..+)", r"synthesis.scales.{1}.\2"),
        (r"dec\.to_rgbs\.(\d)\.bias", r"synthesis.scales.\1.rgb.bias"),
        (r"dec\.to_rgbs\.(\d)\.conv\.\d\.(weight|bias)", r"synthesis.scales.\1.rgb.conv.\2"),
        (r"dec\.to_flows\.(\d)\.(bias|conv\..+)", r"synthesis.scales.\1.flow.\2"),
    ]
]


def renamed(key: str) -> str | None:
    """Our name for a key of the authors' generator; None where there is none."""
    for pattern, name in _RENAMES:
        if found := pattern.fullmatch(key):
            name = found.expand(name)
            if "{" in name:
                # Residual blocks count from 1 there; each scale's two convolutions alternate.
                i = int(found[1])
                name = name.format(i - 1, f"{i // 2}.{'conv' if i % 2 else 'up'}")
            return name
    return None


def from_original(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Translate the authors' generator weights.

    The original takes its directions with the signs that Householder's QR happens to give. Here
    the diagonal of R is positive, so each column of the weight is multiplied by the sign of that
    diagonal: the original basis comes back exactly.

    Args:
        state: State dict of the original generator (`enc.…`, `dec.…`), or the tensors of a
            training file (`gen.enc.…`, `dis.…`, `g_optim.…`), whose rest is left out.

    Returns:
        The `Generator`'s arguments, its state dict, and the keys that were left out: what the
        original never uses, its fixed filters, and all that is not the generator.

    Raises:
        ValueError: If a key is unknown or missing, or a filter is not the [1, 3, 3, 1] one.
    """
    dropped = []
    if any(key.startswith("gen.") for key in state):
        dropped = [key for key in state if not key.startswith("gen.")]
        state = {k.removeprefix("gen."): v for k, v in state.items() if k.startswith("gen.")}
    state = {k: v.float() for k, v in state.items()}
    dim, directions = state["dec.direction.weight"].shape
    config = {
        "size": 4 * 2 ** sum(bool(re.fullmatch(r"dec\.to_flows\.\d\.bias", k)) for k in state),
        "dim": dim,
        "directions": directions,
        "align_corners": False,
    }
    with torch.device("meta"):
        expected = Generator(**config).state_dict()
    converted, unknown = {}, []
    for key, value in state.items():
        if _DEAD.search(key):
            dropped.append(key)
            if key.endswith(".kernel"):
                _check_filter(key, value)
            continue
        name = renamed(key)
        if name not in expected or value.numel() != expected[name].numel():
            unknown.append(f"{key} {tuple(value.shape)}")
        else:
            converted[name] = value.reshape(expected[name].shape)
    missing = sorted(expected.keys() - converted.keys())
    if unknown or missing:
        raise ValueError(
            f"it is not the original LIA generator at {config['size']} px: "
            f"unknown or misshapen {unknown or 'none'}, missing {missing or 'none'}"
        )
    # The original adds 1e-8 to the weight at every use.
    weight = converted["navigator.weight"] + 1e-8
    converted["navigator.weight"] = weight * torch.linalg.qr(weight).R.diagonal().sign()
    return config, converted, dropped


def _check_filter(key: str, value: Tensor) -> None:
    expected = fir_kernel(torch.empty(1, 1))[0, 0]
    if value.shape != (4, 4) or not torch.allclose(value / value.sum(), expected):
        raise ValueError(f"{key} is not the [1, 3, 3, 1] filter that this network is built on")
