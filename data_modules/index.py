"""Which clips a folder holds, whom they show, and which of them are held out."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lmdvid.video import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Reader,
    ScannedClip,
    VideoReadError,
    is_clip,
    scan_clips,
    without_suffix,
)


class DataError(ValueError):
    """A data set that cannot be used as asked; the text says what is wrong and what to do."""


@dataclass(frozen=True)
class Clip:
    """One clip, or the part of it that one split may use.

    Attributes:
        path: the file or the folder of frames; in a file of many clips, its path and the number.
        key: its name below the folder of the split, with `/` between parts.
        identity: whom or what it shows; clips of one identity share this text.
        start: first usable frame.
        stop: one past the last usable frame.
        reader: what decodes it; found out in a scan, so that nobody looks into the file again.
        unfit_for_gpu: where a GPU is to decode, why it does not decode this one; else empty.
        content: reads it, as `lmdvid.video.decode` takes it, where `path` is none on a disk.
    """

    path: str
    key: str
    identity: str
    start: int
    stop: int
    reader: Reader = field(repr=False)  # processes with other decoders have the same clips
    unfit_for_gpu: str = field(default="", repr=False)
    content: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.stop - self.start


def find_clips(root: Path, suffixes: Set[str] = VIDEO_SUFFIXES) -> dict[str, Path]:
    """Find the clips in and below a folder, or the one clip that `root` is.

    A folder is a clip when it is named like a video (`x.mp4`), or when it holds images and neither
    videos nor folders: stills beside videos are not clips. Hidden entries are passed over, and so
    are links to a folder that they lie in, be it above `root`: of a set's train/ to the set, say.

    Args:
        root: where to look.
        suffixes: of files that are clips.

    Returns:
        Each clip's key, its name below `root` with `/` between parts, and its path; sorted by path.

    Raises:
        DataError: if `root` is a file but no clip, or a folder may not be listed.
    """
    above = set()
    # Path.resolve raises where `root` is a link to itself; that is told below.
    for folder in Path(os.path.realpath(root)).parents:
        with suppress(OSError):  # what is in the way of `root` is told below
            found = folder.stat()
            above.add((found.st_dev, found.st_ino))
    paths = sorted(_walk(root, suffixes, frozenset(above)), key=lambda path: path.parts)
    return {
        path.name if path == root else path.relative_to(root).as_posix(): path for path in paths
    }


class Files:
    """Clips in a folder, as files and folders of pictures.

    Args:
        root: the folder.
    """

    remote = False

    def __init__(self, root: Path):
        self.root = root

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or folder."""
        return os.path.exists(path)  # Path.exists raises where a folder above may not be entered

    def is_dir(self, path: Path) -> bool:
        """Whether this is a folder."""
        return path.is_dir()

    def find(self, folder: Path, suffixes: Set[str]) -> dict[str, Path]:
        """Find the clips in and below a folder; see `find_clips`."""
        return find_clips(folder, suffixes)

    def scan(self, paths: Iterable[Path], again: bool = True) -> list[ScannedClip]:
        """Look into clips; see `scan_clips`."""
        return scan_clips(self.root, paths, again=again).clips

    def content(self, path: Path) -> Callable[[], bytes] | None:
        """Return what reads a clip that is no file: nothing."""
        return None

    def address(self, path: Path) -> str:
        """Return where a clip is, as messages are to name it."""
        return str(path)

    def text(self, path: Path) -> str:
        """Return the text of a list beside the clips.

        Raises:
            OSError: it cannot be read.
            UnicodeError: it is no text.
        """
        return path.read_text("utf-8-sig")


def _walk(
    root: Path, suffixes: Set[str], within: frozenset[tuple[int, int]] = frozenset()
) -> list[Path]:
    clips, folders, stills = [], [], False
    try:
        found = root.stat()
        if (place := (found.st_dev, found.st_ino)) in within:
            return []
        within |= {place}
        suffix = root.suffix.lower()
        if suffix in suffixes and (suffix not in VIDEO_SUFFIXES or _is_clip(root)):
            return [root]
        with os.scandir(root) as entries:  # many times faster than asking for each name's kind
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    continue
                path, folder = root / entry.name, _follow(entry.is_dir)
                if suffix in suffixes and (_is_clip(path) if folder else _follow(entry.is_file)):
                    clips.append(path)
                elif suffix in IMAGE_SUFFIXES:
                    stills = True
                elif folder:
                    folders.append(path)
    except NotADirectoryError:
        kinds = ", ".join(sorted(suffixes))
        raise DataError(f"{root} is a file, but not a video ({kinds}); give a folder") from None
    except OSError as error:
        raise DataError(f"cannot look into {root}: {str(error.strerror).lower()}") from None
    if stills and not clips and not folders:
        return [root]
    return clips + [clip for folder in folders for clip in _walk(folder, suffixes, within)]


def _follow(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link that leads to itself leads nowhere
            raise
        return False


def _is_clip(path: Path) -> bool:
    try:
        return is_clip(path)
    except VideoReadError:
        return True  # whoever reads it learns the reason


def identity_of(key: str) -> str:
    """Return the text before the first `#` of a clip's file name, or its path without suffix."""
    name = key.rsplit("/", 1)[-1]
    return name.split("#", 1)[0] if "#" in name else without_suffix(key)


def index_clips(
    paths: Mapping[str, Path],
    scanned: Iterable[ScannedClip],
    clips_of: Callable[[str, Path, ScannedClip], tuple[list[Clip], dict[str, str]]],
) -> tuple[list[Clip], dict[str, str]]:
    """Make clips of what `find_clips` found and a scan of it knows.

    Args:
        paths: what was found, by key.
        scanned: what is known of each.
        clips_of: makes the clips of one file, as `VideoDataModule.clips_of`.

    Returns:
        The clips, and for each that cannot be read its path and the reason.
    """
    clips, unreadable = [], {}
    for (key, path), facts in zip(paths.items(), scanned, strict=True):
        try:
            found, lost = clips_of(key, path, facts)
        except VideoReadError as error:
            found, lost = [], {str(path): str(error)}
        clips += found
        unreadable |= lost
    return clips, unreadable


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def choose(names: Iterable[str], count: int | None, seed: int) -> set[str]:
    """Choose `count` names at random (None: all).

    The choice depends on seed and names alone, and adding a name changes it by one at most.
    """
    return set(sorted(set(names), key=lambda name: _rank(seed, name))[:count])


def split_by_identity(
    clips: Sequence[Clip], holdout: float, seed: int
) -> tuple[list[Clip], list[Clip]]:
    """Hold out whole identities, until they have the share `holdout` of all clips.

    Returns:
        Clips to train on and clips held out; no identity is in both.

    Raises:
        DataError: if there are fewer than two identities.
    """
    if holdout == 0:
        return list(clips), []
    ranked = sorted({clip.identity for clip in clips}, key=lambda name: _rank(seed, name))
    if len(ranked) < 2:
        raise DataError(
            f"{len(clips)} clip(s) of one identity ({ranked[0]}): nothing can be held out. Use "
            "split: time (holds out the end of each clip) or holdout: 0 (no validation)"
        )
    count = Counter(clip.identity for clip in clips)
    held: set[str] = set()
    share = 0
    for identity in ranked[:-1]:
        if share >= holdout * len(clips):
            break
        held.add(identity)
        share += count[identity]
    return (
        [clip for clip in clips if clip.identity not in held],
        [clip for clip in clips if clip.identity in held],
    )


def split_in_time(clips: Sequence[Clip], holdout: float) -> tuple[list[Clip], list[Clip]]:
    """Hold out the last share of every clip's frames; the two parts have no frame in common.

    Where `holdout` is above 0 that is at least one frame, but never the only one.

    Returns:
        Clips to train on and clips held out.

    Raises:
        DataError: if there are frames to hold out, but no clip has two.
    """
    if holdout == 0:
        return list(clips), []
    train, held = [], []
    for clip in clips:
        cut = max(clip.stop - max(round(len(clip) * holdout), 1), clip.start + 1)
        train.append(replace(clip, stop=cut))
        held.append(replace(clip, start=cut))
    held = [clip for clip in held if len(clip)]
    if not held:
        raise DataError(
            f"split: time has nothing to hold out: each of the {len(clips)} clips is one frame. "
            "Use split: random or holdout: 0 (no validation)"
        )
    return train, held
