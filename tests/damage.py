"""Damaged video files by the hundred, always the same ones."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from barcodes import barcode, encode

_BASES = {
    "h264.mp4": dict(options={"g": "12"}),
    "faststart.mp4": dict(options={"g": "12"}, container_options={"movflags": "+faststart"}),
    "fragments.mp4": dict(
        options={"g": "12"}, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264.mkv": dict(options={"g": "12"}),
    "h264.ts": dict(options={"g": "12"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"g": "12"}),
    "hevc.mp4": dict(codec="libx265", options={"g": "12"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"g": "12", "deadline": "realtime"}),
    "av1.mp4": dict(codec="libsvtav1", options={"g": "12", "preset": "12"}),
    "moving.gif": dict(codec="gif", pix_fmt="rgb8"),
}
FRAMES, COUNT = 30, 300


def damaged(folder: Path, count: int = COUNT) -> list[Path]:
    """Write the files into a folder; their names tell what happened to them."""
    bases = folder / "bases"
    bases.mkdir()
    contents = {
        name: encode(bases / name, list(range(FRAMES)), **how).read_bytes()
        for name, how in _BASES.items()
    }
    paths = []
    for name, data in _files(bases, contents):
        paths.append(folder / f"{len(paths):03d}_{name}")
        paths[-1].write_bytes(data)
        if len(paths) == count:
            break
    for base in bases.iterdir():
        base.unlink()
    bases.rmdir()
    return paths


def _files(bases: Path, contents: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(2024)
    yield "empty.mp4", b""
    yield "empty.avi", b""
    yield "text.mp4", b"this is not a video\n" * 200
    yield "text.webm", b"neither is this"
    yield "noise.mp4", rng.bytes(5000)
    yield "noise.mkv", rng.bytes(20000)
    yield "only_ftyp.mp4", contents["h264.mp4"][:32]
    yield "sound.mp4", _sound(bases / "sound.mp4")
    yield "sound.mkv", _sound(bases / "sound.mkv")
    yield "no_frame.mp4", _no_frame(bases / "none.mp4")
    yield "no_frame.mkv", _no_frame(bases / "none.mkv")
    yield "no_frame.avi", _no_frame(bases / "none.avi")
    for name, data in contents.items():
        wrong = {"mp4": "mkv", "mkv": "mp4", "gif": "avi"}.get(name.rsplit(".")[-1], "mp4")
        yield f"named_otherwise_{name}.{wrong}", data
    while True:
        for name, data in contents.items():
            yield f"cut_{name}", data[: int(rng.integers(1, len(data)))]
            yield f"beheaded_{name}", data[int(rng.integers(1, len(data) // 4)) :]
            for flips in (1, 10, 100):
                yield f"{flips}_bits_{name}", _flipped(data, flips, rng)
            yield f"head_bits_{name}", _flipped(data[:400], 12, rng) + data[400:]
            yield f"tail_bits_{name}", data[:-400] + _flipped(data[-400:], 12, rng)
            start, length = rng.integers(len(data)), rng.integers(1, len(data) // 2)
            hole = bytes(min(int(length), len(data) - int(start)))
            yield f"hole_{name}", data[:start] + hole + data[start + len(hole) :]
            yield f"twice_{name}", data[:start] + data[int(start) // 2 :]


def _flipped(data: bytes, flips: int, rng: np.random.Generator) -> bytes:
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    bits[rng.choice(len(bits), min(flips, len(bits)), replace=False)] ^= 1
    return np.packbits(bits).tobytes()


def _sound(path: Path) -> bytes:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", 16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        sound.rate = 16000
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))
    return path.read_bytes()


def _no_frame(path: Path) -> bytes:
    """A header that announces a video, without any packet."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", 25)
        stream.height, stream.width = barcode(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        output.start_encoding()
    return path.read_bytes()
