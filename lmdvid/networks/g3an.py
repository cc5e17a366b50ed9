"""G3AN, disentangling appearance and motion (Wang, Bilinski, Bremond, Dantcheva, CVPR 2020).

A video from two kinds of noise: one vector for the appearance and one for each step of the motion.
Three streams grow side by side, appearance in space, motion in time and the video in both; after
every block the first is put beside the video's features and the second is added to them.

Shapes: B batch, C channels, T frames, k motion steps, T = 4 (k + 3).
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lmdvid.networks.dcgan import (
    BASE,
    Discriminators,
    ImageDiscriminator,
    doubling,
    entries_below,
    initialise,
    pyramid,
    spread,
    translate,
)
from lmdvid.networks.dcgan import VideoDiscriminator as VideoDiscriminator3d
from lmdvid.networks.layers import check_size

VideoKind = Literal["2+1d", "3d"]


@dataclass(frozen=True)
class Codes:
    """What decides a video; `render` draws it.

    Attributes:
        appearance: (B, Z) noise.
        motion: (B, k, M) noise.
    """

    appearance: Tensor
    motion: Tensor


class SelfAttention(nn.Module):
    """Attention of every frame's place in time, or in space, to all others (paper, section 3.3).

    x + gamma softmax(q k^T) v, with 1x1 projections and gamma beginning at 0.

    Args:
        channels: C.
        axis: `time`: at each pixel, frames see one another; `space`: within each frame, pixels.
        legacy: Mix the result up as the original does, which takes the numbers of either axis for
            those of (B, H, W, C, T); its weights were trained like that.
    """

    def __init__(self, channels: int, axis: Literal["time", "space"], legacy: bool) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = spectral_norm(nn.Conv3d(channels, inner, 1))
        self.key = spectral_norm(nn.Conv3d(channels, inner, 1))
        self.value = spectral_norm(nn.Conv3d(channels, channels, 1))
        self.gamma = nn.Parameter(torch.zeros(1))
        self.tokens = "(b h w) t c" if axis == "time" else "(b t) (h w) c"
        self.legacy = legacy

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        sizes = dict(zip("bcthw", x.shape, strict=True))
        query, key, value = (
            rearrange(project(x), f"b c t h w -> {self.tokens}").contiguous()
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        tokens = self.tokens
        if self.legacy:
            mixed, tokens = mixed.flatten(), "(b h w c t)"
        else:
            del sizes["c"]
        return x + self.gamma * rearrange(mixed, f"{tokens} -> b c t h w", **sizes)


class Block(nn.Module):
    """One G3 module: the three streams grow, then the video takes the other two in.

    Args:
        spatial: Channels of the appearance stream.
        video: Channels of the video stream.
        temporal: Channels of the motion stream.
        outputs: Channels of each stream afterwards; those of the video double in the fusion.
        space: Stride in space; 1 makes 4 px of 1.
        time: Kernel, stride and padding in time.
    """

    def __init__(
        self,
        spatial: int,
        video: int,
        temporal: int,
        outputs: int,
        space: int,
        time: tuple[int, int, int],
    ) -> None:
        super().__init__()
        kernel, stride, padding = time
        along = {
            "kernel_size": (kernel, 1, 1),
            "stride": (stride, 1, 1),
            "padding": (padding, 0, 0),
        }
        across = {
            "kernel_size": (1, 4, 4),
            "stride": (1, space, space),
            "padding": (0, space - 1, space - 1),
        }
        self.spatial = nn.Sequential(*self._grow(spatial, outputs, across))
        self.temporal = nn.Sequential(*self._grow(temporal, outputs, along))
        self.video = nn.Sequential(
            *self._grow(video, outputs, along), *self._grow(outputs, outputs, across)
        )

    @staticmethod
    def _grow(inputs: int, outputs: int, kernel: dict[str, tuple[int, ...]]) -> list[nn.Module]:
        layer = spectral_norm(nn.ConvTranspose3d(inputs, outputs, **kernel))  # pyright: ignore
        return [layer, nn.BatchNorm3d(outputs), nn.ReLU()]

    def forward(
        self, spatial: Tensor, video: Tensor, temporal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Streams (B, C, 1, H, W), (B, C, T, H, W) and (B, C, T, 1, 1) to the next ones."""
        spatial, temporal, video = self.spatial(spatial), self.temporal(temporal), self.video(video)
        return spatial, torch.cat([spatial.expand_as(video), video + temporal], dim=1), temporal


class Generator(nn.Module):
    """G3AN's generator, 23,090,437 parameters at 64 px.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024; the original's is 64.
        width: Factor on the channels.
        attention: Self-attention in time and space at 32 px (at 16 px where `size` is 32).
        legacy_attention: Compute it as the original does, with a slip that mixes its axes up;
            only for the original's weights.
        appearance_noise: Size Z of z_a.
        motion_noise: Size M of each step's z_m.
    """

    framewise = False
    frames = 16

    def __init__(
        self,
        size: int = 64,
        width: float = 1.0,
        attention: bool = True,
        legacy_attention: bool = False,
        appearance_noise: int = 128,
        motion_noise: int = 10,
    ) -> None:
        super().__init__()
        for name, value in (("appearance_noise", appearance_noise), ("motion_noise", motion_noise)):
            if value < 1:
                raise ValueError(f"{name}={value}: choose 1 or more")
        if legacy_attention and not attention:
            raise ValueError("legacy_attention needs attention")
        self.config = {
            "size": size,
            "width": width,
            "attention": attention,
            "legacy_attention": legacy_attention,
            "appearance_noise": appearance_noise,
            "motion_noise": motion_noise,
        }
        self.size = size
        self.appearance_noise = appearance_noise
        self.motion_noise = motion_noise
        check_size(size)
        outputs = doubling(size.bit_length() - 2, width)[::-1]  # at 4, 8, ..., size px
        spatial, temporal = appearance_noise, motion_noise
        video = spatial + temporal
        self.blocks = nn.ModuleList()
        for level, channels in enumerate(outputs):
            # Time grows to k + 3 frames, then doubles twice; further blocks leave it.
            time = [(4, 1, 0), (4, 2, 1), (4, 2, 1), (1, 1, 0)][min(level, 3)]
            space = 2 if level else 1
            self.blocks.append(Block(spatial, video, temporal, channels, space, time))
            spatial = temporal = channels
            video = 2 * channels
        self.attended = min(3, len(outputs) - 2)
        wide = 2 * outputs[self.attended]
        self.attention = (
            nn.Sequential(
                SelfAttention(wide, "time", legacy_attention),
                SelfAttention(wide, "space", legacy_attention),
            )
            if attention
            else None
        )
        self.rgb = nn.Conv3d(video, 3, (1, 3, 3), padding=(0, 1, 1))
        initialise(self, nn.Conv3d)

    def motion_steps(self, frames: int) -> int:
        """Steps k of motion noise for so many frames: 4 (k + 3) is at least as many."""
        return max(1, math.ceil(frames / 4) - 3)

    def sample_codes(self, appearance: Tensor, motion: Tensor) -> Codes:
        """Noise from N(0, 1), z_a (B, Z) and z_m (B, k, M), which here are the codes themselves.

        Raises:
            ValueError: For noise of other sizes.
        """
        if appearance.ndim != 2 or appearance.shape[1] != self.appearance_noise:
            raise ValueError(
                f"appearance noise has shape {tuple(appearance.shape)}: "
                f"expected (B, {self.appearance_noise})"
            )
        if motion.ndim != 3 or not motion.shape[1] or motion.shape[2] != self.motion_noise:
            raise ValueError(
                f"motion noise has shape {tuple(motion.shape)}: "
                f"expected (B, k, {self.motion_noise}), k of 1 or more"
            )
        return Codes(appearance, motion)

    def render(self, codes: Codes, start: int = 0, stop: int | None = None) -> Tensor:
        """Draw frames `start` to `stop` (None: the last) of each video, which is made whole.

        Returns:
            (B, stop - start, 3, size, size) in [-1, 1].
        """
        spatial = codes.appearance[:, :, None, None, None]
        temporal = codes.motion.mT[:, :, :, None, None]
        video = torch.cat([spread(codes.appearance, temporal), temporal], dim=1)
        for level, block in enumerate(self.blocks):
            spatial, video, temporal = block(spatial, video, temporal)
            if self.attention is not None and level == self.attended:
                video = self.attention(video)
        return rearrange(self.rgb(video).tanh(), "b c t h w -> b t c h w")[:, start:stop]

    def forward(self, appearance: Tensor, motion: Tensor) -> Tensor:
        """Noise (B, Z) and (B, k, M) to videos (B, 4 (k + 3), 3, size, size) in [-1, 1]."""
        return self.render(self.sample_codes(appearance, motion))


class VideoDiscriminator(nn.Sequential):
    """The original code's discriminator of (2+1)-D kernels, 8,347,009 parameters at 64 px.

    The paper's has 3-D kernels; the authors found this one better.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024.
        frames: Frames T of a clip.
        width: Factor on the channels.
    """

    def __init__(self, size: int = 64, frames: int = 16, width: float = 1.0) -> None:
        sizes = [3, *pyramid(size, width)]
        left = frames - 3 * (len(sizes) - 1)
        if left < 1:
            raise ValueError(
                f"frames={frames}: at {size} px this video discriminator takes three frames off "
                f"{len(sizes) - 1} times; choose {3 * len(sizes) - 2} or more"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            across = nn.Conv3d(inputs, outputs, (1, 4, 4), (1, 2, 2), (0, 1, 1))
            along = nn.Conv3d(outputs, outputs, (4, 1, 1))
            for layer in (across, along):
                layers += [spectral_norm(layer), nn.LeakyReLU(0.2)]
        super().__init__(
            *layers,
            spectral_norm(nn.Conv3d(sizes[-1], sizes[-1], (1, 4, 4))),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv3d(sizes[-1], 1, (left, 1, 1))),
        )
        self.frames = frames
        initialise(self, nn.Conv3d)

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, 3, size, size) in [-1, 1] to logits (B, 1): positive means real."""
        return super().forward(rearrange(video, "b t c h w -> b c t h w")).flatten(1)


def discriminators(
    size: int = 64, frames: int = 16, width: float = 1.0, kind: VideoKind = "2+1d"
) -> Discriminators:
    """G3AN's two discriminators.

    Args:
        size: Side of the frames in pixels.
        frames: Frames T of a clip.
        width: Factor on the channels of both.
        kind: Of the video discriminator: `2+1d` is the original code's; `3d` the paper's, whose
            kernels it does not give: here those of ImaGINator's (ours).
    """
    if kind not in ("2+1d", "3d"):
        raise ValueError(f"kind={kind!r}: choose '2+1d' or '3d'")
    video = VideoDiscriminator if kind == "2+1d" else VideoDiscriminator3d
    return Discriminators(ImageDiscriminator(size, width), video(size, frames, width))


_LANDMARK = "block1.conv_v.0.weight_orig"
_STREAMS = (("v", "video"), ("s", "spatial"), ("t", "temporal"))


def matches(keys: Iterable[str]) -> bool:
    """Whether keys are those of the authors' G3AN generator, alone or beside other networks."""
    return any(key.endswith(_LANDMARK) for key in keys)


def from_original(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Translate the authors' generator weights.

    Args:
        state: State dict of the original generator, perhaps below a name and beside others.

    Returns:
        The `Generator`'s arguments, its state dict, and the keys that were left out: all that is
        not the generator. Weights cannot tell how attention was computed: `legacy_attention` is
        that of the original code.

    Raises:
        ValueError: If a key is unknown, misshapen or missing.
    """
    state, dropped = entries_below(state, _LANDMARK) or ({}, [])
    blocks = sum(key.endswith("conv_s.0.weight_orig") for key in state)
    last = state.get(f"block{blocks}.conv_s.0.bias", torch.empty(BASE))
    attention = any(key.startswith("fsa.") for key in state)
    config = {
        "size": 2 << blocks,
        "width": len(last) / BASE,
        "attention": attention,
        "legacy_attention": attention,
        "appearance_noise": state["block1.conv_s.0.weight_orig"].shape[0],
        "motion_noise": state["block1.conv_t.0.weight_orig"].shape[0],
    }
    names = [(rf"block{i + 1}\.conv_{s}\.(\d)", rf"blocks.{i}.{ours}.\1")
             for i in range(blocks) for s, ours in _STREAMS]  # fmt: skip
    for number, theirs in enumerate(("tsa", "ssa")):
        names.append((rf"fsa\.{theirs}", f"attention.{number}"))
        for q, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            names.append((rf"fsa\.{theirs}\.{q}_conv", f"attention.{number}.{ours}"))
    names.append((r"to_rgb\.0", "rgb"))
    with torch.device("meta"):
        network = Generator(**config)
    return config, translate(state, names, network, "G3AN"), dropped
