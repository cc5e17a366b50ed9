"""Frozen networks that losses and metrics look through, one file each.

They read published weight files and nothing else: the hash is checked before a file is opened,
and a file is opened only as plain tensors.
"""

from pathlib import Path
from typing import Literal

from lmdvid.networks.features.efficientnet import (
    EfficientNetClips,
    EfficientNetFrames,
    EfficientNetLite0,
)
from lmdvid.networks.features.frozen import FrozenFeatures, VideoFeatures
from lmdvid.networks.features.vgg19 import VGG19Features

__all__ = [
    "EfficientNetClips",
    "EfficientNetFrames",
    "EfficientNetLite0",
    "FrozenFeatures",
    "VGG19Features",
    "VideoFeatures",
    "perceptual_features",
]


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
