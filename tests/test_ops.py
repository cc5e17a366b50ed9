"""What is faster outside training against the plain form that defines it."""

import gc
import itertools
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmdvid.networks.layers import EqualConv2d
from lmdvid.networks.lia import Generator
from lmdvid.ops import convolution, onednn, reference, use, winograd
from lmdvid.ops.convolution import Convolution, kept
from lmdvid.ops.modulation import activate
from lmdvid.ops.parallel import at_once, in_order
from lmdvid.ops.resample import resample
from lmdvid.ops.warp import masked_warp

PREPARED = pytest.mark.skipif(
    onednn.obstacle(torch.float32) is not None, reason="no oneDNN in this build of torch"
)


@contextmanager
def without_onednn():
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


class Layer(nn.Module):
    """3x3 weights that are doubled when used, and count how often."""

    def __init__(self, form: Convolution, inputs: int = 8, outputs: int = 6, kernel: int = 3):
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.randn(outputs, inputs // form.groups, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.made = 0

    def parameters_made(self):
        self.made += 1
        return 2 * self.weight, self.bias

    def forward(self, x):
        return self.form.prepared(x, self, self.parameters_made, self.weight, self.bias)


FORMS = [
    Convolution(padding=1, slope=0.2),
    Convolution(),
    Convolution(stride=2),
    Convolution(stride=2, transposed=True),
    Convolution(stride=2, transposed=True, slope=0.2),
    Convolution(padding=1, groups=2),
    Convolution(stride=2, transposed=True, groups=2),
]


@PREPARED
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_prepared_weights_change_no_value(form, dtype):
    if onednn.obstacle(dtype) is not None:
        pytest.skip(onednn.obstacle(dtype))
    layer = Layer(form).eval()
    for batch, layout in [(1, torch.contiguous_format), (3, torch.channels_last)]:
        x = torch.randn(batch, 8, 7, 9).to(memory_format=layout)
        expected = form(x.double(), 2 * layer.weight.double(), layer.bias.double())
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            made = layer(x)
            once = form.once(x, layer, 2 * layer.weight, layer.bias)
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        for result in (made, once):
            assert result.dtype == dtype
            assert result.shape == expected.shape
            assert (result - expected).abs().max() < tolerance * expected.abs().max()
    assert layer.made == 1


def error_of(made, exact):
    """Root of the mean square, as a share of that of the values."""
    return ((made - exact).square().mean() / exact.square().mean()).sqrt()


@PREPARED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 128, 16, 5), (2, 130, 20, 1), (3, 3, 4, 9)])
@torch.no_grad()
def test_half_the_multiplications_give_the_same_convolution(shape, dtype):
    if onednn.obstacle(dtype) is not None:
        pytest.skip(onednn.obstacle(dtype))
    x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(7, shape[1], 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    made = winograd.Convolution(weight, dtype, x.shape)(x)
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    # Of which 2e-3 is what rounding the result alone costs in bfloat16.
    assert error_of(made, exact) < (2e-6 if dtype == torch.float32 else 1.5e-2)


@PREPARED
@pytest.mark.skipif(onednn.obstacle(torch.bfloat16) is not None, reason="no bfloat16 here")
@torch.no_grad()
def test_our_points_are_more_exact_in_half_precision_than_the_usual_ones(monkeypatch):
    x = torch.randn(1, 128, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
    weight = torch.randn(32, 128, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    factors = winograd._of_the_input()
    assert (factors.bfloat16() == factors).all()
    ours = error_of(winograd.Convolution(weight, torch.bfloat16, x.shape)(x), exact)
    monkeypatch.setattr(winograd, "_NEAR", 1.0)
    monkeypatch.setattr(winograd, "_FAR", 2.0)
    usual = error_of(winograd.Convolution(weight, torch.bfloat16, x.shape)(x), exact)
    assert ours < 0.75 * usual < 0.03


@PREPARED
@torch.no_grad()
def test_many_channels_are_convolved_in_rows_where_these_can_be_taken_four_at_a_time():
    layer = Layer(Convolution(padding=1, slope=0.2), 128, 128).eval()
    for height, saved in [(16, True), (17, False), (20, True), (12, False)]:
        x = torch.randn(1, 128, height, 8)
        assert layer.form.lasts(x, layer, layer.weight) == saved
        expected = layer.form(x.double(), 2 * layer.weight.double(), layer.bias.double())
        assert (layer(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert layer.made == 2
    for other in (
        Convolution(),
        Convolution(stride=2, padding=1),
        Convolution(padding=1, groups=2),
    ):
        assert not other.lasts(torch.randn(1, 128, 16, 8), layer, layer.weight)
    with use("reference"):
        assert not layer.form.lasts(torch.randn(1, 128, 16, 8), layer, layer.weight)
    with torch.enable_grad():
        assert not layer.form.lasts(torch.randn(1, 128, 16, 8), layer, layer.weight)


@PREPARED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", ["scale", "bias", "both"])
@torch.no_grad()
def test_what_surrounds_a_convolution_is_one_pass_outside_training(parts, dtype, monkeypatch):
    if onednn.obstacle(dtype) is not None:
        pytest.skip(onednn.obstacle(dtype))
    x = torch.randn(1, 16, 9, 7).to(dtype, memory_format=torch.channels_last)
    scale = None if parts == "bias" else torch.rand(1, 16)
    bias = None if parts == "scale" else torch.randn(16)
    exact = [None if t is None else t.double() for t in (scale, bias)]
    expected = [reference.activate(x.double(), *exact, 0.2)]
    expected += [reference.resample(x.double(), 1, d, 1, 4.0, *exact, 0.2) for d in (1, 2)]

    def never(*given):
        raise AssertionError("the plain form ran")

    monkeypatch.setattr(reference, "activate", never)
    monkeypatch.setattr(reference, "resample", never)
    made = [activate(x, scale, bias, 0.2)]
    arguments = {"gain": 4.0, "scale": scale, "bias": bias, "slope": 0.2}
    made += [resample(x, down=d, **arguments) for d in (1, 2)]
    for result, wanted in zip(made, expected, strict=True):
        assert result.dtype == dtype
        assert error_of(result, wanted) < (1e-6 if dtype == torch.float32 else 4e-3)
    if bias is not None:  # however it lies in memory
        strided = torch.stack([bias, bias + 1], 1)[:, 0]
        torch.testing.assert_close(activate(x, scale, strided, 0.2), made[0], rtol=0, atol=0)
    with pytest.raises(AssertionError, match="plain form"), use("reference"):
        activate(x, scale, bias, 0.2)
    with pytest.raises(AssertionError, match="plain form"):
        resample(x, **arguments, impl="reference")


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_of_channels_are_convolutions_of_their_own(transposed):
    form = Convolution(stride=2, padding=1, groups=2, transposed=transposed)
    x, weight, bias = torch.randn(2, 8, 7, 9), torch.randn(6, 4, 3, 3), torch.randn(6)
    halves = zip(x.chunk(2, dim=1), weight.chunk(2), bias.chunk(2), strict=True)
    expected = torch.cat([replace(form, groups=1)(*half) for half in halves], dim=1)
    torch.testing.assert_close(form(x, weight, bias), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(onednn.obstacle(torch.bfloat16) is not None, reason="no bfloat16 here")
def test_training_in_half_precision_takes_the_same_ways_down():
    layer = EqualConv2d(8, 6, 1, down=True, activated=False)
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    plain = layer(x)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(x.bfloat16())
    (gradient,) = torch.autograd.grad(made.float().square().sum(), x)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), plain, atol=0.05, rtol=0.05)
    torch.testing.assert_close(gradient, expected, atol=0.05, rtol=0.05)


@PREPARED
@torch.no_grad()
def test_weights_are_prepared_again_when_they_change():
    layer = Layer(Convolution(slope=0.2)).eval()
    x = torch.randn(1, 8, 5, 5)

    def assert_plain():
        expected = layer.form(x, 2 * layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-4)

    assert_plain()
    layer.weight.mul_(3)
    assert_plain()
    layer.bias.copy_(torch.ones(6))
    assert_plain()
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})
    assert_plain()
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    assert_plain()
    assert layer.made == 5
    assert_plain()
    assert layer.made == 5


@PREPARED
@pytest.mark.skipif(onednn.obstacle(torch.bfloat16) is not None, reason="no bfloat16 here")
@torch.no_grad()
def test_weights_are_prepared_once_in_each_precision():
    layer = Layer(Convolution(slope=0.2)).eval()
    x = torch.randn(1, 8, 5, 5)
    for _ in range(2):
        assert layer(x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert layer.made == 2


@PREPARED
@torch.no_grad()
def test_several_samples_with_factors_of_their_own_take_the_plain_form():
    x, scale = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last), torch.rand(2, 16)
    bias = torch.randn(16)
    expected = F.leaky_relu(x * scale[:, :, None, None] + bias[:, None, None], 0.2)
    torch.testing.assert_close(activate(x, scale, bias, 0.2), expected)
    expected = F.leaky_relu(x + bias[:, None, None], 0.2)
    torch.testing.assert_close(activate(x, None, bias, 0.2), expected)


@pytest.mark.parametrize("why", ["training", "gradients", "float64", "switched off", "traced"])
def test_elsewhere_the_plain_form_runs(why):
    layer = Layer(Convolution(slope=0.2)).eval()
    x = torch.randn(1, 8, 5, 5)
    if why == "gradients":
        layer(x).sum().backward()
        layer(x).sum().backward()
        assert layer.weight.grad is not None
    with torch.no_grad():
        if why == "training":
            layer.train()
        elif why == "float64":
            layer, x = layer.double(), x.double()
        if why == "switched off":
            with without_onednn():
                made = [layer(x), layer(x)][1]
        elif why == "traced":
            program = torch.export.export(layer, (x,))
            assert "mkldnn" not in program.graph_module.code
            made = program.module()(x)
        elif why != "gradients":
            made = [layer(x), layer(x)][1]
        if why != "traced":
            assert layer.made == 2
        if why != "gradients":
            torch.testing.assert_close(made, layer.form(x, 2 * layer.weight, layer.bias))


def test_what_is_kept_goes_with_its_layer():
    layer = Layer(Convolution()).eval()
    gc.collect()  # what other tests left
    before = len(convolution._KEPT)
    with torch.no_grad():
        kept(torch.zeros(1), layer, "sum", layer.weight.sum, layer.weight)
    assert len(convolution._KEPT) == before + 1
    del layer
    gc.collect()
    assert len(convolution._KEPT) == before


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_rows_of_a_table_are_the_plain_warp(align_corners, shared):
    features = torch.randn(1 if shared else 3, 16, 5, 7).to(memory_format=torch.channels_last)
    features = features.expand(3, -1, -1, -1)
    grid, mask = 4 * torch.rand(3, 2, 6, 4) - 2, torch.rand(3, 1, 6, 4)
    # Centres and borders of pixels, and far outside.
    grid[0, :, 0] = torch.tensor([-1.0, 1.0, 1e9, -1e9])
    sampled = F.grid_sample(
        features.double(), grid.double().movedim(1, -1), align_corners=align_corners
    )
    made = masked_warp(features, grid, mask, align_corners)
    assert (made - mask * sampled).abs().max() < 1e-5
    assert made.is_contiguous(memory_format=torch.channels_last)
    with torch.enable_grad():
        plain = masked_warp(features, grid, mask, align_corners)
    torch.testing.assert_close(made, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_warp_in_half_precision_keeps_the_dtype_of_the_features():
    features = torch.randn(2, 16, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    grid, mask = 2 * torch.rand(2, 2, 8, 8) - 1, torch.rand(2, 1, 8, 8)
    made = masked_warp(features, grid, mask, True)
    expected = mask * F.grid_sample(features.float(), grid.movedim(1, -1), align_corners=True)
    assert made.dtype == torch.bfloat16
    assert (made - expected).abs().max() < 0.02 * expected.abs().max()


@torch.no_grad()
def test_warp_in_half_precision_is_added_up_in_float32():
    """At quarters of pixels the weights are exact, and only the sum is rounded."""
    features = torch.randn(1, 16, 33, 33).to(torch.bfloat16, memory_format=torch.channels_last)
    grid, mask = torch.randint(1, 128, (1, 2, 33, 33)) / 64 - 1, torch.ones(1, 1, 33, 33)
    made = masked_warp(features, grid, mask, True)
    expected = F.grid_sample(features.double(), grid.double().movedim(1, -1), align_corners=True)
    # Half of the last of 8 binary digits; where sums on the way are rounded too, it is more.
    assert ((made - expected).abs() <= expected.abs() / 2**8).all()


@pytest.mark.parametrize("width", [0.05, 0.25])
@torch.no_grad()
def test_pictures_do_not_depend_on_the_form_or_the_batch(width):
    network = Generator(64, 32, 5, width, align_corners=False).eval()
    source, frames = torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(4, 3, 64, 64) * 2 - 1

    def pictures(network, source, frames):
        codes = network.encode_motion(frames)
        return network.render(network.encode_source(source), codes, None, "absolute")

    made = pictures(network, source, frames)
    with without_onednn():
        plain = pictures(network, source, frames)
    alone = torch.cat([pictures(network, source, frame[None]) for frame in frames])
    exact = pictures(network.double(), source.double(), frames.double())
    for result in (made, plain, alone):
        assert (result - exact).abs().max() < 2e-3 * exact.std()


@pytest.fixture
def _four_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_four_threads")
def test_pieces_are_worked_on_at_once_and_stay_in_order():
    together = threading.Barrier(2, timeout=10)
    before = threading.active_count()

    def work(piece):
        together.wait()
        time.sleep(0.05 * (1 - piece))
        return piece, torch.get_num_threads()

    assert at_once(work, [0, 1]) == [(0, 2), (1, 2)]
    assert torch.get_num_threads() == 4
    assert threading.active_count() == before
    assert at_once(lambda piece: threading.current_thread(), [0]) == [threading.current_thread()]


@pytest.mark.usefixtures("_four_threads")
def test_an_error_in_a_piece_ends_all_and_is_raised():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        at_once(lambda piece: 1 // piece, [1, 0, 1])
    assert torch.get_num_threads() == 4
    assert threading.active_count() == before


@pytest.mark.usefixtures("_four_threads")
def test_a_thread_that_cannot_start_leaves_none_waiting(monkeypatch):
    before, start, count = threading.active_count(), threading.Thread.start, itertools.count()

    def limited(thread):
        if next(count) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        at_once(abs, [1, 2, 3, 4])
    assert threading.active_count() == before
    assert torch.get_num_threads() == 4
    assert at_once(lambda piece: torch.get_num_threads(), [0, 1]) == [2, 2]


@pytest.mark.usefixtures("_four_threads")
def test_pieces_stay_in_order_and_no_more_are_taken_than_can_be_worked_on():
    taken, lock, before = [], threading.Lock(), threading.active_count()
    most, running = 0, 0

    def work(piece):
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.03 if piece % 2 == 0 else 0.0)
        with lock:
            running -= 1
        return piece, torch.get_num_threads()

    def pieces():
        for piece in range(7):
            taken.append(piece)
            yield piece

    for number, result in enumerate(in_order(work, pieces(), 2)):
        assert result == (number, 2)
        assert len(taken) <= number + 2
        assert torch.get_num_threads() == 4
    assert number == 6
    assert most == 2
    assert threading.active_count() == before


@pytest.mark.usefixtures("_four_threads")
def test_working_in_order_ends_with_an_error_or_with_its_reader():
    before = threading.active_count()
    results = in_order(lambda piece: 1 // piece, iter([1, 1, 0, 1]), 3)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before
    results = in_order(lambda piece: piece, iter(range(9)), 3)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before

    def broken():
        yield from (1, 2)
        raise OSError("damaged")

    results = in_order(lambda piece: piece, broken(), 3)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="damaged"):
        next(results)
    assert threading.active_count() == before
    alone = in_order(lambda piece: threading.current_thread(), [0, 1], 1)
    assert set(alone) == {threading.current_thread()}


def test_weights_prepared_before_a_fused_step_are_not_used_after_it():
    """A fused optimiser changes weights in their place and counts no version."""
    layer = EqualConv2d(8, 8, 3).eval()
    x = torch.randn(1, 8, 16, 16)
    with torch.no_grad():
        layer(x)
    layer.train()
    adam = torch.optim.Adam(layer.parameters(), 0.1, fused=True)
    layer(x).square().mean().backward()
    adam.step()
    layer.eval()
    with torch.no_grad():
        prepared = layer(x)
    torch.testing.assert_close(prepared, layer(x).detach(), atol=1e-4, rtol=1e-4)
