"""Re-encode clips so that training reads them fast: small, with many key frames, no B-frames.

Every clip is encoded in another process, since what FFmpeg makes of a damaged file is not ours to
know. Such a process gets one clip a line on its standard input; run as a module this file is that
process. It ends when the one that started it is gone, however that ended.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from shutil import rmtree
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, Literal, cast, get_args
from uuid import uuid4

from lmdvid.video import VIDEO_SUFFIXES, VideoReadError

if TYPE_CHECKING:
    from torch import Tensor

Fit = Literal["crop", "pad", "keep"]

_RECORD = ".lmdvid_prepared.jsonl"  # one line for each file that was made here
_PARTS = ".lmdvid_parts"  # what is being written
_FAILURES = "prepare_failed.txt"
_ENCODING = {"g": "12", "bf": "0", "threads": "1"}


class PrepareError(ValueError):
    """Clips that cannot be prepared as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """How clips are encoded; files made with others are made again.

    Attributes:
        size: side in pixels, even.
        fit: `crop` to the central square, as data modules do with what they read, or `pad` to a
            square by repeating the edge pixels, each then resized to `size`; `keep` resizes the
            shorter side to `size` and keeps the shape.
        crf: quality of x264, 18 is hardly seen, 0 the best, 51 the worst.
        version: of the way they are encoded.
    """

    size: int = 256
    fit: Fit = "crop"
    crf: float = 18
    version: int = 1

    def __post_init__(self):
        if self.size < 16 or self.size % 2:
            raise PrepareError(f"size is {self.size}; it must be even, and 16 or more")
        if self.fit not in get_args(Fit):
            raise PrepareError(f"fit is {self.fit!r}; choose from {', '.join(get_args(Fit))}")
        if not 0 <= self.crf <= 51:
            raise PrepareError(f"crf is {self.crf:g}; it must be between 0 and 51")

    def apply(self, frame: "Tensor") -> "Tensor":
        """Make a frame (H,W,3) uint8 what is written."""
        from lmdvid.video import centre_square, resize

        height, width = frame.shape[:2]
        if self.fit != "keep":
            return resize(centre_square(frame[None], self.fit), self.size)[0]
        scale = self.size / min(height, width)
        return resize(frame[None], (_even(height * scale), _even(width * scale)))[0]


@dataclass
class Prepared:
    """What came of it.

    Attributes:
        made: names of the clips that were encoded, as given.
        kept: names of those that were there already.
        failed: names of those that could not be, and why.
        strangers: files made here earlier, of clips that are not among those given.
        report: the list of what failed; None if nothing did.
    """

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    report: Path | None = None


def prepare_clips(
    clips: Mapping[str, Path],
    source: str | Path,
    output: str | Path,
    settings: Settings | None = None,
    jobs: int | None = None,
    progress: bool = False,
) -> Prepared:
    """Encode clips as H.264 with a key frame every 12 frames and no B-frames.

    Every frame is kept, and the frame rate exactly; where the rate varies, frames follow each
    other at its mean. Folders of pictures become videos of 25 frames per second. Sound is left out.
    A clip `train/a.avi`, or a folder of pictures `train/a`, becomes `train/a.mp4`.

    What is there already is kept if it was made here from the same source, by size and time of
    change, with the same settings. Files appear when they are complete, so that a run that was
    ended by whatever goes on where it stopped.

    Args:
        clips: names with `/` between folders, and paths.
        source: the folder that the clips are in, which is only read.
        output: the folder to write to.
        settings: how to encode.
        jobs: processes; as many as cores where None.
        progress: show a bar.

    Raises:
        PrepareError: The folders contain each other, or another run is writing to `output`.
    """
    source, output, settings = Path(source), Path(output), settings or Settings()
    _check_apart(source, output)
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        return _prepare(clips, output, settings, jobs or _cores(), progress)


def _prepare(
    clips: Mapping[str, Path], output: Path, settings: Settings, jobs: int, progress: bool
) -> Prepared:
    record, leftovers = output / _RECORD, output / _PARTS
    rmtree(leftovers, ignore_errors=True)
    # Of this run alone: processes of one that was killed may still be at their last clip.
    parts = leftovers / uuid4().hex
    parts.mkdir(parents=True)
    done, names = _load(record), _names(clips)
    result = Prepared(strangers=sorted({*done} - {*names.values()}))
    tasks: deque[_Task] = deque()
    for number, (key, path) in enumerate(clips.items()):
        target = output / names[key]
        try:
            facts = _facts(path) | asdict(settings)
        except OSError as error:
            result.failed[key] = f"cannot read {path}: {str(error.strerror).lower()}"
            continue
        known = done.get(names[key])
        if known is None and os.path.lexists(target):
            result.failed[key] = f"{target} is there, but was not made by this: move it away"
        elif known is not None and _is_done(known, facts, target):
            result.kept.append(key)
        else:
            tasks.append(_Task(key, names[key], path, parts / f"{number}.mp4", facts))
    with record.open("a") as lines, _bar(len(tasks), progress) as advance:
        for task, reason in _encoded(tasks, settings, jobs):
            if reason is None:
                target = output / task.name
                target.parent.mkdir(parents=True, exist_ok=True)
                # Noted first: a file without a note is somebody else's, a note without the file
                # only means to make it again.
                written = {"bytes": task.part.stat().st_size}
                lines.write(json.dumps({"name": task.name} | task.facts | written) + "\n")
                lines.flush()
                os.replace(task.part, target)
                result.made.append(task.key)
            else:
                result.failed[task.key] = reason
            advance()
    rmtree(leftovers, ignore_errors=True)
    report = output / _FAILURES
    if result.failed:
        lines = "".join(f"{key}: {why}\n" for key, why in sorted(result.failed.items()))
        report.write_text(lines, encoding="utf-8", errors="surrogateescape")
        result.report = report
    else:
        report.unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class _Task:
    key: str
    name: str
    path: Path
    part: Path
    facts: dict[str, Any]


def _names(clips: Mapping[str, Path]) -> dict[str, str]:
    """The file that each clip becomes; clips that differ only in their suffixes keep those."""

    def bare(key: str) -> str:
        stem, suffix = os.path.splitext(key)
        return stem if suffix.lower() in VIDEO_SUFFIXES else key

    count = Counter(bare(key) for key in clips)
    names = {key: f"{bare(key) if count[bare(key)] == 1 else key}.mp4" for key in clips}
    return names if len({*names.values()}) == len(names) else {key: f"{key}.mp4" for key in clips}


def _facts(path: Path) -> dict[str, int]:
    """What changes when the clip does."""
    if not path.is_dir():
        found = path.stat()
        return {"source_bytes": found.st_size, "source_mtime_ns": found.st_mtime_ns}
    with os.scandir(path) as entries:
        pictures = [entry.stat() for entry in entries if not entry.name.startswith(".")]
    return {
        "source_bytes": sum(picture.st_size for picture in pictures),
        "source_mtime_ns": max((picture.st_mtime_ns for picture in pictures), default=0),
        "source_files": len(pictures),
    }


def _is_done(known: dict[str, Any], facts: dict[str, Any], target: Path) -> bool:
    try:
        return known == facts | {"name": known["name"], "bytes": target.stat().st_size}
    except OSError:
        return False


def _load(record: Path) -> dict[str, dict[str, Any]]:
    """The last note on each file; a line that was cut off is dropped."""
    notes = {}
    with suppress(FileNotFoundError):
        for line in record.read_text().splitlines():
            with suppress(ValueError, TypeError, KeyError):
                note = json.loads(line)
                notes[note["name"]] = note
    part = record.with_name(f"{record.name}.part")
    part.write_text("".join(json.dumps(note) + "\n" for note in notes.values()))
    part.replace(record)
    return notes


def _check_apart(source: Path, output: Path) -> None:
    one, other = source.resolve(), output.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise PrepareError(
            f"{output} and {source} are the same or contain each other: prepared clips would be "
            "taken for originals, or replace them; give a folder elsewhere"
        )
    if output.exists() and not output.is_dir():
        raise PrepareError(f"{output} is a file; give a folder to write to")


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Refuse a second run on one folder; ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (output / ".lmdvid_lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"another run is writing to {output}; wait for its end") from None
        yield


@contextmanager
def _bar(total: int, shown: bool):
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disable) as bar:
        task = bar.add_task("preparing clips", total=total)
        yield lambda: bar.advance(task)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The processes


def _encoded(
    tasks: "deque[_Task]", settings: Settings, jobs: int
) -> Iterator[tuple[_Task, str | None]]:
    """Each task with the reason why it failed, or None, in the order in which they end."""
    total, done = len(tasks), SimpleQueue()
    children: set[subprocess.Popen] = set()
    for _ in range(min(jobs, total)):
        arguments = (tasks, settings, done, children)
        Thread(target=_serve, args=arguments, daemon=True).start()
    try:
        for _ in range(total):
            answer = done.get()
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        tasks.clear()
        for child in list(children):
            child.kill()
            child.wait()


def _serve(
    tasks: "deque[_Task]", settings: Settings, done: SimpleQueue, children: set[subprocess.Popen]
) -> None:
    child = None
    try:
        while tasks:
            try:
                task = tasks.popleft()
            except IndexError:  # another thread was quicker
                break
            if child is None:
                child = _start(settings)
                children.add(child)
            questions, answers = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
            with suppress(OSError):  # it ended before it read the question
                questions.write(json.dumps([str(task.path), str(task.part)]).encode() + b"\n")
                questions.flush()
            if line := answers.readline():
                done.put((task, json.loads(line)))
            else:
                child.communicate()
                reason = f"{task.path} crashes the encoder ({_cause(child.returncode)})"
                children.discard(child)
                child = None
                done.put((task, reason))
    except BaseException as error:  # whoever waits for the answers raises it
        done.put(error)
    finally:
        if child is not None:
            child.communicate()  # closes its input, which ends it
            children.discard(child)


def _start(settings: Settings) -> subprocess.Popen:
    # What this process can import, the other one can, too.
    modules = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    with TemporaryFile() as messages:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "lmdvid.prepare", json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={**os.environ, "PYTHONPATH": modules},
        )
        if not cast("IO[bytes]", child.stdout).readline():
            child.communicate()
            messages.seek(0)
            reason = messages.read().decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"clips cannot be encoded: {''.join(reason)}")
    return child


def _cause(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def encode_clip(path: Path, target: Path, settings: Settings) -> None:
    """Encode one clip in this process.

    Raises:
        VideoReadError: It cannot be read, or not all of its frames can.
    """
    from lmdvid.video import VideoWriter, probe, stream_frames

    info = probe(path)
    with VideoWriter(target, info.fps, crf=settings.crf, options=_ENCODING) as writer:
        for frame in stream_frames(path):
            writer.write(settings.apply(frame))
        if writer.frames != info.frames:
            raise VideoReadError(path, f"{writer.frames} of its {info.frames} frames decode")


def _even(length: float) -> int:
    return max(2 * round(length / 2), 2)


def _work() -> None:
    import torch

    torch.set_num_threads(1)  # there are as many processes as cores
    gc.freeze()  # the writer collects garbage after every file: spare it all that is loaded
    settings = Settings(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        path, part = map(Path, json.loads(line))
        try:
            encode_clip(path, part, settings)
            reason = None
        except VideoReadError as error:
            reason = str(error)
        except Exception as error:  # one clip is not to end the others
            reason = f"cannot encode {path}: {type(error).__name__}: {error}"
        print(json.dumps(reason), file=answers, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the one who asks, too
    _work()
