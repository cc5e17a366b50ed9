"""Clips into shards: what `data_modules.shards` reads."""

import csv
import json
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from hashlib import sha256
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any
from zlib import crc32

from data_modules.index import DataError
from data_modules.shards import CHUNKS, INDEX, INSTALL, PLACE, TABLE, read_rows
from lmdvid.video import ScannedClip, VideoReadError, content, scan_clips
from lmdvid.video.scan import COLUMNS

_LARGEST = 2**32 - 2**20  # bytes of a chunk, whose offsets have 32 bits

_OWN_CHUNK = re.compile(r"chunk-[0-9a-f]{16}\.bin")

_Row = tuple[Any, ...]  # of the table: the fields of a ScannedClip, and its place


@dataclass
class Written:
    """What came of packing.

    Attributes:
        clips: how many are in the shards.
        made: chunks that were written.
        kept: chunks that were there already.
        failed: names of clips and lists that are left out, and why.
    """

    clips: int = 0
    made: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def write_shards(
    clips: Mapping[str, Path],
    root: Path,
    output: Path,
    chunk_bytes: int = 64_000_000,
    part: str = "",
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda groups, _: groups,
) -> Written:
    """Pack clips as they are, encoded, without looking at their frames again.

    A chunk is named by the clips that it is made of, their sizes and times of change, and appears
    when it is complete: one that is there is kept, so that a run that was ended by whatever goes on
    where it stopped. Index and table come last. Memory holds one chunk at a time, a few times over.

    Lists (`*.csv`) in `root` itself are copied.

    Nothing is lost that was not packed here, or not from these clips: a folder of other shards, and
    one with clips that are not given now, are refused before anything is written.

    Args:
        clips: their names below the root, and paths, as `find_clips` gives them.
        root: of the data set, with the folders train/ and test/ if it has them.
        output: folder to write to.
        chunk_bytes: size of a chunk; a larger clip has one of its own.
        part: of a set that several machines pack, which: its table awaits `merge_shards`.
        progress: given the work in pieces and their number, gives them one by one.

    Raises:
        DataError: litdata is not installed, or `output` holds other shards.
    """
    output.mkdir(parents=True, exist_ok=True)
    _check_own(output)
    if not part:
        _check_none_lost(output, clips)
    for leftover in output.glob(f".part{part}-*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    result = Written()
    rows: list[_Row] = []
    with TemporaryDirectory(prefix=f".part{part}-", dir=output) as folder:
        _writer(Path(folder), 1)  # before anything is read: whether litdata is there
        scanned = scan_clips(root, clips.values()).clips
        originals = _originals(clips, scanned, result.failed)
        groups = list(_grouped(originals, chunk_bytes))
        for group in progress(groups, len(groups)):
            rows += _pack(group, output, Path(folder), result)
    result.clips = len(rows)
    for path in root.glob("*.csv"):
        if not path.name.startswith("."):
            try:
                text = path.read_bytes()
            except OSError as error:  # a link to nothing, say, of which no clip is to suffer
                reason = str(error.strerror).lower()
                result.failed[path.name] = str(VideoReadError(path, reason))
            else:
                (output / path.name).write_bytes(text)
    if part:  # even where no clip is in it, so that nobody waits for it
        _write_table(output / TABLE.format(part=part), rows)
    elif rows:
        _finish(output, rows)
    return result


def parts_of(output: Path) -> list[str]:
    """Return the parts that a set is packed in and is to have, as `merge_shards` takes them.

    Raises:
        DataError: if what is there are parts of several divisions.
    """
    names = [path.name for path in output.glob(TABLE.format(part=".*"))]
    found = [name for name in names if re.search(r"\.\d+of\d+\.csv$", name)]
    counts = {re.split(r"of|\.", name)[-2] for name in found}
    if len(counts) > 1:
        raise DataError(
            f"{output} holds parts of several divisions ({', '.join(sorted(found))}): delete the "
            "tables of those that are not meant"
        )
    return [f".{number + 1}of{count}" for count in counts for number in range(int(count))]


def merge_shards(output: Path, parts: Sequence[str]) -> int:
    """Unite what several machines packed into one folder.

    Args:
        output: the folder.
        parts: all of them, as `write_shards` was given.

    Returns:
        How many clips there are.

    Raises:
        DataError: a part is missing, or clips that were packed here before are in none.
    """
    _check_own(output)
    tables = [output / TABLE.format(part=part) for part in parts]
    rows: list[_Row] = []
    for table in tables:
        try:
            text = table.read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            raise DataError(f"{table} is missing: that part was not packed to its end") from None
        sizes = {path.name: path.stat().st_size for path in output.glob(CHUNKS)}
        rows += [(*astuple(facts), *place) for facts, place in read_rows(text, str(table), sizes)]
    rows.sort(key=lambda row: Path(row[0]).parts)
    _check_none_lost(output, {row[0] for row in rows})
    _finish(output, rows)
    for table in tables:
        table.unlink()
    return len(rows)


def _check_own(output: Path) -> None:
    """Refuse a folder of shards that were not packed here.

    Raises:
        DataError: it is one.
    """
    others = [path.name for path in output.glob(CHUNKS) if not _OWN_CHUNK.fullmatch(path.name)]
    if (output / INDEX).exists() and not (output / TABLE.format(part="")).exists():
        others.append(INDEX)
    if others:
        raise DataError(
            f"{output} holds shards that `lmdvid prepare shards` did not make ({min(others)}), "
            "which it would overwrite: give another folder"
        )


def _check_none_lost(output: Path, clips: Container[str]) -> None:
    """Refuse to replace a set by one without some of its clips.

    Args:
        output: the folder of the set, if there is one.
        clips: names of those that there are to be.

    Raises:
        DataError: there are such clips.
    """
    table = output / TABLE.format(part="")
    try:
        text = table.read_text("utf-8", "surrogateescape")
        packed = [row["path"] for row in csv.DictReader(StringIO(text, newline=""))]
    except (FileNotFoundError, KeyError, csv.Error):  # a damaged table is made anew
        return
    lost = [name for name in packed if name not in clips]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(packed)} clips packed in {output} are not among the clips given "
            f"now (such as {lost[0]}) and would be lost: give the whole input, or another folder; "
            f"or delete {INDEX} and {table.name} there to give them up"
        )


@dataclass(frozen=True)
class _Original:
    """A clip to pack.

    Attributes:
        path: where it is.
        facts: what a scan found in it, under its name in the table.
        weight: bytes of its files.
        changed: when the last of them was, in nanoseconds since 1970.
    """

    path: Path
    facts: ScannedClip
    weight: int
    changed: int

    def read(self) -> bytes:
        """Return its content.

        Raises:
            VideoReadError: it cannot be read, or not packed.
        """
        data = content(self.path)
        if self.facts.kind != "frames" and len(data) != self.weight:
            raise VideoReadError(self.path, "it changes while it is being packed")
        if len(data) > _LARGEST:
            raise VideoReadError(self.path, f"{len(data)} bytes are too many for a chunk; cut it")
        return data


def _originals(
    clips: Mapping[str, Path], scanned: Iterable[ScannedClip], failed: dict[str, str]
) -> Iterator[_Original]:
    """Those clips that can be packed."""
    for (name, path), facts in zip(clips.items(), scanned, strict=True):
        try:
            if facts.error:
                raise VideoReadError(path, facts.error)
            files = [path]
            if facts.kind == "frames":
                with os.scandir(path) as entries:
                    files = [entry for entry in entries if not entry.name.startswith(".")]
            found = [file.stat() for file in files]
        except VideoReadError as error:
            failed[name] = str(error)
        except OSError as error:
            failed[name] = str(VideoReadError(path, str(error.strerror).lower()))
        else:
            weight = sum(file.st_size for file in found)
            changed = max(file.st_mtime_ns for file in found)
            yield _Original(path, replace(facts, path=name), weight, changed)


def _grouped(originals: Iterable[_Original], chunk_bytes: int) -> Iterator[list[_Original]]:
    """Clips of each chunk."""
    group: list[_Original] = []
    total = 0
    for original in originals:
        if group and total + original.weight > chunk_bytes:
            yield group
            group, total = [], 0
        group.append(original)
        total += original.weight
    if group:
        yield group


def _pack(group: Sequence[_Original], output: Path, folder: Path, result: Written) -> list[_Row]:
    """Make a chunk, unless it is there, and return the rows of its clips."""
    if (rows := _rows_of(output, group)) is not None:
        result.kept += 1
        return rows
    contents: list[bytes] = []
    readable = []
    for original in group:
        try:
            contents.append(original.read())
        except VideoReadError as error:
            result.failed[original.facts.path] = str(error)
        else:
            readable.append(original)
    if not readable:
        return []
    if len(readable) < len(group) and (rows := _rows_of(output, readable)) is not None:
        result.kept += 1
        return rows
    part = _write(folder, contents)
    if [checksum for *_, checksum in _items(part)] != [crc32(data) for data in contents]:
        raise DataError(f"{part} does not hold what was written to it: check the disk")
    part.replace(output / _name(readable))
    result.made += 1
    rows = _rows_of(output, readable)
    assert rows is not None
    return rows


def _name(group: Sequence[_Original]) -> str:
    """Name of a chunk: another one where anything in it is another."""
    facts = [(each.facts.path, each.weight, each.changed) for each in group]
    return CHUNKS.replace(
        "*", sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:16]
    )


def _rows_of(output: Path, group: Sequence[_Original]) -> list[_Row] | None:
    """Rows of clips whose chunk is there and whole."""
    chunk = _name(group)
    try:
        items = _items(output / chunk)
    except (OSError, ValueError):
        return None
    if len(items) != len(group):
        return None
    return [
        (*astuple(original.facts), chunk, *item)
        for original, item in zip(group, items, strict=True)
    ]


def _items(chunk: Path) -> list[tuple[int, int, int]]:
    """First byte, length and checksum of each item.

    A chunk is the number of its items, where each begins and the last ends, and for each the number
    of its bytes and these; numbers have four bytes, the lowest first.

    Raises:
        ValueError: The file is no such chunk.
    """
    data = memoryview(chunk.read_bytes())
    try:
        (count,) = struct.unpack_from("<I", data)
        starts = struct.unpack_from(f"<{count + 1}I", data, 4)
        items = []
        for start, end in pairwise(starts):
            (size,) = struct.unpack_from("<I", data, start)
            if start + 4 + size != end:
                raise ValueError(f"an item of {size} bytes lies between {start} and {end}")
            items.append((start + 4, size, crc32(data[start + 4 : end])))
    except struct.error as error:
        raise ValueError(str(error)) from None
    if starts[-1] != len(data):
        raise ValueError(f"it has {len(data)} of {starts[-1]} bytes")
    return items


def _write(folder: Path, contents: Sequence[bytes]) -> Path:
    """Write a chunk into an empty folder, through litdata."""
    writer = _writer(folder, len(contents))
    for number, data in enumerate(contents):
        writer[number] = data
    (path,) = writer.done()
    with suppress(FileNotFoundError):  # the writer's own index of this one chunk
        (folder / f"{writer.rank}.{INDEX}").unlink()
    return Path(path)


def _writer(folder: Path, items: int) -> Any:
    try:
        from litdata.streaming.writer import BinaryWriter
    except ModuleNotFoundError as error:
        raise DataError(f"shards are written by litdata: {INSTALL} ({error})") from None
    return BinaryWriter(str(folder), chunk_size=items)


def _write_table(path: Path, rows: Iterable[_Row]) -> None:
    text = StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*COLUMNS, *PLACE])
    table.writerows(rows)
    _replace(path, text.getvalue())


def _finish(output: Path, rows: Sequence[_Row]) -> None:
    """Write index and table of all that there is, and delete chunks of earlier runs."""
    with TemporaryDirectory(prefix=".part-", dir=output) as folder:
        writer = _writer(Path(folder), 1)
        writer[0] = b""
        config = writer.get_config()
    chunks = [
        {
            "filename": chunk,
            "chunk_bytes": (output / chunk).stat().st_size,
            "chunk_size": count,
            "dim": None,
        }
        for chunk, count in Counter(row[-len(PLACE)] for row in rows).items()
    ]
    index = {"chunks": chunks, "config": config, "updated_at": str(time())}
    _write_table(output / TABLE.format(part=""), rows)  # first: an index alone is a stranger's
    _replace(output / INDEX, json.dumps(index))
    named = {chunk["filename"] for chunk in chunks}
    for path in output.glob(CHUNKS):
        if path.name not in named:
            path.unlink()


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8", "surrogateescape", newline="")
    part.replace(path)
