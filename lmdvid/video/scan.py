"""One look into every clip of a data set, remembered in a table beside it.

Each look happens in another process, which a damaged file may crash or hang. Such a process needs
neither torch nor numpy and handles many files. Run as a module this file is that process.
"""

import csv
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from uuid import uuid4

from lmdvid.video import arrays, decord_backend, pictures, pyav_backend, workers
from lmdvid.video.info import VideoInfo, VideoReadError, status
from lmdvid.video.tfrecord import RECORD_SUFFIXES, Record, record_lengths, records

log = logging.getLogger(__name__)

MANIFEST = ".lmdvid_clips.csv"

_VERSION = 3  # of what is looked for; rows of another version are made again
_FILES_PER_PROCESS = 50  # a process takes as long to start as this many short clips to look into
_KEEP_EVERY = 60.0  # seconds of a long scan, which may be killed
_RECORDS_TRIED = 4  # of a file, before it counts as damaged altogether
_RATE = re.compile(r"[0-9]{1,40}(/[0-9]{1,40})?")  # frames per second
_MOST_FRAMES = 10**7  # a hundred hours: lists of them fit into memory
_SHOW_PROGRESS = 500  # files
_SHOWN, _LISTED = 6, 50  # kinds of clips and names in a summary


@dataclass(frozen=True, slots=True)
class ScannedClip:
    """One row of the table.

    Attributes:
        path: below the folder of the data set, with `/` between parts.
        size: bytes of the file; what the file system says of a folder of pictures.
        mtime_ns: when it was last changed, in nanoseconds since 1970.
        kind: `video`, `gif`, `frames` (a folder of pictures), `array` (a `.npy` file) or `records`
            (a TFRecord file, whose records are clips; the other facts are those of the first one
            that is whole).
        frames: how many can be shown.
        fps: exact frame rate, the mean one where it varies.
        width: pixels, after rotation.
        height: pixels, after rotation.
        rotation: degrees, counterclockwise, by which frames are turned to be upright.
        codec: FFmpeg's name of it, or the format of the pictures.
        pixels: FFmpeg's name of the pixel format, and behind it how the colours depart from BT.601
            in limited range: `bt709`, `full` or `other`; nothing for pictures.
        key_frames: how many there are; decoding begins at these.
        suspicious: what decord would get wrong in it; PyAV reads it then.
        error: why it cannot be read; no other fact is known then.
        records: bytes of data of each record, with spaces between; see `record_lengths`.
        version: of the scan.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    kind: str = ""
    frames: int = 0
    fps: Fraction = Fraction(0)
    width: int = 0
    height: int = 0
    rotation: int = 0
    codec: str = ""
    pixels: str = ""
    key_frames: int = 0
    suspicious: str = ""
    error: str = ""
    records: str = ""
    version: int = _VERSION


class Scan(NamedTuple):
    """What a scan found.

    Attributes:
        clips: in the order of the paths that were asked for.
        manifest: the table; None where it could be written nowhere.
        looked_into: how many clips were opened, since the table knew nothing of them.
    """

    clips: list[ScannedClip]
    manifest: Path | None
    looked_into: int

    def summary(self) -> Iterator[str]:
        """Lines that say what the clips are, which go to PyAV, and which cannot be read."""
        readable = [clip for clip in self.clips if not clip.error]
        frames = sum(clip.frames for clip in readable)
        yield (
            f"{len(self.clips)} clips, {self.looked_into} of them looked into now; "
            f"{len(readable)} can be read, with {frames} frames in all"
        )
        for title, values in (
            ("codecs", [clip.codec for clip in readable]),
            ("sizes", [f"{clip.width}x{clip.height}" for clip in readable]),
            ("frames per second", [f"{float(clip.fps):.6g}" for clip in readable]),
        ):
            counted = Counter(values).most_common()
            rest = [f"{len(counted) - _SHOWN} others"] if len(counted) > _SHOWN else []
            shown = [f"{value} ({count})" for value, count in counted[:_SHOWN]]
            if shown:
                yield f"{title}: {', '.join(shown + rest)}"
        keys = sum(clip.key_frames for clip in readable)
        if keys:
            yield f"a key frame every {frames / keys:.1f} frames on average"
        yield from _listed(
            "not exact with decord, read with PyAV", self.clips, lambda clip: clip.suspicious
        )
        yield from _listed("cannot be read", self.clips, lambda clip: clip.error)
        yield f"table: {self.manifest or 'could not be written'}"


def _listed(
    title: str, clips: Sequence[ScannedClip], reason: Callable[[ScannedClip], str]
) -> Iterator[str]:
    """Names and reasons of clips that have one, in the order of the reasons."""
    named = sorted((reason(clip), clip.path) for clip in clips if reason(clip))
    if named:
        yield f"{len(named)} {title}:"
        yield from (f"  {path}: {why}" for why, path in named[:_LISTED])
    if len(named) > _LISTED:
        yield f"  and {len(named) - _LISTED} more, see the table"


def scan_clips(
    folder: str | Path,
    paths: Iterable[str | Path],
    *,
    again: bool = True,
    timeout: float = 60.0,
) -> Scan:
    """Facts about clips, of which only those are opened that are new or have changed.

    The table is `.lmdvid_clips.csv` in `folder`, or where that may not be written, and where
    `folder` is itself a clip, a file in `$XDG_CACHE_HOME/lmdvid` (by default `~/.cache/lmdvid`).
    A row counts as long as path, size and time of change agree. The file is replaced as a whole,
    and made again where it is damaged; what an interrupted scan has found is kept.

    Args:
        folder: of the data set.
        paths: clips in or below it; or the folder itself, where it is a clip.
        again: look again into what could not be read, since that may have been the disk's fault.
        timeout: seconds for one clip, and one more for every 10 MB.

    Raises:
        StartError: the processes that look into clips do not start.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        return Scan([], None, 0)
    base, places = _places(Path(folder), paths)
    tables = [_load(place) for place in places]
    names = [path.relative_to(base).as_posix() for path in paths]
    clips: dict[str, ScannedClip] = {}
    unknown: list[tuple[Path, ScannedClip]] = []
    for name, path in zip(names, paths, strict=True):
        try:
            found = status(path)
        except VideoReadError as error:
            clips[name] = ScannedClip(name, error=error.reason)
            continue
        clip = ScannedClip(name, found.st_size, found.st_mtime_ns)
        known = next((row for table in tables if _is_of(row := table.get(name), clip)), None)
        if known is None or (known.error and again):
            unknown.append((path, clip))
        else:
            clips[name] = known
    kept = dict(zip(places, tables, strict=True))
    due = monotonic() + _KEEP_EVERY
    try:
        for clip in _look_into(unknown, timeout):
            clips[clip.path] = clip
            if monotonic() > due:
                _keep(clips, base, kept)
                due = monotonic() + _KEEP_EVERY
    finally:
        manifest = _keep(clips, base, kept)
    return Scan(
        [clips[path.relative_to(base).as_posix()] for path in paths], manifest, len(unknown)
    )


def _is_of(row: ScannedClip | None, clip: ScannedClip) -> bool:
    return row is not None and (row.size, row.mtime_ns) == (clip.size, clip.mtime_ns)


# The table


def _places(folder: Path, paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The folder that rows are relative to, and where the table may lie, best first."""
    absolute = folder.absolute()
    name = f"{absolute.name}_{sha256(os.fsencode(absolute)).hexdigest()[:12]}.csv"
    cached = []
    with suppress(RuntimeError):  # a user without a home, as in some containers
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cached = [caches / "lmdvid" / name]
    if folder in paths:  # a file in a folder of pictures would change the clip
        return folder.parent, cached
    return folder, [folder / MANIFEST, *cached]


def _keep(
    clips: Mapping[str, ScannedClip], base: Path, tables: Mapping[Path, Mapping[str, ScannedClip]]
) -> Path | None:
    """Write the table where it does not hold these clips yet, and say where it lies."""
    for place, table in tables.items():
        if all(table.get(name) == clip for name, clip in clips.items()):
            return place
    others = {
        name: row
        for table in reversed(list(tables.values()))
        for name, row in table.items()
        if name not in clips and os.path.lexists(base / name)
    }
    reasons = []
    for place in tables:
        try:
            _write(place, sorted((others | dict(clips)).values(), key=lambda clip: clip.path))
        except OSError as error:
            reasons.append(f"{place}: {str(error.strerror).lower()}")
        else:
            return place
    log.warning("what the scan found is not kept (%s)", "; ".join(reasons) or "no home folder")
    return None


COLUMNS = [field.name for field in fields(ScannedClip)]


def _write(place: Path, clips: Iterable[ScannedClip]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # Several machines may scan one disk at once: each writes a file of its own.
    part = place.with_name(f"{place.name}.{uuid4().hex[:8]}.part")
    try:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows(astuple(clip) for clip in clips)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _load(place: Path) -> dict[str, ScannedClip]:
    """The rows of a table by their paths; none where it is absent or damaged."""
    try:
        with place.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError:
        return {}
    limit = csv.field_size_limit(len(text))  # a file may hold very many records
    try:
        if not text.endswith("\n"):
            raise ValueError("it was cut off")
        lines = csv.reader(StringIO(text, newline=""))
        if next(lines) != COLUMNS:
            raise ValueError("its columns are others")
        clips = [parse_row(line) for line in lines]
    except (ValueError, ArithmeticError, csv.Error) as error:
        log.warning("%s is damaged (%s): the clips are looked into again", place, error)
        return {}
    finally:
        csv.field_size_limit(limit)
    return {clip.path: clip for clip in clips if clip.version == _VERSION}


def parse_row(line: Sequence[str]) -> ScannedClip:
    """Read what `astuple` and csv made of a row, under the names in `COLUMNS`.

    Raises:
        ValueError: It is none.
        ArithmeticError: Its frame rate is none.
    """
    path, size, mtime, kind, frames, fps, width, height, turn, codec, *rest = line
    pixels, keys, odd, error, records, version = rest
    numbers = [int(text) for text in (size, mtime, frames, width, height, turn, keys, version)]
    size, mtime, frames, width, height, turn, keys, version = numbers
    if not error and (frames < 1 or width < 1 or height < 1):
        raise ValueError(f"{path} without frames")
    if frames > _MOST_FRAMES:
        raise ValueError(f"{path} with {frames} frames")
    return ScannedClip(
        path, size, mtime, kind, frames, _fraction(fps), width, height, turn, codec, pixels, keys,
        odd, error, records, version,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _fraction(text: str) -> Fraction:
    # Other texts that Fraction takes, such as 1e99999999, need more time and memory than there is.
    if not _RATE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no frame rate such as 30000/1001")
    return Fraction(text)


# The processes


def _look_into(
    unknown: Sequence[tuple[Path, ScannedClip]], timeout: float
) -> Iterator[ScannedClip]:
    """Complete these rows, in any order."""
    answers = workers.ask(
        [(str(path), workers.patience(clip.size, timeout)) for path, clip in unknown],
        "lmdvid.video.scan",
        processes=min(workers.cores(), -(-len(unknown) // _FILES_PER_PROCESS)),
        failure="clips cannot be looked into",
    )
    with closing(answers):
        for _, (number, facts) in zip(_counted(len(unknown)), answers, strict=True):
            if isinstance(facts, workers.Ended):
                late = f"looking into it did not end within {facts.limit:.0f} s"
                facts = {"error": f"it crashes FFmpeg ({facts.cause})" if facts.cause else late}
            rate = Fraction(facts.get("fps", 0))
            yield replace(unknown[number][1], **facts | {"fps": rate})


def _counted(count: int) -> Iterable[int]:
    """The numbers up to `count`, with a bar on a terminal where there are many."""
    if count < _SHOW_PROGRESS or not sys.stderr.isatty():
        return range(count)
    from rich.console import Console
    from rich.progress import track

    words = f"looking into {count} clips"
    return track(range(count), words, console=Console(stderr=True), transient=True)


def look(path: Path) -> dict[str, Any]:
    """Facts about one clip by their names in the table, or the entry `error` alone."""
    try:
        if path.is_dir():
            return _facts_of_stills(pictures.probe(path))
        if arrays.is_array(path.name):
            return _facts_of_stills(arrays.probe(path))
        if path.suffix.lower() in RECORD_SUFFIXES:
            return _facts_of_records(path)
        return facts_of_video(pyav_backend.header(path))
    except VideoReadError as error:
        return {"error": error.reason if error.path == path else str(error)}


def facts_of_video(header: pyav_backend.Header) -> dict[str, Any]:
    """What the table says of a file with this header."""
    return _facts(header.info) | {
        "rotation": header.rotation,
        "pixels": f"{header.pix_fmt} {header.colours}".strip(),
        "key_frames": header.key_frames,
        "suspicious": decord_backend.unfit(header),
    }


def _facts_of_stills(info: VideoInfo) -> dict[str, Any]:
    return _facts(info) | {"key_frames": info.frames}


def _facts_of_records(path: Path) -> dict[str, Any]:
    lengths = record_lengths(path)
    if not lengths:
        raise VideoReadError(path, "no TFRecord file: its first record is damaged or cut off")
    found, _ = records(path, lengths, status(path).st_size, "")
    errors = []
    for record in found[:_RECORDS_TRIED]:
        try:
            info = _info_of_record(record)
        except VideoReadError as error:
            errors.append(error)
        else:
            return _facts_of_stills(info) | {"records": " ".join(map(str, lengths))}
    raise errors[0]


def _info_of_record(record: Record) -> VideoInfo:
    cameras = record.load().cameras
    if not cameras:
        raise record.error("it has no feature such as 0/image_main/encoded")
    return replace(record, camera=cameras[0]).load().info


def _facts(info: VideoInfo) -> dict[str, Any]:
    return {
        "kind": info.kind,
        "frames": info.frames,
        "fps": str(info.fps),
        "width": info.width,
        "height": info.height,
        "codec": info.codec,
    }


def replies(path: str) -> list[dict[str, Any]]:
    """The one answer about a file; see `workers.answer`."""
    try:
        return [look(Path(path))]
    except Exception as error:  # one file is to end neither the process nor the scan
        return [{"error": f"{type(error).__name__}: {error}"}]


if __name__ == "__main__":
    workers.answer(replies)
