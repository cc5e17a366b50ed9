"""``lmdvid sweep``."""

import argparse

from lmdvid.commands import UsageError

HELP = "try out settings by a wandb sweep file, without wandb"
EPILOG = (
    "Needs optuna: pip install 'lmdvid[sweep]'. Start the line several times, also on machines "
    "that share the disk, for several trials at once; started again after whatever, it goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the file, and say how many trials."""
    add = parser.add_argument
    add("file", help="such as experiments/sweeps/lia_orthogonal.yaml")
    add("--trials", type=int, metavar="N", help="in all, of all processes (default: the grid)")
    add(
        "--output",
        metavar="FOLDER",
        help="for the database and the trials (default: runs/sweeps/NAME)",
    )
    add(
        "--more",
        nargs="+",
        default=[],
        metavar="WORD",
        help="words for every training's command line, without their --: trainer.max_steps=100",
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Try, and say what was best."""
    if options.trials is not None and options.trials < 1:
        parser.error(f"argument --trials: must be at least 1; given {options.trials}")

    from lmdvid.sweep import SweepError, read_sweep, run_sweep

    try:
        from sqlalchemy.exc import DatabaseError
    except ImportError:  # `run_sweep` says what to install
        DatabaseError = SweepError
    try:
        sweep = read_sweep(options.file)
        output = options.output or f"runs/sweeps/{sweep.name}"
        best = run_sweep(sweep, output, options.trials, [f"--{word}" for word in options.more])
    except SweepError as error:
        raise UsageError(str(error)) from None
    except DatabaseError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{output}/study.db cannot be used as a study: {reason}") from None
    print(f"{best['finished']} trials; best {sweep.metric} {best['value']:.6g}, {best['folder']}:")
    for name, value in best["settings"].items():
        print(f"  --{name}={value}")
    return 0
