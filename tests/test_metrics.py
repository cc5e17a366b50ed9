"""Distances of features against closed forms, published values, laws and other processes."""

import copy
import math
import multiprocessing

import pytest
import torch
from torch import nn

from lmdvid.metrics.frechet import FrechetDistance, expected_distance, frechet_distance


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
                    try:
                        value = metric.compute().tolist()
                    except ValueError as error:
                        value = str(error)
                        metric.reset()
                    metric.update(waves(1, 8, True), real=True)  # its own share is as it was
                    own = int(metric.real_count) - 1
                    queue.put((str(shares), size, index, rank, value, own))
    finally:
        dist.destroy_process_group()


def _metrics(**options):
    return [FrechetDistance(8, **options)]


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
                try:
                    expected = metric.compute().tolist()
                except ValueError as error:
                    expected = str(error)
                    shares_left = [0] * size
                else:
                    shares_left = shares[0][:size]
                    expected = pytest.approx(expected, rel=1e-12)
                mine = sorted(f[3:] for f in found if f[:3] == (str(shares), size, index))
                assert [own for _, _, own in mine] == shares_left
                assert all(value == mine[0][1] for _, value, _ in mine)
                assert mine[0][1] == expected
