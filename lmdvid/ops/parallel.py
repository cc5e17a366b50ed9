"""Several pieces of work at once on a CPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_sharing_out = Lock()


def at_once(work: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """Work on every piece in a thread of its own, among which torch's threads are shared out.

    Where all of torch's threads compute one piece, they wait for the slowest of them after every
    operation; with anything else to do for the processor (decoding, encoding) that is most of the
    time. Here nobody waits before the end. Two callers take turns. Whatever torch keeps by thread,
    such as whether gradients are computed, is for `work` to set.

    Args:
        work: Called with each piece; a single one, in the caller's thread.
        pieces: One or more.

    Returns:
        The results, in the order of the pieces. All threads have ended by then.

    Raises:
        Exception: The first in that order that `work` raised, when all have ended.
    """
    if len(pieces) == 1:
        return [work(pieces[0])]
    with _sharing_out:
        threads = torch.get_num_threads()
        share = max(1, threads // len(pieces))
        try:
            with ThreadPoolExecutor(
                len(pieces), initializer=torch.set_num_threads, initargs=(share,)
            ) as pool:
                return list(pool.map(work, pieces))
        finally:
            torch.set_num_threads(threads)  # which is also what later threads begin with
