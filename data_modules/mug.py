"""MUG facial expressions, with the class of each clip."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from torch.utils.data import Dataset

from data_modules.base import Device, Split, VideoDataModule
from data_modules.index import DataError, Files, without_suffix
from data_modules.sampling import ClipDataset, LabelledDataset, Sampling
from data_modules.shards import Shards
from lmdvid.video import Backend

CLASSES = ("sadness", "anger", "surprise", "disgust", "happiness", "fear")

_CLIP, _CLASS = ("video", "path"), ("category", "class", "label")


class MUG(VideoDataModule):
    """MUG (Aifantis et al. 2010): faces that perform an expression, and which one.

    A clip is a folder of pictures, read in the natural order of their names, or a video. Batches
    for training, validation and test add `label` (B,), the number of the clip's class.

    Clips and classes come from two lists as they were published with ImaGINator, csv files with the
    columns `video` (or `path`), relative to `root`, and `category` (or `class`, `label`), a number
    or one of `classes`; other columns are passed over. A list may name a clip without its suffix.
    Without lists, the class is the folder of that name in a clip's path, `031/happiness/take002`,
    and `split: random` holds out whole people. Either way nobody is on both sides: lists that put
    one there are refused.

    The subject is the first part of a clip's path, and the identity.

    Args:
        root: folder of the data set.
        train_list: csv of the clips to train on, relative to `root`; null splits the folders.
        test_list: csv of the clips held out.
        classes: their names, in the order of their numbers.
        size: side of the frames in pixels.
        batch_size: clips per batch and process.
        num_workers: processes that decode, per loader; 0 decodes in the training process. With
            workers, a script of your own needs the guard `if __name__ == "__main__":`.
        frames: frames per clip in a batch, T.
        sampling: `random` draws T different frames of a clip in any order; `consecutive` a window
            of T frames; `all` gives every frame, one clip at a time, unshuffled.
        stride: distance between consecutive frames; see `VideoDataModule`.
        samples_per_clip: how often an epoch visits every clip.
        identity_sampling: an epoch visits every person instead of every clip, and draws one of
            their clips.
        split: of folders: `random` holds out whole people; `auto` takes the folders train/ and
            test/ where they are, else `random`; `time` holds out the last frames of every clip.
        holdout: share that `random` and `time` hold out; 0 trains on all, without validation.
        crop: random square cut out and resized in training, as a share of the side; 1 is off.
        flip: mirror clips at random in training.
        jitter: largest change of brightness, contrast, saturation and hue in training.
        seed: of splits, orders and draws.
        max_clips: use only so many clips of the training list (or, before splitting, of root).
        identities: use only so many people of it, chosen by `seed`.
        eval_clips: number of held-out clips for validation, all where null.
        eval_frames: frames of each clip in evaluation; null takes all, one clip at a time.
        pairs: csv with the columns source, driving and perhaps frame (of the source) for
            prediction; null pairs every held-out clip with one of the next person.
        generate: videos to make from noise in prediction; see `VideoDataModule`.
        max_unreadable: share of clips that may be unreadable, in training and in evaluation each;
            above it the run stops.
        backend: decoder of videos.
        device: where videos are decoded, `cpu` or `cuda`; see `VideoDataModule`.
        cache_gb: of shards in object storage, how much is kept here; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: str,
        train_list: str | None = "train_none_neutral.csv",
        test_list: str | None = "val_none_neutral.csv",
        classes: Sequence[str] = CLASSES,
        size: int = 64,
        batch_size: int = 8,
        num_workers: int = 0,
        frames: int = 32,
        sampling: Sampling = "consecutive",
        stride: int | list[int] = 1,
        samples_per_clip: int = 1,
        identity_sampling: bool = False,
        split: Split = "random",
        holdout: float = 0.2,
        crop: float = 1.0,
        flip: bool = False,
        jitter: float = 0.0,
        seed: int = 0,
        max_clips: int | None = None,
        identities: int | None = None,
        eval_clips: int | None = 16,
        eval_frames: int | None = 32,
        pairs: str | None = None,
        generate: int | None = None,
        max_unreadable: float = 0.05,
        backend: Backend = "auto",
        device: Device = "cpu",
        cache_gb: float = 50.0,
    ):
        if (train_list is None) != (test_list is None):
            raise DataError("give train_list and test_list both, or neither to split the folders")
        if not classes or len(set(classes)) < len(classes):
            raise DataError(f"classes are {', '.join(classes) or 'none'}; name one or more, once")
        super().__init__(
            root=root,
            size=size,
            batch_size=batch_size,
            num_workers=num_workers,
            frames=frames,
            sampling=sampling,
            stride=stride,
            samples_per_clip=samples_per_clip,
            identity_sampling=identity_sampling,
            split=split,
            holdout=holdout,
            crop=crop,
            flip=flip,
            jitter=jitter,
            seed=seed,
            max_clips=max_clips,
            identities=identities,
            eval_clips=eval_clips,
            eval_frames=eval_frames,
            pairs=pairs,
            generate=generate,
            max_unreadable=max_unreadable,
            backend=backend,
            device=device,
            cache_gb=cache_gb,
        )
        self.lists = None if train_list is None or test_list is None else (train_list, test_list)
        self.classes = tuple(classes)
        self.labels: dict[str, int] = {}

    def identity(self, key: str) -> str:
        """Return the subject: the first part of the path."""
        return without_suffix(key).split("/", 1)[0]

    def find(self, folder: Path) -> dict[str, Path]:
        """Find the clips of a list, or those of a folder; remember their classes."""
        if self.lists is None:
            found = super().find(folder)
            self.labels |= {key: self._class_in(key) for key in found}
            return found
        root, store = self.clip_store.root, self.clip_store
        found, missing = {}, []
        for line, clip, category in _rows(store, folder):
            key, path = self._clip(root, clip)
            if not store.exists(path):
                missing.append(clip)
                continue
            number = self._number(category, f"{folder}, line {line}")
            if self.labels.get(key, number) != number:
                raise DataError(f"{folder}, line {line}: {clip} has another class elsewhere")
            self.labels[key] = number
            found[key] = path
        if missing:
            self._report(
                f"{len(missing)} of {len(missing) + len(found)} clips in {folder} are not below "
                f"{root} and are left out, such as {missing[0]}"
            )
        return found

    def add_truth(self, samples: ClipDataset, training: bool) -> Dataset:
        """Add `label`."""
        return LabelledDataset(samples, self.labels)

    def _folders(self, root: Path, training: bool) -> tuple[Path | None, Path | None]:
        if self.lists is None:
            return super()._folders(root, training)
        store = self.clip_store
        train, test = (root / name for name in self.lists)
        shared = {self.identity(Path(clip).as_posix()) for _, clip, _ in _rows(store, train)} & {
            self.identity(Path(clip).as_posix()) for _, clip, _ in _rows(store, test)
        }
        if shared:
            raise DataError(
                f"{', '.join(sorted(shared)[:3])} is in {train.name} and in {test.name}: nobody "
                "may be on both sides of the split"
            )
        return train if training else None, test

    def _clip(self, root: Path, clip: str) -> tuple[str, Path]:
        """Key and path of a clip that a list names, perhaps without its suffix."""
        path = root / clip
        if not self.clip_store.exists(path):
            options = (path.with_name(path.name + suffix) for suffix in sorted(self.suffixes))
            path = next((option for option in options if self.clip_store.exists(option)), path)
        return path.relative_to(root).as_posix(), path

    def _number(self, category: str, where: str) -> int:
        if category in self.classes:
            return self.classes.index(category)
        if category.isdigit() and int(category) < len(self.classes):
            return int(category)
        raise DataError(
            f"{where}: class {category!r} is none of {', '.join(self.classes)}, nor a number from "
            f"0 to {len(self.classes) - 1}"
        )

    def _class_in(self, key: str) -> int:
        named = [part for part in without_suffix(key).split("/") if part in self.classes]
        if len(named) != 1:
            raise DataError(
                f"{key} does not tell its class: name one of {', '.join(self.classes)} as a folder "
                "of its path, or give train_list and test_list"
            )
        return self.classes.index(named[0])


def _rows(store: Files | Shards, table: Path) -> list[tuple[int, str, str]]:
    """Line, clip and class of each row of a list."""
    try:
        rows = csv.DictReader(StringIO(store.text(table), newline=""))
        names = rows.fieldnames or ()
        clip, category = (
            next((name for name in known if name in names), None) for known in (_CLIP, _CLASS)
        )
        if clip is None or category is None:
            raise DataError(
                f"{table} needs the columns {_CLIP[0]} and {_CLASS[0]}; it has "
                f"{', '.join(names) or 'none'}"
            )
        found = [(rows.line_num, row[clip] or "", row[category] or "") for row in rows]
    except FileNotFoundError:
        raise DataError(
            f"no data: {table} does not exist. Give the csv of clips and classes, or "
            "train_list: null and test_list: null to split the folders by people"
        ) from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}") from None
    for line, clip, _ in found:
        if not clip.strip("/ ") or ".." in Path(clip).parts or Path(clip).is_absolute():
            raise DataError(f"{table}, line {line}: {clip!r} is no path below the root")
    return found
