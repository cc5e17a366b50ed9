"""Shared fixtures: determinism and the optional folder of real clips."""

import os
import signal
from pathlib import Path

# Before torch is imported, and for the processes that tests start: where several work at once, the
# threads of each would wait for processor time that the others have.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background bars Ctrl-C from them and what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

# Without a GPU, Triton's kernels are interpreted; read when lmdvid.ops.kernels is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Tables of scanned clips that cannot lie beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real clips (environment variable LMDVID_SHARED, default ../shared)."""
    folder = Path(os.environ.get("LMDVID_SHARED", ROOT.parent / "shared"))
    if not (folder / "videos").is_dir():
        pytest.skip(f"no real clips: {folder}/videos does not exist (set LMDVID_SHARED)")
    return folder
