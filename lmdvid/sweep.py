"""Sweeps without wandb: the same files, with optuna and a local database.

Each trial is a training as a process of its own, with a folder of its own. Several processes, also
on several machines that share a disk, may work on one study; one that is started again goes on with
the trials that were cut short, from their last checkpoints.
"""

import csv
import ctypes
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_FOLDER = "folder"  # of a trial; one that takes over an earlier trial has its folder
_DISTRIBUTIONS = ("uniform", "int_uniform", "log_uniform_values")


class SweepError(ValueError):
    """A sweep that cannot be carried out as written; the text says why and what to do."""


@dataclass(frozen=True)
class Sweep:
    """What a wandb sweep file says.

    Attributes:
        name: of the study.
        method: `grid`, `random` or `bayes`.
        metric: its name in the log.
        minimize: whether less of it is better.
        parameters: what each may be, as in the file.
        command: words, with `${env}` and `${args}` in them.
    """

    name: str
    method: str
    metric: str
    minimize: bool
    parameters: Mapping[str, Mapping[str, Any]]
    command: Sequence[str]

    def words(self, chosen: Mapping[str, Any]) -> list[str]:
        """The command line of a trial with these settings."""
        arguments = [f"--{name}={value}" for name, value in chosen.items()]
        for_word = {"${env}": [], "${args}": arguments}
        return [w for word in self.command for w in for_word.get(word, [word])]


def read_sweep(path: str | Path) -> Sweep:
    """Read the part of wandb's format that this carries out.

    That is: methods grid, random and bayes; parameters by `value`, `values`, or `min` and `max`
    with a distribution `uniform`, `int_uniform` or `log_uniform_values`; a command that starts with
    `${env}` and `lightning`, and takes `${args}`.

    Raises:
        SweepError: The file cannot be read, or asks for something else.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SweepError(f"cannot read {path}: {str(error.strerror).lower()}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise SweepError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    needed = ("method", "metric", "parameters", "command")
    missing = [key for key in needed if not isinstance(content, dict) or not content.get(key)]
    if missing:
        raise SweepError(f"{path} has no {missing[0]}; a sweep has {', '.join(needed)}")
    method, metric = content["method"], content["metric"]
    if method not in ("grid", "random", "bayes"):
        raise SweepError(f"{path}: method is {method!r}; choose grid, random or bayes")
    if not isinstance(metric, dict) or metric.get("goal") not in ("minimize", "maximize"):
        raise SweepError(f"{path}: metric needs a name, and the goal minimize or maximize")
    for name, domain in content["parameters"].items():
        _check(f"{path}: {name}", domain, method)
    command = [str(word) for word in content["command"]]
    if command[:2] != ["${env}", "lightning"] or "${args}" not in command:
        raise SweepError(f"{path}: the command is to be ${{env}}, lightning, ..., with ${{args}}")
    return Sweep(
        name=str(content.get("name") or path.stem),
        method=method,
        metric=str(metric.get("name")),
        minimize=metric["goal"] == "minimize",
        parameters=content["parameters"],
        command=command,
    )


def _check(place: str, domain: Any, method: str) -> None:
    if not isinstance(domain, dict):
        raise SweepError(f"{place}: give value, values, or min and max")
    if domain.get("values") or "value" in domain:
        return
    kind = domain.get("distribution", "uniform")
    low, high = domain.get("min"), domain.get("max")
    if (
        kind not in _DISTRIBUTIONS
        or not isinstance(low, int | float)
        or not isinstance(high, int | float)
    ):
        raise SweepError(
            f"{place}: give value, values, or min and max with a distribution uniform, int_uniform "
            "or log_uniform_values"
        )
    if low >= high or (kind.startswith("log") and low <= 0):
        raise SweepError(f"{place}: min is to be below max, and above 0 for a logarithm")
    if method == "grid":
        raise SweepError(f"{place}: a grid needs values, not a range")


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    trials: int | None = None,
    more: Sequence[str] = (),
    heartbeat: int = 60,
) -> dict[str, Any]:
    """Carry out trials, one after the other, until there are enough of them.

    Args:
        sweep: what to try.
        folder: where the study's database (`study.db`) and the trials' folders are.
        trials: finished ones that the study is to have in all; None is the whole grid.
        more: further words for every command line, such as `--trainer.max_steps=100`.
        heartbeat: seconds between signs of life; a trial without for twice as long was cut short,
            and is taken up again.

    Returns:
        The best settings, their `value` of the metric, and how many trials are `finished`.

    Raises:
        SweepError: optuna is missing, the number of trials is not given, or none succeeded.
    """
    try:
        import optuna
        from filelock import FileLock
    except ImportError:
        raise SweepError("optuna is not installed: pip install 'lmdvid[sweep]'") from None
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from optuna.trial import TrialState

    folder = Path(folder)
    grid = sweep.method == "grid"
    space = {name: list(_indices(domain)) for name, domain in sweep.parameters.items()}
    if trials is None:
        if not grid:
            raise SweepError(f"method {sweep.method} has no end: say how many trials, --trials 30")
        trials = math.prod(map(len, space.values()))
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {
        "grid": lambda: optuna.samplers.GridSampler(space, seed=0),
        "random": optuna.samplers.RandomSampler,
        "bayes": lambda: optuna.samplers.TPESampler(constant_liar=True),
    }
    # Processes that begin together must not all make the database.
    with FileLock(folder / "study.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RDBStorage(
            f"sqlite:///{folder / 'study.db'}",
            engine_kwargs={"connect_args": {"timeout": 100}},  # seconds, while others write
            heartbeat_interval=heartbeat,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
        )
        study = optuna.create_study(
            study_name=sweep.name,
            storage=storage,
            sampler=samplers[sweep.method](),
            direction="minimize" if sweep.minimize else "maximize",
            load_if_exists=True,
        )

    ended = (TrialState.COMPLETE, TrialState.PRUNED)

    def count(*states: Any) -> int:
        return len(study.get_trials(deepcopy=False, states=states))

    def objective(trial: Any) -> float:
        before = study.get_trials(deepcopy=False, states=(*ended, TrialState.RUNNING))
        if sum(other.number < trial.number for other in before) >= trials:
            raise _TakenError  # another process was quicker
        chosen = {name: _suggest(trial, name, d) for name, d in sweep.parameters.items()}
        attributes = study.get_trials(deepcopy=False)[trial.number].system_attrs
        number = attributes.get("failed_trial", trial.number)
        place = folder / f"trial_{number:04d}"
        trial.set_user_attr(_FOLDER, place.name)
        value = _train(sweep, chosen, place, more)
        if value is None:
            raise optuna.TrialPruned  # counted, never chosen
        return value

    signal.signal(signal.SIGTERM, _stop)
    # optuna by itself would let who is idle try once more what others are still trying.
    while count(*ended) < trials:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)  # which puts what was cut short in the queue
        if count(*ended, TrialState.RUNNING) < trials or count(TrialState.WAITING):
            study.optimize(objective, n_trials=1, catch=_TakenError)
        else:
            for number in _silent(study, folder / "study.db", 2 * heartbeat):
                storage.record_heartbeat(number)  # its only one: soon it counts as cut short
            time.sleep(heartbeat / 2)
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        raise SweepError(f"no trial of {folder} gave a value of {sweep.metric}; see its log.txt")
    best = study.best_trial
    settings = {name: _value(sweep.parameters[name], place) for name, place in best.params.items()}
    return {
        "settings": settings,
        "value": best.value,
        "folder": str(folder / best.user_attrs[_FOLDER]),
        "finished": count(*ended),
    }


def _silent(study: Any, database: Path, seconds: float) -> list[int]:
    """Numbers in the database of trials that run for so long without a first sign of life.

    Their process was killed between these two; optuna, which goes by the last sign, waits for them
    for ever.
    """
    from optuna.trial import TrialState

    with closing(sqlite3.connect(database, timeout=100)) as connection:
        alive = {row[0] for row in connection.execute("SELECT trial_id FROM trial_heartbeats")}
    start = datetime.now() - timedelta(seconds=seconds)  # in local time, as optuna's
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [t._trial_id for t in running if t._trial_id not in alive and t.datetime_start < start]


class _TakenError(Exception):
    """All trials are under way or done."""


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _indices(domain: Mapping[str, Any]) -> range:
    """Places of values, which may be lists, that optuna would not store."""
    return range(len(domain["values"]) if "values" in domain else 1)


def _suggest(trial: Any, name: str, domain: Mapping[str, Any]) -> Any:
    if "values" in domain or "value" in domain:
        return _value(domain, trial.suggest_categorical(name, list(_indices(domain))))
    low, high = domain["min"], domain["max"]
    kind = domain.get("distribution")
    whole = isinstance(low, int) and isinstance(high, int) and kind in (None, "int_uniform")
    if whole:
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=kind == "log_uniform_values")


def _value(domain: Mapping[str, Any], place: Any) -> Any:
    if "values" in domain:
        return domain["values"][place]
    return domain.get("value", place)


def _train(
    sweep: Sweep, chosen: Mapping[str, Any], place: Path, more: Sequence[str]
) -> float | None:
    """Train, or go on, and return the best value of the metric; None if it failed."""
    place.mkdir(exist_ok=True)
    logger = "--trainer.logger"
    words = sweep.words(chosen)[1:]  # without `lightning`
    words += [
        *(f"{logger}=lightning.pytorch.loggers.CSVLogger", f"{logger}.save_dir={place}"),
        *(f"{logger}.name=runs", "--ckpt_path=last", *more),
    ]
    with (place / "log.txt").open("a") as file:
        print("lightning", *words, file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "lmdvid", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it writes a checkpoint, see `preemption`
            process.wait()
            raise
    if code:
        log.warning("a trial failed with exit code %d, see %s", code, place / "log.txt")
        return None
    return _best(sweep, place / "runs")


def _end_with_parent() -> None:
    """Let the system end this process when the one that started it is gone, however that ended."""
    prctl = ctypes.CDLL(None).prctl
    prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def _best(sweep: Sweep, runs: Path) -> float | None:
    values = []
    for path in runs.glob("version_*/metrics.csv"):
        with path.open(newline="") as file:
            values += [
                float(row[sweep.metric]) for row in csv.DictReader(file) if row.get(sweep.metric)
            ]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        log.warning("%s is not in the log of %s", sweep.metric, runs)
        return None
    return min(values) if sweep.minimize else max(values)
