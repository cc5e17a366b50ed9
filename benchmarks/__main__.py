"""Every benchmark that fits this machine, one after the other; exit code 1 if one fails.

python benchmarks
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

TRAINING = "trains for half an hour and more"


def left_out() -> dict[str, str]:
    """Scripts that are not run, and why."""
    scripts = {"comparison.py": TRAINING, "generators.py": TRAINING}
    if not torch.cuda.is_available():
        scripts["gpu.py"] = "no NVIDIA GPU"
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_getaffinity"):
        scripts["ranks.py"] = "needs two cores, on Linux"
    if find_spec("scipy") is None:
        scripts["frechet.py"] = "no scipy"
    return scripts


def run_all(folder: Path, others: Mapping[str, str]) -> None:
    """Run a folder's scripts but `others`."""
    failed = []
    for script in sorted(folder.glob("[!_]*.py")):
        if script.name not in others:
            print(script.name, flush=True)
            if subprocess.run([sys.executable, script]).returncode:
                failed.append(script.name)
    print("left out:", ", ".join(f"{name} ({why})" for name, why in others.items()), flush=True)
    if failed:
        sys.exit(f"failed, see above: {', '.join(failed)}")


if __name__ == "__main__":
    run_all(Path(__file__).resolve().parent, left_out())
