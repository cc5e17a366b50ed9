"""VideoDataModule: clips on disk to batches on the device, for every data set of this package."""

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset

from data_modules.augment import augment, build_augmentation
from data_modules.index import (
    Clip,
    DataError,
    Files,
    choose,
    identity_of,
    index_clips,
    split_by_identity,
    split_in_time,
)
from data_modules.sampling import (
    ClipDataset,
    ClipLoader,
    ClipSampler,
    CrossDataset,
    Decoding,
    Failures,
    PairDataset,
    ResumableLoader,
    Sampling,
    check_unreadable,
    frames_needed,
    pair_with_next_identity,
    read_pairs,
    seed_loader,
)
from data_modules.shards import CHUNKS, Shards, open_clips
from data_modules.watchdog import Watchdog
from lmdvid.video import (
    VIDEO_SUFFIXES,
    Backend,
    GpuDecoder,
    NoGpuDecoderError,
    ScannedClip,
    check_backend,
    find_gpu_decoder,
    reader_of,
    to_float,
    unfit_for_gpu,
)

__all__ = ["Clip", "ClipDataset", "DataError", "VideoDataModule"]

log = logging.getLogger(__name__)

Split = Literal["auto", "random", "time"]
Device = Literal["cpu", "cuda"]


class VideoDataModule(LightningDataModule):
    """Clips in a folder: videos, gifs or folders of frames, at any depth.

    Batches for training, validation and test are dicts of `video` (B,T,3,H,W) in [-1, 1], `key`
    (names of the clips) and `frames` (B,T), the frames' numbers; batches for prediction have
    `source` (B,3,H,W), `driving` (B,T,3,H,W) and `key`, or, with `generate`, nothing but `index`
    (B,). Frames are cut to their central square and
    resized once, as bytes, in the workers; they become floats and are augmented on the device.

    Validation uses `eval_clips` of the held-out clips, test all of them; both take the first
    `eval_frames` frames. The same seed gives the same batches with any number of workers.

    A new data set is a subclass that overrides, where it needs to, `identity` and the folder names;
    and where its clips are in other files than videos and pictures, `suffixes`, `clips_of`, `holds`
    (all kinds, in words) and `samples`.

    Args:
        root: folder of the data set; or of its shards, as `lmdvid prepare shards` makes them, here
            or in object storage, such as `s3://bucket/vox`.
        size: side of the frames in pixels.
        batch_size: clips per batch and process. A batch larger than the training set is filled by
            drawing again; the last, incomplete batch of an epoch is left out.
        num_workers: processes that decode, per loader; 0 decodes in the training process. With
            workers, a script of your own needs the guard `if __name__ == "__main__":`.
        frames: frames per clip, T.
        sampling: `random` draws T different frames of a clip in any order (with repetition where a
            clip has fewer); `consecutive` a window of T frames (shorter clips are left out);
            `all` gives every frame, one clip at a time whatever `batch_size`, unshuffled.
        stride: distance between consecutive frames, in training (but for `random`) and evaluation;
            of several, training draws one for each sample that the clip is long enough for, and
            evaluation takes the smallest.
        samples_per_clip: how often an epoch visits every clip; small sets need more than 1.
        identity_sampling: an epoch visits every identity instead of every clip, and draws one of
            its clips.
        split: `auto` takes the folders train/ and test/ where they are, else `random`; `random`
            holds out whole identities of all clips below root; `time` holds out the last frames
            of every clip.
        holdout: share that `random` and `time` hold out; 0 trains on all, without validation.
        crop: random square cut out and resized in training, as a share of the side; 1 is off.
            LIA's 224 of 256 pixels is 0.875.
        flip: mirror clips at random in training.
        jitter: largest change of brightness, contrast, saturation and hue in training; LIA has 0.1.
        seed: of splits, orders and draws.
        max_clips: use only so many clips of the training folder (or, before splitting, of root).
        identities: use only so many identities of it, chosen by `seed`: a small set to try things
            with, such as the VoxCeleb2-mini that InMoDeGAN's paper names but does not list.
        eval_clips: number of held-out clips for validation, all where null.
        eval_frames: frames of each clip in evaluation; null takes all, one clip at a time.
        whole_test: all frames in testing, one clip at a time, whatever `eval_frames` says.
        cross: in testing add `cross_driving` (B,T,3,H,W), the frames of a clip of the next identity
            that drive each clip's first frame, and `cross_key`, its name.
        pairs: csv with the columns source, driving and perhaps frame (of the source) for
            prediction; null pairs every held-out clip with one of the next identity.
        generate: videos to make from noise in prediction, which then needs no clip: batches are the
            numbers 0 to `generate` - 1, shared out over processes; null animates pairs instead.
        max_unreadable: share of clips that may be unreadable, in training and in evaluation each;
            above it the run stops.
        read_timeout: seconds after which a worker that reads one file is ended, and the run stops
            with the file's name; of shards in object storage, seconds in which nothing comes.
        backend: decoder; `auto` takes the fastest one that reads a file exactly.
        device: where frames are decoded. With `cuda` the workers read files, and each training
            process decodes on its own GPU, by the first that works there of decord, torchcodec and
            PyAV, or the one that `backend` insists on; what a GPU gets wrong, and everything where
            `auto` finds no decoder for GPUs, is decoded on the CPU.
        cache_gb: of shards in object storage, how much is kept on this machine, in
            `$XDG_CACHE_HOME/lmdvid/shards` (by default in `~/.cache`), in 10^9 bytes; what does not
            fit is fetched clip by clip in every epoch.
    """

    train_folders: Sequence[str] = ("train",)
    test_folders: Sequence[str] = ("test",)
    suffixes: Set[str] = VIDEO_SUFFIXES
    holds = "videos, gifs and folders of frames"
    samples: type[ClipDataset] = ClipDataset

    def __init__(
        self,
        root: str,
        size: int = 256,
        batch_size: int = 8,
        num_workers: int = 0,
        frames: int = 2,
        sampling: Sampling = "random",
        stride: int | list[int] = 1,
        samples_per_clip: int = 1,
        identity_sampling: bool = False,
        split: Split = "auto",
        holdout: float = 0.1,
        crop: float = 1.0,
        flip: bool = False,
        jitter: float = 0.0,
        seed: int = 0,
        max_clips: int | None = None,
        identities: int | None = None,
        eval_clips: int | None = 16,
        eval_frames: int | None = 16,
        whole_test: bool = False,
        cross: bool = False,
        pairs: str | None = None,
        generate: int | None = None,
        max_unreadable: float = 0.05,
        read_timeout: int = 300,
        backend: Backend = "auto",
        device: Device = "cpu",
        cache_gb: float = 50.0,
    ):
        super().__init__()
        for name, value, least in (
            ("size", size, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("frames", frames, 1),
            ("stride", min(stride, default=0) if isinstance(stride, list) else stride, 1),
            ("samples_per_clip", samples_per_clip, 1),
            ("max_clips", max_clips, 1),
            ("identities", identities, 1),
            ("eval_clips", eval_clips, 1),
            ("eval_frames", eval_frames, 1),
            ("generate", generate, 1),
            ("read_timeout", read_timeout, 1),
            ("seed", seed, 0),
            ("cache_gb", cache_gb, 0),
        ):
            if value is not None and value < least:
                raise DataError(f"{name} is {value}; it must be {least} or more")
        for name, value, choices in (
            ("sampling", sampling, Sampling),
            ("split", split, Split),
            ("backend", backend, Backend),
            ("device", device, Device),
        ):
            if value not in get_args(choices):
                raise DataError(f"{name} is {value!r}; choose from {', '.join(get_args(choices))}")
        if not 0 <= holdout < 1:
            raise DataError(f"holdout is {holdout}; it must be at least 0 and below 1")
        if not 0 <= max_unreadable <= 1:
            raise DataError(f"max_unreadable is {max_unreadable}; it is a share, from 0 to 1")
        if not 0 < crop <= 1:
            raise DataError(f"crop is {crop}; it is a share of the side, above 0 and at most 1")
        if not 0 <= jitter <= 0.5:
            raise DataError(f"jitter is {jitter}; it must be between 0 and 0.5")
        self.root = root
        self.size = size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.frames = frames
        self.sampling: Sampling = sampling
        self.stride = stride
        self.samples_per_clip = samples_per_clip
        self.identity_sampling = identity_sampling
        self.split = split
        self.holdout = holdout
        self.seed = seed
        self.max_clips = max_clips
        self.identities = identities
        self.eval_clips = eval_clips
        self.eval_frames = None if sampling == "all" else eval_frames
        self.whole_test = whole_test
        self.cross = cross
        self.pairs = pairs
        self.generate = generate
        self.max_unreadable = max_unreadable
        self.read_timeout = read_timeout
        self.backend: Backend = backend
        self.device: Device = device
        self.cache_gb = cache_gb
        self.train_clips: list[Clip] = []
        self.val_clips: list[Clip] = []
        self.test_clips: list[Clip] = []
        self.unreadable: dict[str, str] = {}
        self._held: list[Clip] = []
        self._indexed: dict[Path, list[Clip]] = {}
        self._clip_store: Files | Shards | None = None
        self._augmentation = (crop, flip, jitter)
        self._augment = None
        self._decoder: GpuDecoder | None = None

    # What a data set may say about itself

    def identity(self, key: str) -> str:
        """Tell whom a clip shows from its path below the split's folder.

        Here: the text before the first `#` of the file's name, or else the path.
        """
        return identity_of(key)

    def clips_of(
        self, key: str, path: Path, facts: ScannedClip
    ) -> tuple[list[Clip], dict[str, str]]:
        """Make the clips of what was found under a key; here it is one clip.

        Returns:
            Clips, and what in it cannot be read: a path or name for each clip, and the reason.

        Raises:
            VideoReadError: if nothing of it can be read.
        """
        reader = reader_of(path, facts, self.backend)
        unfit = unfit_for_gpu(facts, self._decoder.name) if self._decoder else ""
        content = self.clip_store.content(path)
        place = self.clip_store.address(path)
        clip = Clip(place, key, self.identity(key), 0, facts.frames, reader, unfit, content)
        return [clip], {}

    def find(self, folder: Path) -> dict[str, Path]:
        """Find the clips of a split's folder: their paths by key, see `find_clips`."""
        return self.clip_store.find(folder, self.suffixes)

    def add_truth(self, samples: ClipDataset, training: bool) -> Dataset:
        """Add to the samples of a split what this data set knows about them; here nothing."""
        return samples

    @property
    def clip_store(self) -> Files | Shards:
        """What holds the clips.

        Raises:
            DataError: if `root` has shards, or should, that are not complete.
        """
        if self._clip_store is None:
            self._clip_store = open_clips(self.root, 1e9 * self.cache_gb)
        return self._clip_store

    @property
    def eval_stride(self) -> int:
        """Distance between consecutive frames in evaluation."""
        return self.stride if isinstance(self.stride, int) else min(self.stride)

    # Splits

    def prepare_data(self) -> None:
        """Look into the clips that no table knows yet, in one process of each machine.

        All processes read the table in `setup`, which reports what is wrong with the data.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        if self._needs_no_clip(stage):
            return
        training = stage in ("fit", None)
        with suppress(DataError):
            chosen = self._choose(*self._folders(self.clip_store.root, training))
            self.clip_store.scan([path for paths in chosen.values() for path in paths.values()])

    def setup(self, stage: str | None = None) -> None:
        """List and split the clips.

        Raises:
            DataError: if there is no clip, too few of them, or too many that cannot be read; if
                decord is insisted on, but absent, or does not decode on the GPU that it is to.
        """
        if self._needs_no_clip(stage):
            return
        try:
            check_backend(self.backend)
        except ModuleNotFoundError as error:
            raise DataError(str(error)) from None
        training = stage in ("fit", None)
        explanation = self._choose_decoder()
        train, self._held = self._split(training)
        if training:
            need = frames_needed(self.frames, self.sampling, self.stride)
            self.train_clips = self._long_enough(train, need, "training", "frames or stride")
        if self._held and stage != "predict":  # pairs take clips of any length
            need = frames_needed(self.eval_frames or 1, "consecutive", self.stride)
            self.test_clips = self._long_enough(
                self._held, need, "evaluation", "eval_frames or stride, or raise holdout"
            )
            chosen = choose((clip.key for clip in self.test_clips), self.eval_clips, self.seed)
            self.val_clips = [clip for clip in self.test_clips if clip.key in chosen]
        if not self._held and not training:
            raise DataError(f"holdout is 0: no clip of {self.root} is held out for {stage}")
        self._agree()
        if self.device == "cuda":
            paths = {clip.path: clip.unfit_for_gpu for clip in (*self.train_clips, *self._held)}
            unfit = Counter(filter(None, paths.values()))
            if unfit:
                kinds = ", ".join(f"{count} {kind}" for kind, count in unfit.most_common())
                explanation += f"; the CPU decodes {unfit.total()} of {len(paths)} clips: {kinds}"
            self._report(explanation)

    def _needs_no_clip(self, stage: str | None) -> bool:
        return stage == "predict" and self.generate is not None

    def _choose_decoder(self) -> str:
        """Choose who decodes on the GPU of this process, and return why."""
        if self.device == "cpu":
            return ""
        gpu = torch.device("cuda") if self.trainer is None else self.trainer.strategy.root_device
        try:
            self._decoder, explanation = find_gpu_decoder(gpu, self.backend)
        except NoGpuDecoderError as error:
            raise DataError(str(error)) from None
        return explanation

    def _agree(self) -> None:
        """Stop where processes, whose disks may differ, have found different clips."""
        if self.trainer is None:
            return
        clips = self.train_clips, self.val_clips, self.test_clips, self._held
        digest = sha256(repr(clips).encode()).hexdigest()
        strategy = self.trainer.strategy
        if not strategy.reduce_boolean_decision(digest == strategy.broadcast(digest)):
            raise DataError(
                f"the processes find different clips in {self.root} (this one {len(clips[0])} for "
                f"training, {len(clips[3])} held out): make its files and their paths the same on "
                "all machines"
            )

    def _folders(self, root: Path, training: bool) -> tuple[Path | None, Path | None]:
        """Folders of the clips for training (or of all, if there is no other) and held out."""
        if not self.clip_store.exists(root):
            raise self._no_clips(f"{root} does not exist")
        train = self._first_folder(root, self.train_folders) if self.split == "auto" else None
        test = self._first_folder(root, self.test_folders) if self.split == "auto" else None
        if test is None:
            return train or root, None
        if training and train is None:
            raise self._no_clips(f"{root} has {test.name}/, but no {self.train_folders[0]}/")
        return train if training else None, test

    def _first_folder(self, root: Path, names: Sequence[str]) -> Path | None:
        folders = (root / name for name in names)
        return next((folder for folder in folders if self.clip_store.is_dir(folder)), None)

    def _choose(self, train: Path | None, test: Path | None) -> dict[Path, dict[str, Path]]:
        """List the clips to use of each folder, by their keys."""
        chosen = {}
        for folder in (train, test):
            if folder is not None and folder not in self._indexed:
                paths = self.find(folder)
                if not paths and next(folder.glob(CHUNKS), None) is not None:
                    raise DataError(
                        f"no data: {folder} holds shards that are not complete: run `lmdvid "
                        "prepare shards` to its end, and after parts of it `lmdvid prepare merge`"
                    )
                if not paths:
                    raise self._no_clips(f"{folder} holds no clip")
                keys = self._wanted(paths, folder) if folder == train else paths.keys()
                chosen[folder] = {key: path for key, path in paths.items() if key in keys}
        return chosen

    def _wanted(self, keys: Iterable[str], folder: Path) -> set[str]:
        """Choose those that `identities` and `max_clips` allow."""
        if self.identities is not None:
            known = {key: self.identity(key) for key in keys}
            chosen = choose(known.values(), self.identities, self.seed)
            if len(chosen) < self.identities:
                raise DataError(
                    f"identities is {self.identities}, but {folder} has {len(chosen)}; lower it"
                )
            keys = [key for key in known if known[key] in chosen]
        return choose(keys, self.max_clips, self.seed)

    def _split(self, training: bool) -> tuple[list[Clip], list[Clip]]:
        train, test = self._folders(self.clip_store.root, training)
        self._index(self._choose(train, test))
        clips = self._indexed[train] if train else []
        if self.max_clips is not None:  # a file may hold many clips
            keys = choose((clip.key for clip in clips), self.max_clips, self.seed)
            clips = [clip for clip in clips if clip.key in keys]
        if test is not None:
            return clips, self._indexed[test]
        if self.split == "time":
            return split_in_time(clips, self.holdout)
        return split_by_identity(clips, self.holdout, self.seed)

    def _index(self, chosen: dict[Path, dict[str, Path]]) -> None:
        everything = [path for paths in chosen.values() for path in paths.values()]
        scanned = iter(self.clip_store.scan(everything, again=False))
        for folder, paths in chosen.items():
            facts = islice(scanned, len(paths))
            clips, unreadable = index_clips(paths, facts, self.clips_of)
            total = len(clips) + len(unreadable)
            check_unreadable(unreadable, total, self.max_unreadable)
            if unreadable:
                self._report(
                    f"{len(unreadable)} of {total} clips in {folder} cannot be read and are "
                    "left out:\n  " + "\n  ".join(dict.fromkeys(unreadable.values()))
                )
            self.unreadable |= unreadable
            self._indexed[folder] = clips

    def _long_enough(self, clips: list[Clip], need: int, use: str, lower: str) -> list[Clip]:
        kept = [clip for clip in clips if len(clip) >= need]
        if not kept:
            longest = max((len(clip) for clip in clips), default=0)
            raise DataError(
                f"none of the {len(clips)} clips for {use} has {need} frames (the longest has "
                f"{longest}); lower {lower}"
            )
        if len(kept) < len(clips):
            self._report(
                f"{len(clips) - len(kept)} of {len(clips)} clips for {use} have fewer than {need} "
                "frames and are left out"
            )
        return kept

    def _no_clips(self, found: str) -> DataError:
        train, test = "/ or ".join(self.train_folders), "/ or ".join(self.test_folders)
        return DataError(
            f"no data: {found}. {type(self).__name__} reads {self.holds} in "
            f"{train}/ and {test}/ below root, or in one folder that it splits itself (split: "
            "random or time).\nWithout any data, "
            "`lightning fit --config experiments/lia_puppets.yaml` draws its own."
        )

    def _report(self, message: str) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            log.warning(message)

    # Loaders

    def train_dataloader(self) -> DataLoader:
        """Training clips, shuffled; the loader's state resumes in the middle of an epoch."""
        samples = partial(self._samples, self.train_clips, True)
        dataset = samples(self._decoder)
        size = 1 if self.sampling == "all" else self.batch_size
        sampler = ClipSampler(
            len(dataset),  # type: ignore[arg-type]
            size,
            repeats=self.samples_per_clip,
            shuffle=self.sampling != "all",
            seed=self.seed,
            replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        return ResumableLoader(
            dataset,
            self._left_out(self.train_clips),
            self._decoding(samples),
            batch_size=size,
            sampler=sampler,
            drop_last=True,
            **self._worker_options(),
        )

    def val_dataloader(self) -> DataLoader | list:
        """Held-out clips for validation, in fixed order; none where holdout is 0."""
        if not self.val_clips:
            return []
        return self._eval_loader(self.val_clips, self.eval_frames is None)

    def test_dataloader(self) -> DataLoader:
        """All held-out clips in fixed order, each once, whatever the number of processes."""
        clips, trainer = self.test_clips, self.trainer
        if self.cross and len({clip.identity for clip in clips}) < 2:
            raise DataError(
                f"cross is true, but all {len(clips)} clips for testing show {clips[0].identity}; "
                "set it to false"
            )
        options: dict[str, Any] = {}
        if trainer is not None and trainer.world_size > 1:
            if len(clips) < trainer.world_size:
                raise DataError(
                    f"{len(clips)} clips for testing on {trainer.world_size} devices: use fewer"
                )
            # Lightning's own share would be filled up by clips that others have as well.
            options["sampler"] = UnrepeatedDistributedSampler(
                range(len(clips)), trainer.world_size, trainer.global_rank, shuffle=False
            )
        whole = self.eval_frames is None or self.whole_test
        return self._eval_loader(clips, whole, self.cross, **options)

    def predict_dataloader(self) -> DataLoader:
        """Numbers of videos to make, or pairs, one at a time, as driving clips differ in length."""
        if self.generate is not None:
            processes = self.trainer.world_size if self.trainer else 1
            return seed_loader(self.generate, self.batch_size, processes)
        if self.pairs is None:
            pairs = pair_with_next_identity(self._held)
        else:
            pairs = read_pairs(Path(self.pairs).expanduser(), self._held)
        samples = partial(
            PairDataset, pairs, self.size, self.eval_frames, self.eval_stride, self.backend
        )
        return ClipLoader(
            samples(self._decoder),
            self._left_out(self._held),
            self._decoding(samples),
            batch_size=1,
            **self._worker_options(),
        )

    def _eval_loader(
        self, clips: Sequence[Clip], whole: bool, cross: bool = False, **options: Any
    ) -> DataLoader:
        samples = partial(self._samples, clips, False, whole=whole, cross=cross)
        return ClipLoader(
            samples(self._decoder),
            self._left_out(clips),
            self._decoding(samples),
            batch_size=1 if whole else self.batch_size,
            **options,
            **self._worker_options(),
        )

    def _samples(
        self,
        clips: Sequence[Clip],
        training: bool,
        decoder: GpuDecoder | None,
        whole: bool = False,
        cross: bool = False,
    ) -> Dataset:
        whole = whole or self.sampling == "all"
        samples = self.samples(
            clips,
            self.size,
            frames=self.frames if training else self.eval_frames or 1,
            sampling="all" if whole else self.sampling if training else "consecutive",
            stride=self.stride,
            training=training,
            by_identity=training and self.identity_sampling,
            seed=self.seed,
            backend=self.backend,
            decoder=decoder,
        )
        return CrossDataset(samples) if cross else self.add_truth(samples, training)

    def _decoding(self, samples: Callable[[None], Dataset]) -> Decoding | None:
        """Return what decodes here where a GPU does; `samples` makes the data set for the CPU."""
        if self._decoder is None:
            return None
        return Decoding(self._decoder, self.size, samples(None))

    def _left_out(self, clips: Sequence[Clip]) -> Callable[[Failures], None]:
        """Return what names and counts those that turn out to be unreadable as they are loaded."""
        broken: dict[str, str] = {}

        def report(failed: Failures) -> None:
            broken.update(failed)
            check_unreadable(broken, len(clips), self.max_unreadable)
            for path, reason in failed:
                if path not in self.unreadable:
                    self.unreadable[path] = reason
                    self._report(f"{reason}; it is left out")

        return report

    def _worker_options(self) -> dict[str, Any]:
        # Never fork: a forked child hangs when it frees decoders that the parent once opened.
        context = None
        if self.num_workers > 0 and "forkserver" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("forkserver")
            remote = self._clip_store is not None and self._clip_store.remote
            modules = ["litdata.streaming.downloader", "boto3"] if remote else []
            context.set_forkserver_preload(["data_modules.puppet_clips", *modules])
        elif self.num_workers > 0:  # Windows
            context = multiprocessing.get_context("spawn")
        watchdog = Watchdog(self.num_workers, self.read_timeout) if self.num_workers else None
        return {
            "watchdog": watchdog,
            "num_workers": self.num_workers,
            "persistent_workers": context is not None,
            "multiprocessing_context": context,
            "pin_memory": torch.cuda.is_available(),
        }

    # On the device

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Bytes (..., H, W, 3) to floats (..., 3, H, W) in [-1, 1]; augmented in training."""
        batch = {
            name: to_float(value) if _is_bytes(value) else value for name, value in batch.items()
        }
        if self.trainer is not None and self.trainer.training:
            self._augment = self._augment or build_augmentation(self.size, *self._augmentation)
            if self._augment is not None:
                place = (self.seed, self.trainer.fit_loop.total_batch_idx, self.trainer.global_rank)
                batch["video"] = augment(self._augment, batch["video"], hash(place))
        return batch


def _is_bytes(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8
