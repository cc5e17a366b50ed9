"""Decoding ahead of and encoding behind what is computed between them, each in its own thread.

Few frames wait at each side, so memory stays bounded. Whatever ends the computation ends the
threads too: when a block is left, nothing of it runs any more.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def read_ahead(items: Iterable[T], depth: int = 8) -> Iterator[Iterator[T]]:
    """An iterator over items that a thread draws in advance.

    Args:
        items: What to draw from; a generator is closed by the thread that drew from it.
        depth: How many items wait at most, 2 or more.

    Raises:
        Exception: In the place of the next item, whatever drawing it raised.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(max(2, depth))
    stopped = threading.Event()

    def draw() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                waiting.put(("item", item))
                if stopped.is_set():
                    return
            waiting.put(("end", None))
        except BaseException as error:
            waiting.put(("error", error))
        finally:
            if close := getattr(iterator, "close", None):
                close()

    def drawn() -> Iterator[T]:
        while True:
            kind, item = waiting.get()
            if kind == "item":
                yield item
            elif kind == "error":
                raise item
            else:
                return

    thread = threading.Thread(target=draw, name="read ahead", daemon=True)
    thread.start()
    try:
        yield drawn()
    finally:
        stopped.set()
        _empty(waiting)  # what may wait for a place gets it, then sees that it shall stop
        thread.join()


@contextmanager
def write_behind(write: Callable[[T], object], depth: int = 8) -> Iterator[Callable[[T], None]]:
    """A function that hands items to a thread, which writes them in order.

    Leaving the block waits until all is written; leaving it with an error drops what waits.

    Args:
        write: What the thread calls with each item.
        depth: How many items wait at most.

    Raises:
        Exception: At the next item or at the end, whatever writing raised.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    failures: list[BaseException] = []

    def drain() -> None:
        while True:
            kind, item = waiting.get()
            if kind == "end":
                return
            if not failures:
                try:
                    write(item)
                except BaseException as error:
                    failures.append(error)

    def put(item: T) -> None:
        if failures:
            raise failures[0]
        waiting.put(("item", item))

    thread = threading.Thread(target=drain, name="write behind", daemon=True)
    thread.start()
    try:
        yield put
    except BaseException:
        _empty(waiting)
        raise
    finally:
        waiting.put(("end", None))
        thread.join()
    if failures:
        raise failures[0]


def _empty(waiting: queue.Queue[Any]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        pass
