"""What experiments/inmodegan_puppets.yaml learns: distance from held-out clips, and its motion.

    python benchmarks/inmodegan.py

Trains where that has not been done (under an hour on two cores; killed and started again, it goes
on), then tests the untrained and the trained network against all 256 held-out clips. Motion is
measured as the mean optical flow between neighbouring frames (Lucas & Kanade 1981, windows of 9
pixels): with all magnitudes, without any, and how much the flow changes without those of the
direction that varies most, or least.
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


def flow(video: Tensor) -> Tensor:
    """Optical flow in pixels between the frames of (B, T, 3, H, W): (2, B (T - 1), 1, H, W)."""
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
    return torch.stack([u, v])


def length(field: Tensor) -> float:
    return round(field.norm(dim=0).mean().item(), 4)


@torch.no_grad()
def motion(checkpoint: Path) -> dict[str, float]:
    network = load_network(checkpoint)
    codes = stack_codes([sample_codes(network, Plan(), i) for i in range(VIDEOS)])
    spread = codes.alpha.flatten(0, 1).std(dim=0)
    video = network.render(codes)
    still = network.render(replace(codes, alpha=0 * codes.alpha))
    whole = flow(video)
    result = {
        "flow": length(whole),
        "flow_without_magnitudes": length(flow(still)),
        "largest_change_without_magnitudes": float((still - still[:, :1]).abs().max()),
    }
    for name, direction in (("strongest", spread.argmax()), ("weakest", spread.argmin())):
        alpha = codes.alpha.clone()
        alpha[..., direction] = 0
        changed = flow(network.render(replace(codes, alpha=alpha)))
        result[f"{name}_direction"] = int(direction)
        result[f"flow_change_without_{name}"] = length(changed - whole)
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
