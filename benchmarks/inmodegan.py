"""What experiments/inmodegan_puppets.yaml learns: distance from held-out clips, and its motion.

    python benchmarks/inmodegan.py

Trains where that has not been done (under an hour on two cores; killed and started again, it goes
on), then tests the untrained and the trained network against all 256 held-out clips. Motion is
measured as the mean optical flow between neighbouring frames (Lucas & Kanade 1981, windows of 9
pixels), with all magnitudes, without any, and without those of the direction that varies most.
Writes benchmarks/results/inmodegan.json.
"""

import csv
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from demo import last_row, newest, processor
from torch import Tensor

from lmdvid.generate import Plan, sample_codes, stack_codes
from lmdvid.pretrained import load_network

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiments/inmodegan_puppets.yaml"
SCORE = "fd_effnetlite0_16f"
VIDEOS = 32  # whose motion is measured


def lightning(*arguments: str) -> None:
    command = [sys.executable, "-m", "lmdvid", arguments[0], "--config", EXPERIMENT, *arguments[1:]]
    subprocess.run(command, cwd=ROOT, check=True)


def tested(*arguments: str) -> dict[str, float]:
    lightning("test", *arguments)
    scores = last_row(newest("runs/inmodegan_puppets/version_*/metrics.csv"))
    return {k.removeprefix("test/"): round(v, 4) for k, v in scores.items() if "test/" in k}


def flow(video: Tensor) -> float:
    """Mean length in pixels of the optical flow between the frames of (B, T, 3, H, W)."""
    grey = video.mean(dim=2)
    first, second = grey[:, :-1].flatten(0, 1)[:, None], grey[:, 1:].flatten(0, 1)[:, None]
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None] / 8
    mean = (first + second) / 2
    dx, dy = F.conv2d(mean, sobel, padding=1), F.conv2d(mean, sobel.mT, padding=1)
    dt = second - first
    xx, xy, yy, xt, yt = (
        F.avg_pool2d(p, 9, 1, 4) for p in (dx * dx, dx * dy, dy * dy, dx * dt, dy * dt)
    )
    noise = 1e-3  # of the brightness; where there is nothing to see the flow is 0
    xx, yy = xx + noise**2, yy + noise**2
    determinant = xx * yy - xy**2
    u, v = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    return torch.hypot(u, v).mean().item()


@torch.no_grad()
def motion(checkpoint: Path) -> dict[str, float]:
    network = load_network(checkpoint)
    codes = stack_codes([sample_codes(network, Plan(), i) for i in range(VIDEOS)])
    strongest = int(codes.alpha.flatten(0, 1).std(dim=0).argmax())
    without = codes.alpha.clone()
    without[..., strongest] = 0
    videos = {
        "all": network.render(codes),
        "none": network.render(replace(codes, alpha=0 * codes.alpha)),
        "without_strongest": network.render(replace(codes, alpha=without)),
    }
    result = {f"flow_{name}": round(flow(video), 4) for name, video in videos.items()}
    still = videos["none"]
    result["largest_change_without_magnitudes"] = float((still - still[:, :1]).abs().max())
    result["strongest_direction"] = strongest
    changed = (videos["all"] - videos["without_strongest"]).abs().mean()
    result["picture_change_without_strongest"] = round(changed.item(), 4)
    return result


def main() -> None:
    lightning("fit", "--ckpt_path", "last")
    checkpoint = newest("runs/inmodegan_puppets/version_*/checkpoints/last.ckpt")
    with (checkpoint.parent.parent / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"val/{SCORE}")]
    curve = {int(row["step"]) + 1: round(float(row[f"val/{SCORE}"]), 1) for row in rows}
    untrained, trained = tested(), tested("--ckpt_path", str(checkpoint))
    result = {
        "benchmark": "inmodegan",
        "experiment": EXPERIMENT,
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "gpu": None},
        "versions": {p: version(p) for p in ("lmdvid", "torch", "lightning", "numpy")}
        | {"python": platform.python_version()},
        "steps": torch.load(checkpoint, weights_only=True)["global_step"],
        "validation": curve,
        "untrained": untrained,
        "trained": trained,
        "distance_left": round(trained[SCORE] / untrained[SCORE], 3),
        "motion": motion(checkpoint),
    }
    output = ROOT / "benchmarks" / "results" / "inmodegan.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
