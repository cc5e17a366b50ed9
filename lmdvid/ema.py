"""The moving average of a network's weights, which is the network one shows."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """A second copy of a network whose weights follow the first one slowly.

    After each optimiser step average <- d average + (1 - d) weight, with
    d = min(decay, (1 + n) / (10 + n)) after n updates (the warm-up of TensorFlow's
    `ExponentialMovingAverage`: without it the initial weights stay visible for 1 / (1 - decay)
    steps). Buffers are copied as they are.

    The copy is in eval mode whatever `train()` says, asks for no gradient, and is part of the
    state dict together with `n_updates`. Weights change in place through counted operations: what
    a layer caches by its weight's version is dropped.

    Args:
        network: Copied at once; its methods are reached as `average.network.method(...)`.
        decay: In [0, 1); 0.999 averages over about a thousand updates.
        warm_up: False uses `decay` from the first update on.

    Raises:
        ValueError: `decay` is outside [0, 1).
    """

    n_updates: Tensor

    def __init__(self, network: nn.Module, decay: float = 0.999, warm_up: bool = True):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1, e.g. 0.999")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.warm_up = warm_up
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards `network`, which has the layout of the one it was made from.

        Raises:
            ValueError: Names of parameters or buffers differ.
        """
        weights, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        averages, copies = dict(self.network.named_parameters()), dict(self.network.named_buffers())
        if averages.keys() != weights.keys() or copies.keys() != buffers.keys():
            strange = (averages.keys() ^ weights.keys()) | (copies.keys() ^ buffers.keys())
            raise ValueError(
                f"the network differs from the one averaged, first in {min(strange)}: "
                "pass the module itself, not a wrapper of it"
            )
        # 1 - d as a tensor, so that no step waits for the device: 1 - (1 + n)/(10 + n) = 9/(10 + n)
        device = self.n_updates.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS has not
        step = torch.full((), 1 - self.decay, dtype=dtype, device=device)
        if self.warm_up:
            step = torch.maximum(step, 9 / (10 + self.n_updates.to(step)))
        for name, average in averages.items():
            average.lerp_(weights[name].to(average.dtype), step.to(average.dtype))
        for name, buffer in copies.items():
            buffer.copy_(buffers[name])
        self.n_updates += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged network."""
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> "ExponentialMovingAverage":
        """Stay in eval mode."""
        return super().train(False)
