"""Clips packed into large files, in litdata's format, on a disk or in object storage.

Shards are a folder of litdata's `index.json` and `chunk-*.bin`, whose items are the contents of one
clip each, and of a table that says what and where each clip is. Clips are read one by one, in any
order, by their place in a chunk, so that sampling and resuming are those of clips in files.
"""

import csv
import errno
import json
import logging
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from io import StringIO
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep, time
from typing import Any, TypeVar
from zlib import crc32

from data_modules.index import DataError, Files
from lmdvid.video import ScannedClip, VideoReadError, content, scan_clips
from lmdvid.video.scan import COLUMNS, parse_row

log = logging.getLogger(__name__)

TABLE = "lmdvid_clips{part}.csv"
CHUNKS = "chunk-*.bin"
INSTALL = "pip install 'lmdvid[streaming]' && pip install --no-deps 'litdata>=0.2.76,<0.3'"

_INDEX = "index.json"
_PLACE = ("chunk", "offset", "bytes", "crc32")
_LARGEST = 2**32 - 2**20  # bytes of a chunk, whose offsets have 32 bits
_SCHEMES = ("s3", "gs", "azure")
# Seconds before storage that does not answer is asked again, as a run begins and later.
_FIRST_PAUSES, _PAUSES = (1.0, 4.0), (1.0, 4.0, 16.0, 60.0)
_FORGOTTEN = 3600.0  # seconds after which nobody downloads any more
_ROOM = 2e9  # bytes of this disk that copies leave free, as for checkpoints
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}

_Row = tuple[Any, ...]  # of the table: the fields of a ScannedClip, and its place
_T = TypeVar("_T")


class MissingError(DataError):
    """There is no such object in storage."""


@dataclass(frozen=True)
class Packed:
    """A clip in shards.

    Attributes:
        chunks: what holds it.
        name: its path below the root of the data set, with `/` between parts.
        chunk: the file that it is in.
        offset: its first byte there.
        size: how many bytes it has.
        crc32: their checksum.
    """

    chunks: "Chunks" = field(repr=False)
    name: str
    chunk: str
    offset: int
    size: int
    crc32: int

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return f"{self.chunks.root}/{self.name}"

    def read(self) -> bytes:
        """Return the content of the clip, as `lmdvid.video.decode` takes it.

        Raises:
            VideoReadError: its bytes are not those that were packed.
            DataError: the chunk cannot be read at all.
        """
        place = self.chunk, self.offset, self.size
        data = self.chunks.read(*place)
        if crc32(data) != self.crc32 and self.chunks.forget(self.chunk):
            data = self.chunks.read(*place)
        if crc32(data) != self.crc32:
            raise VideoReadError(
                self.path, f"its bytes in {self.chunk} are damaged; copy that file again"
            )
        return data


class Chunks:
    """Bytes of chunks, wherever these are.

    Of a remote set the first chunks, as many as fit into `keep`, are copied to this disk when one
    of their clips is first asked for; clips of others are fetched one by one. Nothing is exchanged
    for what was asked for last: as an epoch visits every clip once, in random order, no choice of
    chunks serves it better than another. Any number of processes may share the copies, and whoever
    likes may delete them.

    Args:
        root: a folder, or the address of one in object storage.
        sizes: bytes of each chunk, by its name.
        copies: folder for the copies; None where there is none.
        keep: bytes that the copies may take.
    """

    def __init__(self, root: str, sizes: Mapping[str, int], copies: Path | None, keep: float):
        self.root = root
        self.remote = "://" in root
        self.sizes = dict(sizes)
        self.copies = copies
        ends = accumulate(self.sizes.values())
        fitting = {chunk for chunk, end in zip(self.sizes, ends, strict=True) if end <= keep}
        self.kept = fitting if self.remote and copies is not None else set()

    def read(self, chunk: str, offset: int, size: int) -> bytes:
        """Return so many bytes, or fewer where the chunk ends before.

        Raises:
            DataError: naming the chunk, if it is missing, or does not come however often it is
                asked for.
        """
        if not self.remote:
            try:
                return _bytes(Path(self.root, chunk), offset, size)
            except OSError as error:
                reason = str(error.strerror).lower()
                raise DataError(f"cannot read {self.root}/{chunk}: {reason}") from None
        if chunk in self.kept:
            with suppress(FileNotFoundError):  # somebody has deleted it since
                return _bytes(self._copy(chunk), offset, size)
        with TemporaryDirectory() as folder:  # for those of litdata that fetch whole files
            aside = os.path.join(folder, chunk)
            url = f"{self.root}/{chunk}"

            def fetch() -> bytes:
                return _downloader(self.root).download_bytes(url, offset, size, aside)

            return _insist(url, fetch, _PAUSES)

    def forget(self, chunk: str) -> bool:
        """Delete a copy, which may be damaged, and say whether there was one."""
        if chunk not in self.kept or self.copies is None:
            return False
        with suppress(FileNotFoundError):
            (self.copies / chunk).unlink()
        return True

    def tidy(self) -> None:
        """Delete copies of what is not to be kept (any more), and what was never completed."""
        if self.copies is None:
            return
        with suppress(OSError):
            for path in self.copies.glob(CHUNKS):
                if path.name not in self.kept:
                    path.unlink(missing_ok=True)
            for path in self.copies.glob(".part-*"):
                if time() - path.stat().st_mtime > _FORGOTTEN:
                    shutil.rmtree(path, ignore_errors=True)

    def _copy(self, chunk: str) -> Path:
        """Return where the copy of a chunk is, after fetching it if it is not there.

        Raises:
            FileNotFoundError: there is no room for it, or somebody deletes the folder.
            DataError: the chunk does not come, or another one does.
        """
        from filelock import FileLock

        assert self.copies is not None
        path = self.copies / chunk
        if _size(path) == self.sizes[chunk]:
            return path
        try:
            self.copies.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.copies).free < self.sizes[chunk] + _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with FileLock(f"{path}.lock"):  # of all who want it one fetches it
                if _size(path) == self.sizes[chunk]:
                    return path
                with TemporaryDirectory(prefix=".part-", dir=self.copies) as folder:
                    part = Path(folder, chunk)
                    fetch_file(self.root, chunk, part, _PAUSES)
                    if (size := part.stat().st_size) != self.sizes[chunk]:
                        raise DataError(
                            f"{self.root}/{chunk} has {size} bytes instead of "
                            f"{self.sizes[chunk]}: upload it again, with {_INDEX} and the table"
                        )
                    part.replace(path)
        except (OSError, NotImplementedError) as error:  # filelock's, where a disk knows no locks
            if isinstance(error, OSError) and error.errno not in _DISK:
                raise
            reason = str(getattr(error, "strerror", None) or error).lower()
            log.warning(
                "%s cannot take copies of chunks (%s): clips of %s are fetched one by one",
                *(self.copies, reason, self.root),
            )
            self.kept = set()
            raise FileNotFoundError(path) from None
        return path


class Shards:
    """Clips in shards: for data modules what `Files` is.

    Args:
        root: a folder, or the address of one in object storage, such as `s3://bucket/vox`.
        keep: bytes that copies of a remote set may take on this disk.

    Raises:
        DataError: if there are no shards, or they are not complete.
    """

    def __init__(self, root: str, keep: float = 0.0):
        scheme, remote, place = root.partition("://")
        if remote and (scheme not in _SCHEMES or not place.partition("/")[0]):
            known = " or ".join(f"{scheme}://bucket/folder" for scheme in _SCHEMES)
            raise DataError(f"root is {root}; shards are in a folder, or in storage like {known}")
        address = root.rstrip("/") if remote else str(Path(root).expanduser())
        self.root = Path(address)
        self._address = address
        name = TABLE.format(part="")
        try:
            index, table = self._text(_INDEX), self._text(name)
        except (FileNotFoundError, MissingError):
            raise DataError(
                f"no data: {address} holds no whole set of shards ({_INDEX} and {name}): `lmdvid "
                "prepare shards` makes them, and ends with these two"
            ) from None
        sizes = _sizes(index, f"{address}/{_INDEX}")
        if not remote:
            for chunk, size in sizes.items():
                if (found := _size(self.root / chunk)) != size:
                    what = "is missing" if found is None else f"has {found} of {size} bytes"
                    raise DataError(f"no data: {address}/{chunk} {what}: copy the shards again")
        self.remote = bool(remote)
        self.chunks = Chunks(address, sizes, _copies(address) if remote else None, keep)
        if remote:
            self.chunks.tidy()
        self._clips = {
            self.root / facts.path: (facts, Packed(self.chunks, facts.path, *place))
            for facts, place in _rows(table, f"{address}/{name}", sizes)
        }
        above = {
            name.rsplit("/", n)[0] for name in self._names() for n in range(1, name.count("/") + 1)
        }
        self._folders = {self.root, *(self.root / name for name in above)}

    def exists(self, path: Path) -> bool:
        """Whether there is such a clip, or a folder of them."""
        return path in self._clips or path in self._folders

    def is_dir(self, path: Path) -> bool:
        """Whether there are clips below this."""
        return path in self._folders

    def find(self, folder: Path, suffixes: Set[str]) -> dict[str, Path]:
        """Find the clips below a folder; see `find_clips`."""
        found = {
            path.relative_to(folder).as_posix(): path
            for path, (facts, _) in self._clips.items()
            if folder in path.parents
            and (facts.kind == "frames" or path.suffix.lower() in suffixes)
        }
        return dict(sorted(found.items(), key=lambda item: item[1].parts))

    def scan(self, paths: Iterable[Path], again: bool = True) -> list[ScannedClip]:
        """Return what the table says of these clips."""
        return [self._clips[path][0] for path in paths]

    def content(self, path: Path) -> Callable[[], bytes]:
        """Return what reads a clip."""
        return self._clips[path][1].read

    def address(self, path: Path) -> str:
        """Return where a clip is, as messages are to name it."""
        return self._clips[path][1].path

    def text(self, path: Path) -> str:
        """Return the text of a list beside the clips.

        Raises:
            FileNotFoundError: there is none of this name.
            DataError: storage does not answer.
        """
        try:
            return self._text(path.relative_to(self.root).as_posix())
        except MissingError:
            raise FileNotFoundError(path) from None

    def _names(self) -> Iterator[str]:
        return (packed.name for _, packed in self._clips.values())

    def _text(self, name: str) -> str:
        if "://" not in self._address:
            return Path(self._address, name).read_text("utf-8-sig", "surrogateescape")
        with TemporaryDirectory() as folder:
            part = Path(folder, "text")
            fetch_file(self._address, name, part)
            return part.read_text("utf-8-sig", "surrogateescape")


def open_clips(root: str, keep: float) -> Files | Shards:
    """Return the clips of a data set: files in a folder, or shards there or in object storage.

    Raises:
        DataError: if there are no whole shards where there are some, or should be.
    """
    folder = Path(root).expanduser()
    if "://" in root or os.path.isfile(folder / TABLE.format(part="")):
        return Shards(root, keep)
    return Files(folder)


def _bytes(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _copies(address: str) -> Path | None:
    """Where copies of remote chunks go."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in some containers
        return None
    name = f"{address.rsplit('/', 1)[-1]}_{sha256(address.encode()).hexdigest()[:12]}"
    return caches / "lmdvid/shards" / name


# The index and the table


def _sizes(index: str, where: str) -> dict[str, int]:
    """Bytes of each chunk."""
    try:
        sizes = {
            str(chunk["filename"]): int(chunk["chunk_bytes"])
            for chunk in json.loads(index)["chunks"]
        }
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{where} is no index of chunks ({type(error).__name__})") from None
    for chunk in sizes:
        if not re.fullmatch(r"chunk-[\w-]+\.bin", chunk):
            raise DataError(f"{where} names {chunk!r}, which is no chunk such as chunk-0-0.bin")
    return sizes


def _rows(
    table: str, where: str, sizes: Mapping[str, int]
) -> Iterator[tuple[ScannedClip, tuple[str, int, int, int]]]:
    """What and where each clip is.

    Raises:
        DataError: if the table is another one, or damaged, or does not fit the index.
    """
    lines = csv.reader(StringIO(table, newline=""))
    try:
        if next(lines, None) != [*COLUMNS, *_PLACE]:
            raise ValueError("its columns are others")
        for line in lines:
            facts = parse_row(line[: len(COLUMNS)])
            chunk, *numbers = line[len(COLUMNS) :]
            offset, size, checksum = map(int, numbers)
            name = Path(facts.path)
            if not 0 < offset <= offset + size <= sizes.get(chunk, 0):
                raise ValueError(f"{facts.path} is in no chunk of {_INDEX}")
            if name.is_absolute() or ".." in name.parts or facts.error:
                raise ValueError(f"{facts.path} is no clip below the root")
            if facts.version != ScannedClip("").version:
                raise ValueError("another version of lmdvid wrote it")
            yield facts, (chunk, offset, size, checksum)
    except (ValueError, ArithmeticError, csv.Error) as error:
        raise DataError(
            f"{where} cannot be used ({error}): copy the shards again, or run `lmdvid prepare "
            "shards` anew, which keeps chunks that are right"
        ) from None


# Object storage


@lru_cache
def _downloader_of(root: str, _process: int) -> Any:
    """What litdata fetches by; of one process, as connections do not survive a fork."""
    scheme = root.split("://")[0]
    try:
        from litdata.streaming.downloader import get_downloader

        options = {}
        if scheme == "s3":
            from botocore.config import Config

            # litdata alone would try a thousand times. All tries of `_insist` together end before
            # a worker counts as stuck.
            retries: Any = {"mode": "standard", "total_max_attempts": 1}
            options["config"] = Config(retries=retries, connect_timeout=10, read_timeout=30)
        return get_downloader(root, "", [], options)
    except ModuleNotFoundError as error:
        raise DataError(f"{root} is read by litdata: {INSTALL} ({error})") from None


def _downloader(root: str) -> Any:
    return _downloader_of(root, os.getpid())


def fetch_file(root: str, name: str, target: Path, pauses: Sequence[float] = _FIRST_PAUSES) -> None:
    """Fetch a whole object.

    Raises:
        MissingError: there is none of this name.
        DataError: the bucket is missing or barred, or storage does not answer.
        OSError: this disk does not take it.
    """
    url = f"{root}/{name}"

    def fetch() -> None:
        # Asked for its first byte storage says whether it is the bucket or the object that is
        # missing, which it does not when it is asked about an object.
        _downloader(root).download_bytes(url, 0, 1, f"{target}.first")
        _downloader(root).download_file(url, str(target))
        if not target.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))

    _insist(url, fetch, pauses)


def _insist(url: str, fetch: Callable[[], _T], pauses: Sequence[float]) -> _T:
    """Try several times, unless that is hopeless."""
    for pause in (*pauses, None):
        try:
            return fetch()
        except DataError:
            raise
        except Exception as error:  # each storage has its own
            if isinstance(error, OSError) and error.errno in {*_DISK, errno.ENOENT}:
                raise
            refused = _refusal(url, error)
            if refused is not None:
                raise refused from None
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            if pause is None:
                times = len(pauses) + 1
                raise DataError(f"cannot fetch {url}, tried {times} times: {reason}") from None
            log.warning("cannot fetch %s (%s); trying again in %g s", url, reason, pause)
        sleep(pause)
    raise AssertionError


def _refusal(url: str, error: Exception) -> DataError | None:
    """What is wrong, where trying again does not help."""
    bucket = url.split("/")[2]
    if "Credentials" in type(error).__name__ or type(error).__name__ == "ProfileNotFound":
        return DataError(
            f"cannot fetch {url}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if type(error).__name__ == "ParamValidationError":
        return DataError(f"cannot fetch {url}: {' '.join(str(error).split())}")
    answer = getattr(error, "response", None)  # of botocore's ClientError
    if not isinstance(answer, dict):
        return None
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return DataError(f"cannot fetch {url}: there is no bucket {bucket}")
    if status == 404:
        return MissingError(f"cannot fetch {url}: there is no such object in {bucket}")
    if status in (401, 403):
        return DataError(f"cannot fetch {url}: access is refused ({code}); check the credentials")
    if status == 416:
        return DataError(f"cannot fetch {url}: it is shorter than the table says; upload it again")
    if 400 <= status < 500 and status not in (408, 429):
        return DataError(f"cannot fetch {url}: {error}")
    return None


# Packing


@dataclass
class Written:
    """What came of packing.

    Attributes:
        clips: how many are in the shards.
        made: chunks that were written.
        kept: chunks that were there already.
        failed: names of clips that are left out, and why.
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

    Args:
        clips: their names below the root, and paths, as `find_clips` gives them.
        root: of the data set, with the folders train/ and test/ if it has them.
        output: folder to write to.
        chunk_bytes: size of a chunk; a larger clip has one of its own.
        part: of a set that several machines pack, which: its table awaits `merge_shards`.
        progress: given the work in pieces and their number, gives them one by one.

    Raises:
        DataError: litdata is not installed.
    """
    output.mkdir(parents=True, exist_ok=True)
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
            shutil.copyfile(path, output / path.name)
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
        DataError: a part is missing.
    """
    tables = [output / TABLE.format(part=part) for part in parts]
    rows: list[_Row] = []
    for table in tables:
        try:
            text = table.read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            raise DataError(f"{table} is missing: that part was not packed to its end") from None
        sizes = {path.name: path.stat().st_size for path in output.glob(CHUNKS)}
        rows += [(*astuple(facts), *place) for facts, place in _rows(text, str(table), sizes)]
    rows.sort(key=lambda row: Path(row[0]).parts)
    _finish(output, rows)
    for table in tables:
        table.unlink()
    return len(rows)


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
        (folder / f"{writer.rank}.{_INDEX}").unlink()
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
    table.writerow([*COLUMNS, *_PLACE])
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
        for chunk, count in Counter(row[-len(_PLACE)] for row in rows).items()
    ]
    index = {"chunks": chunks, "config": config, "updated_at": str(time())}
    _replace(output / _INDEX, json.dumps(index))
    _write_table(output / TABLE.format(part=""), rows)
    named = {chunk["filename"] for chunk in chunks}
    for path in output.glob(CHUNKS):
        if path.name not in named:
            path.unlink()


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8", "surrogateescape", newline="")
    part.replace(path)
