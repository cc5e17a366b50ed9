"""What the small generators of videos learn: distance from held-out clips, other scores, motion.

    python benchmarks/generators.py [--so-far] [inmodegan] [g3an] [imaginator]

For each, all where none is named: trains experiments/<name>_puppets.yaml where that has not been
done (under an hour on two cores; killed and started again, it goes on), and tests, once, the
untrained network against the 256 held-out clips that validation scores the trained one on. With
--so-far it takes what there is of both, however far the newest training has come. Where a network
has directions of motion, its motion is measured as the mean optical flow between neighbouring
frames (Lucas & Kanade 1981, windows of 9 pixels): with all magnitudes, without any, and how much
the flow changes without those of the direction that varies most, or least.
Writes benchmarks/results/<name>.json.
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
from demo import newest, processor
from torch import Tensor

from lmdvid.generate import Plan, sample_codes, stack_codes
from lmdvid.pretrained import load_network

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("inmodegan", "g3an", "imaginator")
SCORE = "fd_effnetlite0_16f"
CURVES = (SCORE, "psnr", "copy_psnr", "ssim", "l1", "motion")
VIDEOS = 32  # whose motion is measured


def lightning(name: str, command: str, *arguments: str) -> None:
    experiment = f"experiments/{name}_puppets.yaml"
    line = [sys.executable, "-m", "lmdvid", command, "--config", experiment, *arguments]
    subprocess.run(line, cwd=ROOT, check=True)


def untrained(name: str, test: bool) -> dict[str, float] | None:
    """Scores of `lightning test` without a checkpoint, of an earlier test where there was one."""

    def stored() -> list[dict]:
        paths = ROOT.glob(f"runs/{name}_puppets/version_*/scores.json")
        tests = [json.loads(path.read_text()) for path in paths]
        return [test["scores"] for test in tests if test["checkpoint"] is None]

    if test and not stored():
        lightning(name, "test")
    found = stored()
    return {score: round(value, 4) for score, value in found[-1].items()} if found else None


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
def motion(network: torch.nn.Module) -> dict[str, float]:
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


def curve(table: Path) -> dict[int, dict[str, float]]:
    """Validation scores by the number of steps."""
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"val/{SCORE}")]
    return {
        int(row["step"]) + 1: {
            name: round(float(row[f"val/{name}"]), 4) for name in CURVES if row.get(f"val/{name}")
        }
        for row in rows
    }


def main(name: str, so_far: bool) -> None:
    if not so_far:
        lightning(name, "fit", "--ckpt_path", "last")
    before = untrained(name, test=not so_far)
    checkpoint = newest(f"runs/{name}_puppets/version_*/checkpoints/*.ckpt")
    validation = curve(checkpoint.parent.parent / "metrics.csv")
    after = validation[max(validation)]
    result = {
        "benchmark": name,
        "experiment": f"experiments/{name}_puppets.yaml",
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "gpu": None},
        "versions": {p: version(p) for p in ("lmdvid", "torch", "lightning", "numpy")}
        | {"python": platform.python_version()},
        "steps": torch.load(checkpoint, weights_only=True)["global_step"],
        "untrained": before,
        "validation": validation,
        "distance_left": round(after[SCORE] / before[SCORE], 3) if before else None,
    }
    network = load_network(checkpoint)
    if hasattr(network, "navigator"):
        result["motion"] = motion(network)
    output = ROOT / "benchmarks" / "results" / f"{name}.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--so-far"]
    for name in names or SYSTEMS:
        if name not in SYSTEMS:
            sys.exit(f"no benchmark {name!r}: choose from {', '.join(SYSTEMS)}")
        main(name, "--so-far" in sys.argv)
