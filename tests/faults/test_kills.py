"""Trainings that are killed at random moments end as undisturbed ones do, to the bit.

LMDVID_KILLS=20 kills so many runs of LIA and half as many of InMoDeGAN (without it one of each):

    LMDVID_KILLS=20 pytest tests/faults/test_kills.py
"""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
from runs import ALL, EVERY, STEPS, Run, experiment, final, long, prepare, random_moment, together
from test_resume import differences

KILLS = int(os.environ.get("LMDVID_KILLS", "1"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("system", "seed"),
    [("lia", seed) for seed in range(KILLS)]
    + [("inmodegan", seed) for seed in range((KILLS + 1) // 2)],
)
def test_sigkill_at_a_random_moment(zygote, clips, undisturbed, tmp_path, system, seed):
    workers = 2 * (seed % 2)
    folder = prepare(tmp_path / "killed", experiment(system, clips, workers))
    steps, seconds = random_moment(seed)
    killed = Run(zygote, folder)
    killed.until(steps)
    time.sleep(seconds)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    resumed = Run(zygote, folder, "--ckpt_path", "last")
    assert resumed.wait() == 0, resumed.said
    assert "--ckpt_path last: runs/run/version_0/checkpoints/" in resumed.said
    assert differences(final(undisturbed(system)), final(folder)) == []
    kept = sorted(Path(folder, "runs/run/version_1/checkpoints").glob("*.ckpt"))
    assert 2 <= len(kept) <= 4  # `last` and the last three


@pytest.mark.parametrize("ranks", [1, 2] if ALL else [1])
def test_sigkill_in_the_validation_after_a_checkpoint(zygote, clips, undisturbed, tmp_path, ranks):
    """It is made up for, with a row in the log, and no other is made twice."""
    configuration = experiment("lia", clips, ranks=ranks)
    configuration["trainer"]["val_check_interval"] = EVERY
    watch = {"class_path": "runs.Validated", "init_args": {"step": 3 * EVERY}}
    configuration["trainer"]["callbacks"].append(watch)
    folder = prepare(tmp_path / "killed", configuration)
    runs = together(zygote, folder, ranks) if ranks > 1 else [Run(zygote, folder)]
    assert [run.wait() for run in runs] == [-signal.SIGKILL] * ranks, runs[0].said
    more = ("--ckpt_path", "last")
    rest = together(zygote, folder, ranks, *more) if ranks > 1 else [Run(zygote, folder, *more)]
    assert [run.wait() for run in rest] == [0] * ranks, rest[0].said
    assert f"last: runs/run/version_0/checkpoints/last.ckpt (step {3 * EVERY})" in rest[0].said
    steps = [*range(EVERY, STEPS + 1, EVERY)]
    for rank in range(ranks):
        assert [*map(int, (folder / f"validated{rank}").read_text().split())] == steps
    with (folder / "runs/run/version_1/metrics.csv").open(newline="") as file:
        logged = [int(row["step"]) + 1 for row in csv.DictReader(file) if row["val/psnr"]]
    assert logged == steps
    assert differences(final(undisturbed("lia", ranks=ranks)), final(folder)) == []


@pytest.mark.parametrize("ranks", [1, 2] if ALL else [2])
def test_sigterm_ends_after_the_step_with_a_checkpoint(zygote, clips, undisturbed, tmp_path, ranks):
    folder = prepare(tmp_path / "told", experiment("lia", clips, ranks=ranks))
    runs = together(zygote, folder, ranks) if ranks > 1 else [Run(zygote, folder)]
    runs[0].until(EVERY + 2)
    os.kill(runs[-1].pid, signal.SIGTERM)  # whichever process it is that gets the signal
    assert [run.wait() for run in runs] == [128 + signal.SIGTERM] * ranks, runs[0].said
    written, steps = folder / "runs/run/version_0/checkpoints/interrupted.ckpt", runs[0].steps
    assert EVERY + 2 <= steps < STEPS
    assert f"SIGTERM: the run ends after step {steps}; go on with" in runs[0].said
    assert written.is_file()
    more = ("--ckpt_path", "last")
    rest = together(zygote, folder, ranks, *more) if ranks > 1 else [Run(zygote, folder, *more)]
    assert [run.wait() for run in rest] == [0] * ranks, rest[0].said
    assert f"last: runs/run/version_0/checkpoints/interrupted.ckpt (step {steps})" in rest[0].said
    assert differences(final(undisturbed("lia", ranks=ranks)), final(folder)) == []


SCONTROL = """#!/bin/sh
echo "$@" >> "$REQUEUED"
"""


@long
def test_slurm_is_asked_to_queue_a_job_again(zygote, clips, undisturbed, tmp_path):
    """The variables of a job, the warning signal, and a stand-in for `scontrol` on the path."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    folder = prepare(tmp_path / "job", experiment("lia", clips))
    job = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "localhost",
    }
    line = ("--ckpt_path", "last")  # of the first start, too
    first = Run(zygote, folder, *line, **job)
    first.until(EVERY + 3)
    os.kill(first.pid, signal.SIGUSR1)
    assert first.wait() == 128 + signal.SIGUSR1, first.said
    steps = first.steps
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    assert "job 42 is queued again" in first.said
    second = Run(zygote, folder, *line, **job)
    assert second.wait() == 0, second.said
    assert f"interrupted.ckpt (step {steps})" in second.said
    assert differences(final(undisturbed("lia")), final(folder)) == []
