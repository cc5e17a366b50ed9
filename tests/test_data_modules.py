"""Clips on disk to batches: splits, frames, broken files, resuming, augmentation."""

import csv
import errno
import logging
import multiprocessing
import os
import shutil
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.augment import augment, build_augmentation
from data_modules.bair import BAIR
from data_modules.base import DataError, VideoDataModule
from data_modules.clips import Clips
from data_modules.index import Clip, find_clips, identity_of, split_by_identity
from data_modules.mug import MUG
from data_modules.puppets import Puppets
from data_modules.sampling import ClipLoader, ClipSampler, ResumableLoader, read_pairs
from data_modules.seeds import Seeds
from data_modules.taichi import TaiChi
from data_modules.ted import TED
from data_modules.uvanemo import UvANemo
from data_modules.voxceleb import VoxCeleb
from lmdvid.video import write_image, write_video

FRAMES = 20
SIZE = 32


def picture(clip: int, frame: int, width: int = SIZE) -> torch.Tensor:
    """Two barcodes of eight bits, 4 px a bar: frame number above, clip number below."""
    image = torch.zeros(SIZE, width, 3, dtype=torch.uint8)
    for half, number in enumerate((frame, clip)):
        for bit in range(8):
            if number >> bit & 1:
                image[16 * half : 16 * half + 16, 4 * bit : 4 * bit + 4] = 255
    return image


def numbers(video: torch.Tensor) -> list[list[tuple[int, int]]]:
    """Read (clip, frame) back from a batch (B,T,3,H,W) in [-1,1]."""
    bars = video.mean(2).unflatten(-2, (2, -1)).unflatten(-1, (8, -1)).mean((-3, -1)) > 0
    read = (bars * 2 ** torch.arange(8)).sum(-1)
    return [[(int(clip), int(frame)) for frame, clip in frames] for frames in read]


@pytest.fixture(scope="session")
def bars(tmp_path_factory) -> list[Path]:
    """Six clips; every frame tells its clip and its number."""
    folder = tmp_path_factory.mktemp("bars")
    files = []
    for clip in range(6):
        files.append(folder / f"{clip}.mp4")
        frames = torch.stack([picture(clip, frame) for frame in range(FRAMES)])
        write_video(files[-1], frames, 25, options={"g": "12", "bf": "0"})
    return files


@pytest.fixture
def place(tmp_path, bars):
    """Put barcoded clip `n % 6` under each name (a folder of 3 pictures, where `frames`)."""

    def put(*names: str, frames: bool = False) -> str:
        for n, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if frames:
                for frame in range(3):
                    path.mkdir(exist_ok=True)
                    write_image(path / f"{frame:07d}.png", picture(n, frame))
            else:
                shutil.copy(bars[n % 6], path)
        return str(tmp_path)

    return put


def ready(data: VideoDataModule, stage: str | None = None) -> VideoDataModule:
    data.setup(stage)
    return data


def batches(data: VideoDataModule, loader) -> list[dict]:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def keys(clips) -> list[str]:
    return [clip.key for clip in clips]


# Layouts


def test_train_and_test_folders_with_videos(place):
    root = place("train/a#000001#000020.mp4", "train/b#000001#000020.mp4", "test/c#1#20.mp4")
    data = ready(TaiChi(root, size=SIZE))
    assert keys(data.train_clips) == ["a#000001#000020.mp4", "b#000001#000020.mp4"]
    assert keys(data.val_clips) == keys(data.test_clips) == ["c#1#20.mp4"]
    assert [clip.identity for clip in data.train_clips] == ["a", "b"]
    assert {len(clip) for clip in data.train_clips} == {FRAMES}


def test_folders_of_frames_named_like_videos(place):
    root = place("train/a#1#3.mp4", "train/b#1#3.mp4", "test/c#1#3.mp4", frames=True)
    data = ready(TaiChi(root, size=SIZE, batch_size=2, eval_frames=3))
    assert keys(data.train_clips) == ["a#1#3.mp4", "b#1#3.mp4"]
    (batch,) = batches(data, data.train_dataloader())
    expected = [[({"a": 0, "b": 1}[k[0]], f) for f in fs] for k, fs in
                zip(batch["key"], batch["frames"].tolist(), strict=True)]  # fmt: skip
    assert numbers(batch["video"]) == expected


def test_stills_and_hidden_files_beside_videos_are_no_clips(place):
    root = Path(place("x/a.mp4", "x/deep/b.mp4", "x/._c.mp4"))
    for name in ("x/cover.png", "x/deep/cover.jpg"):
        write_image(root / name, picture(0, 0))
    place("x/frames", frames=True)
    found = find_clips(root)
    assert list(found) == ["x/a.mp4", "x/deep/b.mp4", "x/frames"]
    assert all(path == root / key for key, path in found.items())


def test_single_file_and_single_folder_of_frames_are_a_root(place, tmp_path):
    place("only.mp4")
    assert keys(ready(Clips(str(tmp_path / "only.mp4"), split="time", holdout=0.5, eval_frames=4))
                .train_clips) == ["only.mp4"]  # fmt: skip
    place("shots", frames=True)
    data = Clips(str(tmp_path / "shots"), split="time", holdout=0.34, eval_frames=1)
    assert keys(ready(data).train_clips) == ["shots"]


def test_ted_holds_out_whole_talks_and_taichi_whole_videos(place):
    names = [f"talk{n // 2}#{n % 2:06d}#000020.mp4" for n in range(20)]
    for kind in (TED, TaiChi):
        data = ready(kind(place(*names), size=SIZE, holdout=0.2))
        train = {clip.identity for clip in data.train_clips}
        held = {clip.identity for clip in data.test_clips}
        assert len(train) == 8
        assert len(held) == 2
        assert not train & held
        assert len(data.train_clips) == 16


def test_voxceleb_original_release(place):
    root = place(
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
        "dev/mp4/id00012/21Uxsk56VDQ/00002.mp4",
        "dev/mp4/id00013/1zcIwhmdeo4/00001.mp4",
        "test/mp4/id00017/01dfn2spqyE/00001.mp4",
    )
    data = ready(VoxCeleb(root, size=SIZE, identity_sampling=True, batch_size=2))
    assert [c.identity for c in data.train_clips] == ["id00012", "id00012", "id00013"]
    assert [c.identity for c in data.test_clips] == ["id00017"]
    (batch,) = batches(data, data.train_dataloader())
    assert sorted(key.split("/")[1] for key in batch["key"]) == ["id00012", "id00013"]


@pytest.mark.parametrize("name", ["00001.mp4", "00001"])
def test_voxceleb_original_release_as_folders_of_frames(place, name):
    root = place(*(f"dev/mp4/{who}/21Uxsk56VDQ/{name}" for who in ("id1", "id10", "id2")),
                 f"test/mp4/id100/01dfn2spqyE/{name}", frames=True)  # fmt: skip
    data = ready(VoxCeleb(root, size=SIZE, identity_sampling=True, batch_size=3, eval_frames=3))
    assert [clip.identity for clip in data.train_clips] == ["id1", "id10", "id2"]
    assert [clip.identity for clip in data.test_clips] == ["id100"]
    (batch,) = batches(data, data.train_dataloader())
    for key, frames in zip(batch["key"], numbers(batch["video"]), strict=True):
        person = key.split("/")[1]
        assert {clip for clip, _ in frames} == {["id1", "id10", "id2"].index(person)}


def test_voxceleb_crops_as_folders_of_frames_named_like_videos(place):
    names = [f"{who}#{v}#000001#000003.mp4" for who in ("id1", "id10") for v in ("a", "b")]
    root = place(*(f"train/{name}" for name in names), "test/id2#c#1#3.mp4", frames=True)
    data = VoxCeleb(root, size=SIZE, identity_sampling=True, batch_size=2, eval_frames=3)
    assert keys(ready(data).train_clips) == names
    (batch,) = batches(data, data.train_dataloader())
    assert sorted(key.split("#")[0] for key in batch["key"]) == ["id1", "id10"]
    for key, frames in zip(batch["key"], numbers(batch["video"]), strict=True):
        assert {clip for clip, _ in frames} == {names.index(key)}


@pytest.mark.parametrize("size", [64, 128])
def test_a_small_voxceleb_is_some_people_with_all_their_clips(place, size):
    people = [f"id{n}" for n in range(1, 13)]
    root = place(*(f"train/{who}#v#{n}.mp4" for who in people for n in (0, 1)), "test/id99#v#0.mp4")
    chosen = []
    for seed in (0, 0, 1):
        data = ready(VoxCeleb(root, identities=4, size=size, seed=seed, batch_size=4))
        assert len(data.train_clips) == 8
        assert keys(data.test_clips) == ["id99#v#0.mp4"]
        chosen.append({clip.identity for clip in data.train_clips})
        assert len(chosen[-1]) == 4
    assert chosen[0] == chosen[1] != chosen[2]
    assert batches(data, data.train_dataloader())[0]["video"].shape == (4, 2, 3, size, size)
    assert len(ready(VoxCeleb(root, identities=4, max_clips=3)).train_clips) == 3
    with pytest.raises(DataError, match=r"identities is 20, but .*train has 12; lower it"):
        ready(VoxCeleb(root, identities=20))
    (Path(root) / "test").rename(Path(root) / "more")
    data = ready(VoxCeleb(f"{root}/train", identities=4, split="random", holdout=0.25))
    train, held = ({clip.identity for clip in part} for part in (data.train_clips, data.test_clips))
    assert train | held == ready_identities(root)
    assert (len(train), len(held)) == (3, 1)


def ready_identities(root: str) -> set[str]:
    data = ready(VoxCeleb(f"{root}/train", identities=4, holdout=0.0), "fit")
    return {clip.identity for clip in data.train_clips}


def test_voxceleb_folders_of_people(place):
    root = place(*(f"train/{who}/0000{n}.mp4" for who in ("alice", "bob") for n in (0, 1)),
                 "test/carol/00000.mp4")  # fmt: skip
    clips = ready(VoxCeleb(root, size=SIZE)).train_clips
    assert len({clip.identity for clip in clips}) == 4  # whom an unknown layout shows is unknown


def test_identities_are_exact_names_and_epochs_visit_each_once(place):
    names = [f"train/{who}#v#00{n}.mp4" for who in ("id1", "id10", "id100") for n in (0, 1)]
    root = place(*names, "test/id2#v#0.mp4")
    data = ready(VoxCeleb(root, size=SIZE, identity_sampling=True, batch_size=3))
    loader = data.train_dataloader()
    drawn = set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        (batch,) = batches(data, loader)
        assert sorted(key.split("#")[0] for key in batch["key"]) == ["id1", "id10", "id100"]
        for key, frames in zip(batch["key"], numbers(batch["video"]), strict=True):
            assert {clip for clip, _ in frames} == {names.index(f"train/{key}")}
        drawn |= set(batch["key"])
    assert drawn == {name.removeprefix("train/") for name in names}


def test_identity_of():
    assert identity_of("id10#video#000001#000002.mp4") == "id10"
    assert identity_of("some/folder.x/clip.mp4") == "some/folder.x/clip"
    assert identity_of("some#thing/frames") == "some#thing/frames"


# Splits


def test_random_split_depends_on_the_seed_alone_and_is_stable(place):
    root = place(*(f"{n:02d}.mp4" for n in range(12)))
    held = [set(keys(ready(Clips(root, seed=s, holdout=0.3)).test_clips)) for s in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert len(held[0]) == 4
    place("12.mp4")
    more = set(keys(ready(Clips(root, holdout=0.3)).test_clips))
    assert len(more & held[0]) >= 3


def test_time_split_has_no_frame_in_both(place):
    data = ready(Clips(place("a.mp4", "b.mp4"), size=SIZE, split="time", holdout=0.3,
                       frames=14, batch_size=2, eval_frames=6))  # fmt: skip
    (train,) = batches(data, data.train_dataloader())
    (held,) = batches(data, data.val_dataloader())
    assert {f for clip in numbers(train["video"]) for _, f in clip} == set(range(14))
    assert numbers(held["video"]) == [[(n, f) for f in range(14, 20)] for n in (0, 1)]
    assert held["frames"].tolist() == [list(range(14, 20))] * 2


def test_time_split_of_short_clips(place, tmp_path):
    root = place("a", "b", frames=True)  # three frames each
    data = ready(Clips(root, size=SIZE, split="time", holdout=0.1, eval_frames=1))
    assert [(c.start, c.stop) for c in data.train_clips] == [(0, 2)] * 2
    assert [(c.start, c.stop) for c in data.val_clips] == [(2, 3)] * 2
    (tmp_path / "one" / "c").mkdir(parents=True)
    write_image(tmp_path / "one" / "c" / "0.png", picture(0, 0))
    with pytest.raises(DataError, match="nothing to hold out: each of the 1 clips is one frame"):
        ready(Clips(str(tmp_path / "one"), split="time"))


def test_splitting_many_clips_takes_no_time():
    clips = [Clip(f"{n}.mp4", f"{n}.mp4", str(n), 0, 9, "pyav") for n in range(20_000)]
    begun = time.perf_counter()
    train, held = split_by_identity(clips, 0.1, seed=0)
    assert (len(train), len(held)) == (18_000, 2_000)
    assert time.perf_counter() - begun < 1


def test_nothing_to_hold_out(place):
    root = place("a.mp4")
    with pytest.raises(DataError, match=r"1 clip.*split: time"):
        ready(Clips(root))
    data = ready(Clips(root, holdout=0.0), "fit")
    assert keys(data.train_clips) == ["a.mp4"]
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match="holdout is 0"):
        ready(Clips(root, holdout=0.0), "test")


def test_max_and_eval_clips(place):
    root = place(*(f"train/{n}.mp4" for n in range(8)), *(f"test/{n}.mp4" for n in range(5)))
    data = ready(Clips(root, max_clips=3, eval_clips=2))
    assert (len(data.train_clips), len(data.val_clips), len(data.test_clips)) == (3, 2, 5)


def test_split_by_identity_keeps_one_on_each_side(place):
    data = ready(Clips(place("a#1.mp4", "a#2.mp4", "a#3.mp4", "b#1.mp4")))
    train, held = split_by_identity(data.train_clips + data.test_clips, 0.9, seed=0)
    assert {c.identity for c in train} | {c.identity for c in held} == {"a", "b"}
    assert len({c.identity for c in train}) == len({c.identity for c in held}) == 1


# Frames


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_random_frames_are_distinct_and_exact(place, backend):
    root = place("train/a.mp4", "train/b.mp4", "test/c.mp4")
    data = Clips(root, size=SIZE, frames=5, batch_size=4, samples_per_clip=4, backend=backend)
    data.setup()
    seen = set()
    for batch in batches(data, data.train_dataloader()):
        assert batch["video"].shape == (4, 5, 3, SIZE, SIZE)
        assert batch["video"].dtype == torch.float32
        assert (batch["video"].min(), batch["video"].max()) == (-1, 1)
        assert set(batch) == {"video", "key", "frames"}
        for clip, key, frames in zip(
            numbers(batch["video"]), batch["key"], batch["frames"].tolist(), strict=True
        ):
            assert clip == [("ab".index(key[0]), frame) for frame in frames]
            assert len(set(frames)) == 5
            seen.add(tuple(frames))
    assert len(seen) == 8


def test_consecutive_windows_with_stride(place):
    root = place("train/a.mp4", "test/b.mp4")
    data = ready(Clips(root, size=16, sampling="consecutive", frames=4, stride=3, batch_size=16,
                       eval_frames=2))  # fmt: skip
    (batch,) = batches(data, data.train_dataloader())
    starts = set()
    for clip in numbers(batch["video"]):
        first = clip[0][1]
        assert clip == [(0, first + 3 * n) for n in range(4)]
        starts.add(first)
    assert min(starts) >= 0
    assert max(starts) + 9 < FRAMES
    assert len(starts) > 5
    (held,) = batches(data, data.val_dataloader())
    assert numbers(held["video"]) == [[(1, 0), (1, 3)]]


def test_all_gives_whole_clips_one_at_a_time_in_order(place):
    place("train/a.mp4", "train/b.mp4", "test/c.mp4")
    root = place("train/c", frames=True)
    data = ready(Clips(root, size=SIZE, sampling="all", batch_size=4))
    whole = batches(data, data.train_dataloader())
    assert [batch["key"] for batch in whole] == [["a.mp4"], ["b.mp4"], ["c"]]
    assert [batch["video"].shape[:2] for batch in whole] == [(1, FRAMES), (1, FRAMES), (1, 3)]
    assert [f for _, f in numbers(whole[0]["video"])[0]] == list(range(FRAMES))
    (test,) = batches(data, data.test_dataloader())
    assert test["frames"].tolist() == [list(range(FRAMES))]
    twice = ready(Clips(root, size=SIZE, sampling="all", samples_per_clip=2)).train_dataloader()
    stream = iter(twice)
    assert next(stream)["key"] == ["a.mp4"]
    resumed = data.train_dataloader()
    resumed.load_state_dict(twice.state_dict())
    assert [batch["key"] for batch in resumed] == [["b.mp4"], ["c"]]
    assert [key for b in twice for key in b["key"]] == ["a.mp4", "b.mp4", "c"] * 2


def test_whole_clips_in_evaluation_only(place):
    root = place("train/a.mp4", "test/b.mp4", "test/c.mp4")
    data = ready(Clips(root, size=SIZE, batch_size=1, eval_frames=None))
    assert [b["video"].shape[1] for b in batches(data, data.train_dataloader())] == [2]
    assert [b["video"].shape[:2] for b in batches(data, data.val_dataloader())] == [
        (1, FRAMES)] * 2  # fmt: skip
    data = ready(Clips(root, size=SIZE, batch_size=1, eval_frames=None, stride=3))
    assert [b["frames"].tolist() for b in batches(data, data.val_dataloader())] == [
        [[*range(0, FRAMES, 3)]]] * 2  # fmt: skip


def test_clips_with_too_few_frames(place, caplog):
    place("train/a.mp4", "test/b.mp4")
    root = place("train/short", frames=True)
    data = ready(Clips(root, size=SIZE, frames=5, batch_size=2))
    (batch,) = batches(data, data.train_dataloader())
    short = batch["frames"][batch["key"].index("short")].tolist()
    assert set(short) <= {0, 1, 2}
    assert not caplog.messages
    data = ready(Clips(root, size=SIZE, frames=5, sampling="consecutive"))
    assert keys(data.train_clips) == ["a.mp4"]
    assert "1 of 2 clips for training have fewer than 5 frames" in caplog.messages[0]
    with pytest.raises(DataError, match=r"none of the 1 clips for evaluation has 99 frames.*20"):
        ready(Clips(root, eval_frames=99))


def test_frames_are_cut_to_their_central_square_not_squashed(tmp_path):
    frames = torch.zeros(4, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, 16:48, 0] = 200  # exactly the central square is red
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_video(tmp_path / split / "a.mp4", frames, 25)
    data = ready(Clips(str(tmp_path), size=16, batch_size=1, eval_frames=4))
    (batch,) = batches(data, data.test_dataloader())
    red = batch["video"][0, :, 0, :, 2:-2]
    assert torch.allclose(red, torch.full_like(red, 200 / 127.5 - 1), atol=0.05)


# Broken clips


def break_clip(root: str, name: str) -> Path:
    path = Path(root) / name
    path.write_bytes(b"this is no video")
    return path


def test_unreadable_clips_are_named_once_and_left_out(place, caplog):
    root = place(*(f"train/{n}.mp4" for n in range(9)), "test/t.mp4")
    broken = break_clip(root, "train/broken.mp4")
    data = Clips(root, size=SIZE, max_unreadable=0.1)
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert len(data.train_clips) == 9
    (message,) = caplog.messages
    assert "1 of 10 clips" in message
    assert message.count(str(broken)) == 1
    assert list(data.unreadable) == [str(broken)]


def test_too_many_unreadable_clips_stop_with_the_list(place):
    root = place(*(f"train/{n}.mp4" for n in range(8)), "test/t.mp4")
    paths = [break_clip(root, f"train/broken{n}.mp4") for n in range(2)]
    with pytest.raises(DataError, match=r"2 of 10 clips cannot be read.*0\.1") as error:
        ready(Clips(root, max_unreadable=0.1))
    assert all(str(path) in str(error.value) for path in paths)


def test_a_clip_that_breaks_later_is_replaced_and_named_once(place, caplog):
    root = place(*(f"train/{n}.mp4" for n in range(6)), "test/t.mp4")
    data = ready(Clips(root, size=SIZE, batch_size=6, samples_per_clip=3, max_unreadable=0.2))
    break_clip(root, "train/3.mp4")
    drawn = batches(data, data.train_dataloader())
    assert len(drawn) == 3
    assert all(len(batch["key"]) == 6 for batch in drawn)
    assert all("3.mp4" not in batch["key"] for batch in drawn)
    (message,) = caplog.messages
    assert "3.mp4" in message
    again = batches(data, data.train_dataloader())
    assert [b["key"] for b in again] == [b["key"] for b in drawn]
    break_clip(root, "train/4.mp4")
    with pytest.raises(DataError, match="2 of 6 clips cannot be read"):
        batches(data, data.train_dataloader())


def test_a_held_out_clip_that_breaks_later_is_left_out_and_counted_with_its_like(place, caplog):
    root = place(*(f"{split}/{n}.mp4" for split in ("train", "test") for n in range(5)))
    break_clip(root, "train/broken.mp4")
    data = ready(Clips(root, size=SIZE, batch_size=2, max_unreadable=0.2))
    path = break_clip(root, "test/3.mp4")
    for loader in (data.val_dataloader, data.test_dataloader):
        assert [b["key"] for b in loader()] == [
            ["0.mp4", "1.mp4"], ["2.mp4"], ["4.mp4"]]  # fmt: skip
    assert sum(str(path) in message for message in caplog.messages) == 1
    assert str(path) in data.unreadable
    path.with_name("2.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 5 clips cannot be read"):
        list(data.test_dataloader())


def test_pairs_with_a_clip_that_breaks_later_are_left_out(place, caplog):
    root = place("train/x.mp4", *(f"test/{n}.mp4" for n in range(5)))
    data = ready(Clips(root, size=SIZE, max_unreadable=0.2), "predict")
    path = break_clip(root, "test/3.mp4")
    made = [batch["key"] for batch in data.predict_dataloader()]
    assert made == [["0__1"], ["1__2"], ["4__0"]]
    (message,) = caplog.messages
    assert str(path) in message


def test_a_clip_that_breaks_is_named_once_whatever_the_number_of_workers(place, caplog):
    root = place(*(f"train/{n}.mp4" for n in range(6)), "test/t.mp4")
    data = Clips(root, size=SIZE, batch_size=2, samples_per_clip=4, num_workers=2,
                 max_unreadable=0.2)  # fmt: skip
    data.setup()
    path = break_clip(root, "train/3.mp4")
    assert [len(batch["key"]) for batch in batches(data, data.train_dataloader())] == [2] * 12
    (message,) = caplog.messages
    assert str(path) in message
    assert list(data.unreadable) == [str(path)]


def test_a_set_that_breaks_altogether_ends(place):
    root = place("train/0.mp4", "train/1.mp4", "test/t.mp4")
    data = ready(Clips(root, size=SIZE, batch_size=2, max_unreadable=1.0))
    for n in range(2):
        break_clip(root, f"train/{n}.mp4")
    with pytest.raises(DataError, match="2 of 2"):
        batches(data, data.train_dataloader())


# Order, workers, resuming


def drawn(batch: dict) -> list[tuple[str, list[int]]]:
    return list(zip(batch["key"], batch["frames"].tolist(), strict=True))


def test_resume_in_mid_epoch_with_any_number_of_workers(place):
    root = place(*(f"train/{n:02d}.mp4" for n in range(12)), "test/t.mp4")

    def loader(workers: int, epoch: int):
        data = ready(Clips(root, size=16, batch_size=2, num_workers=workers))
        made = data.train_dataloader()
        made.sampler.set_epoch(epoch)
        return made

    undisturbed = [[drawn(b) for b in loader(0, epoch)] for epoch in (0, 1)]
    assert undisturbed[0] != undisturbed[1]
    assert [len(epoch) for epoch in undisturbed] == [6, 6]
    for before, after in ((0, 0), (0, 2), (2, 0), (2, 1)):
        stopped = loader(before, 1)
        stream = iter(stopped)
        begun = [drawn(next(stream)) for _ in range(2)]
        state = stopped.state_dict()
        resumed = loader(after, 0)  # the epoch is part of the state
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert begun + [drawn(b) for b in resumed] == undisturbed[1]
        resumed.sampler.set_epoch(0)
        assert [drawn(b) for b in resumed] == undisturbed[0]


def test_state_of_a_finished_epoch_begins_the_next(place):
    root = place(*(f"train/{n}.mp4" for n in range(4)), "test/t.mp4")
    data = ready(Clips(root, size=16, batch_size=2))
    first = data.train_dataloader()
    assert len(list(first)) == 2
    resumed, expected = data.train_dataloader(), data.train_dataloader()
    resumed.load_state_dict(first.state_dict())
    for loader in (resumed, expected):
        loader.sampler.set_epoch(1)
    assert [drawn(b) for b in resumed] == [drawn(b) for b in expected]
    resumed.load_state_dict(first.state_dict())
    assert list(resumed) == []  # nothing is left of the first


class Draws(torch.utils.data.Dataset):
    """Samples that tell which draw they are."""

    def __getitem__(self, item):
        return {"draw": item[1], "clip": item[2], "failed": []}


def draw_loader(length: int, batch_size: int, replicas: int, rank: int = 0) -> ResumableLoader:
    sampler = ClipSampler(length, batch_size, replicas=replicas, rank=rank)
    return ResumableLoader(Draws(), print, batch_size=batch_size, sampler=sampler, drop_last=True)


def test_a_batch_is_gone_before_the_next_is_read():
    """With whole clips, two would be twice the memory."""
    last = lambda: None  # noqa: E731
    held = []

    class Whole(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, item):
            held.append(last() is not None)
            return {"video": torch.zeros(5, 8, 8, 3), "failed": []}

    for batch in ClipLoader(Whole(), print, batch_size=1):
        last = weakref.ref(batch["video"])
        assert batch["video"].shape == (1, 5, 8, 8, 3)
        del batch
    assert held == [False] * 4


@pytest.mark.parametrize(("batch_size", "replicas"), [(2, 2), (4, 1), (1, 4), (8, 1), (3, 3)])
def test_resume_with_other_processes_and_batches(batch_size, replicas):
    """After 8 draws by two processes the others draw the rest of the same order."""
    order = [item for _, _, item in ClipSampler(24, 1).order(0)]
    stopped = draw_loader(24, 2, 2)
    stream = iter(stopped)
    next(stream), next(stream)
    rest, taken = {}, []
    for rank in range(replicas):
        resumed = draw_loader(24, batch_size, replicas, rank)
        resumed.load_state_dict(stopped.state_dict())
        assert resumed.batches_drawn == -(-8 // (batch_size * replicas))
        for batch in resumed:
            taken += batch["draw"].tolist()
            rest |= dict(zip(batch["draw"].tolist(), batch["clip"].tolist(), strict=True))
    assert len(taken) == len(rest)
    share = batch_size * replicas
    assert sorted(rest) == list(range(8, 8 + 16 // share * share))  # each once
    assert all(order[draw] == clip for draw, clip in rest.items())


def test_resume_with_fewer_clips_than_were_drawn():
    stopped = draw_loader(24, 2, 1)
    stream = iter(stopped)
    for _ in range(6):
        next(stream)
    resumed = draw_loader(10, 2, 1)
    resumed.load_state_dict(stopped.state_dict())
    assert list(resumed) == []
    assert len(list(resumed)) == 5


def test_too_many_unreadable_clips_in_a_worker_end_in_the_same_words(place):
    root = place("train/0.mp4", "train/1.mp4", "test/t.mp4")
    data = ready(Clips(root, size=SIZE, batch_size=2, num_workers=1))
    path = break_clip(root, "train/1.mp4")
    with pytest.raises(DataError) as error:
        batches(data, data.train_dataloader())
    assert str(error.value).startswith("1 of 2 clips cannot be read")
    assert str(path) in str(error.value)
    assert "Traceback" not in str(error.value)


def test_sampler_shares_every_item_among_processes_once():
    for epoch in (0, 1):
        ranks = []
        for rank in range(2):
            sampler = ClipSampler(11, batch_size=2, seed=3, replicas=2, rank=rank)
            sampler.set_epoch(epoch)
            ranks.append(list(sampler))
            assert len(ranks[-1]) == len(sampler) == 4
        items = [item for _, _, item in ranks[0] + ranks[1]]
        assert len(set(items)) == 8
        draws = [draw for _, draw, _ in ranks[0] + ranks[1]]
        assert sorted(draws) == list(range(8))
        assert {e for e, _, _ in ranks[0]} == {epoch}
    orders = []
    for epoch in range(3):
        sampler = ClipSampler(50, 1, seed=3)
        sampler.set_epoch(epoch)
        orders.append([item for _, _, item in sampler])
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2]


def test_batch_larger_than_the_set_is_filled_by_drawing_again(place):
    sampler = ClipSampler(3, batch_size=8)
    items = [item for _, _, item in sampler]
    assert len(items) == 8
    assert np.bincount(items).min() >= 2
    assert len(ClipSampler(3, batch_size=8, replicas=2, rank=1)) == 8
    assert len(ClipSampler(5, batch_size=2, repeats=3)) == 14
    root = place("train/a.mp4", "train/b.mp4", "train/c.mp4", "test/t.mp4")
    data = ready(Clips(root, size=16, batch_size=8))
    (batch,) = batches(data, data.train_dataloader())
    assert len(batch["key"]) == 8
    assert len({frames for frames in map(tuple, batch["frames"].tolist())}) > 3
    assert len(batches(data, data.val_dataloader())[0]["key"]) == 1


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_batches, self.val_batches = [], []

    def training_step(self, batch, batch_idx):
        self.train_batches.append(batch)
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.val_batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*num_workers")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*exists and is not empty", "ignore:Be aware that when using")
def test_lightning_resumes_and_augments_in_training_only(place, tmp_path):
    root = place(*(f"train/{n}.mp4" for n in range(6)), "test/t.mp4")
    data = {"size": SIZE, "batch_size": 2, "jitter": 0.1}
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    whole = Recorder()
    save = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1, save_top_k=-1)
    pl.Trainer(max_epochs=3, callbacks=[save], **options).fit(whole, Clips(root, **data))
    assert len(whole.train_batches) == 9
    assert len({str(drawn(b)) for b in whole.train_batches}) == 9
    for step in (3, 5):  # the end of an epoch, and the middle of one
        rest = Recorder()
        checkpoint = next((tmp_path / "checkpoints").glob(f"*step={step}.ckpt"))
        trainer = pl.Trainer(max_epochs=3, enable_checkpointing=False, **options)
        trainer.fit(rest, Clips(root, **data), ckpt_path=checkpoint, weights_only=True)
        undisturbed = whole.train_batches[step:]
        assert [drawn(b) for b in rest.train_batches] == [drawn(b) for b in undisturbed]
        for ours, theirs in zip(rest.train_batches, undisturbed, strict=True):
            assert torch.equal(ours["video"], theirs["video"])
    plain = (whole.val_batches[0]["video"] + 1) * 127.5
    assert torch.allclose(plain, plain.round(), atol=1e-3)
    changed = torch.stack([(b["video"] + 1) * 127.5 for b in whole.train_batches])
    assert not torch.allclose(changed, changed.round(), atol=1e-3)


# Augmentation


@pytest.mark.parametrize(
    ("crop", "flip", "jitter"), [(0.75, False, 0.0), (1.0, True, 0.0), (1.0, False, 0.3)]
)
def test_one_draw_per_clip(crop, flip, jitter):
    clip = torch.rand(1, 1, 3, SIZE, SIZE) * 2 - 1
    video = clip.expand(8, 3, 3, SIZE, SIZE).contiguous()
    made = augment(build_augmentation(SIZE, crop, flip, jitter), video, 1)
    assert made.shape == video.shape
    assert made.min() >= -1
    assert made.max() <= 1
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, 0], made[:, 2])
    different = {made[n].numpy().tobytes() for n in range(8)}
    assert len(different) == 2 if flip else len(different) >= 7


def test_flip_mirrors():
    video = torch.rand(16, 2, 3, 8, 8) * 2 - 1
    made = augment(build_augmentation(8, 1.0, True, 0.0), video, 1)
    mirrored = [torch.allclose(m, v.flip(-1), atol=1e-6) for m, v in zip(made, video, strict=True)]
    same = [torch.allclose(m, v, atol=1e-6) for m, v in zip(made, video, strict=True)]
    assert 0 < sum(mirrored) < 16
    assert all(a != b for a, b in zip(mirrored, same, strict=True))


def test_crop_shows_a_window_of_the_wanted_share():
    ramp = torch.linspace(-1, 1, 64).expand(16, 1, 3, 64, 64)  # the value tells the column
    made = augment(build_augmentation(64, 0.875, False, 0.0), ramp.contiguous(), 1)
    left, right = made[:, 0, 0, 32, 0], made[:, 0, 0, 32, -1]
    assert torch.allclose(right - left, torch.full((16,), 2 * 55 / 63), atol=0.01)
    assert left.min() >= -1
    assert right.max() <= 1 + 1e-6
    assert len({round(float(x), 3) for x in left}) > 3


def test_all_four_factors_of_the_jitter_act():
    """The steps are chained: each of the four changes what it is about."""
    grey = torch.full((32, 1, 3, 8, 8), 0.2)
    grey[..., :4] = -0.4
    colour = torch.empty(32, 1, 3, 8, 8)
    colour[:, :, 0], colour[:, :, 1], colour[:, :, 2] = 0.4, -0.2, -0.6
    jitter = build_augmentation(8, 1.0, False, 0.3)
    made = (augment(jitter, grey, 1) + 1) / 2
    brightness = made.mean((1, 2, 3, 4)) / ((grey + 1) / 2).mean()
    contrast = (made.amax((1, 2, 3, 4)) - made.amin((1, 2, 3, 4))) / 0.3 / brightness
    made = (augment(jitter, colour, 1) + 1) / 2
    red, green, blue = made[:, 0, :, 0, 0].unbind(-1)
    saturation = (red - blue) / (red + green + blue)
    hue = (green - blue) / (red - blue)  # the angle, whatever brightness and saturation
    for factor in (brightness, contrast, saturation, hue):
        assert factor.std() > 0.03
        assert len({round(float(x), 4) for x in factor}) > 24


def test_the_draw_depends_on_the_seed_alone():
    """And leaves the random state of the training run as it was."""
    video = torch.rand(4, 2, 3, SIZE, SIZE) * 2 - 1
    module = build_augmentation(SIZE, 0.75, True, 0.2)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = augment(module, video, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(augment(module, video, 3), first)
    assert not torch.equal(augment(module, video, 4), first)


def test_augmentation_off_is_none():
    assert build_augmentation(64, 1.0, False, 0.0) is None


# Prediction


def write_pairs(path: Path, rows: list[dict]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_pairs_from_a_table(place, tmp_path, caplog):
    root = place("train/x.mp4", "test/a#1.mp4", "test/b#1.mp4", "test/deep/c#1.mp4")
    table = write_pairs(
        tmp_path / "pairs.csv",
        [
            {"distance": "0.1", "source": "a#1.mp4", "driving": "b#1", "frame": "7"},
            {"distance": "0.1", "source": "c#1.mp4", "driving": "a#1.mp4", "frame": "0"},
            {"distance": "0.2", "source": "deleted.mp4", "driving": "a#1.mp4", "frame": "0"},
            {"distance": "0.2", "source": "a#1.mp4", "driving": "b#1", "frame": "20"},
        ],
    )
    data = ready(Clips(root, size=SIZE, pairs=table, eval_frames=4), "predict")
    first, second = batches(data, data.predict_dataloader())
    assert set(first) == {"source", "driving", "key"}
    assert first["key"] == ["a#1__b#1"]
    assert first["source"].shape == (1, 3, SIZE, SIZE)
    assert numbers(first["source"][:, None]) == [[(1, 7)]]
    assert numbers(first["driving"]) == [[(2, f) for f in range(4)]]
    assert second["key"] == ["deep/c#1__a#1"]
    assert numbers(second["source"][:, None]) == [[(3, 0)]]
    (message,) = caplog.messages
    assert "2 of 4 pairs" in message
    assert "1 name a clip that is not there, 1 a frame behind the source's last" in message


def test_names_in_a_table_of_pairs(tmp_path):
    """A key, else a short name that is one clip's, else a folder of what was a video."""
    keys = ["a.mp4", "x/a.mp4", "x/b.mp4", "y/b.mp4", "b", "c", "y/d.webm"]
    clips = [Clip(key, key, key, 0, 9, "pyav", "") for key in keys]
    for name, key in (
        ("a.mp4", "a.mp4"), ("x/a", "x/a.mp4"), ("a", None), ("b", "b"), ("b.mp4", None),
        ("c.mp4", "c"), ("d", "y/d.webm"), ("y/d", "y/d.webm"), ("e.mp4", None), ("", None),
    ):  # fmt: skip
        rows = [{"source": name, "driving": "c"}, {"source": "c", "driving": "c"}]
        pairs = read_pairs(Path(write_pairs(tmp_path / "pairs.csv", rows)), clips)
        assert [source.key for source, _, _ in pairs] == [*filter(None, [key]), "c"], name


def test_pairs_by_default_join_every_clip_with_the_next_identity(place):
    root = place("train/x.mp4", "test/a#1.mp4", "test/a#2.mp4", "test/b#1.mp4", "test/c#1.mp4")
    data = ready(Clips(root, size=16, eval_frames=2, eval_clips=1), "predict")
    assert [b["key"] for b in batches(data, data.predict_dataloader())] == [
        ["a#1__b#1"], ["a#2__b#1"], ["b#1__c#1"], ["c#1__a#1"]]  # fmt: skip


def test_a_lone_identity_that_drives_itself_is_said_so(place, caplog):
    data = ready(Clips(place("train/x.mp4", "test/a#1.mp4"), size=16, eval_frames=2), "predict")
    assert [b["key"] for b in batches(data, data.predict_dataloader())] == [["a#1__a#1"]]
    assert caplog.messages == ["all held-out clips show a, who drives itself"]


def test_short_clips_drive_as_far_as_they_go(place):
    root = place("train/x.mp4", "test/a.mp4", "test/b.mp4")
    data = ready(Clips(root, size=16, eval_frames=99), "predict")
    assert [b["driving"].shape[1] for b in batches(data, data.predict_dataloader())] == [FRAMES] * 2


def test_errors_of_tables(place, tmp_path):
    root = place("train/x.mp4", "test/a.mp4")

    def predict(table: str):
        ready(Clips(root, pairs=table), "predict").predict_dataloader()

    for content in (b"source,driving\n\xff,a\n", b"source,driving\na," + b"a" * 200_000):
        (tmp_path / "0.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"pairs: cannot read .*0\.csv: "):
            predict(str(tmp_path / "0.csv"))
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist"):
        predict(str(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match=r"lacks the column\(s\) driving; it has source, to"):
        predict(write_pairs(tmp_path / "1.csv", [{"source": "a", "to": "a"}]))
    with pytest.raises(DataError, match=r"none of the 1 in .* \(1 name a clip.* such as a\.mp4"):
        predict(write_pairs(tmp_path / "2.csv", [{"source": "a", "driving": "gone"}]))
    with pytest.raises(DataError, match=r"frame .1\.5."):
        predict(write_pairs(tmp_path / "3.csv", [{"source": "a", "driving": "a", "frame": "1.5"}]))


# Prediction from noise


class Noted(pl.LightningModule):
    """Writes the indices of each batch into a file of its process."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def predict_step(self, batch, number):
        assert set(batch) == {"index"}
        with (self.folder / f"{self.trainer.global_rank}.txt").open("a") as file:
            print(*batch["index"].tolist(), file=file)
        return len(batch["index"])


def predict(module, data, root: Path, **options) -> pl.Trainer:
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False,
                         enable_model_summary=False, default_root_dir=root, **options)  # fmt: skip
    trainer.predict(module, data, return_predictions=False)
    return trainer


@pytest.mark.parametrize(
    "make",
    [
        lambda: VoxCeleb("nowhere", generate=7, batch_size=3),
        lambda: BAIR("nowhere", generate=7, batch_size=3),
        lambda: Puppets("nowhere", generate=7, batch_size=3),
        lambda: Seeds(7, batch_size=3),
    ],
)
def test_generating_needs_no_clip(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    predict(Noted(tmp_path), make(), tmp_path)
    assert (tmp_path / "0.txt").read_text() == "0 1 2\n3 4 5\n6\n"
    assert [path.name for path in tmp_path.iterdir()] == ["0.txt"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_share_out_what_is_generated_without_gaps_or_repeats(tmp_path):
    data = Clips("nowhere", generate=7, batch_size=2)
    predict(Noted(tmp_path), data, tmp_path, devices=2, strategy="ddp_fork")
    made = [[int(n) for n in path.read_text().split()] for path in sorted(tmp_path.glob("*.txt"))]
    assert sorted(made[0] + made[1]) == list(range(7))
    assert [len(share) for share in made] == [4, 3]


def test_each_process_must_have_something_to_generate():
    data = Clips("nowhere", generate=3)
    data.trainer = SimpleNamespace(world_size=4)
    with pytest.raises(DataError, match=r"3 video\(s\) to generate by 4 processes"):
        data.predict_dataloader()


def test_a_set_that_generates_still_trains(place):
    data = ready(Clips(place("train/a.mp4", "test/b.mp4"), generate=4, size=16, batch_size=1))
    assert len(list(data.train_dataloader())) == 1
    data.setup("predict")
    assert [batch["index"].tolist() for batch in data.predict_dataloader()] == [[0], [1], [2], [3]]
    with pytest.raises(DataError, match="count is 0"):
        Seeds(0)


# Wrong use


def test_missing_root_says_what_is_read_and_what_runs_without_data(tmp_path):
    with pytest.raises(DataError) as error:
        ready(VoxCeleb(str(tmp_path / "nowhere")))
    message = str(error.value)
    for part in (str(tmp_path / "nowhere"), "does not exist", "train/ or dev/", "test/", "VoxCeleb",
                 "lightning fit --config experiments/lia_puppets.yaml"):  # fmt: skip
        assert part in message


def test_folders_without_clips(place, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train holds no clip"):
        ready(Clips(str(tmp_path)))
    shutil.rmtree(tmp_path / "train")
    root = place("test/a.mp4")
    with pytest.raises(DataError, match="has test/, but no train/"):
        ready(Clips(root), "fit")
    assert keys(ready(Clips(root), "test").test_clips) == ["a.mp4"]


def test_roots_that_are_no_data(place, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(DataError, match=r"notes\.txt is a file, but not a video \(\.avi"):
        ready(Clips(str(tmp_path / "notes.txt")))
    root = place("data/locked/a.mp4", "data/b.mp4", "data/c.mp4")
    listdir, scandir = os.listdir, os.scandir

    def refuse(folder=".", listing=listdir):
        if "locked" in str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", lambda folder: refuse(folder, scandir))
    with pytest.raises(DataError, match=r"cannot look into .*locked: permission denied"):
        ready(Clips(f"{root}/data"))
    (tmp_path / "data" / "locked").rename(tmp_path / "data" / "locked.mp4")
    data = ready(Clips(f"{root}/data", max_unreadable=0.5))  # a clip that cannot be read
    assert list(data.unreadable) == [f"{root}/data/locked.mp4"]


def test_decord_that_is_absent_is_missed_at_once(place, monkeypatch):
    monkeypatch.setattr("lmdvid.video.decord_backend.is_installed", lambda: False)
    with pytest.raises(DataError, match="decord is not installed"):
        Clips(place("train/a.mp4", "test/b.mp4"), backend="decord").setup()


def test_workers_where_there_is_no_forkserver(place, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    data = ready(Clips(place("train/a.mp4", "test/b.mp4"), num_workers=1))
    assert data.train_dataloader().multiprocessing_context.get_start_method() == "spawn"


def test_processes_that_find_different_clips_stop(place):
    class Strategy:  # of a process whose clips are not those of the first
        def broadcast(self, digest: str) -> str:
            return "another"

        def reduce_boolean_decision(self, decision: bool) -> bool:
            return decision

    data = Clips(place("train/a.mp4", "test/b.mp4"))
    data.trainer = SimpleNamespace(strategy=Strategy(), is_global_zero=True)
    with pytest.raises(DataError, match=r"different clips in .* \(this one 1 for training, 1 held"):
        data.setup("fit")
    Strategy.broadcast = lambda self, digest: digest
    data.setup("fit")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"eval_frames": 0}, "eval_frames is 0"),
        ({"sampling": "any"}, "random, consecutive, all"),
        ({"split": "none"}, "auto, random, time"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"crop": 224}, "share of the side"),
        ({"jitter": 0.8}, "jitter is 0.8"),
        ({"seed": -1}, "seed is -1"),
        ({"backend": "opencv"}, "auto, decord, pyav"),
        ({"device": "tpu"}, "device is 'tpu'; choose from cpu, cuda"),
        ({"identities": 0}, "identities is 0"),
        ({"generate": 0}, "generate is 0"),
        ({"max_unreadable": 5}, "max_unreadable is 5; it is a share"),
    ],
)
def test_impossible_arguments_are_refused(options, text):
    with pytest.raises(DataError, match=text):
        Clips("data", **options)


@pytest.mark.parametrize("kind", [Clips, TaiChi, VoxCeleb, TED, BAIR, UvANemo, MUG])
def test_the_command_line_parses_and_documents_every_argument(kind, capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(VideoDataModule, "data")
    path = f"{kind.__module__}.{kind.__name__}"
    config = parser.parse_args([f"--data={path}", "--data.root=x", "--data.pairs=p.csv"])
    data = parser.instantiate(config).data
    assert type(data) is kind
    assert (data.root, data.pairs) == ("x", "p.csv")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={path}"])
    text = capsys.readouterr().out
    assert "folder of the data set" in text
    assert "share of clips that may be unreadable" in " ".join(text.split())


@pytest.mark.real_clips
def test_real_clips(shared, tmp_path):
    root = shutil.copytree(shared / "videos" / "taichi", tmp_path / "taichi")
    data = ready(TaiChi(str(root), size=64, batch_size=2, holdout=0.5))
    assert len(data.train_clips) == len(data.test_clips) == 1
    (batch,) = batches(data, data.train_dataloader())
    assert batch["video"].shape == (2, 2, 3, 64, 64)
    assert batch["video"].std() > 0.1


def test_logs_are_quiet_when_all_is_well(place, caplog):
    with caplog.at_level(logging.INFO):
        data = ready(Clips(place("train/a.mp4", "test/b.mp4"), size=16, batch_size=1))
        batches(data, data.train_dataloader())
    assert not caplog.messages


# Testing


def test_tests_drive_every_clip_by_another_identity(place):
    names = ["a#1.mp4", "a#2.mp4", "b#1.mp4"]
    root = place(*(f"test/{name}" for name in names), "train/z#1.mp4")
    data = ready(TaiChi(root, size=SIZE, batch_size=2, eval_frames=4, stride=2, cross=True))
    found = batches(data, data.test_dataloader())
    assert [key for batch in found for key in batch["key"]] == names
    assert [key for batch in found for key in batch["cross_key"]] == ["b#1.mp4"] * 2 + ["a#1.mp4"]
    shown = [clip for batch in found for clip in numbers(batch["cross_driving"])]
    assert shown == [[(n, frame) for frame in (0, 2, 4, 6)] for n in (2, 2, 0)]
    assert all("cross_driving" not in batch for batch in batches(data, data.val_dataloader()))
    alone = ready(TaiChi(place("alone/test/a#1.mp4", "alone/train/b#1.mp4") + "/alone", cross=True))
    with pytest.raises(DataError, match="all 1 clips for testing show a; set it to false"):
        alone.test_dataloader()


def test_a_driver_that_cannot_be_read_is_left_out(place):
    root = place("test/a#1.mp4", "test/b#1.mp4", "test/c#1.mp4", "train/z#1.mp4")
    data = TaiChi(root, size=SIZE, batch_size=1, eval_frames=2, cross=True, max_unreadable=0.9)
    ready(data)
    (Path(root) / "test" / "b#1.mp4").write_bytes(b"no video")
    found = batches(data, data.test_dataloader())
    assert [batch["key"] for batch in found] == [["c#1.mp4"]]


def test_whole_tests(place):
    root = place("test/a#1.mp4", "test/b#1.mp4", "train/z#1.mp4")
    data = ready(TaiChi(root, size=SIZE, batch_size=2, whole_test=True, cross=True))
    found = batches(data, data.test_dataloader())
    assert [batch["video"].shape[:2] for batch in found] == [(1, FRAMES)] * 2
    assert [batch["cross_driving"].shape[:2] for batch in found] == [(1, FRAMES)] * 2
    assert [batch["video"].shape[:2] for batch in data.val_dataloader()] == [(2, 16)]


def test_processes_share_out_each_test_clip_once(place):
    names = [f"{letter}#1.mp4" for letter in "abcde"]
    root = place(*(f"test/{name}" for name in names), "train/z#1.mp4")
    seen = []
    for rank in range(3):
        data = ready(TaiChi(root, size=SIZE, batch_size=2, eval_frames=2))
        data.trainer = SimpleNamespace(world_size=3, global_rank=rank, training=False)
        seen.append([key for batch in data.test_dataloader() for key in batch["key"]])
    assert seen == [names[0::3], names[1::3], names[2::3]]
    data.trainer = SimpleNamespace(world_size=6, global_rank=0)
    with pytest.raises(DataError, match="5 clips for testing on 6 devices: use fewer"):
        data.test_dataloader()
