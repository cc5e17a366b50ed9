"""Processes that answer questions, and may crash or hang at any of them.

What FFmpeg makes of a damaged file is not ours to know, so whoever opens many files asks other
processes to: one that crashes or hangs is named, with its question, and the next questions go to a
new one. Questions and answers are lines of JSON on standard input and output. A process ends when
the one that started it is gone, however that ended.
"""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Lock, Thread
from time import monotonic
from typing import Any

_BYTES_PER_SECOND = 10e6  # of a slow disk
_LOOK_EVERY = 0.2  # seconds, for processes that are late
_START = 600.0  # seconds to start in: many at once may import torch from a slow disk
_GRACE = 10  # seconds after which a process that nobody waits for any more ends itself


class StartError(RuntimeError):
    """Processes that do not start; the text says what they were for and why."""


@dataclass(frozen=True)
class Ended:
    """Stands for the answers of a process that ended before it had given them.

    Attributes:
        cause: name of the signal, or exit code; empty where it was ended because it was silent.
        limit: for how many seconds it might have been.
    """

    cause: str
    limit: float


def patience(size: int, timeout: float) -> float:
    """Seconds to wait for news of a file of `size` bytes: `timeout`, and one for every 10 MB."""
    return timeout + size / _BYTES_PER_SECOND


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ask(
    questions: Sequence[tuple[Any, float]],
    module: str,
    arguments: Sequence[str] = (),
    *,
    processes: int,
    failure: str,
) -> Generator[tuple[int, Any], None, None]:
    """Answers to questions, in the order in which they come.

    Args:
        questions: plain data each, and for how many seconds a process may be silent about it.
        module: what runs as such a process; it calls `answer`.
        arguments: of its command line.
        processes: how many.
        failure: what to say where they do not start, before the reason.

    Yields:
        The number of a question, and an answer to it, or `Ended`, which is then the last of it.

    Raises:
        StartError: The processes do not start.
    """
    waiting = deque((number, *question) for number, question in enumerate(questions))
    events: SimpleQueue[_Event | BaseException] = SimpleQueue()
    started = [_Process(module, arguments, failure) for _ in range(min(processes, len(questions)))]
    for process in started:
        Thread(target=process.serve, args=(waiting, events), daemon=True).start()
    left, look = len(questions), 0.0
    try:
        while left:
            # By the clock, not when nothing comes: other processes may answer all the time.
            if monotonic() > look:
                for process in started:
                    process.end_if_late()
                look = monotonic() + _LOOK_EVERY
            try:
                event = events.get(timeout=_LOOK_EVERY)
            except Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            left -= event.last
            if event.answer is not None:
                yield event.number, event.answer
    finally:
        waiting.clear()
        for process in started:
            process.end()


@dataclass(frozen=True)
class _Event:
    number: int
    answer: Any
    last: bool


class _Process:
    """A process that answers one question after the other, started anew where one ends it."""

    def __init__(self, module: str, arguments: Sequence[str], failure: str):
        # Not multiprocessing, which would run an unguarded script of the user's a second time.
        self.command = [sys.executable, "-P", "-m", module, *arguments]
        self.failure = failure
        self._lock = Lock()
        self._child: subprocess.Popen | None = None
        self._deadline: float | None = None
        self._late = self._ended = False
        self._end_of_answers: Ended | None = None

    def serve(
        self,
        waiting: "deque[tuple[int, Any, float]]",
        events: "SimpleQueue[_Event | BaseException]",
    ) -> None:
        """Ask what waits, until nothing does."""
        try:
            while not self._ended:
                try:
                    number, question, limit = waiting.popleft()
                except IndexError:
                    break
                for answer in self._answers(question, limit):
                    events.put(_Event(number, answer, last=False))
                events.put(_Event(number, self._end_of_answers, last=True))
        except BaseException as error:  # whoever waits for the answers raises it
            events.put(error)
        finally:
            self.end()

    def end_if_late(self) -> None:
        with self._lock:
            if self._child and self._deadline and monotonic() > self._deadline:
                self._late = True
                self._child.kill()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            child, self._child = self._child, None
            if child is not None:
                child.kill()
                child.communicate()

    def _answers(self, question: Any, limit: float) -> Iterator[Any]:
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        self._wait_until(monotonic() + limit)
        self._end_of_answers = None
        line = b""
        with suppress(OSError):  # it ended before it read the question
            child.stdin.write(json.dumps([question, limit]).encode() + b"\n")
            child.stdin.flush()
            while (line := child.stdout.readline()).strip():
                self._wait_until(monotonic() + limit)
                yield json.loads(line)
        with self._lock:
            self._deadline = None
            late, self._late = self._late, False
            if line and not late:
                return
            self._child = None
        with suppress(subprocess.TimeoutExpired):
            child.wait(0 if late else 5)  # its exit code tells why it ended
        child.kill()
        child.communicate()
        if not line:
            cause = _cause(child.returncode)
            # Its own alarm rings when nobody here has looked at the clock.
            self._end_of_answers = Ended("" if late or cause == "SIGALRM" else cause, limit)

    def _wait_until(self, deadline: float) -> None:
        with self._lock:
            self._deadline = deadline

    def _start(self) -> subprocess.Popen:
        # What this process can import, the other one can, too.
        modules = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[2])])
        with TemporaryFile() as messages:
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env={**os.environ, "PYTHONPATH": modules},
            )
            with self._lock:
                self._child, self._deadline = child, monotonic() + _START
                if self._ended:  # while it was on its way
                    child.kill()
            assert child.stdout is not None
            if not child.stdout.readline() and not self._ended:
                messages.seek(0)
                lines = messages.read().decode(errors="replace").strip().splitlines()
                if self._late:
                    lines = [f"a process did not start within {_START:g} s"]
                raise StartError(f"{self.failure}: {''.join(lines[-1:])}")
        return child


def _cause(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def answer(replies: Callable[[Any], Iterable[Any]]) -> None:
    """Answer, in such a process, every question, until the one who asks is done or gone.

    Args:
        replies: gives the answers to a question; None is none, but a sign of life.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the one who asks, too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        question, limit = json.loads(line)
        _alarm(int(limit) + _GRACE)
        for reply in replies(question):
            print(json.dumps(reply), file=answers, flush=True)
            _alarm(int(limit) + _GRACE)
        _alarm(0)
        print(file=answers, flush=True)


def _alarm(seconds: int) -> None:
    """Let this process end itself, should it hang when nobody is there to end it."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
