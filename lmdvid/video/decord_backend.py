"""decord: the fast backend. Nothing else imports it.

A reader lives within one call: a kept one decodes the whole file into memory in the background,
and it survives neither fork nor sharing between threads.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmdvid.video.info import VideoReadError, check_indices, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from lmdvid.video.pyav_backend import Header

_CODECS = ("h264", "mpeg4", "vp9", "mjpeg")
_PIXELS = ("yuv420p", "yuvj420p")
# decord 0.6 raises for every frame of these widths, alone of all from 16 to 400.
_BROKEN_WIDTHS = (16, 24, 48, 72)


class UnreliableTimesError(Exception):
    """The time stamps show that decord would number this file's frames wrongly."""


@lru_cache
def is_installed() -> bool:
    """Whether decord can be imported (it has no wheel for some machines)."""
    return find_spec("decord") is not None


def unfit(header: "Header") -> str:
    """What decord lacks or gets silently wrong in this file; empty if nothing is known."""
    info = header.info
    if info.codec not in _CODECS:
        return f"the codec {info.codec}"
    if header.container == "mpegts":
        return "MPEG-TS"
    if header.container == "avi" and info.codec == "h264":  # it holds no time stamps
        return "H.264 in AVI"
    if header.pix_fmt not in _PIXELS:
        return f"the pixel format {header.pix_fmt}"
    if info.width % 2 or info.height % 2:
        return f"the odd size {info.width}x{info.height}"
    if info.width in _BROKEN_WIDTHS:
        return f"the width {info.width}"
    if header.tilted:
        return "a rotation that is no quarter turn"
    if header.odd_times:
        return header.odd_times
    if header.open_group:
        return "an open group of pictures"
    if not header.clean_keys:
        return "key frames that need others"
    if header.interlaced:
        return "interlaced frames"
    return ""


def read(path: Path, indices: Sequence[int], data: bytes | None = None) -> "Tensor":
    """The frames at sorted, unique `indices`, uint8 (T,H,W,3), on the CPU with one thread.

    Args:
        path: The file, and what messages call it.
        indices: Frame numbers.
        data: Its content, where it is not on disk.

    Raises:
        UnreliableTimesError: An edit list hides frames, or time stamps repeat.
        VideoReadError: The file or one of the frames cannot be read.
    """
    if data is not None:
        return _read(path, BytesIO(data), indices, _decord().cpu(0))
    # Absolute, since FFmpeg takes what precedes a colon for a protocol.
    file: str | BytesIO = str(path.absolute())
    try:
        file.encode()
    except UnicodeEncodeError:  # a name that decord cannot be told
        file = BytesIO(read_bytes(path))
    return _read(path, file, indices, _decord().cpu(0))


def cuda_obstacle(gpu: int) -> str | None:
    """Why decord cannot decode on this GPU; None if nothing is known that stands against it."""
    if not is_installed():
        return "not installed"
    if not _decord().gpu(gpu).exist:
        return "sees no GPU (wheels from PyPI are built without CUDA)"
    return None


def read_on_gpu(path: Path, encoded: bytes, indices: Sequence[int], gpu: int) -> "Tensor":
    """The frames at sorted, unique `indices` of a file's bytes, uint8 (T,H,W,3) on the GPU.

    Raises:
        VideoReadError: The file or one of the frames cannot be read on the GPU.
    """
    try:
        return _read(path, BytesIO(encoded), indices, _decord().gpu(gpu))
    except UnreliableTimesError:
        raise VideoReadError(path, "decord: edit lists or repeated time stamps") from None


def _read(path: Path, file: str | BytesIO, indices: Sequence[int], place: Any) -> "Tensor":
    import numpy as np

    decord = _decord()
    reader = None
    try:
        reader = decord.VideoReader(file, ctx=place, num_threads=1, fault_tol=1)
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        if not len(starts):
            raise VideoReadError(path, "no frame in it can be decoded")
        if starts[0] < -1e-6 or (np.diff(starts) <= 0).any():
            raise UnreliableTimesError
        check_indices(path, indices, len(reader))
        # Not bridge.set_bridge: it would change what other users of decord here receive.
        return decord.bridge.to_torch(reader.get_batch(list(indices)))
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise VideoReadError(path, _reason(error)) from None
    finally:
        del reader  # an error's traceback would keep it, and with it its thread, alive


def _decord() -> Any:
    # Read once, when the library loads. Beyond one substituted frame fault_tol raises, so the
    # warning about many of them has nothing to say.
    os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
    import decord

    return decord


def _reason(error: Exception) -> str:
    """Decord's first line without its clock, its C++ and the path."""
    line = (str(error).strip().splitlines() or [""])[0]
    noise = (
        r"\[[0-9:]+\]\s*\S+?:\d+:\s*",  # clock, file and line number
        r"Check failed:.*?\(\S+ vs\. \S+\)\s*",
        r"\[/.*\]\s*",  # the path
        r"Error reading.*|ERROR\s|Error:\s*|Thread worker:\s*|\s?(?:and )?`DECORD_.*",
    )
    words = re.sub("|".join(noise), "", line).rstrip(".")
    return f"damaged or cut off (decord: {words or 'cannot open it'})"
