"""torchcodec: decodes on GPUs as its Linux wheel comes. Nothing else imports it."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from lmdvid.video.info import VideoReadError, check_indices

_OLDEST = (0, 17)  # older ones mix up crops of clips of one size, and drop frames, on GPUs


def cuda_obstacle(gpu: int) -> str | None:
    """Why torchcodec cannot decode on this GPU; None if nothing is known that stands against it."""
    try:
        found = version("torchcodec")
    except PackageNotFoundError:
        return "not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST:
        return f"{found} is older than {'.'.join(map(str, _OLDEST))}"
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception as error:  # it fails with whatever its missing libraries raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"{found} cannot be imported: {reason}"
    return None


def read_on_gpu(path: Path, encoded: bytes, indices: Sequence[int], gpu: int) -> Tensor:
    """The frames at sorted, unique `indices` of a file's bytes, uint8 (T,H,W,3) on the GPU.

    Raises:
        VideoReadError: The file or one of the frames cannot be read on the GPU.
    """
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        decoder = VideoDecoder(encoded, dimension_order="NHWC", device=f"cuda:{gpu}")
        if decoder.cpu_fallback:
            raise VideoReadError(path, f"torchcodec would use the CPU ({decoder.cpu_fallback})")
        check_indices(path, indices, len(decoder))
        return decoder.get_frames_at(list(indices)).data
    except (RuntimeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VideoReadError(path, f"torchcodec: {reason}") from None
