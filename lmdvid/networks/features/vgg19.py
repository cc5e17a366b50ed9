"""VGG-19, the network of the papers' perceptual losses."""

from pathlib import Path

import torch
from torch import Tensor, nn

from lmdvid.networks import WeightsError
from lmdvid.networks.features.frozen import FrozenFeatures
from lmdvid.networks.features.published import VGG19, expected_of, load_tensors

_INSTEAD = (
    " (--model.init_args.vgg19_weights PATH); or use the embedded network: "
    "--model.init_args.perceptual efficientnet"
)


class VGG19Features(FrozenFeatures):
    """VGG-19 (Simonyan & Zisserman, ICLR 2015) up to relu5_1, as perceptual losses use it.

    Taps: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1. Images are clamped to [-1, 1], then
    normalised by the ImageNet mean and standard deviation, as LIA and FOMM do; a pixel outside
    the range therefore gets no gradient. A tap whose map would have no pixel is left out: images
    below 16 px give four maps, below 8 px three, below 4 px two, of one pixel one.

    Args:
        weights: torchvision's `vgg19-dcbb9e9d.pth`, or the folder it lies in; None looks in the
            folder named by the environment variable LMDVID_WEIGHTS. The classifier is ignored.
            Another version's name must end with a dash and the first digits of its own SHA-256.
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
        path = VGG19.find(weights, hint=_INSTEAD)
        expected_of(path, VGG19).check(path)
        state = load_tensors(path)

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
                f"{path} is not torchvision's VGG-19: {reason}\nGet the file from {VGG19.source}."
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
