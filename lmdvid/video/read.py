"""Reading clips, whatever holds them: one routing function, one error."""

import operator
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Literal, get_args

from torch import Tensor

from lmdvid.video import decord_backend, pictures, pyav_backend
from lmdvid.video.info import VIDEO_SUFFIXES, VideoInfo, VideoReadError

Backend = Literal["auto", "decord", "pyav"]

_DECORD_CODECS = ("h264", "mpeg4", "vp9", "mjpeg")
_DECORD_PIXELS = ("yuv420p", "yuvj420p")
# decord 0.6 raises for every frame of these widths, alone of all from 16 to 400.
_DECORD_BROKEN_WIDTHS = (16, 24, 48, 72)


def probe(path: str | Path) -> VideoInfo:
    """Facts about a clip: video file, gif, folder of pictures (25 fps) or one picture.

    The frames of a video are counted, packet by packet, without decoding them.

    Raises:
        VideoReadError: There is no such file, or no frame in it.
    """
    path = Path(path)
    status = _status(path)
    return pictures.probe(path) if _is_pictures(path, status) else _header(path, status).info


def read_clip(path: str | Path, indices: Iterable[int], backend: Backend = "auto") -> Tensor:
    """Frames of a clip by their numbers, each exactly the frame stored there.

    Args:
        path: Video file, gif, folder of pictures, or one picture (frame 0).
        indices: Frame numbers from 0, in any order, repeats allowed.
        backend: `auto` decodes with decord, where it is installed and known to be exact, and
            with PyAV all else: other codecs than H.264, MPEG-4, VP9 and MJPEG, MPEG-TS, gif,
            odd sizes, other pixel formats than 8-bit 4:2:0, open groups of pictures, edit lists,
            repeated time stamps. Both give the same pixels. `decord` and `pyav` insist on one;
            pictures need neither.

    Returns:
        (T, H, W, 3) uint8 RGB, upright.

    Raises:
        VideoReadError: The file is missing or damaged, an index is out of range, or the backend
            that was insisted on does not read this file exactly.
        ModuleNotFoundError: `backend="decord"` without decord.
    """
    numbers = [operator.index(index) for index in indices]
    if not numbers:
        raise ValueError(f"read_clip({path}): indices is empty; ask for one frame or more")
    path = Path(path)
    ordered = sorted(set(numbers))
    reader = route(path, backend)
    if reader == "pictures":
        frames = pictures.read(path, ordered)
    elif reader == "pyav":
        frames = pyav_backend.read(path, ordered)
    else:
        try:
            frames = decord_backend.read(path, ordered)
        except decord_backend.UnreliableTimesError:
            if backend == "decord":
                raise _refused(path, "edit lists or repeated time stamps") from None
            frames = pyav_backend.read(path, ordered)
    if numbers == ordered:
        return frames
    place = {number: row for row, number in enumerate(ordered)}
    return frames[[place[number] for number in numbers]]


def stream_frames(path: str | Path) -> Iterator[Tensor]:
    """Every frame of a clip in order, uint8 (H, W, 3), one in memory at a time.

    Frames come as stored: a variable frame rate repeats and drops none.

    Raises:
        VideoReadError: At once for what is missing; on the way for damage inside the file.
    """
    path = Path(path)
    reader = pictures if _is_pictures(path, _status(path)) else pyav_backend
    return reader.stream(path)


def is_clip(path: str | Path) -> bool:
    """Whether this is a video file or gif by its name, or a folder of pictures by its content.

    Raises:
        VideoReadError: It may not be looked at.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return bool(pictures.names(path))
        return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    except OSError as error:
        raise VideoReadError(path, str(error.strerror).lower()) from None


def check_backend(backend: Backend) -> None:
    """Refuse what `read_clip` cannot read with.

    Raises:
        ValueError: There is no such backend.
        ModuleNotFoundError: decord is insisted on, but absent.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r}: use 'auto', 'decord' or 'pyav'")
    if backend == "decord" and not decord_backend.is_installed():
        raise ModuleNotFoundError(
            "backend='decord': decord is not installed (pip install decord, on ARM and macOS "
            "decord2); backend='auto' reads with PyAV instead"
        )


def route(path: Path, backend: Backend = "auto") -> Literal["pictures", "decord", "pyav"]:
    """Who reads this clip. The one place where that is decided before a file is decoded.

    Raises:
        VideoReadError: decord is insisted on, but does not read this file exactly.
        ModuleNotFoundError: decord is insisted on, but absent.
    """
    check_backend(backend)
    status = _status(path)
    if _is_pictures(path, status):
        return "pictures"
    if backend == "pyav" or not decord_backend.is_installed():
        return "pyav"
    unfit = _unfit_for_decord(_header(path, status))
    if unfit and backend == "decord":
        raise _refused(path, unfit)
    return "pyav" if unfit else "decord"


def _unfit_for_decord(header: pyav_backend.Header) -> str | None:
    """What decord lacks or gets silently wrong in this file; None if nothing is known."""
    info = header.info
    if info.codec not in _DECORD_CODECS:
        return f"the codec {info.codec}"
    if header.container == "mpegts":
        return "MPEG-TS"
    if header.pix_fmt not in _DECORD_PIXELS:
        return f"the pixel format {header.pix_fmt}"
    if info.width % 2 or info.height % 2:
        return f"the odd size {info.width}x{info.height}"
    if info.width in _DECORD_BROKEN_WIDTHS:
        return f"the width {info.width}"
    if header.open_group:
        return "an open group of pictures"
    return None


def _refused(path: Path, what: str) -> VideoReadError:
    return VideoReadError(path, f"decord does not read {what} exactly; use backend='auto'")


def _is_pictures(path: Path, status: os.stat_result) -> bool:
    return S_ISDIR(status.st_mode) or pictures.is_picture(path.name)


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise VideoReadError(path, "no such file or folder") from None
    except OSError as error:
        raise VideoReadError(path, str(error.strerror).lower()) from None
    if S_ISREG(status.st_mode) and status.st_size == 0:
        raise VideoReadError(path, "the file is empty")
    return status


def _header(path: Path, status: os.stat_result) -> pyav_backend.Header:
    return _known_header(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _known_header(path: Path, _size: int, _mtime_ns: int) -> pyav_backend.Header:
    return pyav_backend.header(path)
