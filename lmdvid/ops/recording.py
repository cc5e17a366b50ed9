"""Work on a GPU that is launched once as a whole, instead of operation by operation.

A network of hundreds of small operations keeps the host busier with launching them than the GPU
with running them. Recorded as a CUDA graph they are launched by one call.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Recorded:
    """A function of one tensor whose operations are recorded and replayed.

    The first call with tensors of some shape runs as ever, which compiles kernels and makes what
    is kept; the second one records, and it and later ones replay. Tensors of another shape, or on
    another kind of device, run as ever. Where recording fails, which a warning tells, all do.

    Args:
        function: Of a tensor; the same operations at every call, none of which the host waits for.
            What it reads besides has to stay where it is as long as this lives.
    """

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self.function = function
        self._kind: tuple[object, ...] | None = None
        self._replay: Callable[[Tensor], Sequence[Tensor]] | None = None

    def __call__(self, given: Tensor) -> Sequence[Tensor]:
        """The function's results; nobody else holds them."""
        if not given.is_cuda:
            return self.function(given)
        kind = (given.shape, given.dtype, given.device)
        if self._kind is None:
            self._kind = kind
        elif self._kind == kind:
            if self._replay is None:
                self._replay = self._record(given)
            return self._replay(given)
        return self.function(given)

    def _record(self, given: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
        graph, kept = torch.cuda.CUDAGraph(), given.clone()
        try:
            # What other threads do meanwhile, such as pinning memory, is not recorded.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                made = self.function(kept)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            warnings.warn(f"launched one by one, since recording fails: {reason}", stacklevel=4)
            return self.function

        def replay(given: Tensor) -> Sequence[Tensor]:
            kept.copy_(given)
            graph.replay()
            return [result.clone() for result in made]

        return replay
