"""Any folder of videos."""

from data_modules.base import VideoDataModule


class Clips(VideoDataModule):
    """Any folder of videos, gifs or folders of frames.

    Every clip counts as an identity of its own, unless names share the text before a first `#`.
    A folder with a single clip can be used with `split: time`.
    """
