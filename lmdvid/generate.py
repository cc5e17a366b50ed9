"""Videos from noise: what a seed means, how appearance and motion are chosen, and their files."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from einops import rearrange
from rich.progress import Progress
from torch import Tensor

from lmdvid.navigator import LatentNavigator
from lmdvid.npz import load_arrays
from lmdvid.ops.precision import exact
from lmdvid.pretrained import choose_device, load_network
from lmdvid.video import (
    IMAGE_SUFFIXES,
    VideoWriter,
    centre_square,
    read_clip,
    resize,
    to_float,
    to_uint8,
    write_image,
)
from lmdvid.video.overlap import write_behind

_SMALL = 1_000_000  # bytes, that arrays of a wrong shape may take to be told so

CHUNK = 16  # frames of a video that are drawn at once
WHOLE = 4  # videos that are made at once where their frames cannot be drawn apart


class GenerationError(ValueError):
    """What was asked for cannot be generated."""


class VideoGenerator(Protocol):
    """What this module needs of a network; the codes are the network's own business.

    Codes are a dataclass of tensors that begin with the batch's axis. For `activate` and `control`
    they have `appearance` (B, D) and `alpha` (B, T - 1, N), and the network has a `navigator`; for
    `truncation` it has a `centre`, and `sample_codes` takes psi behind the noise.

    A network that moves a picture has `classes`, a sequence of names, instead of
    `appearance_noise`; its `sample_codes` takes the picture (B, 3, size, size) in [-1, 1], the
    motion noise, and the classes' numbers (B,). `class_number` knows a class by its name.

    Attributes:
        size: Side of a frame.
        frames: Of a video where no other length is asked for.
        framewise: Whether each frame is drawn from the codes alone; else a video is made whole.
        appearance_noise: Size of the noise vector of an appearance.
        motion_noise: Size of the noise vector of one step of a motion.
    """

    size: int
    frames: int
    framewise: bool
    appearance_noise: int
    motion_noise: int

    def motion_steps(self, frames: int) -> int:
        """Steps of motion noise for so many frames; ValueError where it makes no such video."""
        ...

    def sample_codes(self, appearance: Tensor, motion: Tensor, *more: Any) -> Any:
        """Codes of noise (B, appearance_noise) and (B, steps, motion_noise)."""
        ...

    def render(self, codes: Any, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames `start` to `stop` of each video, (B, stop - start, 3, size, size)."""
        ...


@dataclass(frozen=True)
class Plan:
    """Which videos to generate; each is known by its index, whoever draws it and when.

    Args:
        frames: Frames T of each, None for as many as the network makes by itself. The noise of a
            longer video begins with that of a shorter one; so do its frames where each is drawn
            from the noise before it, as InMoDeGAN does.
        seed: Of all noise.
        image: For a network that moves a picture, its path; the central square is taken.
        label: Which of the classes that network knows, by name or number; None takes all in turn.
        truncation: Below 1 more typical and less varied appearances, see `sample_codes`.
        fix: `appearance`: all videos show video 0's; `motion`: all perform video 0's.
        interpolate: So many videos from video 0's appearance to video 1's, in equal steps between
            their noise vectors, all with one motion.
        activate: Keep the magnitudes along these directions alone, all others are 0.
        control: Where to go along directions, all others stay where they are:
            `1=linear:0..3`, `511=sine:AMPLITUDE,PERIOD` (in frames), `7=constant:1.5`. It is the
            walk's place, not the step; a place other than 0 in frame 0 moves the whole walk.
        alpha: A file with the walks instead: csv with a column for each direction, named by its
            number, and a row for each frame with the places along it; or npz with `alpha`
            (T - 1, N), the steps, which begin at the video's own appearance.

    Raises:
        GenerationError: For settings that make no sense or contradict each other.
    """

    frames: int | None = None
    seed: int = 0
    truncation: float = 1.0
    fix: Literal["appearance", "motion"] | None = None
    interpolate: int | None = None
    activate: Sequence[int] = ()
    control: Sequence[str] = ()
    alpha: str | None = None
    image: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise GenerationError(f"frames is {self.frames}: choose 1 or more")
        if self.seed < 0:
            raise GenerationError(f"seed is {self.seed}: choose 0 or more")
        if not math.isfinite(self.truncation):
            raise GenerationError(f"truncation is {self.truncation}: choose a number such as 0.7")
        if self.fix not in (None, "appearance", "motion"):
            raise GenerationError(f"fix is {self.fix!r}: choose 'appearance' or 'motion'")
        if self.interpolate is not None and self.interpolate < 2:
            raise GenerationError(
                f"interpolate is {self.interpolate}: from one appearance to another it takes 2 "
                "videos or more"
            )
        if self.interpolate is not None and self.fix is not None:
            raise GenerationError(
                "interpolate walks from one appearance to another with one motion: leave fix out"
            )
        if sum(map(bool, (self.activate, self.control, self.alpha))) > 1:
            raise GenerationError("choose one of activate, control and alpha")
        if self.fix == "motion" and (self.control or self.alpha):
            raise GenerationError("control and alpha are one motion for all: leave fix=motion out")


APPEARANCE, MOTION = 0, 1  # streams of noise


def noise(seed: int, stream: int, index: int, shape: Sequence[int]) -> Tensor:
    """Noise from N(0, 1) that belongs to a video, on every machine and beside any other video.

    Args:
        seed: Of all videos.
        stream: `APPEARANCE` or `MOTION`.
        index: Of the video.
        shape: Of the result; one that is longer in its first axis begins with the same numbers.

    Returns:
        float32 of that shape, on the CPU.
    """
    random = np.random.default_rng((seed, stream, index))
    return torch.from_numpy(random.standard_normal(tuple(shape), dtype=np.float32))


@torch.no_grad()
def sample_codes(network: VideoGenerator, plan: Plan, index: int) -> Any:
    """Codes of one video, B = 1; computed alone, so that they do not depend on a batch.

    Raises:
        GenerationError: If the network cannot do what the plan asks for, has no such direction or
            class, or a file cannot be read.
    """
    _check(network, plan)
    parameter = _parameter(network)
    frames = plan.frames or network.frames
    what = 0 if plan.fix == "motion" or plan.interpolate else index
    try:
        steps = network.motion_steps(frames)
    except ValueError as error:
        raise GenerationError(f"frames is {frames}: {error}") from None
    z_m = noise(plan.seed, MOTION, what, [steps, network.motion_noise])[None].to(parameter)
    if hasattr(network, "classes"):
        return _conditioned(network, plan, index, z_m)
    who = 0 if plan.fix == "appearance" else index
    if plan.interpolate:
        if index >= plan.interpolate:
            raise GenerationError(
                f"interpolate is {plan.interpolate}: there is no video {index}, counted from 0"
            )
        share = index / (plan.interpolate - 1)
        z_a, other = (
            noise(plan.seed, APPEARANCE, i, [1, network.appearance_noise]) for i in (0, 1)
        )
        z_a = z_a.lerp(other, share)
    else:
        z_a = noise(plan.seed, APPEARANCE, who, [1, network.appearance_noise])
    psi = () if plan.truncation == 1 else (plan.truncation,)
    codes = network.sample_codes(z_a.to(parameter), z_m, *psi)
    return _steered(network, codes, plan, frames)


def _check(network: VideoGenerator, plan: Plan) -> None:
    """Refuse what this network knows nothing of."""
    asked = {
        "truncation": (plan.truncation != 1, "centre", "no mean appearance to come closer to"),
        "activate, control and alpha": (
            bool(plan.activate or plan.control or plan.alpha),
            "navigator",
            "no motion directions",
        ),
        "image and label": (
            plan.image is not None or plan.label is not None,
            "classes",
            "no picture to move, but makes videos from noise alone",
        ),
        "interpolate and fix=appearance": (
            plan.interpolate is not None or plan.fix == "appearance",
            "appearance_noise",
            "no appearances of its own: a picture gives it",
        ),
    }
    for options, (wanted, attribute, lacks) in asked.items():
        if wanted and not hasattr(network, attribute):
            raise GenerationError(f"the {system(network)} network has {lacks}: leave {options} out")
    if hasattr(network, "classes") and plan.image is None:
        raise GenerationError(
            f"the {system(network)} network moves a picture: say which one, image (--image PATH)"
        )


def system(network: Any) -> str:
    """The name of a network's file."""
    return type(network).__module__.rpartition(".")[2]


def _conditioned(network: Any, plan: Plan, index: int, motion: Tensor) -> Any:
    """Codes of the plan's picture and class."""
    path = Path(str(plan.image)).expanduser()
    try:
        number = (
            index % len(network.classes) if plan.label is None else network.class_number(plan.label)
        )
        picture = _picture(path, path.stat().st_mtime_ns, network.size)
    except OSError as error:
        raise GenerationError(f"cannot read {path}: {str(error.strerror).lower()}") from None
    except ValueError as error:  # VideoReadError names the file
        raise GenerationError(str(error)) from None
    label = torch.tensor([number], device=motion.device)
    return network.sample_codes(picture.to(motion), motion, label)


@lru_cache(maxsize=1)
def _picture(path: Path, changed: int, size: int) -> Tensor:
    """The central square of a picture, (1, 3, size, size) in [-1, 1]."""
    return to_float(resize(centre_square(read_clip(path, [0])), size))


def _steered(network: VideoGenerator, codes: Any, plan: Plan, frames: int) -> Any:
    """Codes with the magnitudes that the plan asks for."""
    if not (plan.activate or plan.control or plan.alpha):
        return codes
    navigator: LatentNavigator = network.navigator  # pyright: ignore[reportAttributeAccessIssue]
    if plan.activate:
        _check_directions(plan.activate, navigator.directions)
        alpha = torch.zeros_like(codes.alpha)
        alpha[..., list(plan.activate)] = codes.alpha[..., list(plan.activate)]
        return replace(codes, alpha=alpha)
    if plan.alpha and plan.alpha.endswith(".npz"):
        alpha = _read_steps(Path(plan.alpha), frames, navigator.directions)
        return replace(codes, alpha=alpha[None].to(codes.alpha))
    if plan.alpha:
        places = _read_places(Path(plan.alpha), frames)
    else:
        places = {}
        for text in plan.control:
            direction, path = trajectory(text, frames)
            if direction in places:
                raise GenerationError(f"direction {direction} is controlled twice")
            places[direction] = path
    _check_directions(places, navigator.directions)
    walk = codes.appearance.new_zeros(frames, navigator.directions)
    for direction, path in places.items():
        walk[:, direction] = torch.from_numpy(path).to(walk)
    origin = codes.appearance + navigator.displace(walk[:1])
    return replace(codes, appearance=origin, alpha=walk.diff(dim=0)[None])


_TRAJECTORY = re.compile(r"(\d+)=(linear|sine|constant):(.+)")


def trajectory(text: str, frames: int) -> tuple[int, np.ndarray]:
    """Read what `control` says of one direction.

    Args:
        text: `I=linear:FROM..TO`, `I=sine:AMPLITUDE,PERIOD` (in frames), `I=constant:PLACE`.
        frames: T.

    Returns:
        The direction, and the place along it (T,) in every frame.

    Raises:
        GenerationError: If it is not understood.
    """
    found = _TRAJECTORY.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        kind, rest = found[2], found[3]
        if kind == "linear":
            start, end = map(float, rest.split(".."))
            path = np.linspace(start, end, frames)
        elif kind == "sine":
            amplitude, period = map(float, rest.split(","))
            if period == 0:
                raise ValueError
            path = amplitude * np.sin(2 * np.pi * np.arange(frames) / period)
        else:
            path = np.full(frames, float(rest))
        if not np.isfinite(path).all():
            raise ValueError
    except ValueError:
        raise GenerationError(
            f"control {text!r} is not understood: give 1=linear:0..3, 511=sine:2,16 (amplitude, "
            "period in frames) or 7=constant:1.5"
        ) from None
    return int(found[1]), path


def _check_directions(directions: Any, available: int) -> None:
    for direction in directions:
        if not 0 <= direction < available:
            raise GenerationError(
                f"no direction {direction}: this network has {available}, counted from 0 to "
                f"{available - 1}"
            )


def _read_steps(path: Path, frames: int, directions: int) -> Tensor:
    try:
        alpha = load_arrays(path, _SMALL + 32 * frames * directions, {"alpha"})["alpha"]
    except (OSError, ValueError, LookupError) as error:
        raise GenerationError(f"{path} is no npz file with an array `alpha`: {error}") from None
    if alpha.ndim == 3 and len(alpha) == 1:
        alpha = alpha[0]
    fits = alpha.dtype.kind in "fiu" and alpha.shape == (frames - 1, directions)
    if not fits or not np.isfinite(alpha).all():
        raise GenerationError(
            f"{path} has alpha of {alpha.dtype} {alpha.shape}: for {frames} frames and "
            f"{directions} directions give finite numbers ({frames - 1}, {directions})"
        )
    return torch.from_numpy(alpha)


def _read_places(path: Path, frames: int) -> dict[int, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, *rows = filter(None, csv.reader(file))
        table = np.array(rows, dtype=float).reshape(len(rows), len(head))
        directions = [int(name) for name in head]
        if len(set(directions)) < len(directions):
            raise ValueError("a direction is there twice")
        if not np.isfinite(table).all():
            raise ValueError("not all numbers are finite")
    except OSError as error:
        raise GenerationError(f"cannot read {path}: {str(error.strerror).lower()}") from None
    except ValueError as error:
        raise GenerationError(
            f"{path} is no table of places ({error}): its first row names directions, such as "
            "1,511, and every further row is a frame"
        ) from None
    if len(table) != frames:
        raise GenerationError(f"{path} has {len(table)} rows: give one for each of {frames} frames")
    return dict(zip(directions, table.T, strict=True))


def stack_codes(codes: Sequence[Any]) -> Any:
    """Codes of several videos as one batch."""
    first = codes[0]
    return replace(
        first, **{name: torch.cat([getattr(c, name) for c in codes]) for name in vars(first)}
    )


def rows(codes: Any, start: int, stop: int) -> Any:
    """Codes of some videos of a batch."""
    return replace(codes, **{name: value[start:stop] for name, value in vars(codes).items()})


def generate(network: VideoGenerator, plan: Plan, indices: Sequence[int]) -> Tensor:
    """Videos by their indices, in float32 whatever autocast says: the same ones everywhere.

    Returns:
        (B, T, 3, size, size) float32 clamped to [-1, 1].
    """
    frames = plan.frames or network.frames
    chunk = CHUNK if network.framewise else frames
    with exact(_parameter(network).device):
        codes = stack_codes([sample_codes(network, plan, index) for index in indices])
        parts = [
            network.render(codes, start, min(start + chunk, frames)).float().clamp(-1, 1)
            for start in range(0, frames, chunk)
        ]
        return torch.cat(parts, dim=1)


def _parameter(network: VideoGenerator) -> Tensor:
    """Some parameter, for its device and dtype."""
    return next(network.parameters())  # pyright: ignore[reportAttributeAccessIssue]


def generate_files(
    checkpoint: str | Path,
    output: str | Path,
    videos: int = 16,
    plan: Plan | None = None,
    fps: float | None = None,
    columns: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    save_codes: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Load a checkpoint and write videos: what `lmdvid generate` does.

    Args:
        checkpoint: Folder of a network, or a training checkpoint.
        output: A folder for one mp4 each, `000000.mp4`, ...; `.mp4` or `.gif` for a grid that plays
            all of them; `.png` or `.jpg` for a sheet with a row for each video, of up to 16 of its
            frames, evenly spread.
        videos: How many.
        plan: Which ones; None is what the network makes by itself.
        fps: Frames per second; None is 25.
        columns: Of a grid that plays; None makes it square.
        batch_size: Videos that are drawn at once into a folder, None is 8. Memory does not grow
            with their number, that of a grid does; the length adds nothing but the codes.
        device: `auto` is CUDA, then Apple's GPU, then the CPU.
        save_codes: Write `000000.npz` beside each video: its codes by name; `Plan.alpha` reads the
            steps, `alpha`.
        progress: Show a progress bar.

    Returns:
        The paths written, without those of the codes.

    Raises:
        WeightsError: If the checkpoint cannot be loaded.
        GenerationError: If it does not generate videos from noise, or the plan makes no sense.
    """
    plan, output = plan or Plan(), Path(output)
    suffix = "" if output.is_dir() else output.suffix.lower()
    if plan.interpolate:
        videos = plan.interpolate
    for name, value in (("videos", videos), ("batch_size", batch_size), ("columns", columns)):
        if value is not None and value < 1:
            raise GenerationError(f"{name} is {value}: choose 1 or more")
    if fps is not None and not 0 < fps < math.inf:
        raise GenerationError(f"fps is {fps}: choose a number above 0, such as 25")
    if suffix and suffix not in (".mp4", ".m4v", ".gif", *IMAGE_SUFFIXES):
        raise GenerationError(
            f"cannot write {output.name}: give a folder, or a file ending in .mp4, .gif, .png, .jpg"
        )
    if suffix and save_codes:
        raise GenerationError("codes are saved beside each video: give a folder as output")
    if suffix and batch_size is not None:
        raise GenerationError("a grid's videos are drawn together: leave the batch size out")
    if columns is not None and (not suffix or suffix in IMAGE_SUFFIXES):
        raise GenerationError("columns are those of a grid that plays: give .mp4 or .gif as output")
    if fps is not None and suffix in IMAGE_SUFFIXES:
        raise GenerationError("a picture has no rate: leave fps out")
    fps, batch_size = fps or 25, batch_size or 8
    network = load_network(checkpoint, choose_device(device))
    if not all(hasattr(network, name) for name in ("sample_codes", "render")):
        raise GenerationError(
            f"{checkpoint} holds the {system(network)} network, which does not make videos from "
            "noise"
        )
    source: VideoGenerator = network  # pyright: ignore[reportAssignmentType]
    length = plan.frames or source.frames
    with Progress(disable=not progress) as bar:
        if not suffix:
            task = bar.add_task("generate", total=videos)
            paths = []
            for start in range(0, videos, batch_size):
                indices = range(start, min(start + batch_size, videos))
                paths += _write_each(source, plan, indices, output, fps, save_codes)
                bar.advance(task, len(indices))
            return paths
        task = bar.add_task("generate", total=length)
        codes = stack_codes([sample_codes(source, plan, index) for index in range(videos)])
        moments = _moments(source, codes, length)
        if suffix in IMAGE_SUFFIXES:
            shown = np.linspace(0, length - 1, min(16, length)).round()
            columns_shown = []
            for number, frames in enumerate(moments):
                if number in shown:
                    columns_shown.append(rearrange(frames, "b h w c -> (b h) w c"))
                bar.advance(task)
            write_image(output, torch.cat(columns_shown, dim=1))
        else:
            columns = columns or math.ceil(math.sqrt(videos))
            with VideoWriter(output, fps) as writer, write_behind(writer.write) as later:
                for frames in moments:
                    later(_tiled(frames, columns))
                    bar.advance(task)
    return [output]


def _moments(network: VideoGenerator, codes: Any, frames: int) -> Iterator[Tensor]:
    """What all videos show at each moment, uint8 (B, H, W, 3)."""
    videos = len(next(iter(vars(codes).values())))
    if not network.framewise:
        whole = [
            _drawn(network, rows(codes, start, start + WHOLE), 0, frames)
            for start in range(0, videos, WHOLE)
        ]
        yield from torch.cat(whole).movedim(1, 0)
        return
    chunk = max(1, CHUNK // videos)
    for start in range(0, frames, chunk):
        yield from _drawn(network, codes, start, min(start + chunk, frames)).movedim(1, 0)


def _drawn(network: VideoGenerator, codes: Any, start: int, stop: int) -> Tensor:
    """Frames of videos, uint8 (B, T, H, W, 3) on the CPU."""
    with exact(_parameter(network).device):
        return to_uint8(network.render(codes, start, stop).float().cpu())


def _tiled(frames: Tensor, columns: int) -> Tensor:
    """Frames (B, H, W, 3) in rows of `columns`; black where none is left."""
    missing = -len(frames) % columns
    frames = torch.cat([frames, frames.new_zeros(missing, *frames.shape[1:])])
    return rearrange(frames, "(r n) h w c -> (r h) (n w) c", n=columns)


def _write_each(
    network: VideoGenerator,
    plan: Plan,
    indices: Sequence[int],
    folder: Path,
    fps: float,
    save_codes: bool,
) -> list[Path]:
    """Write videos that are drawn together, each to a file of its own."""
    codes = [sample_codes(network, plan, index) for index in indices]
    paths = [folder / f"{index:06d}.mp4" for index in indices]
    with ExitStack() as writing:
        writers = [writing.enter_context(VideoWriter(path, fps)) for path in paths]
        for frames in _moments(network, stack_codes(codes), plan.frames or network.frames):
            for writer, frame in zip(writers, frames, strict=True):
                writer.write(frame)
    if save_codes:
        for path, one in zip(paths, codes, strict=True):
            arrays = {name: value.cpu().numpy() for name, value in vars(one).items()}
            np.savez(path.with_suffix(".npz"), **arrays)
    return paths
