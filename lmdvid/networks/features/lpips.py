"""LPIPS (Zhang et al., CVPR 2018), version 0.1, on AlexNet or VGG-16."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lmdvid.networks import WeightsError
from lmdvid.networks.features.frozen import Measure
from lmdvid.networks.features.published import (
    ALEXNET,
    LPIPS_ALEX,
    LPIPS_VGG,
    VGG16,
    fill,
)
from lmdvid.ops.precision import exact

_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool")
_VGG16 += (512, 512, 512)
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # ReLUs, in torchvision's numbering
_CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def alexnet() -> nn.Sequential:
    """Return the convolutions of AlexNet (Krizhevsky, 2014, "one weird trick")."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def vgg16() -> nn.Sequential:
    """Return the convolutions of VGG-16 (Simonyan & Zisserman, ICLR 2015)."""
    layers: list[nn.Module] = []
    width = 3
    for channels in _VGG16:
        if isinstance(channels, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            width = channels
    return nn.Sequential(*layers)


class LPIPS(Measure):
    """Learned perceptual distance of two images, version 0.1 of the authors' heads.

    Args:
        net: "alex" (what LIA reports) or "vgg"; their numbers differ.
        weights: torchvision's file of the network, or the folder it lies in; None looks in the
            folder that LMDVID_WEIGHTS names. The heads come with torchmetrics.

    Raises:
        ValueError: Unknown `net`.
        WeightsError: A file is missing or is another one.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Literal["alex", "vgg"] = "alex", weights: str | Path | None = None):
        super().__init__()
        if net not in _TAPS:
            raise ValueError(f'LPIPS net is "{net}"; possible are "alex" and "vgg"')
        self.net = net
        published, heads, layers = (
            (ALEXNET, LPIPS_ALEX, alexnet) if net == "alex" else (VGG16, LPIPS_VGG, vgg16)
        )
        state, self.digest = published.load(weights)
        with torch.device("meta"):
            self.features = layers()
        wanted = {name: f"features.{name}" for name in self.features.state_dict()}
        tensors = {name: state[key] for name, key in wanted.items() if key in state}
        fill(self.features, tensors, published, f"torchvision's {published.file.split('-')[0]}")
        linear, _ = heads.load()
        try:
            for index, channels in enumerate(_CHANNELS[net]):
                weight = linear[f"lin{index}.model.1.weight"].view(channels)
                self.register_buffer(f"head{index}", weight, persistent=False)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{heads.file} holds no linear heads of LPIPS") from error
        for name, values in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distances (B,) of images (B, 3, H, W), RGB in [-1, 1].

        Raises:
            ValueError: The shapes differ, or images are too small for the network.
        """
        smallest = 31 if self.net == "alex" else 16
        shapes = tuple(prediction.shape), tuple(target.shape)
        if shapes[0] != shapes[1] or prediction.ndim != 4 or min(shapes[0][2:]) < smallest:
            raise ValueError(
                f"LPIPS compares images (B, 3, H, W) of one size of at least {smallest} px, not "
                f"{shapes[0]} and {shapes[1]}"
            )
        with exact(prediction.device):
            pairs = zip(self._maps(prediction), self._maps(target), strict=True)
            distances = [
                ((_unit(a) - _unit(b)).square() * getattr(self, f"head{i}")[:, None, None])
                .sum(1)
                .mean((1, 2))
                for i, (a, b) in enumerate(pairs)
            ]
            return torch.stack(distances).sum(0)

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        x = (images.float() - self.shift) / self.scale
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS[self.net]:
                maps.append(x)
        return maps


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
