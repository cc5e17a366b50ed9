"""Several pieces of work at once on a CPU.

Where all of torch's threads compute one piece, they wait for the slowest of them after every
operation; with anything else to do for the processor (decoding, encoding) that is most of the time.
Here every piece has a thread of its own, among which torch's threads are shared out, and nobody
waits before a piece is done. Whatever torch keeps by thread, such as whether gradients are
computed, is for the work to set.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier, BrokenBarrierError, Lock
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_sharing_out = Lock()


def at_once(work: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """Work on every piece at the same time.

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
    with _workers(len(pieces)) as pool:
        return list(pool.map(work, pieces))


def in_order(work: Callable[[T], R], pieces: Iterable[T], count: int) -> Iterator[R]:
    """Work on pieces as they come, up to `count` at the same time.

    A piece is taken when another one's result has been given out, so that threads never wait for
    each other, and no more than `count` pieces are under way.

    Args:
        work: Called with each piece; with a count of 1, in the caller's thread.
        pieces: Any number; taken in the caller's thread.
        count: 1 or more.

    Returns:
        An iterator over the results, in the order of the pieces. All threads have ended when it
        ends, also early.

    Raises:
        Exception: What `work` or `pieces` raised, after the results of the pieces before.
    """
    pieces = iter(pieces)
    if count == 1:
        yield from map(work, pieces)
        return
    under_way: deque[Future[R]] = deque()
    with _workers(count) as pool:

        def take() -> None:
            try:
                for piece in itertools.islice(pieces, 1):
                    under_way.append(pool.submit(work, piece))
            except Exception as error:  # whose turn comes after the results of those before it
                failed: Future[R] = Future()
                failed.set_exception(error)
                under_way.append(failed)

        for _ in range(count):
            take()
        while under_way:
            yield under_way.popleft().result()
            take()


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    with _sharing_out:  # two callers share out in turn
        threads = torch.get_num_threads()
        started = Barrier(count + 1)

        def start() -> None:
            torch.get_num_threads()  # by which a thread takes the number all begin with
            torch.set_num_threads(max(1, threads // count))
            with suppress(BrokenBarrierError):
                started.wait()

        pool = ThreadPoolExecutor(count, initializer=start)
        try:
            for _ in range(count):
                pool.submit(int)
            started.wait()
        except BaseException:  # the system has no more threads: nobody shall wait for them
            started.abort()
            pool.shutdown()
            raise
        finally:
            torch.set_num_threads(threads)  # which is also what later threads begin with
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
