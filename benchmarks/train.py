"""Time per training step of LIA on a CPU, against a plain eager trainer.

    python benchmarks/train.py [--rounds 9] [--processor-time]

The plain trainer does what the original's training script does, as it does it, in float32: source
and driving picture are encoded one after the other; modulated convolutions are grouped ones with a
weight for each sample, low-pass filters run on feature maps reshaped to single channels; Adam loops
over the parameters. Ours is the task `lmdvid.tasks.lia.LIA` under Lightning's trainer, from the
start of a batch to its end, with the moving average and the check for finite losses that the plain
one lacks. Both take one step by turns in one process, on the same batches from the same weights,
full width, L1 and adversarial loss (the perceptual network would be the same on both sides).

First, losses and gradients of one step are compared, in float64, where rounding cannot hide a
difference, and in float32. The floor is the time that the arithmetic of a step takes at the rate of
this machine's best convolution, measured in the same process.

On a machine that does other work, too, `--processor-time` counts the time that the processor gave
this process, with a single thread. Writes benchmarks/results/train.json.
"""

import argparse
import itertools
import json
import logging
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `lightning` does; for all alike

import lightning as L
import torch
import torch.nn.functional as F
from animate import Reference, rate
from demo import processor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from lmdvid.ops.onednn import obstacle
from lmdvid.tasks.lia import LIA

RESULT = Path(__file__).resolve().parent / "results" / "train.json"
BATCHES = {64: 4, 128: 4}  # clips a step at each size
EXACT = 1e-7  # largest relative difference of losses and gradients in float64
CLOSE = 1e-2  # of gradients in float32, where rounding decides the sign of small ones


class PlainTrainer(Reference):
    """LIA's training step, written the plain way, on the weights of a task."""

    def __init__(self, task: LIA) -> None:
        super().__init__(task.generator)
        self.generator = [v.requires_grad_() for v in self.weights.values()]
        weights = task.discriminator.state_dict()
        judge = {f"discriminator.{k}": v.clone().contiguous() for k, v in weights.items()}
        self.discriminator = [v.requires_grad_() for v in judge.values()]
        self.weights |= judge
        g, d = task.generator_every, task.discriminator_every
        self.adam_g = self.adam(self.generator, task, g / (g + 1))
        self.adam_d = self.adam(self.discriminator, task, d / (d + 1))

    def adam(self, weights: list[Tensor], task: LIA, c: float) -> torch.optim.Optimizer:
        betas = (task.betas[0] ** c, task.betas[1] ** c)
        return torch.optim.Adam(weights, task.lr * c, betas=betas)

    def step(self, video: Tensor) -> dict[str, float]:
        """Train on the first two frames of (B, T, 3, H, W)."""
        source, target = video[:, 0], video[:, 1]
        self.requires_grad(generator=True)
        self.adam_g.zero_grad()
        picture = self.reconstruct(source, target)
        l1 = (picture - target).abs().mean()
        fooled = F.softplus(-self.judge(picture)).mean()
        (l1 + fooled).backward()
        self.adam_g.step()

        self.requires_grad(generator=False)
        self.adam_d.zero_grad()
        real, fake = self.judge(target), self.judge(picture.detach())
        told = F.softplus(-real).mean() + F.softplus(fake).mean()
        told.backward()
        self.adam_d.step()
        names = ("generator/l1", "generator/adversarial", "discriminator/adversarial")
        return {n: v.item() for n, v in zip(names, (l1, fooled, told), strict=True)}

    def requires_grad(self, generator: bool) -> None:
        for weights, wanted in ((self.generator, generator), (self.discriminator, not generator)):
            for weight in weights:
                weight.requires_grad_(wanted)

    def reconstruct(self, source: Tensor, target: Tensor) -> Tensor:
        code, features = self.encode(source)
        alpha = self.magnitudes(self.encode(target)[0])
        q, r = torch.linalg.qr(self.weights["navigator.weight"])
        basis = q * r.diagonal().sign()
        return self.synthesise(code + (torch.diag_embed(alpha) @ basis.T).sum(1), features)

    def judge(self, x: Tensor) -> Tensor:
        x = self.convolve(x, "discriminator.pyramid.stem")
        for i in range(self.scales):
            block = f"discriminator.pyramid.blocks.{i}."
            y = self.convolve(self.convolve(x, f"{block}conv1"), f"{block}conv2", down=True)
            x = (y + self.convolve(x, f"{block}skip", down=True)) / math.sqrt(2)
        batch, channels, height, width = x.shape
        group = min(batch, 4)
        grouped = x.view(group, -1, channels, height, width)
        deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        plane = deviation.view(-1, 1, 1, 1).repeat(group, 1, height, width)
        x = self.convolve(torch.cat([x, plane], 1), "discriminator.conv")
        x = F.linear(x.flatten(1), self.scaled("discriminator.hidden.weight"))
        x = math.sqrt(2) * F.leaky_relu(x + self.weights["discriminator.hidden.bias"], 0.2)
        return self.linear(x, "discriminator.logit")


class Turns(L.Callback):
    """Times the trainer's step and has the plain one take its step after it."""

    def __init__(self, plain: PlainTrainer, clock: Callable[[], float]) -> None:
        self.plain = plain
        self.clock = clock
        self.losses: list[tuple[dict[str, float], dict[str, float]]] = []
        self.seconds: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.start = self.clock()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        middle = self.clock()
        with torch.enable_grad():
            losses = self.plain.step(batch["video"])
        self.seconds.append((middle - self.start, self.clock() - middle))
        ours = {name: trainer.callback_metrics[name].item() for name in losses}
        self.losses.append((ours, losses))


def task_of(size: int, width: float = 1.0) -> LIA:
    torch.manual_seed(0)
    return LIA(size, width=width, align_corners=False, perceptual="none")


def clips(size: int, count: int) -> list[dict[str, object]]:
    """Pairs of smooth random pictures (2, 3, size, size) in [-1, 1]."""
    coarse = torch.rand(2 * count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pairs = F.interpolate(coarse, size, mode="bicubic").clamp(-1, 1).unflatten(0, (count, 2))
    return [{"video": pair, "key": str(i)} for i, pair in enumerate(pairs)]


def train(
    task: LIA,
    plain: PlainTrainer,
    precision: str,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    turns = Turns(plain, clock)
    size = task.generator.size
    batch = BATCHES[size]
    data = clips(size, batch * steps)
    if precision == "64-true":
        data = [{**clip, "video": clip["video"].double()} for clip in data]
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu",
            devices=1,
            precision=precision,
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[turns],
        ).fit(task, DataLoader(data, batch_size=batch))
    return turns


def difference(size: int, precision: str) -> float:
    """Largest relative difference of losses and of gradients, by network, in the first step."""
    if precision == "64-true":
        task = task_of(size, width=0.125).double()  # convolutions in it are many times slower
    else:
        task = task_of(size)
    plain = PlainTrainer(task)
    ((ours, theirs),) = train(task, plain, precision, 1).losses
    apart = [abs(ours[name] - value) / abs(value) for name, value in theirs.items()]
    for network, weights in (
        (task.generator, plain.generator),
        (task.discriminator, plain.discriminator),
    ):
        expected = torch.cat([w.grad.flatten() for w in weights])
        made = torch.cat([p.grad.flatten() for p in network.parameters()])
        apart.append(((made - expected).norm() / expected.norm()).item())
    return max(apart)


def gigaflops(size: int) -> float:
    """Arithmetic of one step."""
    with FakeTensorMode():  # shapes without values
        task = LIA(size, perceptual="none")
        video = torch.zeros(BATCHES[size], 2, 3, size, size)
        with FlopCounterMode(display=False) as counter:
            task.discriminator.requires_grad_(False)
            terms, fake, real = task.generator_step({"video": video})
            (terms["l1"] + task.discriminator(fake).sum()).backward()
            task.discriminator.requires_grad_(True)
            logits = task.discriminator(real), task.discriminator(fake.detach())
            torch.cat(logits).sum().backward()
    return counter.get_total_flops() / 1e9


def figures(
    size: int, precision: str, rounds: int, clock: Callable[[], float]
) -> dict[str, object]:
    task = task_of(size)
    # The first step warms memory and caches.
    seconds = train(task, PlainTrainer(task), precision, 1 + rounds, clock).seconds[1:]
    ratios = [plain / ours for ours, plain in seconds]
    milliseconds, plain = (1000 * statistics.median(side) for side in zip(*seconds, strict=True))
    work = gigaflops(size)
    fastest = rate(torch.bfloat16 if precision == "bf16-mixed" else torch.float32, clock)
    return {
        "size": size,
        "batch_size": BATCHES[size],
        "precision": precision,
        "plain_milliseconds": round(plain, 1),
        "milliseconds": round(milliseconds, 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "gflop": round(work, 1),
        "convolution_gflops_per_second": round(fastest),
        "floor_milliseconds": round(1000 * work / fastest, 1),
        "fraction_of_floor": round(1000 * work / fastest / milliseconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    clock = time.perf_counter
    if options.processor_time:
        torch.set_num_threads(1)
        clock = time.process_time
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*module.* in eval mode.*")
    warnings.filterwarnings("ignore", message=".*but have no .val_dataloader.*")
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")

    differences = {}
    for precision, limit in (("64-true", EXACT), ("32-true", CLOSE)):
        differences[precision] = difference(64, precision)
        print(f"{precision}: relative difference {differences[precision]:.1e}")
        assert differences[precision] < limit, precision
    half = obstacle(torch.bfloat16)
    if half:
        print(f"no bf16-mixed: {half}")
    precisions = ("32-true",) if half else ("32-true", "bf16-mixed")
    result = {
        "benchmark": "train",
        "setting": "LIA, full width, L1 and adversarial loss, CPU",
        "date": date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "gpu": None,
        },
        "versions": {p: version(p) for p in ("lmdvid", "torch", "lightning")}
        | {"python": platform.python_version()},
        "clock": clock.__name__,
        "rounds": options.rounds,
        "relative_difference": differences,
        "rows": [],
    }
    for size, precision in itertools.product(options.sizes, precisions):
        row = figures(size, precision, options.rounds, clock)
        print(json.dumps(row), flush=True)
        result["rows"].append(row)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
