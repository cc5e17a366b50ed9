"""Ten runs killed at random and resumed, against ten that nothing disturbed: equal to the bit?

    python benchmarks/resume.py [lia|inmodegan]

Each repetition trains the system with its discriminators, R1 and augmentation three times by the
command line: undisturbed; until SIGKILL hits all its processes at a moment drawn at random within
an epoch; and from there with `--ckpt_path last`. Equal means that generator, discriminator, moving
average and both optimisers' states agree in every bit at the end. Every second repetition reads
its clips in two worker processes. Writes benchmarks/results/resume_<system>.json; about ten
minutes on two cores for each.
"""

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from demo import processor
from lightning.pytorch import Callback

from data_modules.puppets import Puppets

ROOT = Path(__file__).resolve().parent.parent
REPETITIONS = 10
BATCHES = 40  # in an epoch
STEPS = 100  # two epochs and a half
EVERY = 4  # steps between checkpoints


class Progress(Callback):
    """Tells the benchmark, through a file, how many steps a run has taken."""

    def on_train_batch_end(self, trainer, *_) -> None:
        """Write the number."""
        Path("step").write_text(str(trainer.global_step))


MODELS = {
    "lia": {
        "class_path": "lmdvid.tasks.lia.LIA",
        "init_args": {
            "size": 32,
            "dim": 32,
            "directions": 5,
            "width": 0.0625,
            "perceptual": "efficientnet",
            "perceptual_weight": 0.02,
            "perceptual_layers": 2,
            "perceptual_scales": [1.0],
            "r1": 1.0,
            "discriminator_every": 4,
        },
    },
    "inmodegan": {
        "class_path": "lmdvid.tasks.inmodegan.InMoDeGAN",
        "init_args": {
            "size": 32,
            "frames": 6,
            "dim": 32,
            "directions": 32,
            "width": 0.0625,
            "noise": "shared",
            "video_kind": "2d",
            "speeds": [1, 2],
            "r1": 1.0,
            "discriminator_every": 4,
        },
    },
}
SAMPLING = {
    "lia": {"frames": 2, "sampling": "random", "eval_frames": 4},
    "inmodegan": {"frames": 6, "sampling": "consecutive", "eval_frames": 6},
}


def experiment(system: str, seed: int, workers: int, clips: str) -> dict:
    return {
        "seed_everything": seed,
        "model": MODELS[system],
        "data": {
            "class_path": "data_modules.clips.Clips",
            "init_args": {
                "root": clips,
                "size": 32,
                "batch_size": 4,
                "num_workers": workers,
                "samples_per_clip": 10,
                "crop": 0.875,
                "flip": True,
                "jitter": 0.1,
                "seed": seed,
                "eval_clips": 2,
                **SAMPLING[system],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": STEPS,
            "max_epochs": -1,
            "val_check_interval": 30,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 4,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "run"},
            },
            "callbacks": [
                {"class_path": "resume.Progress"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": EVERY, "save_last": True},
                },
                {"class_path": "lmdvid.callbacks.SampleVideos"},
            ],
        },
    }


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lmdvid", "fit", "--config", "run.yaml", *more]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    return subprocess.Popen(
        command,
        cwd=folder,
        # The order of sums, and so their rounding, follows the number of threads.
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=(folder / "out.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(run: subprocess.Popen, folder: Path) -> str:
    code = run.wait()
    said = (folder / "out.txt").read_text()
    if code != 0:
        raise SystemExit(f"a run in {folder} failed with {code}:\n{said}")
    return said


def steps_taken(folder: Path) -> int:
    text = (folder / "step").read_text() if (folder / "step").exists() else ""
    return int(text or 0)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def final(folder: Path, run: int) -> dict:
    path = folder / f"runs/run/version_{run}/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == STEPS, f"{path} is at step {content['global_step']}"
    return {key: content[key] for key in ("state_dict", "optimizer_states")}


def repetition(system: str, seed: int, clips: str, place: Path) -> dict:
    draw = random.Random(seed)
    workers = 2 * (seed % 2)
    folders = place / f"whole{seed}", place / f"killed{seed}"
    for folder in folders:
        folder.mkdir()
        configuration = experiment(system, seed, workers, clips)
        (folder / "run.yaml").write_text(yaml.safe_dump(configuration))
    whole, killed = folders

    began = time.monotonic()
    finish(start(whole), whole)
    # A time anywhere between the first checkpoint and the end of the second epoch: the number of
    # a step, and a part of the time that a step with its save may take.
    wanted = draw.randrange(EVERY, 2 * BATCHES)
    run = start(killed)
    while steps_taken(killed) < wanted and run.poll() is None:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.4))
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:
        raise SystemExit(f"the run ended before the kill:\n{(killed / 'out.txt').read_text()}")
    killed_at = steps_taken(killed)
    unfinished = len(list(killed.glob("runs/run/version_0/checkpoints/*.part")))

    said = finish(start(killed, "--ckpt_path", "last"), killed)
    line = next(line for line in said.splitlines() if "--ckpt_path last: " in line)
    return {
        "seed": seed,
        "workers": workers,
        "killed_at_step": killed_at,
        "batch_in_epoch": killed_at % BATCHES,
        "killed_during_a_save": unfinished > 0,
        "resumed_from_step": int(line.rpartition("(step ")[2].rstrip(")")),
        "equal": equal(final(whole, 0), final(killed, 1)),
        "seconds": round(time.monotonic() - began, 1),
    }


def measure(system: str) -> None:
    rows = []
    place = Path(tempfile.mkdtemp(prefix="resume-"))
    puppets = Puppets(str(place), size=32, train_identities=16, test_identities=2, clip_frames=12)
    puppets.prepare_data()
    for seed in range(REPETITIONS):
        rows.append(repetition(system, seed, puppets.root, place))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "resume",
        "system": system,
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "gpu": None},
        "versions": {p: version(p) for p in ("lmdvid", "torch", "lightning", "numpy", "kornia")}
        | {"python": platform.python_version()},
        "steps": STEPS,
        "steps_per_epoch": BATCHES,
        "steps_between_checkpoints": EVERY,
        "equal": sum(row["equal"] for row in rows),
        "repetitions": rows,
    }
    if result["equal"] < REPETITIONS:
        raise SystemExit(f"{result['equal']} of {REPETITIONS} are equal; see {place}")
    shutil.rmtree(place)
    output = ROOT / "benchmarks" / "results" / f"resume_{system}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{system}: {result['equal']} of {REPETITIONS} equal")


def main() -> None:
    asked = sys.argv[1:] or list(MODELS)
    if unknown := set(asked) - set(MODELS):
        raise SystemExit(f"{', '.join(unknown)}: choose from {', '.join(MODELS)}")
    for system in asked:
        measure(system)


if __name__ == "__main__":
    main()
