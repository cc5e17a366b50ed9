"""Augmentation on the device: one draw per clip, the same for all its frames."""

import torch
from torch import nn


def build_augmentation(size: int, crop: float, flip: bool, jitter: float) -> nn.Module | None:
    """Build the augmentation of a batch of clips, or None when everything is off.

    Args:
        size: side of the frames in pixels.
        crop: side of the random square that is cut out and resized to `size`, as a share of it.
        flip: mirror every second clip on average.
        jitter: largest change of brightness, contrast and saturation (as a factor) and of hue (in
            turns); the four are applied one after the other, in random order.

    Returns:
        A module from and to (B, T, 3, size, size) in [0, 1].
    """
    if crop == 1 and not flip and jitter == 0:
        return None
    # import kornia only where it is used: it takes its time
    from kornia.augmentation import (
        ColorJitter,
        RandomHorizontalFlip,
        RandomResizedCrop,
        VideoSequential,
    )

    steps: list[nn.Module] = []
    if crop < 1:
        area = crop * crop
        steps.append(RandomResizedCrop((size, size), scale=(area, area), ratio=(1.0, 1.0)))
    if flip:
        steps.append(RandomHorizontalFlip(p=0.5))
    if jitter > 0:
        steps.append(ColorJitter(jitter, jitter, jitter, jitter))
    return VideoSequential(*steps, data_format="BTCHW", same_on_frame=True)


def augment(augmentation: nn.Module, video: torch.Tensor, seed: int) -> torch.Tensor:
    """Augment clips (B, T, 3, H, W) in [-1, 1]; the result has the same shape and range.

    The draw depends on `seed` alone and leaves the random state as it was, so that a resumed run
    sees what an undisturbed one does.
    """
    with torch.random.fork_rng([video.device] if video.is_cuda else []):
        torch.manual_seed(seed)
        return augmentation((video + 1) / 2).clamp(0, 1) * 2 - 1
