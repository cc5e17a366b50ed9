"""PyAV: the backend that numbers frames rightly in every container, and reads every header.

Everything runs on one thread. A container and its streams form a reference cycle, so they are
freed by the garbage collector; if that runs in a forked DataLoader worker and the codec or the
scaler owned threads of the parent, the worker waits for them for ever.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from functools import lru_cache, partial
from io import BytesIO
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lmdvid.video.info import (
    DEFAULT_FPS,
    MOST_PIXELS,
    VideoInfo,
    VideoReadError,
    check_indices,
    check_size,
)

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from torch import Tensor

_LISTS = ("concat", "dash", "hls", "imf", "sdp")  # FFmpeg's names of what names other files
_STREAMS = 16  # so many of a file are looked into with care
_BT709, _BT601, _FULL_RANGE = 1, (2, 5, 6), 2  # FFmpeg's numbers; 2 means that no tag is there


class Header(NamedTuple):
    """Facts about a file, gathered without torch, so that a process that scans starts quickly.

    Attributes:
        info: what everybody may know.
        container: FFmpeg's name of the container.
        pix_fmt: of the first frame.
        colours: how it departs from BT.601 in limited range, which untagged files are taken to
            have: nothing, `full`, `bt709`, `bt709 full` or `other`.
        rotation: degrees, counterclockwise, by which frames are turned to be upright.
        tilted: whether that is only nearly what the file asks for.
        key_frames: how many there are.
        interlaced: whether the first frame is two fields.
        open_group: whether pictures after a key frame are shown before it.
        clean_keys: whether decoding may begin at the second key frame.
        odd_times: what is wrong with the time stamps, or nothing.
    """

    info: VideoInfo
    container: str
    pix_fmt: str
    colours: str
    rotation: int
    tilted: bool
    key_frames: int
    interlaced: bool
    open_group: bool
    clean_keys: bool
    odd_times: str


def header(path: Path) -> Header:
    """Read all packets, and decode the first frame: the rotation is known only with a frame.

    The frames are counted, since the count in the file includes what an edit list hides and what
    was cut off.
    """
    from av.error import FFmpegError

    with _opened(path) as (container, stream):
        frame, frames, keys, times, hidden, open_group = None, 0, [], [], False, False
        second: Packet | None = None
        for packet in _packets(container, stream):
            if frame is None:
                with suppress(FFmpegError):  # behind a damaged frame there may be whole ones
                    frame = next(iter(packet.decode()), None)
            if not packet.size:
                continue
            frames += not packet.is_discard
            hidden = hidden or packet.is_discard or (packet.pts or 0) < 0
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
                second = packet if len(keys) == 2 else second
            elif keys and None not in (keys[-1], packet.pts) and packet.pts < keys[-1]:
                open_group = True
        if frame is None:
            raise VideoReadError(path, "no frame in it can be decoded")
        odd_times = ""
        if None in times or _unordered(container, stream, times):
            odd_times = "missing time stamps"
        elif len(set(times)) < len(times):
            odd_times = "repeated time stamps"
        elif hidden:
            odd_times = "an edit list"
        elif stream.frames > 1000 * (len(times) + 1000):  # decord takes memory for as many
            odd_times = "time stamps of frames that are not there"
        turns = _quarter_turns(frame)
        size = (frame.width, frame.height)
        info = VideoInfo(
            frames=frames,
            fps=Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_FPS),
            width=size[turns % 2],
            height=size[1 - turns % 2],
            has_audio=bool(container.streams.audio),
            codec=stream.codec_context.codec.canonical_name,
            kind="gif" if container.format.name == "gif" else "video",
        )
        return Header(
            info=info,
            container=container.format.name,
            pix_fmt=frame.format.name,
            colours=_colours(frame),
            rotation=90 * turns,
            tilted=frame.rotation % 90 != 0,
            key_frames=len(keys),
            interlaced=bool(frame.interlaced_frame),
            open_group=open_group,
            clean_keys=second is None or _starts_here(stream, second),
            odd_times=odd_times,
        )


def _colours(frame: "VideoFrame") -> str:
    if frame.colorspace not in (_BT709, *_BT601):
        return "other"
    words = ("bt709", frame.colorspace == _BT709), ("full", frame.color_range == _FULL_RANGE)
    return " ".join(word for word, applies in words if applies)


def _starts_here(stream: "VideoStream", key: "Packet") -> bool:
    """Whether a frame marked as key needs no other: some streams are renewed strip by strip."""
    from av.error import FFmpegError

    decoder = stream.codec_context
    with suppress(FFmpegError):
        decoder.flush_buffers()
        for frame in (*decoder.decode(key), *decoder.decode(None)):
            return not _is_predicted(frame)
    return False


def _is_predicted(frame: "VideoFrame") -> bool:
    from av.video.frame import PictureType

    return frame.pict_type in (PictureType.P, PictureType.B)


def _unordered(
    container: "InputContainer", stream: "VideoStream", times: Sequence[int | None]
) -> bool:
    """Whether these times, in order of decoding, only count packets, as AVI does.

    If frames are shown in another order then, their time stamps do not tell which is which.
    """
    return (
        container.format.name == "avi"
        and stream.codec_context.has_b_frames
        and all(a < b for a, b in pairwise(time for time in times if time is not None))
    )


def stream(path: Path) -> "Iterator[Tensor]":
    """Every frame from first to last, uint8 (H,W,3), one in memory at a time."""
    with _opened(path) as (container, stream):
        convert = _converter()
        for packet in _packets(container, stream):
            for frame in packet.decode():
                yield convert(frame)


def stream_lazily(path: Path) -> "Iterator[tuple[int, Callable[[], Tensor]]]":
    """Every frame's number, and a call that converts it while it is the last one that came.

    Numbers are those of `read`: FFmpeg drops what it cannot decode without a word, such as
    pictures that lean on a key frame which was cut off, and the next frame keeps its number.
    """
    with _opened(path) as (container, stream):
        times, _, exact = _index(container, stream)
    known = {time: number for number, time in enumerate(times)}
    with _opened(path) as (container, stream):
        convert = _converter()
        decoded = chain.from_iterable(packet.decode() for packet in _packets(container, stream))
        for count, frame in enumerate(decoded):
            number = known.get(frame.pts) if exact else count
            if number is not None:
                yield number, partial(convert, frame)


def frame_times(path: Path) -> list[Fraction] | None:
    """Seconds at which each frame begins and the last one ends; None for a constant rate."""
    with _opened(path) as (container, stream):
        packets = _packets(container, stream)
        shown = [packet.pts for packet in packets if packet.size and not packet.is_discard]
        stamps = sorted({stamp for stamp in shown if stamp is not None})
        if len(stamps) < len(shown) or not shown or not stream.time_base:
            return None
        tick = Fraction(stream.time_base)
        fps = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        ticks = [stamp - stamps[0] for stamp in stamps]
        # Containers round to their tick: both a frame and the first one may be half of it off.
        if all(abs(time - number / fps / tick) <= 1 for number, time in enumerate(ticks)):
            return None
        # A packet's duration leads to the next one decoded, not to the next one shown.
        end = (stream.start_time or 0) + (stream.duration or 0) - stamps[0]
        if end <= ticks[-1]:
            end = ticks[-1] + max(1, round(1 / fps / tick))
        return [time * tick for time in (*ticks, end)]


def read(path: Path, indices: Sequence[int], data: bytes | None = None) -> "Tensor":
    """The frames at sorted, unique `indices`, uint8 (T,H,W,3), of a file or its content `data`.

    Frame i is the shown packet with the i-th smallest time stamp. Each run of frames is decoded
    from its key frame, or from the one before; where seeking does not find them (MPEG-TS,
    repeated time stamps) the file is decoded from its start.
    """
    return _read(path, indices, lambda: _opened(path, data), _converter())


def cuda_obstacle(gpu: int) -> str | None:
    """Why PyAV cannot decode on this GPU; None if nothing is known that stands against it."""
    try:
        _hardware(gpu)
    except (OSError, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"FFmpeg cannot use it ({reason.lower()}; it needs NVIDIA's driver)"
    return None


def read_on_gpu(path: Path, encoded: bytes, indices: Sequence[int], gpu: int) -> "Tensor":
    """The frames at sorted, unique `indices` of a file's bytes, uint8 (T,H,W,3) on the GPU.

    Raises:
        VideoReadError: The file or one of the frames cannot be read on the GPU.
    """
    import torch

    def convert(frame: "VideoFrame") -> "Tensor":
        if frame.format.name != "cuda":
            raise VideoReadError(path, f"FFmpeg decodes {frame.format.name} on the CPU")
        # FFmpeg's copy into the frame must have ended before torch reads it.
        torch.cuda.synchronize(gpu)
        luma, chroma = (torch.from_dlpack(plane.__dlpack__()) for plane in frame.planes)
        bt709, full = frame.colorspace == _BT709, frame.color_range == _FULL_RANGE
        rgb = nv12_to_rgb(luma, chroma, bt709, full)
        return torch.rot90(rgb, _quarter_turns(frame)).contiguous()

    try:
        return _read(path, indices, lambda: _opened(path, encoded, gpu), convert)
    except NotImplementedError as error:
        raise VideoReadError(path, f"FFmpeg does not decode it on the GPU ({error})") from None


def nv12_to_rgb(
    luma: "Tensor", chroma: "Tensor", bt709: bool = False, full_range: bool = False
) -> "Tensor":
    """YUV 4:2:0 as decoders on GPUs give it to RGB, where the planes are.

    Args:
        luma: (H,W) uint8.
        chroma: (ceil(H/2),ceil(W/2),2) uint8, blue and red difference; each serves 2x2 pixels.
        bt709: colours are those of ITU-R BT.709, else those of BT.601.
        full_range: values take all of 0 to 255, else luma 16 to 235 and chroma 16 to 240.

    Returns:
        (H,W,3) uint8.
    """
    import torch

    red, blue = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    green = 1 - red - blue
    height, width = luma.shape
    black, luma_gain, chroma_gain = (0, 1.0, 1.0) if full_range else (16, 255 / 219, 255 / 224)
    y = (luma.float() - black) * luma_gain
    wide = chroma.repeat_interleave(2, 0)[:height].repeat_interleave(2, 1)[:, :width]
    u, v = ((wide.float() - 128) * chroma_gain).unbind(-1)
    r = y + 2 * (1 - red) * v
    b = y + 2 * (1 - blue) * u
    g = y - (2 * red * (1 - red) * v + 2 * blue * (1 - blue) * u) / green
    return torch.stack((r, g, b), -1).round_().clamp_(0, 255).to(torch.uint8)


def _read(
    path: Path,
    indices: Sequence[int],
    opened: "Callable[[], AbstractContextManager[tuple[InputContainer, VideoStream]]]",
    convert: "Callable[[VideoFrame], Tensor]",
) -> "Tensor":
    from av.error import FFmpegError

    from lmdvid.video.frames import stack

    found: dict[int, Tensor] = {}
    with opened() as (container, stream):
        times, keys, exact = _index(container, stream)
        check_indices(path, indices, len(times))
        wanted = {times[index]: index for index in indices}
        if exact and keys:
            for place, run in groupby(wanted, lambda time: bisect_right(keys, time) - 1):
                missing = set(run)
                for start in (keys[max(place, 0)], keys[max(place - 1, 0)]):
                    # What fails here is tried again, and reported, from the start of the file.
                    with suppress(FFmpegError):
                        for frame in _decode_from(container, stream, start, max(missing)):
                            if frame.pts in missing:
                                missing.remove(frame.pts)
                                found[wanted[frame.pts]] = convert(frame)
                    if not missing:
                        break
                else:
                    break  # seeking does not work here
    if len(found) < len(wanted):
        with opened() as (container, stream):
            packets = _packets(container, stream)
            decoded = chain.from_iterable(packet.decode() for packet in packets)
            for number, frame in enumerate(decoded):
                label = frame.pts if exact else number
                if label in wanted and wanted[label] not in found:
                    found[wanted[label]] = convert(frame)
                    if len(found) == len(wanted):
                        break
    for index in indices:
        if index not in found:
            raise VideoReadError(path, f"frame {index} of {len(times)} does not decode")
    return stack(path, [found[index] for index in indices])


@contextmanager
def _opened(
    path: Path, encoded: bytes | None = None, gpu: int | None = None
) -> "Iterator[tuple[InputContainer, VideoStream]]":
    from av.error import FFmpegError
    from av.stream import Disposition

    # Absolute, since FFmpeg takes what precedes a colon for a protocol.
    file = str(path.absolute()) if encoded is None else BytesIO(encoded)
    hardware = None if gpu is None else _hardware(gpu)
    try:
        with _open(file, hardware) as container:
            if container.format.name in _LISTS:
                raise VideoReadError(path, "a list of other files, no video")
            stream = cast("VideoStream | None", container.streams.best("video"))
            if not len(container.streams):
                raise VideoReadError(path, "not a video, or damaged (nothing in it is whole)")
            # The cover picture of a song counts as a video stream.
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise VideoReadError(path, "no video in it, only sound or data")
            if stream.codec_context is None:
                raise VideoReadError(path, "its video codec is unknown to FFmpeg")
            check_size(path, stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            yield container, stream
    except FFmpegError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise VideoReadError(path, f"not a video, or damaged ({reason})") from None


def _open(file: str | BytesIO, hardware: "HWAccel | None") -> "InputContainer":
    import av
    from av.error import FFmpegError

    # Nothing that a file names is fetched.
    open_file = partial(
        av.open,
        file,
        "r",
        options={"protocol_whitelist": "file"},
        metadata_errors="ignore",
        hwaccel=hardware,
    )
    try:  # FFmpeg already decodes to learn what is in it
        limits = [{"max_pixels": str(MOST_PIXELS)}] * _STREAMS
        return open_file(stream_options=limits)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except FFmpegError:
        raise  # some are ValueErrors
    except ValueError:
        # MPEG and FLV show their streams later: FFmpeg's own limit is twice this.
        if isinstance(file, BytesIO):
            file.seek(0)
        return open_file()


@lru_cache
def _hardware(gpu: int) -> "HWAccel":
    """How FFmpeg decodes on this GPU.

    Raises:
        OSError: It cannot.
    """
    import av
    import torch
    from av.codec.hwaccel import HWAccel

    # In torch's context, so that both work in order; else in one of FFmpeg's choice, as the GPU's
    # primary context cannot be had where torch has opened it with other flags.
    if torch.cuda.is_available():
        torch.zeros(1, device=f"cuda:{gpu}")
    failure: OSError | None = None
    contexts: tuple[dict[str, object], ...] = ({"primary_ctx": "0", "current_ctx": "1"}, {})
    for options in contexts:
        hardware = HWAccel("cuda", str(gpu), False, options, is_hw_owned=True)
        try:
            av.CodecContext.create("h264", "r", hwaccel=hardware)
        except OSError as error:
            failure = error
        else:
            return hardware
    assert failure is not None
    raise failure


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet]":
    """The packets of a stream, and an empty one that makes the decoder give its last frames."""
    # At the very end, PyAV 18 trips over streams that appeared only on the way (MPEG-TS).
    with suppress(IndexError):
        yield from container.demux(stream)


def _index(
    container: "InputContainer", stream: "VideoStream"
) -> tuple[Sequence[int], list[int], bool]:
    """Time stamps of the shown frames and of all key frames, in order, and if they identify.

    Where time stamps are absent or repeat, the first are plain numbers, in order of decoding.
    """
    decoded, times, keys = [], [], []
    for packet in _packets(container, stream):  # each holds its data: none is kept
        if not packet.size:
            continue
        decoded.append(packet.pts)
        if not packet.is_discard:
            times.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
    known = [time for time in times if time is not None]
    if len(set(known)) < len(times) or _unordered(container, stream, decoded):
        return range(len(times)), [], False
    return sorted(known), sorted(keys), True


def _decode_from(
    container: "InputContainer", stream: "VideoStream", key: int, last: int
) -> "Iterator[VideoFrame]":
    """Frames from the key frame at time `key`, or an earlier one, up to time `last`.

    Nothing where seeking lands later, or on a frame that needs others: frames that lack what they
    refer to would come out damaged.
    """
    container.seek(key, stream=stream)
    begun = reached = False
    for packet in _packets(container, stream):
        if not begun:
            if not packet.is_keyframe:
                continue
            if packet.pts is None or packet.pts > key:
                return
            begun = True
        for frame in packet.decode():
            if not reached and frame.pts is not None and frame.pts >= key:
                reached = True
                if frame.pts > key or _is_predicted(frame):
                    return
            yield frame
            if frame.pts is not None and frame.pts >= last:
                return


def _converter() -> "Callable[[VideoFrame], Tensor]":
    """A function that makes a frame RGB, upright, uint8 (H,W,3)."""
    import numpy as np
    import torch
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one: it keeps its tables from frame to frame

    def convert(frame: "VideoFrame") -> "Tensor":
        rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame))))

    return convert


def _quarter_turns(frame: "VideoFrame") -> int:
    return round(frame.rotation / 90) % 4
