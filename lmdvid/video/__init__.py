"""Clips in and out of files: uint8 (T,H,W,3) RGB at the boundary, exact frame numbers and rates."""

from lmdvid.video.frames import centre_square, resize, to_float, to_uint8
from lmdvid.video.info import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoInfo, VideoReadError
from lmdvid.video.read import (
    Backend,
    check_backend,
    is_clip,
    probe,
    read_clip,
    stream_frames,
)
from lmdvid.video.write import VideoWriter, write_image, write_video

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Backend",
    "VideoInfo",
    "VideoReadError",
    "VideoWriter",
    "centre_square",
    "check_backend",
    "is_clip",
    "probe",
    "read_clip",
    "resize",
    "stream_frames",
    "to_float",
    "to_uint8",
    "write_image",
    "write_video",
]
