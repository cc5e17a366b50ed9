"""Pretrained networks that never learn: how they behave inside a model that does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lmdvid.ops.precision import exact


class FrozenNetwork(nn.Module):
    """A pretrained network that never learns.

    It stays in eval mode whatever `train()` says, none of its parameters asks for gradients (its
    input may), and its weights belong to their file: they neither enter a state dict nor are
    looked for in one, so that checkpoints stay small.
    """

    def train(self, mode: bool = True) -> "FrozenNetwork":
        """Stay in eval mode."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return nothing of its own: the weights stay in their file."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any):
        # Hands the children their own tensors back, so that strict loading misses none of them.
        state_dict.update(super().state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FrozenFeatures(FrozenNetwork):
    """Images in, a list of feature maps out.

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


class Measure(FrozenNetwork):
    """A frozen network that scores depend on: float32 with all its bits, whatever is around.

    Autocast and TF32 are off, no graph is kept, and moving the model around it to another
    precision leaves it in float32.
    """

    digest: str
    """SHA-256 of the weights; part of a result."""

    def _apply(self, fn: Callable, recurse: bool = True) -> "Measure":
        # Follows to another device, but not to another precision.
        return super()._apply(lambda t: t.to(fn(t.new_empty(0)).device), recurse)


class VideoFeatures(Measure):
    """Clips in, one vector for each clip (or, where `per_frame`, for each frame) out.

    Attributes:
        dim: Length F of the vectors.
        frames: Fewest frames that a clip must have.
        per_frame: Whether a clip gives T vectors.
        resize: How frames are brought to the network's size, in words: part of a result.
    """

    dim: int
    frames: int = 1
    per_frame: bool = False
    resize: str

    def forward(self, video: Tensor) -> Tensor:
        """Embed clips.

        Args:
            video: (B, T, 3, H, W), RGB in [-1, 1], any float type, T >= `frames`.

        Returns:
            (B, F) or, per frame, (B T, F); float32 without gradient.

        Raises:
            ValueError: Another shape, or values that are whole numbers or beyond [-1, 1].
        """
        check_clips(video, self.frames)
        with exact(video.device):
            return self.embed(video.float())

    def embed(self, video: Tensor) -> Tensor:
        """Embed clips that were checked."""
        raise NotImplementedError


def check_clips(video: Tensor, frames: int = 1) -> None:
    """Refuse what are no clips (B, T, 3, H, W) in [-1, 1] of at least `frames` frames."""
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
