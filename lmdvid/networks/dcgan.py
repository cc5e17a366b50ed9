"""DCGAN's convolutions (Radford et al. 2016) with spectral norm, as G3AN and ImaGINator use them.

Videos inside these networks are (B, C, T, H, W).
Shapes: B batch, C channels in, O channels out, T frames.
"""

import itertools
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from lmdvid.networks.layers import check_size

BASE = 64  # channels of the layer beside the pixels

_SPECTRAL = re.compile(r"(.*)\.weight_(orig|u|v)")
_PARTS = {"orig": "original", "u": "0._u", "v": "0._v"}


def doubling(count: int, width: float = 1.0) -> list[int]:
    """Channels of `count` layers: 64 times `width`, doubling, at most eight times that.

    Raises:
        ValueError: Unless `width` is above 0.
    """
    if not width > 0:
        raise ValueError(f"width={width}: choose a number above 0, 1 is the original")
    return [max(4, round(BASE * width * min(8, 2**level))) for level in range(count)]


def pyramid(size: int, width: float = 1.0) -> list[int]:
    """Channels at size/2, size/4, ..., 4 px.

    Raises:
        ValueError: Unless `size` is a power of two from 32 to 1024 and `width` is above 0.
    """
    check_size(size)
    return doubling(size.bit_length() - 3, width)


def initialise(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """DCGAN's first weights: N(0, 0.02) in layers of these kinds, N(1, 0.02) in batch norms.

    The original G3AN and ImaGINator leave transposed convolutions out, so `kinds` do as well.
    """
    for module in network.modules():
        if isinstance(module, kinds):
            normed = is_parametrized(module, "weight")
            weight = module.parametrizations["weight"].original if normed else module.weight  # pyright: ignore
            nn.init.normal_(weight, 0.0, 0.02)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1.0, 0.02)


class ImageDiscriminator(nn.Sequential):
    """DCGAN's discriminator of single images, 2,764,737 parameters at 64 px.

    Args:
        size: Side of the images in pixels, a power of two from 32 to 1024.
        width: Factor on the channels.
    """

    def __init__(self, size: int = 64, width: float = 1.0) -> None:
        layers: list[nn.Module] = []
        sizes = [3, *pyramid(size, width)]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(sizes[-1], 1, 4)))
        initialise(self, nn.Conv2d)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] to logits (B, 1): positive means real."""
        return super().forward(image).flatten(1)


class VideoDiscriminator(nn.Module):
    """DCGAN's discriminator with 3-D kernels, 11,088,833 parameters at 64 px, 32 frames, 6 classes.

    ImaGINator's (Wang et al., WACV 2020), which sees the class beside the first features.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024.
        frames: Frames T of a clip.
        width: Factor on the channels.
        classes: Of videos; 0 judges without a class.
    """

    def __init__(
        self, size: int = 64, frames: int = 32, width: float = 1.0, classes: int = 0
    ) -> None:
        super().__init__()
        sizes = pyramid(size, width)
        left = frames >> len(sizes)
        if left < 1:
            raise ValueError(
                f"frames={frames}: at {size} px this video discriminator halves time "
                f"{len(sizes)} times; choose {1 << len(sizes)} or more"
            )
        self.frames = frames
        self.classes = classes
        self.stem = nn.Sequential(spectral_norm(nn.Conv3d(3, sizes[0], 4, 2, 1)), nn.LeakyReLU(0.2))
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise([sizes[0] + classes, *sizes[1:]]):
            layers += [spectral_norm(nn.Conv3d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, spectral_norm(nn.Conv3d(sizes[-1], 1, (left, 4, 4))))
        initialise(self, nn.Conv3d)

    def forward(self, video: Tensor, label: Tensor | None = None) -> Tensor:
        """Judge videos, of their classes where there are any.

        Args:
            video: (B, T, 3, size, size) in [-1, 1].
            label: (B,) numbers of classes.

        Returns:
            Logits (B, 1): positive means real.
        """
        x = self.stem(rearrange(video, "b t c h w -> b c t h w"))
        if self.classes:
            if label is None:
                raise ValueError("a conditional video discriminator needs the label of each video")
            x = torch.cat([x, spread(one_hot(label, self.classes).to(x), x)], dim=1)
        return self.body(x).flatten(1)


class Discriminators(nn.Module):
    """An image discriminator beside a video discriminator.

    Args:
        image: Of frames (B, 3, H, W).
        video: Of clips (B, T, 3, H, W); `frames` is the T that it takes.
    """

    def __init__(self, image: nn.Module, video: nn.Module) -> None:
        super().__init__()
        self.image = image
        self.video = video

    def forward(self, video: Tensor, *condition: Tensor) -> dict[str, Tensor]:
        """Judge one random frame, the same one of all clips, and the clips.

        Args:
            video: (B, T, 3, H, W) in [-1, 1].
            condition: What the video discriminator is told beside.

        Returns:
            Logits (B, 1) by name: `image` and `video`.

        Raises:
            ValueError: For clips of another length.
        """
        if video.shape[1] != self.video.frames:
            raise ValueError(
                f"clips have {video.shape[1]} frames: these discriminators take {self.video.frames}"
            )
        moment = torch.randint(video.shape[1], (), device=video.device)
        frame = video.index_select(1, moment[None])[:, 0]
        return {"image": self.image(frame), "video": self.video(video, *condition)}


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Numbers of classes (B,) to float32 (B, classes).

    Raises:
        ValueError: If there is no such class.
    """
    if label.ndim != 1 or label.is_floating_point():
        raise ValueError(f"labels are {label.dtype} {tuple(label.shape)}: give whole numbers (B,)")
    # On a GPU, asking here would make every step wait; F.one_hot itself stops there.
    if not label.is_cuda and not ((label >= 0) & (label < classes)).all():
        raise ValueError(f"labels are {label.tolist()}: there are {classes} classes, from 0")
    return F.one_hot(label, classes).float()


def spread(code: Tensor, like: Tensor) -> Tensor:
    """(B, K) to (B, K, T, H, W), the same everywhere."""
    return code[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


def entries_below(
    state: Mapping[str, Tensor], landmark: str
) -> tuple[dict[str, Tensor], list[str]] | None:
    """The entries of the network whose state holds the key `landmark`, whatever is before it.

    Returns:
        These entries without what is before, in float32, and the keys of all others; None where
        there is no such network.
    """
    found = next((key for key in state if f".{key}".endswith(f".{landmark}")), None)
    if found is None:
        return None
    prefix = found.removesuffix(landmark)
    inside = {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
    return inside, [key for key in state if not key.startswith(prefix)]


def translate(
    state: Mapping[str, Tensor], names: list[tuple[str, str]], network: nn.Module, system: str
) -> dict[str, Tensor]:
    """Give a state dict of the authors' the names of ours.

    Args:
        state: In the authors' names.
        names: Patterns of their modules' names and ours, for `re.fullmatch` and `expand`.
        network: Ours, on any device.
        system: Its name, for the error.

    Returns:
        The state dict of `network`.

    Raises:
        ValueError: If an entry is unknown, of another shape, or missing.
    """
    expected = network.state_dict()
    converted, unknown = {}, []
    for key, value in state.items():
        module, _, entry = key.rpartition(".")
        if normed := _SPECTRAL.fullmatch(key):
            module, entry = normed[1], f"parametrizations.weight.{_PARTS[normed[2]]}"
        found = (m.expand(ours) for theirs, ours in names if (m := re.fullmatch(theirs, module)))
        name = f"{next(found, '?')}.{entry}"
        if name not in expected or value.shape != expected[name].shape:
            unknown.append(f"{key} {tuple(value.shape)}")
        else:
            converted[name] = value.to(expected[name].dtype)
    missing = sorted(expected.keys() - converted.keys())
    if unknown or missing:
        raise ValueError(
            f"it is not the original {system} generator: unknown or misshapen "
            f"{unknown or 'none'}, missing {missing or 'none'}"
        )
    return converted
