"""TaiChi-HD in the layout of the first order motion model's preparation tools."""

from data_modules.base import VideoDataModule


class TaiChi(VideoDataModule):
    """TaiChi-HD: `train/` and `test/` with clips named `VIDEO#START#END.mp4`.

    A clip is a video or a folder of frames with the same name, `.mp4` included. The identity is the
    YouTube video, so that no scene is in both splits.
    """
