"""What was measured of a network's motion directions, in a file beside its weights."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmdvid.navigator import LatentNavigator
from lmdvid.pretrained import locate

DIRECTIONS_FILE = "directions.json"
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_MARKS = 4  # entries of each direction that say whether the file belongs to the weights


class DirectionsError(ValueError):
    """A file of directions does not belong to the weights, is damaged, or has no such direction."""


@dataclass(frozen=True)
class Direction:
    """One motion direction d_i.

    Attributes:
        name: What it does, by measurement, such as `mouth open, R² 0.91`.
        percentiles: Of its magnitudes over a data set, `PERCENTILES` in order.
    """

    name: str
    percentiles: Sequence[float]

    @property
    def middle(self) -> float:
        """The median magnitude."""
        return self.percentiles[PERCENTILES.index(50)]

    @property
    def reach(self) -> tuple[float, float]:
        """How far the data go from the median to either side: 1st and 99th percentile."""
        return self.percentiles[0] - self.middle, self.percentiles[-1] - self.middle


@dataclass(frozen=True)
class Directions:
    """All directions of a network.

    Attributes:
        measured_on: The data set, in words.
        directions: One for each.
    """

    measured_on: str
    directions: Sequence[Direction]

    def __getitem__(self, index: int) -> Direction:
        return self.directions[index]

    def __len__(self) -> int:
        return len(self.directions)


def directions_path(checkpoint: str | Path) -> Path:
    """Where the directions of a checkpoint are: in its folder, or beside its file."""
    path = locate(checkpoint)
    return path / DIRECTIONS_FILE if path.is_dir() else path.with_suffix(f".{DIRECTIONS_FILE}")


def write_directions(path: Path, navigator: LatentNavigator, found: Directions) -> None:
    """Write what was measured, for the weights that hold this navigator."""
    content = {
        "measured_on": found.measured_on,
        "percentiles": PERCENTILES,
        "directions": [{"index": i} | asdict(d) for i, d in enumerate(found.directions)],
        "basis": [[round(x, 4) for x in row] for row in _marks(navigator).tolist()],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_directions(checkpoint: str | Path, navigator: LatentNavigator) -> Directions | None:
    """Read what was measured of a checkpoint's directions; None where nothing was.

    Raises:
        DirectionsError: If the file is damaged, or was measured on other weights.
    """
    path = directions_path(checkpoint)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if tuple(content["percentiles"]) != PERCENTILES:
            raise ValueError(f"its percentiles are not {PERCENTILES}")
        found = [
            Direction(str(entry["name"]), [float(x) for x in entry["percentiles"]])
            for entry in content["directions"]
        ]
        marks = torch.tensor(content["basis"])
        measured_on = str(content["measured_on"])
        lengths = {len(direction.percentiles) for direction in found}
        if len(found) != navigator.directions or lengths != {len(PERCENTILES)}:
            raise ValueError("it has other directions or percentiles")
        if not all(math.isfinite(x) for direction in found for x in direction.percentiles):
            raise ValueError("a percentile is no number")
    except (ValueError, KeyError, TypeError, ArithmeticError, RuntimeError) as error:
        raise DirectionsError(f"{path} is damaged ({error}): delete it or measure again") from error
    here = _marks(navigator)
    # Weights that were rounded to bfloat16 still have nearly the same basis; NaN is not near.
    if marks.shape != here.shape or not (marks - here).abs().max() <= 0.02:
        raise DirectionsError(
            f"{path} was measured on other weights than {checkpoint} holds now: run "
            "`lmdvid interpret` again, or delete the file"
        )
    return Directions(measured_on, found)


def _marks(navigator: LatentNavigator) -> Tensor:
    with torch.no_grad():
        return navigator.basis()[:, :_MARKS].cpu().float()
