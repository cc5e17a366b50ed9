"""A picture moves with a video: on tensors, on streams of frames, from file to file."""

import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lmdvid.framing import Crop, Fit, Framing, PasteBack
from lmdvid.networks import Mode
from lmdvid.ops.onednn import inference_dtype
from lmdvid.ops.parallel import at_once, in_order
from lmdvid.ops.recording import Recorded
from lmdvid.pretrained import choose_device, load_network
from lmdvid.video import (
    IMAGE_SUFFIXES,
    VideoInfo,
    VideoReadError,
    VideoWriter,
    frame_times,
    probe,
    stream_frames,
    to_float,
    to_uint8,
    write_image,
)
from lmdvid.video.overlap import read_ahead, write_behind

T = TypeVar("T")
Paths = str | Path | Sequence[str | Path]
Reference = int | Literal["best"]
_COUNTED: tuple[Mode, ...] = ("relative", "adaptive")  # modes that count motion from a reference
Column = tuple[Tensor, tuple[Tensor, ...]]
"""A driving frame uint8 (size, size, 3), and what each source became, float (3, size, size)."""


class AnimationError(ValueError):
    """What was asked for cannot be animated."""


class AnimationNetwork(Protocol):
    """What `Animator` needs of a network; `Source` and codes are the network's own business."""

    size: int

    @property
    def modes(self) -> tuple[Mode, ...]:
        """How it can move a picture."""
        ...

    @property
    def directions(self) -> int:
        """Motion directions, which can be chosen one by one; 0 where codes are something else."""
        ...

    def encode_source(self, image: Tensor) -> Any:
        """What is computed once for a picture (1, 3, size, size) in [-1, 1]; its codes in `codes`.

        It is a dataclass.
        """
        ...

    def encode_motion(self, frames: Tensor) -> Tensor:
        """Codes (T, ...) of driving frames (T, 3, size, size) in [-1, 1]."""
        ...

    def render(
        self,
        source,
        codes: Tensor,
        reference: Tensor | None,
        mode: Mode,
        magnitude: float = 1.0,
    ) -> Tensor:
        """The source in the poses of the codes, (T, 3, size, size)."""
        ...

    def pose_distance(self, source, codes: Tensor) -> Tensor:
        """How unlike the source's pose the codes are, (T,)."""
        ...


class Animator:
    """Moves pictures with a trained network, in bounded memory.

    On an NVIDIA GPU full batches after the third are replayed as one CUDA graph, where a network
    says of itself that it `replays`.

    Args:
        network: An animation network, such as `lmdvid.networks.lia.Generator`, in evaluation mode.
            On a CPU or an NVIDIA GPU its weights are laid out channels last, which changes no value
            and is faster; what a CPU's convolutions make of them is kept: it takes up to one and a
            half times their memory again.
        dtype: `torch.float32`, or `torch.bfloat16` to compute the convolutions in it. None is
            bfloat16 on a CPU with instructions for it, and float32 everywhere else.
        batch_size: Driving frames per pass; 1 for a live source, of which each frame is shown
            before the next is taken. None is 8, on a CPU fewer of larger frames, one of 256 px for
            each of its threads: there what stays in the caches is faster.
        compile: Compile the network for full batches, on a CPU, and as many threads as torch has
            now; its weights must then stay. That takes a C++ compiler and about a minute, in the
            first pass of every mode and magnitude; from the ninth magnitude on torch leaves it.

    Attributes:
        taken: Called, where it is given, whenever the network takes frames: a sign of life.
    """

    taken: Callable[[], None] | None = None

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        compile: bool = False,
    ) -> None:
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise AnimationError(f"dtype={dtype}: choose torch.float32 or torch.bfloat16")
        if batch_size is not None and batch_size < 1:
            raise AnimationError(f"batch_size={batch_size}: choose 1 or more")
        self.device = next(network.parameters()).device
        if self.device.type in ("cpu", "cuda"):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network: AnimationNetwork = network  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = dtype or inference_dtype(self.device)
        if batch_size is None:
            fitting = (256 // self.size) ** 2 * self._parts() if self.device.type == "cpu" else 8
            batch_size = max(1, min(8, fitting))
        self.batch_size = batch_size
        if compile:
            if self.device.type != "cpu":
                raise AnimationError(
                    f"compile is for CPUs, and the network is on {self.device}: leave it out"
                )
            threads = self._parts() // min(self._parts(), self.batch_size)
            self.network = _Compiled(self.network, self._frames_of_a_part(), threads)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        compile: bool = False,
    ) -> "Animator":
        """Load a converted folder or a training checkpoint (its averaged generator).

        Args:
            path: Folder with `config.json` and `model.safetensors`, a `.ckpt` file, or the name of
                a network that is installed with the program: `puppets`.
            device: `cpu`, `cuda`, `mps`, ...
            dtype: See `Animator`.
            batch_size: Driving frames per pass; see `Animator`.
            compile: See `Animator`.

        Raises:
            WeightsError: If it cannot be loaded.
            AnimationError: If the network cannot animate.
        """
        network = load_network(path, device)
        if not all(hasattr(network, m) for m in ("encode_source", "encode_motion", "render")):
            raise AnimationError(f"{path} holds a {type(network).__name__}, which cannot animate")
        return cls(network, dtype, batch_size, compile)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that the network takes and makes."""
        return self.network.size

    def animate(
        self,
        source: Tensor,
        driving: Tensor,
        mode: Mode = "relative",
        absolute_directions: Sequence[int] = (),
        magnitude: float = 1.0,
        edit: Mapping[int, float] | None = None,
        reference: Reference = 0,
    ) -> Tensor:
        """Move a picture with a clip.

        With magnitudes a(x_s) of the source, a(x_t) of driving frame t, and the factor m, the
        source is shown at a(x_s) + m (a(x_t) - a(x_1)) in mode `relative`, at m a(x_t) in mode
        `absolute`. The directions are orthogonal, so that each can have a mode of its own. Networks
        that move keypoints do the like with them, see their `render`.

        Args:
            source: (3, size, size) in [-1, 1].
            driving: (T, 3, size, size) in [-1, 1].
            mode: `relative` starts from the source's pose and applies the driving video's change
                since its first frame; `adaptive`, for keypoints, as much larger as the source is;
                `absolute` takes the driving poses as they are; `avd`, for MRAA, takes them in the
                source's shape.
            absolute_directions: Directions, counted from 0, that are absolute in mode `relative`.
            magnitude: The factor m: 1 copies the motion, 2 doubles it, 0 leaves in mode `relative`
                the source as it is and in mode `absolute` shows it in the pose without motion.
            edit: Magnitudes by direction, counted from 0, that are added throughout, in either
                mode: the source is edited before it moves.
            reference: Number of the driving frame, instead of the first, since which change is
                counted, or `best` for the one whose pose is most like the source's.

        Returns:
            (T, 3, size, size) float32, unclamped.
        """
        if not len(driving):
            raise AnimationError("the driving clip has no frames")
        self._check_motion(mode, absolute_directions, magnitude, edit or {}, reference)
        subjects = [self._subject(source, absolute_directions, edit or {})]
        references = self._references(subjects, driving, reference)
        frames = self._stream(subjects, driving, mode, magnitude, references)
        return torch.stack([made for (made,) in frames])

    def stream(
        self,
        source: Tensor,
        frames: Iterable[Tensor],
        mode: Mode = "relative",
        absolute_directions: Sequence[int] = (),
        magnitude: float = 1.0,
        edit: Mapping[int, float] | None = None,
    ) -> Iterator[Tensor]:
        """Move a picture with frames as they come.

        Args:
            source: (3, size, size) in [-1, 1].
            frames: Any number of (3, size, size) in [-1, 1].
            mode: See `animate`.
            absolute_directions: See `animate`.
            magnitude: See `animate`.
            edit: See `animate`.

        Returns:
            An iterator over a frame (3, size, size) float32, unclamped, for each driving frame.

        Raises:
            AnimationError: For a wrong shape, mode, direction or magnitude.
        """
        edit = edit or {}
        self._check_motion(mode, absolute_directions, magnitude, edit)
        subject = self._subject(source, absolute_directions, edit)
        return (made for (made,) in self._stream([subject], frames, mode, magnitude))

    @contextmanager
    def _inference(self) -> Iterator[None]:
        # Entered for each pass, not around the loop: the caller's code runs between two frames.
        half = self.dtype != torch.float32
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=half):
            yield

    def _subject(
        self, source: Tensor, absolute_directions: Sequence[int], edit: Mapping[int, float]
    ) -> "_Subject":
        if source.shape != (3, self.size, self.size):
            raise AnimationError(
                f"source has shape {tuple(source.shape)}: this network takes "
                f"(3, {self.size}, {self.size})"
            )
        with self._inference():
            image = source[None].to(self.device)
            encoded = self.network.encode_source(image)
            for direction in (*absolute_directions, *edit):
                if not 0 <= direction < self.network.directions:
                    raise AnimationError(
                        f"no direction {direction}: this network has {self.network.directions}, "
                        f"counted from 0 to {self.network.directions - 1}"
                    )
            if edit:
                delta = torch.zeros_like(encoded.codes[0])
                delta[list(edit)] = torch.tensor(list(edit.values())).to(delta)
                encoded = self.network.edit_source(encoded, delta)  # pyright: ignore[reportAttributeAccessIssue]
        return _Subject.of(encoded, absolute_directions)

    def _stream(
        self,
        subjects: "Sequence[_Subject]",
        frames: Iterable[Tensor],
        mode: Mode,
        magnitude: float,
        references: Sequence[Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Each subject moved by each frame, which is encoded once for all of them.

        Without `references`, a code (1, ...) for each subject, motion is counted from the first
        frame.
        """

        def render(codes: Tensor) -> list[Tensor]:
            with self._inference():
                return [
                    self.network.render(s.encoded, codes, reference, mode, magnitude).float()
                    for s, reference in zip(subjects, counted, strict=True)
                ]

        moved = Recorded(lambda uploaded: render(self._codes(uploaded)))
        replays = getattr(self.network, "replays", False)

        def move(part: Tensor) -> Sequence[Tensor]:
            uploaded = self._upload(part)
            return moved(uploaded) if replays else moved.function(uploaded)

        frames = iter(frames)
        counted = [
            s.reference(known)
            for s, known in zip(subjects, references or (), strict=bool(references))
        ]
        if not counted:
            parts = next(self._encoded(frames), None)
            if parts is None:
                return
            counted = [s.reference(parts[0][:1]) for s in subjects]
            for made in at_once(render, parts):
                yield from zip(*made, strict=True)
        # From here on nothing has to wait for what all have in common.
        pieces = iter(lambda: list(itertools.islice(frames, self._frames_of_a_part())), [])
        count = min(self._parts(), self.batch_size)
        for made in in_order(move, map(torch.stack, pieces), count):
            yield from zip(*made, strict=True)

    def _upload(self, part: Tensor) -> Tensor:
        if self.taken is not None:
            self.taken()
        if self.device.type == "cuda" and not part.is_cuda:
            part = part.pin_memory()  # from there it is copied while the GPU computes
        return part.to(self.device, non_blocking=True)

    def _codes(self, part: Tensor) -> Tensor:
        with self._inference():
            return self.network.encode_motion(part)

    def _encode(self, part: Tensor) -> Tensor:
        return self._codes(self._upload(part))

    def _encoded(self, frames: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        """Codes of frames, a batch at a time in as many parts as are computed at once."""
        frames = iter(frames)
        while batch := list(itertools.islice(frames, self.batch_size)):
            yield at_once(self._encode, torch.stack(batch).chunk(self._parts()))

    def _references(
        self, subjects: "Sequence[_Subject]", frames: Iterable[Tensor], which: Reference
    ) -> list[Tensor] | None:
        """The codes (1, ...) from which each subject's motion is counted; None is the first's."""
        if which == 0:
            return None
        if which != "best":
            frames = itertools.islice(frames, which, which + 1)
        nearest = [(math.inf, torch.empty(0))] * len(subjects)
        for parts in self._encoded(frames):
            codes = torch.cat(parts)
            for i, subject in enumerate(subjects):
                distance, place = self.network.pose_distance(subject.encoded, codes).min(dim=0)
                if float(distance) < nearest[i][0]:
                    nearest[i] = float(distance), codes[place : place + 1]
        if nearest[0][0] == math.inf:
            raise AnimationError(f"there is no driving frame {which}, counted from 0")
        return [code for _, code in nearest]

    def _check_motion(
        self,
        mode: Mode,
        absolute_directions: Sequence[int],
        magnitude: float,
        edit: Mapping[int, float],
        reference: Reference = 0,
    ) -> None:
        network = self.network
        if mode not in network.modes:
            raise AnimationError(
                f"mode={mode!r}: choose {' or '.join(map(repr, network.modes))}, which this "
                "network has"
            )
        if (absolute_directions or edit) and not network.directions:
            raise AnimationError(
                "this network has no motion directions: leave the edit and absolute directions out"
            )
        if mode == "absolute" and absolute_directions:
            raise AnimationError(
                "in mode absolute every direction is absolute: leave absolute directions out, or "
                "choose mode relative for the others"
            )
        if not math.isfinite(magnitude):
            raise AnimationError(f"magnitude={magnitude}: choose a finite number, such as 1.5")
        if magnitude != 1 and mode not in _COUNTED and not network.directions:
            raise AnimationError(
                f"in mode {mode} keypoints are places, of which there is no multiple: leave the "
                "magnitude out, or choose mode relative"
            )
        for direction, value in edit.items():
            if not math.isfinite(value):
                raise AnimationError(
                    f"direction {direction} is set to {value}: choose a finite number"
                )
        if reference != "best" and reference < 0:
            raise AnimationError(f"reference={reference}: choose a frame, counted from 0, or best")
        if reference != 0 and mode not in _COUNTED:
            raise AnimationError(
                f"mode {mode} counts from no reference: leave it out, or choose mode relative"
            )

    def _parts(self) -> int:
        """Into how many parts a batch is divided, which are computed at the same time."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def _frames_of_a_part(self) -> int:
        return self.batch_size // min(self._parts(), self.batch_size)

    def _compile(self, subject: "_Subject", mode: Mode, magnitude: float) -> None:
        """Make one pass as the frames will, which compiles."""
        part = torch.zeros(self._frames_of_a_part(), 3, self.size, self.size)
        still = iter(part.repeat(2 * self._parts(), 1, 1, 1))
        for _ in self._stream([subject], still, mode, magnitude):
            pass

    def animate_file(
        self,
        source: Paths,
        driving: Paths,
        output: str | Path,
        mode: Mode | None = None,
        fit: Fit = "crop",
        side_by_side: bool = False,
        audio: bool = True,
        progress: bool = False,
        *,
        absolute_directions: Sequence[int] = (),
        magnitude: float = 1.0,
        crop: Crop = None,
        driving_crop: Crop = None,
        paste_back: bool = False,
        edit: Mapping[int, float] | None = None,
        reference: Reference = 0,
    ) -> Path:
        """Move the picture in a file with the video in another, in bounded memory.

        Reading and writing run in threads beside the network. Several sources or drivings make
        one video, a grid with a row for each source and a column for each driving, which are shown
        at its left and top. It has the rate and the sound of the first driving (of the first
        video's rate, where there are pictures too), in which the others keep their speed, and
        lasts as long as the longest; the others then hold their last frame.

        Args:
            source: A picture; of a video, its first frame. Or several.
            driving: A video, gif, folder of frames, or a single picture. Or several.
            output: `.mp4` or `.gif`; `.png` or `.jpg` for driving pictures; `.npz` for the
                exact float32 frames, `video` (T, 3, size, size) unclamped with `fps` (numerator,
                denominator), which unlike the others are held in memory.
            mode: See `animate`. None is `relative` for videos and `absolute` for a single picture,
                unless there are `absolute_directions`: then it gives the source these alone.
            fit: Pictures that are not square are cropped or padded, never squashed.
            side_by_side: Show source | driving | result.
            audio: Keep the driving video's sound.
            progress: Show a progress bar with frames per second.
            absolute_directions: See `animate`.
            magnitude: See `animate`.
            crop: Use only a part of the sources, (x, y, width, height) in pixels, or `face` for
                the largest face with room around it, which needs OpenCV.
            driving_crop: The same for the drivings; `face` is looked for in the first frame, and
                the box stays where it is.
            paste_back: Show the whole source picture in its own size, with the result where the
                part was that the network saw, its edge feathered.
            edit: See `animate`; of all sources.
            reference: See `animate`; any but the first is looked for before, in a reading of the
                driving of its own.

        Returns:
            The path written. The number of frames and the times at which they are shown are the
            driving video's.

        Raises:
            VideoReadError: If an input cannot be read.
            FramingError: If a box does not lie in its picture, or a face cannot be found.
            AnimationError: If the output's suffix, or the mode for this input, makes no sense.
        """
        output, edit = Path(output), edit or {}
        sources, drivings = _listed(source, "source"), _listed(driving, "driving")
        grid = len(sources) > 1 or len(drivings) > 1
        infos = [probe(path) for path in drivings]
        _check_output(output, drivings, infos, side_by_side, paste_back, grid)
        _check_overwriting(output, [*sources, *drivings])
        modes: list[Mode] = [_mode_for(info, mode, absolute_directions) for info in infos]
        for chosen in modes:
            self._check_motion(chosen, absolute_directions, magnitude, edit, reference)

        pictures = [_first(path) for path in sources]
        framings = [
            Framing.choose(path, picture, crop, fit, self.size)
            for path, picture in zip(sources, pictures, strict=True)
        ]
        views = [
            Framing.choose(path, _first(path), driving_crop, fit, self.size) for path in drivings
        ]
        faces = [framing(picture) for framing, picture in zip(framings, pictures, strict=True)]
        subjects = [self._subject(to_float(face), absolute_directions, edit) for face in faces]
        if isinstance(self.network, _Compiled):
            start = time.perf_counter()
            for chosen in dict.fromkeys(modes):
                self._compile(subjects[0], chosen, magnitude)
            if progress:
                print(f"compiled in {time.perf_counter() - start:.0f} s")
        if paste_back:
            layout = _pasted_back(PasteBack(pictures[0], framings[0]))
        elif grid:
            layout = _grid(faces)
        else:
            layout = _row(faces[0] if side_by_side else None)

        # Pictures have no rate of their own, so the first video gives it.
        lead = next((info for info in infos if info.kind != "image"), infos[0])
        paces = [lead.fps / info.fps for info in infos]
        with ExitStack() as running:
            columns = []
            for path, view, pace, chosen in zip(drivings, views, paces, modes, strict=True):
                frames = _seen(stream_frames(path), view)
                frames = running.enter_context(read_ahead(frames))
                looked_at = (to_float(view(frame)) for frame in stream_frames(path))
                references = self._references(subjects, looked_at, reference)
                paced = _at_pace(frames, pace)
                columns.append(self._column(subjects, paced, chosen, magnitude, references))
            moments = _together(columns)
            if progress:
                title = f"animate ({self.device.type}, {str(self.dtype).removeprefix('torch.')})"
                total = max(math.ceil(i.frames * p) for i, p in zip(infos, paces, strict=True))
                moments = running.enter_context(closing(_with_progress(moments, total, title)))

            if output.suffix.lower() == ".npz":
                _save_npz(output, (made.cpu().numpy() for ((_, (made,)),) in moments), lead.fps)
            elif output.suffix.lower() in IMAGE_SUFFIXES:
                write_image(output, layout(next(moments)))
            else:
                sound = drivings[0] if audio and infos[0].has_audio else None
                times = None if grid else frame_times(drivings[0])
                with VideoWriter(output, lead.fps, audio_from=sound, times=times) as writer:

                    def show(columns: Sequence[Column]) -> None:
                        writer.write(layout(columns))

                    with write_behind(show) as later:
                        for moment in moments:
                            later(moment)
        return output

    def _column(
        self,
        subjects: "Sequence[_Subject]",
        frames: Iterator[Tensor],
        mode: Mode,
        magnitude: float,
        references: Sequence[Tensor] | None,
    ) -> Iterator[Column]:
        frames, shown = itertools.tee(frames)
        floats = (to_float(frame) for frame in frames)
        made = self._stream(subjects, floats, mode, magnitude, references)
        return zip(shown, made, strict=True)


def animate_file(
    source: Paths,
    driving: Paths,
    checkpoint: str | Path,
    output: str | Path,
    mode: Mode | None = None,
    side_by_side: bool = False,
    fit: Fit = "crop",
    batch_size: int | None = None,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] | None = None,
    audio: bool = True,
    progress: bool = True,
    *,
    absolute_directions: Sequence[int] = (),
    magnitude: float = 1.0,
    crop: Crop = None,
    driving_crop: Crop = None,
    paste_back: bool = False,
    edit: Mapping[int, float] | None = None,
    reference: Reference = 0,
    compile: bool = False,
) -> Path:
    """Load a checkpoint and move pictures: what `lmdvid animate` does.

    `device` may be `auto`, see `choose_device`. The other arguments are those of
    `Animator.from_pretrained` and `Animator.animate_file`.
    """
    chosen = None if dtype is None else getattr(torch, dtype)
    animator = Animator.from_pretrained(
        checkpoint, choose_device(device), chosen, batch_size, compile
    )
    return animator.animate_file(
        source,
        driving,
        output,
        mode,
        fit,
        side_by_side,
        audio,
        progress,
        absolute_directions=absolute_directions,
        magnitude=magnitude,
        crop=crop,
        driving_crop=driving_crop,
        paste_back=paste_back,
        edit=edit,
        reference=reference,
    )


class _Compiled:
    """A network that compiles its passes over so many frames; all others run as they are.

    torch compiles for a number of threads, so that a pass by another number runs as it is, too.
    """

    def __init__(self, network: Any, frames: int, threads: int) -> None:
        self.size, self.modes, self.directions = network.size, network.modes, network.directions
        self.encode_source, self.pose_distance = network.encode_source, network.pose_distance
        self.edit_source = getattr(network, "edit_source", None)  # of networks with directions
        self._network, self._full = network, (frames, threads)
        self._encode = torch.compile(network.encode_motion, dynamic=False)
        self._render = torch.compile(network.render, dynamic=False)

    def encode_motion(self, frames: Tensor) -> Tensor:
        if (len(frames), torch.get_num_threads()) != self._full:
            return self._network.encode_motion(frames)
        return self._run(self._encode, frames)

    def render(
        self, source, codes: Tensor, reference: Tensor | None, mode: Mode, magnitude: float = 1.0
    ) -> Tensor:
        if (len(codes), torch.get_num_threads()) != self._full:
            return self._network.render(source, codes, reference, mode, magnitude)
        return self._run(self._render, source, codes, reference, mode, magnitude)

    @staticmethod
    def _run(work: Callable[..., Tensor], *given: Any) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config
        from torch._inductor.exc import CppCompileError

        try:
            # Each thread has settings of its own. Weights become constants, laid out once.
            with config.patch(freezing=True):
                return work(*given)
        except (TorchDynamoException, CppCompileError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["unknown"]
            raise AnimationError(
                f"the network cannot be compiled ({lines[0]}): install a C++ compiler (g++) and "
                "Python's headers, or leave compile out"
            ) from error


@dataclass(frozen=True)
class _Subject:
    """A picture that is going to move: what the network made of it, and its absolute directions."""

    encoded: Any
    directions: Sequence[int] = ()

    @classmethod
    def of(cls, encoded: Any, directions: Sequence[int]) -> "_Subject":
        """In absolute directions motion starts from 0, not from the picture's own magnitudes."""
        if directions:
            codes = encoded.codes.clone()
            codes[:, list(directions)] = 0
            encoded = replace(encoded, codes=codes)
        return cls(encoded, list(directions))

    def reference(self, codes: Tensor) -> Tensor:
        """What the driver's magnitudes are counted from: in absolute directions, from 0."""
        if not self.directions:
            return codes
        codes = codes.clone()
        codes[:, self.directions] = 0
        return codes


def _mode_for(info: VideoInfo, mode: Mode | None, absolute_directions: Sequence[int]) -> Mode:
    if info.kind != "image" or absolute_directions:
        return mode or "relative"
    if mode in _COUNTED:
        raise AnimationError(
            "one driving picture holds no motion relative to itself: use mode absolute"
        )
    return mode or "absolute"


def _check_output(
    output: Path,
    drivings: Sequence[str | Path],
    infos: Sequence[VideoInfo],
    side_by_side: bool,
    paste_back: bool,
    grid: bool,
) -> None:
    suffix = output.suffix.lower()
    if suffix not in {".mp4", ".m4v", ".gif", ".npz", *IMAGE_SUFFIXES}:
        raise AnimationError(f"cannot write {output.name}: choose .mp4, .gif, .png, .jpg or .npz")
    for path, info in zip(drivings, infos, strict=True):
        if suffix in IMAGE_SUFFIXES and info.kind != "image":
            raise AnimationError(f"{path} is a video: write to .mp4, .gif or .npz, not {suffix}")
    if suffix == ".npz" and (side_by_side or paste_back or grid):
        raise AnimationError(
            "an .npz holds the result alone, of one source and one driving: leave side-by-side "
            "and paste-back out"
        )
    if side_by_side + paste_back + grid > 1:
        raise AnimationError(
            "choose one of side-by-side, paste-back and a grid of several sources or drivings "
            "(which shows them beside the results)"
        )


def _check_overwriting(output: Path, inputs: Sequence[str | Path]) -> None:
    if output.is_dir():
        raise AnimationError(f"cannot write {output}: it is a folder")
    for path in inputs:
        if output.exists() and Path(path).exists() and output.samefile(path):
            raise AnimationError(f"{output} is also read: write to another file")


def _listed(paths: Paths, role: str) -> list[str | Path]:
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise AnimationError(f"no {role} is given")
    return paths


def _first(path: str | Path) -> Tensor:
    if (frame := next(stream_frames(path), None)) is None:
        raise VideoReadError(path, "no frame in it can be decoded")
    return frame


def _seen(frames: Iterator[Tensor], framing: Framing) -> Iterator[Tensor]:
    # A generator, because read_ahead closes it and with it the file.
    for frame in frames:
        yield framing(frame)


def _at_pace(frames: Iterable[T], pace: Fraction) -> Iterator[T]:
    """Frames repeated or left out so that there are `pace` times as many, evenly spread."""
    for number, frame in enumerate(frames):
        yield from itertools.repeat(
            frame, math.ceil((number + 1) * pace) - math.ceil(number * pace)
        )


def _together(columns: Sequence[Iterator[T]]) -> Iterator[list[T]]:
    """One of each, as long as the longest; who ends early keeps the last."""
    ended: Any = object()
    shown = [ended] * len(columns)
    while True:
        following = [next(column, ended) for column in columns]
        if all(item is ended for item in following):
            return
        shown = [old if new is ended else new for old, new in zip(shown, following, strict=True)]
        yield shown


Layout = Callable[[Sequence[Column]], Tensor]
"""Makes of the columns at one moment the frame to show, uint8 (H, W, 3)."""


def _picture(made: Tensor) -> Tensor:
    return to_uint8(made).cpu()  # a quarter of the bytes to bring


def _row(source: Tensor | None) -> Layout:
    """The result, beside source and driver where a source is given."""

    def layout(columns: Sequence[Column]) -> Tensor:
        ((driver, (made,)),) = columns
        made = _picture(made)
        return made if source is None else torch.cat([source, driver, made], dim=1)

    return layout


def _grid(sources: Sequence[Tensor]) -> Layout:
    """Rows of sources, columns of drivings, with themselves at the left and top."""

    def layout(columns: Sequence[Column]) -> Tensor:
        heads = torch.cat([torch.zeros_like(sources[0]), *sources])
        results = [torch.cat([driver, *map(_picture, made)]) for driver, made in columns]
        return torch.cat([heads, *results], dim=1)

    return layout


def _pasted_back(paste: PasteBack) -> Layout:
    return lambda columns: paste(_picture(columns[0][1][0]))


def _save_npz(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Opened first: a folder without write permission shows before the work.
        with part.open("wb") as file:
            video = np.stack(list(frames))
            np.savez(file, video=video, fps=np.array([fps.numerator, fps.denominator]))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _with_progress(frames: Iterator[T], total: int, title: str) -> Generator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    rate = TextColumn("{task.fields[rate]:.1f} frames/s")
    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), rate) as bar:
        task = bar.add_task(title, total=total, rate=0.0)
        start = time.perf_counter()
        for count, frame in enumerate(frames, 1):
            bar.update(task, completed=count, rate=count / (time.perf_counter() - start))
            yield frame
