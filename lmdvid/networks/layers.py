"""StyleGAN2's building blocks (Karras et al. 2020), as LIA and its relatives use them.

Images and feature maps are (B, C, H, W). Weights are drawn from N(0, 1) and scaled when used
("equalised learning rate", Karras et al. 2018). The activation is sqrt(2) leaky_relu(x + b, 0.2);
since leaky_relu(a x) = a leaky_relu(x) for a > 0, that factor goes into weights and biases,
which are small, instead of feature maps, which are not.
Shapes: B batch, C channels in, O channels out, D style.
"""

import itertools
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lmdvid.ops.convolution import Convolution, kept
from lmdvid.ops.modulation import activate
from lmdvid.ops.resample import resample

BASE_CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


def channels(resolution: int, width: float = 1.0) -> int:
    """Feature channels at a resolution in pixels, `width` times StyleGAN2's; never below 4."""
    return max(4, round(BASE_CHANNELS[resolution] * width))


def check_size(size: int) -> None:
    """Refuse image sizes that a pyramid of halvings down to 4 px cannot have.

    Raises:
        ValueError: Unless `size` is a power of two from 32 to 1024.
    """
    if size not in BASE_CHANNELS or size < 32:
        raise ValueError(f"size={size}: choose a power of two from 32 to 1024")


GAIN = math.sqrt(2)  # of the activation


def blur(x: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Low-pass filter, (B, C, H, W) to (B, C, (H + 2 padding - 4) / stride + 1, ...)."""
    return resample(x, down=stride, padding=padding)


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W): zeros between pixels, then the low-pass filter times 4.

    In the precision of `x`, whatever autocast says: pictures and flows add up over the scales.
    """
    with torch.autocast(x.device.type, enabled=False):
        return resample(x, up=2, gain=4.0)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate, (..., C) to (..., O).

    Args:
        inputs: C.
        outputs: O.
        bias_init: First value of every bias.
        activated: Follow with the activation.
        lr_mul: Factor on the learning rate of this layer: its parameters are stored that much
            larger and scaled down when used (StyleGAN's mapping network has 0.01).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias_init: float = 0.0,
        activated: bool = False,
        lr_mul: float = 1.0,
    ) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs)
        self.weight = nn.Parameter(weight if lr_mul == 1 else weight / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_mul))
        gain = GAIN if activated else 1.0
        self.scale = gain * lr_mul / math.sqrt(inputs)
        self.bias_scale = gain * lr_mul
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., C)."""
        bias = self.bias if self.bias_scale == 1 else self.bias * self.bias_scale
        # The input is the smaller of the two that could be scaled.
        x = F.linear(x * self.scale, self.weight, bias)
        return F.leaky_relu(x, 0.2) if self.activated else x

    @torch.no_grad()
    def rotate(self, rotation: Tensor) -> None:
        """Make y @ rotation, (O, O), the output instead of y; for a layer without activation."""
        q = rotation.double().to(self.weight.device)
        self.weight.copy_(q.T @ self.weight.double())
        self.bias.copy_(q.T @ self.bias.double())


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, optionally halving the resolution.

    Args:
        inputs: C.
        outputs: O.
        kernel: Side of the kernel, odd, or 4 for the layer that closes a pyramid.
        down: Low-pass filter and stride 2.
        activated: Follow with a bias and the activation; a layer without it has no bias.
        padding: Zeros at each side; by default what keeps the resolution.
        gain: Factor on the output.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        down: bool = False,
        activated: bool = True,
        padding: int | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activated else None
        self.gain = gain * GAIN if activated else gain
        self.scale = self.gain / math.sqrt(inputs * kernel**2)
        self.down = down
        self.padding = kernel // 2 if padding is None else padding
        slope = 0.2 if activated else None
        if not down:
            self.convolution = Convolution(padding=self.padding, slope=slope)
        else:
            self.convolution = Convolution(stride=1 if kernel == 1 else 2, slope=slope)
            self.strided = replace(self.convolution, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H, W), or (B, O, H/2, W/2) where `down`."""
        if self.down and self.weight.shape[-1] == 1:
            if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled():
                # There the gradient of a filter with stride costs more than a whole convolution.
                return self.strided(blur(x, padding=1), *self._scaled())
            # A 1x1 convolution reads every second pixel only, so only those are filtered.
            x = blur(x, padding=1, stride=2)
        elif self.down:
            x = blur(x, padding=2)
        return self.convolution.prepared(x, self, self._scaled, self.weight, self.bias)

    def _scaled(self) -> tuple[Tensor, Tensor | None]:
        bias = None if self.bias is None else self.bias * self.gain
        return self.weight * self.scale, bias


class DownBlock(nn.Module):
    """Residual block that halves the resolution: (B, C, H, W) to (B, O, H/2, W/2).

    The sum of its two paths is divided by sqrt(2), which keeps the variance.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualConv2d(inputs, inputs, 3)
        self.conv2 = EqualConv2d(inputs, outputs, 3, down=True, gain=1 / math.sqrt(2))
        self.skip = EqualConv2d(
            inputs, outputs, 1, down=True, activated=False, gain=1 / math.sqrt(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply both paths."""
        return self.conv2(self.conv1(x)) + self.skip(x)


class DownPyramid(nn.Module):
    """From an image to 4 px: a 1x1 convolution, then one `DownBlock` per halving.

    Args:
        size: Side of the image in pixels, a power of two from 32 to 1024.
        width: Factor on the channels.
        inputs: Channels of the image.
    """

    def __init__(self, size: int, width: float = 1.0, inputs: int = 3) -> None:
        super().__init__()
        check_size(size)
        steps = [size >> i for i in range(int(math.log2(size)) - 1)]
        self.stem = EqualConv2d(inputs, channels(size, width), 1)
        self.blocks = nn.ModuleList(
            DownBlock(channels(a, width), channels(b, width)) for a, b in itertools.pairwise(steps)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, size, size) to the feature maps of size, size/2, ..., 4 px."""
        features = [self.stem(image)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style (StyleGAN2, Section 2.2).

    Scaling the weight per sample equals scaling the input before, and the output after, one
    convolution with shared weights; that form is several times faster than a grouped convolution
    on a CPU. For one sample alone the smaller of weight and feature map is scaled, unless a weight
    that stays the same gains more, see `Convolution.lasts`.

    Args:
        inputs: C.
        outputs: O.
        kernel: Side of the kernel, odd.
        style: Size D of the style vector.
        demodulate: Divide by the expected standard deviation of the output.
        up: Double the resolution (transposed convolution, then the low-pass filter).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: int,
        demodulate: bool = True,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style, inputs, bias_init=1.0)
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.demodulate = demodulate
        self.up = up
        padding = 0 if up else kernel // 2
        self.convolution = Convolution(stride=2 if up else 1, padding=padding, transposed=up)
        self.activated = replace(self.convolution, slope=0.2)

    def forward(self, x: Tensor, style: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve; with a bias, activate.

        Args:
            x: (B, C, H, W).
            style: (B, D).
            bias: (O,), added before the activation; None leaves both out.

        Returns:
            (B, O, H, W), or (B, O, 2H, 2W) where `up`.
        """
        gain = 1.0 if bias is None else GAIN
        scale = self.modulation(style)
        if self.demodulate:
            power = kept(x, self, "power", self._power, self.weight)
            with torch.autocast(x.device.type, enabled=False):
                norm = gain * torch.rsqrt(scale.to(power.dtype).square() @ power.T + 1e-8)
        else:
            norm = scale.new_full((len(x), len(self.weight)), gain)
        smaller = len(x) == 1 and self.weight[:, 0].numel() < x[0, 0].numel()
        if smaller and not self.convolution.lasts(x, self, self.weight):
            weight = self._scaled()[0] * scale.view(1, -1, 1, 1) * norm.view(-1, 1, 1, 1)
            return self._convolve_one(x, weight, None if bias is None else gain * bias)
        x = activate(x, scale)
        x = self.convolution.prepared(x, self, self._scaled, self.weight)
        bias, slope = (None, None) if bias is None else (gain * bias, 0.2)
        if self.up:
            return resample(x, padding=1, gain=4.0, scale=norm, bias=bias, slope=slope)
        return activate(x, norm, bias, slope)

    def _convolve_one(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.up:
            convolution = self.convolution if bias is None else self.activated
            return convolution.once(x, self, weight, bias)
        x = self.convolution.once(x, self, weight, None)
        return resample(x, padding=1, gain=4.0, bias=bias, slope=None if bias is None else 0.2)

    def _scaled(self) -> tuple[Tensor, None]:
        return self.weight * self.scale, None

    def _power(self) -> Tensor:
        with torch.autocast(self.weight.device.type, enabled=False):
            return self._scaled()[0].square().sum(dim=(2, 3))


class StyledConv(nn.Module):
    """`ModulatedConv2d` 3x3 followed by a bias and the activation.

    No noise is added: LIA never feeds any (its noise weights are dead parameters).
    """

    def __init__(self, inputs: int, outputs: int, style: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D) to (B, O, H, W), or (B, O, 2H, 2W) where `up`."""
        return self.conv(x, style, self.bias)


def minibatch_stddev(x: Tensor) -> Tensor:
    """Append how much a group of samples varies: (B, C, ...) to (B, C + 1, ...).

    Source: Karras et al. 2018, Section 3. The group is the largest divisor of B not above 4 (the
    original fails unless B is a multiple of 4 or below it). Samples i, i + B/G, i + 2B/G, ... form
    one group, as in the original.
    """
    batch, _, *sides = x.shape
    group = next(g for g in (4, 3, 2, 1) if batch % g == 0)
    grouped = rearrange(x.float(), "(g n) ... -> g n ...", g=group)
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(dim=1)
    plane = std.repeat(group).to(x.dtype).view(-1, 1, *(1 for _ in sides))
    return torch.cat([x, plane.expand(-1, 1, *sides)], dim=1)


class ImageDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator of single images, 24,001,089 parameters at 256 px.

    Args:
        size: Side of the images in pixels, a power of two from 32 to 1024.
        width: Factor on the channels.
        inputs: Channels of an image.
    """

    def __init__(self, size: int = 256, width: float = 1.0, inputs: int = 3) -> None:
        super().__init__()
        top = channels(4, width)
        self.pyramid = DownPyramid(size, width, inputs)
        self.conv = EqualConv2d(top + 1, top, 3)
        self.hidden = EqualLinear(top * 16, top, activated=True)
        self.logit = EqualLinear(top, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] to logits (B, 1): positive means real."""
        x = self.conv(minibatch_stddev(self.pyramid(image)[-1]))
        return self.logit(self.hidden(x.flatten(1)))
