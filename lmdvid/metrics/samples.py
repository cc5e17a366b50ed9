"""What all metrics of two sets of features share: two sides, any number of processes."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed import broadcast
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class TooFewError(ValueError):
    """There are too few samples for a score; the text has the numbers."""


class ExactMetric(Metric):
    """A metric whose states keep their type whatever precision the model around it is moved to.

    Use `update` and `compute`; calling the metric like a function would compute at every batch.
    """

    is_differentiable = False
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """True: `compute` itself says what is missing, and an empty share is none of that."""
        return True

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = ()) -> "ExactMetric":
        # `.to(torch.bfloat16)`, unlike `.bfloat16()`, would convert the states.
        super()._apply(fn, exclude_state=(*exclude_state, *self._defaults))
        self._computed = None
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if isinstance(default, Tensor):
                self._defaults[name] = default.to(device)
                setattr(self, name, state.to(device))
            else:
                setattr(self, name, [rows.to(device) for rows in state])
        return self


class TwoSampleMetric(ExactMetric):
    """Compares real with generated samples, each a vector of features.

    Every process brings its own share, of any size, none included; the result is that of one
    process with all of it, and is computed once and sent to the others. States stay float64
    whatever precision the model around the metric is moved to.

    Use `update` and `compute`; calling the metric like a function would compute at every batch.

    Args:
        dim: Number of features F.
        keep_real: `reset()` forgets the generated samples only, so that real ones are embedded
            once: ask `real_count` before feeding them again.
        kwargs: Of `torchmetrics.Metric`.
    """

    minimum = 2
    """Samples that each side must have."""

    real_rows: list[Tensor]
    fake_rows: list[Tensor]
    real_count: Tensor
    """Real samples seen by this process."""
    fake_count: Tensor
    """Generated samples seen by this process."""

    def __init__(self, dim: int, keep_real: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim < 1:
            raise ValueError(f"dim is {dim}; it is the number of features, 1 or more")
        self.dim = dim
        self.keep_real = keep_real
        for side in ("real", "fake"):
            self.add_state(f"{side}_rows", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Add samples to one side.

        Args:
            features: (B, F) of any floating type; B may be 0.
            real: True for real samples, False for generated ones.

        Raises:
            ValueError: The shape is another, or the values are whole numbers.
        """
        if features.ndim != 2 or features.shape[1] != self.dim or not features.is_floating_point():
            raise ValueError(
                f"features are {tuple(features.shape)} {features.dtype}; {type(self).__name__} "
                f"takes floats (B, {self.dim}), one row for each sample"
            )
        side = "real" if real else "fake"
        # Not in place: a state that was reset in inference mode could not be changed outside it.
        count = getattr(self, f"{side}_count") + len(features)
        setattr(self, f"{side}_count", count)
        # float64 only on the states' device: Apple's GPUs have none
        self._add(side, features.detach().to(count.device).double())

    def _add(self, side: str, features: Tensor) -> None:
        getattr(self, f"{side}_rows").append(features)

    def rows(self, side: str) -> Tensor:
        """Return the stored features (n, F), float64, of the side "real" or "fake"."""
        rows: Tensor | list[Tensor] = getattr(self, f"{side}_rows")
        return dim_zero_cat(rows) if len(rows) else self._no_rows()

    def drawable(self, side: str) -> Tensor:
        """Return `rows` in an order that depends on neither batches nor processes.

        What is drawn from them at random is then the same however the samples were shared out.
        """
        rows = self.rows(side)
        return rows[rows.sum(1).argsort()]

    def _no_rows(self) -> Tensor:
        return torch.zeros(0, self.dim, dtype=torch.float64, device=self.real_count.device)

    def _check(self) -> None:
        """Refuse what cannot be computed: in every process, before one of them computes."""
        if min(self.real_count, self.fake_count) < self.minimum:
            raise TooFewError(
                f"{type(self).__name__} needs at least {self.minimum} samples on each side; it "
                f"has {int(self.real_count)} real and {int(self.fake_count)} generated"
            )

    def _once(self, compute: Callable[[], Sequence[Tensor]], results: int) -> Tensor:
        """Compute in the first process and send the (results,) values to the others.

        A large eigenvalue problem in every process of one machine would take many times as long.
        """
        if not self._is_synced:
            return torch.stack(list(compute()))
        if torch.distributed.get_rank(self.process_group) == 0:
            values = torch.stack(list(compute()))
        else:
            values = torch.empty(results, dtype=torch.float64, device=self.real_count.device)
        broadcast(values, group=self.process_group, group_src=0)
        return values

    def reset(self) -> None:
        """Forget the samples; the real ones only without `keep_real`."""
        if self._is_synced:  # `compute` has refused
            self.unsync()
        if not self.keep_real:
            return super().reset()
        real = {n: copy(getattr(self, n)) for n in self._defaults if n.startswith("real")}
        super().reset()
        for name, value in real.items():
            setattr(self, name, value)
        return None

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # Processes must agree on the number of tensors and of their dimensions.
        for side in ("real", "fake"):
            setattr(self, f"{side}_rows", [self.rows(side)])
        super()._sync_dist(*args, **kwargs)
        self.real_rows, self.fake_rows = [self.rows("real")], [self.rows("fake")]
