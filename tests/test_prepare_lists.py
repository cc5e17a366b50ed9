"""Clips cut out of raw downloads as public lists tell, and records of TFRecord files."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import google_crc32c
import numpy as np
import pytest
import tfrecords
import torch
from barcodes import barcode, numbers
from barcodes import encode as write_barcodes
from PIL import Image

from data_modules.bair import BAIR
from data_modules.index import DataError
from data_modules.metadata import videos_by_id, wanted_clips
from data_modules.ted import TED
from data_modules.voxceleb import VoxCeleb
from lmdvid import cli
from lmdvid.prepare import PrepareError, Settings, encode, prepare_clips, prepare_cuts
from lmdvid.video import Cut, VideoInfo, probe, read_clip, workers, write_video

COLUMNS = "video_id,start,end,bbox,fps,width,height,partition"
NTSC = Fraction(30000, 1001)


def download(
    path: Path, frames: int, fps: Fraction | int, size=(128, 96), box=(32, 16, 96, 80), times=None
) -> Path:
    """A white video, as from a web site, in whose box are barcodes with ramps of colour."""
    width, height = size
    left, top, right, bottom = box
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", fps, options={"g": "250", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames):
            picture = np.full((height, width, 3), 255, np.uint8)
            inside = Image.fromarray(barcode(n, 64, 64)).resize((right - left, bottom - top))
            picture[top:bottom, left:right] = np.asarray(inside)
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = times[n] if times else n, 1 / Fraction(fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def shown(path: Path) -> list[int]:
    """The numbers in a clip, whose frames must be the whole box and nothing but the box."""
    frames = read_clip(path, range(probe(path).frames))
    told = numbers(frames)
    for frame, number in zip(frames.float(), told, strict=True):
        expected = torch.from_numpy(barcode(number, 64, 64)).float()
        for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[0], np.s_[-1]):
            # A line of the white around the box would be off by about 128.
            assert (frame[edge] - expected[edge]).abs().mean() < 40, edge
    return told


def listed(path: Path, *rows: str, columns: str = COLUMNS) -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def prepare(what: str, source: Path, output: Path, *more: str) -> int:
    return cli.main(
        ["prepare", what, "--input", str(source), "--output", str(output), "--jobs", "1", *more]
    )


def made(
    table: Path, videos: dict[str, Path], output: Path, people: bool = False, size: int = 64
) -> None:
    """What the command makes, undisturbed: in this process, clip by clip, without its notes."""
    for name, cut in wanted_clips(table, videos, people).cuts.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        assert [*encode([(cut, output / name)], Settings(size, "stretch"))] == [(0, None)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


# Frames and boxes


@pytest.mark.parametrize(
    ("fps", "reference", "times"),
    [
        (25, "25", None),
        (30, "25", None),
        (Fraction(24000, 1001), "25", None),
        (25, "30", None),
        (50, "25", None),
        (NTSC, "29.97", None),
        (30, "25", [n + 3 * (n > 20) + n // 9 for n in range(70)]),
    ],
)
def test_frames_are_those_within_the_time_at_the_reference_rate(tmp_path, fps, reference, times):
    download(tmp_path / "in/a.mp4", 70, fps, times=times)
    table = listed(tmp_path / "list.csv", f"a,10,37,32-16-96-80,{reference},128,96,train")
    made(table, {"a": tmp_path / "in/a.mp4"}, tmp_path / "out")
    # Frame n is shown from its time on; where rates are one and the same, numbers are.
    same = fps == NTSC
    begun = [Fraction(times[n] if times else n) / (1 if same else fps) for n in range(70)]
    rate = 1 if same else Fraction(reference)
    expected = [n for n in range(70) if 10 <= begun[n] * rate < 37]
    assert shown(tmp_path / "out/train/a#000010#000037.mp4") == expected
    if times is None:
        assert probe(tmp_path / "out/train/a#000010#000037.mp4").fps == fps


@pytest.mark.parametrize(
    ("fps", "reference", "expected"),
    [
        (Fraction(60000, 1001), "29.97", range(20000, 20128)),
        (Fraction(48000, 1001), "23.976", range(20000, 20128)),
        (Fraction(60000, 1001), "23.98", range(25000, 25160)),
        (NTSC, "59.94", range(5000, 5032)),
        (NTSC, "29.97", range(10000, 10064)),
        (NTSC, "30", range(9990, 10054)),  # 9990.01 and 10053.9
        (Fraction(30), "29.97", range(10011, 10075)),  # 10010.01 and 10074.07
        (Fraction(30), "25", range(12000, 12077)),
    ],
)
def test_rates_in_few_digits_do_not_drift_in_long_videos(fps, reference, expected):
    info = VideoInfo(99999, fps, 8, 8, False, "h264", "video")
    cut = Cut(Path("a.mp4"), (10000, 10064), Fraction(reference))
    assert cut.frames(info, None) == expected


@pytest.mark.parametrize("size", [(128, 96), (256, 192), (64, 48), (254, 192)])
def test_boxes_fit_downloads_of_other_sizes(tmp_path, size):
    """The list knows frames of 128x96; what was downloaded is larger, smaller, or rounded."""
    box = tuple(edge * size[n % 2] // (128, 96)[n % 2] for n, edge in enumerate((32, 16, 96, 80)))
    video = download(tmp_path / "a.mp4", 12, 25, size, box)
    rows = ["a,2,9,32-16-96-80,25,128,96,train,id1", "a,0,10,32-16-96-80,20,128,96,test,id2"]
    table = listed(tmp_path / "list.csv", *rows, columns=f"{COLUMNS},person_id")
    made(table, {"a": video}, tmp_path / "out", people=True)
    assert shown(tmp_path / "out/train/id1#a#000002#000009.mp4") == [*range(2, 9)]
    assert shown(tmp_path / "out/test/id2#a#000000#000010.mp4") == [*range(12)]


def test_boxes_of_other_shapes_are_stretched_as_published_ones_or_cut_or_padded(tmp_path):
    video = download(tmp_path / "a.mp4", 4, 25, (160, 96), (16, 16, 144, 80))
    cut = Cut(video, (0, 4), Fraction(25), (16, 16, 144, 80), (160, 96))
    sizes = {}
    for fit in ("stretch", "crop", "pad", "keep"):
        path = tmp_path / f"{fit}.mp4"
        assert [*encode([(cut, path)], Settings(64, fit))] == [(0, None)]
        info = probe(path)
        sizes[fit] = (info.width, info.height)
    assert sizes == {"stretch": (64, 64), "crop": (64, 64), "pad": (64, 64), "keep": (128, 64)}
    assert shown(tmp_path / "stretch.mp4") == [0, 1, 2, 3]
    red = read_clip(tmp_path / "crop.mp4", [0])[0, 40, :, 0].float()
    assert red[0] > 50  # the ramp from 0 to 255 has lost both ends
    assert red[-1] < 205


def test_many_clips_of_one_video_overlap(tmp_path):
    """It is decoded once."""
    video = download(tmp_path / "a.mp4", 60, 25)
    spans = [(0, 5), (3, 30), (29, 31), (10, 12), (50, 51), (70, 80)]
    cuts = [
        (Cut(video, span, Fraction(25), (32, 16, 96, 80), (128, 96)), tmp_path / f"{place}.mp4")
        for place, span in enumerate(spans)
    ]
    told = [reply for reply in encode(cuts, Settings(64, "stretch")) if reply is not None]
    assert told[0][0] == 5
    assert "it has no frames 70 to 80 at 25 per second" in str(told[0][1])
    assert told[1:] == [(0, None), (3, None), (1, None), (2, None), (4, None)]  # as they end
    for (start, end), (_, path) in zip(spans[:5], cuts, strict=False):
        assert shown(path) == [*range(start, end)]
    assert not (tmp_path / "5.mp4").exists()


def test_frames_that_ffmpeg_drops_shift_no_clip(tmp_path):
    """A recording that begins at a key frame which earlier pictures lean on, too."""
    options = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0"}
    write_barcodes(tmp_path / "whole.mkv", [*range(60)], options=options)
    with (
        av.open(str(tmp_path / "whole.mkv")) as whole,
        av.open(str(tmp_path / "cut.mkv"), "w") as part,
    ):
        copy, keys = part.add_stream_from_template(whole.streams.video[0]), 0
        for packet in whole.demux(video=0):
            keys += packet.is_keyframe
            if keys > 1 and packet.size:
                packet.stream = copy
                part.mux(packet)
    video = tmp_path / "cut.mkv"
    cuts = [(Cut(video, span), tmp_path / f"{span[0]}.mp4") for span in ((10, 20), (0, 9), (5, 39))]
    cuts.append((Cut(video), tmp_path / "all.mp4"))
    told = dict(filter(None, encode(cuts, Settings(64, "keep"))))
    reason = f"cannot read {video}: frame 0 of {probe(video).frames} does not decode"
    assert told == {0: None, 1: reason, 2: None, 3: reason}
    for (first, stop), (_, path) in zip([(10, 20), (5, 39)], cuts[::2], strict=False):
        expected = numbers(read_clip(video, range(first, stop)))
        assert numbers(read_clip(path, range(stop - first))) == expected
    assert not (tmp_path / "0.mp4").exists()
    assert not (tmp_path / "all.mp4").exists()


# Lists


def test_voxceleb_from_list_to_batches(tmp_path, capsys, monkeypatch):
    for name in ("vid_1.mp4", "deep/Talk [vid-2345678].mkv", "vid3.mp4"):
        download(tmp_path / "in" / name, 30, 30)
    rows = [
        "vid_1,0,10,32-16-96-80,25,128,96,train,id1",
        "vid_1,10,20,32-16-96-80,25,128,96,train,id1",
        "vid_1,0,10,0-0-128-96,25,128,96,train,id1",  # somebody else in the same shot
        "vid-2345678,0,20,32-16-96-80,25,128,96,train,id10",
        "vid3,5,20,32-16-96-80,25,128,96,test,id2",
        "gone,5,20,32-16-96-80,25,128,96,test,id2",
        "gone,25,40,32-16-96-80,25,128,96,test,id2",
        "lost,5,20,32-16-96-80,25,128,96,test,id3",
    ]
    table = listed(tmp_path / "vox-metadata.csv", *rows, columns=f"{COLUMNS},person_id")
    before = files(tmp_path / "in")
    asked, ask = [], workers.ask
    monkeypatch.setattr(workers, "ask", lambda q, *a, **k: asked.append(len(q)) or ask(q, *a, **k))
    assert prepare("voxceleb", tmp_path / "in", tmp_path / "out", "--metadata", str(table)) == 0
    assert asked == [3]  # once for each video
    out = capsys.readouterr().out
    assert "2 videos are missing, with 3 of 8 clips (listed in " in out
    assert "5 clips prepared, 0 were there already, 0 failed" in out
    assert (tmp_path / "out/prepare_missing.txt").read_text() == "gone\nlost\n"
    assert files(tmp_path / "in") == before
    data = VoxCeleb(str(tmp_path / "out"), size=64, batch_size=2, eval_frames=8,
                    identity_sampling=True)  # fmt: skip
    data.setup()
    assert [clip.key for clip in data.train_clips] == [
        "id1#vid_1#000000#000010#2.mp4",
        "id1#vid_1#000000#000010.mp4",
        "id1#vid_1#000010#000020.mp4",
        "id10#vid-2345678#000000#000020.mp4",
    ]
    assert {clip.identity for clip in data.train_clips} == {"id1", "id10"}
    assert [clip.key for clip in data.test_clips] == ["id2#vid3#000005#000020.mp4"]
    assert probe(data.test_clips[0].path).width == 256
    # What was missing and is there now is added; the rest is left as it is.
    download(tmp_path / "in/gone.mkv", 60, 25)
    assert prepare("voxceleb", tmp_path / "in", tmp_path / "out", "--metadata", str(table)) == 0
    out = capsys.readouterr().out
    assert "1 videos are missing, with 1 of 8 clips" in out
    assert "2 clips prepared, 5 were there already, 0 failed" in out


def test_ted_takes_the_range_from_the_name_in_the_videos_own_frames(tmp_path):
    videos = {"VM6HZqQKhok": download(tmp_path / "VM6HZqQKhok.mp4", 40, NTSC)}
    row = "VM6HZqQKhok#000016#000031,0,0,32-16-96-80,10.0,128,96,train"
    made(listed(tmp_path / "ted.csv", row), videos, tmp_path / "out")
    assert shown(tmp_path / "out/train/VM6HZqQKhok#000016#000031.mp4") == [*range(16, 31)]
    data = TED(str(tmp_path / "out"), holdout=0.0, size=64)
    data.setup("fit")
    assert [clip.identity for clip in data.train_clips] == ["VM6HZqQKhok"]


def test_what_a_video_does_not_have_is_told(tmp_path):
    video, broken = (download(tmp_path / f"{name}.mp4", 30, 25) for name in ("short", "broken"))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])

    def reason(path: Path, span=(0, 9), box=(32, 16, 96, 80), size=(128, 96)) -> str | None:
        cut = Cut(path, span, Fraction(25), box, size)
        ((_, why),) = encode([(cut, tmp_path / "out.mp4")], Settings(64, "stretch"))
        assert (tmp_path / "out.mp4").exists() == (why is None)
        return why

    for span in ((20, 99), (40, 99), (30, 31)):
        told = f"it has no frames {span[0]} to {span[1]} at 25 per second, but ends after 30 at 25"
        assert told in str(reason(video, span))
    outside = str(reason(video, box=(130, 0, 140, 96)))
    assert "its box (130, 0, 140, 96) is outside of 128x96" in outside
    other = str(reason(video, box=(10, 10, 60, 60), size=(96, 96)))
    assert "its box belongs to frames of 96x96, but these are 128x96, another shape" in other
    assert "broken.mp4: not a video, or damaged" in str(reason(broken))
    assert reason(video, (5, 38)) is None  # other encodings may end a little earlier
    assert probe(tmp_path / "out.mp4").frames == 25


@pytest.mark.parametrize(
    ("rows", "columns", "text"),
    [
        (["a,0,9,1-2-3-4,25,9,9,train"], COLUMNS[:-4], r"lacks the column\(s\) partition; it has"),
        (["a,9,9,1-2-3-4,25,9,9,train"], COLUMNS, "line 2: no range of frames: 9 to 9"),
        (["a,0,9,1-2-3,25,9,9,train"], COLUMNS, "line 2: not enough values"),
        (["a,0,9,3-2-3-4,25,9,9,train"], COLUMNS, "line 2: an empty box 3-2-3-4"),
        (["a,0,9,1-2-3-4,fast,9,9,train"], COLUMNS, "line 2: Invalid literal for Fraction"),
        (["a,0,9,1-2-3-4,25,9,9,../.."], COLUMNS, r"line 2: no name for a file: '\.\./\.\.'"),
        (["a,0,9,1-2-3-4,25,9,9,"], COLUMNS, "line 2: no name for a file: ''"),
        ([",0,9,1-2-3-4,25,9,9,train"], COLUMNS, "line 2: no name for a file: ''"),
        (["a,0,9,1-2-3-4,25,9,9"], COLUMNS, "line 2: other columns than the first"),
    ],
)
def test_lists_that_are_none(tmp_path, rows, columns, text):
    with pytest.raises(DataError, match=text):
        wanted_clips(listed(tmp_path / "list.csv", *rows, columns=columns), {"a": Path("a.mp4")})


def test_a_list_of_people_names_them(tmp_path):
    table = listed(
        tmp_path / "list.csv", "a,0,9,1-2-3-4,25,9,9,train,", columns=f"{COLUMNS},person_id"
    )
    with pytest.raises(DataError, match="line 2: no name for a file: ''"):
        wanted_clips(table, {"a": Path("a.mp4")}, people=True)


@pytest.mark.parametrize("name", ["/{tmp}/b.mp4", "../b.mp4", "x/../../b.mp4", ""])
def test_nothing_is_written_elsewhere(tmp_path, name):
    name = name.format(tmp=tmp_path)
    with pytest.raises(PrepareError, match="is no name of a file below"):
        prepare_cuts({name: Cut(tmp_path / "in/a.mp4")}, tmp_path / "in", tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_no_list_and_no_video(tmp_path, capsys):
    download(tmp_path / "in/a.mp4", 2, 25)
    table = listed(tmp_path / "list.csv", "b,0,9,1-2-3-4,25,9,9,train")
    with pytest.raises(DataError, match="does not exist; give the csv"):
        wanted_clips(tmp_path / "none.csv", {})
    empty = listed(tmp_path / "empty.csv")
    for what, more, code, text in (
        ("ted", ["--metadata", str(table)], 2, "holds none of the 1 videos of"),
        ("ted", ["--metadata", str(empty)], 2, "empty.csv: the list has no rows"),
        ("bair", ["--to", "png", "--crf", "9"], 2, "argument --crf: not for png"),
        ("taichi", [], 2, "taichi needs --metadata"),
        ("clips", ["--metadata", str(table)], 2, "argument --metadata: not for clips"),
        ("voxceleb", ["--metadata", str(table)], 1, "lacks the column(s) person_id"),
        ("ted", ["--metadata", str(table), "--to", "png"], 2, "argument --to: not for ted"),
        ("bair", [], 2, "holds no TFRecord file that can be read"),
    ):
        with suppress(SystemExit):
            assert prepare(what, tmp_path / "in", tmp_path / "out", *more) == code
        assert text in capsys.readouterr().err


def test_ids_of_downloads(tmp_path):
    for name in ("-a_1.webm", "x/b.mp4", "Some talk [M-_34567890].mkv", "b.mp4.part", "._c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a video")
    assert sorted(videos_by_id(tmp_path)) == ["-a_1", "M-_34567890", "b"]


# BAIR


@pytest.mark.parametrize("to", ["mp4", "png"])
def test_bair_from_records(tmp_path, to, capsys):
    smooth = [
        np.repeat(np.repeat(np.random.default_rng(n).integers(
            60, 200, (30, 4, 4, 3), dtype=np.uint8), 16, 1), 16, 2) for n in range(5)]  # fmt: skip
    for split, some in (("train", smooth[:3]), ("test", smooth[3:])):
        data = [tfrecords.push(pictures, 255 - pictures) for pictures in some]
        path = tmp_path / f"in/{split}/traj_0_to_{len(some) - 1}.tfrecords"
        places = tfrecords.write(path, data, google_crc32c.value)
    before = files(tmp_path / "in")
    more = ["--to", to, "--camera", "image_main"] if to == "png" else ["--crf", "4"]
    assert prepare("bair", tmp_path / "in", tmp_path / "out", *more) == 0
    data = BAIR(str(tmp_path / "out"), frames=30, batch_size=3)
    data.setup()
    suffix = ".mp4" if to == "mp4" else ""
    assert [clip.key for clip in data.train_clips] == [f"traj_0_to_2/{n}{suffix}" for n in range(3)]
    for n, clip in enumerate([*data.train_clips, *data.test_clips]):
        seen = read_clip(clip.path, range(30)).numpy().astype(int)
        expected = smooth[n] if to == "mp4" else 255 - smooth[n]
        assert np.abs(seen - expected).mean() < (4 if to == "mp4" else 0.001)
    assert files(tmp_path / "in") == before
    assert prepare("bair", tmp_path / "in", tmp_path / "out", *more) == 0
    assert "0 clips prepared, 5 were there already" in capsys.readouterr().out
    if to == "png":  # made with other settings
        assert prepare("bair", tmp_path / "in", tmp_path / "out", *more, "--size", "32") == 0
        assert {probe(clip.path).width for clip in data.train_clips} == {32}
        return
    # A flipped bit, and a file that ends early.
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content[: places[1] + 100])
    capsys.readouterr()
    assert prepare("bair", tmp_path / "in", tmp_path / "new", *more) == 1
    err = capsys.readouterr().err
    assert f"cannot read {path}: record 0: the CRC of its data is wrong" in err
    assert f"cannot read {path}: record 1: its length is damaged, or the file ends" in err
    assert len((tmp_path / "new/prepare_failed.txt").read_text().splitlines()) == 2


# Ends of all kinds


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_killed_in_the_middle_it_ends_with_the_files_of_an_undisturbed_run(tmp_path):
    rows = []
    for name in ("a", "b", "c"):
        download(tmp_path / f"in/{name}.mp4", 80, 30)
        rows += [f"{name},{n},{n + 30},32-16-96-80,25,128,96,train" for n in (0, 15, 30)]
    table = listed(tmp_path / "list.csv", *rows)
    calm, output = tmp_path / "calm", tmp_path / "out"
    made(table, videos_by_id(tmp_path / "in"), calm, size=128)
    command = [sys.executable, "-m", "lmdvid", "prepare", "taichi", "--metadata", str(table)]
    command += ["--input", str(tmp_path / "in"), "--output", str(output), "--size", "128"]
    command += ["--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as first:
        while first.poll() is None and len([*output.glob("train/*.mp4")]) < 4:
            time.sleep(0.002)
        os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in output.glob("train/*.mp4")}
    assert 4 <= len(finished) < 9
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(rf"(\d+) clips prepared, {len(finished)} were there already", second.stdout)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert files(output) == files(calm)
    assert len(files(calm)) == 9
    assert not (output / ".lmdvid_parts").exists()


def test_what_hangs_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    """And what is merely slow is waited for, as long as frames come."""
    program = (
        "import time; from lmdvid import prepare\n"
        "encode = prepare.encode\n"
        "def odd(cuts, settings):\n"
        "    name = cuts[0][0].path.name\n"
        "    if name == 'hangs.mp4': time.sleep(1000)\n"
        "    if name == 'slow.mp4':\n"
        "        for _ in range(12):\n"
        "            time.sleep(0.25)\n"
        "            yield None\n"
        "    yield from encode(cuts, settings)\n"
        "prepare.encode = odd\n"
        "prepare._work()"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: popen([command[0], "-c", program, *command[4:]], **options),
    )
    clips = {}
    for name in ("a.mp4", "hangs.mp4", "slow.mp4", "z.mp4"):
        clips[name] = tmp_path / "in" / name
        write_video(clips[name], torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 25)
    begun = time.monotonic()
    done = prepare_clips(
        clips, tmp_path / "in", tmp_path / "out", Settings(32), jobs=1, timeout=2
    )  # fmt: skip
    assert time.monotonic() - begun < 60
    assert done.failed == {
        "hangs.mp4": f"cannot read {clips['hangs.mp4']}: no frame came within 2 s"
    }
    assert done.made == ["a.mp4", "slow.mp4", "z.mp4"]


def test_a_cut_says_where_it_is():
    cut = Cut(Path("a.mp4"))
    assert (cut.span, cut.pixels(64, 48)) == (None, (0, 0, 64, 48))
    assert Cut(Path("a.mp4"), box=(3, 2, 99, 40)).pixels(64, 48) == (3, 2, 64, 40)
