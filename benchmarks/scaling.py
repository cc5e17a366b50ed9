"""What many GPUs are expected to gain: bytes all-reduced in a step, against the step's time.

    python benchmarks/scaling.py [--step SECONDS] [--within GB/S] [--between GB/S] [--per-node N]

Prints for each experiment the expected efficiency from 1 to 64 GPUs, and writes
benchmarks/results/scaling.json. The step's time on one GPU and the network's rates are assumptions,
and the defaults are none of ours: 0.35 s, 200 GB/s within a machine of eight, 25 GB/s between
machines. What is counted, not assumed, are the bytes: `tests/faults/test_ranks.py` holds them
against those that a training with two processes sends. `ranks.py` holds the model against a
machine without GPUs.

The model: every step runs two backward passes, each of which sends the buckets that hold weights
of its network. A ring over n processes moves 2 (n - 1) / n times the bytes; over m machines first
within each, then between them. Half of the step is backward, under which sending hides, but for
the last bucket of each pass.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
import yaml
from lightning.pytorch import LightningModule

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ("lia_voxceleb", "inmodegan_voxceleb_128", "inmodegan_bair")
GPUS = (1, 2, 4, 8, 16, 32, 64)
BUCKETS = (2**20, 25 * 2**20)  # bytes, the first one and the others, DDP's own
PASSES = 2  # backward: generator, discriminator
HIDING = 0.5  # share of a step under which sending hides


def bytes_per_step(task: LightningModule, limits: Sequence[float] = BUCKETS) -> int:
    """Bytes of gradients that each process of a training contributes in a step.

    Each pass sends the buckets that hold weights of its network.

    Args:
        task: with a generator and a discriminator.
        limits: bytes at which DDP closes the first bucket, the second, ..., and all others.
    """
    networks = [{*getattr(task, name).parameters()} for name in ("generator", "discriminator")]
    total, closed, size, owners = 0, 0, 0, set()
    for parameter in filter(lambda p: p.requires_grad, task.parameters()):
        size += parameter.numel() * parameter.element_size()
        owners |= {i for i, network in enumerate(networks) if parameter in network}
        if size >= limits[min(closed, len(limits) - 1)]:
            total, closed, size, owners = total + size * len(owners), closed + 1, 0, set()
    return total + size * len(owners)


def seconds_sending(
    amount: float, gpus: int, per_node: int, within: float, between: float
) -> float:
    """Time of all-reducing so many bytes; rates in bytes a second."""
    inner, machines = min(gpus, per_node), -(-gpus // per_node)
    ring = 2 * (inner - 1) / inner * amount / within
    return ring + 2 * (machines - 1) / machines * amount / between


def efficiency(
    amount: float,
    step: float,
    gpus: int,
    per_node: int,
    within: float,
    between: float,
    hiding: float = HIDING,
) -> float:
    """Share of n times one GPU's clips per second."""
    rates = (gpus, per_node, within, between)
    shown = seconds_sending(PASSES * min(BUCKETS[-1], amount / PASSES), *rates)
    shown = max(shown, seconds_sending(amount, *rates) - hiding * step)
    return step / (step + shown)


def build(name: str) -> LightningModule:
    """The task of an experiment, without memory for its weights."""
    model = yaml.safe_load((ROOT / f"experiments/{name}.yaml").read_text())["model"]
    module, _, kind = model["class_path"].rpartition(".")
    with torch.device("meta"):
        return getattr(__import__(module, fromlist=[kind]), kind)(**model["init_args"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", type=float, default=0.35, help="seconds of a step on one GPU")
    parser.add_argument("--within", type=float, default=200.0, help="GB/s within a machine")
    parser.add_argument("--between", type=float, default=25.0, help="GB/s between machines")
    parser.add_argument("--per-node", type=int, default=8, help="GPUs of a machine")
    options = parser.parse_args()
    rates = (options.per_node, options.within * 1e9, options.between * 1e9)
    rows = {}
    print(f"{'GPUs':38}" + "".join(f"{n:7}" for n in GPUS))
    for name in EXPERIMENTS:
        amount = bytes_per_step(build(name))
        expected = {n: round(efficiency(amount, options.step, n, *rates), 3) for n in GPUS}
        rows[name] = {"bytes_per_step": amount, "expected_efficiency": expected}
        print(
            f"{name:24}{amount / 1e6:8.0f} MB   " + "".join(f"{e:7.2f}" for e in expected.values())
        )
    result = {
        "benchmark": "scaling",
        "date": date.today().isoformat(),
        "assumed": vars(options),
        "measured_on_gpus": False,
        "experiments": rows,
    }
    output = ROOT / "benchmarks" / "results" / "scaling.json"
    output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
