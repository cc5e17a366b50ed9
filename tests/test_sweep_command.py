"""`lmdvid sweep`: wandb's files with optuna, by several processes, through kills."""

import csv
import os
import sqlite3
import subprocess
import sys
import time
from ast import literal_eval
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from lmdvid import cli
from lmdvid.sweep import SweepError, read_sweep, run_sweep

pytest.importorskip("optuna", reason="needs the extra sweep")

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
SWEEP = {
    "name": "line",
    "method": "grid",
    "metric": {"name": "train/loss", "goal": "minimize"},
    "parameters": {
        "model.init_args.lr": {"values": [0.001, 0.02, 1e20]},
        "data.init_args.size": {"value": 4},
    },
    "command": [
        "${env}",
        "lightning",
        "fit",
        "--model=regression.Regression",
        "--data=regression.Rows",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=3",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "${args}",
    ],
}
JOB = """
import sys
from lmdvid.sweep import read_sweep, run_sweep
print(run_sweep(read_sweep("line.yaml"), "study", heartbeat=2))
"""


def write(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return path


def start(folder: Path) -> subprocess.Popen:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, "-c", JOB],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.skipif("LMDVID_FAULTS" not in os.environ, reason="takes long: LMDVID_FAULTS=1 runs it")
def test_two_processes_one_killed_and_restarted_try_each_setting_once(tmp_path):
    write(tmp_path / "line.yaml")
    first, second = start(tmp_path), start(tmp_path)
    while len(list(tmp_path.glob("study/trial_*/log.txt"))) < 2:
        assert None in (first.poll(), second.poll())
        time.sleep(0.02)
    first.kill()  # its training is ended by the system
    first.communicate()
    third = start(tmp_path)
    said = [run.communicate(timeout=200) for run in (second, third)]
    assert [second.returncode, third.returncode] == [0, 0], f"{said[0][1]}\n{said[1][1]}"
    outcome = literal_eval(said[1][0])
    assert outcome["finished"] == 3
    assert outcome["settings"] == {"model.init_args.lr": 0.02, "data.init_args.size": 4}
    rates = Counter()
    for log in tmp_path.glob("study/trial_*/log.txt"):
        lines = [line for line in log.read_text().splitlines() if line.startswith("lightning fit")]
        rates += Counter({next(w for w in lines[0].split() if ".lr=" in w): 1})
    assert {*rates.values()} == {1}
    assert len(rates) == 3
    metrics = sorted((tmp_path / outcome["folder"]).glob("runs/version_*/metrics.csv"))[-1]
    with metrics.open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert outcome["value"] == min(losses)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_who_is_killed_before_the_first_sign_of_life_is_not_waited_for(tmp_path, monkeypatch):
    import optuna

    tried, lost, naps = [], [], []
    optimize = optuna.Study.optimize
    database = tmp_path / "study/study.db"

    def killed(self, *words, **options):
        if not lost:
            lost.append(self.ask())
        return optimize(self, *words, **options)

    def train(sweep, chosen, place, more):
        tried.append((place.name, chosen["model.init_args.lr"]))
        return 1.0

    def sleep(seconds):
        """Let an hour pass."""
        naps.append(seconds)
        assert len(naps) < 5
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in (
                ("trials", "datetime_start"),
                ("trial_heartbeats", "heartbeat"),
            ):
                connection.execute(f"UPDATE {table} SET {column} = datetime({column}, '-1 hours')")

    monkeypatch.setattr(optuna.Study, "optimize", killed)
    monkeypatch.setattr("lmdvid.sweep._train", train)
    monkeypatch.setattr("lmdvid.sweep.time.sleep", sleep)
    sweep = read_sweep(write(tmp_path / "line.yaml"))
    assert run_sweep(sweep, tmp_path / "study", heartbeat=600)["finished"] == 3
    assert [name for name, _ in tried] == ["trial_0001", "trial_0002", "trial_0000"]
    assert {rate for _, rate in tried} == {0.001, 0.02, 1e20}


def test_who_is_idle_does_not_try_what_others_are_trying(tmp_path, monkeypatch):
    """They take both that are left at the very moment when this process wants one."""
    import optuna

    tried, naps, others = [], [], []
    optimize = optuna.Study.optimize

    def study() -> optuna.Study:
        return optuna.load_study(study_name="line", storage=f"sqlite:///{tmp_path}/study/study.db")

    def late(self, *words, **options):
        if tried and not others:
            others.extend(study().ask() for _ in range(2))
        return optimize(self, *words, **options)

    def train(sweep, chosen, place, more):
        tried.append(place.name)
        return 1.0

    def sleep(seconds):
        naps.append(seconds)
        for other in others:
            study().tell(other, values=7.0)

    monkeypatch.setattr(optuna.Study, "optimize", late)
    monkeypatch.setattr("lmdvid.sweep._train", train)
    monkeypatch.setattr("lmdvid.sweep.time.sleep", sleep)
    sweep = read_sweep(write(tmp_path / "line.yaml"))
    outcome = run_sweep(sweep, tmp_path / "study", heartbeat=600)
    assert (outcome["finished"], outcome["value"]) == (3, 1.0)
    assert tried == ["trial_0000"]
    assert naps == [300]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_file_is_understood(path):
    sweep = read_sweep(path)
    assert sweep.name == path.stem
    assert sweep.words({"a.b": [1, 2]})[-1] == "--a.b=[1, 2]"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "hyperband"}, "method is 'hyperband'; choose grid, random or bayes"),
        ({"metric": {"name": "x"}}, "metric needs a name, and the goal"),
        ({"parameters": {}}, "has no parameters"),
        ({"parameters": {"lr": {"min": 1, "max": 2}}}, "lr: a grid needs values, not a range"),
        ({"parameters": {"lr": {"min": 2, "max": 1}}}, "lr: min is to be below max"),
        ({"parameters": {"lr": {"distribution": "beta"}}}, "lr: give value, values, or min"),
        ({"command": ["rm", "-rf", "/"]}, "the command is to be"),
        ({"method": "random"}, "method random has no end: say how many trials"),
    ],
)
def test_sweeps_that_make_no_sense(tmp_path, changes, text):
    with pytest.raises(SweepError, match=text):
        run_sweep(read_sweep(write(tmp_path / "s.yaml", **changes)), tmp_path / "study")


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["sweep", str(tmp_path / "nosuch.yaml")]) == 2
    assert f"cannot read {tmp_path}/nosuch.yaml: no such file" in capsys.readouterr().err
    (tmp_path / "s.yaml").write_text("a: [")
    assert cli.main(["sweep", str(tmp_path / "s.yaml")]) == 2
    assert "is no valid YAML" in capsys.readouterr().err
