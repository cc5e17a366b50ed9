"""Starts command lines by the dozen: imports everything once and forks, so that each costs little.

Reads a line of JSON for each order on standard input and answers with one: `{"run": [...]}` gives
the process's id, `{"wait": ID}` its exit code, negative for a signal. What runs is
`lmdvid.cli.main`, in a session of its own with the given folder, environment and output file.
"""

import atexit
import ctypes
import json
import os
import signal
import sys
import traceback
from importlib import import_module


def end_with_parent() -> None:
    """Let the system end this process with the one that started it, should the tests be ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def run(order: dict) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        end_with_parent()
        os.setsid()
        os.chdir(order["folder"])
        os.environ |= order["environment"]
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["lightning", *order["run"]]
        from lmdvid import cli

        code = cli.main(order["run"]) or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # wandb's is one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    end_with_parent()
    import torch

    torch.set_num_threads(1)
    for module in (
        "lightning.pytorch.cli",
        "lightning.pytorch.loggers",
        "data_modules.clips",
        "lmdvid.callbacks",
        "lmdvid.preemption",
        "lmdvid.tasks.inmodegan",
        "lmdvid.tasks.lia",
    ):
        import_module(module)

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "run" in order:
            answer = run(order)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
