"""What is written is what was given: pixels, rate, sound; and nothing is left of a failure."""

import gc
import logging
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lmdvid.video import (
    VideoReadError,
    VideoWriter,
    frame_times,
    probe,
    read_clip,
    stream_frames,
    write_image,
    write_video,
)
from lmdvid.video import write as writing


def movie(count: int = 30, height: int = 64, width: int = 96) -> torch.Tensor:
    """A bright disc that crosses a colour ramp, uint8 (T,H,W,3)."""
    t = torch.arange(count)[:, None, None, None]
    y = torch.arange(height)[None, :, None, None]
    x = torch.arange(width)[None, None, :, None]
    disc = (x - t * width / count) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
    ramp = torch.stack(torch.broadcast_tensors(x * 2, y * 3, t * 4 + 60), -1)[..., 0, :]
    return torch.where(disc, torch.tensor([230, 220, 60]), ramp).clamp(0, 255).to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a.float() - b.float()).div(255).square().mean()))


def with_sound(
    path: Path,
    codec: str,
    seconds: float = 2,
    rate: int = 44100,
    start: int = 0,
    video: bool = True,
) -> Path:
    """A tone of rising pitch beside a grey video at 25 frames per second, from frame `start`."""
    with av.open(str(path), "w") as output:
        if video:
            pictures = output.add_stream("libx264", 25)
            pictures.height = pictures.width = 32
            pictures.pix_fmt = "yuv420p"
        sound = output.add_stream(codec, rate)
        if video:
            for number in range(int(25 * seconds)):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8))
                picture.pts, picture.time_base = start + number, Fraction(1, 25)
                output.mux(pictures.encode(picture))
            output.mux(pictures.encode(None))
        time = np.arange(int(rate * seconds)) / rate
        samples = (12000 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.rate, frame.pts = rate, start * rate // 25
        frame.time_base = Fraction(1, rate)
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def sound_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """Times in seconds and bytes of the sound packets."""
    with av.open(str(path)) as container:
        return [
            (packet.pts * Fraction(packet.time_base), bytes(packet))
            for packet in container.demux(audio=0)
            if packet.size
        ]


def test_frames_come_back(tmp_path):
    frames = movie()
    path = tmp_path / "new" / "folder" / "x.mp4"
    with VideoWriter(path, 25) as writer:
        writer.write(frames[0])
        writer.write(frames[1:10])
        writer.write(frames[10:].numpy())
        assert path.with_name(f"x.mp4.{os.getpid()}.part").exists()
        assert not path.exists()
    assert writer.frames == 30
    assert os.listdir(path.parent) == ["x.mp4"]
    info = probe(path)
    assert (info.frames, info.fps, info.codec, info.has_audio) == (30, 25, "h264", False)
    back = torch.stack(list(stream_frames(path)))
    assert psnr(back, frames) > 30  # half-resolution chroma on a steep ramp is what is lost
    for near, far in ((7, 20), (20, 7)):
        assert psnr(back[near], frames[near]) > psnr(back[near], frames[far]) + 10
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


def test_iterables_and_overwriting(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, (frame for frame in movie(7)), 25)
    assert probe(path).frames == 7
    write_video(path, movie(9), 25)
    assert probe(path).frames == 9


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (25, Fraction(25)),
        (10, Fraction(10)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (23.976023976, Fraction(24000, 1001)),
        (29.97, Fraction(2997, 100)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (120, Fraction(120)),
    ],
)
def test_frame_rate_is_exact(tmp_path, given, kept):
    write_video(tmp_path / "x.mp4", movie(11), given)
    info = probe(tmp_path / "x.mp4")
    assert (info.fps, info.frames) == (kept, 11)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * Fraction(stream.time_base) == 11 / kept


def test_one_frame(tmp_path):
    write_video(tmp_path / "x.mp4", movie(1), Fraction(30000, 1001))
    assert probe(tmp_path / "x.mp4").frames == 1


def test_odd_sizes_are_padded_with_their_edge(tmp_path):
    frames = torch.full((5, 31, 45, 3), 30, dtype=torch.uint8)
    frames[:, -1] = 200
    frames[:, :, -1] = 200
    write_video(tmp_path / "x.mp4", frames, 25, crf=1)
    back = read_clip(tmp_path / "x.mp4", range(5))
    assert back.shape == (5, 32, 46, 3)
    assert (back[:, -1].int() - 200).abs().max() < 6
    assert (back[:, :, -1].int() - 200).abs().max() < 6


def test_quality_and_options_reach_the_encoder(tmp_path):
    noise = torch.randint(0, 255, (30, 64, 64, 3), dtype=torch.uint8)
    write_video(tmp_path / "fine.mp4", noise, 25)
    write_video(tmp_path / "coarse.mp4", noise, 25, crf=40)
    assert (tmp_path / "coarse.mp4").stat().st_size < (tmp_path / "fine.mp4").stat().st_size / 2
    options = {"g": "12", "bf": "0", "sc_threshold": "0"}
    write_video(tmp_path / "short.mp4", movie(30), 25, options=options)
    with av.open(str(tmp_path / "short.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24]
    assert all(packet.pts == packet.dts for packet in packets)


def interrupted(path: Path) -> None:
    with VideoWriter(path, 25) as writer:
        writer.write(movie(5))
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_failure_leaves_nothing(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match=r"frame 5 of .* is 48x32, those before are 96x64"):
        write_video(path, [movie(5), movie(2, 32, 48)], 25)
    assert os.listdir(tmp_path) == []
    for wrong in (torch.zeros(5, 3, 64, 64), torch.zeros(5, 64, 64, 1, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            write_video(path, wrong, 25)
    with pytest.raises(ValueError, match="no frame was written"):
        write_video(path, [], 25)
    if suffix == ".mp4":
        with pytest.raises(VideoReadError, match="no such file"):
            write_video(path, movie(2), 25, audio_from=tmp_path / "absent.wav")
    assert os.listdir(tmp_path) == []


def test_failure_keeps_the_older_file(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, movie(7), 25)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.mp4"]


def test_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"use the suffix \.mp4, \.m4v or \.gif"):
        VideoWriter(tmp_path / "x.webm", 25)
    (tmp_path / "frames.mp4").mkdir()
    with pytest.raises(ValueError, match=r"frames\.mp4: it is a folder"):
        VideoWriter(tmp_path / "frames.mp4", 25)
    with pytest.raises(ValueError, match="at 0 frames per second"):
        VideoWriter(tmp_path / "x.mp4", 0)
    with pytest.raises(ValueError, match=r"use one of \.bmp"):
        write_image(tmp_path / "x.gif", movie(1)[0])


def test_arrays_of_any_strides_and_read_only_ones(tmp_path):
    frames = movie(4).numpy()
    frames.flags.writeable = False
    write_video(tmp_path / "x.mp4", frames, 25)
    write_video(tmp_path / "mirrored.mp4", frames[:, :, ::-1], 25, crf=1)
    back = read_clip(tmp_path / "mirrored.mp4", range(4))
    assert psnr(back.flip(2), torch.from_numpy(frames.copy())) > 30
    write_image(tmp_path / "x.png", frames[0, ::-1])
    assert np.array_equal(read_clip(tmp_path / "x.png", [0])[0], frames[0, ::-1])
    for wrong in (frames, frames[0].astype(np.float32), frames[0, ..., 0]):
        with pytest.raises(ValueError, match=r"must be uint8 \(H,W,3\), not"):
            write_image(tmp_path / "y.png", wrong)


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mp4"), ("libmp3lame", ".mp4")])
@pytest.mark.parametrize("seconds", [1, 5])
def test_sound_is_copied_bit_for_bit(tmp_path, codec, suffix, seconds):
    source = with_sound(tmp_path / f"source{suffix}", codec, seconds=2)
    write_video(tmp_path / "x.mp4", movie(25 * seconds), 25, audio_from=source)
    info = probe(tmp_path / "x.mp4")
    assert (info.frames, info.has_audio) == (25 * seconds, True)
    expected = [(time, data) for time, data in sound_packets(source) if time < seconds]
    written = sound_packets(tmp_path / "x.mp4")
    assert [data for _, data in written] == [data for _, data in expected]
    for (time, _), (asked, _) in zip(written, expected, strict=True):
        assert abs(time - asked) < Fraction(1, 1000)
    if seconds == 1:
        assert len(written) < len(sound_packets(source))


def test_sound_is_interleaved(tmp_path):
    source = with_sound(tmp_path / "source.mp4", "aac", seconds=4)
    noise = torch.randint(0, 255, (100, 64, 64, 3), dtype=torch.uint8)
    write_video(tmp_path / "x.mp4", noise, 25, audio_from=source)
    with av.open(str(tmp_path / "x.mp4")) as container:
        placed = [
            (packet.pos, packet.stream.type, float(packet.dts * packet.time_base))
            for packet in container.demux()
            if packet.size
        ]
    latest = {"video": 0.0, "audio": 0.0}
    for _, kind, time in sorted(placed):
        latest[kind] = time
        assert abs(latest["video"] - latest["audio"]) < 1.5


def test_sound_follows_the_first_frame(tmp_path):
    """A source whose clock starts at two seconds gives sound that starts with frame 0."""
    source = with_sound(tmp_path / "late.ts", "aac", start=50)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        first_frame = stream.start_time * Fraction(stream.time_base)
    assert first_frame >= 2
    write_video(tmp_path / "x.mp4", movie(50), 25, audio_from=source)
    asked = sound_packets(source)[0][0] - first_frame
    assert abs(sound_packets(tmp_path / "x.mp4")[0][0] - asked) < Fraction(1, 500)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_other_sound_becomes_aac(tmp_path, rate):
    source = with_sound(tmp_path / "tone.wav", "pcm_s16le", rate=rate, video=False)
    write_video(tmp_path / "x.mp4", movie(40), 25, audio_from=source)
    with av.open(str(tmp_path / "x.mp4")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        heard = np.concatenate([f.to_ndarray().mean(0) for f in container.decode(audio=0)])
        hertz = sound.rate
    assert abs(len(heard) / hertz - 1.6) < 0.06
    # The tone's pitch is 300 + 400 t: at one second 700 Hz.
    window = heard[int(0.95 * hertz) : int(1.05 * hertz)]
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window)), 1 << 16))
    assert abs(spectrum.argmax() * hertz / (1 << 16) - 700) < 15


def test_sources_without_sound_add_none(tmp_path):
    write_video(tmp_path / "silent.mp4", movie(5), 25)
    (tmp_path / "frames").mkdir()
    write_image(tmp_path / "frames" / "0.png", movie(1)[0])
    for source in ("silent.mp4", "frames"):
        write_video(tmp_path / "x.mp4", movie(5), 25, audio_from=tmp_path / source)
        assert not probe(tmp_path / "x.mp4").has_audio
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoReadError, match="no sound to take from it"):
        write_video(tmp_path / "y.mp4", movie(5), 25, audio_from=tmp_path / "text.mp4")


@pytest.mark.parametrize("encoder", ["libvpx-vp9", "mpeg4"])
def test_other_encoders_where_x264_is_absent(tmp_path, monkeypatch, caplog, encoder):
    left = {"absent264": {}, encoder: writing._ENCODERS[encoder]}
    monkeypatch.setattr(writing, "_ENCODERS", left)
    writing._encoder.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            write_video(tmp_path / "x.mp4", movie(20), Fraction(30000, 1001))
            write_video(tmp_path / "y.mp4", movie(20), 25)
        assert [encoder in record.message for record in caplog.records] == [True]  # said once
        assert probe(tmp_path / "x.mp4").fps == Fraction(30000, 1001)
        assert psnr(torch.stack(list(stream_frames(tmp_path / "x.mp4"))), movie(20)) > 30
        monkeypatch.setattr(writing, "_ENCODERS", {"absent264": {}})
        writing._encoder.cache_clear()
        with pytest.raises(RuntimeError, match="none of the encoders absent264"):
            write_video(tmp_path / "z.mp4", movie(5), 25)
    finally:
        writing._encoder.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_or_file_of_the_encoder_stays(tmp_path):
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    source = with_sound(tmp_path / "source.mp4", "aac")
    big = torch.zeros(3, 512, 512, 3, dtype=torch.uint8)
    write_video(tmp_path / "x.mp4", big, 25)
    gc.collect()
    before = held()
    with VideoWriter(tmp_path / "x.mp4", 25, audio_from=source) as writer:
        writer.write(big)
        busy = held()
    assert busy > before
    assert held() == before


def test_gif(tmp_path):
    frames = movie(20)
    write_video(tmp_path / "x.gif", frames, 30, audio_from="ignored.wav")
    assert os.listdir(tmp_path) == ["x.gif"]
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 20
        durations = []
        for number in range(20):
            image.seek(number)
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert set(durations) == {30, 40}
    assert sum(durations) == 670  # 20/30 s in hundredths
    assert psnr(read_clip(tmp_path / "x.gif", range(20)), frames) > 30


def test_write_image(tmp_path):
    frame = movie(1)[0]
    write_image(tmp_path / "a" / "x.png", frame)
    assert torch.equal(read_clip(tmp_path / "a" / "x.png", [0])[0], frame)
    write_image(tmp_path / "x.jpg", frame.numpy())
    assert psnr(read_clip(tmp_path / "x.jpg", [0])[0], frame) > 30


def test_a_varying_rate_keeps_its_times(tmp_path):
    steps = [Fraction(1, 30), Fraction(1, 15), Fraction(1, 100), Fraction(1, 4)] * 4
    times = [sum(steps[:number], Fraction(0)) for number in range(17)]
    write_video(tmp_path / "x.mp4", movie(16), 16 / times[-1], times=times)
    assert frame_times(tmp_path / "x.mp4") == times
    assert probe(tmp_path / "x.mp4").fps == 16 / times[-1]
    write_video(tmp_path / "x.gif", movie(16), 16 / times[-1], times=times)
    found = frame_times(tmp_path / "x.gif")
    assert found is not None
    assert max(abs(a - b) for a, b in zip(found, times, strict=True)) <= Fraction(1, 100)
    with pytest.raises(ValueError, match="frame 16 has no end"):
        write_video(tmp_path / "y.mp4", movie(17), 25, times=times)
    assert not (tmp_path / "y.mp4").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_a_constant_rate_has_no_times(tmp_path, suffix):
    write_video(tmp_path / "x.mp4", movie(20), Fraction(30000, 1001))
    path = tmp_path / f"y{suffix}"
    if suffix == ".gif":
        write_video(path, movie(20), 25)
    else:
        with av.open(str(tmp_path / "x.mp4")) as source, av.open(str(path), "w") as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    assert frame_times(path) is None
    write_image(tmp_path / "picture.png", movie(1)[0])
    assert frame_times(tmp_path / "picture.png") is None
