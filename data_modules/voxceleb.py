"""VoxCeleb, prepared crops or the original release."""

import re

from data_modules.base import VideoDataModule


class VoxCeleb(VideoDataModule):
    """VoxCeleb 1 and 2, at 64, 128, 256 px or any other size.

    Two layouts are read: crops named `PERSON#VIDEO#START#END.mp4` in `train/` and `test/`, and the
    original release of VoxCeleb 2, `dev/mp4/id00012/21Uxsk56VDQ/00001.mp4`, with `dev/` for
    training and `test/`: the published splits. Each clip is a video or a folder of frames with that
    name. The identity is the person; `identities` makes a small set of some people.
    """

    train_folders = ("train", "dev")

    def identity(self, key: str) -> str:
        """Return the person: the file name's text before `#`, or the `id...` folder."""
        *folders, name = key.split("/")
        person = next((part for part in folders if re.fullmatch(r"id\d+", part)), None)
        return person if person and "#" not in name else super().identity(key)
