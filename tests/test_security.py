"""Files of strangers can at worst be refused: no code runs, no memory is taken, nothing escapes."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lmdvid import cli
from lmdvid.generate import GenerationError, Plan, sample_codes
from lmdvid.metrics.detections import DetectionsError, load_detections
from lmdvid.networks import inmodegan
from lmdvid.networks.lia import Generator
from lmdvid.npz import load_arrays
from lmdvid.pretrained import WeightsError, load_network, save_network
from lmdvid.video import VideoReadError, probe, read_clip

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
    def chunk(kind: bytes, data: bytes) -> bytes:
        import zlib

        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x\x9c") + chunk(b"IEND", b"")
    )
    Path("huge.png").write_bytes(content)
    with pytest.raises((Image.DecompressionBombError, VideoReadError)):
        read_clip("huge.png", [0])


def test_weights_with_a_giant_header_or_configuration(here, little_memory):
    save_network(Generator(32, 16, 3, 0.02), "fine")
    weights, config = Path("fine/model.safetensors"), Path("fine/config.json")
    description = json.loads(config.read_text())
    config.write_text(json.dumps(description | {"config": description["config"] | {"dim": 10**6}}))
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
