"""TED-talks in the layout of MRAA's preparation tools."""

from data_modules.base import VideoDataModule


class TED(VideoDataModule):
    """TED-talks, 384 px: clips named `VIDEO#START#END.mp4`, videos or folders of frames.

    The published list has no test part: without a folder `test/` of your own, whole talks are held
    out by seed. The identity is the YouTube video.
    """
