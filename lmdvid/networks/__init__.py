"""Networks: one file per paper, and the layers they share."""

from typing import Literal

Mode = Literal["relative", "absolute"]
"""How a driving video moves a picture: by its change since its first frame, or by its own poses."""


class WeightsError(ValueError):
    """A weight file is missing, is not the expected one, or is not made of plain tensors."""


class MissingWeightsError(WeightsError):
    """A weight file is not where it was looked for."""
