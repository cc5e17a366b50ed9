"""Decoding on an NVIDIA GPU: who can, and frames out of a file's bytes.

Each process decodes on its own GPU, and none that was forked can: loader workers read bytes, and
the process that trains decodes them.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from lmdvid.video import decord_backend, pyav_backend, torchcodec_backend
from lmdvid.video.info import in_order, to_numbers
from lmdvid.video.scan import ScannedClip
from lmdvid.video.write import write_video

DecoderName = Literal["decord", "torchcodec", "pyav"]

_BACKENDS: dict[DecoderName, ModuleType] = {
    "decord": decord_backend,
    "torchcodec": torchcodec_backend,
    "pyav": pyav_backend,
}
_RECIPES = {
    "decord": "No decord on PyPI decodes on GPUs; to build one: git clone --recursive "
    "https://github.com/dmlc/decord, cmake -DUSE_CUDA=ON, make, pip install ./python (needs nvcc, "
    "FFmpeg 4 with headers and libnvcuvid.so)",
    "pyav": "PyAV needs NVIDIA's driver with libnvcuvid.so.1 (in containers "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)",
}
# Smallest width and height that NVIDIA's decoder takes.
_CODECS = {"h264": (48, 16), "hevc": (144, 144), "vp9": (128, 128), "av1": (128, 128)}
_PIXELS = ("yuv420p", "yuvj420p")
_TOLERANCE = 4.0  # grey levels, mean: decoders round colours differently, by about 1


class NoGpuDecoderError(RuntimeError):
    """The decoder that is insisted on cannot decode on the GPU."""


@dataclass(frozen=True)
class GpuDecoder:
    """A decoder that works on a GPU.

    Attributes:
        name: which one.
        device: the GPU, with its number.
    """

    name: DecoderName
    device: torch.device

    def read(self, path: str | Path, encoded: bytes, indices: Iterable[int]) -> Tensor:
        """Frames of a clip by their numbers.

        Args:
            path: Where the bytes come from, for messages.
            encoded: The whole file.
            indices: Frame numbers from 0, in any order, repeats allowed.

        Returns:
            (T, H, W, 3) uint8 RGB, on the GPU.

        Raises:
            VideoReadError: The GPU's decoder cannot read this; the CPU's may.
        """
        numbers = to_numbers(path, indices)
        ordered = sorted(set(numbers))
        read = _BACKENDS[self.name].read_on_gpu
        return in_order(read(Path(path), encoded, ordered, self.device.index), ordered, numbers)


def find_gpu_decoder(
    device: torch.device, backend: Literal["auto", "decord", "pyav"] = "auto"
) -> tuple[GpuDecoder | None, str]:
    """Find who decodes on a GPU; tried out there with a short clip.

    Args:
        device: The GPU.
        backend: `decord` and `pyav` insist on one; `auto` takes the first that works of decord,
            torchcodec and PyAV.

    Returns:
        The decoder, or None where `auto` finds none, which leaves the CPU; and a line that says
        what was taken, and why not what comes before it.

    Raises:
        NoGpuDecoderError: The decoder that is insisted on does not work there.
    """
    if device.type == "cuda" and device.index is None:
        known = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device() if known else 0)
    why_not = {}
    walk: tuple[DecoderName, ...] = tuple(_BACKENDS) if backend == "auto" else (backend,)
    for name in walk:
        obstacle = gpu_obstacle(name, device)
        if obstacle is None:
            reasons = f" ({_listed(why_not)})" if why_not else ""
            return GpuDecoder(name, device), f"{name} decodes on {device}{reasons}"
        why_not[name] = obstacle
    if backend != "auto":
        raise NoGpuDecoderError(
            f"backend='{backend}' cannot decode on {device}: {why_not[backend]}. "
            f"{_RECIPES[backend]}; or use backend='auto'"
        )
    return None, f"the CPU decodes, since nothing does on {device} ({_listed(why_not)})"


@lru_cache
def gpu_obstacle(name: DecoderName, device: torch.device) -> str | None:
    """Why this decoder does not work on this GPU, found out by decoding there; None if it does."""
    if device.type != "cuda":
        return f"{device} is no NVIDIA GPU"
    try:
        obstacle = _BACKENDS[name].cuda_obstacle(device.index)
    except Exception as error:  # a library that does not load, or a GPU that does not answer
        return _failure(error)
    if obstacle is not None:
        return obstacle
    # What a build can and what a driver allows show only in use: some decode on the CPU in silence.
    levels = torch.arange(16) * 12 + 30
    frames = levels.to(torch.uint8).view(16, 1, 1, 1).expand(16, 256, 256, 3).contiguous()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trial.mp4")
        write_video(path, frames, Fraction(25), options={"g": "6", "bf": "2"})
        try:
            seen = GpuDecoder(name, device).read(path, path.read_bytes(), [13, 0, 7]).cpu().float()
        except Exception as error:  # whatever it is, this decoder does not work here
            return _failure(error).replace(str(path), "a clip")
    wrong = (seen - levels[[13, 0, 7]].view(3, 1, 1, 1)).abs().mean().item()
    return None if wrong <= _TOLERANCE else f"gives wrong frames (off by {wrong:.0f} grey levels)"


def _failure(error: Exception) -> str:
    return f"fails: {(str(error).splitlines() or [type(error).__name__])[0]}"


def unfit_for_gpu(clip: ScannedClip, name: DecoderName) -> str:
    """What this decoder lacks or gets wrong in a clip on a GPU; empty if nothing is known."""
    if not clip.pixels:
        return "pictures"
    if clip.codec not in _CODECS:
        return f"the codec {clip.codec}"
    pixels, *colours = clip.pixels.split()
    if pixels not in _PIXELS:
        return f"the pixel format {pixels}"
    if "other" in colours:
        return "colours other than BT.601 and BT.709"
    width, height = _CODECS[clip.codec]
    if clip.width < width or clip.height < height:
        return f"{clip.codec} below {width}x{height}"
    if clip.width % 2 or clip.height % 2:
        return "odd sizes"
    if name == "pyav":
        return ""
    if clip.rotation:
        return "a rotation"
    if name == "decord" and colours:
        return "BT.709 or full-range colours"
    return clip.suspicious


def _listed(why_not: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in why_not.items())
