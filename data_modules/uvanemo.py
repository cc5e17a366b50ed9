"""UvA-NEMO, smiles of 400 people."""

import re

from data_modules.base import VideoDataModule


class UvANemo(VideoDataModule):
    """UvA-NEMO (Dibeklioglu et al. 2012): a folder of pictures for each smile, or a video.

    Clips are named `001_deliberate_smile_1` and hold pictures of a face, read in the natural order
    of their names; the number in front is the person, who is the identity. G3AN trains on windows
    of 16 frames at a `stride` of `[2, 3]`, drawn anew for each; windows for which a clip is too
    short are not drawn, where the original stops. The set publishes no split: `split: random` holds
    out whole people, and `holdout: 0` trains on all, as the original does.
    """

    def identity(self, key: str) -> str:
        """Return the person: the number before the first `_` of the clip's name."""
        person = re.match(r"(\d+)_", key.rsplit("/", 1)[-1])
        return person[1] if person else super().identity(key)
