"""Whether losses and gradients are numbers, and how to see it without waiting for a GPU."""

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def poison(loss: Tensor) -> Tensor:
    """The same loss, whose gradient is NaN throughout where it is not finite itself.

    An infinite term may have a finite gradient, or none. As processes average their gradients, the
    NaN of one reaches all.
    """
    finite = loss.detach().isfinite()
    return loss * torch.where(finite, 1.0, float("nan")).to(loss.dtype)


def finite_gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Whether every gradient is a number: a boolean on their device, for which a host may wait."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    # The largest magnitude, not the sum of squares, which overflows where nothing is wrong.
    return nn.utils.get_total_norm(gradients, norm_type=float("inf")).isfinite()


class Watch:
    """Looks at what steps found when it has reached the host, which waits for no step under way.

    Processes that train together look at the same step at the same moment.

    Args:
        lag: So many later reports are sent before one is looked at.
    """

    def __init__(self, lag: int):
        self.lag = lag
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None, Callable[[list[float]], None]]]
        self._sent = deque()

    def send(self, values: Tensor, look: Callable[[list[float]], None]) -> None:
        """Have `look` called with the values (N,), and with older ones that are due now."""
        arrived = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # to pinned memory
            arrived = torch.cuda.Event()
            arrived.record()
        self._sent.append((values, arrived, look))
        self.look(self.lag)

    def look(self, but: int = 0) -> None:
        """Look at all that was sent but the last so many; by default the host waits for all."""
        while len(self._sent) > but:
            values, arrived, look = self._sent.popleft()
            if arrived is not None:
                arrived.synchronize()
            look(values.tolist())
