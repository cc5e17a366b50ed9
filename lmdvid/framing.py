"""Which part of a picture a network sees, and the way back into the whole picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from lmdvid.video import centre_square, resize

Box = tuple[int, int, int, int]
"""x and y of the upper left corner, width and height, in pixels."""

Crop = Box | Literal["face"] | None
"""A box, the largest face with room around it, or all."""

Fit = Literal["crop", "pad"]

_FACE_MARGIN = 1.8  # side of what is cut out, in sides of the square that the detector finds
_FEATHER = 0.08  # width of the soft edge of what is pasted back, in sides of the square


class FramingError(ValueError):
    """A box that does not lie in the picture, or a face that cannot be found."""


@dataclass(frozen=True)
class Framing:
    """Cuts a box out of a picture or a clip's frames, makes it square and resizes it.

    Attributes:
        path: Where the pictures are from, for errors.
        box: What is cut out; None is the whole of each picture.
        fit: The box is cropped to its central square or padded to one, never squashed.
        size: Side of the result in pixels.
    """

    path: str | Path
    box: Box | None
    fit: Fit
    size: int

    @classmethod
    def choose(cls, path: str | Path, picture: Tensor, crop: Crop, fit: Fit, size: int) -> Self:
        """Framing for the pictures of `path`, the first of which is uint8 (H, W, 3).

        Raises:
            FramingError: If the box does not lie in the picture, no face is found in it, or no
                face detector is installed.
        """
        if isinstance(crop, str):
            if crop != "face":
                raise FramingError(f"crop={crop!r}: choose 'face' or (x, y, width, height)")
            crop = _face_box(path, picture)
        framing = cls(path, crop, fit, size)
        framing._check(picture)
        return framing

    def __call__(self, frame: Tensor) -> Tensor:
        """uint8 (H, W, 3) to (size, size, 3)."""
        if self.box is not None:
            self._check(frame)
            x, y, width, height = self.box
            frame = frame[y : y + height, x : x + width]
        return resize(centre_square(frame, self.fit)[None], self.size)[0]

    def _check(self, picture: Tensor) -> None:
        if self.box is None:
            return
        x, y, w, h = self.box
        height, width = picture.shape[:2]
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
            raise FramingError(
                f"the box x={x}, y={y}, width={w}, height={h} does not lie in {self.path}, "
                f"which is {width}x{height} pixels"
            )


class PasteBack:
    """Puts what was made of a box back into the picture that it was cut from.

    The seam is feathered over 8 % of the square's side, except where it is the picture's own edge.
    Pixels outside the square (with `pad`: outside the box) keep their values exactly.

    Args:
        picture: uint8 (H, W, 3).
        framing: How the box was cut.
    """

    def __init__(self, picture: Tensor, framing: Framing) -> None:
        self.picture = picture
        all_of_it = (0, 0, picture.shape[1], picture.shape[0])
        *corner, width, height = framing.box or all_of_it
        self.side = min(width, height) if framing.fit == "crop" else max(width, height)
        spans = [
            self._span(start, length, edge)
            for start, length, edge in zip(
                corner, (width, height), (picture.shape[1], picture.shape[0]), strict=True
            )
        ]
        (self.into_x, self.from_x, ramp_x), (self.into_y, self.from_y, ramp_y) = spans
        self.weight = (ramp_y[:, None] * ramp_x)[..., None]

    def __call__(self, made: Tensor) -> Tensor:
        """uint8 (size, size, 3) to a new picture uint8 (H, W, 3)."""
        made = resize(made[None], self.side)[0, self.from_y, self.from_x].float()
        result = self.picture.clone()
        place = result[self.into_y, self.into_x]
        place.copy_(torch.lerp(place.float(), made, self.weight).round())
        return result

    def _span(self, start: int, length: int, edge: int) -> tuple[slice, slice, Tensor]:
        """Along one axis: where to in the picture, what of the square, and its weights."""
        count = min(length, self.side)
        into = start + (length - count) // 2
        cut = (self.side - count) // 2
        feather = max(1, round(_FEATHER * self.side))
        rise = (torch.arange(count) + 0.5) / feather
        ramp = torch.ones(count)
        if into > 0:
            ramp = torch.minimum(ramp, rise)
        if into + count < edge:
            ramp = torch.minimum(ramp, rise.flip(0))
        return slice(into, into + count), slice(cut, cut + count), ramp


def _face_box(path: str | Path, picture: Tensor) -> Box:
    """The largest frontal face, widened to show the head, as a square within the picture."""
    try:
        import cv2  # pyright: ignore[reportMissingImports]

        cascade = cv2.CascadeClassifier
    except (ImportError, AttributeError):
        # OpenCV 5 has no Haar cascades any more.
        raise FramingError(
            "finding faces needs OpenCV 4: pip install 'opencv-python-headless<5', "
            "or give the box as x,y,width,height"
        ) from None
    detector = cascade(f"{cv2.data.haarcascades}haarcascade_frontalface_alt2.xml")  # pyright: ignore[reportAttributeAccessIssue]
    grey = cv2.cvtColor(picture.numpy(), cv2.COLOR_RGB2GRAY)
    smallest = max(24, min(grey.shape) // 12)
    faces = detector.detectMultiScale(
        grey, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest)
    )
    if not len(faces):
        raise FramingError(f"no face found in {path}: give the box as x,y,width,height")
    x, y, side, _ = (int(v) for v in max(faces, key=lambda face: face[2]))
    height, width = grey.shape
    wide = min(round(_FACE_MARGIN * side), width, height)
    left = min(max(0, x + (side - wide) // 2), width - wide)
    top = min(max(0, y + (side - wide) // 2), height - wide)
    return left, top, wide, wide
