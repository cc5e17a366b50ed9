"""Work that is recorded and replayed on a GPU; elsewhere it runs as ever."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lmdvid import ops
from lmdvid.animate import Animator
from lmdvid.networks.layers import ImageDiscriminator
from lmdvid.networks.lia import Generator
from lmdvid.ops import recording
from lmdvid.ops.recording import Recorded, RecordedModule

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


def test_on_a_cpu_everything_runs_as_ever():
    calls = []
    recorded = Recorded(lambda x: calls.append(x) or [x + 1])
    module = RecordedModule(nn.Linear(2, 2))
    x = torch.ones(3, 2)
    for _ in range(3):
        assert torch.equal(recorded(x)[0], x + 1)
        assert torch.equal(module(x), module.module(x))
    assert len(calls) == 3


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.delenv("LMDVID_GRAPHS", raising=False)
    assert recording.records() == "one"
    monkeypatch.setenv("LMDVID_GRAPHS", "all")
    assert recording.records() == "all"
    monkeypatch.setenv("LMDVID_GRAPHS", "0")
    assert not recording.records()
    monkeypatch.setenv("LMDVID_GRAPHS", "no")
    with pytest.raises(ValueError, match="choose 0, 1 or all"):
        recording.records()


def test_what_comes_twice_in_a_row_is_recorded():
    kinds, calls = recording._Kinds(), []

    def call(kind, fails=False):
        def record():
            calls.append(kind)
            if fails:
                raise RuntimeError("no")
            return f"replay {kind}".upper

        return kinds.of(kind, lambda: "launched", record)()

    made = [call(kind) for kind in "aaabaabb"]
    assert made == [
        "launched",
        *["REPLAY A"] * 2,
        "launched",
        *["REPLAY A"] * 2,
        "launched",
        "REPLAY B",
    ]
    assert calls == ["a", "b"]
    assert kinds.recorded
    call("c")
    with pytest.warns(UserWarning, match="launched one by one, since recording fails: no"):
        assert call("c", fails=True) == "launched"
    assert call("c") == "launched"
    assert calls == ["a", "b", "c"]
    assert not kinds.recorded


def test_a_copy_has_recorded_nothing():
    module = RecordedModule(nn.Linear(2, 2))
    module._kinds.recorded = True
    other = copy.deepcopy(module)
    assert not other.replays
    assert other.module is not module.module
    assert torch.equal(pickle.loads(pickle.dumps(module)).module.weight, module.module.weight)


@GPU
def test_replayed_results_are_those_of_the_function_and_stay():
    calls = []
    recorded = Recorded(lambda x: calls.append(x) or [x.sin(), x.sum()])
    given = [torch.randn(4, 3, device="cuda") for _ in range(5)]
    made = [recorded(x) for x in given]
    assert len(calls) == 2  # run once, recorded once
    for x, (sine, total) in zip(given, made, strict=True):
        assert torch.equal(sine, x.sin())
        assert torch.equal(total, x.sum())
    assert recorded(torch.ones(2, 3, device="cuda"))[0].shape == (2, 3)  # of another shape
    assert len(calls) == 3


@GPU
def test_what_cannot_be_recorded_is_said_and_runs():
    recorded = Recorded(lambda x: [x * x.sum().item()])
    x = torch.ones(3, device="cuda")
    recorded(x)
    with pytest.warns(UserWarning, match="launched one by one, since recording fails"):
        made = recorded(x)
    assert made[0].tolist() == [3, 3, 3]
    module = RecordedModule(Asking(3, 3).cuda())
    module(x)
    with pytest.warns(UserWarning, match="launched one by one"):
        assert module(x).shape == (3,)


class Asking(nn.Linear):
    """Has the host look at its result."""

    def forward(self, x):
        made = super().forward(x)
        return made * float(made.sum().item() != 0)


@GPU
@pytest.mark.parametrize("autocast", [False, True])
def test_training_steps_are_the_same(monkeypatch, autocast):
    """Three steps of generator and discriminator, replayed and launched one by one."""
    torch.manual_seed(0)
    generator = Generator(32, 16, 3, width=0.05).cuda()
    discriminator = ImageDiscriminator(32, width=0.05).cuda()
    pictures = torch.rand(4, 2, 4, 3, 32, 32, device="cuda") * 2 - 1
    results = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("LMDVID_GRAPHS", graphs)
        networks = copy.deepcopy((generator, discriminator))
        draw = RecordedModule(networks[0])
        judges = [RecordedModule(networks[1]) for _ in range(3)]
        optimizers = [torch.optim.SGD(n.parameters(), 1e-3) for n in networks]
        losses = []
        for source, target in pictures:
            networks[1].requires_grad_(False)
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                fake, _ = draw(source, target, False)
                loss = (fake.float() - target).abs().mean() - judges[0](fake).float().mean()
            step(optimizers[0], loss)
            networks[1].requires_grad_(True)
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                other = judges[1](target).float() - judges[2](fake.detach()).float()
            step(optimizers[1], other.square().mean())
            losses += [loss.item(), other.mean().item()]
        assert {m.replays for m in (draw, *judges)} == {graphs == "1"}
        results.append((losses, [p.detach() for n in networks for p in n.parameters()]))
    (one, weights), (two, others) = results
    assert one == pytest.approx(two, rel=2e-2 if autocast else 1e-4, abs=1e-4)
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-3)


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@GPU
@torch.no_grad()
def test_a_stream_of_frames_is_the_same(monkeypatch):
    network = Generator(32, 16, 3, width=0.05).cuda().eval()
    source, *frames = torch.rand(12, 3, 32, 32) * 2 - 1
    results = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("LMDVID_GRAPHS", graphs)
        with ops.use("auto"):
            results.append(
                torch.stack(list(Animator(network, batch_size=2).stream(source, frames)))
            )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
