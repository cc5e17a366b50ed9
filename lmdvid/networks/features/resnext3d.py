"""3-D ResNeXt-101 (Hara et al., CVPR 2018): the 2048 features of video-FID in the G3AN line."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.networks.features.frozen import VideoFeatures
from lmdvid.networks.features.published import RESNEXT101, fill

_GROUPS = 32
_LAYERS = {1: (3, 128), 2: (4, 256), 3: (23, 512), 4: (3, 1024)}  # bottlenecks, inner channels


class ResNeXt101(nn.Module):
    """Blocks of 3, 4, 23 and 3 bottlenecks of 32 groups, projecting shortcuts, 400 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        width = 64
        for index, (blocks, inner) in _LAYERS.items():
            layer = []
            for block in range(blocks):
                stride = 2 if index > 1 and block == 0 else 1
                layer.append(_Bottleneck(width, inner, stride))
                width = 2 * inner
            self.add_module(f"layer{index}", nn.Sequential(*layer))
        self.fc = nn.Linear(width, 400)

    def forward(self, video: Tensor) -> Tensor:
        """Return the mean features (B, 2048) of (B, 3, T, 112, 112), pixels less their mean."""
        x = F.relu(self.bn1(self.conv1(video)), inplace=True)
        x = F.max_pool3d(x, 3, stride=2, padding=1)
        for index in _LAYERS:
            x = self.get_submodule(f"layer{index}")(x)
        return x.mean((2, 3, 4))


class _Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv3d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride, padding=1, groups=_GROUPS, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, 2 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(2 * inner)
        if stride > 1 or width != 2 * inner:
            shortcut = nn.Conv3d(width, 2 * inner, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(2 * inner))
        else:
            self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNeXtClips(VideoFeatures):
    """The 2048 mean features of 3-D ResNeXt-101: what the video-FID of G3AN compares.

    Frames are squashed to 112 x 112 (bilinear, antialiased, rounded to whole pixel values), stay
    in 0..255 and lose the mean (114.7748, 107.7354, 99.4750). The protocol takes 16 frames.

    Args:
        weights: `resnext-101-kinetics.pth` or the folder it lies in; None looks in the folder
            that LMDVID_WEIGHTS names. No hash of it is documented: the one found is logged.

    Raises:
        WeightsError: The file is missing or is another one.
    """

    dim = 2048
    size = 112
    resize = "112 x 112, bilinear, antialiased, rounded to 8 bits, sides apart"

    mean: Tensor

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        state, self.digest = RESNEXT101.load(weights)
        with torch.device("meta"):
            self.network = ResNeXt101()
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        fill(self.network, state, RESNEXT101, "the 3-D ResNeXt-101 of 400 Kinetics classes")
        mean = torch.tensor([114.7748, 107.7354, 99.4750]).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def embed(self, video: Tensor) -> Tensor:
        """Embed clips that were checked."""
        return torch.cat([self.network(self._prepare(clip)) for clip in video])

    def _prepare(self, clip: Tensor) -> Tensor:
        pixels = (clip + 1) * 127.5
        if pixels.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return (pixels.round().clamp(0, 255) - self.mean).transpose(0, 1)[None]
