"""Clips in and out of files: uint8 (T,H,W,3) RGB at the boundary, exact frame numbers and rates."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmdvid.video.arrays import ARRAY_SUFFIXES, without_suffix
    from lmdvid.video.cut import Cut
    from lmdvid.video.frames import centre_square, resize, to_float, to_uint8
    from lmdvid.video.gpu import (
        GpuDecoder,
        NoGpuDecoderError,
        find_gpu_decoder,
        gpu_obstacle,
        unfit_for_gpu,
    )
    from lmdvid.video.info import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoInfo, VideoReadError
    from lmdvid.video.read import (
        Backend,
        Reader,
        check_backend,
        content,
        decode,
        frame_times,
        is_clip,
        probe,
        read_bytes,
        read_clip,
        reader_of,
        stream_frames,
        stream_lazily,
    )
    from lmdvid.video.scan import Scan, ScannedClip, scan_clips
    from lmdvid.video.tfrecord import RECORD_SUFFIXES, Record, record_lengths, records
    from lmdvid.video.write import VideoWriteError, VideoWriter, write_image, write_video

_MODULES = {
    "arrays": ("ARRAY_SUFFIXES", "without_suffix"),
    "cut": ("Cut",),
    "frames": ("centre_square", "resize", "to_float", "to_uint8"),
    "gpu": (
        "GpuDecoder",
        "NoGpuDecoderError",
        "find_gpu_decoder",
        "gpu_obstacle",
        "unfit_for_gpu",
    ),
    "info": ("IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "VideoInfo", "VideoReadError"),
    "read": (
        "Backend",
        "Reader",
        "check_backend",
        "content",
        "decode",
        "frame_times",
        "is_clip",
        "probe",
        "read_bytes",
        "read_clip",
        "reader_of",
        "stream_frames",
        "stream_lazily",
    ),
    "scan": ("Scan", "ScannedClip", "scan_clips"),
    "tfrecord": ("RECORD_SUFFIXES", "Record", "record_lengths", "records"),
    "write": ("VideoWriteError", "VideoWriter", "write_image", "write_video"),
}

__all__ = [
    "ARRAY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "RECORD_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Backend",
    "Cut",
    "GpuDecoder",
    "NoGpuDecoderError",
    "Reader",
    "Record",
    "Scan",
    "ScannedClip",
    "VideoInfo",
    "VideoReadError",
    "VideoWriteError",
    "VideoWriter",
    "centre_square",
    "check_backend",
    "content",
    "decode",
    "find_gpu_decoder",
    "frame_times",
    "gpu_obstacle",
    "is_clip",
    "probe",
    "read_bytes",
    "read_clip",
    "reader_of",
    "record_lengths",
    "records",
    "resize",
    "scan_clips",
    "stream_frames",
    "stream_lazily",
    "to_float",
    "to_uint8",
    "unfit_for_gpu",
    "without_suffix",
    "write_image",
    "write_video",
]


def __getattr__(name: str):
    # Lazily, so that a process that only looks into files starts without torch.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
