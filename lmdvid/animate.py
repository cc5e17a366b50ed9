"""A picture moves with a video: on tensors, on streams of frames, from file to file."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lmdvid.networks import Mode
from lmdvid.pretrained import load_network
from lmdvid.video import (
    IMAGE_SUFFIXES,
    VideoWriter,
    centre_square,
    probe,
    read_clip,
    resize,
    stream_frames,
    to_float,
    to_uint8,
    write_image,
)


class AnimationError(ValueError):
    """What was asked for cannot be animated."""


class AnimationNetwork(Protocol):
    """What `Animator` needs of a network; `Source` and codes are the network's own business."""

    size: int

    def encode_source(self, image: Tensor):
        """What is computed once for a picture (1, 3, size, size) in [-1, 1]."""
        ...

    def encode_motion(self, frames: Tensor) -> Tensor:
        """Codes (T, ...) of driving frames (T, 3, size, size) in [-1, 1]."""
        ...

    def render(self, source, codes: Tensor, reference: Tensor | None, mode: Mode) -> Tensor:
        """The source in the poses of the codes, (T, 3, size, size)."""
        ...


class Animator:
    """Moves pictures with a trained network, in bounded memory.

    Args:
        network: An animation network, such as `lmdvid.networks.lia.Generator`, in evaluation mode.
        dtype: `torch.float32`, or `torch.bfloat16` to compute the convolutions in it.
        batch_size: Driving frames per pass.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype | None = None, batch_size: int = 8
    ) -> None:
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise AnimationError(f"dtype={dtype}: choose torch.float32 or torch.bfloat16")
        if batch_size < 1:
            raise AnimationError(f"batch_size={batch_size}: choose 1 or more")
        self.network: AnimationNetwork = network  # pyright: ignore[reportAttributeAccessIssue]
        self.device = next(network.parameters()).device
        self.dtype = dtype or torch.float32
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int = 8,
    ) -> "Animator":
        """Load a converted folder or a training checkpoint (its averaged generator).

        Args:
            path: Folder with `config.json` and `model.safetensors`, or a `.ckpt` file.
            device: `cpu`, `cuda`, `mps`, ...
            dtype: None is float32.
            batch_size: Driving frames per pass.

        Raises:
            WeightsError: If it cannot be loaded.
            AnimationError: If the network cannot animate.
        """
        network = load_network(path, device)
        if not all(hasattr(network, m) for m in ("encode_source", "encode_motion", "render")):
            raise AnimationError(f"{path} holds a {type(network).__name__}, which cannot animate")
        return cls(network, dtype, batch_size)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that the network takes and makes."""
        return self.network.size

    def animate(self, source: Tensor, driving: Tensor, mode: Mode = "relative") -> Tensor:
        """Move a picture with a clip.

        Args:
            source: (3, size, size) in [-1, 1].
            driving: (T, 3, size, size) in [-1, 1].
            mode: `relative` starts from the source's pose and applies the driving video's change
                since its first frame; `absolute` takes the driving poses as they are.

        Returns:
            (T, 3, size, size) float32, unclamped.
        """
        if not len(driving):
            raise AnimationError("the driving clip has no frames")
        return torch.stack(list(self.stream(source, driving, mode)))

    def stream(
        self, source: Tensor, frames: Iterable[Tensor], mode: Mode = "relative"
    ) -> Iterator[Tensor]:
        """Move a picture with frames as they come.

        Args:
            source: (3, size, size) in [-1, 1].
            frames: Any number of (3, size, size) in [-1, 1].
            mode: See `animate`.

        Returns:
            An iterator over a frame (3, size, size) float32, unclamped, for each driving frame.

        Raises:
            AnimationError: For a wrong shape or mode.
        """
        if mode not in ("relative", "absolute"):
            raise AnimationError(f"mode={mode!r}: choose 'relative' or 'absolute'")
        if source.shape != (3, self.size, self.size):
            raise AnimationError(
                f"source has shape {tuple(source.shape)}: this network takes "
                f"(3, {self.size}, {self.size})"
            )
        return self._stream(source, frames, mode)

    def _stream(self, source: Tensor, frames: Iterable[Tensor], mode: Mode) -> Iterator[Tensor]:
        # Entered for each pass, not around the loop: the caller's code runs between two frames.
        @contextlib.contextmanager
        def inference():
            half = self.dtype != torch.float32
            with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=half):
                yield

        with inference():
            encoded = self.network.encode_source(source[None].to(self.device))
        reference = None
        frames = iter(frames)
        while batch := list(itertools.islice(frames, self.batch_size)):
            with inference():
                codes = self.network.encode_motion(torch.stack(batch).to(self.device))
                if reference is None:
                    reference = codes[:1]
                rendered = self.network.render(encoded, codes, reference, mode)
            yield from rendered.float()

    def animate_file(
        self,
        source: str | Path,
        driving: str | Path,
        output: str | Path,
        mode: Mode | None = None,
        fit: Literal["crop", "pad"] = "crop",
        side_by_side: bool = False,
        audio: bool = True,
        progress: bool = False,
    ) -> Path:
        """Move the picture in a file with the video in another, in bounded memory.

        Args:
            source: A picture; of a video, its first frame.
            driving: A video, gif, folder of frames, or a single picture.
            output: `.mp4` or `.gif`; `.png` or `.jpg` for a single driving picture; `.npz` for the
                exact float32 frames, `video` (T, 3, size, size) unclamped with `fps` (numerator,
                denominator), which unlike the others are held in memory.
            mode: See `animate`. None is `relative` for videos and `absolute` for a single picture.
            fit: Pictures that are not square are cropped or padded, never squashed.
            side_by_side: Show source | driving | result.
            audio: Keep the driving video's sound.
            progress: Show a progress bar with frames per second.

        Returns:
            The path written. Frame rate and number of frames are the driving video's.

        Raises:
            VideoReadError: If an input cannot be read.
            AnimationError: If the output's suffix, or the mode for this input, makes no sense.
        """
        output = Path(output)
        suffix = output.suffix.lower()
        if suffix not in {".mp4", ".m4v", ".gif", ".npz", *IMAGE_SUFFIXES}:
            raise AnimationError(
                f"cannot write {output.name}: choose .mp4, .gif, .png, .jpg or .npz"
            )
        info = probe(driving)
        if info.kind == "image":
            if mode == "relative":
                raise AnimationError(
                    "one driving picture holds no motion relative to itself: use mode absolute"
                )
            mode = "absolute"
        elif suffix in IMAGE_SUFFIXES:
            raise AnimationError(f"{driving} is a video: write to .mp4, .gif or .npz, not {suffix}")
        if suffix == ".npz" and side_by_side:
            raise AnimationError("an .npz holds the result alone: leave side-by-side out")

        picture = self._fitted(read_clip(source, [0]), fit)[0]
        frames = self._fitted_stream(driving, fit)
        if side_by_side:
            frames, shown = itertools.tee(frames)
        result = self.stream(to_float(picture), (to_float(f) for f in frames), mode or "relative")
        if progress:
            result = _with_progress(result, info.frames)

        if suffix == ".npz":
            _save_npz(output, np.stack([frame.cpu().numpy() for frame in result]), info.fps)
            return output

        finished = (to_uint8(frame.cpu()) for frame in result)
        if side_by_side:
            pairs = zip(finished, shown, strict=False)
            finished = (torch.cat([picture, driver, made], dim=1) for made, driver in pairs)
        if suffix in IMAGE_SUFFIXES:
            write_image(output, next(finished))
            return output
        sound = driving if audio and info.has_audio and suffix != ".gif" else None
        with VideoWriter(output, info.fps, audio_from=sound) as writer:
            for frame in finished:
                writer.write(frame)
        return output

    def _fitted(self, frames: Tensor, fit: Literal["crop", "pad"]) -> Tensor:
        """uint8 (T, H, W, 3) to (T, size, size, 3)."""
        return resize(centre_square(frames, fit), self.size)

    def _fitted_stream(self, path: str | Path, fit: Literal["crop", "pad"]) -> Iterator[Tensor]:
        for frame in stream_frames(path):
            yield self._fitted(frame[None], fit)[0]


def animate_file(
    source: str | Path,
    driving: str | Path,
    checkpoint: str | Path,
    output: str | Path,
    mode: Mode | None = None,
    side_by_side: bool = False,
    fit: Literal["crop", "pad"] = "crop",
    batch_size: int = 8,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    audio: bool = True,
    progress: bool = True,
) -> Path:
    """Load a checkpoint and move one picture: what `lmdvid animate` does.

    `device` may be `auto`: CUDA, then Apple's GPU, then the CPU, whichever is there. The other
    arguments are those of `Animator.from_pretrained` and `Animator.animate_file`.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator is not None else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AnimationError(
            f"device {device!r} is not available here: choose cpu, or what `lmdvid doctor` lists "
            "under accelerators"
        ) from error
    animator = Animator.from_pretrained(checkpoint, device, getattr(torch, dtype), batch_size)
    return animator.animate_file(
        source, driving, output, mode, fit, side_by_side, audio=audio, progress=progress
    )


def _save_npz(path: Path, video: np.ndarray, fps: Fraction) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            np.savez(file, video=video, fps=np.array([fps.numerator, fps.denominator]))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _with_progress(frames: Iterator[Tensor], total: int) -> Iterator[Tensor]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    rate = TextColumn("{task.fields[rate]:.1f} frames/s")
    with Progress("animate", BarColumn(), MofNCompleteColumn(), rate) as bar:
        task = bar.add_task("animate", total=total, rate=0.0)
        start = time.perf_counter()
        for count, frame in enumerate(frames, 1):
            bar.update(task, completed=count, rate=count / (time.perf_counter() - start))
            yield frame
