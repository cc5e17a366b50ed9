"""InMoDeGAN, interpretable motion decomposition (Wang, Bremond, Dantcheva, arXiv 2101.03049, 2021).

A video from noise: an appearance network makes w_0, a recurrent network makes the magnitudes of
each step, w_t = w_0 + sum over time and directions of alpha_{tau,i} d_i is a walk over an
orthonormal motion bank, and an image network draws every w_t. Images and videos are judged apart,
videos at several speeds.

The authors published a figure and a talk, no code. What these show is built as shown; everything
else is an argument whose docstring says "ours" and why.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmdvid.navigator import LatentNavigator, Orthogonal
from lmdvid.networks.layers import (
    GAIN,
    EqualLinear,
    ImageDiscriminator,
    ModulatedConv2d,
    StyledConv,
    blur,
    channels,
    check_size,
    minibatch_stddev,
    upsample,
)
from lmdvid.ops.dispatch import runs_triton
from lmdvid.ops.modulation import activate

Noise = Literal["none", "shared"]
VideoKind = Literal["3d", "2d"]


@dataclass(frozen=True)
class Codes:
    """What decides a video; `render` draws it.

    Attributes:
        appearance: (B, D) code w_0 of the first frame.
        alpha: (B, T - 1, N) magnitudes of the step to each further frame; increments, which add up
            over time.
    """

    appearance: Tensor
    alpha: Tensor


class MappingNetwork(nn.Sequential):
    """Appearance noise (B, Z) to w_0 (B, D): StyleGAN2's mapping network.

    Args:
        noise: Z.
        dim: D.
        layers: Fully-connected layers, each activated.
    """

    def __init__(self, noise: int, dim: int, layers: int) -> None:
        sizes = [noise] + [dim] * layers
        super().__init__(
            *(EqualLinear(a, b, activated=True, lr_mul=0.01) for a, b in itertools.pairwise(sizes))
        )

    def forward(self, z: Tensor) -> Tensor:
        """Normalise each vector to a mean square of 1, then apply the layers."""
        return super().forward(z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8))


class MotionNetwork(nn.Module):
    """Motion noise to magnitudes: a GRU that starts from w_0, then layers shared over time.

    The GRU's states lie in (-1, 1), and so does its first, tanh w_0: with w_0 itself the first
    step is many times larger than all that follow.

    Args:
        noise: Size M of the noise vector of one step.
        dim: Size D of w_0, which is also that of the GRU's state.
        directions: N.
        layers: Fully-connected layers after the GRU; all but the last are activated.
        init: Factor on the last layer's initial weights.
        lr_mul: Factor on the learning rate of these layers, see `EqualLinear`.
    """

    def __init__(
        self, noise: int, dim: int, directions: int, layers: int, init: float, lr_mul: float
    ) -> None:
        super().__init__()
        self.recurrent = nn.GRU(noise, dim, batch_first=True)
        self.hidden = nn.Sequential(
            *(EqualLinear(dim, dim, activated=True, lr_mul=lr_mul) for _ in range(layers - 1))
        )
        self.magnitudes = EqualLinear(dim, directions, lr_mul=lr_mul)
        with torch.no_grad():
            self.magnitudes.weight.mul_(init)

    def forward(self, w0: Tensor, z: Tensor) -> Tensor:
        """w_0 (B, D) and noise (B, S, M) of S steps to magnitudes (B, S, N)."""
        if z.shape[1] == 0:
            return z.new_zeros(len(z), 0, len(self.magnitudes.bias))
        states, _ = self.recurrent(z, w0.tanh()[None].contiguous())
        return self.magnitudes(self.hidden(states))


class ToRGB(nn.Module):
    """StyleGAN2's 1x1 modulated convolution to colours, added to the picture of the scale below."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, 3, 1, dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, h: Tensor, w: Tensor, coarser: Tensor | None) -> Tensor:
        """Features (B, C, H, W) and the picture (B, 3, H/2, W/2) so far to (B, 3, H, W)."""
        rgb = self.conv(h, w) + self.bias.view(1, 3, 1, 1)
        return rgb if coarser is None else rgb + upsample(coarser)


class NoisyConv(StyledConv):
    """`StyledConv` with noise before the bias, of a strength that is learnt and begins at 0.

    Args:
        inputs: C.
        outputs: O.
        dim: Size of the latent code.
        resolution: Side of the output.
        up: Double the resolution.
        noise: `none`, or `shared`: one map for all frames of a clip.
    """

    map: Tensor

    def __init__(
        self, inputs: int, outputs: int, dim: int, resolution: int, up: bool, noise: Noise
    ) -> None:
        super().__init__(inputs, outputs, dim, up)
        self.strength = nn.Parameter(torch.zeros(())) if noise == "shared" else None
        if noise == "shared":
            self.register_buffer("map", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, style: Tensor, frames: int = 1) -> Tensor:
        """(B T, C, H, W) and (B T, D) to (B T, O, H, W); each T = `frames` rows are one clip.

        A new map for each clip in training, the same fixed one for all in evaluation.
        """
        if self.strength is None:
            return super().forward(x, style)
        x = self.conv(x, style)
        noise = self.map
        if self.training:
            noise = torch.randn_like(noise.expand(len(x) // frames, -1, -1, -1))
            noise = noise.repeat_interleave(frames, dim=0)
        x = GAIN * (x + (self.strength * noise).to(x.dtype))
        return activate(x, bias=GAIN * self.bias, slope=0.2)


class Scale(nn.Module):
    """One doubling of the resolution: two convolutions and a picture."""

    def __init__(self, inputs: int, outputs: int, dim: int, resolution: int, noise: Noise) -> None:
        super().__init__()
        self.up = NoisyConv(inputs, outputs, dim, resolution, True, noise)
        self.conv = NoisyConv(outputs, outputs, dim, resolution, False, noise)
        self.rgb = ToRGB(outputs, dim)

    def forward(self, h: Tensor, w: Tensor, rgb: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Features and picture of the scale below to those of this one."""
        h = self.conv(self.up(h, w, frames), w, frames)
        return h, self.rgb(h, w, rgb)


class Synthesis(nn.Module):
    """Latent codes to frames, each drawn alone: StyleGAN2's synthesis network.

    Args:
        size: Side of the frames in pixels.
        dim: Size D of the latent code, which feeds every layer.
        width: Factor on the channels.
        noise: See `NoisyConv`.
        checkpointing: Compute every scale again in the backward pass instead of keeping it.
    """

    def __init__(
        self, size: int, dim: int, width: float, noise: Noise, checkpointing: bool
    ) -> None:
        super().__init__()
        top = channels(4, width)
        self.constant = nn.Parameter(torch.randn(1, top, 4, 4))
        self.conv = NoisyConv(top, top, dim, 4, False, noise)
        self.rgb = ToRGB(top, dim)
        self.scales = nn.ModuleList(
            Scale(channels(r // 2, width), channels(r, width), dim, r, noise)
            for r in (2**i for i in range(3, int(math.log2(size)) + 1))
        )
        self.checkpointing = checkpointing

    def forward(self, w: Tensor) -> Tensor:
        """Walks (B, T, D) to videos (B, T, 3, size, size), unbounded."""
        batch, frames, _ = w.shape
        w = rearrange(w, "b t d -> (b t) d")
        h = self.conv(self.constant.expand(len(w), -1, -1, -1), w, frames)
        rgb = self.rgb(h, w, None)
        for scale in self.scales:
            if self.checkpointing and torch.is_grad_enabled():
                h, rgb = checkpoint(scale, h, w, rgb, frames, use_reentrant=False)  # pyright: ignore
            else:
                h, rgb = scale(h, w, rgb, frames)
        return rearrange(rgb, "(b t) c h w -> b t c h w", b=batch)


class Generator(nn.Module):
    """InMoDeGAN's generator.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024; the paper's are 64 and
            128.
        dim: Size D of the latent space; the paper's highest direction, d_511, says 512.
        directions: Number N <= D of directions in the motion bank; the paper's is 512, complete.
        width: Factor on the channels of the synthesis network.
        orthogonal: How the motion bank is made orthonormal. The paper's is `svd`, whose vectors
            swap where singular values cross and differ between devices; `polar` (ours) is the
            smooth factor of the same decomposition and as trainable.
        appearance_noise: Size of z_a (ours: the paper does not say).
        motion_noise: Size of each step's z_m (ours).
        mapping_layers: Layers of the appearance network (ours; the figure has room for 7 or 8).
        motion_layers: Layers of the motion network after its GRU (ours).
        motion_init: Factor on the initial weights of the last of them; small, so that training
            begins with videos that hardly move (ours).
        motion_lr_mul: Factor on the learning rate of these layers (ours): their output adds up over
            all steps, so that what they learn too fast carries every video away.
        noise: `none`, or `shared`: one noise map per layer for all frames of a clip (ours; a map
            for each frame would flicker).
        checkpointing: Compute the synthesis again in the backward pass: less memory, a third more
            work.
    """

    framewise = True
    frames = 16
    centre: Tensor

    def __init__(
        self,
        size: int = 64,
        dim: int = 512,
        directions: int = 512,
        width: float = 1.0,
        orthogonal: Orthogonal = "polar",
        appearance_noise: int = 512,
        motion_noise: int = 512,
        mapping_layers: int = 8,
        motion_layers: int = 4,
        motion_init: float = 0.1,
        motion_lr_mul: float = 0.1,
        noise: Noise = "none",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_size(size)
        for name, value in (
            ("appearance_noise", appearance_noise),
            ("motion_noise", motion_noise),
            ("mapping_layers", mapping_layers),
            ("motion_layers", motion_layers),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: choose 1 or more")
        if noise not in ("none", "shared"):
            raise ValueError(f"noise={noise!r}: choose 'none' or 'shared'")
        self.config = {
            "size": size,
            "dim": dim,
            "directions": directions,
            "width": width,
            "orthogonal": orthogonal,
            "appearance_noise": appearance_noise,
            "motion_noise": motion_noise,
            "mapping_layers": mapping_layers,
            "motion_layers": motion_layers,
            "motion_lr_mul": motion_lr_mul,
            "noise": noise,
        }
        self.size = size
        self.appearance_noise = appearance_noise
        self.motion_noise = motion_noise
        self.appearance = MappingNetwork(appearance_noise, dim, mapping_layers)
        self.motion = MotionNetwork(
            motion_noise, dim, directions, motion_layers, motion_init, motion_lr_mul
        )
        self.navigator = LatentNavigator(dim, directions, orthogonal)
        self.synthesis = Synthesis(size, dim, width, noise, checkpointing)
        # The mean w_0 of training, towards which truncation pulls; the task keeps it up to date.
        self.register_buffer("centre", torch.zeros(dim))

    def motion_steps(self, frames: int) -> int:
        """Steps of motion noise for so many frames: one to each but the first."""
        return frames - 1

    def sample_codes(self, appearance: Tensor, motion: Tensor, truncation: float = 1.0) -> Codes:
        """Noise to codes, in float32 whatever autocast says: their differences are the motion.

        Args:
            appearance: z_a (B, Z) from N(0, 1).
            motion: z_m (B, T - 1, M) from N(0, 1), one vector for each step.
            truncation: psi of w_0 = centre + psi (w_0 - centre): below 1 more typical and less
                varied appearances.

        Raises:
            ValueError: For noise of other sizes.
        """
        if appearance.ndim != 2 or appearance.shape[1] != self.appearance_noise:
            raise ValueError(
                f"appearance noise has shape {tuple(appearance.shape)}: "
                f"expected (B, {self.appearance_noise})"
            )
        if motion.ndim != 3 or motion.shape[2] != self.motion_noise:
            raise ValueError(
                f"motion noise has shape {tuple(motion.shape)}: "
                f"expected (B, T - 1, {self.motion_noise})"
            )
        with torch.autocast(appearance.device.type, enabled=False):
            w0 = self.appearance(appearance)
            if truncation != 1:
                w0 = self.centre + truncation * (w0 - self.centre)
            return Codes(w0, self.motion(w0, motion))

    def latents(self, codes: Codes, start: int = 0, stop: int | None = None) -> Tensor:
        """The walk w_start ... w_{stop-1}, (B, stop - start, D); `stop` None is T."""
        origin, alpha = codes.appearance, codes.alpha
        if start:
            origin = self.navigator(origin, alpha[:, :start].sum(dim=1))
        steps = self.navigator(
            origin, alpha[:, start : None if stop is None else stop - 1], accumulate=True
        )
        return torch.cat([origin[:, None].to(steps.dtype), steps], dim=1)

    def render(self, codes: Codes, start: int = 0, stop: int | None = None) -> Tensor:
        """Draw frames `start` to `stop` (None: the last) of each video.

        Returns:
            (B, stop - start, 3, size, size), unbounded; clamp to [-1, 1] to show it.
        """
        return self.synthesis(self.latents(codes, start, stop))

    def forward(self, appearance: Tensor, motion: Tensor) -> Tensor:
        """Noise (B, Z) and (B, T - 1, M) to videos (B, T, 3, size, size), unbounded."""
        return self.render(self.sample_codes(appearance, motion))

    @torch.no_grad()
    def order_directions(self, videos: int = 256, steps: int = 15, seed: int = 0) -> Tensor:
        """Number the directions by the variance of their magnitudes, largest first.

        The paper's SVD gives an order; other decompositions have none. The weight becomes the
        ordered basis itself, so that every way of making it orthonormal but `svd` gives it back
        unchanged; `svd` becomes `polar`.

        Args:
            videos: How many to measure.
            steps: Steps of each.
            seed: Of their noise.

        Returns:
            (N,) the standard deviations, falling.
        """
        device = self.centre.device
        random = torch.Generator().manual_seed(seed)
        z_a = torch.randn(videos, self.appearance_noise, generator=random).to(device)
        z_m = torch.randn(videos, steps, self.motion_noise, generator=random).to(device)
        spread = self.sample_codes(z_a, z_m).alpha.flatten(0, 1).std(dim=0)
        order = spread.argsort(descending=True)
        basis = self.navigator.basis()[order]
        if self.navigator.orthogonal == "svd":
            former = self.navigator
            self.navigator = LatentNavigator(former.dim, len(order), "polar").to(basis)
            self.navigator.train(self.training).requires_grad_(former.weight.requires_grad)
            self.config["orthogonal"] = "polar"
        self.navigator.weight.copy_(basis.T)
        self.motion.magnitudes.weight.copy_(self.motion.magnitudes.weight[order])
        self.motion.magnitudes.bias.copy_(self.motion.magnitudes.bias[order])
        return spread[order]


class Conv3d(nn.Module):
    """3-D convolution with equalised learning rate, "same" padding in time.

    Args:
        inputs: C.
        outputs: O.
        kernel: Side of the kernel in space and time, odd.
        down: Halve the resolution: low-pass filter and stride 2 in space.
        activated: Follow with a bias and the activation.
        gain: Factor on the output.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        down: bool = False,
        activated: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activated else None
        self.gain = gain * GAIN if activated else gain
        self.scale = self.gain / math.sqrt(inputs * kernel**3)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, O, T, H, W), or (B, O, T, H/2, W/2) where `down`."""
        kernel = self.weight.shape[-1]
        bias = None if self.bias is None else self.bias * self.gain
        space, stride = kernel // 2, 1
        if self.down:
            # What `EqualConv2d` does, frame by frame.
            batch = len(x)
            frames = rearrange(x, "b c t h w -> (b t) c h w")
            frames = blur(frames, padding=2) if kernel == 3 else blur(frames, padding=1, stride=2)
            x = rearrange(frames, "(b t) c h w -> b c t h w", b=batch)
            space, stride = 0, 2 if kernel == 3 else 1
        # As in `Convolution`.
        after = bias is not None and runs_triton("auto", x, bias)
        x = F.conv3d(
            x,
            self.weight * self.scale,
            None if after else bias,
            stride=(1, stride, stride),
            padding=(kernel // 2, space, space),
        )
        if after:
            return activate(x, bias=bias, slope=0.2)
        return x if bias is None else F.leaky_relu(x, 0.2)


class VideoBlock(nn.Module):
    """Residual block that halves space, and time while it has more than one frame."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(inputs, inputs, 3)
        self.conv2 = Conv3d(inputs, outputs, 3, down=True, gain=1 / math.sqrt(2))
        self.skip = Conv3d(inputs, outputs, 1, down=True, activated=False, gain=1 / math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, O, ceil(T / 2), H/2, W/2)."""
        return self.conv2(_halve_time(self.conv1(x))) + self.skip(_halve_time(x))


def _halve_time(x: Tensor) -> Tensor:
    """Means of two frames; an odd last one stays as it is."""
    if x.shape[2] == 1:
        return x
    return F.avg_pool3d(x, (2, 1, 1), ceil_mode=True)


class VideoDiscriminator(nn.Module):
    """The residual discriminator of images with 3-D kernels.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024.
        frames: Frames T of a clip.
        width: Factor on the channels.
    """

    def __init__(self, size: int, frames: int, width: float = 1.0) -> None:
        super().__init__()
        check_size(size)
        steps = [size >> i for i in range(int(math.log2(size)) - 1)]
        sizes = [channels(step, width) for step in steps]
        self.stem = Conv3d(3, sizes[0], 1)
        self.blocks = nn.ModuleList(VideoBlock(a, b) for a, b in itertools.pairwise(sizes))
        top = sizes[-1]
        left = math.ceil(frames / 2 ** len(self.blocks))
        self.conv = Conv3d(top + 1, top, 3)
        self.hidden = EqualLinear(top * left * 16, top, activated=True)
        self.logit = EqualLinear(top, 1)

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, 3, size, size) in [-1, 1] to logits (B, 1): positive means real."""
        x = self.stem(rearrange(video, "b t c h w -> b c t h w"))
        for block in self.blocks:
            x = block(x)
        x = self.conv(minibatch_stddev(x))
        return self.logit(self.hidden(x.flatten(1)))


class StackDiscriminator(ImageDiscriminator):
    """The discriminator of images on all frames of a clip at once, as channels.

    Args:
        size: Side of the frames in pixels.
        frames: Frames T of a clip.
        width: Factor on the channels.
    """

    def __init__(self, size: int, frames: int, width: float = 1.0) -> None:
        super().__init__(size, width, inputs=3 * frames)

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, 3, size, size) in [-1, 1] to logits (B, 1)."""
        return super().forward(video.flatten(1, 2))


def pyramid_indices(frames: int, speed: int, start: Tensor) -> Tensor:
    """Frames that a discriminator of a speed sees: start, start + speed, start + 2 speed, ...

    Args:
        frames: T of the clip.
        speed: Distance of two frames.
        start: (B,) in 0 .. speed - 1.

    Returns:
        (B, T // speed); the same number wherever it starts.
    """
    return start[:, None] + speed * torch.arange(frames // speed, device=start.device)


class Discriminators(nn.Module):
    """An image discriminator, and the temporal pyramid: one video discriminator for each speed.

    Args:
        size: Side of the frames in pixels.
        frames: Frames T of a clip; 16 in training (ours, the page speaks of 16 motion vectors).
        speeds: Of the pyramid; 1 sees every frame, 2 every second one, ... (ours: the figure shows
            several, no numbers).
        width: Factor on the channels of all.
        kind: `3d` has 3-D kernels; `2d` sees the frames as channels of one image, which costs a
            fraction (ours: the paper does not say).
        image_frames: Random frames of each clip that the image discriminator judges; the paper's
            is 1, more (ours) teach a small batch of clips more about appearance. Losses are means
            over them; an R1 penalty, which is of a clip, is their sum.

    Raises:
        ValueError: If a speed leaves fewer than two frames, or is there twice.
    """

    def __init__(
        self,
        size: int,
        frames: int = 16,
        speeds: Sequence[int] = (1, 2, 4),
        width: float = 1.0,
        kind: VideoKind = "3d",
        image_frames: int = 1,
    ) -> None:
        super().__init__()
        if not 1 <= image_frames <= frames:
            raise ValueError(f"image_frames={image_frames}: choose 1 to {frames}, a clip's frames")
        if not speeds or len(set(speeds)) < len(speeds):
            raise ValueError(f"speeds={list(speeds)}: give one or more, each once")
        for speed in speeds:
            if speed < 1 or frames // speed < 2:
                raise ValueError(
                    f"speed {speed} leaves fewer than two of {frames} frames: "
                    f"choose speeds from 1 to {frames // 2}"
                )
        if kind not in ("3d", "2d"):
            raise ValueError(f"kind={kind!r}: choose '3d' or '2d'")
        self.frames = frames
        self.speeds = tuple(speeds)
        self.image_frames = image_frames
        self.image = ImageDiscriminator(size, width)
        video = VideoDiscriminator if kind == "3d" else StackDiscriminator
        self.videos = nn.ModuleList(video(size, frames // speed, width) for speed in speeds)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Judge random frames of each clip, and each clip at every speed from a random start.

        Args:
            video: (B, T, 3, size, size) in [-1, 1].

        Returns:
            Logits by name: `image` (B image_frames, 1), and `video_<speed>` (B, 1).

        Raises:
            ValueError: For clips of another length.
        """
        batch, frames = video.shape[:2]
        if frames != self.frames:
            raise ValueError(f"clips have {frames} frames: these discriminators take {self.frames}")
        rows = torch.arange(batch, device=video.device)
        order = torch.rand(batch, frames, device=video.device).argsort(dim=1)
        chosen = video[rows[:, None], order[:, : self.image_frames]]
        logits = {"image": self.image(chosen.flatten(0, 1))}
        for speed, discriminator in zip(self.speeds, self.videos, strict=True):
            seen = video
            if speed > 1:
                start = torch.randint(speed, (batch,), device=video.device)
                seen = video[rows[:, None], pyramid_indices(frames, speed, start)]
            logits[f"video_{speed}"] = discriminator(seen)
        return logits
