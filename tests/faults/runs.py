"""Tiny trainings as processes of their own, to be killed, starved and resumed."""

import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCHES, EVERY = 28, 12, 4  # of a run, in an epoch, between checkpoints

ALL = "LMDVID_FAULTS" in os.environ
long = pytest.mark.skipif(not ALL, reason="takes long: LMDVID_FAULTS=1 pytest tests/faults runs it")

MODELS = {
    "lia": {
        "class_path": "lmdvid.tasks.lia.LIA",
        "init_args": {
            "size": 32,
            "dim": 16,
            "directions": 3,
            "width": 0.02,
            "perceptual": "none",
            "r1": 1.0,
            "discriminator_every": 3,
            "ema": 0.9,
        },
    },
    "inmodegan": {
        "class_path": "lmdvid.tasks.inmodegan.InMoDeGAN",
        "init_args": {
            "size": 32,
            "frames": 4,
            "dim": 16,
            "directions": 16,
            "width": 0.02,
            "appearance_noise": 8,
            "motion_noise": 8,
            "mapping_layers": 2,
            "motion_layers": 2,
            "noise": "shared",
            "video_kind": "2d",
            "speeds": [1, 2],
            "r1": 1.0,
            "discriminator_every": 3,
        },
    },
}
SAMPLING = {
    "lia": {"frames": 2, "sampling": "random"},
    "inmodegan": {"frames": 4, "sampling": "consecutive"},
}


class Progress(Callback):
    """Tells through files how many steps a run has taken, and with what; never half a file."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rank = trainer.global_rank
        with Path(f"keys{rank}.jsonl").open("a") as file:
            frames = batch["frames"].tolist()
            line = [trainer.current_epoch, trainer.global_step, list(batch["key"]), frames]
            file.write(json.dumps(line) + "\n")
        part = Path(f"step{rank}.part")
        part.write_text(str(trainer.global_step))
        part.replace(f"step{rank}")


def experiment(system: str, clips: str, workers: int = 0, ranks: int = 1, batch: int = 2) -> dict:
    return {
        "seed_everything": 1,
        "model": copy.deepcopy(MODELS[system]),
        "data": {
            "class_path": "data_modules.clips.Clips",
            "init_args": {
                "root": clips,
                "size": 32,
                "batch_size": batch,
                "num_workers": workers,
                "samples_per_clip": BATCHES // 2,
                "crop": 0.875,
                "flip": True,
                "jitter": 0.1,
                "eval_clips": 2,
                "eval_frames": 4,
                **SAMPLING[system],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": ranks,
            "strategy": "auto" if ranks == 1 else "ddp_find_unused_parameters_true",
            "max_steps": STEPS,
            "max_epochs": -1,
            "limit_val_batches": 1 if system == "lia" else 0,
            "val_check_interval": 5,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "run"},
            },
            "callbacks": [
                {"class_path": "runs.Progress"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "every_n_train_steps": EVERY,
                        "monitor": "step",
                        "mode": "max",
                        "save_top_k": 3,
                        "save_last": True,
                    },
                },
            ],
        },
    }


class Zygote:
    """Forks command lines; see `zygote.py`."""

    def __init__(self):
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests/faults")))
        self.environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/faults/zygote.py")],
            env=os.environ | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **order):
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


class Run:
    """One process of a training, in a folder with `run.yaml`."""

    def __init__(self, zygote: Zygote, folder: Path, *more: str, rank: int = 0, **environment: str):
        self.zygote, self.folder, self.rank = zygote, folder, rank
        self.output = folder / f"out{rank}.txt"
        self.begin = self.output.stat().st_size if self.output.exists() else 0
        self.pid = zygote.ask(
            run=["fit", "--config", "run.yaml", *more],
            folder=str(folder),
            output=str(self.output),
            environment=environment,
        )

    @property
    def said(self) -> str:
        return self.output.read_bytes()[self.begin :].decode() if self.output.exists() else ""

    @property
    def steps(self) -> int:
        path = self.folder / f"step{self.rank}"
        return int(path.read_text()) if path.exists() else 0

    def is_alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def until(self, steps: int, seconds: float = 200.0) -> None:
        """Wait until it has taken so many steps."""
        end = time.monotonic() + seconds
        while self.steps < steps:
            assert self.is_alive(), self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.005)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and its workers."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        return self.zygote.ask(wait=self.pid)


def prepare(folder: Path, configuration: Mapping) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(dict(configuration)))
    return folder


def together(zygote: Zygote, folder: Path, ranks: int, *more: str, **environment: str) -> list[Run]:
    """The processes of one training, as a cluster's launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", **environment}
    return [
        Run(zygote, folder, *more, rank=rank, LOCAL_RANK=str(rank), **common)
        for rank in range(ranks)
    ]


def final(folder: Path, steps: int = STEPS) -> dict:
    """What the newest run there ended with."""
    paths = folder.glob("runs/run/version_*/checkpoints/last.ckpt")
    content = torch.load(max(paths, key=lambda path: path.stat().st_mtime_ns))
    assert content["global_step"] == steps
    return {key: content[key] for key in ("state_dict", "optimizer_states")}


def random_moment(seed: int) -> tuple[int, float]:
    """A number of steps, between the first checkpoint and the end, and seconds after it."""
    draw = random.Random(seed)
    return draw.randrange(EVERY, STEPS - 2), draw.uniform(0, 0.05)


class Measured(Callback):
    """Stores the losses and gradients of the first step, and lets processes share out its noise.

    Process r of R takes rows r, r + R, ... of what one process would draw for the whole batch, as
    the sampler does with the clips.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rank, ranks = trainer.global_rank, trainer.world_size

        def shared(draw, size_at):
            def drawn(*args, **more):
                if not self.seeded:  # the task has its own seed for each process
                    torch.manual_seed(7)
                    self.seeded = True
                args = list(args)
                sizes = list(args[size_at]) if size_at else args
                sizes[0] *= ranks
                args = [*args[:size_at], sizes] if size_at else sizes
                return draw(*args, **more)[rank::ranks]

            return drawn

        self.seeded = False
        self.draws = {"rand": torch.rand, "randn": torch.randn, "randint": torch.randint}
        for name, draw in self.draws.items():
            setattr(torch, name, shared(draw, int(name == "randint")))

    def on_train_batch_end(self, trainer, pl_module, *_):
        for name, draw in self.draws.items():
            setattr(torch, name, draw)
        networks = {"generator": pl_module.generator, "discriminator": pl_module.discriminator}
        content = {
            "losses": {k: v.item() for k, v in trainer.callback_metrics.items()},
            "gradients": {
                f"{network}.{name}": parameter.grad
                for network, module in networks.items()
                for name, parameter in module.named_parameters()
            },
        }
        torch.save(content, f"measured{trainer.global_rank}.pt")


class Sent(Callback):
    """Counts the bytes that the first step gives to the other processes.

    Args:
        everything: let DDP send what it would without the task's say, zeros and all.
    """

    def __init__(self, everything: bool = False):
        self.everything = everything

    def on_train_start(self, trainer, pl_module):
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        self.bytes = 0
        average = default_hooks.allreduce_hook

        def counted(group, bucket):
            self.bytes += bucket.buffer().numel() * bucket.buffer().element_size()
            return average(group, bucket)

        if self.everything:
            trainer.strategy.model.register_comm_hook(None, counted)
        else:
            default_hooks.allreduce_hook = counted

    def on_train_batch_end(self, trainer, pl_module, *_):
        Path(f"sent{trainer.global_rank}").write_text(str(self.bytes))


class Validated(Callback):
    """Tells after which steps there was a validation; is killed in that after `step`, once."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_batch_start(self, trainer, *_):
        mark = Path(f"killed{trainer.global_rank}")
        if trainer.global_step == self.step and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_end(self, trainer, *_):
        with Path(f"validated{trainer.global_rank}").open("a") as file:
            print(trainer.global_step, file=file)


class KilledOnce(Callback):
    """The second process is killed as it begins a step, the first time.

    After that the first one is the later of the two, whose address of before must not be taken up.
    """

    def __init__(self):
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1" and os.environ["RANK"] == "0":
            time.sleep(3)

    def on_train_batch_start(self, trainer, *_):
        mark = Path("killed")
        if trainer.global_rank == 1 and trainer.global_step == EVERY + 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
