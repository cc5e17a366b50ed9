"""decord: the fast backend. Nothing else imports it.

A reader lives within one call: a kept one decodes the whole file into memory in the background,
and it survives neither fork nor sharing between threads.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lmdvid.video.info import VideoReadError, check_indices


class UnreliableTimesError(Exception):
    """The time stamps show that decord would number this file's frames wrongly."""


@lru_cache
def is_installed() -> bool:
    """Whether decord can be imported (it has no wheel for some machines)."""
    return find_spec("decord") is not None


def read(path: Path, indices: Sequence[int]) -> Tensor:
    """The frames at sorted, unique `indices`, uint8 (T,H,W,3), on the CPU with one thread.

    Raises:
        UnreliableTimesError: An edit list hides frames, or time stamps repeat.
        VideoReadError: The file or one of the frames cannot be read.
    """
    decord = _decord()
    reader = None
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
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
    """Decord's first line without its clock, its C++ file and the path."""
    line = (str(error).strip().splitlines() or [""])[0]
    noise = r"^\[[0-9:]+\]\s*\S+?:\d+:\s*|Check failed:\s*|Error:\s*|Error reading.*"
    return f"damaged or cut off (decord: {re.sub(noise, '', line) or 'cannot open it'})"
