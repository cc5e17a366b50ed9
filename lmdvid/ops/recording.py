"""Work on a GPU that is launched once as a whole, instead of operation by operation.

A network of hundreds of small operations keeps the host busier with launching them than the GPU
with running them. Recorded as a CUDA graph they are launched by one call.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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

    Calls run as ever, which compiles kernels and makes what is kept, until the same kind of tensor
    comes twice in a row: that call records, and it and later ones of the kind replay. Off NVIDIA
    GPUs all run as ever. Where recording fails, which a warning tells, too.

    Args:
        function: Of a tensor; the same operations at every call, none of which the host waits for.
            What it reads besides has to stay where it is as long as this lives.
    """

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self.function = function
        self._kinds = _Kinds()

    def __call__(self, given: Tensor) -> Sequence[Tensor]:
        """The function's results; nobody else holds them."""
        if not given.is_cuda or not records():
            return self.function(given)
        kind = given.shape, given.dtype, given.device
        replay = self._kinds.of(kind, self.function, lambda: self._record(given))
        return replay(given)

    def _record(self, given: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
        graph, kept = torch.cuda.CUDAGraph(), given.clone()
        stream = torch.cuda.Stream(given.device)
        with _recording(given.device), torch.cuda.graph(graph, stream=stream):
            made = self.function(kept)

        def replay(given: Tensor) -> Sequence[Tensor]:
            kept.copy_(given)
            graph.replay()
            return [result.clone() for result in made]

        return replay


class RecordedModule:
    """A module in training whose forward and backward passes are recorded and replayed.

    As `Recorded`. Results are overwritten by the next call, and have first derivatives only. A
    module that is called twice before the backward pass needs two of these. Recording runs the
    module three more times, which buffers such as running means see. Copies have recorded nothing.

    Args:
        module: Its parameters stay where they are; it draws random numbers, if any, on the GPU.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._kinds = _Kinds()

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "_kinds": _Kinds()}

    def __call__(self, *given: Any) -> Any:
        """Call the module with tensors, and with other values, which are recorded as they are."""
        tensors = [x for x in given if isinstance(x, Tensor)]
        if not (torch.is_grad_enabled() and records() and all(x.is_cuda for x in tensors)):
            return self.module(*given)
        kind = (
            *(_kind(x) if isinstance(x, Tensor) else x for x in given),
            tuple(p.requires_grad for p in self.module.parameters()),
            self.module.training,
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        )
        replay = self._kinds.of(kind, self.module, lambda: self._record(given, tensors))
        return replay(*given)

    def _record(self, given: tuple[Any, ...], tensors: list[Tensor]) -> Callable[..., Any]:
        samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
        call = _Call(self.module, given)
        # Recording takes another stream, which the parameters' part of the graph remembers.
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        # Without autocast, which would reach the backward pass: the call itself turns it on.
        with _recording(samples[0].device), torch.autocast("cuda", enabled=False):
            torch.cuda.make_graphed_callables(call, samples, allow_unused_input=True)
        return lambda *given: call(*(x for x in given if isinstance(x, Tensor)))

    @property
    def replays(self) -> bool:
        """Whether the last kind of call was recorded."""
        return self._kinds.recorded


class _Kinds:
    """Which kind of call is recorded: what came twice in a row."""

    def __init__(self) -> None:
        self.recorded = False
        self._last: object = None
        self._kind: object = None
        self._replay: Callable[..., Any] | None = None

    def of(self, kind: object, launch: Callable, record: Callable[[], Callable]) -> Callable:
        """What to call now."""
        last, self._last = self._last, kind
        if self._replay is not None and kind == self._kind:
            return self._replay
        if kind != last:
            return launch
        self._kind, self._replay, self.recorded = kind, None, False  # frees the old graph first
        try:
            self._replay, self.recorded = record(), True
        except RuntimeError as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            warnings.warn(f"launched one by one, since recording fails: {reason}", stacklevel=4)
            self._replay = launch
        return self._replay


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


_one_at_a_time = threading.Lock()


@contextmanager
def _recording(device: torch.device) -> Iterator[None]:
    """Record what this thread does on a GPU; what others do, such as pinning memory, is not."""
    graph = torch.cuda.graph
    with _one_at_a_time, torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        # `make_graphed_callables` has no argument for it.
        torch.cuda.graph = partial(graph, capture_error_mode="thread_local")
        try:
            yield
        finally:
            torch.cuda.graph = graph
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind


def _kind(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.dtype, x.device, x.requires_grad
