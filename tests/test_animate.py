"""Animation: the original's pictures through every door, streams, files, and refusals."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from test_lia import assert_image, golden, original  # noqa: F401

from lmdvid import Animator
from lmdvid.animate import AnimationError, animate_file
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import convert, save_network
from lmdvid.video import probe, read_clip, to_float, to_uint8, write_image, write_video


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The original's stand-in weights, converted."""
    folder = tmp_path_factory.mktemp("official")
    torch.save({"gen": original("gen")}, folder / "vox.pt")
    convert(folder / "vox.pt", folder / "vox")
    return folder / "vox"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    save_network(Generator(32, 16, 3, 0.02), folder)
    return folder


@pytest.fixture
def clip(tmp_path):
    """A clip of 11 frames, 48x40, with an odd rate."""
    grey = (torch.rand(11, 5, 6, 1) * 255).expand(-1, -1, -1, 3)  # 4:2:0 keeps grey sharp
    frames = grey.repeat_interleave(8, 1).repeat_interleave(8, 2)
    write_video(tmp_path / "driving.mp4", frames.to(torch.uint8), Fraction(30000, 1001))
    write_image(tmp_path / "face.png", frames[0].to(torch.uint8))
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pictures_equal_the_original(official, golden, batch_size):  # noqa: F811
    animator = Animator.from_pretrained(official, dtype=torch.float32, batch_size=batch_size)
    for mode in ("absolute", "relative"):
        frames = animator.animate(golden["source"][0], golden["driving"], mode)
        assert_image(frames, golden[mode])
        assert frames.dtype == torch.float32
        assert not frames.is_inference()


def test_npz_holds_the_same_tensors(official, golden, tmp_path):  # noqa: F811
    """From pictures on disk, which hold bytes, to the exact float32 frames."""
    source, driving = to_uint8(golden["source"][0]), to_uint8(golden["driving"])
    write_image(tmp_path / "face.png", source)
    for i, frame in enumerate(driving):
        write_image(tmp_path / "clip" / f"{i}.png", frame)
    animate_file(
        tmp_path / "face.png", tmp_path / "clip", official, tmp_path / "x.npz", progress=False
    )
    expected = Animator.from_pretrained(official).animate(to_float(source), to_float(driving))
    with np.load(tmp_path / "x.npz") as data:
        assert data["video"].dtype == np.float32
        assert np.array_equal(data["video"], expected.numpy())
        assert Fraction(*map(int, data["fps"])) == 25


def test_the_callers_iterator_is_left_alone(checkpoint):
    """Its code runs with gradients as outside, and errors come at the call."""
    seen = []

    def frames():
        for _ in range(3):
            seen.append(torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
            yield torch.rand(3, 32, 32)

    animator = Animator.from_pretrained(checkpoint, batch_size=2)
    for frame in animator.stream(torch.rand(3, 32, 32), frames()):
        assert torch.is_grad_enabled()
        assert not frame.is_inference()
    assert seen == [True] * 3
    with pytest.raises(AnimationError, match="'relative' or 'absolute'"):
        animator.stream(torch.rand(3, 32, 32), frames(), "sideways")
    with pytest.raises(AnimationError, match="no frames"):
        animator.animate(torch.rand(3, 32, 32), torch.rand(0, 3, 32, 32))


def test_loading_inside_inference_mode(checkpoint):
    source, driving = torch.rand(3, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        inside = Animator.from_pretrained(checkpoint).animate(source, driving)
    outside = Animator.from_pretrained(checkpoint).animate(source, driving)
    torch.testing.assert_close(inside, outside)


def test_streams_are_taken_a_batch_at_a_time(checkpoint):
    animator = Animator.from_pretrained(checkpoint, batch_size=4)
    taken = 0

    def frames():
        nonlocal taken
        while True:
            taken += 1
            yield torch.rand(3, 32, 32)

    stream = animator.stream(torch.rand(3, 32, 32), frames())
    for _ in range(6):
        assert next(stream).shape == (3, 32, 32)
    assert taken == 8


def test_bfloat16_is_close(checkpoint):
    source, driving = torch.rand(3, 32, 32), torch.rand(3, 3, 32, 32)
    exact = Animator.from_pretrained(checkpoint).animate(source, driving, "absolute")
    half = Animator.from_pretrained(checkpoint, dtype=torch.bfloat16)
    difference = (half.animate(source, driving, "absolute") - exact).abs().mean()
    assert 0 < difference < 0.03 * exact.std()


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_file_to_file(checkpoint, clip, fit):
    output = animate_file(
        clip / "face.png",
        clip / "driving.mp4",
        checkpoint,
        clip / "new" / "out.mp4",
        fit=fit,
        device="cpu",
        progress=False,
    )
    info = probe(output)
    assert (info.frames, info.width, info.height) == (11, 32, 32)
    assert info.fps == Fraction(30000, 1001)
    assert [p.name for p in output.parent.iterdir()] == ["out.mp4"]


def test_side_by_side_lines_up(checkpoint, clip, capsys):
    arguments = (clip / "face.png", clip / "driving.mp4", checkpoint)
    wide = animate_file(*arguments, clip / "wide.mp4", side_by_side=True, device="cpu")
    assert "11/11" in capsys.readouterr().out
    plain = animate_file(*arguments, clip / "plain.mp4", device="cpu", progress=False)
    frames = read_clip(wide, range(11)).float()
    assert frames.shape == (11, 32, 96, 3)
    driving = read_clip(clip / "driving.mp4", range(11))
    shown = Animator.from_pretrained(checkpoint)._fitted(driving, "crop").float()
    assert (frames[:, :, 32:64] - shown).abs().mean() < 6
    assert (frames[:, :, 64:] - read_clip(plain, range(11)).float()).abs().mean() < 6
    assert (frames[0, :, :32] - frames[10, :, :32]).abs().mean() < 2


def test_one_driving_picture_means_absolute(checkpoint, clip):
    arguments = (clip / "face.png", clip / "face.png", checkpoint)
    animate_file(*arguments, clip / "out.png", device="cpu", progress=False)
    animator = Animator.from_pretrained(checkpoint)
    picture = to_float(animator._fitted(read_clip(clip / "face.png", [0]), "crop"))
    expected = to_uint8(animator.animate(picture[0], picture, "absolute"))
    assert torch.equal(read_clip(clip / "out.png", [0]), expected)
    with pytest.raises(AnimationError, match="use mode absolute"):
        animate_file(*arguments, clip / "out.png", mode="relative", progress=False)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out.txt", {}, "choose .mp4"),
        ("out.png", {}, "is a video"),
        ("out.npz", {"side_by_side": True}, "result alone"),
        ("out.mp4", {"mode": "sideways"}, "'relative' or 'absolute'"),
        ("out.mp4", {"batch_size": 0}, "1 or more"),
        ("out.mp4", {"device": "foo"}, "not available"),
    ],
)
def test_refusals_leave_nothing_behind(checkpoint, clip, output, options, message):
    before = sorted(clip.iterdir())
    with pytest.raises(AnimationError, match=message):
        animate_file(clip / "face.png", clip / "driving.mp4", checkpoint, clip / output, **options)
    assert sorted(clip.iterdir()) == before


def test_wrong_shapes_and_types_are_named(checkpoint):
    animator = Animator.from_pretrained(checkpoint)
    with pytest.raises(AnimationError, match=r"\(3, 32, 32\)"):
        animator.animate(torch.rand(3, 64, 64), torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\)"):
        animator.animate(torch.rand(3, 32, 32), torch.rand(1, 3, 64, 64))
    with pytest.raises(AnimationError, match="bfloat16"):
        Animator.from_pretrained(checkpoint, dtype=torch.float16)


@pytest.mark.real_clips
def test_real_face_and_clip(checkpoint, shared, tmp_path):
    output = animate_file(
        shared / "videos/vox/macron.png",
        shared / "videos/taichi/driving2.mp4",
        checkpoint,
        tmp_path / "out.mp4",
        device="cpu",
        progress=False,
    )
    driving, result = probe(shared / "videos/taichi/driving2.mp4"), probe(output)
    assert (result.frames, result.fps) == (driving.frames, driving.fps)
