"""Trainings on shards that are killed end as undisturbed ones on files do, to the bit."""

import signal
import time
from pathlib import Path

import pytest
from runs import ALL, Run, experiment, final, long, prepare, random_moment, together
from storage import Storage
from test_resume import differences

from data_modules.index import find_clips
from data_modules.packing import write_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "clips"
    root = Path(clips)
    done = write_shards(find_clips(root), root, folder, chunk_bytes=8000)
    assert done.made > 1
    return folder


@pytest.fixture(scope="module")
def storage():
    started = Storage()
    yield started
    started.close()


MORE = [("folder", 101), *(("storage", seed) for seed in range(102, 110))]


@pytest.mark.parametrize(("place", "seed"), [("storage", 100), *(MORE if ALL else ())])
def test_sigkill_in_the_middle_of_an_epoch(
    zygote, storage, packed, undisturbed, tmp_path, place, seed
):
    root = storage.upload(packed, "clips") if place == "storage" else str(packed)
    environment = storage.variables | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = prepare(tmp_path / "killed", experiment("lia", root, workers=2 * (seed % 2)))
    steps, seconds = random_moment(seed)
    killed = Run(zygote, folder, **environment)
    killed.until(steps)
    time.sleep(seconds)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    resumed = Run(zygote, folder, "--ckpt_path", "last", **environment)
    assert resumed.wait() == 0, resumed.said
    assert "--ckpt_path last: runs/run/version_0/checkpoints/" in resumed.said
    assert differences(final(undisturbed("lia")), final(folder)) == []
    copies = [*tmp_path.glob("cache/lmdvid/shards/*/chunk-*.bin")]
    assert bool(copies) == (place == "storage")


@long
def test_two_processes_train_out_of_storage(zygote, storage, packed, undisturbed, tmp_path):
    """They share the copies on this disk, and end as on files."""
    root = storage.upload(packed, "clips")
    folder = prepare(tmp_path / "both", experiment("lia", root, ranks=2))
    environment = storage.variables | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    runs = together(zygote, folder, 2, **environment)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said
    assert differences(final(undisturbed("lia", ranks=2)), final(folder)) == []
    copies = [path.name for path in tmp_path.glob("cache/lmdvid/shards/*/chunk-*.bin")]
    assert 0 < len(copies) == len(set(copies))
