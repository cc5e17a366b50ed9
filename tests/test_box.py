"""Networks that are installed with the program: by name, in the wheel, with pictures to try."""

import json
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from data_modules import puppetry
from lmdvid import Animator, cli, pretrained
from lmdvid.directions import (
    Direction,
    Directions,
    directions_path,
    read_directions,
    write_directions,
)
from lmdvid.manipulate import Manipulator
from lmdvid.networks import WeightsError
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import BOX, convert, in_the_box, load_network, save_network
from lmdvid.video import probe, read_clip, resize, write_image

ROOT = Path(__file__).resolve().parent.parent
packed = pytest.mark.skipif(
    "puppets" not in in_the_box(), reason="no network is packed: python docs/box.py packs one"
)


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A box with a small network in it, under the name `tiny`."""
    torch.manual_seed(0)
    monkeypatch.setattr(pretrained, "BOX", tmp_path / "box")
    network = Generator(32, 16, 3, 0.02).eval().requires_grad_(False)
    save_network(network, tmp_path / "box" / "tiny", torch.bfloat16)
    known = Directions(
        "4 clips", [Direction(f"turn {i}", [-1, -1, 0, 0, 0, 2, 2]) for i in range(3)]
    )
    write_directions(directions_path("tiny"), network.navigator, known)
    return network


def test_a_network_in_the_box_is_loaded_by_its_name(box, tmp_path, monkeypatch):
    assert pretrained.in_the_box() == ["tiny"]
    loaded = load_network("tiny")
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    for name, value in box.state_dict().items():
        expected = value.to(torch.bfloat16).float()
        assert torch.equal(loaded.state_dict()[name], expected), name
    assert Animator.from_pretrained("tiny").size == 32
    assert Manipulator.from_pretrained("tiny").name(1) == "turn 1"
    with safe_open(tmp_path / "box" / "tiny" / "model.safetensors", "pt") as file:
        assert file.get_tensor("navigator.weight").dtype == torch.bfloat16
    # The name wins over a folder of that name, which has to be written as a path.
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert load_network("tiny").size == 32  # type: ignore[union-attr]
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load_network("./tiny")
    with pytest.raises(WeightsError, match="one in the box: tiny"):
        load_network("large")


def test_a_first_frame_does_not_wait_for_torchs_compiler(box, tmp_path):
    """Importing it takes a second, and so does any arithmetic on the device `meta`."""
    save_network(box, tmp_path / "tiny")
    write_image(tmp_path / "face.png", torch.zeros(32, 32, 3, dtype=torch.uint8))
    line = ["animate", "--source", "face.png", "--driving", "face.png", "--checkpoint", "./tiny"]
    code = (
        "import sys; from lmdvid import cli; "
        f"assert not cli.main({[*line, '--output', 'made.png', '--device', 'cpu']}); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "made.png").exists()


def test_a_checkpoint_is_converted_to_half_the_size(box, tmp_path):
    state = {f"generator_ema.network.{k}": v for k, v in box.state_dict().items()}
    generator = {"network": "lmdvid.networks.lia.Generator", "config": box.config}
    torch.save(
        {"lmdvid_generator": generator, "state_dict": state, "global_step": 7}, tmp_path / "a.ckpt"
    )
    convert(tmp_path / "a.ckpt", tmp_path / "full")
    assert cli.main(
        ["convert", str(tmp_path / "a.ckpt"), str(tmp_path / "half"), "--dtype", "bfloat16"]
    ) in (0, None)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert 1.8 < sizes[0] / sizes[1] < 2.1


def test_puppets_to_try_with_are_drawn(tmp_path, capsys):
    line = ["puppets", str(tmp_path), "--size", "64", "--stills", "2", "--clips", "1", "--truth"]
    assert cli.main([*line, "--seconds", "0.2"]) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["clip_0.mp4", "still_0.png", "still_0_clip_0.mp4", "still_1.png",
                     "still_1_clip_0.mp4"]  # fmt: skip
    assert probe(tmp_path / "clip_0.mp4").frames == 5
    with Image.open(tmp_path / "still_0.png") as picture:
        still = np.array(picture)
    who = puppetry.identity(900_000, "head")
    np.testing.assert_array_equal(
        still, puppetry.render(who, puppetry.neutral_pose("head"), 64, "head")
    )
    poses = puppetry.pose_path(900_002, 5, "head")
    drawn = puppetry.render(who, poses, 64, "head").astype(int)
    seen = read_clip(tmp_path / "still_0_clip_0.mp4", range(5)).numpy()
    assert np.abs(seen - drawn).mean() < 8  # colours at half the resolution
    with pytest.raises(SystemExit):
        cli.main([*line, "--size", "16"])
    assert "must be 32 to 512; given 16" in capsys.readouterr().err


def test_the_wheel_holds_the_box_and_the_data_modules(tmp_path):
    """Built from a copy with a stand-in in the box, so that it does not depend on what is there."""
    pytest.importorskip("hatchling", reason="pip install hatchling, which the extra `dev` names")
    tree = tmp_path / "tree"
    for name in ("lmdvid", "data_modules"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    save_network(Generator(32, 16, 3, 0.02), tree / "lmdvid" / "weights" / "standin")
    for name in ("experiment.yaml", "directions.json", "card.json"):
        (tree / "lmdvid" / "weights" / "standin" / name).write_text("{}")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    folder = "lmdvid/weights/standin/"
    wanted = {"model.safetensors", "config.json", "experiment.yaml", "directions.json", "card.json"}
    assert {folder + name for name in wanted} <= inside
    assert {f"lmdvid/weights/{n}/config.json" for n in in_the_box()} <= inside
    modules = {str(p.relative_to(ROOT)) for p in ROOT.glob("data_modules/*.py")}
    assert modules <= inside
    assert wheel.stat().st_size < 9_000_000


@packed
def test_the_packed_network_is_what_its_card_says():
    folder = BOX / "puppets"
    card = json.loads((folder / "card.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) == card["weights"]["bytes"] <= 8_000_000
    assert sha256(weights).hexdigest() == card["weights"]["sha256"]
    network = load_network("puppets")
    assert sum(p.numel() for p in network.parameters()) == card["parameters"]
    known = read_directions("puppets", network.navigator)  # type: ignore[arg-type]
    assert known is not None
    assert all(direction.name for direction in known.directions)
    assert "data_modules.puppets.Puppets" in (folder / "experiment.yaml").read_text()


@packed
def test_the_packed_network_moves_a_stranger_with_anothers_motion(tmp_path):
    """On puppets that it has never seen, better than standing still by 3 dB and more."""
    cli.main(
        ["puppets", str(tmp_path), "--stills", "2", "--clips", "1", "--seconds", "1", "--truth"]
    )
    line = ["animate", "--checkpoint", "puppets", "--driving", str(tmp_path / "clip_0.mp4")]
    line += ["--mode", "absolute", "--dtype", "float32"]
    gains = []
    for i in range(2):
        still, out = tmp_path / f"still_{i}.png", tmp_path / f"{i}.mp4"
        assert cli.main([*line, "--source", str(still), "--output", str(out)]) == 0
        size = probe(out).width
        truth = resize(read_clip(tmp_path / f"still_{i}_clip_0.mp4", range(25)), size)
        truth = truth.numpy().astype(float)
        made = read_clip(out, range(25)).numpy().astype(float)
        with Image.open(still) as picture:
            source = np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
        errors = [((frames - truth) ** 2).mean() for frames in (made, source[None])]
        gains.append(10 * np.log10(errors[1] / errors[0]))
    assert np.mean(gains) > 3
