"""`lmdvid evaluate` on two folders of clips: time, memory, and what the kept real side saves.

    .venv/bin/python benchmarks/evaluate.py --clips 512

Clips are moving blobs, 20 frames of 64 x 64 pixels as H.264; 64 of each side are drawn and stand
there under several names, each of which is read and embedded. Memory is the peak of the process,
also for a quarter of the clips: it should not grow with their number.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from lmdvid.video import write_video

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
ROOT = Path(__file__).parent.parent


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def blobs(seed: int, frames: int = 20, size: int = 64) -> np.ndarray:
    """A few soft discs that move, uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    clip = np.full((frames, size, size, 3), rng.random(3))
    for _ in range(4):
        place, speed, colour = rng.random(2), rng.normal(0, 0.02, 2), rng.random(3)
        radius = rng.uniform(0.08, 0.25)
        for t in range(frames):
            cx, cy = place + t * speed
            disc = np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / radius**2) ** 2))[..., None]
            clip[t] = clip[t] * (1 - disc) + colour * disc
    return (255 * clip).astype(np.uint8)


def run(folder: Path, clips: int) -> dict:
    """One run of the command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = folder / "result.json"
    command = [sys.executable, "-m", "lmdvid", "evaluate", "--device", "cpu"]
    command += ["--real", str(folder / f"real{clips}"), "--fake", str(folder / f"fake{clips}")]
    # A shell between them, so that the peak is that of this command alone.
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    environment["PYTHONPATH"] = str(ROOT)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--output", str(output)],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(output.read_text())
    return {
        "clips": clips,
        "seconds": round(seconds, 1),
        "processor_seconds": round(after.ru_utime - before.ru_utime, 1),
        "peak_mb": round(int(done.stdout) / 1024),
        "real_decoded": result["sets"]["real"]["decoded"],
        "fake_decoded": result["sets"]["fake"]["decoded"],
        "score": result["scores"]["fd_effnetlite0_16f"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    few = options.clips // 4
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for side, first in (("real", 0), ("fake", 100_000)):
            for count in (few, options.clips):
                (folder / f"{side}{count}").mkdir()
            drawn = [folder / f"{side}{n}.mp4" for n in range(min(64, options.clips))]
            for n, path in enumerate(drawn):
                write_video(path, torch.from_numpy(blobs(first + n)), 25)
            for index in range(options.clips):
                for count in (few, options.clips)[index >= few :]:
                    name = folder / f"{side}{count}" / f"{index:04d}.mp4"
                    name.symlink_to(drawn[index % len(drawn)])
        runs = {
            "a quarter": run(folder, few),
            "first": run(folder, options.clips),
            "second": run(folder, options.clips),
        }
    result = {
        "processor": processor(),
        "threads": 1,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "protocol": "fd_effnetlite0_16f",
        "second_of_first": round(runs["second"]["seconds"] / runs["first"]["seconds"], 2),
        "second_of_first_processor": round(
            runs["second"]["processor_seconds"] / runs["first"]["processor_seconds"], 2
        ),
        "runs": runs,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
