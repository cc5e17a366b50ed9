"""Videos from noise: what an index means, plans, files, the command."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmdvid import cli
from lmdvid.generate import (
    APPEARANCE,
    MOTION,
    GenerationError,
    Plan,
    generate,
    generate_files,
    noise,
    sample_codes,
    stack_codes,
    trajectory,
)
from lmdvid.networks import g3an, imaginator, inmodegan, lia
from lmdvid.pretrained import DeviceError, load_network, save_network
from lmdvid.video import probe, read_clip, to_float, to_uint8, write_image

NETWORK = {
    "size": 32,
    "dim": 16,
    "directions": 16,
    "width": 0.02,
    "appearance_noise": 8,
    "motion_noise": 5,
    "mapping_layers": 2,
    "motion_layers": 2,
    "motion_init": 3.0,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return inmodegan.Generator(**NETWORK).eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    save_network(network, folder)
    return folder


def test_noise_belongs_to_an_index_alone():
    one = noise(3, MOTION, 7, [4, 5])
    assert one.dtype == torch.float32
    assert torch.equal(one, noise(3, MOTION, 7, [4, 5]))
    assert torch.equal(one, noise(3, MOTION, 7, [9, 5])[:4])
    for other in [(4, MOTION, 7), (3, APPEARANCE, 7), (3, MOTION, 8)]:
        assert not torch.equal(one, noise(*other, [4, 5]))
    many = noise(0, APPEARANCE, 0, [20000])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_a_video_is_the_same_in_every_batch(network):
    plan = Plan(frames=6, seed=2)
    together = generate(network, plan, range(5))
    apart = torch.cat([generate(network, plan, [i]) for i in range(5)])
    backwards = generate(network, plan, [4, 3, 2, 1, 0]).flip(0)
    for other in (apart, backwards):
        assert (to_uint8(together).int() - to_uint8(other).int()).abs().max() <= 1
    codes = [sample_codes(network, plan, i) for i in range(2)]
    assert torch.equal(codes[1].alpha, sample_codes(network, plan, 1).alpha)
    assert not torch.equal(codes[0].appearance, codes[1].appearance)


def test_longer_videos_begin_like_shorter_ones(network):
    short, long = (generate(network, Plan(frames=frames), [0]) for frames in (5, 40))
    assert long.shape == (1, 40, 3, 32, 32)
    torch.testing.assert_close(long[:, :5], short, atol=1e-4, rtol=1e-4)


def test_fixed_appearance_and_fixed_motion(network):
    free = [sample_codes(network, Plan(), i) for i in range(3)]
    for index in range(3):
        looks = sample_codes(network, Plan(fix="appearance"), index)
        assert torch.equal(looks.appearance, free[0].appearance)
        moves = sample_codes(network, Plan(fix="motion"), index)
        assert torch.equal(moves.appearance, free[index].appearance)
    assert not torch.equal(looks.alpha, free[0].alpha)


def test_interpolation_goes_from_one_appearance_to_the_next(network):
    plan = Plan(interpolate=5, frames=4)
    codes = [sample_codes(network, plan, i) for i in range(5)]
    ends = [sample_codes(network, Plan(fix="motion", frames=4), i) for i in (0, 1)]
    for end, code in zip(ends, (codes[0], codes[4]), strict=True):
        torch.testing.assert_close(code.appearance, end.appearance)
    z = [noise(0, APPEARANCE, i, [1, 8]) for i in (0, 1)]
    middle = network.sample_codes((z[0] + z[1]) / 2, torch.zeros(1, 1, 5))
    torch.testing.assert_close(codes[2].appearance, middle.appearance)
    with pytest.raises(GenerationError, match="no video 5"):
        sample_codes(network, plan, 5)


def test_activated_directions_keep_their_magnitudes(network):
    free = sample_codes(network, Plan(), 1)
    codes = sample_codes(network, Plan(activate=[2, 7]), 1)
    assert torch.equal(codes.alpha[..., [2, 7]], free.alpha[..., [2, 7]])
    others = [i for i in range(16) if i not in (2, 7)]
    assert not codes.alpha[..., others].any()


def test_control_walks_where_it_is_told(network):
    plan = Plan(frames=9, control=["1=linear:0..4", "3=sine:2,8", "5=constant:1.5"])
    codes = sample_codes(network, plan, 0)
    w0 = sample_codes(network, Plan(frames=9), 0).appearance
    places = network.navigator.magnitudes(network.latents(codes)[0] - w0)
    expected = torch.zeros(9, 16)
    expected[:, 1] = torch.linspace(0, 4, 9)
    expected[:, 3] = 2 * torch.sin(2 * torch.pi * torch.arange(9.0) / 8)
    expected[:, 5] = 1.5
    torch.testing.assert_close(places, expected, atol=1e-4, rtol=1e-4)


def test_walks_from_files(network, tmp_path):
    table = tmp_path / "places.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["1", "3"], *([0.5 * t, -t] for t in range(4))])
    codes = sample_codes(network, Plan(frames=4, alpha=str(table)), 0)
    told = Plan(frames=4, control=["1=linear:0..1.5", "3=linear:0..-3"])
    torch.testing.assert_close(codes.alpha, sample_codes(network, told, 0).alpha)
    steps = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    np.savez(tmp_path / "steps.npz", alpha=steps)
    codes = sample_codes(network, Plan(frames=4, alpha=str(tmp_path / "steps.npz")), 0)
    np.testing.assert_array_equal(codes.alpha[0].numpy(), steps)


def test_trajectories_are_read():
    direction, path = trajectory("12=linear:-1..1", 3)
    assert direction == 12
    assert path.tolist() == [-1, 0, 1]
    for text in ["1", "x=linear:0..1", "1=linear:0", "1=sine:2", "1=sine:2,0", "1=constant:nan"]:
        with pytest.raises(GenerationError, match="is not understood"):
            trajectory(text, 5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"truncation": float("nan")}, "truncation"),
        ({"fix": "both"}, "'appearance' or 'motion'"),
        ({"interpolate": 1}, "2 videos or more"),
        ({"interpolate": 3, "fix": "motion"}, "leave fix out"),
        ({"activate": [1], "control": ["1=linear:0..1"]}, "one of"),
        ({"activate": [16]}, "counted from 0 to 15"),
        ({"control": ["16=linear:0..1"]}, "counted from 0 to 15"),
        ({"control": ["1=linear:0..1", "1=constant:2"]}, "twice"),
        ({"alpha": "none.csv"}, "cannot read none.csv"),
        ({"alpha": "none.npz"}, "no npz file"),
    ],
)
def test_plans_that_make_no_sense(network, settings, words):
    with pytest.raises(GenerationError, match=words):
        sample_codes(network, Plan(**settings), 0)


def test_tables_that_make_no_sense(network, tmp_path):
    for name, text, words in [
        ("a.csv", "1,2\n0\n", "no table"),
        ("b.csv", "one\n0\n", "no table"),
        ("c.csv", "", "no table"),
        ("d.csv", "1\n0\nnan\n", "finite"),
        ("e.csv", "1\n0\n", "has 1 rows"),
        ("f.csv", "1,1\n0,0\n1,1\n", "there twice"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(GenerationError, match=words):
            sample_codes(network, Plan(frames=2, alpha=str(tmp_path / name)), 0)
    np.savez(tmp_path / "f.npz", alpha=np.zeros((3, 16)))
    with pytest.raises(GenerationError, match=r"give finite numbers \(1, 16\)"):
        sample_codes(network, Plan(frames=2, alpha=str(tmp_path / "f.npz")), 0)


def test_blank_lines_and_broken_files(network, tmp_path):
    (tmp_path / "a.csv").write_text("1\n0\n2\n\n")
    codes = sample_codes(network, Plan(frames=2, alpha=str(tmp_path / "a.csv")), 0)
    assert codes.alpha[0, 0, 1] == 2
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros((1, 16)))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "words.npz", alpha=np.full((1, 16), "a"))
    for name in ("empty", "array", "words"):
        with pytest.raises(GenerationError, match=name):
            sample_codes(network, Plan(frames=2, alpha=str(tmp_path / f"{name}.npz")), 0)


def test_autocast_changes_no_video(network):
    plain = generate(network, Plan(frames=3), [0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(network, Plan(frames=3), [0]), plain)


def test_a_folder_with_a_dot(checkpoint, tmp_path):
    (tmp_path / "v1.0").mkdir()
    (path,) = generate_files(checkpoint, tmp_path / "v1.0", 1, Plan(frames=2), progress=False)
    assert path == tmp_path / "v1.0" / "000000.mp4"


def test_a_folder_of_videos(checkpoint, network, tmp_path):
    plan = Plan(frames=20, seed=1)
    paths = generate_files(
        checkpoint,
        tmp_path / "made",
        3,
        plan,
        fps=12,
        batch_size=2,
        save_codes=True,
        progress=False,
    )
    assert [path.name for path in paths] == ["000000.mp4", "000001.mp4", "000002.mp4"]
    expected = to_uint8(generate(network, plan, range(3)))
    for path, video in zip(paths, expected, strict=True):
        info = probe(path)
        assert (info.frames, info.width, info.height, info.fps) == (20, 32, 32, 12)
        shown = read_clip(path, range(20)).float()
        errors = [(shown - other.float()).abs().mean() for other in expected]
        assert min(errors) == (shown - video.float()).abs().mean() < 15  # H.264 loses of noise
    again = Plan(frames=20, seed=1, alpha=str(tmp_path / "made" / "000002.npz"))
    codes = sample_codes(network, again, 2)
    assert torch.equal(codes.alpha, sample_codes(network, plan, 2).alpha)


def test_a_grid_and_a_sheet(checkpoint, network, tmp_path, capsys):
    line = ["generate", "--checkpoint", str(checkpoint), "--num", "3", "--frames", "18"]
    assert cli.main([*line, "--output", str(tmp_path / "grid.gif")]) == 0
    info = probe(tmp_path / "grid.gif")
    assert (info.frames, info.width, info.height) == (18, 64, 64)
    assert cli.main([*line, "--output", str(tmp_path / "sheet.png"), "--fix", "motion"]) == 0
    sheet = read_clip(tmp_path / "sheet.png", [0])[0]
    assert sheet.shape == (3 * 32, 16 * 32, 3)
    video = to_uint8(generate(network, Plan(frames=18, fix="motion"), range(3)))
    assert (sheet[32:64, :32].int() - video[1, 0].int()).abs().max() <= 1
    assert (sheet[64:, -32:].int() - video[2, 17].int()).abs().max() <= 1
    assert f"wrote {tmp_path / 'sheet.png'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "x.avi"], "cannot write x.avi"),
        (["--output", "x.mp4", "--save-codes"], "give a folder"),
        (["--output", "x", "--num", "0"], "videos is 0"),
        (["--output", "x", "--control", "99=linear:0..1"], "no direction 99"),
        (["--output", "x", "--activate", "one"], "whole numbers"),
        (["--output", "x", "--device", "abacus"], "not available"),
        (["--output", "x", "--fps", "0"], "fps is 0"),
        (["--output", "x", "--columns", "2"], "columns are those of a grid"),
        (["--output", "x.png", "--columns", "2"], "columns are those of a grid"),
        (["--output", "x.png", "--fps", "5"], "a picture has no rate"),
        (["--output", "x.mp4", "--batch-size", "2"], "leave the batch size out"),
        (["--output", "x", "--fix", "motion", "--control", "1=linear:0..1"], "leave fix=motion"),
    ],
)
def test_command_lines_that_make_no_sense(
    checkpoint, options, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["generate", "--checkpoint", str(checkpoint), *options])
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_networks_that_do_not_generate_are_refused(tmp_path):
    animator = lia.Generator(size=32, dim=16, directions=3, width=0.02)
    save_network(animator, tmp_path / "lia")
    with pytest.raises(GenerationError, match="holds the lia network"):
        generate_files(tmp_path / "lia", tmp_path / "out", progress=False)
    with pytest.raises(DeviceError, match="choose cpu"):
        generate_files(tmp_path / "lia", tmp_path / "out", device="abacus", progress=False)


# Networks that make a video whole


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Folders of a G3AN and of an ImaGINator, and a picture."""
    folder = tmp_path_factory.mktemp("others")
    torch.manual_seed(0)
    save_network(g3an.Generator(32, 0.0625), folder / "g3an")
    save_network(
        imaginator.Generator(32, ["left", "right", "up"], 0.0625, 6, 5), folder / "imaginator"
    )
    write_image(folder / "a.png", (torch.rand(50, 40, 3) * 255).byte())
    return folder


def test_g3an_writes_what_it_draws(others, tmp_path):
    network = load_network(others / "g3an")
    assert generate(network, Plan(), [0]).shape == (1, 16, 3, 32, 32)
    plan = Plan(frames=18, seed=4)
    with torch.no_grad():
        z = [noise(4, APPEARANCE, 2, [1, 128]), noise(4, MOTION, 2, [2, 10])[None]]
        expected = network(*z)[:, :18]
    torch.testing.assert_close(generate(network, plan, [2]), expected, atol=1e-5, rtol=1e-4)
    sheet = tmp_path / "sheet.png"
    generate_files(others / "g3an", sheet, 6, plan, progress=False)  # two batches
    drawn = to_uint8(generate(network, plan, range(6)))
    shown = read_clip(sheet, [0])[0].unflatten(0, (6, 32)).unflatten(2, (16, 32))
    assert (shown[:, :, 0].int() - drawn[:, 0].int()).abs().max() <= 1
    assert (shown[:, :, 15].int() - drawn[:, 17].int()).abs().max() <= 1
    together, alone = generate(network, plan, range(3)), generate(network, plan, [1])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_a_picture_performs_classes(others, tmp_path, capsys):
    network = load_network(others / "imaginator")
    source = to_float(read_clip(others / "a.png", [0])[:, 5:45])
    source = torch.nn.functional.interpolate(source, 32, mode="bilinear", antialias=True)
    plan = Plan(image=str(others / "a.png"), seed=1)
    codes = stack_codes([sample_codes(network, plan, i) for i in range(4)])
    assert codes.label.tolist() == [0, 1, 2, 0]
    assert (codes.image - source).abs().max() <= 1 / 127.5
    assert torch.equal(codes.motion[1], noise(1, MOTION, 1, [1, 5])[0])
    for label in ("up", "2"):
        told = sample_codes(network, replace(plan, label=label, fix="motion"), 3)
        assert told.label.item() == 2
        assert torch.equal(told.motion, codes.motion[:1])
    line = ["generate", "--checkpoint", str(others / "imaginator"), "--num", "2", "--seed", "1"]
    line += ["--image", str(others / "a.png"), "--label", "up"]
    assert cli.main([*line, "--output", str(tmp_path / "made"), "--save-codes"]) == 0
    assert "wrote 2 videos" in capsys.readouterr().out
    assert probe(tmp_path / "made" / "000001.mp4").frames == 16
    with np.load(tmp_path / "made" / "000001.npz") as saved:
        np.testing.assert_array_equal(saved["motion"], codes.motion[1:2].numpy())
        assert saved["label"].tolist() == [2]
    assert cli.main([*line, "--frames", "9", "--output", str(tmp_path / "grid.mp4")]) == 0
    assert probe(tmp_path / "grid.mp4").frames == 9


PICTURE = ["--image", "PICTURE"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("g3an", PICTURE, "g3an network has no picture to move"),
        ("g3an", ["--label", "up"], "leave image and label out"),
        ("g3an", ["--truncation", "0.5"], "leave truncation out"),
        ("g3an", ["--activate", "1"], "g3an network has no motion directions"),
        ("imaginator", [], "say which one, image"),
        ("imaginator", [*PICTURE, "--frames", "17"], "frames is 17: this network makes videos of"),
        ("imaginator", [*PICTURE, "--label", "down"], "choose from left, right, up, or 0 to 2"),
        ("imaginator", [*PICTURE, "--interpolate"], "leave interpolate and fix=appearance out"),
        ("imaginator", [*PICTURE, "--fix", "appearance"], "leave interpolate and fix"),
        ("imaginator", ["--image", "none.png"], "cannot read none.png: no such file"),
        ("imaginator", ["--image", "CHECKPOINT/config.json"], "config.json"),
    ],
)
def test_options_that_do_not_apply(others, name, options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [o.replace("PICTURE", str(others / "a.png")) for o in options]
    options = [o.replace("CHECKPOINT", str(others / name)) for o in options]
    line = ["generate", "--checkpoint", str(others / name), "--output", "x", *options]
    assert cli.main(line) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())
