"""Killed runs: what resuming restores, bit for bit, and what a kill leaves on the disk."""

import copy
import csv
import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import regression
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from data_modules.clips import Clips
from data_modules.puppets import Puppets
from lmdvid import checkpoints, cli
from lmdvid.callbacks import ContinuedLog, earlier_rows
from lmdvid.checkpoints import AtomicCheckpointIO, CheckpointError
from lmdvid.tasks.lia import LIA

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"size": 32, "dim": 16, "directions": 3, "width": 0.02, "perceptual": "none"}
ADVERSARIAL = {"adversarial": 1.0, "r1": 1.0, "discriminator_every": 3, "ema": 0.9}
BATCHES = 4  # in an epoch

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> str:
    """A folder with four clips for training and two held out."""
    puppets = Puppets(
        str(tmp_path_factory.mktemp("puppets")),
        size=32,
        train_identities=4,
        test_identities=2,
        clip_frames=6,
    )
    puppets.prepare_data()
    return puppets.root


class Noisy(LIA):
    """LIA with random numbers in its training step."""

    def generator_step(self, batch):
        video = batch["video"]
        return super().generator_step(batch | {"video": video + 0.1 * torch.randn_like(video)})


class KilledError(Exception):
    pass


class KillBefore(L.Callback):
    """Ends the run abruptly before a batch."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.batch:
            raise KilledError


def fit(folder, clips, workers=0, resume=None, callbacks=(), seed=1, **options):
    """One training; every step is kept as folder/kept/step=N.ckpt."""
    L.seed_everything(seed, verbose=False)
    data = Clips(
        clips,
        size=32,
        batch_size=2,
        num_workers=workers,
        samples_per_clip=2,
        crop=0.875,
        flip=True,
        jitter=0.1,
        eval_clips=2,
        eval_frames=3,
    )
    task = Noisy(**SMALL, **ADVERSARIAL)
    kept = ModelCheckpoint(folder / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(folder, name="", version="log"),
        callbacks=[*callbacks, kept],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    return {
        "weights": task.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
    }


def differences(a, b, place="") -> list[str]:
    """Where two nested states are not the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [d for key in a for d in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{place}.{i}")]
    return [] if a == b else [place]


@pytest.mark.parametrize("counted_by", ["epochs", "steps"])
def test_resuming_after_any_step_equals_an_undisturbed_run(clips, tmp_path, counted_by):
    """Generator, discriminator, average and both Adams; before, at and after an epoch's end."""
    end = {"epochs": {"max_epochs": 2}, "steps": {"max_steps": 2 * BATCHES}}[counted_by]
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None} | end
    whole = fit(tmp_path / "whole", clips, **options)
    assert whole["step"] == 2 * BATCHES
    first = torch.load(tmp_path / "whole/kept/step=1.ckpt")
    changed = differences(first["state_dict"], whole["weights"])
    for network in ("generator.", "discriminator.", "generator_ema."):
        assert any(name.startswith(f".{network}") for name in changed)
    for step in range(1, 2 * BATCHES):
        # another seed: what counts is the checkpoint's
        kept = tmp_path / f"whole/kept/step={step}.ckpt"
        resumed = fit(tmp_path / f"rest{step}", clips, resume=kept, seed=step + 5, **options)
        assert differences(whole, resumed) == [], f"after step {step}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_ends_in_mid_epoch_goes_on_with_any_workers(clips, tmp_path, workers):
    whole = fit(tmp_path / "whole", clips, workers=workers, max_steps=7, limit_val_batches=0)
    with pytest.raises(KilledError):
        fit(
            tmp_path / "killed",
            clips,
            workers=workers,
            callbacks=[KillBefore(6)],
            max_steps=7,
            limit_val_batches=0,
        )
    resumed = fit(
        tmp_path / "rest",
        clips,
        workers=workers,
        resume=tmp_path / "killed/kept/step=5.ckpt",
        max_steps=7,
        limit_val_batches=0,
    )
    assert differences(whole, resumed) == []


@pytest.mark.parametrize("steps", [BATCHES, BATCHES + 2])
def test_a_run_whose_steps_were_up_goes_on_with_more(clips, tmp_path, steps):
    """From what is saved when an epoch has ended, or the run in its middle; twice."""
    options = {"limit_val_batches": 0}
    end = 3 * BATCHES + 1
    whole = fit(tmp_path / "whole", clips, max_steps=end, **options)
    last = None
    for i, limit in enumerate((steps, steps + BATCHES, end)):
        folder = tmp_path / f"last{i}"
        saved = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
        part = fit(
            tmp_path / f"part{i}", clips, resume=last, callbacks=[saved], max_steps=limit, **options
        )
        last = folder / "last.ckpt"
    assert differences(whole, part) == []


def test_averages_are_laid_out_as_their_weights():
    """A checkpoint of a GPU has channels last; fused Adam reads both in one order."""
    torch.manual_seed(0)
    made = []
    for here in (torch.contiguous_format, torch.channels_last):
        task = LIA(**SMALL)
        adam = task._adam(task.generator, 0)
        for parameter in task.generator.parameters():
            parameter.grad = torch.arange(parameter.numel()).view_as(parameter).float()
        adam.step()
        state = adam.state_dict()
        for averages in state["state"].values():
            for name, value in averages.items():
                if value.ndim == 4:
                    averages[name] = value.contiguous(memory_format=here)
        adam.load_state_dict(state)
        for parameter in task.generator.parameters():
            parameter.data.zero_()
            parameter.grad = torch.ones_like(parameter)
        adam.step()
        made.append([p.detach().clone() for p in task.generator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_what_a_step_draws_depends_on_seed_and_step_alone(clips, tmp_path):
    options = {"max_steps": 2, "limit_val_batches": 0}
    one = fit(tmp_path / "one", clips, **options)
    other = fit(tmp_path / "other", clips, seed=2, **options)
    assert differences(one, other) != []
    states = [torch.load(tmp_path / f"{run}/kept/step=2.ckpt") for run in ("one", "other")]
    assert [state["lmdvid_seed"] for state in states] == [1, 2]


# The log


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_the_log_of_a_resumed_run_is_that_of_an_undisturbed_one(clips, tmp_path):
    options = {"max_steps": 7, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(tmp_path / "whole", clips, callbacks=[ContinuedLog()], **options)
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", clips, callbacks=[ContinuedLog(), KillBefore(6)], **options)
    before = (tmp_path / "killed/log/metrics.csv").read_bytes()
    kept = tmp_path / "killed/kept/step=3.ckpt"
    # Where the command line's runs have their metrics: beside the folder of the checkpoints.
    (tmp_path / "killed/metrics.csv").write_bytes(before)
    fit(tmp_path / "rest", clips, callbacks=[ContinuedLog()], resume=kept, **options)
    assert (tmp_path / "killed/log/metrics.csv").read_bytes() == before
    whole, rest = rows(tmp_path / "whole/log/metrics.csv"), rows(tmp_path / "rest/log/metrics.csv")
    assert [row["step"] for row in whole if "val/psnr" in row] == ["1", "3", "5"]
    assert sum("generator/l1" in row for row in whole) == 7
    assert rest == whole


class KillInValidation(L.Callback):
    """Ends the run abruptly when it begins or has ended the validation after a step."""

    def __init__(self, step: int, hook: str):
        setattr(self, hook, self.end)
        self.step = step

    def end(self, trainer, pl_module):
        if trainer.global_step == self.step:
            raise KilledError


STEPS = {"max_steps": 8, "val_check_interval": 2, "check_val_every_n_epoch": None}
EPOCHS = {"max_epochs": 3, "check_val_every_n_epoch": 2}


@pytest.mark.parametrize(
    ("step", "hook", "options"),
    [
        (6, "on_validation_start", STEPS),
        (6, "on_validation_end", STEPS),
        (4, "on_validation_end", STEPS),
        (8, "on_validation_start", EPOCHS),
    ],
)
def test_a_validation_at_the_checkpoints_step_is_made_once(clips, tmp_path, step, hook, options):
    """In mid-epoch and at an epoch's end; also seen by what remembers the best score."""

    def run(name, *more, resume=None):
        best = ModelCheckpoint(tmp_path / f"{name}/best", "{step}", "val/l1", save_top_k=-1)
        callbacks = [ContinuedLog(), best, *more]
        return fit(tmp_path / name, clips, callbacks=callbacks, resume=resume, **options), best

    def log(name):
        return rows(tmp_path / f"{name}/log/metrics.csv")

    whole, best = run("whole")
    with pytest.raises(KilledError):
        run("killed", KillInValidation(step, hook))
    shutil.copy(tmp_path / "killed/log/metrics.csv", tmp_path / "killed")
    resumed, again = run("rest", resume=tmp_path / f"killed/kept/step={step}.ckpt")
    assert differences(whole, resumed) == []
    assert log("rest") == log("whole")
    made = [{Path(k).name: v for k, v in x.best_k_models.items()} for x in (again, best)]
    assert made[0] == made[1]
    assert f"step={step}.ckpt" in made[0]
    assert again.best_model_score == best.best_model_score

    # What was written in the validation that was made up has it behind itself.
    shutil.copy(tmp_path / "rest/log/metrics.csv", tmp_path / "rest")
    third, _ = run("third", resume=tmp_path / f"rest/best/step={step}.ckpt")
    assert differences(whole, third) == []
    assert log("third") == log("whole")


def test_rows_are_on_the_disk_as_soon_as_they_are_logged(clips, tmp_path):
    class Reader(L.Callback):
        seen = ()

        def on_train_batch_start(self, trainer, *_):
            path = Path(trainer.logger.log_dir, "metrics.csv")
            self.seen = (*self.seen, len(rows(path)) if path.exists() else 0)

    reader = Reader()
    callbacks = [ContinuedLog(), reader]
    fit(tmp_path, clips, callbacks=callbacks, max_steps=4, limit_val_batches=0)
    assert reader.seen == (0, 1, 2, 3)


def test_torn_rows_are_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,step,z\n1,0,2\n3,1,\n4,2,5\n7\n")
    assert earlier_rows(tmp_path / "metrics.csv", 2) == [
        {"a": "1", "step": "0", "z": "2"},
        {"a": "3", "step": "1"},
    ]
    assert earlier_rows(tmp_path / "nosuch.csv", 2) == []


# Files


def checkpoint(step: int, size: int = 1000) -> dict:
    tensor = torch.full((size,), float(step))
    return {
        "state_dict": {"w": tensor},
        "loops": {},
        "optimizer_states": [],
        "global_step": step,
    }


KILL_DURING_SAVE = """
import os, signal, sys, torch
from lmdvid.checkpoints import AtomicCheckpointIO

class Deadly:
    def __init__(self, file): self.file, self.written = file, 0
    def write(self, data):
        self.written += len(data)
        if self.written > 2_000_000:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)
    def flush(self): self.file.flush()

save = torch.save
torch.save = lambda content, file: save(content, Deadly(file))
content = {"state_dict": {str(i): torch.ones(250_000) for i in range(4)}}
AtomicCheckpointIO().save_checkpoint(content, sys.argv[1])
"""


def test_a_kill_during_the_save_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint(checkpoint(4), path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILL_DURING_SAVE, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    left = tmp_path / "last.ckpt.part"
    assert left.stat().st_size > 1_000_000  # it had come far
    assert path.read_bytes() == before
    assert checkpoints.newest([tmp_path]) == (path, 4)
    writer.save_checkpoint(checkpoint(5), path)
    assert sorted(tmp_path.iterdir()) == [path]
    assert checkpoints.check(path) == 5


def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(tmp_path):
    """Stood in for by the largest size of a file that the process may write."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(4), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            AtomicCheckpointIO().save_checkpoint(checkpoint(5, 1_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoints.check(path) == 4


def test_the_file_is_whole_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, events = tmp_path / "runs" / "last.ckpt", []
    fsync, replace = os.fsync, Path.replace

    def synced(number):
        events.append(("sync", os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def renamed(source, target):
        events.append(("rename", checkpoints.check(source)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), path)
    assert events == [("sync", f"{path}.part"), ("rename", 3), ("sync", str(path.parent))]


def test_damage_is_found(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint(2), path)
    assert checkpoints.check(path) == 2
    content = path.read_bytes()
    one_bit = bytearray(content)
    place = content.index(torch.full((50,), 2.0).numpy().tobytes()) + 40
    one_bit[place] ^= 1
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    torch.save({"state_dict": {}}, tmp_path / "weights.pt")
    spoilt = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "text": b"not a checkpoint\n" * 100,
        "bit": bytes(one_bit),
        "head": b"\0" * 64 + content[64:],
        "plain": (tmp_path / "plain.pt").read_bytes(),
        "weights": (tmp_path / "weights.pt").read_bytes(),
    }
    for name, data in spoilt.items():
        (tmp_path / f"{name}.ckpt").write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            checkpoints.check(tmp_path / f"{name}.ckpt")
    assert checkpoints.check(tmp_path / "weights.ckpt", training=False) == 0
    with pytest.raises(FileNotFoundError):
        checkpoints.check(tmp_path / "nosuch.ckpt")


def test_the_newest_usable_checkpoint_is_found_past_damaged_ones(tmp_path, caplog):
    for age, name in enumerate(["a/step=9.ckpt", "b/step=4.ckpt", "b/step=6.ckpt", "b/last.ckpt"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        torch.save(checkpoint(age), path)
        os.utime(path, (1000 + age, 1000 + age))
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "nosuch"]
    assert checkpoints.newest(places) == (tmp_path / "b/last.ckpt", 3)
    (tmp_path / "b/last.ckpt").write_bytes(b"PK\3\4")
    with caplog.at_level("WARNING"):
        assert checkpoints.newest(places) == (tmp_path / "b/step=6.ckpt", 2)
    assert "last.ckpt" in caplog.text
    # a link, as save_last: link makes it, to a file that was removed, and to one that is there
    (tmp_path / "b/last.ckpt").unlink()
    (tmp_path / "b/last.ckpt").symlink_to("gone.ckpt")
    assert checkpoints.newest(places) == (tmp_path / "b/step=6.ckpt", 2)
    (tmp_path / "b/last.ckpt").unlink()
    (tmp_path / "b/last.ckpt").symlink_to("step=6.ckpt")
    assert checkpoints.newest(places) == (tmp_path / "b/last.ckpt", 2)
    assert checkpoints.newest([tmp_path / "nosuch"]) is None


def test_last_may_be_a_link(clips, tmp_path):
    options = {"max_steps": 5, "limit_val_batches": 0}
    folder = tmp_path / "linked"
    linked = ModelCheckpoint(folder, every_n_train_steps=2, save_last="link")
    whole = fit(tmp_path / "whole", clips, callbacks=[linked], **options)
    assert (folder / "last.ckpt").readlink() == Path("epoch=0-step=4.ckpt")
    assert checkpoints.newest([folder]) == (folder / "last.ckpt", 4)
    resumed = fit(tmp_path / "rest", clips, resume=folder / "last.ckpt", **options)
    assert differences(whole, resumed) == []


# The command line

EXPERIMENT = {
    "seed_everything": 1,
    "model": {"class_path": "lmdvid.tasks.lia.LIA", "init_args": SMALL | ADVERSARIAL},
    "data": {
        "class_path": "data_modules.puppets.Puppets",
        "init_args": {
            "size": 32,
            "train_identities": 4,
            "test_identities": 2,
            "clip_frames": 6,
            "batch_size": 2,
            "samples_per_clip": 15,  # an epoch is 30 steps
            "eval_clips": 2,
            "eval_frames": 3,
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 35,
        "max_epochs": -1,
        "log_every_n_steps": 5,
        "num_sanity_val_steps": 0,
        "val_check_interval": 10,
        "check_val_every_n_epoch": None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "runs", "name": "tiny"},
        },
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"every_n_train_steps": 5, "save_last": True},
            }
        ],
    },
}


@pytest.fixture
def folder(tmp_path, monkeypatch, clips) -> Path:
    """The current directory, with an experiment on the clips that are drawn already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("LMDVID_DEBUG", raising=False)
    experiment = copy.deepcopy(EXPERIMENT)
    experiment["data"]["init_args"]["root"] = str(Path(clips).parent)
    Path("tiny.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def start(folder: Path, *more: str) -> subprocess.Popen:
    """`lightning fit` in a process group of its own, in which `folder` is the current one."""
    command = [sys.executable, "-m", "lmdvid", "fit", "--config", "tiny.yaml", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_run_resumed_by_the_command_line_equals_an_undisturbed_one(folder):
    undisturbed = start(folder, "--trainer.logger.init_args.name", "undisturbed")
    killed = start(folder)
    first = folder / "runs/tiny/version_0/checkpoints/last.ckpt"
    while not first.exists() and killed.poll() is None:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    said = killed.communicate()[0]
    assert killed.returncode == -signal.SIGKILL, said
    taken_up = checkpoints.check(first)
    assert 0 < taken_up < 30  # in the first epoch
    resumed = start(folder, "--ckpt_path", "last")
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    assert f"--ckpt_path last: runs/tiny/version_0/checkpoints/last.ckpt (step {taken_up})" in said
    said = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, said
    ends = [
        torch.load(folder / f"runs/{run}/checkpoints/last.ckpt")
        for run in ("undisturbed/version_0", "tiny/version_1")
    ]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 35
    for part in ("state_dict", "optimizer_states"):
        assert differences(ends[0][part], ends[1][part]) == []
    whole, continued = (
        rows(folder / f"runs/{run}/metrics.csv")
        for run in ("undisturbed/version_0", "tiny/version_1")
    )
    # The row of the checkpoint's own step is logged after it: here the kill may come between them.
    lost = [row for row in whole if row not in continued]
    assert all(int(row["step"]) == taken_up - 1 for row in lost)
    assert continued == [row for row in whole if row not in lost]


@pytest.fixture
def outcome(capsys, caplog):
    """Runs a command line; gives its exit code, and what it said."""

    def run(line: str) -> tuple[int | None, str]:
        capsys.readouterr()
        caplog.clear()
        with caplog.at_level("INFO"):
            try:
                code = cli.main(line.split())
            except SystemExit as stop:
                code = stop.code
        return code, capsys.readouterr().err if code else caplog.text

    return run


def test_last_is_the_newest_usable_checkpoint_of_the_experiment(folder, outcome):
    assert outcome("test --config tiny.yaml --ckpt_path last") == (
        2,
        "lightning: error: ckpt_path: last, but this experiment has no checkpoint yet; run `fit` "
        "first, or give the path of a .ckpt file\n",
    )
    # The command line of every start of a job that may be killed.
    line = "fit --config tiny.yaml --ckpt_path last --trainer.max_steps"
    code, said = outcome(f"{line} 5")
    assert code == 0
    assert "no checkpoint of this experiment yet, so it begins at step 0" in said
    code, said = outcome(f"{line} 10")
    assert code == 0
    assert "last: runs/tiny/version_0/checkpoints/last.ckpt (step 5)" in said
    kept = Path("runs/tiny/version_1/checkpoints")
    assert sorted(p.name for p in kept.iterdir()) == ["epoch=0-step=10.ckpt", "last.ckpt"]

    damaged = kept / "last.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-3000])
    code, said = outcome(f"{line} 12")
    assert code == 0
    assert f"passed over: {damaged} is no checkpoint, or was cut off" in said
    assert f"last: {kept}/epoch=0-step=10.ckpt (step 10)" in said
    code, said = outcome("test --config tiny.yaml --ckpt_path last")
    assert code == 0
    assert "last: runs/tiny/version_2/checkpoints/last.ckpt (step 12)" in said


def test_a_run_whose_time_is_up_says_how_to_go_on(folder, outcome):
    line = "fit --config tiny.yaml --ckpt_path last --trainer.max_steps"
    assert outcome(f"{line} 5 --trainer.max_time 00:01:00:00")[0] == 0
    # less than it took: as if the first run had ended with its time
    code, said = outcome(f"{line} 10 --trainer.max_time 00:00:00:00")
    assert code == 0
    assert "Time limit reached. Elapsed time is" in said
    assert "to go on, give more, such as --trainer.max_time 00:01:00:00" in said
    assert not list(Path("runs/tiny/version_1/checkpoints").glob("*.ckpt"))  # it made no step
    code, said = outcome(f"{line} 10 --trainer.max_time 00:01:00:00")
    assert (code, "Time limit" in said) == (0, False)
    assert checkpoints.check(Path("runs/tiny/version_2/checkpoints/last.ckpt")) == 10


def test_a_damaged_checkpoint_is_named_and_the_usable_one_beside_it(folder, outcome):
    for run, name, step in ((0, "last", 10), (1, "step=15", 15), (1, "last", 20)):
        place = Path(f"runs/tiny/version_{run}/checkpoints")
        place.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint(step), place / f"{name}.ckpt")
    damaged = place / "last.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    code, said = outcome(f"fit --config tiny.yaml --ckpt_path {damaged}")
    assert code == 2
    (line,) = said.splitlines()
    assert line.startswith(f"lightning: error: ckpt_path: {damaged} is no checkpoint, or was cut")
    assert line.endswith(f"usable one is --ckpt_path {place}/step=15.ckpt (step 15)")
    (place / "step=15.ckpt").unlink()
    said = outcome(f"fit --config tiny.yaml --ckpt_path {damaged}")[1]
    assert said.endswith("--ckpt_path runs/tiny/version_0/checkpoints/last.ckpt (step 10)\n")
    Path("runs/tiny/version_0/checkpoints/last.ckpt").unlink()
    said = outcome(f"fit --config tiny.yaml --ckpt_path {damaged}")[1]
    assert said.endswith("give a .ckpt file that `fit` wrote\n")


ON_TWO_MACHINES = """
import logging, os, shutil, sys

sys.argv[0] = "lightning"
from lmdvid import cli

words = (
    "fit --trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 2 --trainer.strategy ddp"
    " --trainer.max_steps 8 --trainer.max_epochs -1 --trainer.enable_progress_bar false"
    " --trainer.enable_model_summary false --model regression.Regression --data regression.Rows"
    " --trainer.logger lightning.pytorch.loggers.CSVLogger --trainer.logger.save_dir runs"
    " --trainer.logger.name line --ckpt_path last"
).split()
rank = int(os.environ["NODE_RANK"])


def run(case):
    print(f"<{case}>", flush=True)
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    weights = open(f"rank{rank}.txt").read() if os.path.exists(f"rank{rank}.txt") else None
    print(f"code {code} weights {weights}", flush=True)


run("another file on each disk")
if rank == 0:
    shutil.rmtree("runs")
run("nothing on the disk of process 0")
if rank == 1:
    shutil.rmtree("runs")
run("nothing on the disk of process 1")
os._exit(0)  # at an orderly end gloo's threads may abort, where the other process has left first
"""


@pytest.mark.slow
def test_process_0_chooses_the_last_checkpoint_for_all(tmp_path):
    """Two gloo processes in folders of their own, as on two machines without a common disk."""
    script = tmp_path / "machine.py"
    script.write_text(ON_TWO_MACHINES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [tmp_path / "machine0", tmp_path / "machine1"]
    for rank, steps in ((0, (4,)), (1, (4, 6))):  # the second disk holds a newer one
        for version, step in enumerate(steps):
            folder = places[rank] / f"runs/line/version_{version}/checkpoints"
            folder.mkdir(parents=True)
            shutil.copy(_regression_after(step, tmp_path), folder / "last.ckpt")
    processes = []
    for rank, place in enumerate(places):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NODE_RANK": str(rank),
            "LOCAL_RANK": "0",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script)],
                cwd=place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "".join(said)
    # `code N weights [...]` of the three cases, for each process
    first, second = (
        [line for line in text.splitlines() if line.startswith("code ")] for text in said
    )
    assert len(first) == 3
    assert first[:2] == second[:2]  # the same weights in both
    assert all(line.startswith("code 0 weights [") for line in first[:2])
    assert first[0] != first[1]  # taken up at step 4, and begun at step 0
    assert "last: runs/line/version_0/checkpoints/last.ckpt (step 4)" in said[0]
    assert "so it begins at step 0" in said[0]
    for rank, text in enumerate(said):
        assert (first, second)[rank][2].startswith("code 1 ")
        assert "process 0 goes on from runs/line/version_" in text
        place = "here" if rank == 1 else "on another process's machine"
        assert f"which does not exist {place} (process {rank})" in text


def _regression_after(steps: int, folder: Path) -> Path:
    """A checkpoint of `regression.Regression`, other weights after other numbers of steps."""
    L.seed_everything(steps, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = regression.Regression()
    model.on_fit_end = lambda: None
    trainer.fit(model, regression.Rows())
    path = folder / f"{steps}.ckpt"
    trainer.save_checkpoint(path)
    return path


def test_a_configured_way_of_storing_is_kept(folder):
    line = ["--config", "tiny.yaml"]
    own = "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO"
    assert type(cli.build_cli(line, run=False).trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    chosen = cli.build_cli([*line, own], run=False).trainer.strategy.checkpoint_io
    assert type(chosen).__name__ == "AsyncCheckpointIO"
