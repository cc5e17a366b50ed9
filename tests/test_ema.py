"""The moving average against its closed form."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lmdvid.ema import ExponentialMovingAverage


def network_with(value: float) -> nn.Linear:
    network = nn.Linear(2, 1).double()
    nn.init.constant_(network.weight, value)
    nn.init.constant_(network.bias, -value)
    return network


def test_closed_form():
    decay, values = 0.9, [3.0, -1.0, 4.0, 1.5]
    average = ExponentialMovingAverage(network_with(2.0), decay, warm_up=False)
    for value in values:
        average.update(network_with(value))
    n = len(values)
    expected = decay**n * 2.0
    expected += sum((1 - decay) * decay ** (n - 1 - i) * v for i, v in enumerate(values))
    torch.testing.assert_close(average.network.weight, torch.full((1, 2), expected).double())
    torch.testing.assert_close(average.network.bias, torch.full((1,), -expected).double())
    assert average.n_updates == n


def test_warm_up_follows_its_formula():
    average = ExponentialMovingAverage(network_with(1.0), decay=0.4)
    expected = 1.0
    for n in range(8):  # (1 + n) / (10 + n) passes 0.4 at n = 5
        d = min(0.4, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * (n + 2.0)
        average.update(network_with(n + 2.0))
        assert average.network.get_parameter("weight")[0, 0].item() == pytest.approx(
            expected, rel=1e-12
        )


def test_precision_of_a_long_average_in_float32():
    average = ExponentialMovingAverage(network_with(0.0).float(), decay=0.999, warm_up=False)
    for _ in range(1000):
        average.update(network_with(1.0).float())
    assert average.network.get_parameter("weight")[0, 0].item() == pytest.approx(
        1 - 0.999**1000, rel=1e-5
    )


def test_is_a_frozen_copy():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    average = ExponentialMovingAverage(network).train()
    assert network.training
    assert not any(module.training for module in average.modules())
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in network.parameters())
    x = torch.ones(1, 2)
    before = average(x)
    with torch.no_grad():
        network.get_parameter("0.weight").add_(1)
    assert torch.equal(average(x), before)
    average.update(network)
    assert not torch.equal(average(x), before)
    assert not any(p.requires_grad for p in average.parameters())


def test_copies_buffers():
    network = nn.BatchNorm1d(3).train()
    average = ExponentialMovingAverage(network)
    network(torch.randn(8, 3) + 5)
    network(torch.randn(8, 3) + 5)
    average.update(network)
    for (name, a), (_, b) in zip(
        average.network.named_buffers(), network.named_buffers(), strict=True
    ):
        assert torch.equal(a, b), name
    assert average.network.num_batches_tracked == 2


def test_forward_passes_all_arguments():
    class Scale(nn.Module):
        def forward(self, x, *, by):
            return x * by

    assert ExponentialMovingAverage(Scale())(torch.tensor(2.0), by=4) == 8


def test_updates_are_counted_so_that_caches_notice():
    average = ExponentialMovingAverage(network_with(0.0))
    weight = average.network.get_parameter("weight")
    storage, version = weight.data_ptr(), weight._version
    average.update(network_with(1.0))
    assert weight._version > version
    assert weight.data_ptr() == storage
    assert weight is average.network.weight


def test_cached_basis_of_a_navigator_is_dropped():
    navigator = pytest.importorskip("lmdvid.navigator").LatentNavigator(dim=8, directions=3)
    average = ExponentialMovingAverage(navigator)
    averaged: Any = average.network
    alpha = torch.ones(1, 3)
    with torch.no_grad():
        before = averaged.displace(alpha)
        other = copy.deepcopy(navigator)
        nn.init.normal_(next(other.parameters()))
        average.update(other)
        after = averaged.displace(alpha)
        fresh = copy.deepcopy(navigator)
        fresh.load_state_dict(averaged.state_dict())
        expected = fresh.displace(alpha)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, expected)


def test_state_dict_round_trip_continues_the_average():
    average = ExponentialMovingAverage(network_with(1.0))
    for value in (2.0, 5.0):
        average.update(network_with(value))
    resumed = ExponentialMovingAverage(network_with(9.0))
    resumed.load_state_dict(average.state_dict())
    assert resumed.n_updates == 2
    for each in (average, resumed):
        each.update(network_with(7.0))
    a, b = (each.network.get_parameter("weight") for each in (average, resumed))
    assert torch.equal(a, b)


def test_refuses_another_network():
    average = ExponentialMovingAverage(network_with(1.0))
    with pytest.raises(ValueError, match=r"first in 0\.bias: pass the module itself"):
        average.update(nn.Sequential(nn.Linear(2, 1)))


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_refuses_impossible_decays(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
