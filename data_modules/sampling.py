"""Frames out of clips: what one item is and in which order items come.

Nothing here imports Lightning, so that the workers of a loader start quickly.
"""

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from data_modules.index import Clip, DataError, without_suffix
from data_modules.watchdog import Watchdog, watched
from lmdvid.video import (
    Backend,
    GpuDecoder,
    VideoReadError,
    centre_square,
    decode,
    read_bytes,
    resize,
)

log = logging.getLogger(__name__)

Sampling = Literal["random", "consecutive", "all"]
Item = tuple[int, int, int]  # epoch, number of the draw in that epoch, which clip or identity
Failures = list[tuple[str, str]]  # path of a clip that cannot be read, and why

_TRIES = 16  # clips drawn for one item before it is left out


def read_square(clip: Clip, frames: Sequence[int], size: int, backend: Backend) -> torch.Tensor:
    """Read frames of a clip, cut to the central square and resized.

    Args:
        clip: where to read.
        frames: T frame numbers of the file.
        size: side in pixels.
        backend: `decord` if nothing else may read, whatever the clip turns out to be.

    Returns:
        (T, size, size, 3) uint8 RGB.

    Raises:
        VideoReadError: if a frame cannot be decoded.
    """
    insist = backend == "decord"
    data = None if clip.content is None else clip.content()
    try:
        pictures = decode(Path(clip.path), list(frames), clip.reader, insist=insist, data=data)
    except VideoReadError as error:
        if data is None:
            raise
        raise VideoReadError(clip.path, error.reason) from None  # no Path holds an address
    return resize(centre_square(pictures), size)


@dataclass(frozen=True)
class Encoded:
    """Frames still to be decoded, as a worker hands them to the process that owns the GPU.

    Attributes:
        path: where the bytes come from.
        data: the whole file.
        frames: frame numbers of the file; a plain number stands for a picture without time axis.
    """

    path: str
    data: bytes
    frames: list[int] | int


def read_frames(
    clip: Clip, frames: Sequence[int], size: int, backend: Backend, decoder: GpuDecoder | None
) -> torch.Tensor | Encoded:
    """Read frames as `read_square` does, or only the bytes of what `decoder` is to decode.

    Raises:
        VideoReadError: if the file cannot be read.
    """
    with watched(clip.path):
        if decoder is None or clip.unfit_for_gpu:
            return read_square(clip, frames, size, backend)
        data = read_bytes(clip.path) if clip.content is None else clip.content()
        return Encoded(clip.path, data, list(frames))


def frames_needed(frames: int, sampling: Sampling, stride: int | Sequence[int]) -> int:
    """How many frames a clip must have to be drawn from, at the smallest of several strides."""
    smallest = stride if isinstance(stride, int) else min(stride)
    return (frames - 1) * smallest + 1 if sampling == "consecutive" else 1


class ClipDataset(Dataset):
    """Frames of clips; an item is a clip, or an identity of which one clip is drawn.

    What is drawn depends on (seed, epoch, draw) alone, never on the worker that draws.

    The entry `failed` of an item lists the clips that could not be read. In training another one
    is drawn in their place; in evaluation, where that would count it twice, nothing else is there.

    Args:
        clips: the clips.
        size: side in pixels.
        frames: T.
        sampling: `random`: T different frames (with repetition where the clip has fewer);
            `consecutive`: a window of T frames at a random place; `all`: the whole clip,
            every `stride`-th frame of it.
        stride: distance between consecutive frames; `random` has none. Of several, training draws
            one that the clip is long enough for, and evaluation takes the smallest.
        training: draw; else take the window from the start of the clip.
        by_identity: an item is an identity.
        seed: of all draws.
        backend: see `lmdvid.video.read_clip`.
        decoder: decodes on a GPU what this data set then gives as `Encoded`, together with the
            item, as the entry `item`; `Decoding` makes frames of it.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        size: int,
        frames: int = 2,
        sampling: Sampling = "random",
        stride: int | Sequence[int] = 1,
        training: bool = True,
        by_identity: bool = False,
        seed: int = 0,
        backend: Backend = "auto",
        decoder: GpuDecoder | None = None,
    ):
        self.clips = list(clips)
        self.size = size
        self.frames = frames
        self.sampling: Sampling = sampling
        self.strides = [stride] if isinstance(stride, int) else sorted(stride)
        self.training = training
        self.seed = seed
        self.backend: Backend = backend
        self.decoder = decoder
        groups: dict[str, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.identity if by_identity else clip.path, []).append(clip)
        self._groups = list(groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, item: int | Item) -> dict[str, Any]:
        epoch, draw, index = asked = (0, item, item) if isinstance(item, int) else item
        rng = np.random.default_rng((self.seed, epoch, draw + 1))
        failed: Failures = []
        for _ in range(_TRIES if self.training else 1):
            group = self._groups[index]
            clip = group[int(rng.integers(len(group)))]
            try:
                sample = self.load(clip, self._draw(clip, rng)) | {"failed": failed}
                return sample if self.decoder is None else sample | {"item": asked}
            except VideoReadError as error:
                failed.append((clip.path, str(error)))
                index = int(rng.integers(len(self)))
        return {"failed": failed}

    def load(self, clip: Clip, frames: np.ndarray) -> dict[str, Any]:
        """Read one sample: `video` (T,H,W,3) uint8, `key`, `frames` (T,)."""
        return {
            "video": read_frames(clip, frames.tolist(), self.size, self.backend, self.decoder),
            "key": clip.key,
            "frames": torch.from_numpy(frames),
        }

    def window(self, clip: Clip) -> np.ndarray:
        """Return the numbers of the frames that evaluation takes of a clip."""
        return self._draw(clip, np.random.default_rng(self.seed))

    def _draw(self, clip: Clip, rng: np.random.Generator) -> np.ndarray:
        if self.sampling == "all":
            return np.arange(clip.start, clip.stop, self.strides[0], dtype=np.int64)
        if self.sampling == "random":
            chosen = rng.choice(len(clip), self.frames, replace=len(clip) < self.frames)
            return clip.start + chosen.astype(np.int64)
        stride = self.strides[0]
        if self.training and len(self.strides) > 1:
            need = [frames_needed(self.frames, self.sampling, stride) for stride in self.strides]
            fitting = sum(len(clip) >= frames for frames in need)
            stride = self.strides[int(rng.integers(fitting))]
        room = len(clip) - frames_needed(self.frames, self.sampling, stride)
        start = int(rng.integers(room + 1)) if self.training else 0
        return clip.start + start + stride * np.arange(self.frames, dtype=np.int64)


def check_unreadable(unreadable: dict[str, str], total: int, share: float) -> None:
    """Stop when more than a share of the clips, or all of them, cannot be read.

    Raises:
        DataError: with the list of clips and reasons.
    """
    if unreadable and (len(unreadable) > share * total or len(unreadable) == total):
        raise DataError(
            f"{len(unreadable)} of {total} clips cannot be read, more than max_unreadable = "
            f"{share:g} allows. Repair or remove them, or raise max_unreadable:\n  "
            + "\n  ".join(sorted(set(unreadable.values())))
        )


def seed_loader(count: int, batch_size: int, processes: int) -> DataLoader:
    """Batches of `index` (B,), the numbers of videos to make from noise: 0 to `count` - 1.

    Raises:
        DataError: if there are fewer than processes, which Lightning cannot share out.
    """
    if count < processes:
        raise DataError(
            f"{count} video(s) to generate by {processes} processes: ask for at least one of each, "
            "or use fewer devices"
        )
    numbers = [{"index": number} for number in range(count)]
    # Lightning, making it again for its share, gives the batch size by name.
    return DataLoader(numbers, batch_size=batch_size)  # type: ignore[arg-type]


class LabelledDataset(Dataset):
    """Samples with the class of their clip, `label`, a whole number.

    Args:
        samples: what to add it to.
        labels: each clip's, by its key.
    """

    def __init__(self, samples: Dataset, labels: Mapping[str, int]):
        self.samples = samples
        self.labels = labels

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, item: int | Item) -> dict[str, Any]:
        sample = self.samples[item]  # type: ignore[index]
        if "video" in sample:  # else it could not be read
            sample["label"] = self.labels[sample["key"]]
        return sample


class PairDataset(Dataset):
    """Source frames with the motion of other clips, one pair an item.

    Where a clip cannot be read, the item has nothing but the entry `failed`, which says so.

    Args:
        pairs: source clip, number of its frame, driving clip.
        size: side in pixels.
        frames: how many frames drive, from the clip's start, at most; None: all.
        stride: distance between driving frames.
        backend: see `lmdvid.video.read_clip`.
        decoder: see `ClipDataset`.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Clip, int, Clip]],
        size: int,
        frames: int | None,
        stride: int = 1,
        backend: Backend = "auto",
        decoder: GpuDecoder | None = None,
    ):
        self.pairs = list(pairs)
        self.size = size
        self.frames = frames
        self.stride = stride
        self.backend: Backend = backend
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, frame, driving = self.pairs[index]
        frames = list(range(driving.start, driving.stop, self.stride))[: self.frames]
        pictures = []
        for clip, wanted in ((source, [source.start + frame]), (driving, frames)):
            try:
                read = read_frames(clip, wanted, self.size, self.backend, self.decoder)
                pictures.append(read)
            except VideoReadError as error:
                return {"failed": [(clip.path, str(error))]}
        sample = {
            "source": _first(pictures[0]),
            "driving": pictures[1],
            "key": f"{without_suffix(source.key)}__{without_suffix(driving.key)}",
            "failed": [],
        }
        return sample if self.decoder is None else sample | {"item": index}


def _first(frames: torch.Tensor | Encoded) -> torch.Tensor | Encoded:
    if isinstance(frames, torch.Tensor):
        return frames[0]
    number = frames.frames if isinstance(frames.frames, int) else frames.frames[0]
    return Encoded(frames.path, frames.data, number)


class Decoding:
    """Makes batches, on the GPU, of samples with `Encoded` entries; in the process that trains.

    What the GPU's decoder cannot read after all is taken from a data set that uses the CPU alone:
    where the file is damaged, this gives what it gives to runs without a GPU.

    Args:
        decoder: decodes.
        size: side in pixels.
        on_cpu: the same items, without a decoder.
    """

    def __init__(self, decoder: GpuDecoder, size: int, on_cpu: Dataset):
        self.decoder = decoder
        self.size = size
        self.on_cpu = on_cpu

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Decode, cut, resize and collate."""
        return collate([self._decoded(sample) for sample in samples])

    def _decoded(self, sample: dict[str, Any]) -> dict[str, Any]:
        item = sample.pop("item", None)  # absent where nothing could be read
        try:
            values = {name: self._frames(value) for name, value in sample.items()}
        except VideoReadError as error:
            log.warning("%s; the CPU tries", error)
            values = {name: self._frames(value) for name, value in self.on_cpu[item].items()}
        return values

    def _frames(self, value: Any) -> Any:
        if isinstance(value, Encoded):
            numbers = [value.frames] if isinstance(value.frames, int) else value.frames
            frames = self.decoder.read(value.path, value.data, numbers)
            frames = resize(centre_square(frames), self.size)
            return frames[0] if isinstance(value.frames, int) else frames
        return value.to(self.decoder.device) if isinstance(value, torch.Tensor) else value


class CrossDataset(Dataset):
    """Samples for evaluation, each with another identity's frames to drive it.

    Adds `cross_driving` (T,H,W,3), the frames that evaluation takes of that clip, and `cross_key`,
    its name.

    Args:
        samples: what to add them to.
    """

    def __init__(self, samples: ClipDataset):
        self.samples = samples
        pairs = pair_with_next_identity(samples.clips)
        self.drivers = {source.key: driving for source, _, driving in pairs}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int | Item) -> dict[str, Any]:
        sample = self.samples[item]
        if "video" not in sample:  # it could not be read
            return sample
        driver = self.drivers[sample["key"]]
        try:
            driving = self.samples.load(driver, self.samples.window(driver))["video"]
        except VideoReadError as error:
            return {"failed": [(driver.path, str(error))]}
        return sample | {"cross_driving": driving, "cross_key": driver.key}


def pair_with_next_identity(clips: Sequence[Clip]) -> list[tuple[Clip, int, Clip]]:
    """Pair the first frame of every clip with a clip of the next identity (round the list)."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.identity, []).append(clip)
    if len(groups) == 1:
        log.warning("all held-out clips show %s, who drives itself", *groups)
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

    Clips are named by their key, else by its last part, each with or without suffix. Pairs that
    name a clip which is not there are left out and counted: the published lists outlive their
    videos.

    Raises:
        DataError: if the file or a column is missing, or no pair is left.
    """
    if not path.is_file():
        raise DataError(f"pairs: {path} does not exist; give a csv with source,driving[,frame]")
    names: dict[str, Clip | None] = {}
    for clip in clips:
        last = clip.key.rsplit("/", 1)[-1]
        for name in {without_suffix(clip.key), last, without_suffix(last)}:
            # a short name that two clips share names neither
            names[name] = clip if names.get(name, clip) is clip else None
    names |= {clip.key: clip for clip in clips}

    def find(name: str | None) -> Clip | None:
        if not name or name in names:
            return names.get(name or "")
        return names.get(without_suffix(name))  # a folder of what was a video's frames

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = {"source", "driving"} - set(table.fieldnames or ())
            if missing:
                raise DataError(
                    f"pairs: {path} lacks the column(s) {', '.join(sorted(missing))}; "
                    f"it has {', '.join(table.fieldnames or ()) or 'none'}"
                )
            rows = list(table)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"pairs: cannot read {path}: {error}") from None
    pairs, absent, beyond = [], 0, 0
    for row in rows:
        source, driving = find(row["source"]), find(row["driving"])
        frame = _frame_number(row.get("frame") or "0", path)
        if source is None or driving is None:
            absent += 1
        elif frame >= len(source):
            beyond += 1
        else:
            pairs.append((source, frame, driving))
    left_out = f"{absent} name a clip that is not there, {beyond} a frame behind the source's last"
    if not pairs:
        raise DataError(
            f"pairs: none of the {len(rows)} in {path} is left ({left_out}); they are to name two "
            f"of the {len(clips)} held-out clips, such as {clips[0].key}; files by their paths are "
            "for `lmdvid animate --pairs`, or --data data_modules.pairs.Pairs"
        )
    if len(pairs) < len(rows):
        log.warning(
            "%d of %d pairs in %s are left out: %s", absent + beyond, len(rows), path, left_out
        )
    return pairs


def _frame_number(text: str, path: Path) -> int:
    if not text.strip().isdigit():
        raise DataError(f"pairs: {path} has frame {text!r}; a frame is a number from 0")
    return int(text)


class ClipSampler(DistributedSampler):
    """Items of every epoch, shuffled, shared out over processes, never an empty epoch.

    Item order depends on (seed, epoch) alone. As a DistributedSampler it is left in place by
    Lightning, which calls `set_epoch`. `draws` says how many items of the epoch, of all processes
    together, have been drawn already; the next iteration, or another epoch, sets it back to 0.

    Args:
        length: number of items of the data set.
        batch_size: per process; where one epoch has fewer items, it is filled by drawing again.
        repeats: how often an epoch takes every item.
        shuffle: else items come in order.
        seed: of the order.
        replicas: number of processes.
        rank: of this process.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        repeats: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        replicas: int = 1,
        rank: int = 0,
    ):
        super().__init__(range(length), replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.length = length
        self.batch_size = batch_size
        self.draws = 0
        batches = length * repeats // (batch_size * replicas)
        self.num_samples = max(batches, 1) * batch_size
        self.total_size = self.num_samples * replicas

    def __len__(self) -> int:
        return self.num_samples

    @property
    def batches_drawn(self) -> int:
        """Batches that are behind the epoch, counting one that others have drawn in part."""
        return -(-self.draws // (self.batch_size * self.num_replicas))

    def order(self, epoch: int, draws: int = 0) -> list[Item]:
        """Items of this process in an epoch, behind so many that all processes have drawn.

        They make whole batches, in each process as many.
        """
        share = self.batch_size * self.num_replicas
        end = self.total_size - (self.total_size - draws) % share
        rng = np.random.default_rng((self.seed, epoch, 0))
        one_turn = rng.permutation if self.shuffle else np.arange
        turns = -(-self.total_size // self.length)
        items = np.concatenate([one_turn(self.length) for _ in range(turns)]).tolist()
        return [
            (epoch, draw, items[draw]) for draw in range(draws + self.rank, end, self.num_replicas)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        if epoch != self.epoch:
            self.draws = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:
        draws, self.draws = self.draws, 0
        return iter(self.order(self.epoch, draws))


class ClipLoader(DataLoader):
    """Batches of samples, without those that could not be read.

    Args:
        dataset: its samples have an entry `failed`, and nothing else where nothing could be read.
        report: takes what failed, in this process and not in the workers.
        decoding: makes batches of the samples in this process; without it the workers do.
        watchdog: of the workers.
        options: keywords of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset,
        report: Callable[[Failures], None],
        decoding: Decoding | None = None,
        watchdog: Watchdog | None = None,
        **options: Any,
    ):
        # Lightning, making it again, gives these.
        options.setdefault("collate_fn", collate if decoding is None else list)
        options.setdefault("worker_init_fn", watchdog)
        super().__init__(dataset, **options)
        self.report = report
        self.decoding = decoding
        self.watchdog = watchdog
        self.batches_taken = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.batches_taken = 0
        for batch in self._batches():
            self.batches_taken += 1
            if self.decoding is not None:
                batch = self.decoding(batch)
            if failed := batch.pop("failed"):
                self.report(failed)
            if batch:
                yield batch
            del batch  # else it would stay in memory, whole clips perhaps, while the next is read

    def _batches(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            if self.watchdog is not None and (stuck := self.watchdog.stuck()):
                files, network = "remove the file, or mend the disk,", "look after the network"
                remedy = network if any("://" in path for path in stuck) else files
                raise DataError(
                    f"reading {' and '.join(stuck)} did not end within {self.watchdog.seconds} s: "
                    f"{remedy} and go on with --ckpt_path last"
                ) from error
            raise


class ResumableLoader(ClipLoader):
    """Batches drawn by a `ClipSampler`, with a state that resumes in the middle of an epoch.

    What is drawn depends on the epoch and the number of the draw alone, and the state is just these
    two: it also fits another number of workers, of processes, of clips or of clips per batch. Each
    draw of the epoch is then taken once, by whomever; what is too little for a batch of all
    processes is left out at its end, as in every epoch. Workers run ahead; what counts are the
    batches that were taken.
    """

    sampler: ClipSampler

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator: this runs with the first batch, after Lightning has called set_epoch.
        self._begun, self.batches_taken = (self.sampler.epoch, self.sampler.draws), 0
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return epoch and draw behind the last batch that was taken."""
        epoch, draws = getattr(self, "_begun", None) or (self.sampler.epoch, self.sampler.draws)
        per_batch = (self.batch_size or 1) * self.sampler.num_replicas
        return {"epoch": epoch, "draws": draws + self.batches_taken * per_batch}

    @property
    def batches_drawn(self) -> int:
        """How many of this epoch's batches are behind the next iteration."""
        return self.sampler.batches_drawn

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on there; at the end of an epoch it is empty."""
        self._begun, self.batches_taken = None, 0
        self.sampler.set_epoch(state["epoch"])
        self.sampler.draws = state["draws"]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch of all samples that could be read, and in `failed` what could not."""
    failed = [failure for sample in samples for failure in sample.pop("failed")]
    read = [sample for sample in samples if sample]
    if len(read) == 1:  # a copy of one long clip would take its time and memory again
        batch = {name: _batch_of_one(value) for name, value in read[0].items()}
    else:
        batch = default_collate(read) if read else {}
    return batch | {"failed": failed}


def _batch_of_one(value: Any) -> Any:
    return value[None] if isinstance(value, torch.Tensor) else default_collate([value])
