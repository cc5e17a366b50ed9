"""PyAV: the backend that numbers frames rightly in every container, and reads every header.

Everything runs on one thread. A container and its streams form a reference cycle, so they are
freed by the garbage collector; if that runs in a forked DataLoader worker and the codec or the
scaler owned threads of the parent, the worker waits for them for ever.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lmdvid.video.info import DEFAULT_FPS, VideoInfo, VideoReadError, check_indices

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from torch import Tensor


class Header(NamedTuple):
    """Facts about a file, gathered without torch, so that a process that scans starts quickly.

    Attributes:
        info: what everybody may know.
        container: FFmpeg's name of the container.
        pix_fmt: of the first frame.
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
            rotation=90 * turns,
            tilted=frame.rotation % 90 != 0,
            key_frames=len(keys),
            interlaced=bool(frame.interlaced_frame),
            open_group=open_group,
            clean_keys=second is None or _starts_here(stream, second),
            odd_times=odd_times,
        )


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


def read(path: Path, indices: Sequence[int]) -> "Tensor":
    """The frames at sorted, unique `indices`, uint8 (T,H,W,3).

    Frame i is the shown packet with the i-th smallest time stamp. Each run of frames is decoded
    from its key frame, or from the one before; where seeking does not find them (MPEG-TS,
    repeated time stamps) the file is decoded from its start.
    """
    from av.error import FFmpegError

    from lmdvid.video.frames import stack

    convert = _converter()
    found: dict[int, Tensor] = {}
    with _opened(path) as (container, stream):
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
        with _opened(path) as (container, stream):
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
def _opened(path: Path) -> "Iterator[tuple[InputContainer, VideoStream]]":
    import av
    from av.error import FFmpegError
    from av.stream import Disposition

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = cast("VideoStream | None", container.streams.best("video"))
            if not len(container.streams):
                raise VideoReadError(path, "not a video, or damaged (nothing in it is whole)")
            # The cover picture of a song counts as a video stream.
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise VideoReadError(path, "no video in it, only sound or data")
            if stream.codec_context is None:
                raise VideoReadError(path, "its video codec is unknown to FFmpeg")
            stream.codec_context.thread_count = 1
            yield container, stream
    except FFmpegError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise VideoReadError(path, f"not a video, or damaged ({reason})") from None


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
    packets = [packet for packet in _packets(container, stream) if packet.size]
    times = [packet.pts for packet in packets if not packet.is_discard]
    known = [time for time in times if time is not None]
    decoded = [packet.pts for packet in packets]
    if len(set(known)) < len(times) or _unordered(container, stream, decoded):
        return range(len(times)), [], False
    keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
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
