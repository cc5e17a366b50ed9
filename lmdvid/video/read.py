"""Reading clips, whatever holds them: one routing function, one error."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Literal, cast, get_args

from lmdvid.video import arrays, decord_backend, pictures, pyav_backend
from lmdvid.video.info import (
    VIDEO_SUFFIXES,
    VideoInfo,
    VideoReadError,
    in_order,
    read_bytes,
    status,
    to_numbers,
)
from lmdvid.video.tfrecord import Record

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lmdvid.video.gpu import GpuDecoder
    from lmdvid.video.scan import ScannedClip

log = logging.getLogger(__name__)

Backend = Literal["auto", "decord", "pyav"]

Reader = Literal["pictures", "arrays", "decord", "pyav"] | Record
"""What decodes a clip: a library, or a record of a file where it lies."""

_STILLS = {"pictures": pictures, "arrays": arrays}


def probe(path: str | Path) -> VideoInfo:
    """Facts about a clip: video file, gif, folder of pictures (25 fps), one picture, or array.

    The frames of a video are counted, packet by packet, without decoding them.

    Raises:
        VideoReadError: There is no such file, or no frame in it.
    """
    path = Path(path)
    found = status(path)
    stills = _stills(path, found)
    return _STILLS[stills].probe(path) if stills else _header(path, found).info


def read_clip(
    path: str | Path,
    indices: Iterable[int],
    backend: Backend = "auto",
    device: "str | torch.device" = "cpu",
) -> "Tensor":
    """Frames of a clip by their numbers, each exactly the frame stored there.

    Args:
        path: Video file, gif, folder of pictures, one picture (frame 0), or a `.npy` file of
            frames, uint8 (T, H, W, 3).
        indices: Frame numbers from 0, in any order, repeats allowed.
        backend: `auto` decodes with decord, where it is installed and known to be exact, and
            with PyAV all else: other codecs than H.264, MPEG-4, VP9 and MJPEG, MPEG-TS, gif,
            odd sizes, other pixel formats than 8-bit 4:2:0, interlaced frames, open groups of
            pictures, edit lists, repeated or missing time stamps. `decord` and `pyav` insist on
            one; pictures and arrays need neither. Both give the same pixels, bit for bit, because
            decord is given 8-bit 4:2:0 only: of what it is not given it would make slightly other
            colours (2 to 4 of 255 levels on average for odd sizes and 10-bit).
        device: Where the frames are to be. On `cuda` (or `cuda:1`) an NVIDIA GPU decodes, by the
            first that works there of decord, torchcodec and PyAV, or the one that `backend`
            insists on; what it would get wrong, and all where `auto` finds none, is decoded on
            the CPU. Not in forked processes.

    Returns:
        (T, H, W, 3) uint8 RGB, upright, on `device`. A GPU's pixels differ from the CPU's by
        about one grey level, as they are rounded elsewhere.

    Raises:
        VideoReadError: The file is missing or damaged, an index is out of range, or the backend
            that was insisted on does not read this file exactly.
        ModuleNotFoundError: `backend="decord"` without decord.
        NoGpuDecoderError: The backend that was insisted on does not decode on this GPU.
    """
    numbers = to_numbers(path, indices)
    path = Path(path)
    if str(device).startswith("cuda"):
        decoder = _gpu_decoder(str(device), backend)
        if decoder is not None and not _unfit_for_gpu(path, decoder):
            try:
                return decoder.read(path, read_bytes(path), numbers)
            except VideoReadError as error:
                log.warning("%s; the CPU tries", error)
    reader = route(path, backend)
    return decode(path, numbers, reader, insist=backend == "decord").to(device)


@lru_cache
def _gpu_decoder(device: str, backend: Backend) -> "GpuDecoder | None":
    import torch

    from lmdvid.video.gpu import NoGpuDecoderError, find_gpu_decoder

    decoder, explanation = find_gpu_decoder(torch.device(device), backend)
    if decoder is None and not torch.cuda.is_available():
        raise NoGpuDecoderError(f"torch {torch.__version__} finds no GPU for device='{device}'")
    log.log(logging.INFO if decoder else logging.WARNING, explanation)
    return decoder


def _unfit_for_gpu(path: Path, decoder: "GpuDecoder") -> str:
    from lmdvid.video.gpu import unfit_for_gpu
    from lmdvid.video.scan import ScannedClip, facts_of_video

    found = status(path)
    if stills := _stills(path, found):
        return stills
    facts = ScannedClip(path.name, **facts_of_video(_header(path, found)))
    return unfit_for_gpu(facts, decoder.name)


def decode(
    path: Path,
    indices: Sequence[int],
    reader: Reader,
    *,
    insist: bool = False,
    data: bytes | None = None,
) -> "Tensor":
    """Frames of a clip by the reader that `route` or a scan chose; else as `read_clip`.

    decord itself still notices edit lists and repeated time stamps, in a file that has changed
    since; PyAV takes over then, unless `insist`. So it does where decord fails: decord decodes
    ahead, and damage behind a frame spoils it or not, as chance has it. PyAV gives a frame always
    or never.

    Where `data` is given, it is the content of the file (or what `content` made of a folder of
    pictures), and `path` only what messages call it.
    """
    ordered = sorted(set(indices))
    if isinstance(reader, Record):
        return in_order(reader.load().frames(ordered), ordered, indices)
    if data is None:
        status(path)
    if reader in _STILLS:
        frames = _STILLS[reader].read(path, ordered, data)
    elif reader == "pyav":
        frames = pyav_backend.read(path, ordered, data)
    else:
        try:
            frames = decord_backend.read(path, ordered, data)
        except decord_backend.UnreliableTimesError:
            if insist:
                raise _refused(path, "edit lists or repeated time stamps") from None
            frames = pyav_backend.read(path, ordered, data)
        except VideoReadError:
            if insist:
                raise
            frames = pyav_backend.read(path, ordered, data)
    return in_order(frames, ordered, indices)


def content(path: Path) -> bytes:
    """A clip in one piece, as `decode` takes it: the file, or the pictures of a folder as a zip.

    Raises:
        VideoReadError: It cannot be read.
    """
    return pictures.packed(path) if S_ISDIR(status(path).st_mode) else read_bytes(path)


def stream_frames(path: str | Path) -> "Iterator[Tensor]":
    """Every frame of a clip in order, uint8 (H, W, 3), one in memory at a time.

    Frames come as stored: a variable frame rate repeats and drops none.

    Raises:
        VideoReadError: At once for what is missing; on the way for damage inside the file.
    """
    path = Path(path)
    stills = _stills(path, status(path))
    return (_STILLS[stills] if stills else pyav_backend).stream(path)


def stream_lazily(path: str | Path) -> "Iterator[tuple[int, Callable[[], Tensor]]]":
    """As `stream_frames`, but each frame is its number and a call that makes it.

    The call is for before the next one comes; what is not called for costs no conversion. Numbers
    are those of `read_clip`, which skip frames that do not decode.
    """
    path = Path(path)
    stills = _stills(path, status(path))
    return (_STILLS[stills] if stills else pyav_backend).stream_lazily(path)


def frame_times(path: str | Path) -> list[Fraction] | None:
    """When the frames of a clip with a varying rate are shown.

    Returns:
        T + 1 times in seconds: frame i is shown from `times[i]`, the first from 0, to
        `times[i + 1]`. None where the rate is constant, so that frame i begins at i / fps, or
        where the file's time stamps are missing or repeat.

    Raises:
        VideoReadError: The file is missing or damaged.
    """
    path = Path(path)
    return None if _stills(path, status(path)) else pyav_backend.frame_times(path)


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


def route(path: Path, backend: Backend = "auto") -> Reader:
    """Who reads this clip, by a look into it. A scan gives the same answer from its table.

    Raises:
        VideoReadError: decord is insisted on, but does not read this file exactly.
        ModuleNotFoundError: decord is insisted on, but absent.
    """
    found = status(path)
    if stills := _stills(path, found):
        return stills
    check_backend(backend)
    if backend == "pyav" or not decord_backend.is_installed():
        return "pyav"
    return _allowed(path, decord_backend.unfit(_header(path, found)), backend)


def reader_of(path: Path, clip: "ScannedClip", backend: Backend = "auto") -> Reader:
    """Who reads this clip, by what a scan found in it; nothing is opened.

    Raises:
        VideoReadError: The scan could not read it; or as `route`.
        ModuleNotFoundError: As `route`.
    """
    check_backend(backend)
    if clip.error:
        raise VideoReadError(path, clip.error)
    if stills := {"frames": "pictures", "array": "arrays"}.get(clip.kind):
        return cast(Reader, stills)
    return _allowed(path, clip.suspicious, backend)


def _allowed(path: Path, suspicious: str, backend: Backend) -> Literal["decord", "pyav"]:
    if backend == "pyav" or not decord_backend.is_installed():
        return "pyav"
    if suspicious and backend == "decord":
        raise _refused(path, suspicious)
    return "pyav" if suspicious else "decord"


def _refused(path: Path, what: str) -> VideoReadError:
    return VideoReadError(path, f"decord does not read {what} exactly; use backend='auto'")


def _stills(path: Path, found: os.stat_result) -> Literal["pictures", "arrays"] | None:
    """Which of the readers that need no video decoder reads this."""
    if S_ISDIR(found.st_mode) or pictures.is_picture(path.name):
        return "pictures"
    return "arrays" if arrays.is_array(path.name) else None


def _header(path: Path, found: os.stat_result) -> pyav_backend.Header:
    return _known_header(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=65536)
def _known_header(path: Path, _size: int, _mtime_ns: int) -> pyav_backend.Header:
    return pyav_backend.header(path)
