"""Files of strangers can at worst be refused: no code runs, no memory is taken, nothing escapes."""

import io
import json
import os
import pickle
import resource
import shutil
import socket
import struct
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lmdvid import cli
from lmdvid.directions import (
    Direction,
    Directions,
    DirectionsError,
    directions_path,
    read_directions,
    write_directions,
)
from lmdvid.generate import GenerationError, Plan, sample_codes
from lmdvid.interpret import InterpretationError
from lmdvid.interpret.flow import read_flow
from lmdvid.metrics.detections import DetectionsError, load_detections
from lmdvid.networks import inmodegan
from lmdvid.networks.lia import Generator
from lmdvid.npz import load_arrays
from lmdvid.pretrained import WeightsError, convert, load_network, save_network
from lmdvid.video import (
    VideoReadError,
    VideoWriteError,
    VideoWriter,
    probe,
    read_clip,
    scan_clips,
    stream_frames,
    write_video,
)

MARK = "owned"


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path(MARK).exists(), "code of the file was run"


@pytest.fixture
def little_memory():
    """Leave the process 600 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + 600_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def pickled(kind: str) -> bytes:
    buffer = io.BytesIO()
    content = {"state_dict": {"w": torch.ones(2)}, "loops": {}, "optimizer_states": [Evil()]}
    if kind == "plain":
        return pickle.dumps(content, protocol=2)
    torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["plain", "legacy", "zip"])
def test_checkpoints_run_no_code(here, capsys, kind):
    Path("evil.ckpt").write_bytes(pickled(kind))
    assert Path("evil.ckpt").stat().st_size > 100
    pickle.loads(pickle.dumps(Evil()))  # it would, elsewhere
    os.rmdir(MARK)
    for line in (
        "animate --source a.png --driving b.mp4 --checkpoint evil.ckpt --output c.mp4",
        "generate --checkpoint evil.ckpt --output c.mp4",
        "convert evil.ckpt out",
    ):
        assert cli.main(line.split()) == 1, line
        assert "evil.ckpt" in capsys.readouterr().err


def test_checkpoints_to_resume_from_run_no_code(here, capsys):
    Path("evil.ckpt").write_bytes(pickled("zip"))
    root = Path(__file__).resolve().parent.parent
    experiment = root / "experiments/lia_puppets.yaml"
    assert cli.main(["fit", "--config", str(experiment), "--ckpt_path", "evil.ckpt"]) == 2
    assert "evil.ckpt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir"])
def test_configurations_run_no_code(here, capsys, tag):
    Path("evil.yaml").write_text(f"seed_everything: !!{tag} [{MARK}]\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", "evil.yaml"])
    assert stop.value.code == 2
    assert "evil.yaml" in capsys.readouterr().err
    assert cli.main(["sweep", "evil.yaml"]) == 2
    assert "evil.yaml is no valid YAML" in capsys.readouterr().err


def test_a_configuration_that_doubles_itself_is_refused_or_small(here, capsys):
    """Of aliases of aliases a short text makes a long one."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 6)]
    Path("evil.yaml").write_text("\n".join(lines) + "\n")
    assert cli.main(["sweep", "evil.yaml"]) == 2
    assert "evil.yaml has no method" in capsys.readouterr().err


# Bombs


def bomb(path: Path, shape: tuple[int, ...], promised: bool = False) -> Path:
    """Zeros that take thousandths of their size; or, `promised`, the header alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        described = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        with archive.open("alpha.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(0 if promised else int(np.prod(shape)) // 1_000_000):
                member.write(bytes(8_000_000))
    return path


@pytest.mark.parametrize("promised", [True, False])
def test_arrays_are_weighed_before_they_are_unpacked(here, little_memory, promised):
    path = bomb(here / "bomb.npz", (100, 1_000_000), promised)  # 800 MB
    assert path.stat().st_size < 2_000_000
    with pytest.raises(ValueError, match="'alpha' takes 800000000 bytes, more than is expected"):
        load_arrays(path, 1_000_000)
    network = inmodegan.Generator(
        size=32, dim=16, directions=16, width=0.02, appearance_noise=8, motion_noise=8
    )
    with pytest.raises(GenerationError, match="'alpha' takes 800000000 bytes"):
        sample_codes(network, Plan(frames=4, alpha=str(path)), 0)
    huge = bomb(here / "huge.npz", (10**6, 10**6), promised=True)
    with pytest.raises(DetectionsError, match="'alpha' takes 8000000000000 bytes"):
        load_detections(huge)


def test_bytes_behind_an_array_are_not_unpacked(here):
    with zipfile.ZipFile("long.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(4))
        archive.writestr("alpha.npy", buffer.getvalue() + bytes(50_000_000))
    with pytest.raises(ValueError, match="more than is expected"):
        load_arrays("long.npz", 1_000_000)


def test_arrays_of_objects_run_no_code(here):
    np.savez("evil.npz", alpha=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        load_arrays("evil.npz", 10**6)
    with pytest.raises(DetectionsError, match="Python objects"):
        load_detections("evil.npz")
    np.savez("fine.npz", alpha=np.arange(3.0), beta=np.ones((2, 2), np.float32))
    assert load_arrays("fine.npz", 100, {"alpha", "nosuch"})["alpha"].tolist() == [0, 1, 2]
    assert {*load_arrays("fine.npz", 100)} == {"alpha", "beta"}


def test_tables_of_detections_do_not_name_frames_by_the_billion(here):
    Path("d.csv").write_text("clip,frame,x0\na,99999999999,1\n")
    with pytest.raises(DetectionsError, match="names frame 99999999999"):
        load_detections("d.csv")


def test_a_clip_array_that_promises_terabytes(here, little_memory):
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 3)}
    np.lib.format.write_array_header_1_0(header, described)
    Path("huge.npy").write_bytes(header.getvalue() + bytes(1000))
    with pytest.raises(VideoReadError, match=r"no whole \.npy file"):
        probe("huge.npy")


def test_a_picture_that_promises_gigapixels(here, little_memory):
    png("huge.png", 60_000, 60_000, (b"IDAT", b"x\x9c"))
    with pytest.raises((Image.DecompressionBombError, VideoReadError)):
        read_clip("huge.png", [0])


def png(path: str, width: int, height: int, *chunks: tuple[bytes, bytes]) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", size), *chunks, (b"IEND", b"")]
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_pictures_whose_pixels_or_texts_unpack_to_hundreds_of_megabytes(here, little_memory):
    png("large.png", 13_000, 11_000, (b"IDAT", b"x\x9c"))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(VideoReadError) as refused:
        read_clip("large.png", [0])
    assert "13000x11000 are more than the 134217728 pixels read" in str(refused.value)
    text = b"k\0\0" + zlib.compress(bytes(60_000_000), 9)
    png("text.png", 4, 4, (b"zTXt", text), (b"IDAT", zlib.compress(bytes(52))))
    with pytest.raises(VideoReadError, match="Decompressed data too large"):
        read_clip("text.png", [0])


def test_a_gif_whose_canvas_takes_a_gigabyte(here, little_memory):
    size, frame = struct.pack("<HH", 16384, 16000), struct.pack("<HHHH", 0, 0, 1, 1)
    content = b"GIF89a" + size + b"\x80\0\0" + bytes(6)
    content += (b"\x2c" + frame + b"\0\x02\x02\x44\x01\x00") * 3 + b"\x3b"
    Path("large.gif").write_bytes(content)
    with pytest.raises(VideoReadError):
        probe("large.gif")
    with pytest.raises(VideoReadError):
        next(stream_frames("large.gif"))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "ffconcat version 1.0\nfile {folder}/secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{folder}/secret.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile http://127.0.0.1:{port}/\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    ],
)
def test_a_video_that_is_a_list_opens_no_other_file_and_no_connection(here, text):
    write_video("secret.mp4", torch.zeros(2, 32, 32, 3, dtype=torch.uint8), 25)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.1)
        Path("list.mp4").write_text(text.format(folder=here, port=server.getsockname()[1]))
        with pytest.raises(VideoReadError):
            probe("list.mp4")
        with pytest.raises(VideoReadError):
            read_clip("list.mp4", [0])
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_video_that_counts_billions_of_frames(here):
    """Decord takes memory for all of them, and takes the process down where there is none."""
    write_video("fine.mp4", torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 25)
    content = bytearray(Path("fine.mp4").read_bytes())
    place = content.index(b"stts") + 12
    content[place : place + 4] = struct.pack(">I", 0xFFFFFFF0)
    Path("many.mp4").write_bytes(content)
    assert probe("many.mp4").frames == 4
    assert read_clip("many.mp4", range(4)).shape == (4, 32, 32, 3)


def test_a_video_that_shows_a_frame_for_days(here):
    write_video("fine.mp4", torch.zeros(2, 32, 32, 3, dtype=torch.uint8), 25)
    content = bytearray(Path("fine.mp4").read_bytes())
    place = content.index(b"stts") + 16
    content[place : place + 4] = struct.pack(">I", 0x7FFFFFFF)
    Path("slow.mp4").write_bytes(content)
    with pytest.raises(VideoWriteError, match="frames per second"):
        VideoWriter("made.mp4", probe("slow.mp4").fps)


def test_a_table_of_clips_that_promises_billions_of_frames(here):
    for name in ("a#1", "b#1"):
        write_video(f"clips/{name}.mp4", torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 25)
    table = scan_clips("clips", sorted(Path("clips").glob("*.mp4"))).manifest
    lying = table.read_text().replace(",4,25,", ",4000000000000,25,")
    assert lying.count("4000000000000") == 2
    table.write_text(lying)
    scan = scan_clips("clips", sorted(Path("clips").glob("*.mp4")))
    assert [clip.frames for clip in scan.clips] == [4, 4]


def checkpoint(path: str, more: dict, **changed) -> None:
    """A training checkpoint, with other entries in its state or other arguments."""
    network = Generator(32, 16, 3, 0.02)
    kind, config = "lmdvid.networks.lia.Generator", dict(network.config) | changed
    state = {f"generator_ema.network.{k}": v for k, v in network.state_dict().items()} | more
    torch.save({"lmdvid_generator": {"network": kind, "config": config}, "state_dict": state}, path)


def test_tensors_that_promise_more_than_the_file_holds(here, little_memory):
    name = "generator_ema.network.more"
    checkpoint("fine.ckpt", {})
    load_network("fine.ckpt")
    for tensor in (
        torch.zeros(1).expand(10**12),
        torch.empty(10**12, device="meta"),
        torch.zeros(10**6, 10**6, layout=torch.sparse_coo),
    ):
        checkpoint("evil.ckpt", {name: tensor}, dim=20_000)  # 1.6 GB
        with pytest.raises(WeightsError, match="promise more numbers than the file holds"):
            load_network("evil.ckpt")
        torch.save({name: tensor}, "evil.pt")
        with pytest.raises(WeightsError, match="promise more numbers"):
            convert("evil.pt", "out")
    one = torch.zeros(10**6)
    views = {f"{name}{i}": one.view(1000, 1000) for i in range(500)}  # each is whole, all are one
    checkpoint("evil.ckpt", views, dim=20_000)
    with pytest.raises(WeightsError, match="does not fit"):
        load_network("evil.ckpt")
    loop = {"w": torch.ones(1)}
    loop["self"] = loop
    torch.save(loop, "evil.pt")
    with pytest.raises(WeightsError, match="contains itself"):
        convert("evil.pt", "out")


def test_compressed_checkpoints_are_not_unpacked(here, little_memory):
    checkpoint("fine.ckpt", {})
    with zipfile.ZipFile("fine.ckpt") as fine, zipfile.ZipFile("evil.ckpt", "w", 8) as evil:
        for entry in fine.infolist():
            with evil.open(entry.filename, "w", force_zip64=True) as member:
                member.write(fine.read(entry))
                for _ in range(80 if entry.filename.endswith("data/0") else 0):  # 800 MB
                    member.write(bytes(10_000_000))
    assert Path("evil.ckpt").stat().st_size < 2_000_000
    with pytest.raises(WeightsError, match="it is compressed"):
        load_network("evil.ckpt")


@pytest.mark.parametrize(
    "changed",
    [
        {"lmdvid_generator": 3},
        {"lmdvid_generator": {"network": "lmdvid.networks.lia.Generator"}},
        {"state_dict": [1]},
        {"state_dict": {3: 3}},
    ],
)
def test_checkpoints_of_another_form(here, changed):
    checkpoint("evil.ckpt", {})
    torch.save(torch.load("evil.ckpt") | changed, "evil.ckpt")
    with pytest.raises(WeightsError, match=r"evil\.ckpt (is damaged|does not fit)"):
        load_network("evil.ckpt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("motion_layers", 10**9),
        ("motion_layers", 2000),  # fewer than there are weights, more than there are tensors
        ("mapping_layers", 10**9),
        ("dim", 10**9),
        ("dim", -1),
        ("dim", 0),
        ("width", 1e9),
        ("directions", [16] * 3),
        ("motion_lr_mul", 0),
    ],
)
def test_configurations_that_ask_for_layers_or_numbers_without_end(here, name, value):
    options = {"size": 32, "dim": 16, "directions": 16, "width": 0.02}
    network = inmodegan.Generator(**options, appearance_noise=8, motion_noise=8)
    save_network(network, "evil")
    description = json.loads(Path("evil/config.json").read_text())
    description["config"][name] = value
    Path("evil/config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="evil does not fit"):
        load_network("evil")


@pytest.mark.parametrize(
    "text", ["[1]", "null", "[" * 100_000, '{"network": ' + "9" * 5000 + "}", "\ud800"]
)
def test_configurations_that_are_none(here, text):
    save_network(Generator(32, 16, 3, 0.02), "evil")
    Path("evil/config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(WeightsError, match="evil is damaged"):
        load_network("evil")


@pytest.mark.parametrize(
    "changed",
    [
        {"basis": [[float("nan")] * 4] * 3},
        {"basis": [[10**30] * 4] * 3},
        {"basis": {}},
        {"directions": [{"name": "x", "percentiles": [float("nan")] * 7}] * 3},
        {"directions": [{"name": "x", "percentiles": [10**400] * 7}] * 3},
        "[" * 100_000,
    ],
)
def test_directions_that_are_no_numbers(here, changed):
    network = Generator(32, 16, 3, 0.02)
    save_network(network, "evil")
    path = directions_path("evil")
    found = [Direction(f"d{i}", [*range(7)]) for i in range(3)]
    write_directions(path, network.navigator, Directions("nothing", found))
    read_directions("evil", network.navigator)
    text = (
        json.dumps(json.loads(path.read_text()) | changed) if changed != "[" * 100_000 else changed
    )
    path.write_text(text)
    with pytest.raises(DirectionsError, match=r"damaged|other weights"):
        read_directions("evil", network.navigator)


def test_flow_that_unpacks_to_more_than_its_frames_have(here):
    bomb(here / "000.npz", (2, 1_000_000))
    with zipfile.ZipFile("000.npz") as archive, zipfile.ZipFile("flow.npz", "w", 8) as flow:
        for name in ("positive", "negative"):
            with archive.open("alpha.npy") as source, flow.open(f"{name}.npy", "w") as member:
                shutil.copyfileobj(source, member)
    with pytest.raises(InterpretationError, match="more than is expected"):
        read_flow(Path("flow.npz"), (2, 4, 8, 8, 3))


@pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")
def test_a_study_that_is_no_database(here, capsys):
    Path("out").mkdir()
    Path("out/study.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)
    root = Path(__file__).resolve().parent.parent
    sweep = sorted((root / "experiments/sweeps").glob("*.yaml"))[0]
    assert cli.main(["sweep", str(sweep), "--output", "out", "--trials", "1"]) != 0
    said = capsys.readouterr().err
    assert "out/study.db cannot be used as a study" in said
    assert "file is not a database" in said


def test_weights_with_a_giant_header_or_configuration(here, little_memory):
    save_network(Generator(32, 16, 3, 0.02), "fine")
    weights, config = Path("fine/model.safetensors"), Path("fine/config.json")
    description = json.loads(config.read_text())
    config.write_text(json.dumps(description | {"config": description["config"] | {"dim": 10**6}}))
    with pytest.raises(
        WeightsError, match=r"its configuration has a number above \d+, all weights"
    ):
        load_network("fine")
    config.write_text(json.dumps(description | {"config": description["config"] | {"dim": 9000}}))
    with pytest.raises(WeightsError, match=r"its configuration asks for .* numbers, and the file"):
        load_network("fine")
    config.write_text(json.dumps(description))
    load_network("fine")
    weights.write_bytes(struct.pack("<Q", 1 << 40) + weights.read_bytes()[8:])
    with pytest.raises(WeightsError, match="fine is damaged"):
        load_network("fine")
    save_file({"w": torch.ones(1)}, weights)
    with pytest.raises(WeightsError, match="fine does not fit"):
        load_network("fine")
