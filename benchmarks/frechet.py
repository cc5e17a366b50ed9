"""Fréchet distance at d features: time and error beside `scipy.linalg.sqrtm`, in one run.

    .venv/bin/pip install scipy   # the benchmark alone needs it
    .venv/bin/python benchmarks/frechet.py

Full rank: n = 4 d samples on each side. Below full rank: n = d / 4, where the true value comes
from QR factors of the samples and the nuclear norm of a small product. Passing over the samples is
in neither time: ours begins with the sums (and rows) that `update` has kept, scipy's with means and
covariances. One thread; the best of three runs, one run at 2048.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from lmdvid.metrics.frechet import FrechetDistance

RESULTS = Path(__file__).parent / "results" / "frechet.json"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def samples(n: int, d: int, seed: int) -> torch.Tensor:
    """Features with a falling spectrum, as networks give them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    return (x * spectrum) @ mixing / d**0.5 + 0.1 * seed


Moments = tuple[np.ndarray, np.ndarray]


def moments(x: np.ndarray) -> Moments:
    return x.mean(0), np.cov(x, rowvar=False)


def by_scipy(real: Moments, fake: Moments) -> float:
    from scipy.linalg import sqrtm

    (mean_a, a), (mean_b, b) = real, fake
    gap = mean_a - mean_b
    root = sqrtm(a @ b)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(root).real)


def by_samples(real: torch.Tensor, fake: torch.Tensor) -> float:
    """The distance from thin QR factors: independent of the code under test."""
    a, b = (x - x.mean(0) for x in (real, fake))
    (qa, ra), (qb, rb) = torch.linalg.qr(a.T), torch.linalg.qr(b.T)
    product = ra.T @ (qa.T @ qb) @ rb
    root = torch.linalg.svdvals(product).sum() / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    spread = a.square().sum() / (len(a) - 1) + b.square().sum() / (len(b) - 1)
    return ((real.mean(0) - fake.mean(0)).square().sum() + spread - 2 * root).item()


def timed(run: Callable[[], float], repeats: int) -> tuple[float, float]:
    seconds = []
    value = float("nan")
    for _ in range(repeats):
        start = time.process_time()
        value = run()
        seconds.append(time.process_time() - start)
    return value, min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[400, 768, 2048])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    import scipy

    torch.set_num_threads(1)
    rows = []
    for d in options.dims:
        for case, n in (("full rank", 4 * d), ("below full rank", d // 4)):
            real, fake = samples(n, d, 0), samples(n, d, 1)
            repeats = 1 if d > 1000 else 3
            metric = FrechetDistance(d)
            metric.update(real, real=True)
            metric.update(fake, real=False)
            ours, our_seconds = timed(lambda metric=metric: metric._distance().item(), repeats)
            both = moments(real.numpy()), moments(fake.numpy())
            theirs, scipy_seconds = timed(lambda both=both: by_scipy(*both), repeats)
            true = by_samples(real, fake) if n < d else None
            row = {
                "features": d,
                "case": case,
                "samples": n,
                "distance": ours,
                "seconds": round(our_seconds, 4),
                "scipy_seconds": round(scipy_seconds, 4),
                "times_as_fast": round(scipy_seconds / our_seconds, 1),
                "difference": abs(ours - theirs),
                "error": None if true is None else abs(ours - true),
                "scipy_error": None if true is None else abs(theirs - true),
            }
            rows.append(row)
            print(row)
    result = {
        "processor": processor(),
        "threads": 1,
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "date": date.today().isoformat(),
        "clock": (
            "processor seconds from accumulated moments to the distance; best of three, one at 2048"
        ),
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
