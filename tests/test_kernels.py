"""Triton kernels against the definitions in float64: interpreted, or compiled where a GPU is.

pytest tests/test_kernels.py
"""

import subprocess
import sys

import pytest
import torch
from test_lia import assert_code, assert_image, generator, golden  # noqa: F401
from torch.autograd import gradgradcheck

from lmdvid import ops
from lmdvid.networks.inmodegan import Conv3d
from lmdvid.networks.layers import DownBlock
from lmdvid.networks.lia import Generator
from lmdvid.ops import dispatch
from lmdvid.ops import resample as resampling
from lmdvid.ops import warp as warping
from lmdvid.ops.modulation import activate
from lmdvid.ops.precision import exact
from lmdvid.ops.resample import resample
from lmdvid.ops.warp import flow_warp, warp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = pytest.mark.skipif(
    dispatch.obstacle(DEVICE) is not None, reason=f"no kernels: {dispatch.obstacle(DEVICE)}"
)
# Of the largest value; the interpreter cuts bfloat16 off instead of rounding it.
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
LAYOUTS = [torch.contiguous_format, torch.channels_last]
GIVEN = [
    (torch.float32, LAYOUTS[0]),
    (torch.float32, LAYOUTS[1]),
    (torch.bfloat16, LAYOUTS[1]),
    (torch.float16, LAYOUTS[0]),
]


def tensor(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)
    x = x.to(memory_format=layout) if len(shape) == 4 else x
    return x.requires_grad_()


def exactly(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def assert_close(actual, expected, dtype):
    assert actual.shape == expected.shape
    error, size = (actual - expected).abs().max(), expected.abs().max().clamp_min(0.1)
    assert error < CLOSE[dtype] * size, f"{error:.2e} of {size:.2e}"


def compare(operation, tensors, dtype, **arguments):
    """Values and the gradients of all tensors, by kernels and in float64."""
    results = []
    for impl, given in (("triton", tensors), ("reference", exactly(*tensors))):
        made = operation(*given, impl=impl, **arguments)
        made = [m for m in (made if isinstance(made, tuple) else (made,)) if m is not None]
        torch.manual_seed(1)
        weights = [torch.randn(m.shape).to(m) for m in made]
        wanted = [g for g in given if g is not None]
        results.append((made, torch.autograd.grad(made, wanted, weights), wanted))
    (values, gradients, wanted), (exact, exact_gradients, _) = results
    for actual, expected in zip(values, exact, strict=True):
        assert_close(actual, expected, dtype)
    for actual, expected, given in zip(gradients, exact_gradients, wanted, strict=True):
        assert actual.dtype == given.dtype
        assert_close(actual, expected, dtype)
    return values


@KERNELS
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("dtype", "layout"), GIVEN, ids=str)
def test_flow_warp(dtype, layout, align_corners):
    features, h = (tensor(2, 3, 7, 5, dtype=dtype, layout=layout) for _ in range(2))
    # Far beyond the borders, and so large that tanh and sigmoid are their limits.
    logits = tensor(2, 3, 7, 5)
    with torch.no_grad():
        logits.mul_(2)[0, :, 0] = torch.tensor([1e4, -1e4, 1e30, -1e30, 0.3], device=DEVICE)
    warped, painted = compare(flow_warp, (logits, features, h), dtype, align_corners=align_corners)
    assert warped.dtype == painted.dtype == dtype
    assert warped.is_contiguous(memory_format=layout)
    if dtype == torch.bfloat16:
        compare(flow_warp, (logits, features), dtype, align_corners=align_corners)


@KERNELS
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_warp_to_another_size(layout, align_corners):
    features = tensor(2, 5, 4, 6, layout=layout)
    grid = tensor(2, 2, 7, 3)
    with torch.no_grad():
        # Centres and borders of pixels have no derivative; these values are far outside.
        grid[0, :, 0] = torch.tensor([1e9, -1e9, 1e4], device=DEVICE)
    compare(warp, (features, grid), torch.float32, align_corners=align_corners)


@KERNELS
@torch.no_grad()
def test_one_map_for_all_samples_of_unusual_sizes():
    for shape in [(1, 1, 1, 1), (1, 70, 1, 3), (1, 2, 9, 1)]:
        features = tensor(*shape, layout=torch.channels_last).expand(2, -1, -1, -1)
        logits = tensor(2, 3, *shape[2:])
        made, _ = flow_warp(logits, features, align_corners=True, impl="triton")
        expected, _ = flow_warp(*exactly(logits, features), align_corners=True, impl="reference")
        assert_close(made, expected, torch.float32)


@KERNELS
def test_sums_in_a_fixed_order():
    """Every pixel is sampled from the same few: the same bits whatever the order of arrival."""
    logits, features, h = tensor(2, 3, 6, 5), tensor(2, 3, 6, 5), tensor(2, 3, 6, 5)
    with torch.no_grad():
        logits[:, :2] = -torch.linspace(-1, 1, 30).view(6, 5).atanh().clamp(-5, 5)

    def gradients():
        made = flow_warp(logits, features, h, align_corners=False, impl="triton")
        return torch.autograd.grad(sum(m.square().sum() for m in made), (logits, features, h))

    as_they_come = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two, three in zip(first, second, as_they_come, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)


@KERNELS
@torch.no_grad()
def test_nan_is_not_hidden():
    logits, features = torch.zeros(1, 3, 4, 4, device=DEVICE), torch.ones(1, 2, 4, 4, device=DEVICE)
    for part in range(3):
        broken = logits.clone()
        broken[0, part, 1, 2] = float("nan")
        made, _ = flow_warp(broken, features, align_corners=True, impl="triton")
        assert made[0, :, 1, 2].isnan().all()
        assert made.isnan().sum() == 2


FILTERS = [
    {"padding": 2},
    {"padding": 1, "down": 2},
    {"up": 2, "gain": 4.0},
]


@KERNELS
@pytest.mark.parametrize("filter_", FILTERS, ids=str)
@pytest.mark.parametrize(("dtype", "layout"), GIVEN, ids=str)
def test_resample(filter_, dtype, layout):
    x = tensor(2, 3, 7, 6, dtype=dtype, layout=layout)
    scale, bias = tensor(2, 3), tensor(3)
    made = compare(_resample, (x, scale, bias), dtype, slope=0.2, **filter_)
    assert made[0].dtype == dtype
    assert made[0].is_contiguous(memory_format=layout)


@KERNELS
@pytest.mark.parametrize(("dtype", "layout"), GIVEN, ids=str)
def test_activate(dtype, layout):
    x = tensor(2, 3, 7, 5, dtype=dtype, layout=layout)
    compare(activate, (x, tensor(2, 3), tensor(3)), dtype, slope=0.2)
    compare(activate, (x, None, tensor(3)), dtype, slope=0.2)
    compare(activate, (x, tensor(2, 3)), dtype)


def _resample(x, scale, bias, **arguments):
    return resample(x, scale=scale, bias=bias, **arguments)


@KERNELS
def test_many_pixels_are_summed_in_parts():
    x, scale = tensor(1, 1, 90, 90), tensor(1, 1)
    compare(activate, (x, scale, tensor(1)), torch.float32, slope=0.2)


@KERNELS
@pytest.mark.parametrize("filter_", [*FILTERS, None], ids=str)
def test_second_derivatives(filter_):
    """All of them, against those of the definition; where R1 runs, also against differences."""

    def operation(x, bias, scale=None, impl="triton"):
        if filter_ is None:
            return activate(x, scale, bias, 0.2, impl)
        return resample(x, scale=scale, bias=bias, slope=0.2, impl=impl, **filter_)

    given = [tensor(*shape, dtype=torch.float64) for shape in ((1, 2, 4, 3), (2,), (1, 2))]
    results = []
    for impl in ("triton", "reference"):
        made = operation(*given, impl=impl)
        first = torch.autograd.grad(made.sin().sum(), given, create_graph=True)
        results.append(torch.autograd.grad(sum(g.cos().sum() for g in first), given))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, torch.float64)
    if filter_ is None or "down" in filter_:
        # Along random directions: element by element would be slow.
        assert gradgradcheck(operation, given[:2], fast_mode=True)


@KERNELS
def test_gradient_penalty_of_a_residual_block():
    """What R1 does: the gradients of a gradient's norm, of all weights, by kernels and without."""
    block = DownBlock(2, 3).to(DEVICE)
    x = tensor(2, 2, 8, 8)
    results = []
    for impl in ("triton", "reference"):
        with ops.use(impl):
            (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(gradient.square().sum(), list(block.parameters())))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.fixture
def _few_programs(monkeypatch):
    """As large ones as Triton takes, for what the interpreter counts are programs."""
    if DEVICE.type == "cpu":
        from lmdvid.ops import kernels

        def column(x, *_):
            return [1 << (n - 1).bit_length() for n in (*x.shape[2:], x.shape[1])]

        def tile(x, *_):
            height, width, channels = column(x)
            return height, width, min(channels, 2**20 // (height * width))

        monkeypatch.setattr(kernels, "_tile", tile)
        monkeypatch.setattr(kernels, "_column", column)


@KERNELS
@pytest.mark.usefixtures("_few_programs")
@torch.no_grad()
def test_a_picture_equals_the_original(generator, golden):  # noqa: F811
    generator = generator.to(DEVICE)
    with ops.use("triton"), exact(DEVICE):
        source = generator.encode_source(golden["source"].to(DEVICE))
        still = torch.zeros(1, 20, device=DEVICE)
        made = generator.render(source, still, mode="absolute")
    assert_code(source.appearance.cpu(), golden["appearance"])
    assert_image(made.cpu(), golden["reference"])


@KERNELS
@pytest.mark.usefixtures("_few_programs")
def test_networks_run_on_kernels():
    network = Generator(32, 16, 3, width=0.01).to(DEVICE).eval()
    pictures = torch.rand(2, 2, 3, 32, 32, device=DEVICE) * 2 - 1
    clip, layer = torch.randn(2, 3, 2, 4, 4, device=DEVICE), Conv3d(3, 2, 1).to(DEVICE)
    results = []
    for impl in ("triton", "reference"):
        with ops.use(impl):
            _, _, features = network.encoder(pictures[0])
            made, flows = network.synthesis(
                torch.linspace(-1, 1, 32).view(2, 16).to(DEVICE), features
            )
            (gradient,) = torch.autograd.grad(made.sum(), network.synthesis.constant)
            results.append((made, *flows, gradient, layer(clip)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, torch.float32)


@KERNELS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operators_are_registered_correctly():
    x, scale, bias = tensor(1, 3, 4, 3), tensor(1, 3), tensor(3)
    logits, h = tensor(1, 3, 4, 3), tensor(1, 3, 4, 3)
    check = torch.library.opcheck
    check(resampling.operator, (x, None, scale, bias, 2, 1, 4, 2, 8, 6, 4.0, 0.2, True))
    check(resampling.inner, (x, h, None, 0.2))
    check(warping._flow_warp, (logits, x, h, True))
    check(warping._warp, (x, logits[:, :2].detach().requires_grad_(), False))


def test_shapes_are_checked():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        flow_warp(torch.zeros(2, 3, 4, 5), x, align_corners=True)
    with pytest.raises(ValueError, match=r"\(B, 2, H', W'\)"):
        warp(x, torch.zeros(2, 4, 4, 2), True)
    with pytest.raises(ValueError, match=r"scale has shape \(3,\): expected \(2, 3\)"):
        resample(x, scale=torch.zeros(3))
    with pytest.raises(ValueError, match=r"bias has shape \(2,\): expected \(3,\)"):
        activate(x, bias=torch.zeros(2))
    with pytest.raises(ValueError, match="choose 1 and 1"):
        resample(x, up=2, down=2)
    with pytest.raises(ValueError, match="smaller than the filter"):
        resample(x[:, :, :1], padding=1)


def test_the_implementation_is_chosen(monkeypatch):
    x = torch.zeros(1, 1, 2, 2)
    assert not dispatch.runs_triton("auto", x)  # a CPU never runs the interpreter unasked
    with pytest.raises(ValueError, match="choose 'auto', 'reference' or 'triton'"):
        ops.use("cuda")
    monkeypatch.setenv("LMDVID_OPS", "fast")
    with pytest.raises(ValueError, match="LMDVID_OPS='fast': choose"):
        activate(x)
    monkeypatch.setenv("LMDVID_OPS", "triton")
    assert dispatch.setting() == "triton"
    with ops.use("reference"):
        assert dispatch.setting() == "reference"
        with ops.use("auto"):
            assert dispatch.setting() == "auto"
        assert dispatch.setting() == "reference"
    assert dispatch.setting() == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        activate(x)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="no compiler for cpu"):
        activate(x)


def test_the_choice_of_implementation_is_a_constant_to_the_compiler():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked).items() <= vars(dispatch._usable).items()
    assert vars(marked)


def test_an_experiment_chooses_the_implementation():
    from lmdvid.callbacks import Operations

    callback = Operations("reference")
    callback.setup(None, None, "fit")
    assert dispatch.setting() == "reference"
    callback.teardown(None, None, "fit")
    assert dispatch.setting() == "auto"


COMPILE = """
import sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Hopper:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

driver.set_active(Hopper())
compiled = {}

def launch(self, grid):
    def compile(*given, **constants):
        kernel = self.warmup(*given, grid=grid, **constants)
        compiled[self.fn.__name__] = kernel.asm["ptx"], kernel.asm["cubin"]
    return compile

JITFunction.__getitem__ = launch
from lmdvid.ops import kernels

x = torch.zeros(2, 64, 16, 16, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
logits, sums = torch.zeros(2, 3, 16, 16), torch.zeros(2, 64)
for deterministic in (True, False):
    kernels.warp_backward(x, x, logits, x, x, logits, x, x, True, False, deterministic)
kernels.warp(logits, x, x, x, x, True, False)
kernels.resample(x, None, sums, sums[0], x, 2, 1, 4, 2, 4.0, 0.2, True)
kernels.resample(x, x, sums, None, x[:, :, :8, :8], 1, 2, 4, 1, 1.0, 0.2, False)
kernels.inner(x, x, x, 0.2)
assert len(compiled) == 7 and all(len(cubin) > 1000 for _, cubin in compiled.values())
# Sixteen bytes at a time.
for name, (ptx, _) in compiled.items():
    assert name == "chain_kernel" or "ld.global.v4" in ptx or "ld.global.v2.b64" in ptx, name
# A size of 1 is a constant to the compiler.
for c, h, w, align_corners in [(1, 1, 1, True), (3, 1, 5, False), (3, 5, 1, True)]:
    x, logits, large = (torch.zeros(1, *size) for size in ((c, h, w), (3, h, w), (c, 4, 6)))
    kernels.warp(logits, x, x, x, x, True, align_corners)
    kernels.warp(logits, large, None, x, None, False, align_corners)
    for deterministic in (True, False):
        kernels.warp_backward(
            x, x, logits, x, x, logits, x, x, True, align_corners, deterministic
        )
    kernels.resample(x, x, None, None, x, 1, 1, 4, 2, 4.0, 0.2, True)
    kernels.inner(x, None, x, 0.2)
"""


@KERNELS
def test_kernels_compile_for_a_gpu_that_is_not_there(monkeypatch, tmp_path):
    """Triton brings its own compiler: everything but the running can be tried without a GPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
