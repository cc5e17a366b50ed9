"""LIA's networks against the original's outputs, a training step of it, and their own promises."""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmdvid import ops
from lmdvid.networks import lia
from lmdvid.networks.layers import (
    EqualConv2d,
    ImageDiscriminator,
    ModulatedConv2d,
    blur,
    minibatch_stddev,
    upsample,
)
from lmdvid.ops.precision import exact

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402


def original(network: str) -> dict[str, torch.Tensor]:
    """The original's stand-in weights, in the original's names."""
    return {k: torch.from_numpy(np.array(v)) for k, v in filled()[network].items()}


@cache
def filled() -> dict[str, dict[str, np.ndarray]]:
    return recipe.weights(GOLDEN / "lia_64.keys.json")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "lia_64.npz") as data:
        return {k: torch.from_numpy(data[k]) for k in data.files}


@pytest.fixture
def generator() -> lia.Generator:
    config, state, _ = lia.from_original(original("gen"))
    generator = lia.Generator(**config)
    generator.load_state_dict(state)
    return generator.eval()


def discriminator_name(key: str) -> str:
    """The original discriminator's key in our names."""
    head, *rest = key.split(".")
    if head == "convs":
        block = int(rest[0])
        return (
            f"pyramid.blocks.{block - 1}.{rest[1]}.{rest[-1]}"
            if block
            else (f"pyramid.stem.{rest[-1]}")
        )
    if head == "final_conv":
        return f"conv.{rest[-1]}"
    return ("hidden." if rest[0] == "0" else "logit.") + rest[-1]


@pytest.fixture
def discriminator() -> ImageDiscriminator:
    network = ImageDiscriminator(64)
    ours = network.state_dict()
    theirs = {discriminator_name(k): v for k, v in original("dis").items() if "kernel" not in k}
    network.load_state_dict({k: v.reshape(ours[k].shape) for k, v in theirs.items()})
    return network


def assert_image(actual, expected):
    difference = (actual - expected).abs()
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-5


def assert_code(actual, expected):
    assert (actual - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("impl", ["auto", "reference"])  # on a CPU by oneDNN, and plain
@torch.no_grad()
def test_codes_equal_the_original(generator, golden, impl):
    with ops.use(impl):
        source = generator.eval().encode_source(golden["source"])
        assert_code(source.appearance, golden["appearance"])
        assert_code(generator.encode_motion(golden["driving"]), golden["alpha"])
        assert_code(generator.navigator.basis(), golden["basis"])


@pytest.mark.parametrize("impl", ["auto", "reference"])
@torch.no_grad()
def test_pictures_equal_the_original(generator, golden, impl):
    with ops.use(impl):
        source = generator.eval().encode_source(golden["source"])
        codes = generator.encode_motion(golden["driving"])
        assert_image(generator.render(source, codes, mode="absolute"), golden["absolute"])
        assert_image(generator.render(source, codes, codes[:1], "relative"), golden["relative"])
        alone = generator.render(source, codes[:1], mode="absolute")
        assert_image(alone, golden["absolute"][:1])
        still = torch.zeros(1, 20)
        assert_image(generator.render(source, still, mode="absolute"), golden["reference"])
        sweep = source.codes.repeat(3, 1)
        sweep[:, 3] += torch.tensor([-3.0, 0.0, 1.5])
        assert_image(generator.render(source, sweep, mode="absolute"), golden["sweep_d3"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_pictures_on_a_gpu_equal_the_original(generator, golden, impl):
    device = torch.device("cuda")
    golden, generator = {k: v.to(device) for k, v in golden.items()}, generator.to(device)
    with ops.use(impl), exact(device):
        source = generator.encode_source(golden["source"])
        codes = generator.encode_motion(golden["driving"])
        assert_code(source.appearance, golden["appearance"])
        assert_code(codes, golden["alpha"])
        assert_code(generator.navigator.basis(), golden["basis"])
        assert_image(generator.render(source, codes, mode="absolute"), golden["absolute"])
        assert_image(generator.render(source, codes, codes[:1], "relative"), golden["relative"])


def test_parameter_counts():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    with torch.device("meta"):
        assert count(lia.Generator(256)) == 45_116_317 - 1_555
        assert count(lia.Generator(512)) == 45_239_560 - (45_116_317 - 45_114_762) - 2
        assert count(ImageDiscriminator(256)) == 24_001_089
        assert count(ImageDiscriminator(512)) == 24_030_753


def test_conversion_names_every_key(generator):
    state = original("gen")
    _, converted, dropped = lia.from_original(state)
    assert len(converted) + len(dropped) == len(state)
    assert all(
        k.endswith(("kernel", "noise.weight")) or k.startswith("dec.to_rgb1") for k in dropped
    )
    assert lia.matches(state)
    assert not lia.matches(generator.state_dict())
    state["dec.surprise"] = state.pop("dec.input.input")
    with pytest.raises(ValueError, match=r"surprise.*missing.*constant"):
        lia.from_original(state)


def test_conversion_refuses_another_filter():
    state = original("gen")
    state["dec.to_rgbs.0.upsample.kernel"] = torch.ones(4, 4)
    with pytest.raises(ValueError, match="filter"):
        lia.from_original(state)


def test_larger_original_converts():
    """At 256 px, the size of the released files: their keys and shapes as published."""
    state = published_256()
    assert len(state) == 185
    assert sum(v.numel() for k, v in state.items() if "kernel" not in k) == 45_116_317
    config, converted, dropped = lia.from_original(state)
    assert config["size"] == 256
    assert sum(v.numel() for v in converted.values()) == 45_116_317 - 1_555
    assert len(converted) + len(dropped) == 185
    lia.Generator(**config).load_state_dict(converted)


def published_256() -> dict[str, torch.Tensor]:
    """An original generator of 256 px: every key with its shape, all weights 0.1."""
    fir = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    shapes: dict[str, tuple[int, ...]] = {
        "enc.net_app.convs.0.0.weight": (64, 3, 1, 1),
        "enc.net_app.convs.0.1.bias": (1, 64, 1, 1),
        "enc.net_app.convs.7.weight": (512, 512, 4, 4),
        "enc.fc.4.weight": (20, 512),
        "enc.fc.4.bias": (20,),
        "dec.direction.weight": (512, 20),
        "dec.input.input": (1, 512, 4, 4),
        "dec.to_rgb1.bias": (1, 3, 1, 1),
        "dec.to_rgb1.conv.0.weight": (3, 512, 1, 1),
        "dec.to_rgb1.conv.1.bias": (1, 3, 1, 1),
    }
    down = [64, 128, 256, 512, 512, 512, 512]
    for i in range(1, 7):
        block, (cin, cout) = f"enc.net_app.convs.{i}", down[i - 1 : i + 1]
        shapes |= {
            f"{block}.conv1.0.weight": (cin, cin, 3, 3),
            f"{block}.conv1.1.bias": (1, cin, 1, 1),
            f"{block}.conv2.0.kernel": (4, 4),
            f"{block}.conv2.1.weight": (cout, cin, 3, 3),
            f"{block}.conv2.2.bias": (1, cout, 1, 1),
            f"{block}.skip.0.kernel": (4, 4),
            f"{block}.skip.1.weight": (cout, cin, 1, 1),
        }
    for i in range(4):
        shapes |= {f"enc.fc.{i}.weight": (512, 512), f"enc.fc.{i}.bias": (512,)}
    up = [512, 512, 512, 512, 256, 128, 64]
    layers = [("dec.conv1", 512, 512)]
    for j in range(12):
        layers.append((f"dec.convs.{j}", up[(j + 1) // 2], up[j // 2 + 1]))
    for name, cin, cout in layers:
        shapes |= {
            f"{name}.conv.weight": (1, cout, cin, 3, 3),
            f"{name}.conv.modulation.weight": (cin, 512),
            f"{name}.conv.modulation.bias": (cin,),
            f"{name}.noise.weight": (1,),
            f"{name}.activate.bias": (1, cout, 1, 1),
        }
    for j in range(0, 12, 2):
        shapes[f"dec.convs.{j}.conv.blur.kernel"] = (4, 4)
    for p in range(6):
        rgb, flow, c = f"dec.to_rgbs.{p}", f"dec.to_flows.{p}", up[p + 1]
        shapes |= {
            f"{rgb}.bias": (1, 3, 1, 1),
            f"{rgb}.upsample.kernel": (4, 4),
            f"{rgb}.conv.0.weight": (3, c, 1, 1),
            f"{rgb}.conv.1.bias": (1, 3, 1, 1),
            f"{flow}.bias": (1, 3, 1, 1),
            f"{flow}.upsample.kernel": (4, 4),
            f"{flow}.conv.weight": (1, 3, c, 1, 1),
            f"{flow}.conv.modulation.weight": (c, 512),
            f"{flow}.conv.modulation.bias": (c,),
        }
    return {k: fir if s == (4, 4) else torch.full(s, 0.1) for k, s in shapes.items()}


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize(("width", "dim", "directions"), [(0.125, 64, 5), (0.5, 96, 20)])
def test_any_size_and_width(size, width, dim, directions):
    generator = lia.Generator(size, dim, directions, width)
    source, driving = torch.rand(2, 2, 3, size, size) * 2 - 1
    picture, alpha = generator(source, driving)
    assert picture.shape == (2, 3, size, size)
    assert alpha.shape == (2, directions)
    logits = ImageDiscriminator(size, width)(picture)
    (logits.sum() + picture.sum() + alpha.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_largest_size_has_the_right_shapes():
    generator = lia.Generator(1024, 16, 2, width=0.01)
    with torch.no_grad():
        picture, _ = generator(*torch.rand(2, 1, 3, 1024, 1024))
    assert picture.shape == (1, 3, 1024, 1024)


@pytest.mark.parametrize("align_corners", [True, False])
def test_zero_flow(align_corners):
    """Zero displacement is identity under align_corners=True; the original zooms a little."""
    flow = lia.Flow(4, 8, align_corners)
    with torch.no_grad():
        flow.conv.weight.zero_()
        flow.bias.copy_(torch.tensor([0.0, 0.0, 100.0]))
    features = torch.randn(2, 4, 9, 7)
    h = torch.randn(2, 4, 9, 7)
    warped, painted, logits = flow(h, torch.randn(2, 8), features, None)
    assert (logits[:, 2].sigmoid() == 1).all()
    assert torch.equal(painted, warped)
    if align_corners:
        torch.testing.assert_close(warped, features, atol=1e-5, rtol=1e-5)
    else:
        assert (warped[..., 0, 0] / features[..., 0, 0] - 0.25).abs().max() < 1e-4


def test_flow_moves_in_normalised_coordinates():
    """A displacement of 2 / (W - 1) in x reads the pixel to the right."""
    flow = lia.Flow(1, 4, True)
    with torch.no_grad():
        flow.conv.weight.zero_()
        flow.bias.copy_(torch.tensor([2 / 7, 0.0, 100.0]).atanh().nan_to_num(100.0))
    features = torch.randn(1, 1, 8, 8)
    warped, _, _ = flow(torch.zeros(1, 1, 8, 8), torch.zeros(1, 4), features, None)
    torch.testing.assert_close(warped[..., :-1], features[..., 1:], atol=1e-5, rtol=1e-5)
    assert warped[..., -1].abs().max() < 1e-5


def test_both_ways_is_the_exchange_of_both_pictures():
    generator = lia.Generator(32, 32, 5, 0.125)
    source, driving = torch.rand(2, 3, 3, 32, 32)
    both, alpha = generator(source, driving, both_ways=True)
    there, alpha_there = generator(source, driving)
    back, alpha_back = generator(driving, source)
    torch.testing.assert_close(both, torch.cat([there, back]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alpha, torch.cat([alpha_there, alpha_back]), atol=1e-4, rtol=1e-4)


def test_still_flows_show_the_source_where_it_is():
    """flow_init=0: whatever the codes, nothing moves yet."""
    generator = lia.Generator(32, 32, 5, 0.125, flow_init=0.0)
    _, flows = generator.synthesis(
        torch.randn(2, 32), generator.encoder(torch.rand(2, 3, 32, 32))[2]
    )
    assert all((flow == 0).all() for flow in flows)


def test_relative_mode_starts_at_the_source_pose():
    generator = lia.Generator(32, 32, 5, 0.125).eval()
    source = generator.encode_source(torch.rand(1, 3, 32, 32))
    codes = torch.randn(3, 5)
    first = generator.render(source, codes, codes[:1], "relative")[:1]
    still = generator.render(source, source.codes, mode="absolute")
    torch.testing.assert_close(first, still, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="first driving frame"):
        generator.render(source, codes)
    with pytest.raises(ValueError, match="'relative' or 'absolute'"):
        generator.render(source, codes, mode="sideways")


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 8])
def test_minibatch_stddev(batch):
    x = torch.randn(batch, 3, 4, 4)
    group = max(g for g in range(1, 5) if batch % g == 0)
    y = minibatch_stddev(x)
    assert y.shape == (batch, 4, 4, 4)
    for i in range(batch):
        members = x[i % (batch // group) :: batch // group]
        std = (((members - members.mean(0)) ** 2).mean(0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[i, 3], std.expand(4, 4))


def test_modulated_convolution_equals_its_definition():
    """Per-sample weights w * s, divided by their norm, one sample at a time."""
    layer = ModulatedConv2d(3, 5, 3, 7).double()
    x, style = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 7).double()
    bias = torch.randn(5).double()
    out, activated = layer(x, style), layer(x, style, bias)
    for b in range(2):
        s = layer.modulation(style[b])
        w = layer.weight / 27**0.5 * s[None, :, None, None]
        w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(x[b : b + 1], w, padding=1)
        torch.testing.assert_close(out[b : b + 1], expected)
        expected = 2**0.5 * F.leaky_relu(expected + bias[None, :, None, None], 0.2)
        torch.testing.assert_close(activated[b : b + 1], expected)


@pytest.mark.parametrize("options", [{}, {"up": True}, {"demodulate": False}])
def test_modulated_convolution_is_the_same_for_one_sample(options):
    """Whichever of weight and feature map is scaled."""
    layer = ModulatedConv2d(3, 5, 3, 7, **options).double()
    style, bias = torch.randn(2, 7).double(), torch.randn(5).double()
    for side in (4, 9):
        x = torch.randn(2, 3, side, side).double()
        for more in ((), (bias,)):
            alone = [layer(x[b : b + 1], style[b : b + 1], *more) for b in range(2)]
            torch.testing.assert_close(torch.cat(alone), layer(x, style, *more))


def test_filters_equal_their_definition():
    x = torch.randn(1, 2, 5, 5).double()
    taps = torch.tensor([1.0, 3, 3, 1]).double()
    kernel = torch.outer(taps, taps) / 64
    for c in range(2):
        channel = x[:, c : c + 1]
        padded = F.pad(channel, (2, 2, 2, 2))
        torch.testing.assert_close(blur(x, 2)[:, c], F.conv2d(padded, kernel[None, None])[:, 0])
        zeros = torch.zeros(1, 1, 10, 10).double()
        zeros[..., ::2, ::2] = channel
        expected = F.conv2d(F.pad(zeros, (2, 1, 2, 1)), 4 * kernel[None, None])
        torch.testing.assert_close(upsample(x)[:, c], expected[:, 0])
    strided = EqualConv2d(2, 3, 1, down=True, activated=False).double()
    full = F.conv2d(blur(x, 1), strided.weight * strided.scale, stride=2)
    torch.testing.assert_close(strided(x), full)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lia.Generator(48), "power of two from 32 to 1024"),
        (lambda: ImageDiscriminator(16), "power of two"),
        (
            lambda: lia.Generator(32, 16, 2, 0.125).encode_source(torch.zeros(1, 3, 64, 64)),
            r"\(B, 3, 32, 32\)",
        ),
    ],
)
def test_errors_say_what_is_possible(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_one_training_step_of_the_generator_equals_the_original(generator, discriminator, golden):
    """Losses, gradient norms by key, and the picture after the step.

    Adam's first step is lr times the gradient's sign, which rounding decides where it is small. In
    float32 the picture then depends on the number of threads; in float64 it does not.
    """
    expected = json.loads((GOLDEN / "lia_64.train.json").read_text())
    generator.double().train()
    discriminator.double()
    source, target = golden["train_source"].double(), golden["train_target"].double()

    recon, _ = generator(source, target)
    assert_image(recon.float(), golden["train_recon"])
    l1, adversarial = (recon - target).abs().mean(), F.softplus(-discriminator(recon)).mean()
    assert l1.item() == pytest.approx(expected["l1"], rel=1e-3)
    assert adversarial.item() == pytest.approx(expected["adv_g"], rel=1e-3)
    (l1 + adversarial).backward()
    ours = dict(generator.named_parameters())
    compared = 0
    for key, norm in expected["grad_norm_gen"].items():
        if norm >= 1e-4:
            gradient = ours[lia.renamed(key)].grad
            assert gradient.norm().item() == pytest.approx(norm, rel=2e-2), key
            compared += 1
    assert compared > 80

    lr, *betas = expected["optim"]["gen"]
    torch.optim.Adam(generator.parameters(), lr, betas=tuple(betas)).step()
    with torch.no_grad():
        after = generator(source, target)[0]
    assert (after - golden["train_recon_after_step"]).abs().mean() < 1e-2


def test_one_training_step_of_the_discriminator_equals_the_original(discriminator, golden):
    """Logits, loss and gradient norms by key."""
    expected = json.loads((GOLDEN / "lia_64.train.json").read_text())
    real, fake = discriminator(golden["train_target"]), discriminator(golden["train_recon"])
    assert_code(real, golden["dis_real"])
    assert_code(fake, golden["dis_fake"])
    loss = F.softplus(-real).mean() + F.softplus(fake).mean()
    assert loss.item() == pytest.approx(expected["adv_d"], rel=1e-3)
    loss.backward()
    ours = dict(discriminator.named_parameters())
    for key, norm in expected["grad_norm_dis"].items():
        gradient = ours[discriminator_name(key)].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3), key
