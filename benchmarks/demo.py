"""Time, memory and scores of `make demo`: trains and tests the puppets experiment as it does.

    python benchmarks/demo.py

Writes benchmarks/results/demo.json and takes about six minutes on two cores.
"""

import csv
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiments/lia_puppets.yaml"


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def lightning(*arguments: str) -> float:
    """Runs one command line; returns the seconds it took."""
    command = [sys.executable, "-m", "lmdvid", arguments[0], "--config", EXPERIMENT, *arguments[1:]]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - start


def newest(pattern: str) -> Path:
    return max(ROOT.glob(pattern), key=lambda path: path.stat().st_mtime)


def last_row(metrics: Path) -> dict[str, float]:
    rows: dict[str, float] = {}
    with metrics.open() as file:
        for row in csv.DictReader(file):
            rows |= {key: float(value) for key, value in row.items() if value}
    return rows


def main() -> None:
    fit = lightning("fit")
    checkpoint = newest("runs/lia_puppets/version_*/checkpoints/last.ckpt")
    trained = last_row(checkpoint.parent.parent / "metrics.csv")
    test = lightning("test", "--ckpt_path", str(checkpoint))
    scores = last_row(newest("runs/lia_puppets/version_*/metrics.csv"))
    scores = {k.removeprefix("test/"): round(v, 4) for k, v in scores.items() if "test/" in k}
    result = {
        "benchmark": "demo",
        "experiment": EXPERIMENT,
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "gpu": None},
        "versions": {p: version(p) for p in ("lmdvid", "torch", "lightning", "numpy", "decord")}
        | {"python": platform.python_version()},
        "fit_seconds": round(fit, 1),
        "test_seconds": round(test, 1),
        "steps": int(trained["step"]) + 1,
        # Linux counts kilobytes, macOS bytes; the larger of the two commands.
        "peak_memory_mb": round(
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            / (1024 if sys.platform != "darwin" else 1024**2)
        ),
        "scores": scores,
        "psnr_above_copying_the_source": round(scores["psnr"] - scores["copy_psnr"], 2),
        "cross_psnr_above_copying_the_source": round(
            scores["cross_psnr"] - scores["cross_copy_psnr"], 2
        ),
    }
    output = ROOT / "benchmarks" / "results" / "demo.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
