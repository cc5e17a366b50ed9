"""A picture moved by hand along motion directions: edits, sweeps, contact sheets, edited videos."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from torch import Tensor, nn

from lmdvid.directions import Directions, read_directions
from lmdvid.framing import Crop, Fit, Framing
from lmdvid.navigator import LatentNavigator
from lmdvid.networks import Mode
from lmdvid.ops.precision import exact
from lmdvid.pretrained import choose_device, load_network
from lmdvid.video import (
    IMAGE_SUFFIXES,
    VideoWriter,
    frame_times,
    probe,
    stream_frames,
    to_float,
    to_uint8,
    write_image,
)
from lmdvid.video.overlap import read_ahead

Start = Literal["source", "reference"]
"""Where a manipulation begins: at the source's own magnitudes, or at the reference image, at 0."""

DEFAULT_REACH = 3.0  # the original LIA's; directions are of very different use there
SWEEP_FRAMES, SWEEP_FPS = 50, 25
_BATCH = 16


class ManipulationError(ValueError):
    """What was asked for cannot be done with this network or this picture."""


class EditableNetwork(Protocol):
    """What a `Manipulator` needs of a network, such as `lmdvid.networks.lia.Generator`."""

    size: int
    navigator: LatentNavigator

    def encode_source(self, image: Tensor) -> Any:
        """What the network makes of pictures (B, 3, size, size); it has `codes` (B, N)."""
        ...

    def edit_source(self, source: Any, delta: Tensor) -> Any:
        """The same, moved by magnitudes (N,) or (B, N)."""
        ...

    def render(self, source: Any, codes: Tensor, reference: Tensor | None, mode: Mode) -> Tensor:
        """Pictures (B, 3, size, size) at magnitudes (B, N)."""
        ...


class Manipulator:
    """Moves pictures along the motion directions of a trained network.

    Args:
        network: An `EditableNetwork` in evaluation mode.
        known: What was measured of its directions, if anything: names and ranges.

    Raises:
        ManipulationError: If the network has no directions to move a picture along.
    """

    def __init__(self, network: nn.Module, known: Directions | None = None) -> None:
        if not hasattr(network, "edit_source"):
            name = type(network).__module__.rpartition(".")[2]
            other = "; `lmdvid generate --control` walks along those of its videos"
            raise ManipulationError(
                f"the {name} network cannot move a picture along directions"
                + other * hasattr(network, "sample_codes")
            )
        self.network: EditableNetwork = network  # pyright: ignore[reportAttributeAccessIssue]
        self.known = known
        self.device = next(network.parameters()).device
        if self.device.type == "cpu":  # the same values, faster
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path, device: str | torch.device = "cpu"
    ) -> "Manipulator":
        """Load a folder, a training checkpoint or a network in the box, and what is known of it.

        Raises:
            WeightsError: If it cannot be loaded.
            DirectionsError: If the file of directions beside it is damaged or of other weights.
            ManipulationError: See `Manipulator`.
        """
        made = cls(load_network(checkpoint, device))
        made.known = read_directions(checkpoint, made.network.navigator)
        return made

    @property
    def size(self) -> int:
        """Side in pixels of the pictures."""
        return self.network.size

    @property
    def count(self) -> int:
        """Number N of directions."""
        return self.network.navigator.directions

    def name(self, direction: int) -> str:
        """What a direction does, by measurement; empty where nothing was measured."""
        return self.known[direction].name if self.known else ""

    def reach(self, direction: int) -> tuple[float, float]:
        """How far to go along a direction, both ways.

        Returns:
            The 1st and 99th percentile of its magnitudes on the data they were measured on, from
            their median; where nothing was measured, -3 and 3.
        """
        return self.known[direction].reach if self.known else (-DEFAULT_REACH, DEFAULT_REACH)

    def delta(self, edit: Mapping[int, float]) -> Tensor:
        """Magnitudes (N,) of an edit, by direction; 0 where it names none.

        Raises:
            ManipulationError: If there is no such direction, or no such number.
        """
        delta = torch.zeros(self.count)
        for direction, value in edit.items():
            if not 0 <= direction < self.count:
                raise ManipulationError(
                    f"no direction {direction}: this network has {self.count}, counted from 0 to "
                    f"{self.count - 1}"
                )
            if not math.isfinite(value):
                raise ManipulationError(f"direction {direction} is set to {value}: give a number")
            delta[direction] = value
        return delta

    def move(self, pictures: Tensor, deltas: Tensor, start: Start = "source") -> Tensor:
        """Show pictures at w_0 + sum_i (a_i + delta_i) d_i, or without a: from the reference image.

        Args:
            pictures: (3, size, size) in [-1, 1], one for all deltas, or (K, 3, size, size).
            deltas: (K, N).
            start: Of each.

        Returns:
            (K, 3, size, size) float32, unclamped. Delta 0 shows the picture as the network draws
            it, not its pixels.
        """
        shape = (3, self.size, self.size)
        if pictures.shape[-3:] != shape:
            raise ManipulationError(
                f"the picture has shape {tuple(pictures.shape)}: this network takes {shape}"
            )
        if start not in ("source", "reference"):
            raise ManipulationError(f"start={start!r}: choose 'source' or 'reference'")
        made, encoded = [], None
        with exact(self.device):
            if pictures.ndim == 3:
                encoded = self.network.encode_source(pictures[None].to(self.device))
            for begin in range(0, len(deltas), _BATCH):
                part = slice(begin, begin + _BATCH)
                source = encoded or self.network.encode_source(pictures[part].to(self.device))
                delta = deltas[part].to(self.device)
                codes = delta if start == "reference" else source.codes + delta
                made.append(self.network.render(source, codes, None, "absolute").float())
        return torch.cat(made)

    def sweep(
        self, picture: Tensor, direction: int, places: Sequence[float], start: Start = "source"
    ) -> Tensor:
        """Move a picture along one direction, (3, size, size) to (len(places), 3, size, size)."""
        deltas = torch.zeros(len(places), self.count)
        deltas[:, direction] = torch.tensor(places)
        return self.move(picture, deltas, start)


def places(reach: tuple[float, float], columns: int) -> list[float]:
    """Where the columns of a contact sheet are: evenly spaced to either side, 0 in the middle.

    Raises:
        ManipulationError: For an even number of columns.
    """
    if columns < 3 or columns % 2 == 0:
        raise ManipulationError(f"columns is {columns}: choose an odd number, 3 or more")
    low, high = reach
    half = columns // 2
    return [(-low if i < 0 else high) * i / half for i in range(-half, half + 1)]


def there_and_back(reach: tuple[float, float], frames: int = SWEEP_FRAMES) -> list[float]:
    """One smooth round: from 0 to the high end, through 0 to the low end, to 0; it repeats."""
    low, high = reach
    wave = [math.sin(2 * math.pi * i / frames) for i in range(frames)]
    return [high * s if s > 0 else -low * s for s in wave]


def contact_sheet(
    manipulator: Manipulator,
    picture: Tensor,
    directions: Sequence[int],
    columns: int = 7,
    reach: tuple[float, float] | None = None,
    start: Start = "source",
) -> Tensor:
    """What every direction does to a picture: rows are directions, columns are deltas.

    Args:
        manipulator: The network.
        picture: (3, size, size) in [-1, 1].
        directions: Which, in this order.
        columns: An odd number; the middle one has delta 0.
        reach: Of all; None is each direction's own, see `Manipulator.reach`.
        start: See `Start`.

    Returns:
        uint8 (H, W, 3).
    """
    scale = _enlargement(manipulator.size)
    side = scale * manipulator.size
    rows = []
    for direction in directions:
        deltas = places(reach or manipulator.reach(direction), columns)
        made = enlarged(manipulator.sweep(picture, direction, deltas, start), scale)
        row = [_caption([f"d{direction}", *_lines(manipulator.name(direction))], side, side)]
        for frame, delta in zip(made, deltas, strict=True):
            row.append(torch.cat([frame, _caption([f"{delta:+.2f}"], side, 18)]))
        row[0] = torch.cat([row[0], _caption([], side, 18)])
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def enlarged(frames: Tensor, scale: int) -> Tensor:
    """Frames (T, 3, H, W) in [-1, 1] to uint8 (T, scale H, scale W, 3)."""
    if scale > 1:
        frames = F.interpolate(frames, scale_factor=scale, mode="bicubic")
    return to_uint8(frames.cpu())


def _enlargement(size: int) -> int:
    return max(1, 128 // size)


def _lines(name: str) -> list[str]:
    """A name in short lines: what it is, and how sure that is."""
    # The font that comes with Pillow has no superscripts.
    return [part.strip().replace("²", "^2") for part in name.split(",")] if name else []


def _caption(lines: Sequence[str], width: int, height: int) -> Tensor:
    """Lines of text in the middle of a white field, uint8 (height, width, 3)."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    top = (height - 16 * len(lines)) / 2
    for number, line in enumerate(lines):
        font = ImageFont.load_default(13)
        while draw.textlength(line, font) > width - 4 and font.size > 8:  # pyright: ignore
            font = ImageFont.load_default(font.size - 1)  # pyright: ignore
        place = (width / 2, top + 16 * number + 8)
        draw.text(place, line, "black", font, anchor="mm")
    return torch.from_numpy(np.array(picture))


def manipulate_file(
    source: str | Path,
    checkpoint: str | Path,
    output: str | Path,
    edit: Mapping[int, float] | None = None,
    directions: Sequence[int] | None = None,
    columns: int | None = None,
    reach: tuple[float, float] | None = None,
    start: Start = "source",
    side_by_side: bool = False,
    fit: Fit = "crop",
    crop: Crop = None,
    device: str = "auto",
    progress: bool = True,
) -> list[Path]:
    """Move what is in a file along directions: what `lmdvid manipulate` does.

    With an `edit`, a picture becomes the edited picture (.png, .jpg) or a video that goes there and
    back (.mp4, .gif), and of a video every frame is edited (.mp4, .gif), its sound kept. Without
    one, directions are swept: a contact sheet (.png, .jpg), one video of all (.mp4, .gif), or a
    folder with the sheet and a video for each.

    Args:
        source: A picture, or a video; to be swept, of a video its first frame.
        checkpoint: See `Manipulator.from_pretrained`.
        output: File or folder, see above.
        edit: How far to go, by direction.
        directions: To sweep; None is all.
        columns: Of the contact sheet, an odd number; None is 7.
        reach: Of the sweeps, the same for all; None is each direction's own.
        start: See `Start`.
        side_by_side: Show the source beside what an edit makes of it.
        fit: Pictures that are not square are cropped or padded.
        crop: Use only a part of the source, see `Framing`.
        device: See `choose_device`.
        progress: Show a progress bar.

    Returns:
        The paths written.

    Raises:
        VideoReadError: If the source cannot be read.
        ManipulationError: If the request makes no sense.
        WeightsError: If the checkpoint cannot be loaded.
    """
    output, info = Path(output), probe(source)
    suffix = "" if output.is_dir() else output.suffix.lower()
    moving, edit = info.kind != "image", edit or {}
    _check_output(output, suffix, bool(edit), moving)
    if edit and (directions is not None or reach is not None or columns is not None):
        raise ManipulationError(
            "an edit says how far to go: leave directions, range and columns out"
        )
    sheet = suffix in IMAGE_SUFFIXES or not suffix
    if columns is not None and not sheet:
        raise ManipulationError(f"a sweep in a {suffix} has no columns: leave columns out")
    if not edit and side_by_side:
        raise ManipulationError("a sweep shows the source in its middle: leave side-by-side out")
    if directions is not None and not directions:
        raise ManipulationError("no direction is given")
    if reach is not None and not (-math.inf < reach[0] <= 0 <= reach[1] < math.inf):
        raise ManipulationError(f"range {reach[0]}..{reach[1]}: give one around 0, such as -2..2")
    manipulator = Manipulator.from_pretrained(checkpoint, choose_device(device))
    first = next(stream_frames(source))
    framing = Framing.choose(source, first, crop, fit, manipulator.size)
    seen = framing(first)
    picture = to_float(seen)
    if edit:
        delta = manipulator.delta(edit)
        if moving:
            frames = (framing(frame) for frame in stream_frames(source))
            sound = source if info.has_audio else None
            with (
                read_ahead(frames) as ahead,
                VideoWriter(
                    output, info.fps, audio_from=sound, times=frame_times(source)
                ) as writer,
            ):
                batches = _batches(ahead, _BATCH)
                total = math.ceil(info.frames / _BATCH)
                for batch in track(batches, "manipulate", total, disable=not progress):
                    made = manipulator.move(to_float(batch), delta.expand(len(batch), -1), start)
                    writer.write(_beside(batch, made, side_by_side))
        elif suffix in IMAGE_SUFFIXES:
            made = manipulator.move(picture, delta[None], start)
            write_image(output, _beside(seen[None], made, side_by_side)[0])
        else:
            shares = torch.tensor(there_and_back((0.0, 1.0), 2 * SWEEP_FRAMES)[:SWEEP_FRAMES])
            made = manipulator.move(picture, shares[:, None] * delta, start)
            before = seen[None].expand(len(made), -1, -1, -1)
            with VideoWriter(output, SWEEP_FPS) as writer:
                writer.write(_beside(before, made, side_by_side))
        return [output]
    chosen = list(range(manipulator.count)) if directions is None else list(directions)
    manipulator.delta(dict.fromkeys(chosen, 0.0))
    return _write_sweeps(
        manipulator,
        picture,
        output,
        suffix,
        chosen,
        7 if columns is None else columns,
        reach,
        start,
        progress,
    )


def _check_output(output: Path, suffix: str, edit: bool, moving: bool) -> None:
    if suffix and suffix not in (".mp4", ".m4v", ".gif", *IMAGE_SUFFIXES):
        raise ManipulationError(
            f"cannot write {output.name}: choose .png, .jpg, .mp4 or .gif, or, to sweep, a folder"
        )
    if edit and not suffix:
        raise ManipulationError("an edit makes one file: give .png, .jpg, .mp4 or .gif")
    if edit and moving and suffix in IMAGE_SUFFIXES:
        raise ManipulationError("the source is a video: write to .mp4 or .gif")


def _batches(frames: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    waiting: list[Tensor] = []
    for frame in frames:
        waiting.append(frame)
        if len(waiting) == size:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def _beside(before: Tensor, made: Tensor, side_by_side: bool) -> Tensor:
    """uint8 frames (T, H, W, 3) that were seen, and what was made of them (T, 3, H, W)."""
    after = to_uint8(made.cpu())
    return torch.cat([before, after], dim=2) if side_by_side else after


def _write_sweeps(
    manipulator: Manipulator,
    picture: Tensor,
    output: Path,
    suffix: str,
    directions: Sequence[int],
    columns: int,
    reach: tuple[float, float] | None,
    start: Start,
    progress: bool,
) -> list[Path]:
    if suffix in IMAGE_SUFFIXES or not suffix:
        sheet = contact_sheet(manipulator, picture, directions, columns, reach, start)
        if suffix:
            write_image(output, sheet)
            return [output]
        write_image(output / "sheet.png", sheet)
    scale = _enlargement(manipulator.size)
    clips = []
    for direction in track(directions, "manipulate", disable=not progress):
        path = there_and_back(reach or manipulator.reach(direction))
        made = enlarged(manipulator.sweep(picture, direction, path, start), scale)
        if suffix:
            text = [f"d{direction}", *_lines(manipulator.name(direction))]
            label = _caption(text, made.shape[2], 16 * len(text) + 4)
            pad = F.pad(label, (0, 0, 0, 0, 0, 52 - len(label)), value=255)
            clips.append(torch.cat([made, pad.expand(len(made), -1, -1, -1)], dim=1))
        else:
            with VideoWriter(output / f"direction_{direction:02d}.mp4", SWEEP_FPS) as writer:
                writer.write(made)
    if not suffix:
        names = [output / f"direction_{direction:02d}.mp4" for direction in directions]
        return [output / "sheet.png", *names]
    across = math.ceil(math.sqrt(len(clips)))
    blank = torch.full_like(clips[0], 255)
    clips += [blank] * (-len(clips) % across)
    tiled = rearrange(torch.stack(clips), "(r c) t h w k -> t (r h) (c w) k", c=across)
    with VideoWriter(output, SWEEP_FPS) as writer:
        writer.write(tiled)
    return [output]
