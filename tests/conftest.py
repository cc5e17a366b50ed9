"""Shared fixtures: determinism and the optional folder of real clips."""

import os
from pathlib import Path

import pytest
import torch

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
