"""Clips whose frames tell their numbers, in every container and codec that can go wrong."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

HEIGHT, WIDTH, BITS = 64, 96, 8


def barcode(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that tells its number after lossy coding: its bits as bars, over a colour ramp."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = np.linspace(0, 255, width)
    frame[..., 1] = np.linspace(0, 255, height)[:, None]
    frame[..., 2] = 5 * number % 256
    for bit in range(BITS):
        frame[:16, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    return frame


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers in frames (T,H,W,3)."""
    bars = frames[:, 4:12].float().mean((1, 3)).unflatten(1, (BITS, -1)).mean(2) > 127
    return (bars * 2 ** torch.arange(BITS)).sum(1).tolist()


def encode(
    path: Path,
    shown: list[int],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: Fraction | int = 25,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    rotation: int = 0,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Barcodes in a file, by PyAV alone so that reading is not tested against our own writer."""
    options = dict(options or {})
    if codec == "libx265":  # it prints otherwise
        options["x265-params"] = f"log-level=none:{options.get('x265-params', '')}".rstrip(":")
    with av.open(str(path), "w", options=container_options or {}) as output:
        stream = output.add_stream(codec, fps, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for place, number in enumerate(shown):
            picture = av.VideoFrame.from_ndarray(barcode(number, *size))
            picture.pts = times[place] if times else place
            picture.time_base = 1 / Fraction(fps)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, stamp) -> Path:
    """The packets of `source` with the (pts, dts) that `stamp(place, pts, dts, step)` gives."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        step = int(1 / stream.average_rate / stream.time_base)
        copy = output.add_stream_from_template(stream)
        for place, packet in enumerate(p for p in given.demux(stream) if p.size):
            packet.pts, packet.dts = stamp(place, packet.pts, packet.dts, step)
            packet.stream = copy
            output.mux(packet)
    return target


def shown_after_cut(folder: Path, name: str = "edit.mp4", options: dict | None = None) -> Path:
    """A file cut inside a group of pictures: an edit list hides the first 17 frames."""
    whole = encode(folder / f"whole_{name}", list(range(80)), options=options or {"g": "30"})
    return remux(
        whole,
        folder / name,
        lambda place, pts, dts, step: (pts - 17 * step, dts - 17 * step),
    )


def shown_after_open_cut(folder: Path) -> Path:
    options = {"x264-params": "open-gop=1:keyint=12:bframes=3"}
    return shown_after_cut(folder, "edit_open.mp4", options)


def repeated_times(folder: Path) -> Path:
    """Frames 0 and 1, 2 and 3, ... share a time stamp."""
    plain = encode(folder / "plain.mp4", list(range(40)), options={"g": "10", "bf": "0"})
    return remux(
        plain,
        folder / "twins.mp4",
        lambda place, pts, dts, step: (dts + step * (1 - place % 2), dts),
    )


F60 = list(range(60))
MAKERS = {
    # name: (frames it shows, who reads it under auto, how to make it)
    "long.mp4": (F60, "decord", dict(options={"g": "250", "bf": "3"})),
    "gop12.mp4": (F60, "decord", dict(options={"g": "12"})),
    "intra.mp4": (F60, "decord", dict(options={"g": "1"})),
    "ntsc.mp4": (F60, "decord", dict(fps=Fraction(30000, 1001))),
    "one.mp4": ([7], "decord", {}),
    "fragments.mp4": (
        F60,
        "decord",
        dict(options={"g": "12"}, container_options={"movflags": "frag_keyframe+empty_moov"}),
    ),
    "rate_varies.mp4": (
        F60,
        "decord",
        dict(times=[n + n // 7 + 5 * (n > 30) for n in F60], options={"g": "12"}),
    ),
    "turned.mp4": (F60, "decord", dict(rotation=90)),
    "upside_down.mp4": (F60, "decord", dict(rotation=180)),
    "vp9.webm": (F60, "decord", dict(codec="libvpx-vp9", options={"g": "12"})),
    "mpeg4.avi": (F60, "decord", dict(codec="mpeg4", options={"qmax": "3"})),
    "h264.mkv": (F60, "decord", dict(options={"g": "20"})),
    "alternate.webm": (
        F60,  # packets that show no frame
        "decord",
        dict(codec="libvpx-vp9", options={"auto-alt-ref": "1", "lag-in-frames": "25", "g": "24"}),
    ),
    "mjpeg.avi": (F60, "decord", dict(codec="mjpeg", pix_fmt="yuvj420p")),
    "offset.mp4": (F60, "decord", dict(times=[n + 50 for n in F60])),
    "b_frames.avi": (F60, "pyav", dict(options={"g": "12", "bf": "2"})),
    "plain.avi": (F60, "pyav", dict(options={"g": "12", "bf": "0"})),
    "alternate_vp8.webm": (
        F60,
        "pyav",
        dict(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24"}),
    ),
    "strips.mp4": (
        F60,
        "pyav",
        dict(options={"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    ),
    "fields.mp4": (
        F60,
        "pyav",
        dict(options={"x264-params": "tff=1", "flags": "+ilme+ildct", "g": "12"}),
    ),
    "deep.mp4": (F60, "pyav", dict(pix_fmt="yuv420p10le", options={"g": "12"})),
    "av1.mp4": (F60, "pyav", dict(codec="libsvtav1", options={"g": "24", "preset": "12"})),
    "av1_odd.mp4": (
        F60,
        "pyav",
        dict(codec="libsvtav1", size=(67, 88), options={"preset": "12"}),
    ),
    "hevc.mp4": (F60, "pyav", dict(codec="libx265", options={"g": "12"})),
    "hevc_open.mp4": (
        F60,
        "pyav",
        dict(codec="libx265", options={"x265-params": "open-gop=1:keyint=12:bframes=4"}),
    ),
    "stream.ts": (F60, "pyav", dict(options={"g": "12"})),
    "moving.gif": (F60, "pyav", dict(codec="gif", pix_fmt="rgb8")),
    "odd.mp4": (F60, "pyav", dict(codec="mpeg4", size=(63, 88), options={"qmax": "3"})),
    "full_colour.mp4": (F60, "pyav", dict(pix_fmt="yuv444p")),
    "open.mp4": (F60, "pyav", dict(options={"x264-params": "open-gop=1:keyint=12:bframes=3"})),
    "open.ts": (F60, "pyav", dict(options={"x264-params": "open-gop=1:keyint=12:bframes=3"})),
    "one.gif": ([7], "pyav", dict(codec="gif", pix_fmt="rgb8")),
    "one.ts": ([7], "pyav", {}),
    "edit.mp4": (list(range(17, 80)), "pyav", shown_after_cut),
    "edit_open.mp4": (list(range(17, 80)), "pyav", shown_after_open_cut),
    "twins.mp4": (list(range(40)), "pyav", repeated_times),
}


def make(name: str, folder: Path) -> Path:
    """The clip of this name in `MAKERS`, made where it is not there yet."""
    path = folder / name
    shown, _, how = MAKERS[name]
    if not path.exists():
        how(folder) if callable(how) else encode(path, shown, **how)
    return path
