"""Video generation as a walk in a latent space over an orthonormal motion dictionary."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmdvid.animate import Animator
    from lmdvid.navigator import LatentNavigator

__all__ = ["Animator", "LatentNavigator"]


def __getattr__(name: str):
    # Lazily, so that the command line can answer without importing torch.
    if name == "Animator":
        from lmdvid.animate import Animator

        return Animator
    if name == "LatentNavigator":
        from lmdvid.navigator import LatentNavigator

        return LatentNavigator
    raise AttributeError(f"module 'lmdvid' has no attribute {name!r}")
