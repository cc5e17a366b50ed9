"""Frames out of clips: what one item is and in which order items come.

Nothing here imports Lightning, so that the workers of a loader start quickly.
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from data_modules.index import Clip, DataError, without_suffix
from lmdvid.video import VideoReadError, centre_square, read_clip, resize

log = logging.getLogger(__name__)

Backend = Literal["auto", "decord", "pyav"]
Sampling = Literal["random", "consecutive", "all"]
Item = tuple[int, int, int]  # epoch, number of the draw in that epoch, which clip or identity


def read_square(clip: Clip, frames: Sequence[int], size: int, backend: Backend) -> torch.Tensor:
    """Read frames of a clip, cut to the central square and resized.

    Args:
        clip: where to read.
        frames: T frame numbers of the file.
        size: side in pixels.
        backend: see `lmdvid.video.read_clip`.

    Returns:
        (T, size, size, 3) uint8 RGB.

    Raises:
        VideoReadError: if a frame cannot be decoded.
    """
    return resize(centre_square(read_clip(clip.path, list(frames), backend)), size)


def frames_needed(frames: int, sampling: Sampling, stride: int) -> int:
    """How many frames a clip must have to be drawn from."""
    return (frames - 1) * stride + 1 if sampling == "consecutive" else 1


class ClipDataset(Dataset):
    """Frames of clips; an item is a clip, or an identity of which one clip is drawn.

    What is drawn depends on (seed, epoch, draw) alone, never on the worker that draws.

    A clip that cannot be read is named once in the log and another one is drawn in its place.

    Args:
        clips: the clips.
        size: side in pixels.
        frames: T.
        sampling: `random`: T different frames (with repetition where the clip has fewer);
            `consecutive`: a window of T frames at a random place; `all`: the whole clip.
        stride: distance between consecutive frames.
        first_window: take the window from the start of the clip instead of a random place.
        by_identity: an item is an identity.
        seed: of all draws.
        backend: see `lmdvid.video.read_clip`.
        max_unreadable: share of the clips that may be unreadable.
        unreadable: clips known to be unreadable, path and reason; they count towards the share.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        size: int,
        frames: int = 2,
        sampling: Sampling = "random",
        stride: int = 1,
        first_window: bool = False,
        by_identity: bool = False,
        seed: int = 0,
        backend: Backend = "auto",
        max_unreadable: float = 0.05,
        unreadable: dict[str, str] | None = None,
    ):
        self.clips = list(clips)
        self.size = size
        self.frames = frames
        self.sampling: Sampling = sampling
        self.stride = stride
        self.first_window = first_window
        self.seed = seed
        self.backend: Backend = backend
        self.max_unreadable = max_unreadable
        self.unreadable = dict(unreadable or {})
        self._total = len(self.clips) + len(self.unreadable)
        groups: dict[str, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.identity if by_identity else clip.path, []).append(clip)
        self._groups = list(groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, item: int | Item) -> dict[str, Any]:
        epoch, draw, index = (0, item, item) if isinstance(item, int) else item
        rng = np.random.default_rng((self.seed, epoch, draw + 1))
        while True:
            group = self._groups[index]
            clip = group[int(rng.integers(len(group)))]
            try:
                return self.load(clip, self._draw(clip, rng))
            except VideoReadError as error:
                self._count(clip, error)
                index = int(rng.integers(len(self)))

    def load(self, clip: Clip, frames: np.ndarray) -> dict[str, Any]:
        """Read one sample: `video` (T,H,W,3) uint8, `key`, `frames` (T,)."""
        return {
            "video": read_square(clip, frames.tolist(), self.size, self.backend),
            "key": clip.key,
            "frames": torch.from_numpy(frames),
        }

    def _draw(self, clip: Clip, rng: np.random.Generator) -> np.ndarray:
        if self.sampling == "all":
            return np.arange(clip.start, clip.stop, dtype=np.int64)
        if self.sampling == "random":
            chosen = rng.choice(len(clip), self.frames, replace=len(clip) < self.frames)
            return clip.start + chosen.astype(np.int64)
        room = len(clip) - frames_needed(self.frames, self.sampling, self.stride)
        start = 0 if self.first_window else int(rng.integers(room + 1))
        return clip.start + start + self.stride * np.arange(self.frames, dtype=np.int64)

    def _count(self, clip: Clip, error: VideoReadError) -> None:
        if clip.path not in self.unreadable:
            self.unreadable[clip.path] = str(error)
            log.warning("%s; another clip is drawn in its place", error)
        check_unreadable(self.unreadable, self._total, self.max_unreadable)


def check_unreadable(unreadable: dict[str, str], total: int, share: float) -> None:
    """Stop when more than a share of the clips, or all of them, cannot be read.

    Raises:
        DataError: with the list of clips and reasons.
    """
    if unreadable and (len(unreadable) > share * total or len(unreadable) == total):
        raise DataError(
            f"{len(unreadable)} of {total} clips cannot be read, more than max_unreadable = "
            f"{share:g} allows. Repair or remove them, or raise max_unreadable:\n  "
            + "\n  ".join(sorted(unreadable.values()))
        )


class PairDataset(Dataset):
    """Source frames with the motion of other clips, one pair an item.

    Args:
        pairs: source clip, number of its frame, driving clip.
        size: side in pixels.
        frames: how many frames drive, from the clip's start, at most; None: all.
        stride: distance between driving frames.
        backend: see `lmdvid.video.read_clip`.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Clip, int, Clip]],
        size: int,
        frames: int | None,
        stride: int = 1,
        backend: Backend = "auto",
    ):
        self.pairs = list(pairs)
        self.size = size
        self.frames = frames
        self.stride = stride
        self.backend: Backend = backend

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, frame, driving = self.pairs[index]
        frames = list(range(driving.start, driving.stop, self.stride))[: self.frames]
        try:
            return {
                "source": read_square(source, [source.start + frame], self.size, self.backend)[0],
                "driving": read_square(driving, frames, self.size, self.backend),
                "key": f"{without_suffix(source.key)}__{without_suffix(driving.key)}",
            }
        except VideoReadError as error:
            raise DataError(f"{error}; remove the pair from the list or repair the file") from error


def pair_with_next_identity(clips: Sequence[Clip]) -> list[tuple[Clip, int, Clip]]:
    """Pair the first frame of every clip with a clip of the next identity (round the list)."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.identity, []).append(clip)
    groups = dict(sorted(groups.items()))
    turned = list(groups.values())
    turned = turned[1:] + turned[:1]
    return [
        (source, 0, drivers[number % len(drivers)])
        for sources, drivers in zip(groups.values(), turned, strict=True)
        for number, source in enumerate(sources)
    ]


def read_pairs(path: Path, clips: Sequence[Clip]) -> list[tuple[Clip, int, Clip]]:
    """Read a table of pairs: columns `source`, `driving` and, where wanted, `frame`.

    Clips are named by their key or by its last part, with or without suffix. Pairs that name a
    clip which is not there are left out and counted: the published lists outlive their videos.

    Raises:
        DataError: if the file or a column is missing, or no pair is left.
    """
    if not path.is_file():
        raise DataError(f"pairs: {path} does not exist; give a csv with source,driving[,frame]")
    names: dict[str, Clip | None] = {}
    for clip in clips:
        last = clip.key.rsplit("/", 1)[-1]
        for name in {clip.key, without_suffix(clip.key), last, without_suffix(last)}:
            # a short name that two clips share names neither
            names[name] = clip if names.get(name, clip) is clip else None
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        missing = {"source", "driving"} - set(table.fieldnames or ())
        if missing:
            raise DataError(
                f"pairs: {path} lacks the column(s) {', '.join(sorted(missing))}; "
                f"it has {', '.join(table.fieldnames or ()) or 'none'}"
            )
        rows = list(table)
    pairs = []
    for row in rows:
        source, driving = names.get(row["source"]), names.get(row["driving"])
        frame = _frame_number(row.get("frame") or "0", path)
        if source is not None and driving is not None and frame < len(source):
            pairs.append((source, frame, driving))
    if not pairs:
        raise DataError(
            f"pairs: none of the {len(rows)} pairs in {path} names two of the {len(clips)} held-out"
            f" clips, such as {clips[0].key}"
        )
    if len(pairs) < len(rows):
        left_out = len(rows) - len(pairs)
        log.warning("%d of %d pairs in %s are left out: no such clip", left_out, len(rows), path)
    return pairs


def _frame_number(text: str, path: Path) -> int:
    if not text.strip().isdigit():
        raise DataError(f"pairs: {path} has frame {text!r}; a frame is a number from 0")
    return int(text)


class ClipSampler(DistributedSampler):
    """Shuffled items of every epoch, shared out over processes, never an empty epoch.

    Item order depends on (seed, epoch) alone. As a DistributedSampler it is left in place by
    Lightning, which calls `set_epoch`. Its iterators carry a state, so that a loader which was
    stopped in the middle of an epoch goes on with the next item.

    Args:
        length: number of items of the data set.
        batch_size: per process; where one epoch has fewer items, it is filled by drawing again.
        repeats: how often an epoch takes every item.
        seed: of the order.
        replicas: number of processes.
        rank: of this process.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        repeats: int = 1,
        seed: int = 0,
        replicas: int = 1,
        rank: int = 0,
    ):
        super().__init__(range(length), replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.length = length
        batches = length * repeats // (batch_size * replicas)
        self.num_samples = max(batches, 1) * batch_size
        self.total_size = self.num_samples * replicas

    def __len__(self) -> int:
        return self.num_samples

    def order(self, epoch: int) -> list[Item]:
        """All items of this process in an epoch."""
        rng = np.random.default_rng((self.seed, epoch, 0))
        turns = -(-self.total_size // self.length)
        items = np.concatenate([rng.permutation(self.length) for _ in range(turns)]).tolist()
        return [
            (epoch, draw, items[draw])
            for draw in range(self.rank, self.total_size, self.num_replicas)
        ]

    def __iter__(self) -> "_EpochOrder":
        return _EpochOrder(self)


class _EpochOrder(Iterator[Item]):
    def __init__(self, sampler: ClipSampler):
        self._sampler = sampler
        self._begin(sampler.epoch, 0)

    def _begin(self, epoch: int, given: int) -> None:
        self._epoch, self._given = epoch, given
        self._items = self._sampler.order(epoch)

    def __next__(self) -> Item:
        if self._given == len(self._items):
            raise StopIteration
        self._given += 1
        return self._items[self._given - 1]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._begin(state["epoch"], state["given"])
