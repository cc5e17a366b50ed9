"""Kernels, training and animation on an NVIDIA GPU: correctness, time, and the floor of each.

    python benchmarks/gpu.py

One command, within ten minutes on an H100; needs torch, triton, einops and numpy, not the rest of
lmdvid's requirements. First every operation and all its gradients are held against the definition
in float64 on the CPU; where one is wrong, nothing is timed. Processes beside each other do that and
compile what is going to be timed. Then contenders of a row run by turns, each after a write that
empties the cache and lets the host run ahead, and the medians of GPU time are compared:

- operations: the chain of PyTorch calls that defines them, and that chain by `torch.compile`;
- training: LIA's step with L1 and adversarial loss (no perceptual network, which both sides would
  run alike), in bfloat16 by kernels, against a plain trainer in float32: grouped convolutions with
  a weight for each sample, low-pass filters on single channels;
- animation: frames a second in batches, source encoded once, against the plain form frame by frame
  in float32.

The floor of an operation is the time to read and write each tensor once at the rate of a large
copy, measured first. Flows are smooth, as those of pictures are, but for one row. `torch.compile`
is timed as long as minutes are left; rows without it say so.
Writes benchmarks/results/gpu.json. `--dry` runs all of it at toy size on a CPU, with interpreted
kernels, to show that it runs through: its times mean nothing, and it writes where `--output` says.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Runs where lmdvid is not installed; and kernels are interpreted from their import on, or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TRITON_INTERPRET"] = "1" if "--dry" in sys.argv else "0"

import torch
import torch.nn.functional as F
from animate import Reference
from demo import processor
from torch import Tensor, nn

from lmdvid import ops
from lmdvid.animate import Animator
from lmdvid.ema import ExponentialMovingAverage
from lmdvid.networks.layers import ImageDiscriminator, channels
from lmdvid.networks.lia import Generator
from lmdvid.ops import dispatch, reference
from lmdvid.ops.modulation import activate
from lmdvid.ops.recording import Recorded, RecordedModule
from lmdvid.ops.resample import resample
from lmdvid.ops.warp import flow_warp, warp
from lmdvid.tasks.finite import Watch, finite_gradient

ROOT = Path(__file__).resolve().parent.parent
DRY = "--dry" in sys.argv
DEVICE = torch.device("cpu" if DRY else "cuda")
START = time.perf_counter()
Row = dict[str, Any]
CLOSE = {torch.float32: 5e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}  # of the largest value
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


# Correctness


def draw(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    x = torch.randn(shape).to(DEVICE, dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    return x.requires_grad_()


def worst_error(operation: Callable[..., Any], tensors: list[Tensor]) -> float:
    """Of values and gradients against float64 on the CPU, as a share of the largest."""
    exact = [t.detach().cpu().double().requires_grad_() for t in tensors]
    results = []
    for impl, given in (("triton", tensors), ("reference", exact)):
        made = operation(*given, impl=impl)
        made = [m for m in (made if isinstance(made, tuple) else (made,)) if m is not None]
        random = torch.Generator().manual_seed(0)
        weights = [torch.randn(m.shape, generator=random).to(m) for m in made]
        results.append([*made, *torch.autograd.grad(made, given, weights)])
    return max(
        ((a.detach().cpu().double() - b).abs().max() / b.abs().max().clamp_min(0.1)).item()
        for a, b in zip(*results, strict=True)
    )


def operations() -> Iterator[tuple[str, Callable[..., Any], Callable[[torch.dtype, bool], list]]]:
    c, side = (3, 5) if DRY else (67, 33)

    def pair(dtype: torch.dtype, last: bool) -> list[Tensor]:
        return [draw(2, c, side, side + 2, dtype=dtype, last=last) for _ in range(2)]

    for corners in (True, False):
        yield (
            f"flow warp, align_corners={corners}",
            lambda o, f, h, impl, corners=corners: flow_warp(
                o, f, h, align_corners=corners, impl=impl
            ),
            lambda dtype, last: [draw(2, 3, side, side + 2), *pair(dtype, last)],
        )
        yield (
            f"warp, align_corners={corners}",
            lambda f, g, impl, corners=corners: warp(f, g, corners, impl),
            lambda dtype, last: [pair(dtype, last)[0], draw(2, 2, side + 4, side)],
        )
    for name, filter_ in (
        ("same", {"padding": 1, "gain": 4.0}),
        ("down", {"down": 2}),
        ("up", {"up": 2, "gain": 4.0}),
    ):
        yield (
            f"filter {name}, scale, bias, activation",
            lambda x, s, b, impl, filter_=filter_: resample(
                x, scale=s, bias=b, slope=0.2, impl=impl, **filter_
            ),
            lambda dtype, last: [pair(dtype, last)[0], draw(2, c), draw(c)],
        )
    yield (
        "scale, bias, activation",
        lambda x, s, b, impl: activate(x, s, b, 0.2, impl),
        lambda dtype, last: [pair(dtype, last)[0], draw(2, c), draw(c)],
    )


def check_one(given: tuple[int, torch.dtype, bool]) -> Row:
    """The error of one combination.

    Positions within rounding of a pixel's centre have another derivative on each side: there the
    seed is tried again, three times at most.
    """
    number, dtype, last = given
    name, operation, inputs = list(operations())[number]
    for seed in range(3):
        torch.manual_seed(seed)
        error = worst_error(operation, inputs(dtype, last))
        if error < CLOSE[dtype]:
            break
    layout = "channels_last" if last else "contiguous"
    row = {"operation": name, "dtype": NAMES[dtype], "layout": layout}
    return row | {"error": float(f"{error:.1e}")}


def checks() -> list[tuple[int, torch.dtype, bool]]:
    """Every operation, dtype and layout."""
    return [
        (number, dtype, last)
        for number in range(len(list(operations())))
        for dtype in CLOSE
        for last in (False, True)
        if not (DRY and (last or dtype == torch.float16))
    ]


def judge(rows: list[Row]) -> None:
    limits = {NAMES[dtype]: limit for dtype, limit in CLOSE.items()}
    wrong = [row for row in rows if not row["error"] < limits[row["dtype"]]]
    if wrong:
        raise SystemExit("wrong:\n" + "\n".join(str(row) for row in wrong))
    print(f"{len(rows)} combinations of operation, dtype and layout are correct", flush=True)


# Time


def empty_cache() -> Tensor:
    """More than any cache holds; writing it takes so long that the host has launched the rest."""
    return torch.empty(1 if DRY else 2**32, dtype=torch.int8, device=DEVICE)


def milliseconds(work: Callable[[], object], cache: Tensor | None) -> float:
    if DRY:
        start = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - start)
    if cache is not None:
        cache.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def medians(
    contenders: dict[str, Callable[[], object]], rounds: int = 15, cached: bool = False
) -> dict[str, float]:
    """Milliseconds of each, by turns; the first rounds warm up and compile."""
    cache = None if cached else empty_cache()
    rounds, warm = (1, 0) if DRY else (rounds, 3)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm + rounds):
        for name, work in contenders.items():
            taken = milliseconds(work, cache)
            if number >= warm:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def copy_rate() -> float:
    """Bytes a millisecond, read and written."""
    source = torch.empty(2**12 if DRY else 2**30, dtype=torch.int8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / medians({"copy": lambda: target.copy_(source)})["copy"]


def compiled(
    function: Callable[..., Any], given: list[Tensor], minutes: float = 9
) -> Callable[..., Any] | None:
    """The peer, or None where no minutes are left or the compiler fails, which it says."""
    if DRY or time.perf_counter() - START > 60 * minutes:
        return None
    torch.compiler.reset()
    peer = torch.compile(function, dynamic=False)
    try:
        peer(*given)
    except Exception as error:  # whatever it is, the peer's failure is not ours
        print(f"torch.compile fails: {(str(error).splitlines() or [repr(error)])[0]}")
        return None
    return peer


@dataclass
class Case:
    """One row: `moved` are the bytes of the forward pass alone and of both."""

    name: str
    moved: tuple[int, int]
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    given: Callable[[], list[Tensor]]

    def forward(self, function: Callable, given: list[Tensor]) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return function(*given)

        return run

    def both(self, function: Callable, given: list[Tensor]) -> Callable[[], object]:
        with torch.no_grad():
            made = function(*given)
        weights = [torch.randn_like(m) for m in (made if isinstance(made, tuple) else (made,))]
        return lambda: torch.autograd.grad(function(*given), given, weights)


def compare(case: Case, rate: float, minutes: float) -> list[Row]:
    """Rows for the forward pass alone and with the backward one; peers up to so many minutes."""
    torch.manual_seed(0)
    given = case.given()
    peers = {"ours": case.ours, "eager": case.plain}
    if (peer := compiled(case.plain, given, minutes)) is not None:
        peers["compiled"] = peer
    rows = []
    for direction, size in zip(("forward", "both"), case.moved, strict=True):
        way = getattr(case, direction)
        times = medians({n: way(function, given) for n, function in peers.items()})
        floor = size / rate
        row: Row = {"what": case.name, "direction": direction}
        row |= {f"{n}_ms": round(t, 4) for n, t in times.items()}
        row["times_eager"] = round(times["eager"] / times["ours"], 2)
        if "compiled" in times:
            row["times_compiled"] = round(times["compiled"] / times["ours"], 2)
        rows.append(row | {"floor_ms": round(floor, 4), "of_copy": round(floor / times["ours"], 3)})
    return rows


def warm_up(number: int) -> str:
    """Compile what a case needs, in another process: its results lie in the compilers' caches."""
    case = cases()[number]
    given = case.given()
    peers = [case.ours, case.plain, compiled(case.plain, given)]
    for function in filter(None, peers):
        case.forward(function, given)()
        case.both(function, given)()
    if not DRY:
        del given
        torch.cuda.empty_cache()
    return case.name


def warm_up_network(what: str) -> str:
    """The same for what the networks need."""
    os.environ["LMDVID_GRAPHS"] = "0"
    generator, discriminator = networks()
    batch = 1 if what == "one frame" else 32 if what.startswith("animate") else 16
    source, target = pictures(batch, generator.size), pictures(batch, generator.size)
    dtype = torch.float32 if what.endswith("fp32") else torch.bfloat16
    with ops.use("triton"), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        if what == "generator":
            made = generator.to(memory_format=torch.channels_last)(source, target)[0]
        elif what == "discriminator":
            made = discriminator.to(memory_format=torch.channels_last)(source.requires_grad_())
        else:
            animator = Animator(generator.eval(), dtype, batch_size=batch)
            return str(len(list(animator.stream(source[0], [*target, *target]))))
    made.float().mean().backward()
    return what


NETWORKS = ("generator", "discriminator", "animate fp32", "animate bf16", "one frame")


def smooth(batch: int, side: int) -> Tensor:
    """Logits of a flow as of a picture that moves: by a twentieth of its side, here and there."""
    coarse = torch.randn(batch, 3, min(side, 8), min(side, 8), device=DEVICE)
    coarse[:, :2] *= 0.1
    return F.interpolate(coarse, (side, side), mode="bicubic").requires_grad_()


def warp_case(side: int, batch: int, dtype: torch.dtype, noise: bool = False) -> Case:
    c = 2 if DRY else channels(side)
    shape = (batch, c, side, side)
    one, planes = math.prod(shape) * dtype.itemsize, batch * 3 * side * side * 4
    return Case(
        f"flow warp {c}x{side}x{side}, B={batch}, {NAMES[dtype]}{', white noise' if noise else ''}",
        # Forward: features, h, two results, logits. Backward: two gradients, features, h, and
        # their two gradients; logits and their gradient.
        (4 * one + planes, 10 * one + 3 * planes),
        lambda o, f, h: flow_warp(o, f, h, align_corners=True, impl="triton"),
        lambda o, f, h: reference.flow_warp(o, f, h, True),
        lambda: [
            draw(batch, 3, side, side) if noise else smooth(batch, side),
            *(draw(*shape, dtype=dtype, last=True) for _ in range(2)),
        ],
    )


def filter_case(side: int, batch: int, dtype: torch.dtype) -> Case:
    c = 2 if DRY else channels(side)
    one = batch * c * (side + 1) ** 2 * dtype.itemsize
    return Case(
        f"filter, scale, bias, activation {c}x{side}x{side}, B={batch}, {NAMES[dtype]}",
        # Forward: x and the result. Backward: its gradient, both again, the gradient of x.
        (2 * one, 6 * one),
        lambda x, s, b: resample(x, gain=4.0, scale=s, bias=b, slope=0.2, impl="triton"),
        lambda x, s, b: reference.resample(x, 1, 1, 1, 4.0, s, b, 0.2),
        # What a doubling of the decoder ends with.
        lambda: [
            draw(batch, c, side + 1, side + 1, dtype=dtype, last=True),
            draw(batch, c),
            draw(c),
        ],
    )


def cases() -> list[Case]:
    dtypes = (torch.bfloat16, torch.float32)
    if DRY:
        return [make(4, 1, d) for make in (filter_case, warp_case) for d in dtypes]
    warps = [
        warp_case(side, batch, d)
        for side in (256, 128, 64, 32, 16, 8)
        for batch in (8, 32)
        for d in dtypes
    ]
    filters = [filter_case(side, b, d) for side in (256, 64) for b in (8, 32) for d in dtypes]
    # The largest first: processes that compile share the GPU's memory.
    return [*warps, warp_case(256, 32, torch.bfloat16, noise=True), *filters]


def side_by_side() -> list[Row]:
    """Check and compile, in as many processes as there are cores for; the rows of the checks."""
    if DRY:
        return [check_one(given) for given in checks()]
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # of each
    count = max(1, min(12, (os.cpu_count() or 1) - 2))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        compiling = [pool.submit(warm_up_network, what) for what in NETWORKS]
        compiling += [pool.submit(warm_up, number) for number in range(len(cases()))]
        rows = list(pool.map(check_one, checks()))
        for done in compiling:
            if (error := done.exception()) is not None:  # it will be compiled when it is timed
                print(f"not compiled ahead: {error!r}", flush=True)
    print(f"compiled, after {(time.perf_counter() - START) / 60:.1f} minutes", flush=True)
    return rows


# Training


class PlainTrainer:
    """LIA's step as it is written at first: float32, grouped convolutions, default layout."""

    def __init__(self, generator: Generator, discriminator: ImageDiscriminator) -> None:
        self.networks = generator, discriminator
        self.plain = Reference(generator)
        self.plain.weights = dict(generator.named_parameters())
        self.judge = copy.copy(self.plain)
        self.judge.weights = dict(discriminator.named_parameters())
        self.optimizers = [torch.optim.Adam(n.parameters(), 1e-4) for n in self.networks]
        self.average = copy.deepcopy(generator).requires_grad_(False)

    def step(self, source: Tensor, target: Tensor) -> Tensor:
        code, features = self.plain.encode(source)
        alpha = self.plain.magnitudes(self.plain.encode(target)[0])
        q, r = torch.linalg.qr(self.plain.weights["navigator.weight"])
        w = code + alpha @ (q * r.diagonal().sign()).T
        fake = self.plain.synthesise(w, features)
        loss = F.l1_loss(fake, target) + F.softplus(-self.logits(fake)).mean()
        self.descend(0, loss)
        for mean, weight in zip(
            self.average.parameters(), self.networks[0].parameters(), strict=True
        ):
            mean.mul_(0.999).add_(weight.detach(), alpha=0.001)
        real, made = self.logits(target), self.logits(fake.detach())
        other = F.softplus(-real).mean() + F.softplus(made).mean()
        self.descend(1, other)
        return torch.stack([loss, other]).detach()

    def logits(self, image: Tensor) -> Tensor:
        judge, network = self.judge, self.networks[1]
        x = judge.convolve(image, "pyramid.stem")
        for i in range(len(network.pyramid.blocks)):
            block = f"pyramid.blocks.{i}."
            y = judge.convolve(judge.convolve(x, f"{block}conv1"), f"{block}conv2", down=True)
            x = (y + judge.convolve(x, f"{block}skip", down=True)) / math.sqrt(2)
        group = math.gcd(4, len(x))
        std = (
            x.view(group, -1, *x.shape[1:]).var(0, unbiased=False).add(1e-8).sqrt().mean((1, 2, 3))
        )
        plane = std.repeat(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        x = judge.convolve(torch.cat([x, plane], 1), "conv").flatten(1)
        return network.logit(math.sqrt(2) * F.leaky_relu(judge.linear(x, "hidden"), 0.2))

    def descend(self, number: int, loss: Tensor) -> None:
        optimizer = self.optimizers[number]
        self.networks[1 - number].requires_grad_(False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.networks[1 - number].requires_grad_(True)


class FastTrainer:
    """The same step as `lmdvid.tasks` takes it on a GPU, without Lightning around it."""

    def __init__(self, generator: Generator, discriminator: ImageDiscriminator) -> None:
        self.networks: tuple[nn.Module, nn.Module] = generator, discriminator
        for network in self.networks:
            network.to(memory_format=torch.channels_last)  # pyright: ignore
        self.optimizers = [
            torch.optim.Adam(n.parameters(), 1e-4, fused=True) for n in self.networks
        ]
        self.average = ExponentialMovingAverage(generator)
        self.watch = Watch(lag=4)
        uses = ("for the generator", "real", "fake")
        self.generator = RecordedModule(generator)
        self.judges = {use: RecordedModule(discriminator) for use in uses}

    def step(self, source: Tensor, target: Tensor) -> Tensor:
        generator, discriminator = self.networks
        discriminator.requires_grad_(False)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            fake, _ = self.generator(source, target)
            logits = self.judges["for the generator"](fake)
            loss = F.l1_loss(fake.float(), target) + F.softplus(-logits.float()).mean()
        self.descend(0, loss)
        self.average.update(generator)
        discriminator.requires_grad_(True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            real, made = self.judges["real"](target), self.judges["fake"](fake.detach())
            other = F.softplus(-real.float()).mean() + F.softplus(made.float()).mean()
        self.descend(1, other)
        return torch.stack([loss, other]).detach()

    def descend(self, number: int, loss: Tensor) -> None:
        self.optimizers[number].zero_grad()
        loss.backward()
        finite = finite_gradient(self.networks[number].parameters())
        self.optimizers[number].found_inf = finite.logical_not().float()  # pyright: ignore
        self.optimizers[number].step()
        self.watch.send(finite[None], self.look)

    def look(self, finite: list[float]) -> None:
        assert finite == [1]


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Every place at which the host waits for the GPU."""
    places: list[str] = []
    if DRY:
        yield places
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    places += [f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in waits]


def networks() -> tuple[Generator, ImageDiscriminator]:
    torch.manual_seed(0)
    size, width, dim = (32, 0.01, 16) if DRY else (256, 1.0, 512)
    generator = Generator(size, dim, 5 if DRY else 20, width)
    return generator.to(DEVICE), ImageDiscriminator(size, width).to(DEVICE)


def pictures(count: int, size: int) -> Tensor:
    coarse = torch.rand(count, 3, size // 16, size // 16, device=DEVICE) * 2 - 1
    return F.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)


def training_row() -> Row:
    batch = 2 if DRY else 16
    peaks, first, work = {}, {}, {}
    for name, kind in {"plain": PlainTrainer, "ours": FastTrainer}.items():
        if not DRY:
            torch.cuda.empty_cache()
            held = torch.cuda.memory_reserved()
        trainer = kind(*networks())
        size = trainer.networks[0].size
        torch.manual_seed(0)
        source, target = pictures(batch, size), pictures(batch, size)
        work[name] = partial(trainer.step, source, target)
        first[name] = work[name]()
        for _ in range(2):  # the second step records
            work[name]()
        if not DRY:
            torch.cuda.synchronize()
            # Weights, moments and what a step needs, graphs' own memory included.
            peaks[name] = round((torch.cuda.memory_reserved() - held) / 2**20)
    # From the same weights and pictures both have the same losses, but for bfloat16.
    torch.testing.assert_close(first["ours"], first["plain"], rtol=0.02, atol=0.02)
    with counted_waits() as places:
        work["ours"]()
    times = medians(work, rounds=9, cached=True)
    return {
        "what": f"LIA training step, {size} px, B={batch}, bf16 against a plain trainer in fp32",
        "plain_images_per_second": round(1000 * batch / times["plain"], 1),
        "images_per_second": round(1000 * batch / times["ours"], 1),
        "ratio": round(times["plain"] / times["ours"], 2),
        "plain_peak_mib": peaks.get("plain"),
        "peak_mib": peaks.get("ours"),
        "host_waits_in_a_step": None if DRY else len(places),
        "host_waits_at": sorted(set(places)),
    }


# Animation


@torch.no_grad()
def animation_rows() -> list[Row]:
    generator = networks()[0].eval()
    plain = Reference(generator)
    size, batch = generator.size, 2 if DRY else 32
    source, driving = pictures(1, size), pictures(batch, size)
    start = generator.encode_motion(driving[:1])
    few = driving[: min(4, batch)]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        animator = Animator(generator, dtype, batch_size=batch)
        encoded = animator.stream(source[0], (f for _ in iter(int, 1) for f in driving))

        def ours(encoded: Iterator[Tensor] = encoded) -> object:
            return [next(encoded) for _ in range(batch)]

        times = medians(
            {"plain": lambda: [plain(source, f[None], start) for f in few], "ours": ours},
            rounds=9,
            cached=True,
        )
        made = torch.stack(list(animator.animate(source[0], few)))
        expected = torch.cat([plain(source, f[None], start) for f in few])
        slow, fast = 1000 * len(few) / times["plain"], 1000 * batch / times["ours"]
        rows.append(
            {
                "what": f"animate, {size} px, {NAMES[dtype]}, batches of {batch}",
                "plain_frames_per_second": round(slow, 1),
                "frames_per_second": round(fast, 1),
                "ratio": round(fast / slow, 2),
                "mean_difference": (made - expected).abs().mean().item(),
            }
        )
    return rows


@torch.no_grad()
def recorded_row() -> Row | None:
    """One frame at a time, as a live source gives them: launched, and replayed as a CUDA graph."""
    if DRY:
        return None
    generator = networks()[0].eval().to(memory_format=torch.channels_last)
    source, frame = pictures(2, generator.size).split(1)

    def launched(given: Tensor) -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            return [generator.render(encoded, generator.encode_motion(given), None, "absolute")]

    with torch.autocast("cuda", torch.bfloat16):
        encoded = generator.encode_source(source)
    replayed = Recorded(launched)
    for _ in range(2):
        replayed(frame)
    difference = (replayed(frame)[0] - launched(frame)[0]).abs().max().item()
    work = {"launched": lambda: launched(frame), "replayed": lambda: replayed(frame)}
    times = medians(work, cached=True)
    return {
        "what": f"animate, {generator.size} px, bf16, one frame at a time",
        "launched_ms": round(times["launched"], 3),
        "replayed_ms": round(times["replayed"], 3),
        "ratio": round(times["launched"] / times["replayed"], 2),
        "largest_difference": difference,
    }


def machine() -> dict[str, Any]:
    facts: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "gpu": None}
    if not DRY:
        gpu = torch.cuda.get_device_properties(0)
        facts |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / 2**30)}
        facts["gpu_processors"] = gpu.multi_processor_count
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="toy size on a CPU; measures nothing")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu.json")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="after which no further peer is compiled (9)"
    )
    options = parser.parse_args()
    output = options.output
    if output is None and not DRY:
        output = ROOT / "benchmarks" / "results" / "gpu.json"
    if not DRY and not torch.cuda.is_available():
        raise SystemExit("no NVIDIA GPU is here; `--dry` shows on a CPU that the script runs")
    if (reason := dispatch.obstacle(DEVICE)) is not None:
        raise SystemExit(f"the kernels cannot run: {reason}")
    with open(ROOT / "pyproject.toml", "rb") as file:
        ours = tomllib.load(file)["project"]["version"]

    checked = side_by_side()
    judge(checked)
    rate = copy_rate()
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {p: version(p) for p in ("torch", "triton", "einops", "numpy")}
        | {"lmdvid": ours, "cuda": torch.version.cuda, "python": sys.version.split()[0]},
        "dry": DRY,
        "copy_gigabytes_per_second": round(rate / 1e6, 1),
        "correct": checked,
        "operations": [],
    }

    def keep(key: str, rows: list[Row]) -> None:
        """Print and write what there is: the machine may be lent for minutes."""
        result[key] = [*result.get(key, []), *rows]
        result["minutes"] = round((time.perf_counter() - START) / 60, 1)
        for row in rows:
            print("  ".join(f"{k} {v}" for k, v in row.items() if v is not None), flush=True)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(result, indent=2) + "\n")

    with ops.use("reference" if DRY else "triton"):
        keep("training", [training_row()])
        keep("animation", animation_rows())
        if (row := recorded_row()) is not None:
            keep("animation", [row])
    # Last, since the peers' compilation may use up the minutes.
    for case in cases():
        keep("operations", compare(case, rate, options.minutes))


if __name__ == "__main__":
    main()
