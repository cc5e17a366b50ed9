"""The navigator against its definition, a loop and finite differences."""

import copy

import pytest
import torch

from lmdvid.navigator import LatentNavigator, _gram_schmidt

FORMS = ["qr", "polar", "svd"]


@pytest.mark.parametrize("orthogonal", FORMS)
@pytest.mark.parametrize(("dim", "directions"), [(512, 20), (64, 64), (7, 1)])
def test_basis_is_orthonormal(orthogonal, dim, directions):
    navigator = LatentNavigator(dim, directions, orthogonal)
    for dtype, tolerance in [(torch.float32, 1e-5), (torch.float64, 1e-12)]:
        basis = navigator.to(dtype).basis()
        assert basis.shape == (directions, dim)
        assert basis.dtype == dtype
        gram = basis @ basis.T
        assert (gram - torch.eye(directions, dtype=dtype)).abs().max() < tolerance


@pytest.mark.parametrize("orthogonal", FORMS)
def test_walks_equal_their_definition(orthogonal):
    navigator = LatentNavigator(16, 5, orthogonal).double()
    w0, alpha = torch.randn(3, 16).double(), torch.randn(3, 4, 5).double()
    basis = navigator.basis()
    single = navigator(w0, alpha[:, 0])
    each = navigator(w0, alpha)
    added = navigator(w0, alpha, accumulate=True)
    for b in range(3):
        total = w0[b].clone()
        for t in range(4):
            step = sum(alpha[b, t, i] * basis[i] for i in range(5))
            total = total + step
            torch.testing.assert_close(each[b, t], w0[b] + step)
            torch.testing.assert_close(added[b, t], total)
        torch.testing.assert_close(single[b], each[b, 0])


def test_magnitudes_invert_displace():
    navigator = LatentNavigator(32, 6)
    alpha = torch.randn(2, 3, 6)
    torch.testing.assert_close(navigator.magnitudes(navigator.displace(alpha)), alpha)


def test_qr_is_gram_schmidt():
    navigator = LatentNavigator(9, 4).double()
    rows = []
    for column in navigator.weight.T:
        for row in rows:
            column = column - (column @ row) * row
        rows.append(column / column.norm())
    torch.testing.assert_close(navigator.basis(), torch.stack(rows))


@pytest.mark.parametrize(
    ("orthogonal", "directions", "look_every"),
    [("qr", 20, 1), ("polar", 20, 1), ("polar", 512, 25)],
)
def test_no_direction_jumps(orthogonal, directions, look_every):
    """Sign steps are what Adam's first updates look like; lr is LIA's.

    The square basis, dear to compute, is looked at every 25 steps: the drift it may show between
    two looks only makes the test harder.
    """
    navigator = LatentNavigator(512, directions, orthogonal)
    previous = navigator.basis().detach()
    lowest = 1.0
    for step in range(2000):
        with torch.no_grad():
            navigator.weight -= 0.0016 * torch.randn_like(navigator.weight).sign()
            if (step + 1) % look_every:
                continue
            basis = navigator.basis()
        lowest = min(lowest, (basis * previous).sum(dim=1).min().item())
        previous = basis
    assert lowest > 0.9


@pytest.mark.parametrize("orthogonal", FORMS)
@pytest.mark.parametrize(("dim", "directions"), [(6, 3), (4, 4)])
def test_gradients(orthogonal, dim, directions):
    navigator = LatentNavigator(dim, directions, orthogonal).double()

    def basis_of(weight):
        return torch.func.functional_call(navigator, {"weight": weight}, (w0, alpha))

    w0 = torch.randn(2, dim, dtype=torch.float64)
    alpha = torch.randn(2, directions, dtype=torch.float64)
    weight = navigator.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(basis_of, weight)


def test_polar_gradient_is_finite_for_equal_singular_values():
    navigator = LatentNavigator(8, 8, "polar")
    with torch.no_grad():
        navigator.weight.copy_(torch.eye(8))
    (navigator.basis() * torch.randn(8, 8)).sum().backward()
    assert navigator.weight.grad.isfinite().all()


@pytest.mark.parametrize("orthogonal", FORMS)
def test_float32_inside_autocast(orthogonal):
    navigator = LatentNavigator(64, 8, orthogonal)
    w0, alpha = torch.randn(2, 64), torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = navigator(w0, alpha)
        basis = navigator.basis()
        back = navigator.magnitudes(navigator.displace(alpha))
    assert inside.dtype == basis.dtype == back.dtype == torch.float32
    torch.testing.assert_close(inside, navigator(w0, alpha))
    torch.testing.assert_close(back, alpha)
    half = navigator.to(torch.bfloat16)
    assert half.basis().dtype == torch.float32


@pytest.mark.parametrize("orthogonal", FORMS)
def test_cache_is_never_stale(orthogonal):
    navigator = LatentNavigator(16, 4, orthogonal).eval()
    other = LatentNavigator(16, 4, orthogonal)

    def kept():
        with torch.no_grad():
            return navigator.basis()

    first = kept()
    assert kept() is first, "an unchanged navigator computes its basis once"
    assert not first.requires_grad
    assert first.grad_fn is None
    with torch.enable_grad():
        assert navigator.basis().requires_grad

    optimiser = torch.optim.Adam(navigator.parameters(), lr=0.1)
    navigator.basis().pow(3).sum().backward()
    optimiser.step()
    second = kept()
    assert not torch.equal(first, second)
    with torch.no_grad():
        navigator.weight.copy_(other.weight)
        fresh = navigator._orthonormal()
    torch.testing.assert_close(kept(), fresh)
    navigator.load_state_dict(other.state_dict())
    torch.testing.assert_close(kept(), other.basis().detach())
    assert navigator.double() is navigator
    assert kept().dtype == torch.float64
    navigator.train()
    with torch.no_grad():
        assert navigator.basis() is not navigator.basis()


def test_cache_in_inference_mode_survives_training():
    navigator = LatentNavigator(16, 4).eval()
    with torch.inference_mode():
        navigator(torch.zeros(1, 16), torch.ones(1, 4))
    navigator.train()
    navigator(torch.zeros(1, 16), torch.ones(1, 4)).sum().backward()
    assert navigator.weight.grad is not None
    with torch.inference_mode():
        navigator.eval().basis()
    with torch.no_grad():
        walked = navigator(torch.zeros(1, 16), torch.ones(1, 4))
    assert walked.isfinite().all()


def test_copies_are_independent_and_equal():
    navigator = LatentNavigator(16, 4, "svd").eval()
    with torch.no_grad():
        navigator.basis()
        copied = copy.deepcopy(navigator)
        torch.testing.assert_close(copied.basis(), navigator.basis())
        copied.weight.neg_()
        torch.testing.assert_close(navigator.basis(), navigator._orthonormal())


def test_svd_follows_its_saved_signs():
    navigator = LatentNavigator(12, 3, "svd")
    before = navigator.basis().detach()
    with torch.no_grad():
        navigator.weight.add_(1e-4 * torch.randn_like(navigator.weight))
    navigator.align_signs()
    after = navigator.basis().detach()
    assert ((before * after).sum(dim=1) > 0.99).all()
    loaded = LatentNavigator(12, 3, "svd")
    loaded.load_state_dict(navigator.state_dict())
    torch.testing.assert_close(loaded.basis(), navigator.basis())


@pytest.mark.parametrize(("dim", "directions"), [(512, 20), (64, 64), (7, 1)])
@pytest.mark.parametrize("condition", [1, 1e3, 1e6])
def test_the_basis_of_gpus_is_that_of_householder(dim, directions, condition):
    """Nearer to float64's than float32's Householder is, values and gradients alike."""
    left, right = torch.randn(dim, directions).double(), torch.randn(directions, directions)
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), directions).double()
    weight = torch.linalg.qr(left).Q * values @ torch.linalg.qr(right.double()).Q
    weight = weight.float().requires_grad_()
    other = torch.randn(dim, directions)

    def householder(weight):
        q, r = torch.linalg.qr(weight)
        return q * r.diagonal().sign()

    def errors(way):
        q = way(weight)
        (gradient,) = torch.autograd.grad((q * other.to(q)).sum(), weight)
        return (q - exact).abs().max(), (gradient - exact_gradient).abs().max()

    exact = householder(weight.double())
    (exact_gradient,) = torch.autograd.grad((exact * other).sum(), weight)
    ours, plain = errors(_gram_schmidt), errors(householder)
    assert ours[0] < max(1e-6, plain[0])
    assert ours[1] < max(1e-5 * exact_gradient.abs().max(), plain[1])
    assert _gram_schmidt(torch.ones(5, 2)).isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LatentNavigator(4, 5), "choose 1 to 4"),
        (lambda: LatentNavigator(4, 2, "gram"), "'qr', 'polar' or 'svd'"),
        (lambda: LatentNavigator(4, 2)(torch.zeros(1, 3), torch.zeros(1, 2)), r"\(B, 4\)"),
        (lambda: LatentNavigator(4, 2)(torch.zeros(1, 4), torch.zeros(1, 3)), r"\(B, 2\)"),
        (
            lambda: LatentNavigator(4, 2)(torch.zeros(1, 4), torch.zeros(1, 2), accumulate=True),
            "over time",
        ),
    ],
)
def test_errors_say_what_is_possible(call, message):
    with pytest.raises(ValueError, match=message):
        call()
