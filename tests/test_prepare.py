"""Prepared clips show every frame of their originals, in order; what was cut short goes on."""

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch

from data_modules.base import DataError
from data_modules.index import find_clips
from data_modules.taichi import TaiChi
from data_modules.voxceleb import VoxCeleb
from lmdvid import cli, prepare
from lmdvid.prepare import PrepareError, Settings, prepare_clips
from lmdvid.video import Cut, centre_square, probe, read_clip, resize, write_image, write_video

SMALL = Settings(size=32)


def barcodes(numbers: list[int], height: int = 64, width: int = 64) -> torch.Tensor:
    """Frames whose central square tells their number in eight bars."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    video = torch.full((len(numbers), height, width, 3), 90, dtype=torch.uint8)
    for frame, number in zip(video, numbers, strict=True):
        for bit in range(8):
            edges = (left + bit * side // 8, left + (bit + 1) * side // 8)
            frame[top : top + side, edges[0] : edges[1]] = 255 * (number >> bit & 1)
    return video


def numbers(frames: torch.Tensor) -> list[int]:
    bars = centre_square(frames).float().mean((1, 3)).unflatten(1, (8, -1)).mean(2) > 127
    return (bars * 2 ** torch.arange(8)).sum(1).tolist()


def all_frames(path: Path) -> torch.Tensor:
    return read_clip(path, range(probe(path).frames))


def run(source: Path, output: Path, settings: Settings = SMALL, **options) -> prepare.Prepared:
    return prepare_clips(find_clips(source), source, output, settings, jobs=1, **options)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path, originals) -> Path:
    """Clips of all kinds in the layouts of data sets."""
    return Path(shutil.copytree(originals, tmp_path / "in"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    n30 = list(range(30))
    write_video(root / "train/id1#a#1#30.mp4", barcodes(n30), 25, options={"g": "250"})
    write_video(root / "train/id1#b#1#30.mp4", barcodes(n30[5:], 48, 80), Fraction(30000, 1001))
    write_video(root / "test/id2#c#1#30.mp4", barcodes(n30, 80, 48), Fraction(24000, 1001))
    for n, frame in enumerate(barcodes(n30[:7])):
        write_image(root / f"test/id3#d#1#7.mp4/{n:07d}.png", frame)
    (root / "notes.txt").write_text("no clip")
    return root


def test_frames_rates_and_folders_are_kept_and_originals_untouched(source, tmp_path):
    before = contents(source)
    output = tmp_path / "out"
    done = run(source, output)
    assert contents(source) == before
    assert sorted(done.made) == sorted(find_clips(source))
    assert (done.kept, done.failed, done.report, done.strangers) == ([], {}, None, [])
    assert sorted(find_clips(output)) == sorted(done.made)
    rates = {"a": Fraction(25), "b": Fraction(30000, 1001), "c": Fraction(24000, 1001), "d": 25}
    for key, path in find_clips(output).items():
        info = probe(path)
        name = key.split("#")[1]
        assert (info.width, info.height, info.codec, info.has_audio) == (32, 32, "h264", False)
        assert info.fps == rates[name]
        first = 5 if name == "b" else 0
        last = 7 if name == "d" else 30
        assert numbers(all_frames(path)) == list(range(first, last))
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [n for n, packet in enumerate(packets) if packet.is_keyframe]
        assert all(after - before <= 12 for before, after in pairwise([*keys, len(packets)]))
        assert all(packet.pts == packet.dts for packet in packets)  # no B-frames
    assert not [*output.rglob("*.part"), *output.glob(".lmdvid_parts")]


def test_what_data_modules_read_is_what_they_read_from_the_originals(source, tmp_path):
    output = tmp_path / "out"
    run(source, output)
    options = {"size": 32, "frames": 5, "batch_size": 2, "eval_frames": 6}
    for kind in (VoxCeleb, TaiChi):
        pair = [kind(str(root), **options) for root in (source, output)]
        for data in pair:
            data.setup()
        for ours, theirs in zip(
            [*pair[1].train_dataloader(), *pair[1].test_dataloader()],
            [*pair[0].train_dataloader(), *pair[0].test_dataloader()],
            strict=True,
        ):
            assert ours["key"] == theirs["key"]
            assert torch.equal(ours["frames"], theirs["frames"])
            difference = (ours["video"].float() - theirs["video"].float()).abs()
            assert difference.mean() < 6  # coded a second time
        assert [c.identity for c in pair[1].train_clips] == ["id1", "id1"] or kind is TaiChi


def test_shapes(tmp_path):
    """A coloured frame: the square is cut, padded or left, as the functions for frames do it."""
    ramp = torch.zeros(2, 40, 100, 3, dtype=torch.uint8)
    ramp[..., 0] = torch.arange(100) * 2
    ramp[..., 1] = torch.arange(40)[:, None] * 5
    write_video(tmp_path / "in/a.mp4", ramp, 25, crf=1)
    original = read_clip(tmp_path / "in/a.mp4", [0, 1])
    for fit, expected in (
        ("crop", resize(centre_square(original, "crop"), 20)),
        ("pad", resize(centre_square(original, "pad"), 20)),
        ("keep", resize(original, (20, 50))),
    ):
        run(tmp_path / "in", tmp_path / fit, Settings(20, fit, crf=1))
        seen = read_clip(tmp_path / fit / "a.mp4", [0, 1])
        assert seen.shape == expected.shape
        assert (seen.float() - expected.float()).abs().mean() < 4


def test_a_varying_rate_keeps_its_frames_at_the_mean_rate(tmp_path):
    (tmp_path / "in").mkdir()
    with av.open(str(tmp_path / "in/a.mp4"), "w") as file:
        stream = file.add_stream("libx264", 25)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for n, frame in enumerate(barcodes(list(range(40)))):
            picture = av.VideoFrame.from_ndarray(frame.numpy())
            picture.pts, picture.time_base = n + 20 * (n > 20), Fraction(1, 25)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    assert probe(tmp_path / "in/a.mp4").fps != 25
    assert run(tmp_path / "in", tmp_path / "out").failed == {}
    assert probe(tmp_path / "out/a.mp4").fps == probe(tmp_path / "in/a.mp4").fps
    assert numbers(all_frames(tmp_path / "out/a.mp4")) == list(range(40))


def test_a_second_run_does_only_what_changed(source, tmp_path):
    output = tmp_path / "out"
    run(source, output)
    before = contents(output)
    again = run(source, output)
    assert (again.made, sorted(again.kept)) == ([], sorted(find_clips(source)))
    assert contents(output).keys() == before.keys()
    videos = [name for name in before if name.endswith(".mp4")]
    assert all(contents(output)[name] == before[name] for name in videos)

    write_video(source / "train/id1#a#1#30.mp4", barcodes([9, 8, 7]), 25)
    write_image(source / "test/id3#d#1#7.mp4/0000007.png", barcodes([7])[0])
    (output / "test/id2#c#1#30.mp4").write_bytes(b"cut off")
    changed = run(source, output)
    assert sorted(changed.made) == [
        "test/id2#c#1#30.mp4",
        "test/id3#d#1#7.mp4",
        "train/id1#a#1#30.mp4",
    ]
    assert numbers(all_frames(output / "train/id1#a#1#30.mp4")) == [9, 8, 7]
    assert numbers(all_frames(output / "test/id3#d#1#7.mp4")) == list(range(8))

    other = run(source, output, Settings(size=48))
    assert (len(other.made), other.kept) == (4, [])
    assert {probe(path).width for path in find_clips(output).values()} == {48}
    (source / "train/id1#a#1#30.mp4").unlink()
    assert run(source, output, Settings(size=48)).strangers == ["train/id1#a#1#30.mp4"]
    (output / "train/id1#a#1#30.mp4").unlink()
    assert run(source, output, Settings(size=48)).strangers == []


def test_damaged_clips_are_listed_with_reasons_and_the_rest_is_done(source, tmp_path, capsys):
    content = (source / "train/id1#a#1#30.mp4").read_bytes()
    (source / "train/cut.mp4").write_bytes(content[: 3 * len(content) // 4])
    (source / "train/empty.mp4").touch()
    (source / "train/text.mp4").write_text("hello")
    command = ["prepare", "clips", "--input", str(source), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--size", "32"]) == 1
    shown = capsys.readouterr()
    assert "4 clips prepared, 0 were there already, 3 failed" in shown.out
    report = (tmp_path / "out/prepare_failed.txt").read_text()
    for name in ("cut", "empty", "text"):
        assert f"train/{name}.mp4: " in report
        assert f"{name}.mp4: " in shown.err
        assert not (tmp_path / f"out/train/{name}.mp4").exists()
        (source / f"train/{name}.mp4").unlink()
    assert "the file is empty" in report
    assert cli.main([*command, "--size", "32"]) == 0
    assert "0 clips prepared, 4 were there already, 0 failed" in capsys.readouterr().out
    assert not (tmp_path / "out/prepare_failed.txt").exists()


def test_a_full_disk_is_what_is_told(source, tmp_path):
    """A file may not grow beyond some bytes; what the encoder held back is written at its end."""
    cuts = [(Cut(source / "train/id1#a#1#30.mp4", (0, n)), tmp_path / f"{n}.mp4") for n in (9, 30)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        told = dict(filter(None, prepare.encode(cuts, SMALL)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*told] == [0, 1]
    assert all("File too large" in str(reason) for reason in told.values())
    assert not [*tmp_path.glob("*.part"), *tmp_path.glob("*.mp4")]


def test_a_clip_that_ends_the_process_is_named_and_the_next_goes_on(source, tmp_path, monkeypatch):
    """The process is one that dies at a clip whose name says so."""
    program = (
        "import os; from lmdvid import prepare\n"
        "encode = prepare.encode\n"
        "def dies(cuts, settings):\n"
        "    if '#b#' in cuts[0][0].path.name: os.kill(os.getpid(), 11)\n"
        "    return encode(cuts, settings)\n"
        "prepare.encode = dies\n"
        "prepare._work()"
    )
    popen = subprocess.Popen

    def started(command, **options):
        assert command[:4] == [sys.executable, "-P", "-m", "lmdvid.prepare"]
        return popen([sys.executable, "-c", program, *command[4:]], **options)

    monkeypatch.setattr(subprocess, "Popen", started)
    done = run(source, tmp_path / "out")
    ((name, reason),) = done.failed.items()
    assert name == "train/id1#b#1#30.mp4"
    assert "crashes the encoder (SIGSEGV)" in reason
    assert len(done.made) == 3


def test_processes_that_do_not_start_say_why(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="clips cannot be encoded"):
        run(source, tmp_path / "out")


def test_killed_in_the_middle_and_started_again(tmp_path):
    source, output, frames = tmp_path / "in", tmp_path / "out", list(range(100))
    for n in range(6):
        write_video(source / f"{n}.mp4", barcodes(frames, 160, 160), 25)
    command = [sys.executable, "-m", "lmdvid", "prepare", "clips", "--size", "160"]
    command += ["--input", str(source), "--output", str(output), "--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as first:
        try:
            while first.poll() is None and len([*output.glob("*.mp4")]) < 2:
                time.sleep(0.005)
        finally:
            os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    finished = [*output.glob("*.mp4")]
    assert 2 <= len(finished) < 6
    assert (output / ".lmdvid_parts").exists()  # it had no time to tidy up
    assert all(probe(path).frames == 100 for path in finished)
    times = {path: path.stat().st_mtime_ns for path in finished}

    second = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.search(r"(\d+) clips prepared, (\d+) were there already, 0 failed", second.stdout)
    assert match
    assert (int(match[1]), int(match[2])) == (6 - len(finished), len(finished))
    assert {path: path.stat().st_mtime_ns for path in finished} == times
    assert {path.name for path in output.iterdir()} == {f"{n}.mp4" for n in range(6)} | {
        ".lmdvid_lock",
        ".lmdvid_prepared.jsonl",
    }
    for path in output.glob("*.mp4"):
        assert numbers(all_frames(path)) == frames
    # Whoever worked for the first run notices its end; nobody may have collected it yet (Z).
    processes = ["ps", "-o", "stat=", "-s", str(first.pid)]
    deadline = time.monotonic() + 20
    while True:
        states = subprocess.run(processes, capture_output=True, text=True).stdout.split()
        working = [state for state in states if not state.startswith("Z")]
        if not working or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not working


def test_a_note_that_was_cut_off_means_to_encode_again(source, tmp_path):
    output = tmp_path / "out"
    run(source, output)
    record = output / ".lmdvid_prepared.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:3]) + lines[3][:20])
    done = run(source, output)
    (key,) = done.failed
    assert "is there, but was not made by this: move it away" in done.failed[key]
    (output / key).unlink()
    assert run(source, output).made == [key]


def test_files_of_others_are_not_replaced(source, tmp_path):
    mine = tmp_path / "out/train/id1#a#1#30.mp4"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = run(source, tmp_path / "out")
    assert "move it away" in done.failed["train/id1#a#1#30.mp4"]
    assert mine.read_text() == "mine"
    assert len(done.made) == 3


def test_names_that_differ_only_in_their_suffix(tmp_path):
    for name, number in (("a.mp4", 1), ("a.m4v", 2), ("b.m4v", 3)):
        write_video(tmp_path / "in" / name, barcodes([number]), 25)
    done = run(tmp_path / "in", tmp_path / "out")
    assert not done.failed
    seen = {path.name: numbers(all_frames(path)) for path in (tmp_path / "out").glob("*.mp4")}
    assert seen == {"a.mp4.mp4": [1], "a.m4v.mp4": [2], "b.mp4": [3]}
    keys = {"x.avi": Path(), "x.mp4": Path(), "x.avi.mp4": Path()}
    assert len({*prepare._names(keys).values()}) == 3


@pytest.mark.parametrize("output", ["in", "in/prepared", "in/../in", "."])
def test_folders_within_each_other_are_refused(source, tmp_path, output):
    before = contents(tmp_path)
    with pytest.raises(PrepareError, match="contain each other"):
        run(source, tmp_path / output)
    assert contents(tmp_path) == before


def test_one_run_at_a_time(source, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        prepare.locked(tmp_path / "out", ""),
        pytest.raises(PrepareError, match="another run is writing"),
    ):
        run(source, tmp_path / "out")


def test_disks_without_locks_are_written_to(source, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with prepare.locked(tmp_path, ""):
        assert f"{tmp_path} knows no locks (no locks available)" in caplog.text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--size", "33"], "size is 33; it must be even"),
        (["--size", "0"], "size is 0; it must be even, and 16 or more"),
        (["--crf", "60"], "crf is 60"),
        (["--jobs", "0"], "--jobs: must be at least 1"),
        (["--output", "{in}"], "contain each other"),
        (["--input", "{out}/missing"], "cannot look into"),
        (["--input", "{empty}"], "holds no clip"),
        (["--output", "{in}/notes.txt"], "contain each other"),
    ],
)
def test_mistakes_are_told_in_a_line(source, tmp_path, capsys, words, text):
    (tmp_path / "empty").mkdir()
    places = {"in": source, "out": tmp_path / "out", "empty": tmp_path / "empty"}
    words = [word.format(**places) for word in words]
    command = ["prepare", "clips", "--input", str(source), "--output", str(tmp_path / "out")]
    try:
        code = cli.main([*command, *words])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr().err
    assert code in (1, 2)
    assert text in shown
    assert len(shown.splitlines()) <= 2


def test_an_output_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrepareError, match="is a file; give a folder"):
        run(source, tmp_path / "file")


def test_data_errors_are_words_of_the_data(tmp_path):
    with pytest.raises(DataError, match="cannot look into"):
        find_clips(tmp_path / "missing")


@pytest.mark.parametrize("what", ["clips", "shards"])
def test_a_link_to_itself_is_no_folder(source, tmp_path, capsys, what):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for folders, text in (
        ((loop, tmp_path / "out"), "cannot look into .*loop: too many levels of symbolic links"),
        ((source, loop), "error: .*loop"),
    ):
        words = ["--input", str(folders[0]), "--output", str(folders[1])]
        assert cli.main(["prepare", what, *words]) != 0
        assert re.search(text, capsys.readouterr().err)
