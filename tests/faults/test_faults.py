"""Full disks, lost workers, cut-off files, lost processes: what is left, and how it goes on."""

import json
import os
import resource
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from runs import ALL, BATCHES, EVERY, STEPS, Run, experiment, final, long, prepare, together
from test_resume import differences

from lmdvid import checkpoints

pytestmark = pytest.mark.slow

LAST = "runs/run/version_0/checkpoints/last.ckpt"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB, which takes root to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_becomes_full_keeps_the_previous_checkpoint(
    zygote, clips, undisturbed, small_disk, tmp_path
):
    folder = prepare(tmp_path / "full", experiment("lia", clips))
    (folder / "runs").symlink_to(small_disk)
    run = Run(zygote, folder)
    run.until(EVERY + 1)  # the first checkpoint is written
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert run.wait() == 1
    assert "lightning: error: No space left on device" in run.said.splitlines()[-1]
    kept = list(Path(small_disk, "run/version_0/checkpoints").iterdir())
    assert kept
    assert all(checkpoints.check(path) >= EVERY for path in kept)  # nothing half-written
    ballast.unlink()
    # The rest goes to a larger disk; what there is is found on the small one.
    (folder / "runs").unlink()
    Path(folder, "runs").mkdir()
    subprocess.run(["cp", "-r", str(small_disk / "run"), str(folder / "runs")], check=True)
    resumed = Run(zygote, folder, "--ckpt_path", "last")
    assert resumed.wait() == 0, resumed.said
    assert differences(final(undisturbed("lia")), final(folder)) == []


@long
def test_a_limit_of_the_files_size_is_no_better(zygote, clips, tmp_path):
    """As quotas work; anybody may set this one, from outside on the running process."""
    folder = prepare(tmp_path / "limited", experiment("lia", clips))
    run = Run(zygote, folder)
    run.until(EVERY + 1)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    assert run.wait() == 1
    assert "error: File too large: runs/run/version_0/checkpoints/" in run.said.splitlines()[-1]
    assert checkpoints.check(folder / LAST) >= EVERY
    assert not list(folder.rglob("*.part"))


def workers_of(pid: int) -> list[int]:
    """Processes below one that load clips, found by what they run."""
    below, found = {pid}, []
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            name = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent in below:
            below.add(int(entry.name))
            if "forkserver" in name and parent != pid:
                found.append(int(entry.name))
    return found


@long
def test_a_worker_that_memory_is_denied_ends_the_run_in_words(zygote, clips, undisturbed, tmp_path):
    """SIGKILL to one of them is what the system does when memory runs out."""
    folder = prepare(tmp_path / "memory", experiment("lia", clips, workers=2))
    run = Run(zygote, folder)
    run.until(EVERY)
    workers = workers_of(run.pid)
    assert len(workers) >= 2
    os.kill(workers[0], signal.SIGKILL)
    assert run.wait() == 1
    assert "a process that reads clips ended (DataLoader worker (pid" in run.said
    assert "lower data.init_args.num_workers or batch_size, and go on with" in run.said
    resumed = Run(zygote, folder, "--ckpt_path", "last")
    assert resumed.wait() == 0, resumed.said
    assert differences(final(undisturbed("lia")), final(folder)) == []


@long
def test_cut_off_checkpoints_are_passed_over(zygote, clips, undisturbed, tmp_path):
    folder = prepare(tmp_path / "cut", experiment("lia", clips))
    run = Run(zygote, folder)
    run.until(3 * EVERY + 1)
    run.kill()
    run.wait()
    newest, _ = checkpoints.newest([folder / Path(LAST).parent])
    cut = {newest, folder / LAST}
    for path in cut:
        os.truncate(path, path.stat().st_size - 5000)
        os.utime(path)
    resumed = Run(zygote, folder, "--ckpt_path", "last")
    assert resumed.wait() == 0, resumed.said
    for path in cut:
        name = path.relative_to(folder)
        assert f"passed over: {name} is no checkpoint, or was cut off" in resumed.said
    assert "(step 8)" in resumed.said or "(step 12)" in resumed.said
    assert differences(final(undisturbed("lia")), final(folder)) == []


# Several processes


@pytest.mark.parametrize("lost", [0, 1] if ALL else [1])
def test_a_process_that_dies_ends_the_others_and_all_go_on(
    zygote, clips, undisturbed, tmp_path, lost
):
    folder = prepare(tmp_path / "lost", experiment("lia", clips, ranks=2))
    runs = together(zygote, folder, 2)
    runs[0].until(EVERY + 2)
    began = time.monotonic()
    runs[lost].kill()
    other = runs[1 - lost]
    assert other.wait() == 1, other.said
    assert time.monotonic() - began < 60
    assert "error: another process of this training ended (connection " in other.said
    resumed = together(zygote, folder, 2, "--ckpt_path", "last")
    assert [run.wait() for run in resumed] == [0, 0], resumed[0].said
    assert differences(final(undisturbed("lia", ranks=2)), final(folder)) == []


def drawn(folder: Path, after: int = 0, until: int = STEPS) -> list[tuple]:
    """Epoch, clip and frames of all samples of steps, in all processes; the later run's word."""
    lines: dict[tuple, list] = {}
    for rank, path in enumerate(sorted(folder.glob("keys*.jsonl"))):
        for line in path.read_text().splitlines():
            epoch, step, keys, frames = json.loads(line)
            if after < step <= until:
                lines[rank, step] = [
                    (epoch, key, *numbers) for key, numbers in zip(keys, frames, strict=True)
                ]
    return [sample for line in lines.values() for sample in line]


MOVES = [((1, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 2), (2, 2))]


@long
@pytest.mark.parametrize(("before", "after"), MOVES)
def test_other_processes_draw_the_rest_of_the_epoch(
    zygote, clips, undisturbed, tmp_path, before, after
):
    """Processes and clips per batch: each sample of the epoch once, whoever draws it."""
    whole = drawn(undisturbed("lia"))
    samples = BATCHES * 2  # of an epoch
    folder = prepare(tmp_path / "moved", experiment("lia", clips, ranks=before[0], batch=before[1]))
    runs = together(zygote, folder, before[0]) if before[0] > 1 else [Run(zygote, folder)]
    runs[0].until(EVERY + 1)
    for run in runs:
        run.kill()
    for run in runs:
        run.wait()
    _, step = checkpoints.newest([folder / Path(LAST).parent])
    first = drawn(folder, until=step)
    assert len(first) == step * before[0] * before[1]
    for path in folder.glob("keys*"):
        path.unlink()
    share = after[0] * after[1]
    rest = (samples - len(first)) // share
    configuration = experiment("lia", clips, ranks=after[0], batch=after[1])
    configuration["trainer"]["max_steps"] = step + rest + 3  # into the next epoch
    (folder / "run.yaml").write_text(json.dumps(configuration))
    more = ("--ckpt_path", "last")
    resumed = (
        together(zygote, folder, after[0], *more) if after[0] > 1 else [Run(zygote, folder, *more)]
    )
    assert [run.wait() for run in resumed] == [0] * after[0], resumed[0].said
    second = drawn(folder, after=step, until=step + rest + 3)
    epoch = [sample for sample in first + second if sample[0] == 0]
    assert Counter(epoch) == Counter(sample for sample in whole if sample[0] == 0)
    assert {sample[0] for sample in second[-3:]} == {1}
    assert Counter(s for s in second if s[0] == 1) <= Counter(s for s in whole if s[0] == 1)
