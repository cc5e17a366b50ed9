"""The embedded set: drawn once, read like any clips, with exact truth."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_modules import puppet_clips, puppetry
from data_modules.base import DataError
from data_modules.puppet_clips import PuppetSet, draw_set
from data_modules.puppets import Puppets
from lmdvid.video import probe, read_clip, to_float

SMALL = {"size": 32, "train_identities": 3, "test_identities": 3, "clip_frames": 14}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("puppets")
    Puppets(str(folder), **SMALL).prepare_data()
    return str(folder)


@pytest.fixture
def data(root) -> Puppets:
    data = Puppets(root, **SMALL, batch_size=3, eval_frames=5, samples_per_clip=2, frames=4)
    data.prepare_data()
    data.setup()
    return data


def on_device(data: Puppets, loader) -> list[dict]:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def seed_of(data: Puppets, key: str) -> int:
    listing = json.loads((Path(data.root) / "puppets.json").read_text())
    return {Path(name).name: seed for name, seed in listing["seeds"].items()}[key]


def test_training_batches_carry_the_truth_of_their_frames(data):
    drawn = on_device(data, data.train_dataloader())
    assert len(drawn) == 2
    for batch in drawn:
        assert set(batch) == {"video", "key", "frames", "identity", "pose"}
        assert batch["identity"].shape == (3, puppetry.IDENTITY_DIM)
        assert batch["pose"].shape == (3, 4, puppetry.POSE_DIM["head"])
        assert batch["identity"].dtype == batch["pose"].dtype == torch.float32
        for n, key in enumerate(batch["key"]):
            seed = seed_of(data, key)
            assert np.array_equal(batch["identity"][n], puppetry.identity(seed, "head"))
            pose = puppetry.pose_path(seed, 14, "head")[batch["frames"][n]]
            assert np.array_equal(batch["pose"][n], pose)
            truth = to_float(torch.from_numpy(
                puppetry.render(batch["identity"][n].numpy(), batch["pose"][n].numpy(), 32, "head")
            ))  # fmt: skip
            error = (batch["video"][n] - truth).square().mean((1, 2, 3))
            assert error.max() < 0.02  # lossy H.264 with half the colour resolution
            others = (batch["video"][n].roll(1, 0) - truth).square().mean((1, 2, 3))
            assert (error < others).all()


@pytest.mark.parametrize("split", ["val", "test"])
def test_cross_truth_is_the_own_identity_in_the_drivers_poses(data, split):
    (batch,) = on_device(data, getattr(data, f"{split}_dataloader")())
    assert set(batch) == {
        "video", "key", "frames", "identity", "pose", "cross_driving", "cross_truth", "cross_key"
    }  # fmt: skip
    assert batch["frames"].tolist() == [list(range(5))] * 3
    assert all(own != other for own, other in zip(batch["key"], batch["cross_key"], strict=True))
    assert sorted(batch["cross_key"]) == sorted(batch["key"])
    for n, (key, other) in enumerate(zip(batch["key"], batch["cross_key"], strict=True)):
        who = puppetry.identity(seed_of(data, key), "head")
        pose = puppetry.pose_path(seed_of(data, other), 14, "head")[:5]
        truth = to_float(torch.from_numpy(puppetry.render(who, pose, 32, "head")))
        assert torch.equal(batch["cross_truth"][n], truth)
        file = read_clip(Path(data.root) / "test" / other, range(5))
        assert torch.equal(batch["cross_driving"][n], to_float(file))


def test_a_single_validation_clip_is_driven_by_another_identity(root):
    data = Puppets(root, **SMALL, eval_clips=1, eval_frames=2)
    data.setup()
    (batch,) = data.val_dataloader()
    assert len(batch["key"]) == 1
    assert batch["cross_key"] != batch["key"]
    assert not torch.equal(batch["cross_driving"], batch["video"])


def test_a_broken_driver_ends_in_words(root, tmp_path):
    data = Puppets(shutil.copytree(root, tmp_path / "copy"), **SMALL, eval_clips=1, eval_frames=2)
    data.setup()
    (batch,) = data.val_dataloader()
    (Path(data.root) / "test" / batch["cross_key"][0]).write_bytes(b"no video")
    with pytest.raises(DataError, match=r"of \d clips cannot be read"):
        list(data.val_dataloader())


def test_whole_test_clips_and_predicted_pairs(root):
    data = Puppets(root, **SMALL, batch_size=3, eval_frames=None)
    data.setup("test")
    drawn = on_device(data, data.test_dataloader())
    assert [batch["cross_truth"].shape for batch in drawn] == [(1, 14, 3, 32, 32)] * 3
    data.setup("predict")
    pairs = on_device(data, data.predict_dataloader())
    assert [batch["driving"].shape[1] for batch in pairs] == [14] * 3
    assert set(pairs[0]) == {"source", "driving", "key"}


def test_workers_give_the_same_batches(root):
    plain, working = (
        Puppets(root, **SMALL, batch_size=3, eval_frames=5, num_workers=n) for n in (0, 1)
    )
    for data in (plain, working):
        data.setup()
    for loader in ("train_dataloader", "val_dataloader"):
        (a,), (b,) = list(getattr(plain, loader)()), list(getattr(working, loader)())
        assert list(a) == list(b)
        assert all(a[k].equal(b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_train_and_test_share_no_identity_and_clips_are_what_was_asked_for(data):
    listing = json.loads((Path(data.root) / "puppets.json").read_text())
    seeds = listing["seeds"]
    assert len(set(seeds.values())) == 6
    assert not {c.identity for c in data.train_clips} & {c.identity for c in data.test_clips}
    assert {name.split("/")[0] for name in seeds} == {"train", "test"}
    for name in seeds:
        info = probe(Path(data.root) / name)
        assert (info.frames, info.fps, info.width, info.height) == (14, 25, 32, 32)
    more = PuppetSet("head", 32, 9, 3, 14, 0)
    assert {n: s for n, s in more.clips() if n.startswith("test")} == {
        n: s for n, s in seeds.items() if n.startswith("test")
    }


def test_every_setting_has_its_folder():
    plain = PuppetSet("head", 32, 3, 3, 14, 0)
    others = [replace(plain, **{name: value}) for name, value in
              {"kind": "taichi", "size": 64, "train_identities": 4, "test_identities": 2,
               "frames": 9, "seed": 1}.items()]  # fmt: skip
    assert len({puppets.folder() for puppets in [plain, *others]}) == 7
    assert not {s for _, s in plain.clips()} & {s for _, s in others[-1].clips()}


@pytest.mark.parametrize(
    ("name", "value"),
    [("_FPS", 30), ("_CRF", 18), ("_ENCODING", {"g": "1"}), ("FIRST_TEST_SEED", 9)],
)
def test_another_way_of_writing_has_another_folder(monkeypatch, name, value):
    puppets = PuppetSet("head", 32, 3, 3, 14, 0)
    before = puppets.folder()
    monkeypatch.setattr(puppet_clips, name, value)
    assert puppets.folder() != before


def test_a_failed_drawing_leaves_the_garbage_collector_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(puppet_clips, "write_video", None)
    frozen = gc.get_freeze_count()
    with pytest.raises(TypeError):
        draw_set(PuppetSet("head", 32, 1, 2, 4, 0), tmp_path)
    assert gc.get_freeze_count() == frozen


def test_truth_is_computed_once_and_cannot_be_changed(data):
    list(data.train_dataloader())
    computed = puppet_clips.truth.cache_info().misses
    for batch in data.train_dataloader():
        batch["identity"].zero_()
    assert puppet_clips.truth.cache_info().misses == computed
    with pytest.raises(ValueError, match="read-only"):
        puppet_clips.truth(0, 14, "head")[0][:] = 0


def test_drawing_is_done_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    puppets = PuppetSet("taichi", 32, 3, 2, 4, 0)
    written = []

    def write(path, *args, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return real(path, *args, **options)

    real = puppet_clips.write_video
    monkeypatch.setattr(puppet_clips, "write_video", write)
    with pytest.raises(KeyboardInterrupt):
        draw_set(puppets, tmp_path)
    folder = tmp_path / puppets.folder()
    assert not (folder / "puppets.json").exists()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.mp4")}
    assert len(done) == 2
    monkeypatch.setattr(puppet_clips, "write_video", real)
    assert draw_set(puppets, tmp_path) == folder
    assert len(list(folder.glob("*/*.mp4"))) == 5
    assert {path: path.stat().st_mtime_ns for path in done} == done
    monkeypatch.setattr(puppet_clips, "write_video", None)  # a second run draws nothing
    draw_set(puppets, tmp_path)


def test_several_processes_draw_the_same_files(tmp_path, monkeypatch):
    puppets = PuppetSet("head", 32, 3, 2, 4, 0)
    alone = draw_set(puppets, tmp_path / "alone")
    monkeypatch.setattr(puppet_clips, "_PIXELS_PER_PROCESS", 1)
    monkeypatch.setattr(puppet_clips, "_cores", lambda: 2)
    together = draw_set(puppets, tmp_path / "together")
    for name, _ in puppets.clips():
        assert torch.equal(read_clip(alone / name, range(4)), read_clip(together / name, range(4)))


def test_a_failing_process_is_an_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(puppet_clips, "_PIXELS_PER_PROCESS", 1)
    monkeypatch.setattr(puppet_clips, "_cores", lambda: 2)
    puppets = PuppetSet("head", 32, 1, 2, 4, 0)
    blocked = tmp_path / puppets.folder() / "test" / "head500000.mp4"
    blocked.mkdir(parents=True)  # a folder where a file should go
    with pytest.raises(RuntimeError, match=r"drawing puppets in .* failed"):
        draw_set(puppets, tmp_path)
    assert "head500000.mp4" in capfd.readouterr().err


def test_a_killed_drawing_leaves_whole_clips_only(tmp_path):
    code = (
        "import sys; from pathlib import Path; from data_modules import puppet_clips as p;"
        "p._cores = lambda: 1;"
        "p.draw_set(p.PuppetSet('head', 32, 400, 2, 40, 0), Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/train/[!.]*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    clips = list(tmp_path.glob("*/train/[!.]*.mp4"))
    assert clips
    assert {len(read_clip(clip, range(40))) for clip in clips} == {40}
    assert not list(tmp_path.glob("*/puppets.json"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"test_identities": 1}, "test_identities is 1; it must be 2 or more"),
        ({"train_identities": 500_001}, "a set has up to 500000 of each"),
        ({"size": 16}, "drawn at 32 to 512 pixels"),
        ({"kind": "cat"}, "kind is 'cat'; choose from head, taichi"),
        ({"draw_seed": -1}, "draw_seed is -1"),
    ],
)
def test_impossible_arguments_are_refused(options, text):
    with pytest.raises(DataError, match=text):
        Puppets(**options)
