"""Clips of puppets as files, and their samples with exact identity and pose.

Run as a module it draws one share of a set; `draw_set` starts such processes.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch.utils.data import Dataset

from data_modules import puppet_motions, puppetry
from data_modules.index import Clip
from data_modules.sampling import ClipDataset, Item
from lmdvid.video import VideoReadError, write_video

_FPS = 25
_INDEX = "puppets.json"
# Test seeds start far behind the training seeds, so that they stay the same in a larger set.
_SEEDS_PER_SET = 1_000_000
FIRST_TEST_SEED = 500_000  # hence also the largest number of identities for training
# x264: a key frame every 12 frames and no B-frames, so that random frames are decoded quickly.
_ENCODING = {"g": "12", "bf": "0"}
_CRF = 10  # lower than usual: what is read should be close to what was drawn
_PIXELS_PER_PROCESS = 5_000_000  # a few seconds of drawing; for less, a process does not pay


@dataclass(frozen=True)
class PuppetSet:
    """What is drawn; equal sets are equal pictures.

    Attributes:
        kind: one of `puppetry.KINDS`.
        size: side in pixels.
        train_identities: clips to train on, each of its own identity.
        test_identities: clips of other identities.
        frames: per clip.
        seed: of the set; sets of different seeds share no identity.
        motions: every clip is one of `puppet_motions.MOTIONS`, else of all at once.
    """

    kind: str
    size: int
    train_identities: int
    test_identities: int
    frames: int
    seed: int
    motions: bool = False

    def folder(self) -> str:
        """Name the folder of this set, drawn and written in this version's way."""
        way = (_FPS, _CRF, _ENCODING, _SEEDS_PER_SET, FIRST_TEST_SEED)
        drawn = Path(puppetry.__file__).read_bytes()
        if self.motions:
            drawn += Path(puppet_motions.__file__).read_bytes()
        version = sha256(drawn + repr(way).encode()).hexdigest()[:8]
        what = "motions" if self.motions else self.kind
        return (
            f"{what}_{self.size}px_{self.train_identities}+{self.test_identities}"
            f"x{self.frames}_seed{self.seed}_{version}"
        )

    def clips(self) -> Iterator[tuple[str, int]]:
        """Yield the path below the folder and the seed of every clip."""
        first = self.seed * _SEEDS_PER_SET
        for split, start, count in (
            ("train", first, self.train_identities),
            ("test", first + FIRST_TEST_SEED, self.test_identities),
        ):
            for seed in range(start, start + count):
                yield f"{split}/{self.kind}{seed:06d}.mp4", seed


def draw_set(puppets: PuppetSet, root: Path) -> Path:
    """Draw a set of clips where it is not there yet, on all cores where that pays.

    Every file appears when it is complete; a drawing that was cut short goes on where it stopped.

    Returns:
        The folder, with `train/`, `test/` and `puppets.json`, which lists the seeds.
    """
    folder = root / puppets.folder()
    if (folder / _INDEX).is_file():
        return folder
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
    names = list(puppets.clips())
    missing = sum(not (folder / name).is_file() for name, _ in names)
    pixels = missing * puppets.frames * puppets.size**2
    processes = max(1, min(_cores(), pixels // _PIXELS_PER_PROCESS))
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"drawing {missing} clips of puppets", total=missing)
        others = [_start(puppets, folder, share, processes) for share in range(1, processes)]
        try:
            for _ in _draw_share(puppets, folder, 0, processes):
                progress.advance(bar, processes)
            for other in others:
                if other.wait():
                    raise RuntimeError(f"drawing puppets in {folder} failed, see above")
        finally:
            for other in others:
                other.kill()
    listing = json.dumps({**asdict(puppets), "fps": _FPS, "seeds": dict(names)}, indent=1)
    part = folder / f".{_INDEX}.{os.getpid()}"
    part.write_text(listing)
    part.replace(folder / _INDEX)
    return folder


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(puppets: PuppetSet, folder: Path, share: int, of: int) -> subprocess.Popen:
    # Not multiprocessing: it would run an unguarded script of the user's a second time.
    task = json.dumps([asdict(puppets), str(folder), share, of])
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    command = [sys.executable, "-m", "data_modules.puppet_clips", task]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


def _draw_share(puppets: PuppetSet, folder: Path, share: int, of: int) -> Iterator[None]:
    gc.freeze()  # the writer collects garbage after every file: spare it all that is loaded
    try:
        for name, seed in list(puppets.clips())[share::of]:
            if (folder / name).is_file():
                continue
            who, pose = truth(seed, puppets.frames, puppets.kind, puppets.motions)
            frames = puppetry.render(who, pose, puppets.size, puppets.kind)
            write_video(folder / name, frames, _FPS, crf=_CRF, options=_ENCODING)
            yield
    finally:
        gc.unfreeze()


@lru_cache(maxsize=4096)
def truth(
    seed: int, frames: int, kind: str, motions: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Identity (I,) and poses (T,P) of the clip with this seed; not to be written to."""
    who = puppetry.identity(seed, kind)
    if motions:
        poses = puppet_motions.motion_path(seed, frames, _FPS)
    else:
        poses = puppetry.pose_path(seed, frames, kind, _FPS)
    who.flags.writeable = poses.flags.writeable = False
    return who, poses


class PuppetDataset(Dataset):
    """Samples of drawn clips with their exact `identity` (I,) and `pose` (T,P), float32.

    Where each clip is one motion, also `label`, the number of that motion.

    Args:
        samples: what to add the truth to.
        folder: of the drawn set.
        drivers: clips of which the one behind the sample's own drives it: adds `cross_driving`
            (T,H,W,3), the same frames of that clip, `cross_key`, its name, and `cross_truth`
            (T,H,W,3), the own identity drawn in those poses. Without clips, nothing of that.
    """

    def __init__(self, samples: ClipDataset, folder: Path, drivers: Sequence[Clip] = ()):
        puppets = json.loads((folder / _INDEX).read_text())
        self.samples = samples
        self.kind: str = puppets["kind"]
        self.path_frames: int = puppets["frames"]
        self.motions: bool = puppets.get("motions", False)
        self.seeds: dict[str, int] = {Path(k).name: seed for k, seed in puppets["seeds"].items()}
        self.drivers = {
            clip.key: drivers[(place + 1) % len(drivers)] for place, clip in enumerate(drivers)
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int | Item) -> dict[str, Any]:
        sample = self.samples[item]
        if "video" not in sample:  # it could not be read
            return sample
        frames = sample["frames"].numpy()
        who, pose = self._truth(sample["key"])
        sample |= {"identity": torch.tensor(who), "pose": torch.from_numpy(pose[frames])}
        if self.motions:
            sample["label"] = puppet_motions.motion_of(self.seeds[sample["key"]])
        if self.drivers:
            other = self.drivers[sample["key"]]
            try:
                sample["cross_driving"] = self.samples.load(other, frames)["video"]
            except VideoReadError as error:
                return {"failed": [(other.path, str(error))]}
            other_pose = self._truth(other.key)[1][frames]
            drawn = puppetry.render(who, other_pose, self.samples.size, self.kind)
            sample |= {"cross_truth": torch.from_numpy(drawn), "cross_key": other.key}
        return sample

    def _truth(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        return truth(self.seeds[key], self.path_frames, self.kind, self.motions)


if __name__ == "__main__":
    puppets, folder, share, of = json.loads(sys.argv[1])
    for _ in _draw_share(PuppetSet(**puppets), Path(folder), share, of):
        pass
