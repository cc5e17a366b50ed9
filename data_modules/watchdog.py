"""A worker that is stuck on a file is ended, and the process that trains learns which file it is.

FFmpeg may hang at a damaged file, and so may a network disk. Every worker has a clock that runs
while it reads a file; where the time is up, the system ends the worker, whatever code it is in.
"""

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import numpy as np
import torch

_CLOCK = struct.calcsize("d")
_watched: tuple[torch.Tensor, int] | None = None  # in a worker: its line of notes, and its seconds


class Watchdog:
    """Notes of what each worker reads, in memory that they share with the process that trains.

    Its instance is what a `DataLoader` calls first in each worker.

    Args:
        workers: how many.
        seconds: for which a worker may be at one file.
    """

    def __init__(self, workers: int, seconds: int):
        self.seconds = seconds
        self._notes = torch.zeros(workers, 4096, dtype=torch.uint8).share_memory_()

    def __call__(self, worker: int) -> None:
        """Begin to watch, in a worker."""
        global _watched
        _watched = self._notes[worker], self.seconds

    def stuck(self) -> list[str]:
        """Paths at which workers have been for longer than they may."""
        found = []
        for note in self._notes.numpy():
            (began,) = struct.unpack("d", note[:_CLOCK].tobytes())
            if began and monotonic() - began >= self.seconds:
                found.append(os.fsdecode(note[_CLOCK:].tobytes().split(b"\0")[0]))
        return found


@contextmanager
def watched(path: str) -> Iterator[None]:
    """Let the clock run while a file is read; nothing where this is no worker."""
    if _watched is None or not hasattr(signal, "alarm"):
        yield
        return
    note, seconds = _watched[0].numpy(), _watched[1]
    line = os.fsencode(path)[: len(note) - _CLOCK - 1] + b"\0"
    note[_CLOCK : _CLOCK + len(line)] = np.frombuffer(line, np.uint8)
    _start(note, seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        note[:_CLOCK] = 0


def restart() -> None:
    """Start the clock of this worker again, if it runs: what is read comes, if slowly.

    Any thread may call this, but only while another one is within `watched`.
    """
    if _watched is None or not hasattr(signal, "alarm"):
        return
    note, seconds = _watched[0].numpy(), _watched[1]
    if note[:_CLOCK].any():
        _start(note, seconds)


def _start(note: np.ndarray, seconds: int) -> None:
    # The clock of all processes of a machine is the same.
    note[:_CLOCK] = np.frombuffer(struct.pack("d", monotonic()), np.uint8)
    signal.alarm(seconds)
