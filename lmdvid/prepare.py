"""Re-encode clips so that training reads them fast: small, with many key frames, no B-frames.

Clips are whole videos, or parts of them in time and space. Each video is decoded once, for all
clips out of it, in another process, which a damaged file may crash or hang. Run as a module this
file is that process.
"""

import errno
import gc
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cache, partial
from hashlib import sha256
from pathlib import Path, PurePath
from shutil import rmtree
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Self, get_args
from uuid import uuid4

from lmdvid.video import VIDEO_SUFFIXES, Cut, Record, VideoInfo, VideoReadError, workers

if TYPE_CHECKING:
    from torch import Tensor

    from lmdvid.video import VideoWriter

log = logging.getLogger(__name__)

Fit = Literal["crop", "pad", "stretch", "keep"]

_RECORD = ".lmdvid_prepared{shard}.jsonl"  # one line for each file that was made here
_PARTS = ".lmdvid_parts{shard}"  # what is being written
_LOCK = ".lmdvid_lock{shard}"
FAILURES, _MISSING = "prepare_failed{shard}.txt", "prepare_missing{shard}.txt"
_NEWS_EVERY = 1.0  # seconds
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # some network disks
_ENCODING = {"g": "12", "bf": "0", "threads": "1"}


class PrepareError(ValueError):
    """Clips that cannot be prepared as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Shard:
    """One of several parts of a data set, each of which another machine prepares.

    An original belongs to a part by its name alone, whatever else there is.

    Attributes:
        number: 1 to `count`.
        count: of parts.
    """

    number: int
    count: int

    def __post_init__(self):
        if not 1 <= self.number <= self.count:
            raise PrepareError(f"shard is {self}; it must be between 1/{self.count} and the last")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `2/8`.

        Raises:
            PrepareError: It is something else.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(count)):
            raise PrepareError(f"shard is {text!r}; write it like 2/8, from 1/8 to 8/8")
        return cls(int(number), int(count))

    @property
    def mark(self) -> str:
        """What the files that record this part have in their names."""
        return f".{self.number}of{self.count}"

    def holds(self, name: str) -> bool:
        """Whether an original of this name belongs to it."""
        digest = sha256(name.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1


@dataclass(frozen=True)
class Settings:
    """How clips are encoded; files made with others are made again.

    Attributes:
        size: side in pixels, even.
        fit: `crop` to the central square, as data modules do with what they read, or `pad` to a
            square by repeating the edge pixels, each then resized to `size`; `stretch` resizes to a
            square what is none; `keep` resizes the shorter side to `size` and keeps the shape.
        crf: quality of x264, 18 is hardly seen, 0 the best, 51 the worst; nothing to pictures.
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
        if self.fit == "stretch":
            return resize(frame[None], self.size)[0]
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
        missing: the list of originals that were not there; None if there is none.
    """

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    report: Path | None = None
    missing: Path | None = None


def prepare_clips(
    clips: Mapping[str, Path],
    source: str | Path,
    output: str | Path,
    settings: Settings | None = None,
    jobs: int | None = None,
    progress: bool = False,
    timeout: float = 60.0,
    shard: Shard | None = None,
) -> Prepared:
    """Encode whole clips.

    Every frame is kept. A clip `train/a.avi`, or a folder of pictures `train/a`, becomes
    `train/a.mp4`.

    Args:
        clips: names with `/` between folders, and paths.
        source: the folder that the clips are in, which is only read.
        output: the folder to write to.
        settings: how to encode.
        jobs: processes; as many as cores where None.
        progress: show a bar.
        timeout: see `prepare_cuts`.
        shard: see `prepare_cuts`.

    Raises:
        PrepareError: The folders contain each other, or another run is writing to `output`.
    """
    names = _names(clips)
    tasks = [_Task(key, names[key], Cut(path)) for key, path in clips.items()]
    settings = settings or Settings()
    return _prepare(tasks, source, output, settings, jobs, progress, timeout, (), {}, shard)


def prepare_cuts(
    cuts: Mapping[str, Cut],
    source: str | Path,
    output: str | Path,
    settings: Settings | None = None,
    jobs: int | None = None,
    progress: bool = False,
    timeout: float = 60.0,
    missing: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
    shard: Shard | None = None,
) -> Prepared:
    """Encode parts of clips as H.264 with a key frame every 12 frames and no B-frames.

    Every frame of a part is kept, and the frame rate exactly; where the rate varies, frames follow
    each other at its mean. Pictures, arrays and records become videos of 25 frames per second.
    Sound is left out.

    What is there already is kept if it was made here from the same source, by size and time of
    change, with the same settings. Files appear when they are complete, so that a run that was
    ended by whatever goes on where it stopped.

    Args:
        cuts: for each file to make, its name with `/` between folders, and what is to be in it.
            A name that does not end with `.mp4` is that of a folder of png pictures.
        source: the folder that the originals are in, which is only read.
        output: the folder to write to.
        settings: how to encode.
        jobs: processes; as many as cores where None.
        progress: show a bar.
        timeout: seconds for which FFmpeg may give no frame of a file before that counts as hanging;
            one more for every 10 MB of it.
        missing: names of originals that are not there, to be listed in `prepare_missing.txt`.
        failed: names of clips that are known to be impossible, and why; they are listed with those
            that turn out to be.
        shard: prepare only the clips out of these originals; shards may write to one folder at the
            same time, each with its own record, which `merge` unites.

    Raises:
        PrepareError: The folders contain each other, or another run is writing to `output`.
    """
    tasks = [_Task(name, name, cut) for name, cut in cuts.items()]
    settings = settings or Settings()
    rest = (jobs, progress, timeout, missing, failed or {}, shard)
    return _prepare(tasks, source, output, settings, *rest)


def merge(output: str | Path) -> tuple[int, int]:
    """Unite the records and lists that shards left in a folder.

    Then a run without shards knows what they made, and continues them.

    Returns:
        How many shards there were, and how many files are known in all.

    Raises:
        PrepareError: There is none, or a run is writing to the folder.
    """
    output = Path(output)
    marks = sorted(_mark_of(path) for path in output.glob(_RECORD.format(shard=".*")))
    if not marks:
        raise PrepareError(f"{output} holds no record of a shard: prepare with --shard i/n first")
    with locked(output, ""):
        notes: dict[str, dict[str, Any]] = {}
        for mark in ("", *marks):
            notes |= _load(output / _RECORD.format(shard=mark))
        record = output / _RECORD.format(shard="")
        part = record.with_name(f"{record.name}.part")
        part.write_text("".join(json.dumps(note) + "\n" for note in notes.values()))
        part.replace(record)
        merge_lists(output, marks)
        for mark in marks:
            (output / _RECORD.format(shard=mark)).unlink(missing_ok=True)
    return len(marks), len(notes)


def merge_lists(output: Path, marks: Sequence[str]) -> None:
    """Unite the lists of what failed or is missing in parts of a set, and remove their locks."""
    for name in (FAILURES, _MISSING):
        lines: dict[str, None] = {}
        for mark in marks:
            with suppress(FileNotFoundError):
                text = (output / name.format(shard=mark)).read_text(errors="surrogateescape")
                lines |= dict.fromkeys(text.splitlines())
        write_list(output / name.format(shard=""), sorted(lines))
    for mark in marks:
        for name in (FAILURES, _MISSING, _LOCK):
            (output / name.format(shard=mark)).unlink(missing_ok=True)


def _mark_of(record: Path) -> str:
    start, end = _RECORD.split("{shard}")
    return record.name.removeprefix(start).removesuffix(end)


@dataclass(frozen=True)
class _Task:
    key: str
    name: str
    cut: Cut


def _prepare(
    tasks: Sequence[_Task],
    source: str | Path,
    output: str | Path,
    settings: Settings,
    jobs: int | None,
    progress: bool,
    timeout: float,
    missing: Sequence[str],
    failed: Mapping[str, str],
    shard: Shard | None,
) -> Prepared:
    mark = ""
    if shard is not None:
        mark = shard.mark
        root = Path(source)
        tasks = [task for task in tasks if shard.holds(_name_below(root, task.cut))]
        missing = [name for name in missing if shard.holds(name)]
        failed = {name: reason for name, reason in failed.items() if shard.holds(name)}
    source, output = Path(source), Path(output)
    check_apart(source, output)
    for task in tasks:
        name = PurePath(task.name)
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise PrepareError(f"{task.key}: '{task.name}' is no name of a file below {output}")
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, mark):
        leftovers = output / _PARTS.format(shard=mark)
        rmtree(leftovers, ignore_errors=True)
        try:
            jobs = jobs or workers.cores()
            result = _make(tasks, output, settings, jobs, progress, timeout, mark)
        finally:
            rmtree(leftovers, ignore_errors=True)
        result.failed |= failed
        lines = [f"{key}: {why}" for key, why in sorted(result.failed.items())]
        result.report = write_list(output / FAILURES.format(shard=mark), lines)
        result.missing = write_list(output / _MISSING.format(shard=mark), missing)
    return result


def write_list(path: Path, lines: Sequence[str]) -> Path | None:
    """Write lines into a file; without lines there is none, and None is returned."""
    if not lines:
        path.unlink(missing_ok=True)
        return None
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return path


def _make(
    tasks: Sequence[_Task],
    output: Path,
    settings: Settings,
    jobs: int,
    progress: bool,
    timeout: float,
    mark: str,
) -> Prepared:
    # Of this run alone: processes of one that was killed may still be at their last clip.
    parts = output / _PARTS.format(shard=mark) / uuid4().hex
    parts.mkdir(parents=True)
    record = output / _RECORD.format(shard=mark)
    done = _load(record)
    others = {*done} - {task.name for task in tasks}
    if mark:  # what was made without shards, or is merged already
        others = set()
        done = _notes(output / _RECORD.format(shard="")) | done
    result = Prepared(strangers=sorted(n for n in others if os.path.lexists(output / n)))
    facts_of = cache(_facts)
    # Of each video the clips to make, each with the facts to note.
    videos: dict[tuple[Path, Record | None], list[tuple[_Task, dict[str, Any]]]] = {}
    for task in tasks:
        target = output / task.name
        try:
            facts = facts_of(task.cut.path) | asdict(settings) | _facts_of_cut(task.cut)
        except OSError as error:
            reason = str(error.strerror).lower()
            result.failed[task.key] = f"cannot read {task.cut.path}: {reason}"
            continue
        if not task.name.endswith(".mp4"):
            del facts["crf"]  # pictures lose nothing
        known = done.get(task.name)
        if known is None and os.path.lexists(target):
            result.failed[task.key] = f"{target} is there, but was not made by this: move it away"
        elif known is not None and _is_done(known, facts, target):
            result.kept.append(task.key)
        else:
            videos.setdefault((task.cut.path, task.cut.record), []).append((task, facts))
    waiting = list(videos.values())
    questions = [_question(number, clips, parts, timeout) for number, clips in enumerate(waiting)]
    answers = workers.ask(
        questions,
        "lmdvid.prepare",
        [json.dumps(asdict(settings))],
        processes=jobs,
        failure="clips cannot be encoded",
    )
    total = sum(map(len, waiting))
    left = [{*range(len(clips))} for clips in waiting]
    with record.open("a") as lines, closing(answers), _bar(total, progress) as advance:
        for number, answer in answers:
            if isinstance(answer, workers.Ended):
                path = waiting[number][0][0].cut.path
                reason = (
                    f"{path} crashes the encoder ({answer.cause})"
                    if answer.cause
                    else f"cannot read {path}: no frame came within {answer.limit:.0f} s"
                )
                ended = [(place, reason) for place in sorted(left[number])]
            else:
                ended = [answer]
            for place, reason in ended:
                left[number].discard(place)
                task, facts = waiting[number][place]
                if reason is None:
                    part = _part(parts, number, place, task.name)
                    # Noted first: a file without a note is somebody else's, a note without the
                    # file only means to make it again.
                    note = {"name": task.name} | facts | {"bytes": _bytes(part)}
                    lines.write(json.dumps(note) + "\n")
                    lines.flush()
                    _put(part, output / task.name)
                    result.made.append(task.key)
                else:
                    result.failed[task.key] = reason
                advance()
    return result


def _part(parts: Path, number: int, place: int, name: str) -> Path:
    return parts / f"{number}_{place}{'.mp4' if name.endswith('.mp4') else ''}"


def _put(part: Path, target: Path) -> None:
    """Give what is complete its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():  # a folder is not replaced; one made with other settings goes
        target.rename(part.with_name(f"{part.name}_before"))
    os.replace(part, target)


def _question(
    number: int, clips: Sequence[tuple[_Task, dict[str, Any]]], parts: Path, timeout: float
) -> tuple[Any, float]:
    """What a process is asked about a video, and for how long it may be silent."""
    cut, facts = clips[0][0].cut, clips[0][1]
    source = {"path": str(cut.path), "record": cut.record and asdict(cut.record)}
    wanted = [
        _facts_of_cut(task.cut) | {"part": str(_part(parts, number, place, task.name))}
        for place, (task, _) in enumerate(clips)
    ]
    size = 0 if cut.record else facts["source_bytes"]
    return [source, wanted], workers.patience(size, timeout)


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


def _facts_of_cut(cut: Cut) -> dict[str, Any]:
    """What is cut out of it, as plain data; nothing for all of it."""
    facts: dict[str, Any] = {}
    if cut.span is not None:
        facts["span"] = [*cut.span]
        facts["fps"] = None if cut.fps is None else str(cut.fps)
    if cut.box is not None:
        facts["box"] = [*cut.box]
        facts["box_of"] = None if cut.size is None else [*cut.size]
    if cut.record is not None:
        facts["record"] = [cut.record.number, cut.record.camera]
    return facts


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir())


def _is_done(known: dict[str, Any], facts: dict[str, Any], target: Path) -> bool:
    try:
        return known == facts | {"name": known["name"], "bytes": _bytes(target)}
    except OSError:
        return False


def _name_below(root: Path, cut: Cut) -> str:
    path = cut.path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _notes(record: Path) -> dict[str, dict[str, Any]]:
    """The last note on each file; a line that was cut off is dropped."""
    notes = {}
    with suppress(FileNotFoundError):
        for line in record.read_text().splitlines():
            with suppress(ValueError, TypeError, KeyError):
                note = json.loads(line)
                notes[note["name"]] = note
    return notes


def _load(record: Path) -> dict[str, dict[str, Any]]:
    """The notes, after which the file holds each once."""
    notes = _notes(record)
    part = record.with_name(f"{record.name}.part")
    part.write_text("".join(json.dumps(note) + "\n" for note in notes.values()))
    part.replace(record)
    return notes


def check_apart(source: Path, output: Path) -> None:
    """Refuse folders that contain each other.

    Raises:
        PrepareError: They do, or `output` is a file.
    """
    one, other = (Path(os.path.realpath(folder)) for folder in (source, output))
    if one == other or one in other.parents or other in one.parents:
        raise PrepareError(
            f"{output} and {source} are the same or contain each other: prepared clips would be "
            "taken for originals, or replace them; give a folder elsewhere"
        )
    if output.exists() and not output.is_dir():
        raise PrepareError(f"{output} is a file; give a folder to write to")


@contextmanager
def locked(output: Path, mark: str) -> Iterator[None]:
    """Refuse a second run on one folder; ends with the process, however that ends.

    Args:
        output: the folder.
        mark: of the part of a set that this run prepares, `Shard.mark`; runs of different parts
            do not meet, but exclude one of the whole set, as uniting its parts is.

    Raises:
        PrepareError: Another run is writing to it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    wanted = {"": fcntl.LOCK_SH, mark: fcntl.LOCK_EX}  # in this order; one where there is no part
    with ExitStack() as files:
        for name, kind in wanted.items():
            lock = files.enter_context((output / _LOCK.format(shard=name)).open("a+"))
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PrepareError(
                    f"another run is writing to {output}; wait for its end"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                log.warning(
                    "%s knows no locks (%s): let one run at a time write to it",
                    output,
                    str(error.strerror).lower(),
                )
                break
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


# The processes


class _Clip:
    """A clip that is being made, of some frames of a video."""

    def __init__(self, cut: Cut, target: Path, info: VideoInfo, times: Sequence[Fraction] | None):
        self.source = cut.path
        self.frames = cut.frames(info, times)
        self.next, self.total = self.frames.start, info.frames
        self.box = cut.pixels(info.width, info.height)
        self.target, self.fps = target, info.fps
        self.writer: VideoWriter | _Pictures | None = None

    @property
    def ended(self) -> bool:
        return self.next == self.frames.stop

    def missing(self) -> VideoReadError:
        return VideoReadError(self.source, f"frame {self.next} of {self.total} does not decode")

    def write(self, frame: "Tensor", settings: Settings) -> None:
        """Append frame number `next`."""
        from lmdvid.video import VideoWriter

        if self.writer is None:
            writer = _Pictures(self.target)
            if self.target.suffix == ".mp4":
                writer = VideoWriter(self.target, self.fps, crf=settings.crf, options=_ENCODING)
            self.writer = writer.__enter__()
        left, top, right, bottom = self.box
        self.writer.write(settings.apply(frame[top:bottom, left:right]))
        self.next += 1

    def close(self, error: Exception | None = None) -> None:
        # Taken out first: one that fails to close, as on a full disk, is closed all the same.
        writer, self.writer = self.writer, None
        if writer is not None:
            with suppress(OSError) if error else nullcontext():
                writer.__exit__(error and type(error), error, None)


class _Pictures:
    """Frames as `0.png`, `1.png`, ... in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.frames = folder, 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        return self

    def write(self, frame: "Tensor") -> None:
        from lmdvid.video import write_image

        write_image(self.folder / f"{self.frames}.png", frame)
        self.frames += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            rmtree(self.folder)


def encode(
    cuts: Sequence[tuple[Cut, Path]], settings: Settings
) -> Iterator[tuple[int, str | None] | None]:
    """Encode clips out of one video in this process, which decodes it once.

    Args:
        cuts: parts of the same video or record, and the file to make of each.
        settings: how to encode.

    Yields:
        The place of a clip in `cuts` as it is done, and None, or the reason why it cannot be made;
        and None about once a second, as a sign of life.
    """
    path, left = cuts[0][0].path, dict.fromkeys(range(len(cuts)))
    clips: dict[int, _Clip] = {}

    def end(place: int, reason: str | None) -> tuple[int, str | None]:
        del left[place]
        clips.pop(place, None)
        return place, reason

    try:
        info, times, stream = _open(cuts)
        for place, (cut, target) in enumerate(cuts):
            try:
                clips[place] = _Clip(cut, target, info, times)
            except VideoReadError as error:
                yield end(place, str(error))
        news = monotonic() + _NEWS_EVERY
        for number, frame in stream if clips else ():
            picture = None
            for place, clip in list(clips.items()):
                if number > clip.next:
                    error = clip.missing()
                    clip.close(error)
                    yield end(place, str(error))
                elif number == clip.next:
                    picture = frame() if picture is None else picture
                    clip.write(picture, settings)
                    if clip.ended:
                        clip.close()
                        yield end(place, None)
            if not clips:
                break
            if monotonic() > news:
                yield None
                news = monotonic() + _NEWS_EVERY
        for place, clip in list(clips.items()):
            error = clip.missing()
            clip.close(error)
            yield end(place, str(error))
    except Exception as error:  # one video is not to end the others
        reason = str(error)
        if not isinstance(error, VideoReadError):
            reason = f"cannot encode {path}: {type(error).__name__}: {error}"
        for place in list(left):
            if place in clips:
                clips[place].close(error)
            yield end(place, reason)


def _open(
    cuts: Sequence[tuple[Cut, Path]],
) -> tuple[VideoInfo, list[Fraction] | None, Iterator[tuple[int, Callable[[], "Tensor"]]]]:
    """Facts, times where the rate varies and they matter, and the frames with their numbers."""
    from lmdvid.video import frame_times, probe, stream_lazily

    first = cuts[0][0]
    if first.record is not None:
        example = first.record.load()
        frames = example.frames(range(len(example)))
        return (
            example.info,
            None,
            ((number, partial(frames.__getitem__, number)) for number in range(len(example))),
        )
    timed = any(cut.fps is not None for cut, _ in cuts)
    times = frame_times(first.path) if timed else None
    return probe(first.path), times, stream_lazily(first.path)


def _even(length: float) -> int:
    return max(2 * round(length / 2), 2)


def _replies(question: Any) -> Iterator[tuple[int, str | None] | None]:
    """Encode what a line of the one who asks describes; see `workers.answer`."""
    source, wanted = question
    record = source["record"] and Record(**source["record"])
    cuts = []
    for facts in wanted:
        fps, size = facts.get("fps"), facts.get("box_of")
        cut = Cut(
            Path(source["path"]),
            span=tuple(facts["span"]) if "span" in facts else None,
            fps=Fraction(fps) if fps else None,
            box=tuple(facts["box"]) if "box" in facts else None,
            size=tuple(size) if size else None,
            record=record or None,
        )
        cuts.append((cut, Path(facts["part"])))
    return encode(cuts, Settings(**json.loads(sys.argv[1])))


def _work() -> None:
    import torch

    torch.set_num_threads(1)  # there are as many processes as cores
    gc.freeze()  # the writer collects garbage after every file: spare it all that is loaded
    workers.answer(_replies)


if __name__ == "__main__":
    _work()
