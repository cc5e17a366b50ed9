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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from io import StringIO
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import sleep, time
from typing import Any, TypeVar
from zlib import crc32

from data_modules import watchdog
from data_modules.index import DataError, Files
from lmdvid.video import ScannedClip, VideoReadError
from lmdvid.video.scan import COLUMNS, parse_row

log = logging.getLogger(__name__)

TABLE = "lmdvid_clips{part}.csv"
CHUNKS = "chunk-*.bin"
INDEX = "index.json"
PLACE = ("chunk", "offset", "bytes", "crc32")  # the table's columns behind those of a scan
INSTALL = "pip install 'lmdvid[streaming]' && pip install --no-deps 'litdata>=0.2.76,<0.3'"

# What litdata reads each kind of storage by, where it does not come with the extra.
_SCHEMES = {"s3": "", "gs": "google-cloud-storage", "azure": "azure-storage-blob"}
# Seconds before storage that does not answer is asked again, as a run begins and later.
_FIRST_PAUSES, _PAUSES = (1.0, 4.0), (1.0, 4.0, 16.0, 60.0)
_FORGOTTEN = 3600.0  # seconds after which nobody downloads any more
_LOOK = 0.5  # seconds between looks at how much of a chunk has come
_ROOM = 2e9  # bytes of this disk that copies leave free, as for checkpoints
# What keeps copies off a disk: no room, no right, no folder there, or no locks on it.
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP),
}

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
        self._refused = False  # the disk takes no more copies; those that are there are read

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
        # The folder is for those of litdata that fetch whole files.
        with TemporaryDirectory() as folder, _alive_while_growing(Path(folder)):
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
            FileNotFoundError: there is no room for it, another process is fetching it, or somebody
                deletes the folder.
            DataError: the chunk does not come, or another one does.
        """
        from filelock import FileLock, Timeout

        assert self.copies is not None
        path = self.copies / chunk
        if _size(path) == self.sizes[chunk]:
            return path
        if self._refused:
            raise FileNotFoundError(path)
        try:
            self.copies.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.copies).free < self.sizes[chunk] + _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # Of all who want it one fetches it; the others need not wait for its end.
            with FileLock(f"{path}.lock", timeout=0):
                if _size(path) == self.sizes[chunk]:
                    return path
                with (
                    TemporaryDirectory(prefix=".part-", dir=self.copies) as folder,
                    _alive_while_growing(Path(folder)),
                ):
                    part = Path(folder, chunk)
                    fetch_file(self.root, chunk, part, _PAUSES)
                    if (size := part.stat().st_size) != self.sizes[chunk]:
                        raise DataError(
                            f"{self.root}/{chunk} has {size} bytes instead of "
                            f"{self.sizes[chunk]}: upload it again, with {INDEX} and the table"
                        )
                    part.replace(path)
        except Timeout:
            raise FileNotFoundError(path) from None
        except (OSError, NotImplementedError) as error:  # filelock's, where a disk knows no locks
            if isinstance(error, OSError) and error.errno not in _DISK:
                raise
            reason = str(getattr(error, "strerror", None) or error).lower()
            log.warning(
                "%s cannot take copies of chunks (%s): clips of %s are fetched one by one",
                *(self.copies, reason, self.root),
            )
            self._refused = True
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
            index, table = self._text(INDEX), self._text(name)
        except (FileNotFoundError, MissingError):
            raise DataError(
                f"no data: {address} holds no whole set of shards ({INDEX} and {name}): `lmdvid "
                "prepare shards` makes them, and ends with these two"
            ) from None
        sizes = _sizes(index, f"{address}/{INDEX}")
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
            for facts, place in read_rows(table, f"{address}/{name}", sizes)
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
        """Return the text of a list beside the clips, or elsewhere on a disk.

        Raises:
            OSError: it cannot be read, as where there is none of this name.
            UnicodeError: it is no text.
            DataError: storage does not answer.
        """
        if not path.is_relative_to(self.root):
            return path.read_text("utf-8-sig")
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


@contextmanager
def _alive_while_growing(folder: Path) -> Iterator[None]:
    """Tell the watchdog of what comes into a folder: a slow network is no damaged file."""
    ended = Event()

    def watch() -> None:
        seen = 0
        while not ended.wait(_LOOK):
            with suppress(OSError):  # somebody deletes the folder
                if (size := sum(_size(path) or 0 for path in folder.iterdir())) != seen:
                    watchdog.restart()
                    seen = size

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"{where} is no index of chunks ({type(error).__name__})") from None
    for chunk in sizes:
        if not re.fullmatch(r"chunk-[\w-]+\.bin", chunk):
            raise DataError(f"{where} names {chunk!r}, which is no chunk such as chunk-0-0.bin")
    return sizes


def read_rows(
    table: str, where: str, sizes: Mapping[str, int]
) -> Iterator[tuple[ScannedClip, tuple[str, int, int, int]]]:
    """What and where each clip is.

    Raises:
        DataError: if the table is another one, or damaged, or does not fit the index.
    """
    lines = csv.reader(StringIO(table, newline=""))
    try:
        if next(lines, None) != [*COLUMNS, *PLACE]:
            raise ValueError("its columns are others")
        for line in lines:
            facts = parse_row(line[: len(COLUMNS)])
            chunk, *numbers = line[len(COLUMNS) :]
            offset, size, checksum = map(int, numbers)
            name = Path(facts.path)
            if not 0 < offset <= offset + size <= sizes.get(chunk, 0):
                raise ValueError(f"{facts.path} is in no chunk of {INDEX}")
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
    except ModuleNotFoundError as error:
        raise DataError(f"{root} is read by litdata: {INSTALL} ({error})") from None
    try:
        return get_downloader(root, "", [], options)
    except ModuleNotFoundError as error:
        if not _SCHEMES[scheme]:
            raise
        raise DataError(
            f"{root} is read by {_SCHEMES[scheme]}, which is not installed: "
            f"pip install {_SCHEMES[scheme]} ({' '.join(str(error).split())})"
        ) from None


def _downloader(root: str) -> Any:
    return _downloader_of(root, os.getpid())


def fetch_file(root: str, name: str, target: Path, pauses: Sequence[float] = _FIRST_PAUSES) -> None:
    """Fetch a whole object.

    Raises:
        MissingError: there is none of this name.
        DataError: the bucket is missing or barred, or storage does not answer; or the address has
            a sign that litdata takes for its end.
        OSError: this disk does not take it.
    """
    url = f"{root}/{name}"
    if sign := re.search("[#?]", url):
        raise DataError(
            f"cannot fetch {url}: addresses in storage are read up to {sign[0]!r}; "
            "copy the shards to a folder without such signs in its name"
        )

    def fetch() -> None:
        # Asked for its first byte S3 says whether it is the bucket or the object that is missing,
        # which it does not when it is asked about an object.
        if url.startswith("s3://"):
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
        watchdog.restart()  # each try may take its time, and there are few
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
