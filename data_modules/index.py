"""Which clips a folder holds, whom they show, and which of them are held out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lmdvid.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoReadError, is_clip, probe


class DataError(ValueError):
    """A data set that cannot be used as asked; the text says what is wrong and what to do."""


@dataclass(frozen=True)
class Clip:
    """One clip, or the part of it that one split may use.

    Attributes:
        path: the file or the folder of frames.
        key: its name below the folder of the split, with `/` between parts.
        identity: whom or what it shows; clips of one identity share this text.
        start: first usable frame.
        stop: one past the last usable frame.
    """

    path: str
    key: str
    identity: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def find_clips(root: Path) -> list[Path]:
    """List the clips in and below a folder (or the one clip that `root` is), sorted by name.

    A folder is a clip when it is named like a video (`x.mp4`), or when it holds images and neither
    videos nor folders: stills beside videos are not clips. Hidden entries are passed over.
    """
    if root.suffix.lower() in VIDEO_SUFFIXES and is_clip(root):
        return [root]
    clips, folders, stills = [], [], False
    for entry in root.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.suffix.lower() in VIDEO_SUFFIXES and is_clip(entry):
            clips.append(entry)
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            stills = True
        elif entry.is_dir():
            folders.append(entry)
    if stills and not clips and not folders:
        return [root]
    return sorted(clips + [clip for folder in folders for clip in find_clips(folder)])


def identity_of(key: str) -> str:
    """Return the text before the first `#` of a clip's file name, or its path without suffix."""
    name = key.rsplit("/", 1)[-1]
    return name.split("#", 1)[0] if "#" in name else without_suffix(key)


def without_suffix(key: str) -> str:
    """Drop a video's suffix; a frame folder's dot is part of its name."""
    stem, suffix = os.path.splitext(key)
    return stem if suffix.lower() in VIDEO_SUFFIXES else key


def index_clips(
    paths: Sequence[Path], root: Path, identity: Callable[[str], str]
) -> tuple[list[Clip], dict[str, str]]:
    """Look into every file once.

    Returns:
        The clips, and for each file that cannot be read its path and the reason.
    """

    def look(path: Path) -> Clip | VideoReadError:
        try:
            frames = probe(path).frames
            if frames < 1:
                raise VideoReadError(path, "it holds no frame")
        except VideoReadError as error:
            return error
        key = path.name if path == root else path.relative_to(root).as_posix()
        return Clip(str(path), key, identity(key), 0, frames)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(look, paths))
    clips = [item for item in found if isinstance(item, Clip)]
    unreadable = {
        str(path): str(item)
        for path, item in zip(paths, found, strict=True)
        if isinstance(item, VideoReadError)
    }
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
    held: set[str] = set()
    for identity in ranked[:-1]:
        if sum(clip.identity in held for clip in clips) >= holdout * len(clips):
            break
        held.add(identity)
    return (
        [clip for clip in clips if clip.identity not in held],
        [clip for clip in clips if clip.identity in held],
    )


def split_in_time(clips: Sequence[Clip], holdout: float) -> tuple[list[Clip], list[Clip]]:
    """Hold out the last share of every clip's frames; the two parts have no frame in common."""
    train, held = [], []
    for clip in clips:
        cut = clip.stop - round(len(clip) * holdout)
        train.append(replace(clip, stop=cut))
        held.append(replace(clip, start=cut))
    return [clip for clip in train if len(clip)], [clip for clip in held if len(clip)]
