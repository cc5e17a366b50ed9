"""Distances of features against closed forms, published values, laws and other processes."""

import copy
import math
import multiprocessing

import pytest
import torch
from torch import nn

from lmdvid.metrics.frechet import (
    ExtrapolatedFrechetDistance,
    FrechetDistance,
    expected_distance,
    frechet_distance,
)
from lmdvid.metrics.kernel import KernelDistance
from lmdvid.metrics.precision_recall import PrecisionRecall


def waves(n: int, dim: int, real: bool) -> torch.Tensor:
    """Features without a random number, for which distances are known to many digits."""
    shift, weight = (0.0, 0.5) if real else (0.4, 0.25)
    i = torch.arange(n, dtype=torch.float64)[:, None]
    j = torch.arange(dim, dtype=torch.float64)
    return torch.sin(0.7 * (i + 1) * (j + 1) + shift) + weight * torch.cos(0.3 * i * j) + 0.1 * j


def distance(real: torch.Tensor, fake: torch.Tensor, **options) -> float:
    metric = FrechetDistance(real.shape[1], **options)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


def normal(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


def matrix(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


T = matrix([[2, 1, 0], [1, 3, 1], [0, 1, 2]])
S = matrix([[4, 1, 0], [1, 2, 0.5], [0, 0.5, 1]])


class TestGaussians:
    @pytest.mark.parametrize(
        ("shift", "a", "b", "expected"),
        [
            pytest.param([2], matrix([[4]]), matrix([[9]]), 5, id="one dimension"),
            pytest.param([0, 0], matrix([[2, 0.5], [0.5, 1]]), None, 0, id="equal"),
            pytest.param([1, -2, 2], torch.diag(matrix([1, 2, 3])), None, 9, id="means"),
            pytest.param(
                [0, 0, 1], torch.diag(matrix([1, 4, 9])), torch.diag(matrix([4, 4, 1])), 6,
                id="axes",
            ),
            pytest.param(
                [0, 0], matrix([[2, 1], [1, 2]]), torch.diag(matrix([3, 1])), 0.516685226452117,
                id="two dimensions",
            ),
            pytest.param(
                [0, 0], matrix([[2, 1], [1, 2]]), 4 * matrix([[2, 1], [1, 2]]), 4, id="scaled"
            ),
            pytest.param([0, 0], torch.ones(2, 2), 4 * torch.ones(2, 2), 2, id="rank one"),
            pytest.param(
                [0, 0], torch.ones(2, 2), matrix([[1, -1], [-1, 1]]), 4, id="orthogonal rank one"
            ),
            pytest.param(
                [0, 0], matrix([[9, 12], [12, 16]]), torch.eye(2), 17, id="rank one and two"
            ),
            pytest.param([0, 0, 0], S, T @ S @ T, 31, id="congruent"),
        ],
    )  # fmt: skip
    def test_closed_forms(self, shift, a, b, expected):
        shift = matrix(shift)
        b = a if b is None else b
        found = frechet_distance(torch.zeros_like(shift), a, shift, b)
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(expected, abs=1e-12)


class TestFrechetDistance:
    @pytest.mark.parametrize(
        ("n", "m", "dim", "unbiased", "biased"),
        [
            (12, 12, 4, 0.112575623219522, 0.108729903327042),
            (40, 30, 6, 0.174046251407271, 0.172696280314848),
            (5, 5, 8, 1.13569384143024, 0.955496322256190),
            (2, 3, 4, 2.61986653393347, 1.91281099141836),
        ],
    )
    def test_values_computed_with_fifty_digits(self, n, m, dim, unbiased, biased):
        real, fake = waves(n, dim, True), waves(m, dim, False)
        assert distance(real, fake) == pytest.approx(unbiased, abs=1e-12)
        assert distance(real, fake, ddof=0) == pytest.approx(biased, abs=1e-12)

    @pytest.mark.parametrize(
        ("n", "m", "dim"), [(60, 50, 12), (9, 40, 12), (40, 9, 12), (7, 9, 12)]
    )
    def test_invariances(self, n, m, dim):
        real = normal(n, dim) @ normal(dim, dim, 1) + 3
        fake = normal(m, dim, 2) @ normal(dim, dim, 3)
        expected = distance(real, fake)
        assert distance(fake, real) == pytest.approx(expected, rel=1e-11)
        order = torch.randperm(n)
        assert distance(real[order], fake.flip(0)) == pytest.approx(expected, rel=1e-11)
        q, _ = torch.linalg.qr(normal(dim, dim, 4))
        turned = distance(real @ q + 5, fake @ q + 5)
        assert turned == pytest.approx(expected, rel=1e-10)
        assert distance(3 * real, 3 * fake) == pytest.approx(9 * expected, rel=1e-11)
        metric = FrechetDistance(dim)
        for part in real.split(4):
            metric.update(part, real=True)
        for part in fake.split(5):
            metric.update(part, real=False)
            metric.update(part[:0], real=True)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-11)
        assert distance(real, real) == pytest.approx(0, abs=1e-9)

    def test_rows_and_products_agree_where_both_are_exact(self):
        # 30 samples of rank 30 in 40 dimensions: rows; with ten constant features and more
        # samples than features: products whose covariance has no full rank.
        real, fake = normal(60, 40), normal(55, 40, 1)
        real[:, 30:] = fake[:, 30:] = 1.0
        products = distance(real, fake)
        padding = torch.zeros(1, 100)
        rows = distance(*(torch.cat([x, padding.expand(len(x), -1)], 1) for x in (real, fake)))
        assert products == pytest.approx(rows, rel=1e-12)

    def test_exact_below_full_rank(self):
        # Against the nuclear norm of an explicit product, from QR factors of the samples.
        real, fake = normal(25, 100) @ normal(100, 100, 1), normal(25, 100, 2)
        a, b = (x - x.mean(0) for x in (real, fake))
        qa, ra = torch.linalg.qr(a.T)
        qb, rb = torch.linalg.qr(b.T)
        root = torch.linalg.svdvals(ra.T @ (qa.T @ qb) @ rb).sum() / 24
        expected = (real.mean(0) - fake.mean(0)).square().sum()
        expected += (a.square().sum() + b.square().sum()) / 24 - 2 * root
        assert distance(real, fake) == pytest.approx(expected.item(), rel=1e-12)

    def test_keeps_no_more_rows_than_it_needs(self):
        metric = FrechetDistance(5)
        metric.update(normal(5, 5), real=True)
        assert metric.rows("real").shape == (5, 5)
        metric.update(normal(1, 5), real=True)
        assert metric.rows("real").shape == (0, 5)

    def test_bias_of_small_samples(self):
        dim, n, m, repetitions = 64, 512, 1024, 30
        found = torch.tensor(
            [distance(normal(n, dim, 2 * i), normal(m, dim, 2 * i + 1)) for i in range(repetitions)]
        )
        error = found.std().item() / math.sqrt(repetitions)
        expected = expected_distance(torch.ones(dim), n, m).item()
        assert expected == pytest.approx(dim * (dim + 5) / 4 * (1 / n + 1 / m))
        # The law is of second order, and a percent too high here.
        assert found.mean().item() == pytest.approx(expected, abs=3 * error + 0.015 * expected)
        uneven = expected_distance(torch.tensor([4.0, 1.0, 0.0]), 10, 10).item()
        pairs = 2 * (4 * 1 / (2 * 5)) + 2 * 16 / 16 + 2 * 1 / 4
        assert uneven == pytest.approx(0.2 * (5 + pairs))

    @pytest.mark.parametrize(
        "move",
        [
            lambda m: m.to(torch.bfloat16),
            lambda m: m.half(),
            lambda m: m.float(),
            lambda m: m.set_dtype(torch.float16),
            lambda m: nn.ModuleList([m]).to(dtype=torch.bfloat16)[0],
        ],
    )
    def test_stays_float64(self, move):
        real, fake = waves(12, 4, True), waves(12, 4, False)
        metric = FrechetDistance(4)
        metric.update(real[:2], real=True)
        move(metric)
        metric.update(real[2:], real=True)
        metric.update(fake, real=False)
        assert metric.compute().item() == pytest.approx(0.112575623219522, abs=1e-12)
        metric.reset()
        assert metric.real_products.dtype == metric.real_sum.dtype == torch.float64

    def test_reset(self):
        real, fake = waves(12, 4, True), waves(12, 4, False)
        metric = FrechetDistance(4, keep_real=True)
        metric.update(real, real=True)
        metric.update(real, real=False)
        with torch.inference_mode():
            metric.reset()
        assert (int(metric.real_count), int(metric.fake_count)) == (12, 0)
        metric.update(fake, real=False)
        assert metric.compute().item() == pytest.approx(0.112575623219522, abs=1e-12)
        metric.keep_real = False
        metric.reset()
        assert (int(metric.real_count), int(metric.fake_count)) == (0, 0)
        metric.update(real[:3], real=True)  # again with fewer samples than features
        metric.update(fake[:2], real=False)
        assert metric.compute().item() == pytest.approx(distance(real[:3], fake[:2]), rel=1e-12)
        assert copy.deepcopy(metric).compute() == metric.compute()

    def test_no_state_is_saved(self):
        assert FrechetDistance(3).state_dict() == {}

    @pytest.mark.parametrize(
        "features", [torch.zeros(3), torch.zeros(2, 5), torch.zeros(2, 3, dtype=torch.int64)]
    )
    def test_refuses_other_features(self, features):
        with pytest.raises(ValueError, match=r"takes floats \(B, 3\)"):
            FrechetDistance(3).update(features, real=True)

    def test_refuses_what_has_no_distance(self):
        metric = FrechetDistance(3)
        metric.update(normal(4, 3), real=True)
        metric.update(normal(1, 3), real=False)
        with pytest.raises(ValueError, match="4 real and 1 generated"):
            metric.compute()
        metric.update(torch.full((1, 3), math.nan), real=False)
        with pytest.raises(ValueError, match="generated samples are not finite"):
            metric.compute()
        with pytest.raises(ValueError, match="ddof is 2"):
            FrechetDistance(3, ddof=2)


class TestExtrapolation:
    def test_removes_the_bias(self):
        dim, n = 8, 400
        plain, without = [], []
        for seed in range(12):
            real, fake = normal(n, dim, 2 * seed), normal(n, dim, 2 * seed + 1)
            fake[:, 0] += 1
            plain.append(distance(real, fake) - 1)
            metric = ExtrapolatedFrechetDistance(dim, points=5)
            metric.update(real, real=True)
            metric.update(fake, real=False)
            without.append(metric.compute().item() - 1)
        bias = expected_distance(torch.ones(dim), n, n).item()
        assert sum(plain) / 12 > 0.6 * bias
        assert abs(sum(without) / 12) < 0.5 * bias

    def test_refuses_too_few(self):
        metric = ExtrapolatedFrechetDistance(8)
        metric.update(normal(31, 8), real=True)
        metric.update(normal(40, 8), real=False)
        with pytest.raises(ValueError, match="at least 32 samples on each side; it has 31 real"):
            metric.compute()


class TestKernelDistance:
    @staticmethod
    def value(real, fake, **options):
        metric = KernelDistance(real.shape[1], **options)
        metric.update(real[:2], real=True)
        metric.update(real[2:], real=True)
        metric.update(fake, real=False)
        return metric.compute().item()

    @pytest.mark.parametrize(
        ("n", "m", "dim", "unbiased", "biased", "jedi", "square"),
        [
            (12, 12, 4, -0.514483884681, 0.143624486584, 1.606836779352, -0.066329976038),
            (40, 30, 6, -0.121803426995, 0.083782514634, 1.111868325591, -0.014956198756),
            (5, 5, 8, -1.345436795951, 0.283752615499, 4.529752783911, -0.175523222614),
            (2, 3, 4, -2.888974478873, 3.350498987146, 51.274982440205, -0.475356024070),
        ],
    )
    def test_known_values(self, n, m, dim, unbiased, biased, jedi, square):
        real, fake = waves(n, dim, True), waves(m, dim, False)
        assert self.value(real, fake) == pytest.approx(unbiased, abs=1e-11)
        assert self.value(real, fake, biased=True) == pytest.approx(biased, abs=1e-11)
        two = {"degree": 2, "constant": 0.0}
        assert 100 * self.value(real, fake, **two, biased=True) == pytest.approx(jedi, abs=1e-10)
        assert self.value(real, fake, **two) == pytest.approx(square, abs=1e-11)

    def test_values_of_a_published_self_test(self):
        a = matrix([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        b = matrix([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
        two = {"degree": 2, "constant": 0.0, "biased": True}
        assert self.value(a, b, **two) == pytest.approx(270.7222222222)
        assert self.value(a, b, **two, gamma=1.0) == pytest.approx(2436.5)
        assert self.value(a, b, biased=True) == pytest.approx(23088.0833333)

    def test_subsets_do_not_depend_on_the_order(self):
        real, fake = torch.randn(60, 3), torch.randn(50, 3)
        one, two = (
            self.value(*sides, subsets=3, subset_size=20)
            for sides in ((real, fake), (real.flip(0), fake.roll(7, 0)))
        )
        assert one == two

    def test_subsets(self):
        real, fake = normal(60, 3), normal(50, 3, 1) + 0.2
        options = {"subsets": 40, "subset_size": 30}
        found = self.value(real, fake, **options)
        assert found == self.value(real, fake, **options)
        assert found != self.value(real, fake, **options, seed=1)
        assert found == pytest.approx(self.value(real, fake), rel=0.5)
        whole = self.value(real[:30], fake[:30], **options)
        assert whole == pytest.approx(self.value(real[:30], fake[:30]), rel=1e-9)
        with pytest.raises(ValueError, match="at least 51 samples on each side"):
            self.value(real, fake, subsets=2, subset_size=51)


class TestPrecisionRecall:
    def test_by_hand(self):
        # On a line with k = 1: real balls [0, 2], [-1, 1] -> radius 1 and 1, and 8 around 10.
        metric = PrecisionRecall(1, neighbours=1)
        metric.update(matrix([[0], [1], [10]]), real=True)
        metric.update(matrix([[1.5], [20], [20.5]]), real=False)
        # real radii: 1, 1, 9; generated radii: 18.5, 0.5, 0.5
        assert {k: v.item() for k, v in metric.compute().items()} == {
            "precision": pytest.approx(1 / 3),  # 1.5 is within 1 of 1; 20 and 20.5 are not
            "recall": pytest.approx(1.0),
        }

    def test_equal_and_far_sets(self):
        for shift, expected in ((0.0, 1.0), (100.0, 0.0)):
            metric = PrecisionRecall(4)
            metric.update(normal(700, 4), real=True)
            metric.update(normal(600, 4, int(shift)) + shift, real=False)
            values = metric.compute()
            assert values["precision"] == pytest.approx(expected, abs=0.1)
            assert values["recall"] == pytest.approx(expected, abs=0.1)

    def test_one_mode_is_precise_and_recalls_little(self):
        metric = PrecisionRecall(4)
        metric.update(normal(300, 4), real=True)
        metric.update(0.05 * normal(300, 4, 1), real=False)
        values = metric.compute()
        assert values["precision"] > 0.95
        assert values["recall"] < 0.05


# Shares of real and generated samples by process: uneven, empty, and so small that some processes
# still keep rows that others have dropped.
SHARES = [
    ([20, 4, 0], [0, 3, 11]),
    ([2, 0, 3], [3, 3, 0]),
    ([0, 0, 9], [30, 1, 1]),
]


def _process(rank: int, results) -> None:
    torch.set_num_threads(1)
    import torch.distributed as dist

    folder, queue = results
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    pair = dist.new_group([0, 1])
    try:
        for shares in SHARES:
            for group, size in ((None, 3), (pair, 2)):
                if rank >= size:
                    continue
                metrics = _metrics(process_group=group)
                for counts, real in zip(shares, (True, False), strict=True):
                    end = sum(counts[: rank + 1])
                    mine = waves(sum(counts), 8, real)[end - counts[rank] : end]
                    for metric in metrics:
                        if len(mine):
                            metric.update(mine, real=real)
                for index, metric in enumerate(metrics):
                    value = _value(metric)
                    if isinstance(value, str):
                        metric.reset()
                    metric.update(waves(1, 8, True), real=True)  # its own share is as it was
                    own = int(metric.real_count) - 1
                    queue.put((str(shares), size, index, rank, value, own))
    finally:
        dist.destroy_process_group()


def _metrics(**options):
    return [
        FrechetDistance(8, **options),
        KernelDistance(8, **options),
        PrecisionRecall(8, 1, **options),
    ]


def _value(metric):
    """What `compute` returns or how it refuses, as plain numbers or text."""
    try:
        value = metric.compute()
    except ValueError as error:
        return str(error)
    return [v.item() for v in value.values()] if isinstance(value, dict) else [value.item()]


def test_processes_agree_with_one(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(r, (tmp_path, queue))) for r in range(3)]
    for worker in workers:
        worker.start()
    expected_results = len(_metrics()) * len(SHARES) * (3 + 2)
    found = [queue.get(timeout=20) for _ in range(expected_results)]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    for shares in SHARES:
        for size in (2, 3):
            for index, metric in enumerate(_metrics()):
                for counts, real in zip(shares, (True, False), strict=True):
                    metric.update(waves(sum(counts), 8, real)[: sum(counts[:size])], real=real)
                expected = _value(metric)
                if isinstance(expected, str):
                    shares_left = [0] * size
                else:
                    shares_left = shares[0][:size]
                    expected = pytest.approx(expected, rel=1e-12)
                mine = sorted(f[3:] for f in found if f[:3] == (str(shares), size, index))
                assert [own for _, _, own in mine] == shares_left
                assert all(value == mine[0][1] for _, value, _ in mine)
                assert mine[0][1] == expected
