"""Thousands of pictures moved with thousands of videos, whatever happens on the way.

Each pair is animated in another process, which it may crash or hang. Several invocations, also on
several machines that share a disk, may work on one folder: a pair belongs to whoever holds its
lock, and the system frees the lock of a process that ends. What came of each pair is a line of a
journal. Run as a module this file is such a process.
"""

import csv
import errno
import gc
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature
from itertools import islice
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import Any
from unicodedata import bidirectional, category

from lmdvid.video import IMAGE_SUFFIXES, workers

SUMMARY = "summary.csv"
COLUMNS = ("source", "driving", "output", "status", "seconds", "error")

_JOURNAL, _LOCKS, _PARTS = ".lmdvid_jobs.jsonl", ".lmdvid_jobs.lock", ".lmdvid_parts"
_SUFFIXES = {".mp4", ".m4v", ".gif", ".npz", *IMAGE_SUFFIXES}
_NEWS_EVERY = 1.0  # seconds
_LOOK_EVERY = 0.5  # seconds, whether another invocation has done with a pair
_NOTE = {"output", "status", "seconds", "error", "bytes", "time", "facts"}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class JobError(ValueError):
    """Pairs that cannot be animated as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Pair:
    """A picture, the video that moves it, and the name of what comes of it.

    Attributes:
        source: path of the picture.
        driving: path of the video.
        output: below the folder of results, with `/` between parts.
    """

    source: str
    driving: str
    output: str


@dataclass
class Summary:
    """What came of the pairs.

    Attributes:
        done: outputs that this invocation made.
        kept: outputs that were there already, or that another invocation made meanwhile.
        failed: outputs that could not be made, and why; also those of earlier invocations.
        table: the csv with a row for each pair.
    """

    table: Path
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{len(self.done)} pairs animated, {len(self.kept)} were there already, "
            f"{len(self.failed)} failed (see {self.table})"
        )

    def failures(self) -> list[str]:
        """A line for each of the first that failed."""
        return [f"{name}: {reason}" for name, reason in islice(self.failed.items(), 20)]


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a table with the columns `source`, `driving` and perhaps `output`.

    Paths that are not absolute are below the folder of the table. An output that is not named is
    `SOURCE__DRIVING.mp4`, with `_2`, `_3`, ... behind it where earlier rows have that name.

    Raises:
        JobError: The table cannot be read, lacks a column or a name, names one output twice, or
            an output that is not below the folder of results.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), list(table.fieldnames or ())
    except OSError as error:
        raise JobError(f"cannot read {path}: {str(error.strerror).lower()}") from None
    except (UnicodeError, csv.Error) as error:
        raise JobError(f"cannot read {path}: {error}") from None
    if missing := {"source", "driving"} - set(columns):
        raise JobError(
            f"{path} lacks the column(s) {', '.join(sorted(missing))}; it has "
            f"{', '.join(columns) or 'none'}; expected are source, driving and perhaps output"
        )
    pairs: dict[str, Pair] = {}
    for number, row in enumerate(rows, 2):
        place = f"{path}, row {number}"
        source, driving = row["source"] or "", row["driving"] or ""
        if not source or not driving or "\0" in source + driving:
            raise JobError(f"{place}: it names no source, or no driving")
        name = row.get("output") or ""
        if name:
            _check_output(name, place)
            name = str(PurePosixPath(name))
            if name in pairs:
                raise JobError(f"{place}: {name} is the output of an earlier row, too")
        else:
            name = _free_name(source, driving, pairs)
        pairs[name] = Pair(str(path.parent / source), str(path.parent / driving), name)
    if not pairs:
        raise JobError(f"{path} has no rows")
    return list(pairs.values())


def _check_output(name: str, place: str) -> None:
    parts = PurePosixPath(name).parts
    beyond = name.startswith("/") or ".." in parts or "\\" in name or ":" in name
    beyond = beyond or _plain_text(name) != name
    if beyond or any(part.startswith(".") for part in parts):
        raise JobError(f"{place}: output {name!r} is no plain name below the folder of results")
    if PurePosixPath(name).suffix.lower() not in _SUFFIXES:
        raise JobError(
            f"{place}: cannot write {name}: choose .mp4, .gif, .npz, or .png or .jpg for pictures"
        )


def _free_name(source: str, driving: str, taken: Mapping[str, Pair]) -> str:
    stem = f"{Path(source).stem}__{Path(driving).stem}".lstrip(".").replace(":", "_")
    stem = _plain_text(stem.replace("\\", "_"))
    name, number = f"{stem}.mp4", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.mp4"
    return name


def animate_pairs(
    pairs: Sequence[Pair],
    checkpoint: str | Path,
    output: str | Path,
    how: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    batch_size: int | None = None,
    jobs: int = 1,
    retry_failed: bool = False,
    progress: bool = False,
    timeout: float = 300.0,
) -> Summary:
    """Animate pairs, each once, in processes that they may crash.

    An output that is there is kept if it was made here by the same checkpoint, from the same files
    (by size and time of change), in the same manner. It gets its name when it is complete, so that
    an invocation that was ended by whatever goes on where it stopped. A pair at which a
    process ends is tried twice; one that has failed is left alone until its files
    change, or `retry_failed` asks for it.

    Args:
        pairs: with outputs of different names.
        checkpoint: see `Animator.from_pretrained`.
        output: folder of the results.
        how: options of `Animator.animate_file` as plain data, such as `{"fit": "pad"}`.
        device: see `choose_device`.
        dtype: `float32` or `bfloat16`, see `Animator`.
        batch_size: see `Animator`.
        jobs: processes.
        retry_failed: try again what failed before this invocation.
        progress: show a bar.
        timeout: seconds without a new frame after which a pair counts as hanging.

    Raises:
        JobError: The checkpoint is not there, there is no such option, results cannot be written,
            or the disk is full.
        StartError: The processes do not start, for example since the checkpoint cannot be loaded.
    """
    output, how = Path(output), _complete(how or {})
    settings = {
        "checkpoint": str(checkpoint),
        "output": str(output),
        "how": how,
        "device": device,
        "dtype": dtype,
        "batch_size": batch_size,
        "threads": max(1, workers.cores() // jobs),
        "same": _digest([_facts_of_checkpoint(Path(checkpoint)), how, dtype]),
    }
    try:
        (output / _PARTS).mkdir(parents=True, exist_ok=True)
        ledger = Ledger(output, settings["same"])
    except OSError as error:
        raise JobError(f"cannot write to {output}: {str(error.strerror).lower()}") from None
    with closing(ledger):
        return _animate_all(pairs, settings, ledger, jobs, retry_failed, progress, timeout)


def _complete(how: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `Animator.animate_file`: one that is not given is the same as its default."""
    from lmdvid.animate import Animator

    known = {
        name: parameter.default
        for name, parameter in signature(Animator.animate_file).parameters.items()
        if parameter.default is not parameter.empty and name != "progress"
    }
    if unknown := how.keys() - known:
        raise JobError(f"no option {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    # A file may say 1 where the command line says 1.0.
    edit = {int(i): float(delta) for i, delta in (how.get("edit") or {}).items()}
    magnitude = float(how.get("magnitude", known["magnitude"]))
    return known | dict(how) | {"edit": edit or None, "magnitude": magnitude}


def _animate_all(
    pairs: Sequence[Pair],
    settings: Mapping[str, Any],
    ledger: "Ledger",
    jobs: int,
    retry_failed: bool,
    progress: bool,
    timeout: float,
) -> Summary:
    summary = Summary(ledger.folder / SUMMARY)
    todo, retried = [], {}
    for pair in pairs:
        outcome = ledger.outcome(pair)
        if outcome is not None and not (retry_failed and outcome["status"] == "failed"):
            _count(summary, pair, outcome, mine=False)
            continue
        todo.append(pair)
        if outcome is not None:
            retried[pair.output] = outcome["time"]
    try:
        with _bar(len(todo), progress) as advance:

            def settle(pair: Pair, outcome: Mapping[str, Any], mine: bool) -> None:
                _count(summary, pair, outcome, mine)
                advance()

            while todo:
                elsewhere = _round(todo, settings, ledger, retried, jobs, timeout, settle)
                todo = _wait(elsewhere, ledger, retried, settle)
    finally:
        _write_table(summary.table, pairs, ledger)
    return summary


Settle = Callable[[Pair, Mapping[str, Any], bool], None]


def _round(
    todo: Sequence[Pair],
    settings: Mapping[str, Any],
    ledger: "Ledger",
    retried: Mapping[str, int],
    jobs: int,
    timeout: float,
    settle: Settle,
) -> list[Pair]:
    """Let processes animate pairs; return those that another invocation is at."""
    elsewhere, tried = [], []
    for last in (False, True):
        asked = tried if last else todo
        questions = [([_plain(pair), retried.get(pair.output)], timeout) for pair in asked]
        answers = workers.ask(
            questions,
            "lmdvid.jobs",
            [json.dumps(settings)],
            processes=jobs,
            failure="no pair can be animated",
        )
        with closing(answers):
            for number, answer in answers:
                pair = asked[number]
                if isinstance(answer, workers.Ended):
                    if answer.cause and not last:
                        tried.append(pair)
                        continue
                    reason = f"no new frame came within {answer.limit:.0f} s"
                    if answer.cause:
                        reason = f"it ends the process, twice ({answer.cause})"
                    with ledger.claim(pair) as mine:
                        if mine:
                            answer = ledger.note(pair, "failed", 0.0, reason)
                        else:
                            answer = ledger.outcome(pair, retried.get(pair.output))
                if answer is None or answer["status"] == "elsewhere":
                    elsewhere.append(pair)
                elif answer["status"] == "full":
                    raise JobError(f"{answer['error']}; free some space and start again")
                else:
                    settle(pair, answer, answer.get("mine", True))
    return elsewhere


def _wait(
    pairs: Sequence[Pair], ledger: "Ledger", retried: Mapping[str, int], settle: Settle
) -> list[Pair]:
    """Wait for pairs that another invocation is at; return those that it left undone."""
    left, orphans = list(pairs), []
    while left:
        waiting = []
        for pair in left:
            with ledger.claim(pair) as mine:
                outcome = ledger.outcome(pair, retried.get(pair.output))
            if outcome is not None:
                settle(pair, outcome, False)
            elif mine:
                orphans.append(pair)
            else:
                waiting.append(pair)
        left = waiting
        if left:
            time.sleep(_LOOK_EVERY)
    return orphans


def _count(summary: Summary, pair: Pair, outcome: Mapping[str, Any], mine: bool) -> None:
    if outcome["status"] == "failed":
        summary.failed[pair.output] = outcome["error"]
    else:
        (summary.done if mine else summary.kept).append(pair.output)


class Ledger:
    """Who is at which pair, and what came of the others.

    A lock is one byte of a file, at a place that follows from the output's name; it belongs to a
    process, and ends with it. Use one ledger of a folder in a process: closing the file that
    another has opened would free its locks.

    Args:
        folder: of the results.
        same: what an output must have been made with to be kept.
    """

    def __init__(self, folder: Path, same: str):
        self.folder = folder
        self.same = same
        self._locks = (folder / _LOCKS).open("a+b")
        self._read = 0
        self._notes: dict[str, dict[str, Any]] = {}
        self._made: set[str] = set()

    def close(self) -> None:
        """Give up all locks."""
        self._locks.close()

    @contextmanager
    def claim(self, pair: Pair) -> Iterator[bool]:
        """Hold a pair, unless another process does."""
        place = 1 + int.from_bytes(hashlib.sha256(pair.output.encode()).digest()[:7])
        if not self._lock(place, wait=False):
            yield False
            return
        try:
            yield True
        finally:
            self._unlock(place)

    def outcome(self, pair: Pair, retried: int | None = None) -> dict[str, Any] | None:
        """What was noted of a pair, if it still holds: same files, same manner, output there.

        `retried` is the time of a note that does not count, since the pair is tried again.
        """
        note = self._note_that_holds(pair)
        if note is None or note["time"] == retried:
            return None
        if note["status"] == "done" and note["bytes"] != _size(self.folder / pair.output):
            return None
        return note

    def part(self, pair: Pair) -> Path:
        """Where an output is until it is complete and noted; of other facts, somewhere else."""
        mark = hashlib.sha256(pair.output.encode()).hexdigest()[:20]
        suffix = PurePosixPath(pair.output).suffix.lower()
        return self.folder / _PARTS / f"{mark}-{_digest(self._facts(pair))}{suffix}"

    def finish(self, pair: Pair) -> dict[str, Any] | None:
        """Give an output its name where a process was killed between its note and that."""
        note, part, target = self._note_that_holds(pair), self.part(pair), self.folder / pair.output
        if note is None or note["status"] != "done" or note["bytes"] != _size(part):
            return None
        if not target.parent.is_dir() or os.path.lexists(target):
            return None
        part.replace(target)
        return note

    def _note_that_holds(self, pair: Pair) -> dict[str, Any] | None:
        self._refresh()
        note = self._notes.get(pair.output)
        return note if note is not None and note["facts"] == self._facts(pair) else None

    def is_mine(self, pair: Pair) -> bool:
        """Whether the file that has the output's name was made here, so that it may be replaced."""
        self._refresh()
        return pair.output in self._made

    def note(
        self, pair: Pair, status: str, seconds: float, error: str = "", size: int | None = None
    ) -> dict[str, Any]:
        """Add a line to the journal."""
        note = {
            "output": pair.output,
            "status": status,
            "seconds": round(seconds, 3),
            "error": error,
            "bytes": size,
            "time": time.time_ns(),
            "facts": self._facts(pair),
        }
        self._lock(0, wait=True)  # disks that machines share may mix what two append at once
        try:
            with (self.folder / _JOURNAL).open("a+b") as file:
                # A process that was killed may have left half a line.
                if file.seek(0, os.SEEK_END) and not _ends_a_line(file):
                    file.write(b"\n")
                file.write(json.dumps(note).encode() + b"\n")
        finally:
            self._unlock(0)
        return note

    def _refresh(self) -> None:
        with suppress(FileNotFoundError), (self.folder / _JOURNAL).open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    note = json.loads(line)
                    if note.keys() == _NOTE:
                        self._notes[note["output"]] = note
                        if note["status"] == "done":
                            self._made.add(note["output"])

    def _facts(self, pair: Pair) -> list[Any]:
        return [self.same, _state(pair.source), _state(pair.driving)]

    def _lock(self, place: int, wait: bool) -> bool:
        try:
            import fcntl
        except ImportError:
            raise JobError("lists of pairs need locks that Windows does not have") from None
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise JobError(
                f"{self.folder} lies on a disk without locks ({str(error.strerror).lower()}), "
                "which keep two processes from one pair: choose another one"
            ) from None
        return True

    def _unlock(self, place: int) -> None:
        import fcntl

        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, place)


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _state(path: str) -> list[int] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def _size(path: Path) -> int | None:
    found = _state(str(path))
    return None if found is None else found[0]


def _facts_of_checkpoint(path: Path) -> list[Any]:
    from lmdvid.pretrained import locate

    path = locate(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [_state(str(file)) for file in files]
    if not facts or None in facts:
        raise JobError(
            f"no checkpoint at {path}: give a converted folder or a training checkpoint (.ckpt)"
        )
    return facts


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _plain(pair: Pair) -> list[str]:
    return [pair.source, pair.driving, pair.output]


def _write_table(path: Path, pairs: Sequence[Pair], ledger: Ledger) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for pair in pairs:
            note = ledger.outcome(pair) or {"status": "left", "seconds": "", "error": ""}
            table.writerow([*_plain(pair), note["status"], note["seconds"], note["error"]])
    part.replace(path)


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("{task.description}", MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("animating pairs", total=total)
        yield lambda: bar.advance(task)


# The processes


class _Worker:
    """Animates the pairs that nobody else is at."""

    def __init__(self, settings: Mapping[str, Any]):
        import torch

        from lmdvid.animate import Animator
        from lmdvid.pretrained import choose_device

        torch.set_num_threads(settings["threads"])
        dtype = settings["dtype"] and getattr(torch, settings["dtype"])
        self.animator = Animator.from_pretrained(
            settings["checkpoint"],
            choose_device(settings["device"]),
            dtype,
            settings["batch_size"],
        )
        self.news: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.animator.taken = lambda: self.news.put(None)
        self.how = dict(settings["how"])
        if edit := self.how.get("edit"):
            self.how["edit"] = {int(i): delta for i, delta in edit.items()}  # JSON's keys are text
        self.folder = Path(settings["output"])
        self.ledger = Ledger(self.folder, settings["same"])

    def replies(self, question: Any) -> Iterator[dict[str, Any] | None]:
        """What came of a pair, after signs of life; see `workers.answer`."""
        plain, retried = question
        pair = Pair(*plain)
        with self.ledger.claim(pair) as mine:
            if not mine:
                yield {"status": "elsewhere"}
                return
            outcome = self.ledger.outcome(pair, retried) or self.ledger.finish(pair)
            if outcome is not None:
                yield outcome | {"mine": False}
                return
            # In a thread, so that this one can tell how it goes.
            thread = threading.Thread(target=self._animate, args=(pair,), daemon=True)
            thread.start()
            due = time.monotonic() + _NEWS_EVERY
            answer = None
            while answer is None:
                with suppress(Empty):
                    if (answer := self.news.get(timeout=_NEWS_EVERY)) is None:
                        if time.monotonic() > due:
                            due = time.monotonic() + _NEWS_EVERY
                            yield None
                        continue
            thread.join()
            yield answer

    def _animate(self, pair: Pair) -> None:
        began = time.monotonic()
        target, part = self.folder / pair.output, self.ledger.part(pair)
        try:
            mark = part.name.partition("-")[0]
            for leftover in part.parent.glob(f"{mark}*"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            self._check_place(pair, target)
            self.animator.animate_file(pair.source, pair.driving, part, **self.how)
            size = part.stat().st_size
            # Noted first: a file without a note is somebody else's. What is only noted, `finish`
            # ends.
            answer = self.ledger.note(pair, "done", time.monotonic() - began, size=size)
            part.replace(target)
        except Exception as error:
            part.unlink(missing_ok=True)
            answer = self._failed(pair, time.monotonic() - began, error)
        self.news.put(answer)

    def _failed(self, pair: Pair, seconds: float, error: Exception) -> dict[str, Any]:
        """Note that a pair failed; a full disk is not its fault, and no other would fare better."""
        if not (isinstance(error, OSError) and error.errno in _FULL):
            try:
                return self.ledger.note(pair, "failed", seconds, _words(error))
            except OSError as full:
                error = full
        return {"status": "full", "error": f"{error.strerror or error}: {self.folder}"}

    def _check_place(self, pair: Pair, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        root = self.folder.resolve()
        if not target.parent.resolve().is_relative_to(root):
            raise JobError(f"{target} leads out of {self.folder} by a link")
        if os.path.lexists(target):
            if not self.ledger.is_mine(pair):
                raise JobError(f"{target} is there, but was not made by this: move it away")
            # It no longer holds. Where it stayed, and the new one failed, it would pass for that;
            # and one of the same size for the new one, should this process end before the rename.
            target.unlink()


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _plain_text(name: str) -> str:
    """A name without control characters, and without those that turn the direction of text."""
    return "".join(
        "_" if category(c) in ("Cc", "Cs", "Zl", "Zp") or bidirectional(c) in _TURNS else c
        for c in name
    )


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def _words(error: Exception) -> str:
    text = _printable(" ".join(str(error).split()))
    if type(error).__module__.startswith("lmdvid."):
        return text
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    worker = _Worker(json.loads(sys.argv[1]))
    gc.freeze()  # the writer collects garbage after every file: spare it all that is loaded
    workers.answer(worker.replies)
