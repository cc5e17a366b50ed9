"""BAIR robot pushing, as it was published or in any of its usual conversions."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from data_modules.base import Device, Split, VideoDataModule
from data_modules.index import Clip, DataError
from data_modules.sampling import ClipDataset, Sampling
from lmdvid.video import (
    ARRAY_SUFFIXES,
    RECORD_SUFFIXES,
    VIDEO_SUFFIXES,
    Backend,
    Record,
    ScannedClip,
    centre_square,
    records,
    resize,
)

Camera = Literal["image_aux1", "image_main"]


class PushDataset(ClipDataset):
    """Samples with `action` (T,4), float32, where every clip is a record of a TFRecord file."""

    @cached_property
    def has_actions(self) -> bool:
        """Whether all have them: samples of one batch have the same entries."""
        return all(isinstance(clip.reader, Record) for clip in self.clips)

    def load(self, clip: Clip, frames: np.ndarray) -> dict[str, Any]:
        """Read one sample: `video` (T,H,W,3) uint8, `key`, `frames` (T,), perhaps `action`."""
        if not self.has_actions or not isinstance(clip.reader, Record):
            return super().load(clip, frames)
        record, numbers = clip.reader.load(), frames.tolist()
        return {
            "video": resize(centre_square(record.frames(numbers)), self.size),
            "key": clip.key,
            "frames": torch.from_numpy(frames),
            "action": record.floats("action", numbers),
        }


class BAIR(VideoDataModule):
    """BAIR robot pushing (`softmotion30_44k`): a robot arm in 30 frames of 64 px.

    Below `train/` and `test/` it reads the published TFRecords, folders of pictures (such as
    `traj_0_to_255/17/0.png`), `.npy` files of uint8 (T,H,W,3), and videos. A record has the name
    that its folder of pictures would have, `traj_0_to_255/17`; each clip is an identity of its own.

    From TFRecords, batches for training, validation and test add `action` (B,T,4), float32: for
    each frame the command that the arm got there, as the file has it. There is no augmentation,
    because it would falsify actions.

    Records are found by a table of their lengths, which is kept beside the data with all else that
    is known of the files; a sample reads its record alone and checks its CRC.

    Args:
        root: folder of the data set, with `train/` and `test/`.
        camera: which of the two cameras of the TFRecords; papers use `image_aux1`. Conversions hold
            one already, and this does nothing to them.
        size: side of the frames in pixels.
        batch_size: clips per batch and process.
        num_workers: processes that decode, per loader; 0 decodes in the training process. With
            workers, a script of your own needs the guard `if __name__ == "__main__":`.
        frames: frames per clip in a batch, T.
        sampling: `random` draws T different frames of a clip in any order; `consecutive` a window
            of T frames; `all` gives every frame, one clip at a time, unshuffled.
        stride: distance between consecutive frames, in training (but for `random`) and evaluation.
        samples_per_clip: how often an epoch visits every clip.
        split: `auto` takes the folders train/ and test/, `random` holds out a share of all clips
            below root, `time` the last frames of every clip.
        holdout: share that `random` and `time` hold out; 0 trains on all, without validation.
        seed: of splits, orders and draws.
        max_clips: use only so many clips of the training folder (or, before splitting, of root).
        eval_clips: number of held-out clips for validation, all where null.
        eval_frames: frames of each clip in evaluation; null takes all, one clip at a time.
        whole_test: all frames in testing, see `VideoDataModule`.
        pairs: csv with the columns source, driving and perhaps frame (of the source) for
            prediction; null pairs every held-out clip with the next one.
        generate: videos to make from noise in prediction; see `VideoDataModule`.
        max_unreadable: share of clips that may be unreadable, in training and in evaluation each;
            above it the run stops.
        backend: decoder of videos.
        device: where videos are decoded, `cpu` or `cuda`; see `VideoDataModule`.
        cache_gb: of shards in object storage, how much is kept here; see `VideoDataModule`.
    """

    suffixes = VIDEO_SUFFIXES | ARRAY_SUFFIXES | RECORD_SUFFIXES
    holds = "TFRecords, videos, .npy files and folders of frames"
    samples = PushDataset

    def __init__(
        self,
        root: str,
        camera: Camera = "image_aux1",
        size: int = 64,
        batch_size: int = 8,
        num_workers: int = 0,
        frames: int = 30,
        sampling: Sampling = "consecutive",
        stride: int = 1,
        samples_per_clip: int = 1,
        split: Split = "auto",
        holdout: float = 0.1,
        seed: int = 0,
        max_clips: int | None = None,
        eval_clips: int | None = 16,
        eval_frames: int | None = 30,
        whole_test: bool = False,
        pairs: str | None = None,
        generate: int | None = None,
        max_unreadable: float = 0.05,
        backend: Backend = "auto",
        device: Device = "cpu",
        cache_gb: float = 50.0,
    ):
        if camera not in get_args(Camera):
            raise DataError(f"camera is {camera!r}; choose from {', '.join(get_args(Camera))}")
        super().__init__(
            root=root,
            size=size,
            batch_size=batch_size,
            num_workers=num_workers,
            frames=frames,
            sampling=sampling,
            stride=stride,
            samples_per_clip=samples_per_clip,
            split=split,
            holdout=holdout,
            seed=seed,
            max_clips=max_clips,
            eval_clips=eval_clips,
            eval_frames=eval_frames,
            whole_test=whole_test,
            pairs=pairs,
            generate=generate,
            max_unreadable=max_unreadable,
            backend=backend,
            device=device,
            cache_gb=cache_gb,
        )
        self.camera: Camera = camera

    def clips_of(
        self, key: str, path: Path, facts: ScannedClip
    ) -> tuple[list[Clip], dict[str, str]]:
        """Make a clip of each record of a TFRecord file, or of the one clip that this is."""
        if facts.error or facts.kind != "records":
            return super().clips_of(key, path, facts)
        lengths = [int(length) for length in facts.records.split()]
        found, errors = records(path, lengths, facts.size, self.camera)
        name = key.removesuffix(path.suffix)
        unfit = "records of raw pictures" if self._decoder else ""
        clips = []
        for number, record in enumerate(found):
            key = f"{name}/{number}"
            clips.append(
                Clip(f"{path}/{number}", key, self.identity(key), 0, facts.frames, record, unfit)
            )
        lost = {f"{path}/{number}": str(error) for number, error in enumerate(errors, len(found))}
        return clips, lost
