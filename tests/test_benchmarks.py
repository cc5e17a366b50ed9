"""The benchmark of GPUs runs through: at toy size, on what a bare GPU machine has installed."""

import json
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
