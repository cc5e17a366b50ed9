"""Work on a GPU that is launched once as a whole, instead of operation by operation.

A network of hundreds of small operations keeps the host busier with launching them than the GPU
with running them. Recorded as a CUDA graph they are launched by one call.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn


def records() -> Literal["", "one", "all"]:
    """Whether anything is recorded, by the environment variable LMDVID_GRAPHS.

    0 is never. 1, the default, is where one GPU works alone; `all` is also where several train
    together, which was never tried.

    Raises:
        ValueError: For anything else.
    """
    setting = os.environ.get("LMDVID_GRAPHS", "1")
    if setting not in ("0", "1", "all"):
        raise ValueError(f"LMDVID_GRAPHS={setting!r}: choose 0, 1 or all")
    return "all" if setting == "all" else "one" if setting == "1" else ""


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
        if not given.is_cuda or not records():
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
            _warn(error)
            return self.function

        def replay(given: Tensor) -> Sequence[Tensor]:
            kept.copy_(given)
            graph.replay()
            return [result.clone() for result in made]

        return replay


class RecordedModule:
    """A module in training whose forward and backward passes are recorded and replayed.

    As `Recorded`: the first call runs as ever, the second one records, calls of another kind run
    as ever. Results are overwritten by the next call, and have first derivatives only. A module
    that is called twice before the backward pass needs two of these.

    Args:
        module: Its parameters stay where they are; it draws random numbers, if any, on the GPU.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._kind: tuple[object, ...] | None = None
        self._replay: Callable[..., Any] | None = None

    def __call__(self, *given: Any) -> Any:
        """Call the module with tensors, and with other values, which are recorded as they are."""
        tensors = [x for x in given if isinstance(x, Tensor)]
        if not (torch.is_grad_enabled() and records() and all(x.is_cuda for x in tensors)):
            return self.module(*given)
        kind = (
            tuple(
                (x.shape, x.dtype, x.requires_grad) if isinstance(x, Tensor) else x for x in given
            ),
            tuple(p.requires_grad for p in self.module.parameters()),
            self.module.training,
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        )
        if self._kind is None:
            self._kind = kind
        elif self._kind == kind:
            if self._replay is None:
                self._replay = self._record(given)
            return self._replay(*given)
        return self.module(*given)

    def _record(self, given: tuple[Any, ...]) -> Callable[..., Any]:
        samples = tuple(
            x.detach().clone().requires_grad_(x.requires_grad)
            for x in given
            if isinstance(x, Tensor)
        )
        call = _Call(self.module, given)
        # Recording takes another stream, which the parameters' part of the graph remembers.
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        try:
            # Without autocast, which would reach the backward pass: the call itself turns it on.
            with torch.autocast("cuda", enabled=False):
                torch.cuda.make_graphed_callables(call, samples, allow_unused_input=True)
        except RuntimeError as error:
            _warn(error)
            return self.module
        return lambda *given: call(*(x for x in given if isinstance(x, Tensor)))


class _Call(nn.Module):
    """A module as one of tensors alone, under the autocast that is on now."""

    def __init__(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        self.given = [None if isinstance(x, Tensor) else x for x in given]
        self.places = [isinstance(x, Tensor) for x in given]
        self.dtype = torch.get_autocast_dtype("cuda")
        self.enabled = torch.is_autocast_enabled("cuda")

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        pairs = zip(self.given, self.places, strict=True)
        given = [next(rest) if tensor else x for x, tensor in pairs]
        # Recording does not bear kept casts of weights.
        with torch.autocast("cuda", self.dtype, self.enabled, cache_enabled=False):
            return self.module(*given)


def _warn(error: RuntimeError) -> None:
    reason = (str(error).splitlines() or [repr(error)])[0]
    warnings.warn(f"launched one by one, since recording fails: {reason}", stacklevel=5)
