"""Frame i is frame i, whatever holds it; what cannot be read says why."""

import errno
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from contextlib import suppress
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import av
import numpy as np
import pytest
import torch
from barcodes import HEIGHT, MAKERS, WIDTH, barcode, encode, make, numbers
from PIL import Image

from lmdvid.video import (
    VideoInfo,
    VideoReadError,
    centre_square,
    content,
    is_clip,
    probe,
    pyav_backend,
    read_clip,
    resize,
    scan_clips,
    stream_frames,
    to_float,
    to_uint8,
    write_image,
    write_video,
)
from lmdvid.video import read as reading
from lmdvid.video.decord_backend import is_installed

needs_decord = pytest.mark.skipif(not is_installed(), reason="decord has no wheel here")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Makes a clip of MAKERS once and returns its path."""
    folder = tmp_path_factory.mktemp("clips")

    return partial(make, folder=folder)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("name", MAKERS)
def test_frames_are_the_ones_asked_for(clip, name, backend):
    path, shown = clip(name), MAKERS[name][0]
    sequential = torch.stack(list(stream_frames(path)))
    if "turned" in name:
        upright = torch.rot90(sequential, -1, (1, 2))
    else:
        upright = torch.rot90(sequential, 2, (1, 2)) if "upside" in name else sequential
    assert numbers(upright) == shown

    n = len(shown)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (n, *sequential.shape[1:3])
    generator = np.random.default_rng(0)
    for indices in (
        [0],
        [n - 1],
        list(range(n))[n // 3 : n // 3 + 16],
        [*range(n)][::-1],
        generator.integers(0, n, 12).tolist(),  # unsorted, with repeats
    ):
        frames = read_clip(path, indices, backend)
        assert frames.dtype == torch.uint8
        assert torch.equal(frames, sequential[indices]), indices
    reader = reading.route(path, backend)
    frames = reading.decode(Path("nowhere"), indices, reader, data=content(path))
    assert torch.equal(frames, sequential[indices])


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_content_that_is_damaged(clip, backend):
    data = content(clip("gop12.mp4"))
    with pytest.raises(VideoReadError, match="cannot read nowhere: not a video, or damaged"):
        reading.decode(Path("nowhere"), [0], reading.route(clip("gop12.mp4"), backend), data=b"x")
    with pytest.raises(VideoReadError, match=r"frame 60 of 60 \(the first is 0\)"):
        reading.decode(Path("nowhere"), [60], "pyav", data=data)


def test_content_of_folders_and_arrays(tmp_path):
    folder = tmp_path / "pictures"
    for number in (10, 9, 2, 0):  # in natural order, whatever the file system says
        write_image(folder / f"{number}.png", torch.full((8, 6, 3), number, dtype=torch.uint8))
    read = partial(reading.decode, Path("s/a"), reader="pictures")
    assert read(indices=[3, 0, 2], data=content(folder))[:, 0, 0, 0].tolist() == [10, 0, 9]
    bomb = BytesIO()
    with ZipFile(bomb, "w", ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(10_000_000))
    for data, message in (
        (content(folder)[:-5], "s/a: damaged"),
        (content(folder).replace(b"IDAT", b"IDAX"), "s/a: damaged .Bad CRC-32"),
        (bomb.getvalue(), "s/a: pictures in it are compressed once more"),
    ):
        with pytest.raises(VideoReadError, match=message):
            read(indices=[0], data=data)
    with pytest.raises(VideoReadError, match=r"frame 4 of 4"):
        read(indices=[4], data=content(folder))

    read = partial(reading.decode, Path("s/b.npy"), reader="arrays")
    array = np.arange(5 * 4 * 2 * 3, dtype=np.uint8).reshape(5, 4, 2, 3)
    for saved in (array, np.asfortranarray(array)):
        np.save(tmp_path / "b.npy", saved)
        frames = read(indices=[4, 1], data=content(tmp_path / "b.npy"))
        assert frames.tolist() == array[[4, 1]].tolist()
    whole = content(tmp_path / "b.npy")
    for data, message in (
        (whole[:-1], "no whole .npy file"),
        (whole.replace(b"(5, ", b"(9" + b"0" * 8 + b", "), "no whole .npy file"),
        (b"no array", "no whole .npy file"),
        (b"", "no whole .npy file"),
    ):
        with pytest.raises(VideoReadError, match=message):
            read(indices=[0], data=data)


@needs_decord
@pytest.mark.parametrize("name", [n for n, (_, reader, _) in MAKERS.items() if reader == "decord"])
def test_both_backends_agree(clip, name):
    path, indices = clip(name), range(0, len(MAKERS[name][0]), 7)
    assert reading.route(path) == "decord"
    assert torch.equal(read_clip(path, indices, "decord"), read_clip(path, indices, "pyav"))


@needs_decord
@pytest.mark.parametrize("matrix", [2, 1, 5, 6, 7, 9])  # unknown, BT.709, two BT.601s, 240M, 2020
@pytest.mark.parametrize("levels", [0, 1, 2])  # unknown, limited, full
def test_colours_of_8_bit_420_are_equal(tmp_path, matrix, levels):
    path = tmp_path / "colours.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, levels
        output.mux(stream.encode(av.VideoFrame.from_ndarray(barcode(9))))
        output.mux(stream.encode(None))
    frames = read_clip(path, [0], "decord")
    assert torch.equal(frames, read_clip(path, [0], "pyav"))
    assert frames.float().std((0, 1, 2)).min() > 40  # there are colours


@needs_decord
@pytest.mark.parametrize("name", [n for n, (_, reader, _) in MAKERS.items() if reader == "pyav"])
def test_decord_is_not_given_what_it_gets_wrong(clip, name):
    assert reading.route(clip(name)) == "pyav"
    with pytest.raises(VideoReadError, match="decord does not read"):
        read_clip(clip(name), [0], "decord")


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("ntsc.mp4", VideoInfo(60, Fraction(30000, 1001), 96, 64, False, "h264", "video")),
        ("vp9.webm", VideoInfo(60, Fraction(25), 96, 64, False, "vp9", "video")),
        ("turned.mp4", VideoInfo(60, Fraction(25), 64, 96, False, "h264", "video")),
        ("one.mp4", VideoInfo(1, Fraction(25), 96, 64, False, "h264", "video")),
        ("moving.gif", VideoInfo(60, Fraction(25), 96, 64, False, "gif", "gif")),
        ("edit.mp4", VideoInfo(63, Fraction(25), 96, 64, False, "h264", "video")),
    ],
)
def test_probe(clip, name, info):
    assert probe(clip(name)) == info


def test_probe_counts_what_is_there(tmp_path):
    """The header of a file that was cut off still tells of 200 frames."""
    assert 100 < probe(broken(tmp_path, "cut_tail")).frames < 190


def test_a_changed_file_is_seen(tmp_path):
    path = encode(tmp_path / "x.mp4", list(range(5)))
    assert probe(path).frames == 5
    encode(path, list(range(9)), codec="libx265")
    assert (probe(path).frames, probe(path).codec) == (9, "hevc")
    assert numbers(read_clip(path, [8])) == [8]


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize(("index", "reason"), [(99, "frame 99 of 60"), (-1, "frame -1 of 60")])
def test_frames_that_do_not_exist(clip, backend, index, reason):
    for path in (clip("long.mp4"), clip("hevc.mp4")):
        with pytest.raises(VideoReadError, match=reason):
            read_clip(path, [0, index], backend)


def test_wrong_arguments(clip):
    path = clip("long.mp4")
    with pytest.raises(ValueError, match="indices is empty"):
        read_clip(path, [])
    with pytest.raises(TypeError):
        read_clip(path, [0.5])
    with pytest.raises(ValueError, match="backend='opencv'"):
        read_clip(path, [0], "opencv")
    assert numbers(read_clip(path, torch.tensor([3, 1]))) == [3, 1]
    assert numbers(read_clip(str(path), np.array([3, 1]))) == [3, 1]


def test_without_decord(clip, monkeypatch):
    monkeypatch.setattr(reading.decord_backend, "is_installed", lambda: False)
    assert reading.route(clip("long.mp4")) == "pyav"
    assert numbers(read_clip(clip("long.mp4"), [41])) == [41]
    with pytest.raises(ModuleNotFoundError, match="decord is not installed"):
        read_clip(clip("long.mp4"), [0], "decord")


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 100)
    elif kind == "folder":
        path.mkdir()
        (path / "readme.txt").write_text("no pictures here")
    elif kind == "sound":
        with av.open(str(path), "w") as output:
            stream = output.add_stream("aac", 16000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            sound.rate = 16000
            output.mux(stream.encode(sound))
            output.mux(stream.encode(None))
    elif kind in ("cut_head", "cut_tail"):
        flags = {"movflags": "+faststart"} if kind == "cut_tail" else {}
        data = encode(path, list(range(200)), container_options=flags).read_bytes()
        path.write_bytes(data[: len(data) * 3 // 4])
    return path


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "not a video, or damaged"),
        ("folder", "a folder without pictures"),
        ("sound", "no video in it"),
        ("missing", "no such file"),
        ("cut_head", "not a video, or damaged"),
        ("cut_tail", "damaged|frame 190 of"),
    ],
)
def test_unreadable(tmp_path, kind, reason, backend):
    path = broken(tmp_path, kind)
    with pytest.raises(VideoReadError, match=reason) as caught:
        read_clip(path, [190], backend)
    error = caught.value
    assert error.path == path
    assert str(error) == f"cannot read {path}: {error.reason}"
    assert "\n" not in error.reason
    assert ".cc" not in error.reason
    assert str(path) not in error.reason
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # it crosses worker processes
    with pytest.raises(VideoReadError, match=reason):
        # The header of a file that was cut off is whole; only its frames are missing.
        list(stream_frames(path)) if kind == "cut_tail" else probe(path)


@pytest.mark.parametrize("folder", ["id1#abc#000001#000012.mp4", "frames"])
def test_folder_of_pictures(tmp_path, folder):
    folder = tmp_path / folder
    folder.mkdir()
    for number in (0, 1, 2, 10, 11, 100):
        Image.fromarray(barcode(number)).save(folder / f"img_{number}.png")
    (folder / "._img_3.png").write_bytes(b"left by macOS")
    (folder / "notes.txt").write_text("not a frame")
    assert is_clip(folder)
    assert probe(folder) == VideoInfo(6, Fraction(25), WIDTH, HEIGHT, False, "png", "frames")
    assert numbers(torch.stack(list(stream_frames(folder)))) == [0, 1, 2, 10, 11, 100]
    for backend in ("auto", "pyav"):
        frames = read_clip(folder, [4, 0, 4], backend)
        assert numbers(frames) == [11, 0, 11]
        assert torch.equal(frames[1], torch.from_numpy(barcode(0)))
    with pytest.raises(VideoReadError, match="frame 6 of 6"):
        read_clip(folder, [6])
    Image.fromarray(barcode(3)[:32]).save(folder / "img_3.png")
    assert probe(folder).frames == 7  # the listing notices new files
    with pytest.raises(VideoReadError, match="change size, from 96x64 to 96x32"):
        read_clip(folder, [0, 3])
    (folder / "img_2.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(VideoReadError, match=r"img_2\.png: not a picture, or damaged"):
        read_clip(folder, [2])


def test_single_pictures(tmp_path):
    frame = barcode(9)
    path = tmp_path / "face.png"
    Image.fromarray(frame).save(path)
    assert probe(path) == VideoInfo(1, Fraction(25), WIDTH, HEIGHT, False, "png", "image")
    assert torch.equal(read_clip(path, [0])[0], torch.from_numpy(frame))
    assert not is_clip(path)
    assert len(list(stream_frames(path))) == 1

    alpha = np.concatenate([frame, np.full((HEIGHT, WIDTH, 1), 40, np.uint8)], 2)
    Image.fromarray(alpha).save(path)
    assert torch.equal(read_clip(path, [0])[0], torch.from_numpy(frame))

    Image.fromarray(frame[..., 0]).save(path)
    assert torch.equal(read_clip(path, [0])[0], torch.from_numpy(frame[..., :1]).expand(-1, -1, 3))

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(frame).save(path, exif=exif)
    assert torch.equal(read_clip(path, [0])[0], torch.from_numpy(np.rot90(frame, -1).copy()))
    assert (probe(path).width, probe(path).height) == (HEIGHT, WIDTH)

    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    with pytest.raises(VideoReadError, match="convert it to 8 bits"):
        read_clip(path, [0])
    path.write_bytes(b"")
    with pytest.raises(VideoReadError, match="empty"):
        read_clip(path, [0])


def test_is_clip(tmp_path, clip):
    assert is_clip(clip("moving.gif"))
    assert is_clip(str(clip("long.mp4")))
    assert not is_clip(tmp_path)
    assert not is_clip(tmp_path / "absent.mp4")
    (tmp_path / "list.csv").touch()
    assert not is_clip(tmp_path / "list.csv")


def test_what_may_not_be_looked_at(tmp_path, monkeypatch):
    def refuse(path, *args, **kw):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "frames.mp4").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        patch.setattr(Path, "iterdir", refuse)
        for call in (is_clip, probe):
            with pytest.raises(VideoReadError, match="permission denied"):
                call(tmp_path / "frames.mp4")
    monkeypatch.setattr(Path, "stat", refuse)
    for call in (is_clip, probe):
        with pytest.raises(VideoReadError, match="permission denied"):
            call(tmp_path / "x.mp4")


def resident() -> int:
    """Resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems allow fewer names")
def test_any_name_of_a_file_will_do(clip, tmp_path, monkeypatch):
    """In the current folder FFmpeg alone would take what precedes a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    names = [
        "12:30.mp4",
        "file:a.mp4",
        "50%d.mp4",
        " - .mp4",
        "写真.mp4",
        os.fsdecode(b"a\xff.mp4"),
    ]
    for name in names:
        shutil.copy(clip("gop12.mp4"), name)
        assert probe(name).frames == 60
        assert numbers(torch.stack(list(stream_frames(name)))[[5, 59]]) == [5, 59]
        for backend in ("auto", "pyav", *(["decord"] if is_installed() else [])):
            assert numbers(read_clip(name, [40, 3], backend)) == [40, 3]
    assert [clip.error for clip in scan_clips(Path(), map(Path, names)).clips] == [""] * len(names)
    frames = torch.stack([torch.from_numpy(barcode(n)) for n in (1, 2)])
    for name in names[:2]:
        write_video(name, frames, 25, audio_from=name)
        assert numbers(read_clip(name, [1])) == [2]


@needs_decord
def test_damage_spoils_the_same_frames_each_time(tmp_path):
    """Decord decodes ahead: what is behind a frame spoils it in some runs and not in others."""
    whole = encode(tmp_path / "whole.mp4", list(range(60)), options={"g": "12", "bf": "0"})
    with av.open(str(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
    data = bytearray(whole.read_bytes())
    begin, end = packet.pos + 5, packet.pos + packet.size
    data[begin:end] = np.random.default_rng(1).bytes(end - begin)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    assert reading.route(path) == "decord"
    for _ in range(4):
        good = []
        for number in range(20, 40):
            with suppress(VideoReadError):
                assert numbers(read_clip(path, [number])) == [number]
                good.append(number)
        assert good == [*range(20, 30), *range(36, 40)]
    with pytest.raises(VideoReadError, match="decord: "):
        read_clip(path, [30], "decord")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_keeps_few_frames(tmp_path):
    big = tmp_path / "big.mp4"
    encode(big, [n % 200 for n in range(250)], size=(512, 512), options={"preset": "ultrafast"})
    gc.collect()
    start, peak, seen = resident(), 0, 0
    for _ in stream_frames(big):
        seen += 1
        peak = max(peak, resident() - start)
    assert seen == probe(big).frames == 250
    assert peak < 80e6  # all frames at once take 197 MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_looking_for_a_frame_keeps_no_other_in_memory(tmp_path, monkeypatch):
    """Numbering frames takes their time stamps, not the bytes of the whole file."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 512, 512, 3), dtype=np.uint8)
    big = tmp_path / "big.avi"
    with av.open(str(big), "w") as output:
        stream = output.add_stream("rawvideo", 25)
        stream.height, stream.width, stream.pix_fmt = 512, 512, "bgr24"
        for number in range(80):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(noise[number % 4])))
        output.mux(stream.encode(None))
    assert big.stat().st_size > 60e6
    packets, memory = pyav_backend._packets, []

    def watched(*stream):
        for packet in packets(*stream):
            memory.append(resident())
            yield packet

    monkeypatch.setattr(pyav_backend, "_packets", watched)
    for look in (lambda: read_clip(big, [50], "pyav"), lambda: pyav_backend.header(big)):
        memory.clear()
        look()
        assert len(memory) >= 80
        assert max(memory) - memory[0] < 25e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_stays_open(clip, tmp_path):
    text = broken(tmp_path, "text")

    def use() -> None:
        for name in ("gop12.mp4", "hevc.mp4", "stream.ts"):
            read_clip(clip(name), [3, 40])
        next(stream_frames(clip("gop12.mp4")))
        with pytest.raises(VideoReadError):
            probe(text)

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    use()
    before = held()
    for _ in range(10):
        use()
    assert held() == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_outlives_the_parents_decoding(clip):
    gc.collect()
    gc.disable()  # so that what the parent opened is collected in the child
    try:
        read_clip(clip("hevc.mp4"), [30])
        read_clip(clip("gop12.mp4"), [30])
        forget_open_files(clip)
        child = multiprocessing.get_context("fork").Process(target=_collect_and_read, args=(clip,))
        child.start()
    finally:
        gc.enable()
    child.join(30)
    hung = child.is_alive()
    if hung:
        child.kill()
    assert not hung
    assert child.exitcode == 0


def forget_open_files(clip) -> None:
    """Leave decoders behind that only the garbage collector will close, in whichever process."""
    for name in ("hevc.mp4", "gop12.mp4"):
        cycle = [stream_frames(clip(name))]
        next(cycle[0])
        cycle.append(cycle)


def _collect_and_read(clip) -> None:
    gc.collect()
    assert numbers(read_clip(clip("hevc.mp4"), [30])) == [30]
    assert numbers(read_clip(clip("gop12.mp4"), [30])) == [30]


class Reads(torch.utils.data.Dataset):
    """Checksums of what `read_clip` gives for these arguments."""

    def __init__(self, reads: list[tuple[Path, list[int], str]]):
        self.reads = reads

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, n: int) -> int:
        return checksum(read_clip(*self.reads[n]))


def checksum(frames: torch.Tensor) -> int:
    return zlib.crc32(frames.contiguous().numpy())


def collect(_worker: int) -> None:
    gc.collect()


@pytest.mark.timeout(200)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_frames_are_the_same_in_every_kind_of_worker(clip):
    """After the parent has decoded with PyAV and, in forked workers, collecting what it left."""
    reads, expected = [], []
    gc.collect()
    gc.disable()
    try:
        for name, (shown, reader, _) in MAKERS.items():
            path, n = clip(name), len(shown)
            frames = torch.stack(list(stream_frames(path)))
            for backend in ("auto", "pyav", "decord")[: 3 if reader == "decord" else 2]:
                for indices in ([n // 2], [*range(n // 3, min(n // 3 + 16, n))], [n - 1, 0]):
                    reads.append((path, indices, backend))
                    expected.append(checksum(frames[indices]))
        forget_open_files(clip)
        for method in (None, "fork", "spawn"):
            if method in (None, *multiprocessing.get_all_start_methods()):
                loader = torch.utils.data.DataLoader(
                    Reads(reads),
                    batch_size=None,
                    num_workers=2 if method else 0,
                    multiprocessing_context=method,
                    worker_init_fn=collect,
                    timeout=100 if method else 0,
                )
                wrong = [
                    read
                    for read, frames, right in zip(reads, loader, expected, strict=True)
                    if frames != right
                ]
                assert not wrong, method
    finally:
        gc.enable()


def test_import_loads_no_decoder():
    heavy = "{'av', 'decord', 'PIL', 'numpy', 'torch'}"
    code = f"import sys, lmdvid.video; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_to_float_and_back_keep_every_value():
    levels = torch.arange(256, dtype=torch.uint8).reshape(2, 1, 128, 1).expand(-1, 4, -1, 3)
    video = to_float(levels)
    assert video.shape == (2, 3, 4, 128)
    assert video.dtype == torch.float32
    assert (video.min(), video.max()) == (-1, 1)
    torch.testing.assert_close(
        video.movedim(1, -1), levels.double().div(127.5).sub(1).float(), rtol=0, atol=1e-7
    )
    assert torch.equal(to_uint8(video), levels)
    beyond = torch.tensor([-3.0, 3.0, 0.001])[:, None, None]
    assert to_uint8(beyond).flatten().tolist() == [0, 255, 128]


def test_resize_is_antialiased():
    frames = torch.from_numpy(np.stack([barcode(n, 128, 192) for n in (5, 6)]))
    small = resize(frames, (32, 48))
    assert small.shape == (2, 32, 48, 3)
    for frame, original in zip(small, frames, strict=True):
        pillow = Image.fromarray(original.numpy()).resize((48, 32), Image.Resampling.BILINEAR)
        difference = np.abs(frame.numpy().astype(int) - np.asarray(pillow).astype(int))
        assert difference.max() <= 1
    assert resize(frames, 16).shape == (2, 16, 16, 3)
    assert resize(frames, (128, 192)) is frames


def test_centre_square():
    wide = torch.arange(6).reshape(1, 6, 1).expand(4, 6, 3)
    assert centre_square(wide)[0, :, 0].tolist() == [1, 2, 3, 4]
    tall = torch.randint(0, 255, (2, 60, 40, 3), dtype=torch.uint8)
    square = centre_square(tall)
    assert square.untyped_storage().data_ptr() == tall.untyped_storage().data_ptr()  # no copy
    assert torch.equal(resize(square, 24), resize(square.contiguous(), 24))
    padded = centre_square(wide.transpose(0, 1)[None], "pad")
    assert padded.shape == (1, 6, 6, 3)
    assert centre_square(torch.zeros(5, 7, 9, 3)).shape == (5, 7, 7, 3)
    columns = centre_square(torch.arange(3).reshape(1, 3, 1).expand(6, 3, 3), "pad")[0, :, 0]
    assert columns.tolist() == [0, 0, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="how='squash'"):
        centre_square(wide, "squash")


@needs_decord
@pytest.mark.real_clips
def test_real_clips_decode_alike(shared):
    files = sorted((shared / "videos").rglob("*.mp4"))
    assert files
    for path in files:
        n = probe(path).frames
        indices = [n - 1, 0, n // 2, n // 2 + 1]
        assert torch.equal(read_clip(path, indices, "decord"), read_clip(path, indices, "pyav"))
