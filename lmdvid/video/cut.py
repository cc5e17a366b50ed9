"""Parts of videos, in time and space, as lists of data sets tell them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

from lmdvid.video.info import VideoInfo, VideoReadError
from lmdvid.video.tfrecord import Record

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are behind the last."""

# 29.97 means 30000/1001, but 30 does not; lists round more than by a millionth: 23.98
_SAME_RATE = Fraction(1, 2000)
_SAME_SHAPE = 0.05  # of width to height: sizes are rounded, as 640x356 for 16:9 is
_FRAME = Fraction(1, 100)  # what a time stamp is rounded by, in frames, at most
_MISSING_END = Fraction(1, 2)  # seconds by which another encoding may end earlier


@dataclass(frozen=True)
class Cut:
    """A part of a clip; or all of it, where nothing else is given.

    Attributes:
        path: a video, a folder of pictures, or the file that `record` is in.
        span: number of its first frame and the one behind its last.
        fps: the rate at which `span` counts; None counts the video's own frames.
        box: what is cut out of each frame.
        size: width and height of the frames that `box` belongs to; None: those of the video.
        record: where it is a record of a file.
    """

    path: Path
    span: tuple[int, int] | None = None
    fps: Fraction | None = None
    box: Box | None = None
    size: tuple[int, int] | None = None
    record: Record | None = None

    def frames(self, info: VideoInfo, times: Sequence[Fraction] | None) -> range:
        """The numbers of the video's frames that belong to it.

        Those are the frames that begin at or after the first frame at the rate `fps`, and before
        the one behind the last. Two rates that are as close as 29.97 and 30000/1001 are the same,
        and 60000/1001 is twice 29.97.

        Args:
            info: of the video.
            times: of its frames, where the rate varies; see `frame_times`.

        Raises:
            VideoReadError: The video ends more than half a second before it.
        """
        if self.span is None:
            return range(info.frames)
        first, stop = self.span
        if self.fps is not None and times is not None:
            begun = [(number - _FRAME) / self.fps for number in (first, stop)]
            ends = times[-1] + _MISSING_END < begun[1]
            first, stop = (bisect_left(times, time, hi=info.frames) for time in begun)
        else:
            if self.fps is not None:
                ratio = _ratio(info.fps, self.fps)
                first, stop = (ceil(number * ratio - _FRAME) for number in (first, stop))
            ends = info.frames + _MISSING_END * info.fps < stop
        if ends or first >= min(stop, info.frames):
            rate = "" if self.fps is None else f" at {float(self.fps):g} per second"
            raise VideoReadError(
                self.path,
                f"it has no frames {self.span[0]} to {self.span[1]}{rate}, but ends after "
                f"{info.frames} at {float(info.fps):g} per second",
            )
        return range(first, min(stop, info.frames))

    def pixels(self, width: int, height: int) -> Box:
        """What is cut out of frames of this size.

        Raises:
            VideoReadError: Nothing; or the box belongs to frames of another shape.
        """
        if self.box is None:
            return 0, 0, width, height
        wide, high = self.size or (width, height)
        if abs(width * high / (height * wide) - 1) > _SAME_SHAPE:
            raise VideoReadError(
                self.path,
                f"its box belongs to frames of {wide}x{high}, but these are {width}x{height}, "
                "another shape",
            )
        left, right = (min(max(x * width // wide, 0), width) for x in self.box[::2])
        top, bottom = (min(max(y * height // high, 0), height) for y in self.box[1::2])
        if left >= right or top >= bottom:
            raise VideoReadError(self.path, f"its box {self.box} is outside of {wide}x{high}")
        return left, top, right, bottom


def _ratio(fps: Fraction, reference: Fraction) -> Fraction:
    """Frames for each one at the reference rate, which a list may tell in few digits."""
    ratio = fps / reference
    meant = ratio.limit_denominator(5)  # 2/5 and 5/2 are those of 23.976 and 59.94
    return meant if abs(meant - ratio) <= _SAME_RATE * ratio else ratio
