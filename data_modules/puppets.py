"""The embedded data set: puppets drawn once, with exact identity and pose."""

from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from data_modules.base import Device, VideoDataModule
from data_modules.index import DataError
from data_modules.puppet_clips import FIRST_TEST_SEED, PuppetDataset, PuppetSet, draw_set
from data_modules.puppetry import KINDS, SIZES
from data_modules.sampling import ClipDataset, Sampling
from lmdvid.video import Backend


class Puppets(VideoDataModule):
    """Talking heads or tai-chi figures, drawn as mp4 files and read like any other clips.

    Every clip has an identity and a smooth path of poses of its own; identities for training and
    test differ. Batches add `identity` (B,I) and `pose` (B,T,P). Validation and test also add what
    no recorded data has, the truth of a cross-identity animation: `cross_driving` (B,T,3,H,W),
    another test identity's frames, `cross_key`, its clip, and `cross_truth` (B,T,3,H,W), the clip's
    own identity in the poses of that driver, drawn.

    With `motions` each clip is one of `puppet_motions.MOTIONS` (a head smiles, turns, nods or
    speaks), beginning at rest, and batches add its number, `label` (B,).

    There is no augmentation, because it would falsify identity and pose.

    Args:
        root: folder for the drawings; each setting of the next seven arguments has its subfolder.
        kind: `head` or `taichi`.
        size: side of the frames in pixels, 32 to 512.
        train_identities: clips to train on, each of its own identity.
        test_identities: clips of other identities, at least 2.
        clip_frames: frames per clip, at 25 per second.
        draw_seed: of identities and motion.
        motions: one kind of motion in each clip, see above; else everything at once.
        batch_size: clips per batch and process.
        num_workers: processes that decode, per loader; 0 decodes in the training process. With
            workers, a script of your own needs the guard `if __name__ == "__main__":`.
        frames: frames per clip in a batch, T.
        sampling: `random` draws T different frames of a clip in any order; `consecutive` a window
            of T frames; `all` gives every frame, one clip at a time, unshuffled.
        stride: distance between consecutive frames, in training (but for `random`) and evaluation.
        samples_per_clip: how often an epoch visits every clip.
        seed: of orders and draws.
        eval_clips: number of test clips for validation, all where null.
        eval_frames: frames of each clip in evaluation; null takes all, one clip at a time.
        pairs: csv with the columns source, driving and perhaps frame (of the source) for
            prediction; null pairs every test clip with the next one.
        generate: videos to make from noise in prediction, for which nothing is drawn; null animates
            pairs instead; see `VideoDataModule`.
        backend: decoder.
        device: where frames are decoded, `cpu` or `cuda`; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: str = "data/puppets",
        kind: Literal["head", "taichi"] = "head",
        size: int = 64,
        train_identities: int = 200,
        test_identities: int = 24,
        clip_frames: int = 48,
        draw_seed: int = 0,
        motions: bool = False,
        batch_size: int = 8,
        num_workers: int = 0,
        frames: int = 2,
        sampling: Sampling = "random",
        stride: int = 1,
        samples_per_clip: int = 1,
        seed: int = 0,
        eval_clips: int | None = 16,
        eval_frames: int | None = 16,
        pairs: str | None = None,
        generate: int | None = None,
        backend: Backend = "auto",
        device: Device = "cpu",
    ):
        for name, value, least in (
            ("train_identities", train_identities, 1),
            ("test_identities", test_identities, 2),
            ("clip_frames", clip_frames, 1),
            ("draw_seed", draw_seed, 0),
        ):
            if value < least:
                raise DataError(f"{name} is {value}; it must be {least} or more")
        if max(train_identities, test_identities) > FIRST_TEST_SEED:
            raise DataError(
                f"train_identities is {train_identities} and test_identities {test_identities}; "
                f"a set has up to {FIRST_TEST_SEED} of each"
            )
        if kind not in KINDS:
            raise DataError(f"kind is {kind!r}; choose from {', '.join(KINDS)}")
        if motions and kind != "head":
            raise DataError(f"motions are those of heads: leave kind={kind} or motions out")
        if not SIZES[0] <= size <= SIZES[1]:
            raise DataError(f"size is {size}; puppets are drawn at {SIZES[0]} to {SIZES[1]} pixels")
        puppets = PuppetSet(
            kind, size, train_identities, test_identities, clip_frames, draw_seed, motions
        )
        super().__init__(
            root=str(Path(root).expanduser() / puppets.folder()),
            size=size,
            batch_size=batch_size,
            num_workers=num_workers,
            frames=frames,
            sampling=sampling,
            stride=stride,
            samples_per_clip=samples_per_clip,
            seed=seed,
            eval_clips=eval_clips,
            eval_frames=eval_frames,
            pairs=pairs,
            generate=generate,
            max_unreadable=0.0,
            backend=backend,
            device=device,
        )
        self._puppets = puppets

    def prepare_data(self) -> None:
        """Draw the clips that are not there yet, and look into them."""
        if not self._needs_no_clip(None if self.trainer is None else self.trainer.state.fn):
            draw_set(self._puppets, Path(self.root).parent)
        super().prepare_data()

    def add_truth(self, samples: ClipDataset, training: bool) -> Dataset:
        """Add identity and pose and, outside training, the cross-identity truth."""
        return PuppetDataset(samples, Path(self.root), () if training else self.test_clips)
