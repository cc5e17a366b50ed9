"""Convolutions whose weights stay the same from call to call, on a CPU outside training.

There a good part of the time of a plain convolution goes into its weight: it is scaled, cast, and
laid out anew for oneDNN, PyTorch's CPU library, at every call. Here that happens once, and bias
and activation are done while the result is still in the cache; 3x3 convolutions of many channels
save half their multiplications (`winograd`). Values are those of the plain form, which runs
everywhere else, but for rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdvid.ops import onednn, winograd
from lmdvid.ops.dispatch import runs_triton
from lmdvid.ops.modulation import activate

T = TypeVar("T")
# By module, and not in it: what is kept is neither copied, saved nor moved with it.
_KEPT: "WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Any]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Convolution:
    """A square convolution, its bias, and the activation after it.

    Args:
        stride: Of the convolution.
        padding: Zeros at each side.
        groups: Of the channels.
        transposed: Transposed convolution.
        slope: Of a leaky ReLU that follows; None for none.
    """

    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False
    slope: float | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (O, C / groups, k, k) and (O,) to (B, O, ...): the plain form."""
        # Where a kernel adds the bias and activates, the convolution leaves both to it.
        after = self.slope is not None and runs_triton("auto", x, bias)
        inside = None if after else bias
        if self.transposed:
            weight = self._inputs_first(weight)
            x = F.conv_transpose2d(x, weight, inside, self.stride, self.padding, groups=self.groups)
        else:
            x = F.conv2d(x, weight, inside, self.stride, self.padding, groups=self.groups)
        if after:
            return activate(x, bias=bias, slope=self.slope)
        return x if self.slope is None else F.leaky_relu_(x, self.slope)

    def _inputs_first(self, weight: Tensor) -> Tensor:
        """(O, C / groups, k, k) to (C, O / groups, k, k), as transposed convolutions take it."""
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def prepared(
        self,
        x: Tensor,
        owner: nn.Module,
        parameters: Callable[[], tuple[Tensor, Tensor | None]],
        *made_of: Tensor | None,
        name: str = "convolution",
    ) -> Tensor:
        """The same with parameters that are made once, as long as that is possible.

        Args:
            x: (B, C, H, W).
            owner: The layer to which the parameters belong.
            parameters: Makes weight and bias.
            made_of: The tensors that they are made of: when one changes, they are made again.
            name: Tells the convolutions of a layer apart.

        Returns:
            (B, O, ...); where the weight was prepared, laid out channels last.
        """
        dtype = _lasting(x, owner, *made_of)
        if dtype is None or onednn.obstacle(dtype) is not None:
            return self(x, *parameters())
        key = name, dtype, self._in_rows(x.shape)
        run = _keep(owner, key, made_of, lambda: self._onednn(x.shape, dtype, *parameters()))
        return run(x.to(dtype, memory_format=torch.channels_last))

    def lasts(self, x: Tensor, owner: nn.Module, weight: Tensor) -> bool:
        """Whether one sample had better leave the weight as it is, and scale feature maps instead.

        It had where `prepared` then need not lay out a transposed one again, or saves half the
        multiplications.
        """
        if not (self.transposed or (self._in_rows(x.shape) and winograd.saves(weight.shape))):
            return False
        dtype = _lasting(x, owner, weight)
        return dtype is not None and onednn.obstacle(dtype) is None

    def _in_rows(self, shape: torch.Size) -> bool:
        plain = self.stride == self.padding == self.groups == 1 and not self.transposed
        return plain and winograd.takes(shape)

    def once(self, x: Tensor, owner: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with parameters that are made for this call: only what follows is fused."""
        dtype = _lasting(x, owner)
        if dtype is None or onednn.obstacle(dtype) is not None:
            return self(x, weight, bias)
        run = self._onednn(None, dtype, weight, bias)
        return run(x.to(dtype, memory_format=torch.channels_last))

    def _onednn(
        self, shape: torch.Size | None, dtype: torch.dtype, weight: Tensor, bias: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        """By oneDNN; the weight is laid out ahead where the shape of the inputs is given."""
        bias = None if bias is None else bias.to(dtype)
        if shape is not None and self._in_rows(shape) and winograd.saves(weight.shape):
            linear = winograd.Convolution(weight, dtype, shape)
            return lambda x: activate(linear(x), bias=bias, slope=self.slope)
        stride, padding = (self.stride, self.stride), (self.padding, self.padding)
        geometry = (stride, padding, self.groups, self.transposed)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        if self.transposed:
            weight = self._inputs_first(weight)
        if shape is not None:
            weight = onednn.laid_out(weight, shape, *geometry)
        return lambda x: onednn.convolve(x, weight, bias, *geometry, slope=self.slope)


def kept(
    x: Tensor, owner: nn.Module, name: str, make: Callable[[], T], *made_of: Tensor | None
) -> T:
    """What a layer needs of its parameters at every call, made once outside training on a CPU.

    Args:
        x: The layer's input.
        owner: The layer.
        name: Tells what the layer keeps apart.
        make: Makes it.
        made_of: The tensors it is made of: when one changes, it is made again.
    """
    if _lasting(x, owner, *made_of) is None:
        return make()
    return _keep(owner, (name,), made_of, make)


def _lasting(x: Tensor, owner: nn.Module, *made_of: Tensor | None) -> torch.dtype | None:
    """The dtype to compute in, where the owner's parameters can be expected to stay."""
    if owner.training or torch.is_grad_enabled():
        # Training may change them without a word: fused optimisers count no versions.
        _KEPT.pop(owner, None)
        return None
    # Inference tensors do not tell of changes.
    if not onednn.outside_training(x) or any(t is not None and t.is_inference() for t in made_of):
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _keep(
    owner: nn.Module,
    key: tuple[object, ...],
    made_of: tuple[Tensor | None, ...],
    make: Callable[[], T],
) -> T:
    tensors = [t.detach() for t in made_of if t is not None]
    stamp = [(t.data_ptr(), t.dtype, t._version) for t in tensors]
    things = _KEPT.setdefault(owner, {})
    known = things.get(key)
    if known is None or known[0] != stamp:
        with torch.autocast("cpu", enabled=False):
            # The tensors are held, so that no others can come to lie in their place.
            known = things[key] = (stamp, tensors, make())
    return known[2]
