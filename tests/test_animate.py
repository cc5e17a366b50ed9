"""Animation: the original's pictures through every door, streams, files, and refusals."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from test_lia import assert_image, golden, original  # noqa: F401
from test_video_write import sound_packets

from lmdvid import Animator, cli
from lmdvid import animate as animating
from lmdvid.animate import AnimationError, animate_file
from lmdvid.framing import FramingError
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import DeviceError, convert, save_network
from lmdvid.video import (
    VideoReadError,
    VideoWriter,
    centre_square,
    probe,
    read_clip,
    resize,
    to_float,
    to_uint8,
    write_image,
    write_video,
)


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
        inside = Animator.from_pretrained(checkpoint, dtype=torch.float32).animate(source, driving)
    outside = Animator.from_pretrained(checkpoint, dtype=torch.float32).animate(source, driving)
    torch.testing.assert_close(inside, outside)


def test_a_compiled_network_makes_the_same_pictures(checkpoint, monkeypatch):
    """By a stand-in that compiles nothing: the compiler itself would take a minute."""
    graphs = []

    def compiler(graph, given):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    source, driving = torch.rand(3, 32, 32), torch.rand(5, 3, 32, 32)
    plain, compiled = (
        Animator.from_pretrained(checkpoint, dtype=torch.float32, batch_size=2, compile=compile)
        for compile in (False, True)
    )
    made = compiled.animate(source, driving)
    torch.testing.assert_close(made, plain.animate(source, driving), rtol=0, atol=1e-4)
    count = len(graphs)
    assert count > 0
    more = compiled.animate(source, driving.flip(0), edit={1: 0.5}, reference=2)
    expected = plain.animate(source, driving.flip(0), edit={1: 0.5}, reference=2)
    torch.testing.assert_close(more, expected, rtol=0, atol=1e-4)
    assert len(graphs) == count  # neither another picture nor a short last batch compiles anew


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # torch's own
def test_compiling_without_a_compiler_is_one_error(checkpoint, clip, capsys):
    line = ["animate", "--source", str(clip / "face.png"), "--driving", str(clip / "driving.mp4")]
    line += ["--checkpoint", str(checkpoint), "--output", str(clip / "out.mp4"), "--compile"]
    missing = {"cpp.cxx": (None, "no-such-g++"), "force_disable_caches": True}
    with torch._inductor.config.patch(missing):
        assert cli.main([*line, "--device", "cpu", "--batch-size", "1"]) == 1
    error = capsys.readouterr().err
    assert "the network cannot be compiled" in error
    assert "install a C++ compiler (g++)" in error
    assert not (clip / "out.mp4").exists()
    with pytest.raises(AnimationError, match="compile is for CPUs, and the network is on meta"):
        Animator(Generator(32, 16, 3, 0.02).to("meta"), compile=True)


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


@pytest.mark.parametrize("threads", [2, 3])
def test_frames_do_not_depend_on_the_threads(checkpoint, request, threads):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    source, driving = torch.rand(3, 32, 32), torch.rand(7, 3, 32, 32)
    animator = Animator.from_pretrained(checkpoint, dtype=torch.float32, batch_size=5)
    torch.set_num_threads(1)
    expected = animator.animate(source, driving)
    torch.set_num_threads(threads)
    made = animator.animate(source, driving)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
    assert not made.requires_grad


def test_frames_before_damage_come_out_with_threads(checkpoint, request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)

    def frames():
        yield from torch.rand(4, 3, 32, 32)
        raise OSError("damaged")

    animator = Animator.from_pretrained(checkpoint, batch_size=2)
    stream = animator.stream(torch.rand(3, 32, 32), frames())
    assert len([next(stream) for _ in range(4)]) == 4
    with pytest.raises(OSError, match="damaged"):
        next(stream)


def test_bfloat16_is_close(checkpoint):
    source, driving = torch.rand(3, 32, 32), torch.rand(3, 3, 32, 32)
    exact = Animator.from_pretrained(checkpoint, dtype=torch.float32)
    exact = exact.animate(source, driving, "absolute")
    half = Animator.from_pretrained(checkpoint, dtype=torch.bfloat16)
    difference = (half.animate(source, driving, "absolute") - exact).abs().mean()
    assert 0 < difference < 0.03 * exact.std()


@pytest.mark.parametrize("instructions", [True, False])
def test_the_number_format_follows_the_processor(
    checkpoint, clip, monkeypatch, capsys, instructions
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    expected = torch.float32
    if instructions and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        expected = torch.bfloat16
    assert Animator.from_pretrained(checkpoint).dtype == expected
    assert Animator.from_pretrained(checkpoint, dtype=torch.float32).dtype == torch.float32
    animate_file(clip / "face.png", clip / "driving.mp4", checkpoint, clip / "x.mp4", device="cpu")
    assert f"animate (cpu, {str(expected).removeprefix('torch.')})" in capsys.readouterr().out


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
    shown = resize(centre_square(driving, "crop"), 32).float()
    assert (frames[:, :, 32:64] - shown).abs().mean() < 6
    assert (frames[:, :, 64:] - read_clip(plain, range(11)).float()).abs().mean() < 6
    assert (frames[0, :, :32] - frames[10, :, :32]).abs().mean() < 2


def test_one_driving_picture_means_absolute(checkpoint, clip):
    arguments = (clip / "face.png", clip / "face.png", checkpoint)
    animate_file(*arguments, clip / "out.png", device="cpu", progress=False)
    animator = Animator.from_pretrained(checkpoint)
    picture = to_float(resize(centre_square(read_clip(clip / "face.png", [0])), 32))
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
        ("out.mp4", {"magnitude": float("nan")}, "finite"),
        ("out.mp4", {"absolute_directions": [3]}, "no direction 3: this network has 3"),
        ("out.mp4", {"absolute_directions": [0], "mode": "absolute"}, "every direction"),
        ("out.npz", {"paste_back": True}, "result alone"),
        ("out.mp4", {"paste_back": True, "side_by_side": True}, "choose one"),
        ("driving.mp4", {}, "is also read"),
        ("", {}, "choose .mp4"),
        ("folder.mp4", {}, "it is a folder"),
    ],
)
def test_refusals_leave_nothing_behind(checkpoint, clip, output, options, message):
    (clip / "folder.mp4").mkdir()
    before = sorted(clip.iterdir())
    with pytest.raises((AnimationError, DeviceError), match=message):
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


def test_directions_mix_and_magnitude_scales(checkpoint):
    animator = Animator.from_pretrained(checkpoint, dtype=torch.float32, batch_size=2)
    source, driving = torch.rand(3, 32, 32), torch.rand(5, 3, 32, 32)
    network = animator.network
    with torch.no_grad():
        encoded = network.encode_source(source[None])
        own, codes = network.encode_motion(source[None]), network.encode_motion(driving)
        relative = own + 1.5 * (codes - codes[:1])
        mixed = relative.clone()
        mixed[:, [0, 2]] = 1.5 * codes[:, [0, 2]]
        for wanted, options in [
            (relative, {"magnitude": 1.5}),
            (mixed, {"magnitude": 1.5, "absolute_directions": [0, 2]}),
            (1.5 * codes, {"magnitude": 1.5, "mode": "absolute"}),
            (own.expand(5, -1), {"magnitude": 0.0}),
            (codes, {"absolute_directions": [0, 1, 2]}),
        ]:
            expected = network.render(encoded, wanted, None, "absolute")
            assert_image(animator.animate(source, driving, **options), expected)


def test_one_picture_gives_the_directions_that_are_named(checkpoint, clip):
    """The others stay the source's own."""
    write_image(clip / "other.png", (torch.rand(32, 32, 3) * 255).to(torch.uint8))
    arguments = (clip / "face.png", clip / "other.png", checkpoint, clip / "out.npz")
    options = {"device": "cpu", "dtype": "float32", "progress": False}
    animate_file(*arguments, absolute_directions=[1], **options)
    network = Animator.from_pretrained(checkpoint).network
    source, driver = (
        to_float(resize(centre_square(read_clip(clip / name, [0])), 32))
        for name in ("face.png", "other.png")
    )
    with torch.no_grad():
        codes = network.encode_motion(source)
        codes[:, 1] = network.encode_motion(driver)[:, 1]
        expected = network.render(network.encode_source(source), codes, None, "absolute")
    with np.load(clip / "out.npz") as data:
        assert_image(torch.from_numpy(data["video"]), expected)


def test_boxes_are_cut_out_of_source_and_driving(checkpoint, clip):
    x, y, w, h = 3, 5, 30, 24
    frames = read_clip(clip / "driving.mp4", range(11))[:, y : y + h, x : x + w]
    for number, frame in enumerate(frames):
        write_image(clip / "cut" / f"{number}.png", frame)
    face = read_clip(clip / "face.png", [0])[0, 8:40, 10:44]
    write_image(clip / "cut.png", face)
    options = {"device": "cpu", "progress": False, "fit": "pad"}
    boxes = {"crop": (10, 8, 34, 32), "driving_crop": (x, y, w, h)}
    names = ("face.png", "driving.mp4", "boxes.npz"), ("cut.png", "cut", "cut.npz")
    for (source, driving, output), more in zip(names, (boxes, {}), strict=True):
        animate_file(clip / source, clip / driving, checkpoint, clip / output, **options, **more)
    with np.load(clip / "boxes.npz") as boxed, np.load(clip / "cut.npz") as cut:
        assert np.array_equal(boxed["video"], cut["video"])


@pytest.mark.parametrize("role", ["crop", "driving_crop"])
def test_a_box_outside_is_refused_before_anything_is_made(checkpoint, clip, role):
    arguments = (clip / "face.png", clip / "driving.mp4", checkpoint, clip / "new" / "out.mp4")
    with pytest.raises(FramingError, match="which is 48x40 pixels"):
        animate_file(*arguments, **{role: (20, 0, 30, 30)}, progress=False)
    assert not (clip / "new").exists()


def test_the_result_is_pasted_back(checkpoint, clip):
    """Exactly the source around the box, exactly the result inside of the soft edge."""
    source = (torch.rand(60, 90, 3) * 255).to(torch.uint8)
    write_image(clip / "large.png", source)
    arguments = (clip / "large.png", clip / "face.png", checkpoint)
    options = {"crop": (20, 10, 40, 32), "device": "cpu", "progress": False}
    animate_file(*arguments, clip / "plain.png", **options)
    animate_file(*arguments, clip / "pasted.png", paste_back=True, **options)
    pasted, plain = (read_clip(clip / f"{name}.png", [0])[0] for name in ("pasted", "plain"))
    assert pasted.shape == source.shape
    inside = torch.zeros(60, 90, dtype=torch.bool)
    inside[10:42, 24:56] = True
    assert torch.equal(pasted[~inside], source[~inside])
    assert torch.equal(pasted[13:39, 27:53], plain[3:29, 3:29])
    edge = pasted[10, 24:56].float()
    assert (edge - source[10, 24:56]).abs().mean() < (edge - plain[0]).abs().mean()


def test_pictures_of_odd_sizes_are_pasted_into(checkpoint, clip):
    """As they are in a picture; a video repeats their last row and column."""
    source = torch.full((61, 91, 3), 60, dtype=torch.uint8)
    write_image(clip / "odd.png", source)
    options = {"crop": (60, 30, 31, 31), "paste_back": True, "device": "cpu", "progress": False}
    animate_file(clip / "odd.png", clip / "face.png", checkpoint, clip / "out.png", **options)
    pasted = read_clip(clip / "out.png", [0])[0]
    assert pasted.shape == source.shape
    assert torch.equal(pasted[:30], source[:30])
    assert torch.equal(pasted[:, :60], source[:, :60])
    assert not torch.equal(pasted, source)
    animate_file(clip / "odd.png", clip / "driving.mp4", checkpoint, clip / "out.mp4", **options)
    frames = read_clip(clip / "out.mp4", range(11))
    assert frames.shape == (11, 62, 92, 3)
    assert (frames[:, :28, :58].float() - 60).abs().max() < 4


def test_grid_of_pictures_is_exact(checkpoint, clip):
    for name in "abc":
        write_image(clip / f"{name}.png", (torch.rand(32, 32, 3) * 255).to(torch.uint8))
    sources, drivings = [clip / "a.png", clip / "b.png"], [clip / "c.png", clip / "a.png"]
    options = {"device": "cpu", "progress": False}
    animate_file(sources, drivings, checkpoint, clip / "grid.png", **options)
    grid = read_clip(clip / "grid.png", [0])[0]
    assert grid.shape == (96, 96, 3)
    assert not grid[:32, :32].any()
    for row, source in enumerate(sources, 1):
        assert torch.equal(grid[32 * row :, :32][:32], read_clip(source, [0])[0])
        for column, driving in enumerate(drivings, 1):
            tile = grid[:, 32 * column :][:, :32]
            assert torch.equal(tile[:32], read_clip(driving, [0])[0])
            animate_file(source, driving, checkpoint, clip / "one.png", **options)
            assert torch.equal(tile[32 * row :][:32], read_clip(clip / "one.png", [0])[0])


def test_grid_of_clips_keeps_speeds_and_holds_last_frames(checkpoint, clip, capsys):
    """Eleven frames at 29.97 beside four at half that rate: each is shown twice, the last on."""
    slow = (torch.arange(4) * 60)[:, None, None, None].expand(-1, 32, 32, 3).to(torch.uint8)
    write_video(clip / "slow.mp4", slow, Fraction(15000, 1001))
    drivings = [clip / "driving.mp4", clip / "slow.mp4"]
    animate_file(clip / "face.png", drivings, checkpoint, clip / "grid.mp4", device="cpu")
    assert "11/11" in capsys.readouterr().out
    info = probe(clip / "grid.mp4")
    assert (info.frames, info.fps, info.width, info.height) == (11, Fraction(30000, 1001), 96, 64)
    shown = read_clip(clip / "grid.mp4", range(11))[:, 4:28, 68:92].float().mean(dim=(1, 2, 3))
    expected = torch.tensor([0, 0, 60, 60, 120, 120, 180, 180, 180, 180, 180.0])
    assert (shown - expected).abs().max() < 4
    for number, path in enumerate(drivings):
        animate_file(
            clip / "face.png", path, checkpoint, clip / "x.mp4", device="cpu", progress=False
        )
        alone = read_clip(clip / "x.mp4", [3]).float()
        moment = 3 if number == 0 else 6
        tile = read_clip(clip / "grid.mp4", [moment])[:, 32:, 32 * (number + 1) :][:, :, :32]
        assert (tile.float() - alone).abs().mean() < 8


def test_grid_refuses_what_makes_no_sense(checkpoint, clip):
    sources = [clip / "face.png"] * 2
    for options, output in [({"side_by_side": True}, "x.mp4"), ({"paste_back": True}, "x.mp4")]:
        with pytest.raises(AnimationError, match="choose one"):
            animate_file(sources, clip / "driving.mp4", checkpoint, clip / output, **options)
    with pytest.raises(AnimationError, match="result alone"):
        animate_file(sources, clip / "driving.mp4", checkpoint, clip / "x.npz")
    with pytest.raises(AnimationError, match="no driving is given"):
        animate_file(sources, [], checkpoint, clip / "x.mp4")


def filmed(
    path: Path, ticks: list[int], timescale: int, sound_seconds: float = 2.0
) -> list[Fraction]:
    """Grey frames from each tick to the next, beside noise; the times of the frames."""
    rate = Fraction(timescale * (len(ticks) - 1), ticks[-1])
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("libx264", rate.limit_denominator(10000))
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        pictures.time_base = pictures.codec_context.time_base = Fraction(1, timescale)
        sound = output.add_stream("aac", 44100)
        for number, tick in enumerate(ticks[:-1]):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * number, np.uint8))
            picture.pts, picture.time_base = tick, Fraction(1, timescale)
            picture.duration = ticks[number + 1] - tick
            output.mux(pictures.encode(picture))
        output.mux(pictures.encode(None))
        samples = (
            np.random.default_rng(0).normal(0, 3000, int(44100 * sound_seconds)).astype(np.int16)
        )
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return [Fraction(tick, timescale) for tick in ticks]


def picture_times(path: Path) -> list[Fraction]:
    """Seconds at which frames begin, and at which the last one ends."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        assert stream.duration is not None
        return [*times, stream.duration * stream.time_base]


ODD_RATES = {
    "23.976": ([1001 * n for n in range(31)], 24000),
    "29.97": ([1001 * n for n in range(38)], 30000),
    "near 23.976": ([125 * n for n in range(31)], 2997),
    "variable": (list(np.cumsum([0] + [3003, 3003, 6006, 1500, 3010, 9000] * 5).tolist()), 90000),
}


@pytest.mark.parametrize("name", ODD_RATES)
def test_times_and_sound_of_odd_rates_are_exact(checkpoint, clip, name, capsys):
    times = filmed(clip / "odd.mp4", *ODD_RATES[name])
    line = f"animate --source {clip}/face.png --driving {clip}/odd.mp4 --checkpoint {checkpoint}"
    assert cli.main([*line.split(), "--output", f"{clip}/out.mp4", "--device", "cpu"]) == 0
    assert f"wrote {clip}/out.mp4" in capsys.readouterr().out
    assert picture_times(clip / "odd.mp4")[:-1] == times[:-1]
    times = picture_times(clip / "odd.mp4")
    assert picture_times(clip / "out.mp4") == times
    assert probe(clip / "out.mp4").fps == (len(times) - 1) / times[-1]
    if name != "variable":
        steps, timescale = ODD_RATES[name]
        assert probe(clip / "out.mp4").fps == Fraction(timescale, steps[1])
        assert probe(clip / "odd.mp4").fps == Fraction(timescale, steps[1])
    sound = [(when, data) for when, data in sound_packets(clip / "odd.mp4") if when < times[-1]]
    assert sound_packets(clip / "out.mp4") == sound
    assert len(sound) > 40


def test_sound_that_ends_early_is_kept_whole(checkpoint, clip):
    filmed(clip / "odd.mp4", *ODD_RATES["29.97"], sound_seconds=0.5)
    arguments = (clip / "face.png", clip / "odd.mp4", checkpoint, clip / "out.mp4")
    animate_file(*arguments, device="cpu", progress=False)
    assert sound_packets(clip / "out.mp4") == sound_packets(clip / "odd.mp4")
    assert len(sound_packets(clip / "out.mp4")) > 20
    assert probe(clip / "out.mp4").frames == 37
    animate_file(*arguments, audio=False, device="cpu", progress=False)
    assert not probe(clip / "out.mp4").has_audio


@pytest.mark.parametrize("driving", ["one.mp4", "one.gif", "four.gif", "face.png", "silent.mp4"])
def test_clips_of_every_kind_drive(checkpoint, clip, driving):
    frames = (torch.rand(4, 32, 32, 3) * 255).to(torch.uint8)
    write_video(clip / "one.mp4", frames[:1], Fraction(24000, 1001))
    write_video(clip / "one.gif", frames[:1], 10)
    write_video(clip / "four.gif", frames, 10)
    write_video(clip / "silent.mp4", frames, 20)
    before = probe(clip / driving)
    for suffix in (".mp4", ".gif"):
        output = clip / f"out{suffix}"
        animate_file(clip / "face.png", clip / driving, checkpoint, output, progress=False)
        assert (probe(output).frames, probe(output).has_audio) == (before.frames, False)
        if before.frames > 1 or suffix == ".mp4":  # a gif of one picture has no rate
            assert probe(output).fps == before.fps


def alive() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name in ("read ahead", "write behind")]


def test_damage_in_the_driving_video_ends_everything(checkpoint, clip, monkeypatch):
    stream = animating.stream_frames

    def damaged(path):
        for number, frame in enumerate(stream(path)):
            if number == 6:
                raise VideoReadError(path, "damaged from here on")
            yield frame

    monkeypatch.setattr(animating, "stream_frames", damaged)
    before = sorted(clip.iterdir())
    with pytest.raises(VideoReadError, match="damaged from here on"):
        animate_file(
            clip / "face.png", clip / "driving.mp4", checkpoint, clip / "x.mp4", batch_size=2
        )
    assert sorted(clip.iterdir()) == before
    assert not alive()


def test_a_full_disk_ends_everything(checkpoint, clip, monkeypatch):
    def write(self, frames):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "write", write)
    before = sorted(clip.iterdir())
    with pytest.raises(OSError, match="No space left"):
        animate_file(
            clip / "face.png", clip / "driving.mp4", checkpoint, clip / "x.mp4", batch_size=2
        )
    assert sorted(clip.iterdir()) == before
    assert not alive()


def test_few_frames_are_under_way(checkpoint, clip, monkeypatch):
    """What was decoded and is not yet written, however slow the writing is."""
    stream, write = animating.stream_frames, VideoWriter.write
    counts, most = {"read": 0, "written": 0}, 0

    def counted(path):
        for frame in stream(path):
            counts["read"] += 1
            yield frame

    def slow(self, frames):
        nonlocal most
        most = max(most, counts["read"] - counts["written"])
        time.sleep(0.002)
        write(self, frames)
        counts["written"] += 1

    monkeypatch.setattr(animating, "stream_frames", counted)
    monkeypatch.setattr(VideoWriter, "write", slow)
    grey = torch.arange(200)[:, None, None, None].expand(-1, 32, 32, 3).to(torch.uint8)
    write_video(clip / "long.mp4", grey, 25)
    counts["read"], counts["written"] = -2, 0  # the first of each is looked at before
    animate_file(
        clip / "face.png",
        clip / "long.mp4",
        checkpoint,
        clip / "x.mp4",
        batch_size=4,
        device="cpu",
        progress=False,
    )
    assert counts == {"read": 200, "written": 200}
    assert 8 < most <= 24  # 8 wait decoded, 4 are computed, 8 wait for the encoder, and those moved


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_clip(checkpoint, clip, monkeypatch):
    """900 frames of 480x360 would be 467 MB."""
    write = VideoWriter.write
    sizes = []

    def watched(self, frames):
        sizes.append(resident())
        write(self, frames)

    with VideoWriter(clip / "long.mp4", 30) as writer:
        for number in range(900):
            writer.write(torch.full((360, 480, 3), number % 256, dtype=torch.uint8))
    monkeypatch.setattr(VideoWriter, "write", watched)
    animate_file(clip / "face.png", clip / "long.mp4", checkpoint, clip / "x.mp4", progress=False)
    assert len(sizes) == 900
    assert max(sizes[100:]) - sizes[100] < 60


def test_interrupt_ends_at_once_and_leaves_nothing(checkpoint, clip):
    noise = torch.randint(256, (50, 64, 64, 3), dtype=torch.uint8)
    frames = (noise[number % 50] for number in range(8000))
    write_video(clip / "long.mp4", frames, 25, crf=40, options={"preset": "ultrafast"})
    before = sorted(clip.iterdir())
    # As the `lmdvid` script starts. Under `python -m`, Python may end by the signal although it was
    # caught, where it came within an `exec`, such as those by which imports make data classes.
    start = "import sys; from lmdvid.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "animate", "--device", "cpu", "--source"]
    files = [clip / "face.png", "--driving", clip / "long.mp4", "--checkpoint", checkpoint]
    process = subprocess.Popen(
        [*command, *files, "--output", clip / "x.mp4"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    part = clip / f"x.mp4.{process.pid}.part"
    deadline = time.monotonic() + 120
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert time.monotonic() - asked < 10
    assert sorted(clip.iterdir()) == before


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
