"""One look into every clip, kept in a table; whatever a file does to the decoder."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from barcodes import HEIGHT, MAKERS, WIDTH, barcode, encode, make
from damage import COUNT, damaged
from PIL import Image

from data_modules.base import DataError
from data_modules.clips import Clips
from lmdvid import cli
from lmdvid.video import ScannedClip, VideoReadError, probe, reader_of, scan, scan_clips, workers
from lmdvid.video.decord_backend import is_installed
from lmdvid.video.read import route

TABLE = ".lmdvid_clips.csv"


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """Two clips to copy."""
    folder = tmp_path_factory.mktemp("source")
    encode(folder / "a.mp4", list(range(12)), options={"g": "4"}, fps=Fraction(30000, 1001))
    encode(folder / "b.mp4", list(range(7)), codec="libx265")
    return folder


@pytest.fixture
def folder(tmp_path, source) -> Path:
    return Path(shutil.copytree(source, tmp_path / "set"))


@pytest.fixture
def no_process(monkeypatch):
    """From now on, looking into a file is an error."""

    def forbid() -> None:
        def start(self):
            raise AssertionError("a file is looked into")

        monkeypatch.setattr(workers._Process, "_start", start)
        monkeypatch.setattr("lmdvid.video.pyav_backend.header", start)

    return forbid


def clips_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def errors(found: scan.Scan) -> dict[str, str]:
    return {clip.path: clip.error for clip in found.clips if clip.error}


def test_a_row_says_what_is_in_the_file(folder):
    (folder / "shots").mkdir()
    for n in range(3):
        Image.fromarray(barcode(n)).save(folder / "shots" / f"{n}.png")
    a, b, shots = scan_clips(folder, clips_in(folder)).clips
    status = (folder / "a.mp4").stat()
    assert a == ScannedClip(
        "a.mp4", status.st_size, status.st_mtime_ns, "video", 12, Fraction(30000, 1001),
        WIDTH, HEIGHT, 0, "h264", "yuv420p", 3, "", "", "",
    )  # fmt: skip
    assert (b.frames, b.codec, b.suspicious) == (7, "hevc", "the codec hevc")
    assert (shots.kind, shots.frames, shots.codec, shots.error) == ("frames", 3, "png", "")
    header, first, *_ = (folder / TABLE).read_text().splitlines()
    assert header.startswith("path,size,mtime_ns,kind,frames,fps,width,height,rotation,codec,pix")
    assert first == (
        f"a.mp4,{status.st_size},{status.st_mtime_ns},video,12,30000/1001,96,64,0,h264,yuv420p,3,,,,3"
    )


def test_a_scan_decides_as_a_single_look_does(tmp_path):
    """And its counts are those of the frames that are there."""
    paths = [make(name, tmp_path) for name in MAKERS]
    found = scan_clips(tmp_path, paths)
    for path, clip in zip(paths, found.clips, strict=True):
        shown, reader, _ = MAKERS[path.name]
        info = probe(path)
        assert clip.frames == len(shown) == info.frames
        assert (clip.fps, clip.width, clip.height) == (info.fps, info.width, info.height)
        assert (clip.rotation, clip.codec) == (
            {"turned.mp4": 90, "upside_down.mp4": 180}.get(path.name, 0), info.codec)  # fmt: skip
        assert 1 <= clip.key_frames <= clip.frames or path.name.startswith("edit")
        assert bool(clip.suspicious) == (reader == "pyav"), path.name
        assert reader_of(path, clip) == route(path)
        assert reader_of(path, clip, "pyav") == "pyav"
        if is_installed() and clip.suspicious:
            with pytest.raises(VideoReadError, match=f"decord does not read {clip.suspicious}"):
                reader_of(path, clip, "decord")
    assert found.looked_into == len(paths)


def test_only_what_is_new_or_changed_is_looked_into(folder, source):
    paths = clips_in(folder)
    first = scan_clips(folder, paths)
    assert (first.looked_into, first.manifest) == (2, folder / TABLE)
    assert scan_clips(folder, paths[::-1]) == (first.clips[::-1], first.manifest, 0)
    written = (folder / TABLE).stat().st_mtime_ns

    os.utime(paths[0], ns=(1, 1))
    again = scan_clips(folder, paths)
    assert again.looked_into == 1
    assert again.clips[0] == replace(first.clips[0], mtime_ns=1)
    assert (folder / TABLE).stat().st_mtime_ns > written
    encode(paths[1], list(range(9)))
    assert [clip.frames for clip in scan_clips(folder, paths).clips] == [12, 9]

    shutil.copy(source / "a.mp4", folder / "c.mp4")
    part = scan_clips(folder, [folder / "c.mp4"])  # the others' rows stay
    assert part.looked_into == 1
    paths[0].unlink()
    assert scan_clips(folder, paths[1:]).looked_into == 0
    scan_clips(folder, [encode(folder / "d.mp4", [1])])
    rows = (folder / TABLE).read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["b.mp4", "c.mp4", "d.mp4"]


def test_any_name_of_a_file(tmp_path, source):
    names = ["a,b.mp4", 'a"b.mp4', "a\nb.mp4", "a\rb.mp4", "a\u2028b.mp4", "#a.mp4", " a.mp4"]
    names.append(os.fsdecode(b"\xff.mp4"))
    for name in names:
        shutil.copy(source / "a.mp4", tmp_path / name)
    paths = [tmp_path / name for name in names]
    found = scan_clips(tmp_path, paths)
    assert errors(found) == {}
    assert scan_clips(tmp_path, paths) == (found.clips, found.manifest, 0)


def test_what_cannot_be_read_is_looked_into_again_on_request(folder, no_process):
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "shots").mkdir()
    (folder / "shots" / "0.png").write_bytes(b"no picture")
    paths = [*clips_in(folder), folder / "gone.mp4"]
    found = scan_clips(folder, paths)
    assert errors(found) == {
        "empty.mp4": "the file is empty",
        "gone.mp4": "no such file or folder",
        "text.mp4": "not a video, or damaged (invalid data found when processing input)",
        "shots": f"cannot read {folder}/shots/0.png: not a picture, or damaged",
    }
    assert scan_clips(folder, paths).looked_into == 2
    Image.fromarray(barcode(1)).save(folder / "shots" / "0.png")  # the folder's time stays
    repaired = scan_clips(folder, paths)
    assert list(errors(repaired)) == ["empty.mp4", "text.mp4", "gone.mp4"]
    no_process()
    assert scan_clips(folder, paths, again=False).clips == repaired.clips


@pytest.mark.parametrize(
    ("damage", "warned"),
    [
        (lambda text: text[: text.index("b.mp4") + 9], True),  # within a row
        (lambda text: text[: text.index("b.mp4")], False),  # behind one
        (lambda text: text[: text.index("a.mp4")], False),
        (lambda text: "", True),
        (lambda text: "\0\xff,garbage\n" * 9, True),
        (lambda text: text.replace(",12,", ",twelve,"), True),
        (lambda text: text.replace("30000/1001", "1/0"), True),
        (lambda text: text.replace("codec", "colour"), True),
        (lambda text: text.replace(",3\r\n", ",2\r\n"), False),  # of another version
    ],
)
def test_a_damaged_table_is_made_again(folder, caplog, damage, warned):
    paths = clips_in(folder)
    first = scan_clips(folder, paths)
    whole = (folder / TABLE).read_bytes()
    (folder / TABLE).write_bytes(damage(whole.decode()).encode())
    again = scan_clips(folder, paths)
    assert again.clips == first.clips
    assert again.looked_into > 0
    assert (folder / TABLE).read_bytes() == whole
    assert [TABLE in message for message in caplog.messages] == [True] * warned


def test_where_the_table_lies(folder, tmp_path, monkeypatch, caplog):
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    paths = clips_in(folder)
    (folder / TABLE).mkdir()  # nothing can be written there
    found = scan_clips(folder, paths)
    assert found.manifest is not None
    assert found.manifest.parent == cache / "lmdvid"
    assert scan_clips(folder, paths) == (found.clips, found.manifest, 0)
    one = scan_clips(paths[0], [paths[0]])  # a clip is no folder to leave something in
    assert one.manifest is not None
    assert one.manifest.parent == cache / "lmdvid"
    assert scan_clips(paths[0], [paths[0]]).looked_into == 0
    assert not caplog.messages

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert scan_clips(folder, paths) == (found.clips, None, 2)
    assert len(caplog.messages) == 1
    assert "what the scan found is not kept" in caplog.messages[0]

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert scan_clips(folder, paths) == (found.clips, None, 2)
    assert scan_clips(paths[0], [paths[0]]) == (one.clips, None, 1)
    assert "(no home folder)" in caplog.messages[-1]

    (folder / TABLE).rmdir()
    assert scan_clips(folder, paths).manifest == folder / TABLE
    assert not list(folder.glob(".*.part"))


# Stands for the module, with files that do to it what they are called.
RUDE = """
import os, signal, sys, time
from lmdvid.video import scan, workers
look = scan.look
def rude(path):
    if path.stem.startswith("crash"): os.kill(os.getpid(), signal.SIGSEGV)
    if path.stem.startswith("quit"): sys.exit(3)
    if path.stem.startswith("hang"): time.sleep(1000)
    if path.stem.startswith("raise"): raise IndexError("list index out of range")
    print("noise")
    os.write(1, b"more noise")
    return look(path)
scan.look = rude
workers.answer(scan.replies)
"""


def program(monkeypatch, text: str) -> None:
    """What the processes run instead."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-P", "-c", text], **options),
    )


def test_a_long_scan_keeps_what_it_found_from_time_to_time(folder, monkeypatch):
    monkeypatch.setattr(scan, "_KEEP_EVERY", 0.0)
    rows = []
    keep = scan._keep

    def remember(clips, *args):
        rows.append(len(clips))
        return keep(clips, *args)

    monkeypatch.setattr(scan, "_keep", remember)
    scan_clips(folder, clips_in(folder))
    assert rows == [1, 2, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_files_that_end_or_stop_the_process_are_named(folder, source, monkeypatch, threads_end):
    program(monkeypatch, RUDE)
    monkeypatch.setattr(scan, "_FILES_PER_PROCESS", 3)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    for name in ("crash1", "crash2", "hang", "quit", "raise", "y", "z"):
        shutil.copy(source / "a.mp4", folder / f"{name}.mp4")
    found = scan_clips(folder, clips_in(folder), timeout=3)
    assert errors(found) == {
        "crash1.mp4": "it crashes FFmpeg (SIGSEGV)",
        "crash2.mp4": "it crashes FFmpeg (SIGSEGV)",
        "hang.mp4": "looking into it did not end within 3 s",
        "quit.mp4": "it crashes FFmpeg (exit code 3)",
        "raise.mp4": "IndexError: list index out of range",
    }
    assert [clip.frames for clip in found.clips if not clip.error] == [12, 7, 12, 12]
    threads_end()


@pytest.fixture
def threads_end():
    """Wait until no thread is left that was not there at the beginning."""
    before = set(threading.enumerate())

    def end() -> None:
        deadline = time.monotonic() + 10
        while left := set(threading.enumerate()) - before:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    return end


BUSY = """
import os, signal, time
from lmdvid.video import workers
def replies(what):
    if what == "hang": time.sleep(1000)
    if what == "alarm": os.kill(os.getpid(), signal.SIGALRM)
    end = time.monotonic() + 8  # before the other one ends itself
    while not os.path.exists(what):
        time.sleep(0.05)
        if time.monotonic() > end:
            yield "nobody noticed"
            break
        yield "busy"
workers.answer(replies)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_process_that_hangs_is_noticed_while_others_answer(tmp_path, monkeypatch, threads_end):
    program(monkeypatch, BUSY)
    enough, late, order = tmp_path / "enough", workers.Ended("", 0.5), []
    questions = [("hang", 0.5), (str(enough), 60.0), ("alarm", 0.5)]
    for number, answer in workers.ask(questions, "any", processes=3, failure="no"):
        assert answer == ("busy" if number == 1 else late)
        order.append(number)
        if number == 0:
            enough.touch()
    assert order.count(0) == order.count(2) == 1
    threads_end()


def test_a_process_that_takes_for_ever_to_start_is_an_error(monkeypatch, threads_end):
    program(monkeypatch, "import time; time.sleep(1000)")
    monkeypatch.setattr(workers, "_START", 0.5)
    with pytest.raises(workers.StartError, match=r"nothing: a process did not start within 0.5 s"):
        [*workers.ask([("a", 60.0)], "any", processes=1, failure="nothing")]
    threads_end()


def test_processes_that_do_not_start_are_an_error(folder, monkeypatch, threads_end):
    program(monkeypatch, "raise SystemExit('no such library')")
    with pytest.raises(workers.StartError, match="cannot be looked into: no such library") as error:
        scan_clips(folder, clips_in(folder))
    assert cli.explain(error.value) == "clips cannot be looked into: no such library"
    threads_end()


def test_an_interrupted_scan_keeps_what_it_found_and_leaves_no_process(
    folder, monkeypatch, threads_end
):
    started = []
    start = workers._Process._start

    def remember(self):
        started.append(start(self))
        return started[-1]

    def interrupt(count):
        yield 0
        raise KeyboardInterrupt

    monkeypatch.setattr(workers._Process, "_start", remember)
    with monkeypatch.context() as patch:
        patch.setattr(scan, "_counted", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scan_clips(folder, clips_in(folder))
    threads_end()
    assert scan_clips(folder, clips_in(folder)).looked_into == 1
    threads_end()
    assert len(started) == 2
    assert all(child.returncode is not None for child in started)


def test_a_process_starts_without_torch(folder):
    code = (
        "import sys; from pathlib import Path; from lmdvid.video import scan; "
        "assert scan.look(Path(sys.argv[1]))['frames'] == 12; "
        "print(sorted({'torch', 'numpy', 'PIL', 'decord'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(folder / "a.mp4")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


# In data modules


def test_training_looks_into_no_file_again(folder, no_process):
    """One process of a machine prepares; the others, and the workers, know everything already."""
    root = folder.parent / "root"
    for split in ("train", "test"):
        shutil.copytree(folder, root / split)
    Clips(str(root)).prepare_data()
    assert (root / TABLE).is_file()
    no_process()
    data = Clips(str(root), size=16, batch_size=2, frames=3, eval_frames=2)
    data.prepare_data()
    data.setup()
    readers = {clip.key: clip.reader for clip in data.train_clips}
    assert readers == {"a.mp4": "decord" if is_installed() else "pyav", "b.mp4": "pyav"}
    assert [len(clip) for clip in data.train_clips] == [12, 7]
    (batch,) = data.train_dataloader()
    assert batch["video"].shape == (2, 3, 16, 16, 3)


def test_preparing_leaves_what_is_wrong_to_setup(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        data = Clips(str(root))
        data.prepare_data()
        with pytest.raises(DataError, match="no data"):
            data.setup()


@pytest.mark.skipif(not is_installed(), reason="decord has no wheel here")
def test_a_backend_that_reads_a_clip_wrong_leaves_it_out(folder):
    data = Clips(str(folder), backend="decord", max_unreadable=0.5, holdout=0.0)
    data.setup("fit")
    assert [clip.key for clip in data.train_clips] == ["a.mp4"]
    (reason,) = data.unreadable.values()
    assert "decord does not read the codec hevc exactly; use backend='auto'" in reason


# The command


def test_command(folder, capsys):
    assert cli.main(["scan", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "2 clips, 2 of them looked into now; 2 can be read, with 19 frames in all",
        "codecs: h264 (1), hevc (1)",
        "sizes: 96x64 (2)",
        "frames per second: 29.97 (1), 25 (1)",
        "a key frame every 4.8 frames on average",
        "1 not exact with decord, read with PyAV:",
        "  b.mp4: the codec hevc",
        f"table: {folder / TABLE}",
    ]
    (folder / "text.mp4").write_text("no video")
    assert cli.main(["scan", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "3 clips, 1 of them looked into now; 2 can be read" in out
    assert "1 cannot be read:\n  text.mp4: not a video, or damaged" in out
    assert cli.main(["scan", str(folder / "text.mp4")]) == 1
    capsys.readouterr()
    assert cli.main(["scan", str(folder / "absent")]) == 1
    assert "absent: no such file or directory" in capsys.readouterr().err
    (folder / "nothing").mkdir()
    assert cli.main(["scan", str(folder / "nothing")]) == 2
    assert "holds no clip" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["scan", str(folder), "--timeout", "0"])
    assert "must be above 0" in capsys.readouterr().err


def test_long_lists_are_cut():
    clips = [ScannedClip(f"{n}.mp4", error="damaged") for n in range(60)]
    clips += [ScannedClip(f"{n}", frames=1, width=n, height=1) for n in range(60, 70)]
    lines = list(scan.Scan(clips, None, 70).summary())
    assert "  and 10 more, see the table" in lines
    assert any(line.endswith("(1), 4 others") for line in lines)
    assert lines[-1] == "table: could not be written"


# Three hundred damaged files


@pytest.fixture(scope="module")
def rubble(tmp_path_factory) -> tuple[Path, list[Path]]:
    """The data set, with all damaged files for training and one whole one held out."""
    root = tmp_path_factory.mktemp("rubble")
    (root / "train").mkdir()
    (root / "test").mkdir()
    encode(root / "test" / "whole.mp4", list(range(30)))
    paths = damaged(root / "train")
    assert len(paths) == COUNT
    return root, paths


READ = """
import sys
from pathlib import Path
from lmdvid.video import VideoReadError, probe, read_clip
for line in sys.stdin:
    path, words = Path(line.strip()), []
    print(path.name, end=" ", flush=True)
    try:
        info = probe(path)
        for backend in ("auto", "pyav"):
            for frames in ([0], [info.frames - 1], range(info.frames // 3, info.frames // 3 + 8)):
                try:
                    seen = read_clip(path, [n for n in frames if n < info.frames], backend)
                    assert str(seen.dtype) == "torch.uint8"
                    assert seen.shape[1:] == (info.height, info.width, 3)
                    words.append("read")
                except VideoReadError as error:
                    assert str(path) in str(error)
                    words.append("refused")
    except VideoReadError as error:
        assert str(path) in str(error)
        words.append("unreadable")
    print(*words, flush=True)
"""


def test_damaged_files_are_read_or_refused(rubble):
    """In a process of their own, so that a crash is a failure and not the end of the tests."""
    _, paths = rubble
    result = subprocess.run(
        [sys.executable, "-c", READ],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, (lines[-1:], result.stderr[-1000:])
    told = dict(line.split(" ", 1) for line in lines)
    assert list(told) == [path.name for path in paths]
    assert sum("read" in words.split() for words in told.values()) > 100
    assert sum("refused" in words for words in told.values()) > 20
    assert sum(words == "unreadable" for words in told.values()) > 50
    for kind in ("empty", "text", "noise", "only_ftyp", "sound", "no_frame"):
        assert {words for name, words in told.items() if kind in name} == {"unreadable"}


def test_damaged_files_are_scanned(rubble):
    root, paths = rubble
    found = scan_clips(root, paths)
    assert found.looked_into == COUNT - 2  # that a file is empty shows without a look
    for path, clip in zip(paths, found.clips, strict=True):
        assert bool(clip.error) != bool(clip.frames)
        if clip.error:
            with pytest.raises(VideoReadError) as refused:
                probe(path)
            assert refused.value.reason == clip.error


@pytest.mark.timeout(200)
def test_an_epoch_goes_past_damaged_files_and_names_each_once(rubble, caplog):
    root, paths = rubble
    caplog.set_level(logging.WARNING)
    data = Clips(str(root), size=32, batch_size=4, num_workers=2, max_unreadable=0.99)
    data.prepare_data()
    data.setup()
    at_once = len(data.unreadable)
    assert len(data.train_clips) == COUNT - at_once
    shapes = {tuple(batch["video"].shape) for batch in data.train_dataloader()}
    assert shapes == {(4, 2, 32, 32, 3)}
    named = [path for path in paths for message in caplog.messages if str(path) in message]
    text = "\n".join(caplog.messages)
    assert sorted(map(str, named)) == sorted(data.unreadable)
    assert all(text.count(path) == 1 for path in data.unreadable)
    assert at_once < len(data.unreadable) < COUNT
    assert f"{at_once} of {COUNT} clips" in caplog.messages[0]
    whole = [clip for clip in data.train_clips if clip.path not in data.unreadable]
    assert len(whole) > 50
