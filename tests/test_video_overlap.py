"""Reading ahead and writing behind: order, bounds, errors from each side, no thread left."""

import threading
import time

import pytest

from lmdvid.video.overlap import read_ahead, write_behind


@pytest.fixture(autouse=True)
def _no_thread_stays():
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_items_keep_their_order():
    written = []
    with read_ahead(iter(range(100)), 3) as items, write_behind(written.append, 3) as write:
        for item in items:
            write(item)
    assert written == list(range(100))
    with read_ahead([]) as items:
        assert list(items) == []


def test_reading_goes_ahead_but_not_far():
    drawn = []

    def numbers():
        for number in range(100):
            drawn.append(number)
            yield number

    with read_ahead(numbers(), 4) as items:
        wait_until(lambda: len(drawn) == 5)  # four wait, one has no place
        time.sleep(0.02)
        assert len(drawn) == 5
        assert next(items) == 0
        wait_until(lambda: len(drawn) == 6)


def test_writing_goes_on_behind_and_holds_the_giver_back():
    gate = threading.Semaphore(0)
    written, given = [], []

    def slow(item):
        gate.acquire()
        written.append(item)

    def open_later():
        wait_until(lambda: len(given) == 5)  # one is being written, four wait
        time.sleep(0.02)
        assert len(given) == 5
        gate.release(100)

    with write_behind(slow, 4) as write:
        opener = threading.Thread(target=open_later)
        opener.start()
        for number in range(20):
            write(number)
            given.append(number)
    opener.join()
    assert written == list(range(20))


def test_an_error_of_reading_comes_in_its_place():
    def numbers():
        yield 1
        raise RuntimeError("torn")

    with read_ahead(numbers()) as items:
        assert next(items) == 1
        with pytest.raises(RuntimeError, match="torn"):
            next(items)


@pytest.mark.parametrize("count", [1, 100])
def test_an_error_of_writing_comes_at_the_next_item_or_at_the_end(count):
    def fail(item):
        raise OSError("full")

    given = []

    def give():
        with write_behind(fail, 2) as write:
            for number in range(count):
                write(number)
                given.append(number)
                time.sleep(0.001)

    with pytest.raises(OSError, match="full"):
        give()
    assert len(given) < 100


def test_leaving_early_closes_the_generator_in_its_thread():
    closed = []

    def numbers():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    with read_ahead(numbers(), 2) as items:
        next(items)
    assert closed == ["read ahead"]


def test_an_error_between_drops_what_waits():
    gate = threading.Event()
    written = []

    def slow(item):
        gate.wait(10)
        written.append(item)

    def give():
        with write_behind(slow, 8) as write:
            for number in range(8):
                write(number)
            opener.start()
            raise KeyboardInterrupt

    opener = threading.Timer(0.05, gate.set)
    with pytest.raises(KeyboardInterrupt):
        give()
    opener.join()
    assert len(written) <= 1
