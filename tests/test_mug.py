"""MUG's lists, classes and people; UvA-NEMO's people and strides; puppets with named motions."""

import csv

import numpy as np
import pytest
import torch

from data_modules import puppet_motions, puppetry
from data_modules.base import DataError
from data_modules.mug import MUG
from data_modules.puppets import Puppets
from data_modules.sampling import ClipDataset
from data_modules.uvanemo import UvANemo
from lmdvid.video import write_image

SIZE = 32


def folder_of_pictures(path, frames, shade=0, suffix="png"):
    """Pictures 1, 2, ..., 10, ... that tell their number above and a shade below."""
    path.mkdir(parents=True)
    for frame in range(frames):
        picture = torch.full((SIZE, SIZE, 3), shade, dtype=torch.uint8)
        picture[:16] = 8 * frame
        write_image(path / f"img_{frame + 1}.{suffix}", picture)


def table(path, rows, head=("video", "nframes", "category")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def root(tmp_path):
    """Four people with a clip each of two classes, and the published lists."""
    for person in range(1, 5):
        for number, name in enumerate(("sadness", "fear")):
            folder_of_pictures(tmp_path / f"{person:03d}/{name}/take000", 12, 20 * person + number)
    clips = [[f"{p:03d}/{n}/take000", 12, c] for p in (1, 2, 3) for n, c in NUMBERS]
    table(tmp_path / "train_none_neutral.csv", clips)
    table(tmp_path / "val_none_neutral.csv", [["004/fear/take000", 12, "fear"]])
    return tmp_path


NUMBERS = (("sadness", 0), ("fear", 5))
SMALL = {"size": SIZE, "frames": 4, "eval_frames": 3, "batch_size": 2}


def ready(data, stage=None):
    data.setup(stage)
    return data


def test_lists_give_clips_classes_and_splits(root):
    data = ready(MUG(str(root), **SMALL, samples_per_clip=2))
    assert {clip.identity for clip in data.train_clips} == {"001", "002", "003"}
    assert [clip.key for clip in data.val_clips] == ["004/fear/take000"]
    seen = set()
    for batch in data.train_dataloader():
        assert batch["label"].dtype == torch.int64
        for key, label, frames, video in zip(
            batch["key"], batch["label"], batch["frames"], batch["video"], strict=True
        ):
            assert label == dict(NUMBERS)[key.split("/")[1]]
            shade = 20 * int(key[:3]) + (label == 5).int()
            assert (video[:, -1, 0, 0].int() - shade).abs().max() <= 1
            assert torch.equal(video[:, 0, 0, 0], (8 * frames).byte())  # 10 comes behind 9
            assert (frames.diff() == 1).all()
            seen.add(key)
    assert len(seen) == 6
    (batch,) = data.val_dataloader()
    assert batch["label"].tolist() == [5]


def test_batches_resume_and_do_not_depend_on_workers(root):
    data = ready(MUG(str(root), **SMALL))
    whole = list(data.train_dataloader())
    loader = data.train_dataloader()
    next(iter(loader))
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    working = ready(MUG(str(root), **SMALL, num_workers=1)).train_dataloader()
    for other, expected in ((list(resumed), whole[1:]), (list(working), whole)):
        assert len(other) == len(expected)
        for a, b in zip(other, expected, strict=True):
            assert a["key"] == b["key"]
            assert all(torch.equal(a[k], b[k]) for k in ("video", "label", "frames"))


def test_folders_are_split_by_people(root):
    data = ready(MUG(str(root), None, None, **SMALL, holdout=0.25))
    train, held = ({c.identity for c in clips} for clips in (data.train_clips, data.test_clips))
    assert train | held == {"001", "002", "003", "004"}
    assert len(held) == 1
    labels = {k: v for batch in data.train_dataloader() for k, v in
              zip(batch["key"], batch["label"].tolist(), strict=True)}  # fmt: skip
    assert labels == {key: dict(NUMBERS)[key.split("/")[1]] for key in labels}


def test_missing_and_broken_clips(root, caplog):
    with (root / "train_none_neutral.csv").open("a") as file:
        file.write("009/fear/take000,50,5\n")
    (root / "001/fear/take000/img_1.png").write_bytes(b"no picture")
    data = ready(MUG(str(root), **SMALL, max_unreadable=0.5))
    assert "1 of 7 clips" in caplog.text
    assert "009/fear/take000" in caplog.text
    assert len(data.train_clips) == 5
    assert [path.endswith("001/fear/take000") for path in data.unreadable] == [True]
    with pytest.raises(DataError, match=r"1 of 6 clips cannot be read"):
        ready(MUG(str(root), **SMALL))


@pytest.mark.parametrize(
    ("rows", "head", "words"),
    [
        ([["001/fear/take000", 5]], ("video", "frames"), "needs the columns video and category"),
        (
            [["001/fear/take000", "joy"]],
            ("path", "class"),
            "class 'joy' is none of sadness",
        ),
        ([["001/fear/take000", "6"]], ("path", "class"), "number from 0 to 5"),
        ([["../fear", "5"]], ("path", "class"), "no path below the root"),
        ([["/etc", "5"]], ("path", "class"), "no path below the root"),
        ([["004/sadness/take000", "0"]], ("path", "label"), "004 is in train.csv and in val_none"),
    ],
)
def test_lists_that_make_no_sense(root, rows, head, words):
    table(root / "train.csv", rows, head)
    with pytest.raises(DataError, match=words):
        ready(MUG(str(root), "train.csv", **SMALL))


def test_what_is_not_there(root, tmp_path_factory):
    with pytest.raises(DataError, match=r"none\.csv does not exist.*train_list: null"):
        ready(MUG(str(root), "none.csv", **SMALL))
    with pytest.raises(DataError, match="both, or neither"):
        MUG(str(root), None)
    with pytest.raises(DataError, match="name one or more, once"):
        MUG(str(root), classes=["a", "a"])
    strange = tmp_path_factory.mktemp("strange")
    folder_of_pictures(strange / "001/joy/take000", 5)
    with pytest.raises(DataError, match="does not tell its class: name one of sadness"):
        ready(MUG(str(strange), None, None, **SMALL))


# UvA-NEMO


def test_uvanemo_knows_people_and_draws_strides(tmp_path):
    for name, frames in (
        ("001_deliberate_smile_1", 30),
        ("001_spontaneous_smile_1", 8),
        ("002_deliberate_smile_1", 12),
        ("003_deliberate_smile_1", 7),
    ):
        folder_of_pictures(tmp_path / name, frames, suffix="jpg" if frames == 30 else "png")
    data = UvANemo(
        str(tmp_path),
        size=SIZE,
        frames=4,
        eval_frames=3,
        sampling="consecutive",
        stride=[2, 3],
        holdout=0.0,
        batch_size=3,
        samples_per_clip=20,
    )
    data.setup("fit")
    assert [clip.identity for clip in data.train_clips] == ["001", "001", "002", "003"]
    seen = {}
    for batch in data.train_dataloader():
        for key, frames in zip(batch["key"], batch["frames"], strict=True):
            (step,) = set(frames.diff().tolist())
            seen.setdefault(key, set()).add(step)
    # Ten frames are needed at a step of 3, seven at 2.
    assert seen == {
        "001_deliberate_smile_1": {2, 3},
        "001_spontaneous_smile_1": {2},
        "002_deliberate_smile_1": {2, 3},
        "003_deliberate_smile_1": {2},
    }
    still = ClipDataset(data.train_clips, SIZE, 3, "consecutive", [3, 2], training=False)
    assert still[0]["frames"].tolist() == [0, 2, 4]
    for stride in ([], [0, 2]):
        with pytest.raises(DataError, match="stride is 0"):
            UvANemo(str(tmp_path), stride=stride)


# Puppets


@pytest.mark.parametrize("number", range(4))
def test_motions_begin_at_rest_and_are_what_they_are_called(number):
    name = puppet_motions.MOTIONS[number]
    moving = {"smile": "smile brows", "turn": "yaw", "nod": "pitch", "speak": "mouth_open"}[name]
    for seed in range(number, 40, 4):
        assert puppet_motions.motion_of(seed) == number
        path = puppet_motions.motion_path(seed, 30)
        puppetry.render(puppetry.identity(seed, "head"), path[:1], 32, "head")  # within its ranges
        assert np.array_equal(path, puppet_motions.motion_path(seed, 40)[:30])
        spread = np.ptp(path, axis=0)
        moved = {n for n, s in zip(puppetry.POSE_NAMES["head"], spread, strict=True) if s > 1e-6}
        assert moved == set(moving.split())
        rest = puppetry.neutral_pose("head")
        for one in moved:
            column = puppetry.POSE_NAMES["head"].index(one)
            assert path[0, column] == rest[column]
            assert spread[column] > 0.25


def test_puppets_tell_their_motion(tmp_path):
    options = {"size": 32, "train_identities": 4, "test_identities": 3, "clip_frames": 6}
    data = Puppets(str(tmp_path), **options, motions=True, batch_size=4, frames=2, eval_frames=3)
    assert "motions_32px_4+3x6" in data.root
    assert Puppets(str(tmp_path), **options).root != data.root
    data.prepare_data()
    data.setup()
    (batch,) = data.train_dataloader()
    seeds = [int(key.removeprefix("head").removesuffix(".mp4")) for key in batch["key"]]
    assert batch["label"].tolist() == [seed % 4 for seed in seeds]
    for n, seed in enumerate(seeds):
        poses = puppet_motions.motion_path(seed, 6)[batch["frames"][n]]
        assert np.array_equal(batch["pose"][n], poses)
    (held,) = data.val_dataloader()
    assert held["label"].tolist() == [0, 1, 2]
    assert held["cross_truth"].shape == (3, 3, 32, 32, 3)
    with pytest.raises(DataError, match="leave kind=taichi or motions out"):
        Puppets(str(tmp_path), kind="taichi", motions=True)
