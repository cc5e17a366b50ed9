"""Losses against values worked out by hand and against naive loops."""

import math

import numpy as np
import pytest
import torch

from lmdvid.losses import (
    PerceptualLoss,
    discriminator_loss,
    generator_loss,
    image_pyramid,
    l1,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    r1_penalty,
    sparsity,
)
from lmdvid.networks.features import EfficientNetLite0, FrozenFeatures


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_least_squares_losses_are_their_formulae():
    real, fake = torch.randn(5, 1), torch.randn(5, 1)
    made = least_squares_generator_loss(fake)
    assert made.item() == pytest.approx(((1 - fake) ** 2).mean().item())
    told = least_squares_discriminator_loss(real, fake)
    assert told.item() == pytest.approx(((1 - real) ** 2).mean().item() + (fake**2).mean().item())


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [-3.0]])
    expected = (softplus(-0.5) + softplus(3.0)) / 2
    assert generator_loss(fake).item() == pytest.approx(expected, rel=1e-6)
    expected = (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(-3)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_adversarial_losses_stay_finite_and_keep_their_gradient():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = generator_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(100)
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.5, 0.0])


def test_low_precision_is_summed_in_float32():
    logits = torch.full((4096,), 0.3, dtype=torch.bfloat16)
    for loss in (generator_loss(logits), l1(logits, -logits), sparsity(logits)):
        assert loss.dtype == torch.float32
    assert l1(logits, -logits).item() == pytest.approx(2 * logits[0].item(), rel=1e-6)


def test_r1_of_a_quadratic():
    # D(x) = a/2 |x|^2 has the gradient a x
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images, a / 2 * images.square().sum((1, 2, 3)), gamma=10)
    norm = images.detach().square().sum().item() / 3
    assert penalty.item() == pytest.approx(5 * 1.7**2 * norm)
    penalty.backward()  # reaches the discriminator's weights through the gradient
    assert a.grad is not None
    assert a.grad.item() == pytest.approx(10 * 1.7 * norm)


def test_r1_says_what_is_missing():
    with pytest.raises(ValueError, match="do not require gradients"):
        r1_penalty(torch.zeros(1, 3, 2, 2), torch.zeros(1))


def test_l1_and_sparsity_by_hand():
    assert l1(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])).item() == 2.25
    with pytest.raises(ValueError, match=r"not \(2, 1\) and \(2,\)"):
        l1(torch.zeros(2, 1), torch.zeros(2))
    assert sparsity(torch.tensor([[1.0, -3.0], [0.0, 2.0]])).item() == 1.5


def naive_downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Two-dimensional Gaussian with zeros around, one output pixel after the other."""
    sigma = (factor - 1) / 2
    size = 2 * round(sigma * 4) + 1
    middle = size // 2
    kernel = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        kernel[i, j] = np.exp(-((i - middle) ** 2 + (j - middle) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    height, width = image.shape
    padded = np.pad(image, middle)
    return np.array(
        [
            [(padded[y : y + size, x : x + size] * kernel).sum() for x in range(0, width, factor)]
            for y in range(0, height, factor)
        ]
    )


@pytest.mark.parametrize(("factor", "size"), [(2, 5), (3, 9), (4, 13), (8, 29)])
def test_pyramid_equals_a_naive_convolution(factor, size):
    assert 2 * round(4 * (factor - 1) / 2) + 1 == size
    images = torch.randn(2, 3, 33, 21, dtype=torch.float64)
    full, small = image_pyramid(images, (1, 1 / factor))
    assert full is images
    assert small.shape == (2, 3, -(-33 // factor), -(-21 // factor))
    for b, c in np.ndindex(2, 3):
        np.testing.assert_allclose(
            small[b, c].numpy(), naive_downsample(images[b, c].numpy(), factor), atol=1e-12
        )


def test_pyramid_is_float32_under_autocast():
    images = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = image_pyramid(images)
    for a, b in zip(inside, image_pyramid(images), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [0.3, 0, -1, 2])
def test_pyramid_refuses_other_scales(scale):
    with pytest.raises(ValueError, match=f"scale is {scale}; possible are 1, 1/2"):
        image_pyramid(torch.zeros(1, 3, 8, 8), (1, scale))


class TwoMaps(FrozenFeatures):
    """Feature maps one can compute in the head: 3 x, and the mean colour squared."""

    channels = (3, 3)
    strides = (1, 8)

    def __init__(self):
        super().__init__(taps=2, autocast=False)
        self.three = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64), False)
        self.sizes: list[int] = []

    def _maps(self, images):
        self.sizes.append(images.shape[-1])
        return [self.three * images, images.mean((2, 3), keepdim=True).square()]


def test_perceptual_loss_is_the_sum_of_its_terms():
    prediction = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    features = TwoMaps()
    loss = PerceptualLoss(features, scales=(1, 1 / 2), weight=10)(prediction, target)

    expected = 0.0
    for factor in (1, 2):
        x, y = prediction.detach().numpy(), target.detach().numpy()
        if factor == 2:
            x, y = (np.stack([[naive_downsample(c, 2) for c in i] for i in z]) for z in (x, y))
        expected += 10 * np.abs(3 * x - 3 * y).mean()
        expected += 10 * np.abs(x.mean((2, 3)) ** 2 - y.mean((2, 3)) ** 2).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert sorted(features.sizes) == [8, 8, 16, 16]

    loss.backward()
    assert prediction.grad is not None
    assert target.grad is None


def test_perceptual_loss_of_the_paper_has_twenty_terms(monkeypatch):
    features = EfficientNetLite0()
    calls = []
    monkeypatch.setattr("lmdvid.losses.l1", lambda a, b: calls.append(a.shape) or l1(a, b))
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert PerceptualLoss(features)(image, image).item() == 0
    assert len(calls) == 20
    assert calls[-1] == (1, 320, 1, 1)  # 8 px through a stride of 32


def test_descending_the_perceptual_loss_approaches_the_target():
    loss = PerceptualLoss(EfficientNetLite0(taps=2), scales=(1, 1 / 2), weight=1.0)
    target = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4) * 2 - 1, 16)
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.05)
    first = loss(image, target).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss(image, target).backward()
        optimizer.step()
    assert loss(image, target).item() < 0.5 * first
    assert l1(image, target) < 0.6 * l1(torch.zeros_like(target), target)
