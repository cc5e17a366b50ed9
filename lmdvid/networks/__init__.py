"""Networks: one file per paper, and the layers they share."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["relative", "adaptive", "absolute", "avd"]
"""How a driving video moves a picture.

By its change since a reference, its first frame (`relative`), scaled by how large the two figures
are (`adaptive`); by its own poses (`absolute`); or by them in the source's own shape (`avd`).
Every network lists those it has in `modes`.
"""


class WeightsError(ValueError):
    """A weight file is missing, is not the expected one, or is not made of plain tensors."""


class MissingWeightsError(WeightsError):
    """A weight file is not where it was looked for."""


def check_images(images: "Tensor", size: int) -> None:
    """Refuse what is no batch of square pictures.

    Raises:
        ValueError: Unless the shape is (B, 3, size, size).
    """
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images have shape {tuple(images.shape)}: this network takes (B, 3, {size}, {size})"
        )


def check_mode(mode: Mode, modes: tuple[Mode, ...], reference: "Tensor | None") -> None:
    """Refuse a mode that a network lacks, or that lacks its reference.

    Raises:
        ValueError: Says which modes there are.
    """
    if mode not in modes:
        raise ValueError(f"mode={mode!r}: choose {' or '.join(map(repr, modes))}")
    if mode in ("relative", "adaptive") and reference is None:
        raise ValueError(f"mode={mode!r} needs the codes of the first driving frame")
