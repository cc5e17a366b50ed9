"""ImaGINator (Wang, Bilinski, Bremond, Dantcheva, WACV 2020): a picture, told what to do, moves.

An encoder of the picture, and a decoder whose transposed convolutions grow time first and space
second; each of its levels sees the encoder's features of that size and the class in every frame.

Shapes: B batch, C channels, T frames, K classes, Z noise.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from lmdvid.networks.dcgan import (
    BASE,
    Discriminators,
    ImageDiscriminator,
    VideoDiscriminator,
    entries_below,
    initialise,
    one_hot,
    pyramid,
    spread,
    translate,
)

MUG = ("sadness", "anger", "surprise", "disgust", "happiness", "fear")
"""The classes of the original's data set, in its order."""

_WIDER = 12  # times as many channels between the two convolutions of a block as behind them


@dataclass(frozen=True)
class Codes:
    """What decides a video; `render` draws it.

    Attributes:
        image: (B, 3, size, size) in [-1, 1].
        motion: (B, Z) noise.
        label: (B,) numbers of classes.
    """

    image: Tensor
    motion: Tensor
    label: Tensor


class Encoder(nn.Module):
    """A picture to features of every size down to 1 px, the appearance.

    Args:
        sizes: Channels from the largest features down to 4 px.
        appearance: Channels at 1 px.
    """

    def __init__(self, sizes: Sequence[int], appearance: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
            for a, b in itertools.pairwise([3, *sizes])
        )
        self.appearance = nn.Conv2d(sizes[-1], appearance, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, size, size) to features of size/2, ..., 4, 1 px."""
        features = []
        for block in self.blocks:
            image = block(image)
            features.append(image)
        return [*features, self.appearance(image)]


def _grow(
    inputs: int, between: int, outputs: int, time: tuple[int, int, int], space: int
) -> list[nn.Module]:
    """Transposed (1+2)-D convolution: first time, then space, each with its norm (section 3.2)."""
    kernel, stride, padding = time
    return [
        nn.ConvTranspose3d(inputs, between, (kernel, 1, 1), (stride, 1, 1), (padding, 0, 0)),
        nn.BatchNorm3d(between),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose3d(
            between, outputs, (1, 4, 4), (1, space, space), (0, space - 1, space - 1)
        ),
        nn.BatchNorm3d(outputs),
        nn.LeakyReLU(0.2),
    ]


class Generator(nn.Module):
    """ImaGINator's generator, 75,406,451 parameters at 64 px with 6 classes.

    Time doubles with space: `size` pixels give size / 2 frames, 32 at 64 px.

    Args:
        size: Side of the frames in pixels, a power of two from 32 to 1024; the original's is 64.
        classes: Their names, in the order of their numbers; the default is the original's.
        width: Factor on the channels.
        appearance: Channels of the picture's last features.
        motion_noise: Size Z of the noise.
    """

    framewise = False

    def __init__(
        self,
        size: int = 64,
        classes: Sequence[str] = MUG,
        width: float = 1.0,
        appearance: int = 100,
        motion_noise: int = 512,
    ) -> None:
        super().__init__()
        sizes = pyramid(size, width)
        if not classes or len(set(classes)) < len(classes):
            raise ValueError(f"classes={list(classes)}: give one or more, each once")
        for name, value in (("appearance", appearance), ("motion_noise", motion_noise)):
            if value < 1:
                raise ValueError(f"{name}={value}: choose 1 or more")
        self.config = {
            "size": size,
            "classes": list(classes),
            "width": width,
            "appearance": appearance,
            "motion_noise": motion_noise,
        }
        self.size = size
        self.frames = size // 2
        self.classes = tuple(classes)
        self.motion_noise = motion_noise
        self.encoder = Encoder(sizes, appearance)
        condition = len(classes)
        inputs = motion_noise + condition + appearance
        self.blocks = nn.ModuleList()
        for level, outputs in enumerate(sizes[::-1]):
            # The first block makes 2 frames of 4 px of nothing; the original's is less wide.
            wider, time, space = (_WIDER, (4, 2, 1), 2) if level else (8, (2, 1, 0), 1)
            self.blocks.append(nn.Sequential(*_grow(inputs, wider * outputs, outputs, time, space)))
            inputs = 2 * outputs + condition
        # Without norm and activation behind it.
        self.rgb = nn.Sequential(*_grow(inputs, _WIDER * 3, 3, (4, 2, 1), 2)[:-2])
        initialise(self, nn.Conv2d)

    def motion_steps(self, frames: int) -> int:
        """Steps of motion noise: one for the whole video.

        Raises:
            ValueError: For more frames than this network makes.
        """
        if frames > self.frames:
            raise ValueError(f"this network makes videos of {self.frames} frames, not {frames}")
        return 1

    def class_number(self, name: str) -> int:
        """The number of a class, of its name or of the number as text.

        Raises:
            ValueError: If there is no such class.
        """
        if name in self.classes:
            return self.classes.index(name)
        if name.isdigit() and int(name) < len(self.classes):
            return int(name)
        raise ValueError(
            f"no class {name!r}: choose from {', '.join(self.classes)}, or 0 to "
            f"{len(self.classes) - 1}"
        )

    def sample_codes(self, image: Tensor, motion: Tensor, label: Tensor) -> Codes:
        """A picture, noise and class as codes.

        Args:
            image: (B, 3, size, size) in [-1, 1].
            motion: (B, 1, Z) from N(0, 1).
            label: (B,) numbers of classes.

        Raises:
            ValueError: For other sizes.
        """
        if image.ndim != 4 or image.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"images have shape {tuple(image.shape)}: this network takes "
                f"(B, 3, {self.size}, {self.size})"
            )
        if motion.shape[1:] != (1, self.motion_noise):
            raise ValueError(
                f"motion noise has shape {tuple(motion.shape)}: "
                f"expected (B, 1, {self.motion_noise})"
            )
        return Codes(image, motion[:, 0], label)

    def render(self, codes: Codes, start: int = 0, stop: int | None = None) -> Tensor:
        """Draw frames `start` to `stop` (None: the last) of each video, which is made whole.

        Returns:
            (B, stop - start, 3, size, size) in [-1, 1].
        """
        *features, appearance = self.encoder(codes.image)
        condition = one_hot(codes.label, len(self.classes)).to(appearance)
        code = torch.cat([codes.motion.to(appearance), condition, appearance[..., 0, 0]], dim=1)
        video = code[:, :, None, None, None]
        for block, seen in zip(self.blocks, reversed(features), strict=True):
            video = block(video)
            seen = seen[:, :, None].expand(-1, -1, video.shape[2], -1, -1)
            video = torch.cat([video, seen, spread(condition, video).to(video)], dim=1)
        video = self.rgb(video).tanh()
        return rearrange(video, "b c t h w -> b t c h w")[:, start:stop]

    def forward(self, image: Tensor, motion: Tensor, label: Tensor) -> Tensor:
        """(B, 3, size, size), (B, 1, Z) and (B,) to (B, size / 2, 3, size, size) in [-1, 1]."""
        return self.render(self.sample_codes(image, motion, label))


def discriminators(size: int = 64, classes: int = 6, width: float = 1.0) -> Discriminators:
    """ImaGINator's two discriminators: of frames, and of videos of a class.

    Args:
        size: Side of the frames in pixels.
        classes: K.
        width: Factor on the channels of both.
    """
    return Discriminators(
        ImageDiscriminator(size, width), VideoDiscriminator(size, size // 2, width, classes)
    )


_LANDMARK = "dec.block1.conv.0.weight"


def matches(keys: Iterable[str]) -> bool:
    """Whether keys are those of the authors' ImaGINator, alone or beside other networks."""
    return any(key.endswith(_LANDMARK) for key in keys)


def from_original(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Translate the authors' generator weights.

    Args:
        state: State dict of the original generator, perhaps below a name and beside others.

    Returns:
        The `Generator`'s arguments, its state dict, and the keys that were left out: all that is
        not the generator. Weights cannot tell what their classes are called: six are MUG's, others
        get their numbers as names.

    Raises:
        ValueError: If a key is unknown, misshapen or missing.
    """
    state, dropped = entries_below(state, _LANDMARK) or ({}, [])
    blocks = sum(key.startswith("dec.block") and key.endswith("conv.0.bias") for key in state)
    last = state[f"dec.block{blocks}.conv.4.bias"]
    appearance = len(state[f"enc.b{blocks + 1}.0.bias"])
    # What the last layer sees beside the video and the picture.
    classes = state["dec.to_rgb.conv.0.weight"].shape[0] - 2 * len(last)
    config = {
        "size": 4 << blocks,
        "classes": list(MUG) if classes == len(MUG) else [str(i) for i in range(classes)],
        "width": len(last) / BASE,
        "appearance": appearance,
        "motion_noise": state[_LANDMARK].shape[0] - classes - appearance,
    }
    names = [
        (rf"enc\.b{blocks + 1}\.0", "encoder.appearance"),
        (r"dec\.to_rgb\.conv\.(\d)", r"rgb.\1"),
    ]
    for i in range(blocks):
        names.append((rf"enc\.b{i + 1}\.(\d)", rf"encoder.blocks.{i}.\1"))
        names.append((rf"dec\.block{i + 1}\.conv\.(\d)", rf"blocks.{i}.\1"))
    with torch.device("meta"):
        network = Generator(**config)
    return config, translate(state, names, network, "ImaGINator"), dropped
