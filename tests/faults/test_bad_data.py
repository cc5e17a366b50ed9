"""Data sets that are damaged, hang, loop or may not be read, in real trainings with workers."""

import csv
import os
import re
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from damage import damaged
from runs import Run, experiment, long, prepare

from data_modules.base import DataError
from data_modules.index import find_clips
from lmdvid.video import VideoReadError, probe, read_clip, write_video

pytestmark = pytest.mark.slow

# What happened to these leaves no frame; the others may have some, or heal altogether.
HOPELESS = ("empty", "text", "noise", "only_ftyp", "sound", "no_frame")


def hopeless(name: str) -> bool:
    return name.split("_", 1)[1].startswith(HOPELESS)


@long
def test_a_thousand_damaged_files_end_neither_workers_nor_training(zygote, clips, tmp_path):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    shutil.copytree(Path(clips) / "test", root / "test")
    paths = damaged(root / "train", 1000)
    assert len(paths) == 1000
    # A file of a hopeless kind among each ten, so that the log has many to count.
    for number, path in enumerate(paths):
        if number % 10 == 5:
            path.write_bytes((b"", b"text" * 50, os.urandom(3000))[number // 10 % 3])
            path = path.rename(path.with_name(f"{path.name[:3]}_noise_{path.name[4:]}"))
    good = sorted((Path(clips) / "train").iterdir())
    good = [Path(shutil.copy(p, root / "train" / f"good{n}.mp4")) for n, p in enumerate(good)]
    planted = {p.name for p in (root / "train").iterdir() if p.name[0] != "g" and hopeless(p.name)}

    configuration = experiment("lia", str(root), workers=2, batch=8)
    configuration["data"]["init_args"] |= {"samples_per_clip": 1, "max_unreadable": 1.0}
    configuration["trainer"] |= {"max_steps": 60, "limit_val_batches": 0}
    folder = prepare(tmp_path / "run", configuration)
    run = Run(zygote, folder)
    assert run.wait() == 0, run.said
    assert run.steps == 60

    with (root / ".lmdvid_clips.csv").open(newline="", errors="surrogateescape") as file:
        errors = {Path(row["path"]).name for row in csv.DictReader(file) if row["error"]}
    total = 1000 + len(good)
    (counted,) = re.findall(
        rf"(\d+) of {total} clips in {root}/train cannot be read and are left out:", run.said
    )
    assert int(counted) == len(errors)
    assert planted <= errors
    assert len(planted) > 100
    listed = [line for line in run.said.splitlines() if "/train/" in line and "good" not in line]
    for name in errors:
        assert sum(name in line for line in listed) == 1, name
    late = re.findall(rf"{root}/train/(\S+?)[:,]? .*; it is left out", run.said)
    assert len(late) == len(set(late))  # each once, whichever worker met it
    assert not set(late) & errors
    assert not any(name.startswith("good") for name in errors | set(late))


def test_a_worker_that_is_stuck_ends_the_run_with_the_files_name(zygote, clips, tmp_path):
    """A pipe into which nobody writes holds whoever opens it, as a dead network disk does."""
    root = Path(shutil.copytree(clips, tmp_path / "set"))
    configuration = experiment("lia", str(root), workers=1)
    configuration["data"]["init_args"] |= {"read_timeout": 3, "backend": "pyav"}
    folder = prepare(tmp_path / "run", configuration)
    run = Run(zygote, folder)
    run.until(1)
    for path in (root / "train").glob("*.mp4"):
        path.unlink()
        os.mkfifo(path)
    assert run.wait() == 1
    last = run.said.splitlines()[-1]
    assert re.search(rf"error: reading {root}/train/\S+\.mp4 did not end within 3 s: remove", last)


@long
def test_clips_that_vanish_in_training_are_named_and_counted(zygote, clips, tmp_path):
    root = Path(shutil.copytree(clips, tmp_path / "set"))
    configuration = experiment("lia", str(root), workers=2)
    configuration["data"]["init_args"]["max_unreadable"] = 0.25
    folder = prepare(tmp_path / "run", configuration)
    run = Run(zygote, folder)
    run.until(1)
    first, second, *_ = sorted((root / "train").glob("*.mp4"))
    first.unlink()
    run.until(8)
    second.unlink()  # two of four are more than a quarter
    assert run.wait() == 1
    assert run.said.count("it is left out") == 1
    assert re.search("error: 2 of 4 clips cannot be read, more than max_unreadable", run.said)


def keep(count: int, folder: Path) -> None:
    for path in sorted(folder.glob("*.mp4"))[count:]:
        path.unlink()


def one_each(root: Path) -> None:
    keep(1, root / "train")
    keep(1, root / "test")
    (root / "train/again").symlink_to(root)  # a circle, on which test clips lie


def shorten(count: int, root: Path) -> None:
    for path in sorted((root / "train").glob("*.mp4"))[:count]:
        write_video(path, read_clip(path, range(3)), 25)


NO_DISTANCE = "sees one clip, of which there is no Fréchet distance: hold more out"


@pytest.mark.parametrize(
    ("system", "change", "steps", "words"),
    [
        ("lia", lambda root: keep(0, root / "train"), 0, "/train holds no clip. Clips reads"),
        ("lia", lambda root: keep(0, root / "test"), 0, "/test holds no clip. Clips reads"),
        ("lia", one_each, 3, ""),
        ("inmodegan", one_each, 3, NO_DISTANCE),
        ("lia", partial(shorten, 4), 3, ""),  # frames in any order may repeat
        ("inmodegan", partial(shorten, 4), 0, "none of the 4 clips for training has 4 frames"),
        ("inmodegan", partial(shorten, 1), 3, "1 of 4 clips for training have fewer than 4"),
    ],
)
def test_sets_with_next_to_nothing(zygote, clips, tmp_path, system, change, steps, words):
    root = Path(shutil.copytree(clips, tmp_path / "set"))
    change(root)
    configuration = experiment(system, str(root))
    configuration["trainer"] |= {"max_steps": 3, "val_check_interval": 2, "limit_val_batches": 1.0}
    folder = prepare(tmp_path / "run", configuration)
    run = Run(zygote, folder)
    assert run.wait() == (0 if steps else 1), run.said
    assert words in run.said
    assert "Traceback" not in run.said
    assert run.steps == steps
    if steps:
        drawn = (folder / "keys0.jsonl").read_text()
        assert "test/" not in drawn


def test_links_in_a_circle_are_followed_once(tmp_path):
    (tmp_path / "set/a/b").mkdir(parents=True)
    (tmp_path / "set/a/b/x.mp4").write_bytes(b"x")
    (tmp_path / "set/a/b/up").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/self").symlink_to(".")
    (tmp_path / "set/nowhere").symlink_to("nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/y.mp4").write_bytes(b"y")
    (tmp_path / "set/other").symlink_to(tmp_path / "other")
    (tmp_path / "set/above").symlink_to(tmp_path)
    (tmp_path / "other/back").symlink_to(tmp_path / "set")
    assert list(find_clips(tmp_path / "set")) == ["a/b/x.mp4", "other/y.mp4"]


@pytest.fixture
def public():
    """A folder that everybody may enter, unlike those of pytest."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def nobody():
    """With no more rights than others, as root has."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_may_not_be_entered(public):
    locked = public / "set/locked"
    locked.mkdir(parents=True)
    locked.chmod(0)
    with nobody(), pytest.raises(DataError, match=r"cannot look into .*locked: permission denied"):
        find_clips(public / "set")
    locked.chmod(0o755)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_a_file_that_may_not_be_read(clips, public, backend):
    locked = Path(shutil.copy(next(Path(clips, "train").glob("*.mp4")), public / "locked.mp4"))
    locked.chmod(0)
    with nobody():
        for read in (lambda: probe(locked), lambda: read_clip(locked, range(2), backend=backend)):
            with pytest.raises(VideoReadError, match=r"(?i)locked\.mp4.*permission denied"):
                read()
