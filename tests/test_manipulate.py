"""Pictures moved by hand: the walk's formula, ranges, files, edits before animation, refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lmdvid import Animator, cli
from lmdvid.animate import AnimationError
from lmdvid.directions import (
    Direction,
    Directions,
    DirectionsError,
    directions_path,
    read_directions,
    write_directions,
)
from lmdvid.manipulate import (
    ManipulationError,
    Manipulator,
    contact_sheet,
    manipulate_file,
    places,
    there_and_back,
)
from lmdvid.networks.inmodegan import Generator as InMoDeGAN
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import load_network, save_network
from lmdvid.video import probe, read_clip, write_image, write_video


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Generator(32, 16, 3, 0.02).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_network(network, folder)
    return folder


@pytest.fixture
def picture():
    return torch.rand(3, 32, 32) * 2 - 1


@pytest.fixture
def files(tmp_path):
    frames = (torch.rand(5, 40, 48, 3) * 255).to(torch.uint8)
    write_video(tmp_path / "clip.mp4", frames, 10)
    write_image(tmp_path / "face.png", frames[0])
    return tmp_path


def known(*reaches: tuple[float, float]) -> Directions:
    middles = [Direction(f"name {i}", [a, 0, 0, 1.0, 2, 2, b]) for i, (a, b) in enumerate(reaches)]
    return Directions("4 clips", middles)


def test_a_picture_walks_by_the_formula(network, picture):
    """w_0 + sum_i (a_i + delta_i) d_i, computed without the navigator."""
    deltas = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, -0.8]])
    code, alpha, features = network.encoder(picture[None])
    basis = torch.linalg.qr(network.navigator.weight)
    basis = (basis.Q * basis.R.diagonal().sign()).T
    for start, own in (("source", alpha[0]), ("reference", torch.zeros(3))):
        made = Manipulator(network).move(picture, deltas, start)
        for delta, frame in zip(deltas, made, strict=True):
            w = code[0] + sum((own[i] + delta[i]) * basis[i] for i in range(3))
            expected = network.synthesis(w[None], features)[0][0]
            torch.testing.assert_close(frame, expected, atol=1e-5, rtol=0)
    # Several pictures at once, each with its own delta, and in more than one batch.
    many = torch.stack([picture, picture.flip(-1)] * 10)
    each = Manipulator(network).move(many, deltas.repeat(10, 1))
    one = torch.cat([Manipulator(network).move(many[i], deltas[i % 2][None]) for i in range(20)])
    torch.testing.assert_close(each, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_a_source_is_edited_before_it_moves(network, picture, mode):
    driving = torch.rand(4, 3, 32, 32) * 2 - 1
    animator = Animator(network, dtype=torch.float32)
    made = animator.animate(picture, driving, mode, edit={0: 0.7, 2: -1.1})
    source = network.encode_source(picture[None])
    codes = network.encode_motion(driving)
    if mode == "relative":
        codes = source.codes + codes - codes[:1]
    delta = torch.tensor([0.7, 0.0, -1.1])
    expected = network.synthesis(
        network.navigator(source.appearance.expand(4, -1), codes + delta),
        tuple(f.expand(4, -1, -1, -1) for f in source.features),
    )[0]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    if mode == "relative":  # a still driver leaves the edit alone
        still = animator.animate(picture, driving[:1].expand(2, -1, -1, -1), edit={1: 2.0})
        alone = Manipulator(network).move(picture, torch.tensor([[0.0, 2.0, 0.0]]))
        torch.testing.assert_close(still[1], alone[0], atol=1e-5, rtol=0)


def test_edits_that_make_no_sense_are_refused(network, picture):
    animator = Animator(network)
    for edit, message in (({3: 1.0}, "no direction 3"), ({0: float("nan")}, "finite")):
        with pytest.raises(AnimationError, match=message):
            animator.animate(picture, picture[None], edit=edit)

    class Rigid(nn.Conv2d):
        size = 32
        modes = ("relative",)
        directions = 0

    with pytest.raises(AnimationError, match="no motion directions"):
        Animator(Rigid(3, 3, 1)).stream(picture, [], edit={0: 1.0})


def test_ranges_come_from_the_data_or_are_three(network):
    assert Manipulator(network).reach(1) == (-3.0, 3.0)
    measured = Manipulator(network, known((-1.0, 2.0), (0.5, 4.0), (1.0, 1.5)))
    assert measured.reach(1) == (-0.5, 3.0)
    assert measured.name(2) == "name 2"
    np.testing.assert_allclose(places((-1.0, 3.0), 5), [-1, -0.5, 0, 1.5, 3])
    round_trip = there_and_back((-1.0, 3.0), 40)
    assert (max(round_trip), min(round_trip), round_trip[0], round_trip[20]) == pytest.approx(
        (3, -1, 0, 0), abs=1e-9
    )
    with pytest.raises(ManipulationError, match="odd"):
        places((-1, 1), 4)


def test_the_sheet_shows_each_direction_in_a_row(network, picture):
    manipulator = Manipulator(network, known((-1.0, 2.0), (0.5, 4.0), (1.0, 1.5)))
    sheet = contact_sheet(manipulator, picture, [0, 2], columns=3)
    cell = 128 + 18  # enlarged four times, and a line of text
    assert sheet.shape == (2 * cell, 4 * 128, 3)
    middle = [sheet[row * cell : row * cell + 128, 256:384] for row in (0, 1)]
    assert torch.equal(*middle)  # delta 0 in both
    assert not torch.equal(sheet[:128, 128:256], sheet[:128, 256:384])
    assert (sheet[:cell, :128] < 128).any()  # the name is written


def test_directions_are_kept_beside_the_weights(network, tmp_path):
    found = known((-1.0, 2.0), (0.5, 4.0), (1.0, 1.5))
    save_network(network, tmp_path / "net", torch.bfloat16)
    loaded = load_network(tmp_path / "net")
    assert read_directions(tmp_path / "net", loaded.navigator) is None
    path = directions_path(tmp_path / "net")
    assert path == tmp_path / "net" / "directions.json"
    write_directions(path, network.navigator, found)  # before rounding
    again = read_directions(tmp_path / "net", loaded.navigator)
    assert again is not None
    assert again[1] == Direction("name 1", [0.5, 0.0, 0.0, 1.0, 2.0, 2.0, 4.0])
    other = Generator(32, 16, 3, 0.02)
    with pytest.raises(DirectionsError, match="measured on other weights"):
        read_directions(tmp_path / "net", other.navigator)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"percentiles": [1, 2]}))
    with pytest.raises(DirectionsError, match="damaged"):
        read_directions(tmp_path / "net", loaded.navigator)
    (tmp_path / "last.ckpt").touch()
    assert directions_path(tmp_path / "last.ckpt") == tmp_path / "last.directions.json"


def test_a_sweep_writes_a_sheet_and_a_video_of_each(checkpoint, files):
    paths = manipulate_file(
        files / "face.png", checkpoint, files / "all", directions=[0, 2], progress=False
    )
    assert [path.name for path in paths] == ["sheet.png", "direction_00.mp4", "direction_02.mp4"]
    assert probe(paths[1]).frames == 50
    (grid,) = manipulate_file(
        files / "face.png", checkpoint, files / "all.mp4", reach=(-1, 1), progress=False
    )
    info = probe(grid)
    assert (info.width, info.height) == (256, 2 * (128 + 52))
    frames = read_clip(grid, [0])
    assert (frames[0, 200:328, 150:] > 250).all()  # no fourth direction


def test_a_picture_and_every_frame_of_a_video_are_edited(checkpoint, files, network):
    face, clip = files / "face.png", files / "clip.mp4"
    (path,) = manipulate_file(face, checkpoint, files / "edited.png", {1: 2.0}, side_by_side=True)
    with Image.open(path) as shown:
        assert shown.size == (64, 32)
    (path,) = manipulate_file(face, checkpoint, files / "edited.mp4", {1: 2.0}, progress=False)
    assert probe(path).frames == 50
    (path,) = manipulate_file(clip, checkpoint, files / "moved.mp4", {1: 2.0}, progress=False)
    info = probe(path)
    assert (info.frames, info.fps, info.width) == (5, 10, 32)


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        ("face.png", "x.mov", {}, "choose .png"),
        ("face.png", "x", {"edit": {0: 1.0}}, "one file"),
        ("clip.mp4", "x.png", {"edit": {0: 1.0}}, "is a video"),
        ("face.png", "x.png", {"edit": {9: 1.0}}, "no direction 9"),
        ("face.png", "x.png", {"edit": {0: 1.0}, "directions": [0]}, "leave directions"),
        ("face.png", "x.png", {"edit": {0: 1.0}, "columns": 5}, "range and columns out"),
        ("face.png", "x.mp4", {"columns": 5}, r"a sweep in a \.mp4 has no columns"),
        ("face.png", "x.png", {"directions": [7]}, "no direction 7"),
        ("face.png", "x.png", {"directions": []}, "no direction is given"),
        ("face.png", "x.png", {"reach": (1.0, 2.0)}, "around 0"),
        ("face.png", "x.png", {"side_by_side": True}, "leave side-by-side"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    checkpoint, files, source, output, options, message
):
    with pytest.raises(ManipulationError, match=message):
        manipulate_file(files / source, checkpoint, files / output, progress=False, **options)
    assert not (files / output).exists()


def test_networks_without_directions_for_pictures_are_refused():
    with pytest.raises(ManipulationError, match=r"inmodegan.*lmdvid generate --control"):
        Manipulator(InMoDeGAN(32, 16, 4, 0.02))


def test_the_command(checkpoint, files, capsys):
    face, out = str(files / "face.png"), files / "edited.png"
    line = ["manipulate", "--checkpoint", str(checkpoint), "--source", face, "--output", str(out)]
    assert cli.main([*line, "--set", "1=2", "--set", "0=-0.5"]) == 0
    assert out.is_file()
    assert cli.main([*line, "--set", "1=2", "--set", "1=3"]) == 2
    assert "set twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*line, "--set", "mouth"])
    assert "such as 3=1.5; given mouth" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*line, "--range", "big"])
    assert "such as -2..2; given big" in capsys.readouterr().err
    clip = str(files / "clip.mp4")
    moved = ["animate", "--checkpoint", str(checkpoint), "--source", face, "--driving", clip]
    assert cli.main([*moved, "--set", "1=2", "--output", str(files / "moved.mp4")]) == 0
    assert cli.main([*moved, "--set", "5=2", "--output", str(files / "moved.mp4")]) == 1
    assert "no direction 5" in capsys.readouterr().err
