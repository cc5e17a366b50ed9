"""Writing clips: H.264 with exact frame rate and copied sound, gif, single pictures."""

import gc
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from torch import Tensor

from lmdvid.video.info import IMAGE_SUFFIXES, VideoReadError

if TYPE_CHECKING:
    from av import Packet
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

# In order of preference, each with what asks for about the quality of x264 at that crf.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "{crf}", "preset": "medium"},
    "h264_nvenc": {"rc": "vbr", "cq": "{crf}"},
    "libopenh264": {"b": "8M"},
    "libvpx-vp9": {"crf": "{crf}", "b": "0"},
    "mpeg4": {"qmin": "2", "qmax": "2"},
}
_COPIED_SOUND = ("aac", "ac3", "eac3", "mp3", "opus")
_PREROLL = Fraction(1, 10)  # seconds before frame 0 in which sound codecs warm up

WriteFrame = Callable[[int, np.ndarray], None]
"""Takes a frame's number and its pixels (H,W,3)."""


class VideoWriteError(ValueError):
    """A file that cannot be written as asked; the text says why."""


class VideoWriter:
    """Write frames one by one to an mp4 (H.264, yuv420p) or a gif; a context manager.

    The file is written as `<path>.<process>.part` and gets its name when all is well; after an
    error nothing is left. Odd sizes are padded at the right and bottom with their edge pixels. The
    frames of a gif stay in memory until the end.

    Args:
        path: `.mp4`, `.m4v` or `.gif`; the folder is made where missing.
        fps: Frame rate; kept exactly as a fraction with a denominator up to 65535. A gif counts
            in hundredths of a second: its frames are rounded to that, their sum is kept, and
            equal neighbours become one longer frame.
        audio_from: A file whose sound goes along from this video's first frame to its last, its
            packets copied as they are, or encoded as AAC where players do not expect them in an
            mp4 (all but AAC, MP3, AC-3, E-AC-3 and Opus). A file without sound, or a folder of
            pictures, adds none; a gif has none.
        crf: Quality of x264: 18 is hardly seen, 0 is the best, 51 the worst.
        options: Further options of the encoder, for example `{"g": "12", "bf": "0"}`.
        times: For a rate that varies, as `frame_times` gives them: frame i is shown from
            `times[i]` to `times[i + 1]` seconds.

    Raises:
        VideoWriteError: A frame rate, name or suffix that cannot be written.
        ValueError: A frame that cannot be written; no frame at all.
        VideoReadError: `audio_from` cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction | float,
        *,
        audio_from: str | Path | None = None,
        crf: float = 18,
        options: Mapping[str, str] | None = None,
        times: Sequence[Fraction] | None = None,
    ):
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(65535)
        self.frames = 0
        if self.fps <= 0:
            raise VideoWriteError(f"cannot write {path} at {fps} frames per second")
        if self.path.is_dir():
            raise VideoWriteError(f"cannot write {path}: it is a folder")
        # Of this process alone, so that two which write the same file do not meet.
        self._part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        self._size: tuple[int, int] | None = None
        self._times = times
        suffix = self.path.suffix.lower()
        if suffix in (".mp4", ".m4v"):
            sound = None if audio_from is None else Path(audio_from)
            self._sink: AbstractContextManager[WriteFrame] = _mp4(
                self._part, self.fps, times, sound, crf, dict(options or {})
            )
        elif suffix == ".gif":
            self._sink = _gif(self._part, self.fps, times)
        else:
            raise VideoWriteError(f"cannot write {path}: use the suffix .mp4, .m4v or .gif")

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part.touch()  # a folder without write permission shows now, not after the work
        try:
            self._write = self._sink.__enter__()
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        return self

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append one frame (H,W,3) or several (T,H,W,3), uint8."""
        array = _pixels(frames, 3, 4)
        height, width = array.shape[-3:-1]
        first_height, first_width = self._size = self._size or (height, width)
        if (height, width) != self._size:
            raise ValueError(
                f"frame {self.frames} of {self.path} is {width}x{height}, "
                f"those before are {first_width}x{first_height}"
            )
        for frame in array if array.ndim == 4 else [array]:
            if self._times is not None and self.frames + 1 >= len(self._times):
                raise ValueError(
                    f"{len(self._times)} times are too few for {self.path}: "
                    f"frame {self.frames} has no end"
                )
            self._write(self.frames, frame)
            self.frames += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            empty = kind is None and not self.frames
            if empty:
                kind, error = ValueError, ValueError(f"no frame was written to {self.path}")
            self._sink.__exit__(kind, error, trace)
            if empty:
                raise error
            if kind is None:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)
            # The encoder's threads end when its memory is collected; a worker forked before that
            # would wait for them for ever (see pyav_backend).
            del self._write
            gc.collect()


def write_video(
    path: str | Path,
    frames: Tensor | np.ndarray | Iterable[Tensor],
    fps: Fraction | float,
    **kw: Any,
) -> None:
    """Write frames (T,H,W,3) uint8, or an iterable of frames, taken one at a time.

    `fps` and the keywords `audio_from`, `crf`, `options` and `times` are those of `VideoWriter`.
    """
    with VideoWriter(path, fps, **kw) as writer:
        for run in [frames] if isinstance(frames, Tensor | np.ndarray) else frames:
            writer.write(run)


def write_image(path: str | Path, frame: Tensor | np.ndarray) -> None:
    """Write one frame (H,W,3) uint8 as a picture; the folder is made where missing."""
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise VideoWriteError(f"cannot write {path}: use one of {kinds}")
    pixels = _pixels(frame, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def _pixels(frames: Tensor | np.ndarray, *axes: int) -> np.ndarray:
    """The frames as an array, if they are uint8 (...,H,W,3) with one of these numbers of axes."""
    array = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim not in axes or array.shape[-1] != 3:
        shapes = " or ".join({3: "(H,W,3)", 4: "(T,H,W,3)"}[count] for count in axes)
        raise ValueError(
            f"frames must be uint8 {shapes}, not {array.dtype} {array.shape}; "
            "to_uint8 converts float videos"
        )
    return array


@contextmanager
def _mp4(
    part: Path,
    fps: Fraction,
    times: Sequence[Fraction] | None,
    sound_file: Path | None,
    crf: float,
    options: dict[str, str],
) -> Iterator[WriteFrame]:
    """H.264 and sound through PyAV."""
    import av
    from av.video.reformatter import VideoReformatter

    encoder = _encoder()
    quality = {key: value.format(crf=crf) for key, value in _ENCODERS[encoder].items()}
    with ExitStack() as files:
        sound = None
        if sound_file is not None and not sound_file.is_dir():
            sound = files.enter_context(_opened(sound_file))
        output = files.enter_context(
            # absolute, since FFmpeg takes what precedes a colon for a protocol
            av.open(str(part.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
        )
        tick = 1 / fps
        if times is not None:
            tick = Fraction(1, math.lcm(*(time.denominator for time in times)))
            quality["bf"] = "0"  # B-frames would leave the end of the last frame to the muxer
        video = cast("VideoStream", output.add_stream(encoder, fps, options=quality | options))
        video.pix_fmt = "yuv420p"
        if times is not None:
            video.time_base = video.codec_context.time_base = tick
        scaler = VideoReformatter()
        packets = iter(()) if sound is None else _sound_packets(sound, output)
        waiting = next(packets, None)

        lengths = None if times is None else (int((b - a) / tick) for a, b in pairwise(times))

        def mux(pictures: "Iterable[Packet]") -> None:
            for packet in pictures:
                if lengths is not None:
                    packet.duration = next(lengths)
                output.mux(packet)

        def write(number: int, frame: np.ndarray) -> None:
            nonlocal waiting
            height, width = frame.shape[:2]
            if height % 2 or width % 2:  # 4:2:0 shares one colour among 2x2 pixels
                frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if number == 0:
                video.height, video.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))
            picture = scaler.reformat(picture, format="yuv420p", threads=1)
            begin, end = (_begin(n, fps, times) for n in (number, number + 1))
            picture.pts, picture.time_base = int(begin / tick), tick
            mux(video.encode(picture))
            # In step with the frames, so that the muxer need not hold either back.
            while waiting is not None and _seconds(waiting) < end:
                output.mux(waiting)
                waiting = next(packets, None)

        yield write
        mux(video.encode(None))


def _begin(number: int, fps: Fraction, times: Sequence[Fraction] | None) -> Fraction:
    """Seconds at which a frame begins; that of the frame after the last is the end."""
    return number / fps if times is None else times[number]


@lru_cache
def _encoder() -> str:
    """The first encoder that this FFmpeg has and this machine can open."""
    import av
    from av.error import FFmpegError

    for name in _ENCODERS:
        try:
            trial = cast("VideoCodecContext", av.CodecContext.create(name, "w"))
            trial.width, trial.height, trial.pix_fmt = 256, 256, "yuv420p"
            trial.time_base = Fraction(1, 25)
            trial.open()
        except (FFmpegError, ValueError):
            continue
        if name != "libx264":
            log.warning("PyAV is built without libx264 here: videos are written with %s", name)
        return name
    raise RuntimeError(f"PyAV has none of the encoders {', '.join(_ENCODERS)}; reinstall av")


@contextmanager
def _opened(path: Path) -> "Iterator[InputContainer]":
    import av
    from av.error import FFmpegError

    try:
        container = av.open(
            str(path.absolute()), options={"protocol_whitelist": "file"}, metadata_errors="ignore"
        )
    except FFmpegError as error:
        reason = f"no sound to take from it ({str(error.strerror).lower()})"
        raise VideoReadError(path, reason) from None
    with container:
        yield container


def _sound_packets(source: "InputContainer", output: "OutputContainer") -> "Iterator[Packet]":
    """Sound packets for `output` in order, on a clock that starts with the source's frame 0."""
    if not source.streams.audio:
        return iter(())
    sound, pictures = source.streams.audio[0], source.streams.best("video")
    start = Fraction(0)
    if pictures is not None and pictures.start_time and pictures.time_base:
        start = pictures.start_time * Fraction(pictures.time_base)
    sound.codec_context.thread_count = 1
    copied = sound.codec_context.codec.canonical_name in _COPIED_SOUND
    if copied:
        target = output.add_stream_from_template(sound)
    else:
        target = cast("AudioStream", output.add_stream("aac", 48000))

    def encoded() -> "Iterator[Packet]":
        for frame in chain(source.decode(sound), [None]):
            yield from target.encode(frame)

    def shifted() -> "Iterator[Packet]":
        for packet in source.demux(sound) if copied else encoded():
            if not packet.size or packet.pts is None:
                continue
            shift = round(start / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            if _seconds(packet) > -_PREROLL:
                packet.stream = target
                yield packet

    return shifted()


def _seconds(packet: "Packet") -> Fraction:
    return (packet.pts or 0) * Fraction(packet.time_base)


@contextmanager
def _gif(part: Path, fps: Fraction, times: Sequence[Fraction] | None) -> Iterator[WriteFrame]:
    """Pictures of 256 colours each through Pillow."""
    from PIL import Image

    images: list[Image.Image] = []
    yield lambda _, frame: images.append(Image.fromarray(frame).quantize())
    ticks = [round(100 * _begin(number, fps, times)) for number in range(len(images) + 1)]
    durations = [10 * (after - before) for before, after in pairwise(ticks)]  # milliseconds
    first, *rest = images
    first.save(part, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
