"""Two processes against one on this machine's cores: does the model of `scaling.py` foretell it?

    python benchmarks/ranks.py

Each process has one core and one thread, and trains LIA by Lightning on clips that lie in memory.
In turns: one process alone; two at the same time that know nothing of each other; two that train
together by DDP on gloo. What two cores cost each other in caches and memory is in the second, what
sending costs in the third alone; so efficiency is the second's time of a step over the third's,
the fastest step of each.
The prediction takes that time, the bytes counted as they are sent, and the rate at which the two
processes all-reduce 25 MB without training. Nothing is hidden in it: on a CPU the core that sends
is the one that computes. A second one takes the rate at which they average gradients, which DDP
copies into its buckets and back: beside a GPU's memory that is nothing, here it is not. Writes
benchmarks/results/ranks.json; three minutes.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from demo import processor
from scaling import bytes_per_step, efficiency
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.data import DataLoader, Dataset

from lmdvid.tasks.lia import LIA

RESULTS = Path(__file__).parent / "results" / "ranks.json"
WARMUP, STEPS, TURNS = 3, 16, 2
BUFFER = 25 * 2**20
# There is much and little to compute for each byte that is sent.
SETTINGS = {
    "narrow": {"size": 64, "dim": 128, "directions": 12, "width": 0.125, "batch": 4},
    "wide": {"size": 32, "dim": 256, "directions": 20, "width": 0.5, "batch": 1},
}


class Clips(Dataset):
    """The same clip over and over: reading costs nothing."""

    def __init__(self, size: int):
        self.clip = {"video": torch.rand(2, 3, size, size) * 2 - 1, "key": "clip"}

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> dict:
        return self.clip


class Clock(L.Callback):
    """Times of steps, counted from when the other process is warm, too; and the bytes sent."""

    def __init__(self, folder: Path, name: str, others: int):
        self.folder, self.name, self.others = folder, name, others
        self.times: list[float] = []
        self.bytes = 0
        average = default_hooks.allreduce_hook

        def counted(group, bucket):
            self.bytes += bucket.buffer().numel() * bucket.buffer().element_size()
            return average(group, bucket)

        default_hooks.allreduce_hook = counted

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        """Note the time."""
        if trainer.global_step == WARMUP:
            (self.folder / f"{self.name}.warm").touch()
            while len(list(self.folder.glob("*.warm"))) < self.others + 1:
                time.sleep(0.001)
            self.bytes = 0
        self.times.append(time.perf_counter())


def train(folder: Path, name: str, ranks: int, others: int, setting: dict) -> None:
    """Take steps, and write how long one took and what it sent."""
    model = {key: value for key, value in setting.items() if key != "batch"}
    task = LIA(perceptual="none", r1=0.0, **model)  # r1=0: all steps are alike
    clock = Clock(folder, name, others)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp_find_unused_parameters_true",
        max_steps=WARMUP + STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(task, DataLoader(Clips(setting["size"]), batch_size=setting["batch"]))  # pyright: ignore[reportArgumentType]
    times = clock.times[WARMUP - 1 :]
    step = min(b - a for a, b in pairwise(times))  # whatever else ran has only slowed the others
    result = {"step": step, "sent": clock.bytes // STEPS}
    (folder / f"{name}.json").write_text(json.dumps(result))


def reduce(folder: Path, name: str) -> None:
    """All-reduce 25 MB, and average gradients of that size; write how long it took."""
    distributed.init_process_group("gloo", rank=int(name), world_size=2)
    # Five of each in turn: gradients come from memory, not from a cache.
    gradients = [[torch.ones(BUFFER // 100) for _ in range(25)] for _ in range(5)]
    buckets = [torch.ones(BUFFER // 4) for _ in range(5)]
    times: dict[str, list[float]] = {"all_reduce": [], "averaging": []}
    for turn in range(5 * (WARMUP + STEPS)):
        averaging = turn % 2 == 1
        bucket, parts = buckets[turn % 5], gradients[turn % 5]
        distributed.barrier()
        began = time.perf_counter()
        if averaging:
            torch.cat(parts, out=bucket)
            bucket.div_(2)
        distributed.all_reduce(bucket)
        if averaging:
            for gradient, part in zip(parts, bucket.chunk(len(parts)), strict=True):
                gradient.copy_(part)
        times["averaging" if averaging else "all_reduce"].append(time.perf_counter() - began)
        bucket.fill_(1.0)
    distributed.destroy_process_group()
    result = {how: min(values[WARMUP:]) for how, values in times.items()}
    (folder / f"{name}.json").write_text(json.dumps(result))


def run(order: dict, processes: int, ranks: int) -> list[dict]:
    """What processes write, one on each core."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        common = os.environ | {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
        running = []
        for core in range(processes):
            alone = json.dumps(order | {"ranks": ranks, "others": processes - 1, "core": core})
            rank = {"LOCAL_RANK": str(core)} if ranks > 1 else {}
            command = [sys.executable, __file__, "--process", folder, alone]
            running.append(
                subprocess.Popen(command, env=common | rank, stderr=subprocess.PIPE, text=True)
            )
        for process in running:
            _, complaints = process.communicate()
            if process.returncode:
                raise SystemExit(complaints)
        return [json.loads((Path(folder) / f"{i}.json").read_text()) for i in range(processes)]


def process(folder: str, text: str) -> None:
    """One of them."""
    order = json.loads(text)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[order["core"]]})
    torch.set_num_threads(1)
    if "setting" in order:
        numbers = order["ranks"], order["others"]
        train(Path(folder), str(order["core"]), *numbers, order["setting"])
    else:
        reduce(Path(folder), str(order["core"]))


def main() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two processes with a core each: this machine gives one core")
    rows = {name: {"alone": [], "beside": [], "together": []} for name in SETTINGS}
    rates: dict[str, list[float]] = {"all_reduce": [], "averaging": []}
    sent = dict.fromkeys(SETTINGS, 0)
    for _ in range(TURNS):
        # By n = 2 the share 2 (n - 1) / n of the bytes that a ring moves is 1.
        seconds = run({}, 2, 2)
        for how, values in rates.items():
            values.append(BUFFER / max(each[how] for each in seconds))
        for name, setting in SETTINGS.items():
            order = {"setting": setting}
            for how, processes, ranks in (("alone", 1, 1), ("beside", 2, 1), ("together", 2, 2)):
                found = run(order, processes, ranks)
                rows[name][how].append(statistics.mean(each["step"] for each in found))
            sent[name] = found[0]["sent"]
    rate = {how: max(values) for how, values in rates.items()}
    for how, value in rate.items():
        print(f"{how} over loopback: {value / 1e9:.2f} GB/s")
    result = {}
    for name, times in rows.items():
        step = {how: min(values) for how, values in times.items()}
        model = {key: value for key, value in SETTINGS[name].items() if key != "batch"}
        amount = bytes_per_step(LIA(perceptual="none", r1=0.0, **model))
        predicted = {
            how: round(efficiency(amount, step["beside"], 2, 2, value, value, hiding=0.0), 3)
            for how, value in rate.items()
        }
        by_turns = [b / t for b, t in zip(times["beside"], times["together"], strict=True)]
        measured = step["beside"] / step["together"]
        result[name] = SETTINGS[name] | {
            "seconds_of_a_step": step,
            "all_seconds": times,
            "bytes_sent": sent[name],
            "bytes_of_the_model": amount,
            "predicted": predicted,
            "measured": round(measured, 3),
            "measured_by_turns": [round(value, 3) for value in by_turns],
            "difference": {how: round(measured - value, 3) for how, value in predicted.items()},
        }
        print(
            f"{name:16} {amount / 1e6:6.1f} MB a step ({sent[name] / 1e6:.1f} sent); alone "
            f"{step['alone']:.3f} s, beside another {step['beside']:.3f}, together "
            f"{step['together']:.3f}: predicted {predicted['all_reduce']:.2f}, with copying "
            f"{predicted['averaging']:.2f}, measured {measured:.2f}"
        )
    content = {
        "benchmark": "ranks",
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0))},
        "versions": {name: version(name) for name in ("torch", "lightning")}
        | {"python": platform.python_version()},
        "bytes_per_second": rates,
        "settings": result,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    if (options := parser.parse_args()).process:
        process(*options.process)
    else:
        main()
