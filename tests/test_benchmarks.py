"""Benchmarks: `make bench` itself; the one of GPUs, at toy size, on what a bare machine has."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmdvid.ops import dispatch

ROOT = Path(__file__).resolve().parent.parent
BARE = """
import runpy, sys
absent = {"av", "decord", "kornia", "wandb", "jsonargparse", "lightning", "pytorch_lightning"}
absent |= {"torchmetrics", "safetensors", "rich", "PIL", "yaml"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.argv = ["benchmarks/gpu.py", "--dry", "--output", sys.argv[1]]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(
    dispatch.obstacle(torch.device("cpu")) is not None, reason="no triton to interpret kernels"
)
def test_the_gpu_benchmark_runs_through(tmp_path):
    output = tmp_path / "gpu.json"
    run = subprocess.run(
        [sys.executable, "-c", BARE, str(output)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(output.read_text())
    assert result["dry"]
    assert result["machine"]["gpu"] is None
    assert all(row["error"] < 0.02 for row in result["correct"])
    assert {row["dtype"] for row in result["correct"]} == {"fp32", "bf16"}
    assert len(result["animation"]) == 2
    assert {row["direction"] for row in result["operations"]} == {"forward", "both"}
    assert result["training"][0]["images_per_second"] > 0


def test_the_benchmarks_that_fit_are_run_and_failures_told(tmp_path, capfd):
    for name, line in (("a", "raise OSError('full')"), ("b", "print('b is run')"), ("c", "1 / 0")):
        (tmp_path / f"{name}.py").write_text(line)
    run_all = runpy.run_path(str(ROOT / "benchmarks"))["run_all"]
    with pytest.raises(SystemExit, match=r"failed, see above: a\.py"):
        run_all(tmp_path, {"c.py": "no time"})
    out, err = capfd.readouterr()
    assert out.splitlines() == ["a.py", "b.py", "b is run", "left out: c.py (no time)"]
    assert "OSError: full" in err
    run_all(tmp_path, {"a.py": "broken", "c.py": "no time"})
