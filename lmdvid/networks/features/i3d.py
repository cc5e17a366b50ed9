"""I3D (Carreira & Zisserman, CVPR 2017): the 400 Kinetics logits behind FVD."""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.networks import WeightsError
from lmdvid.networks.features.frozen import VideoFeatures
from lmdvid.networks.features.published import I3D, I3D_TORCHSCRIPT, fill

# Channels of a mixed block: 1x1x1; 1x1x1 and 3x3x3; 1x1x1 and 3x3x3; 1x1x1 behind a pooling.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class I3DNetwork(nn.Module):
    """The RGB stream of I3D with TensorFlow's "same" padding, its parts named as in PyTorch ports.

    Batch normalisation has eps 1e-3, as in the graph that its authors published (Sonnet's default),
    in pytorch-i3d and in kinetics_i3d_pytorch; VideoGPT's copy, which came with the weight file,
    has 1e-5. Before the logits stands an average over 2 x 7 x 7.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        width = 192
        for name, channels in _MIXED.items():
            self.add_module(name, _Mixed(width, channels))
            width = channels[0] + channels[2] + channels[4] + channels[5]
        self.logits = _Logits(width, 400)

    def trunk(self, video: Tensor) -> Tensor:
        """Return (B, 1024, ceil(T / 8), ceil(H / 32), ceil(W / 32)) of (B, 3, T, H, W)."""
        x = _pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        return x

    def forward(self, video: Tensor) -> Tensor:
        """Return the logits (B, 400), averaged over time, of (B, 3, T >= 9, 224, 224)."""
        x = F.avg_pool3d(self.trunk(video), (2, 7, 7), stride=1)
        return self.logits(x).mean((2, 3, 4))


class _Unit(nn.Module):
    def __init__(self, width: int, channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(width, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class _Mixed(nn.Module):
    def __init__(self, width: int, channels: tuple[int, ...]):
        super().__init__()
        self.b0 = _Unit(width, channels[0], 1)
        self.b1a = _Unit(width, channels[1], 1)
        self.b1b = _Unit(channels[1], channels[2], 3)
        self.b2a = _Unit(width, channels[3], 1)
        self.b2b = _Unit(channels[3], channels[4], 3)
        self.b3b = _Unit(width, channels[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        parts = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)
        return torch.cat(parts, 1)


class _Logits(nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.conv3d = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


def _pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """TensorFlow's "same": ceil(size / stride) outputs; where it is uneven, the end gets more."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    # Zeros lose against nothing here: every input comes from a ReLU.
    return F.max_pool3d(_pad(x, kernel, stride), kernel, stride)


class I3DClips(VideoFeatures):
    """The 400 logits of I3D, before the softmax and averaged over time: what FVD compares.

    Frames are squashed to 224 x 224 (bilinear, `align_corners=False`, not antialiased), as the
    PyTorch ports of FVD do. The network takes clips of 9 frames or more.

    Args:
        weights: `i3d_pretrained_400.pt` or the folder it lies in; None looks in the folder that
            LMDVID_WEIGHTS names.

    Raises:
        WeightsError: The file is missing or is another one.
    """

    dim = 400
    frames = 9
    size = 224
    resize = "224 x 224, bilinear, not antialiased, sides apart"

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        state, self.digest = I3D.load(weights)
        with torch.device("meta"):
            self.network = I3DNetwork()
        fill(self.network, state, I3D, "the I3D of 400 Kinetics classes")

    def embed(self, video: Tensor) -> Tensor:
        """Embed clips that were checked."""
        # One at a time: at this size a batch is no faster, and takes its multiple of memory.
        return torch.cat([self.network(self._resize(clip)) for clip in video])

    def _resize(self, clip: Tensor) -> Tensor:
        if clip.shape[-2:] != (self.size, self.size):
            clip = F.interpolate(clip, (self.size, self.size), mode="bilinear")
        return clip.transpose(0, 1)[None]


class TorchScriptI3D(VideoFeatures):
    """The same logits from StyleGAN-V's TorchScript file, run as it is.

    What is inside is not public; its hash is checked before it is opened. It resizes by itself.
    A module that holds it cannot be pickled.

    Args:
        weights: `i3d_torchscript.pt` or the folder it lies in; None looks in the folder that
            LMDVID_WEIGHTS names.

    Raises:
        WeightsError: The file is missing or is another one.
    """

    dim = 400
    frames = 9
    resize = "224 x 224 inside the TorchScript file"

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        path = I3D_TORCHSCRIPT.find(weights)
        self.digest = I3D_TORCHSCRIPT.check(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the file has this format
                self.network = torch.jit.load(path, map_location="cpu").eval()
        except RuntimeError as error:
            raise WeightsError(f"{path} does not load as TorchScript") from error

    def embed(self, video: Tensor) -> Tensor:
        """Embed clips that were checked."""
        pixels = ((video + 1) * 127.5).transpose(1, 2)
        return self.network(pixels, rescale=True, resize=True, return_features=True)
