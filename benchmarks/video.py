"""Speed and memory of reading clips, against the bare decoder in the same run.

    python benchmarks/video.py

Makes its own clips: 256 px H.264 with a key frame every 12 and every 250 frames, and prepares the
latter. The two sides of a comparison read the same frames by turns, and the fastest of the
repetitions of each batch counts. The ratio of processor time, taken the same way, hardly changes
where something else runs beside, as the load average tells. Writes benchmarks/results/video.json
and takes about two minutes on two quiet cores.
"""

import argparse
import gc
import json
import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `lmdvid` does; for both alike
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import decord
import numpy as np
import torch
from demo import processor

from data_modules.clips import Clips
from data_modules.index import find_clips
from lmdvid.prepare import Settings, prepare_clips
from lmdvid.video import read_clip, write_video

ROOT = Path(__file__).resolve().parent.parent
SIZE, CLIPS, LENGTH = 256, 8, 250
PACKAGES = ("lmdvid", "torch", "lightning", "numpy", "decord", "av")
DRAWS = 3  # of every clip in an epoch
OPENS, WARM_UP = 2000, 200
GROWTH_MB = 8  # allowed from open 200 to open 2,000


def picture_walk(seed: int) -> Iterator[torch.Tensor]:
    """A window that walks over a picture of coarse and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 24, 24, generator=generator)
    fine = torch.rand(1, 3, 96, 96, generator=generator) * 0.25
    both = [
        torch.nn.functional.interpolate(noise, (2 * SIZE, 2 * SIZE), mode="bicubic")
        for noise in (coarse, fine)
    ]
    still = sum(both).clamp(0, 1).mul(255).to(torch.uint8)[0].permute(1, 2, 0)
    phase = float(torch.rand((), generator=generator)) * 6
    for n in range(LENGTH):
        y = int(SIZE / 2 * (1 + np.sin(phase + n / 40)))
        x = int(SIZE / 2 * (1 + np.cos(1.3 * phase + n / 55)))
        yield still[y : y + SIZE, x : x + SIZE]


def make_clips(folder: Path) -> dict[str, Path]:
    folders = {"gop_12": folder / "gop_12", "gop_250": folder / "gop_250"}
    for number in range(CLIPS):
        frames = torch.stack(list(picture_walk(number)))
        name = f"train/{number:02d}.mp4"
        write_video(folders["gop_12"] / name, frames, 25, options={"g": "12", "bf": "0"})
        write_video(folders["gop_250"] / name, frames, 25)
    return folders


def bare(path: str, frames: list[int]) -> torch.Tensor:
    """The least that reading takes: a fresh reader of decord, one thread, one batch."""
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    return decord.bridge.to_torch(reader.get_batch(frames))


def loading(root: Path, sampling: str, frames: int, batch_size: int, floats: bool, rounds: int):
    """Frames per second through the data module and by the bare decoder, of the same frames."""
    data = Clips(
        str(root),
        SIZE,
        batch_size=batch_size,
        frames=frames,
        sampling=sampling,
        samples_per_clip=DRAWS,
        holdout=0.0,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    paths = {clip.key: clip.path for clip in data.train_clips}
    # What is drawn depends on the epoch alone: known beforehand, either side may go first.
    plan = [[*zip(batch["key"], batch["frames"].tolist(), strict=True)] for batch in loader]
    frames_read = sum(len(drawn) for clips in plan for _, drawn in clips)
    fastest: dict[tuple[str, str, int], float] = {}  # of the repetitions of each batch
    for repetition in range(rounds):
        batches = iter(loader)
        for number, clips in enumerate(plan):
            results = {}
            sides = ("module", "decoder")
            for side in sides if (number + repetition) % 2 else sides[::-1]:
                start, begun = time.perf_counter(), time.process_time()
                if side == "decoder":
                    results[side] = [bare(paths[key], sorted(drawn)) for key, drawn in clips]
                else:
                    batch = next(batches)
                    results[side] = batch["video"]
                    if floats:
                        data.on_after_batch_transfer(batch, 0)
                spent = {
                    "clock": time.perf_counter() - start,
                    "processor": time.process_time() - begun,
                }
                for kind, value in spent.items():
                    place = (kind, side, number)
                    fastest[place] = min(value, fastest.get(place, value))
            for (_, drawn), ours, theirs in zip(
                clips, results["module"], results["decoder"], strict=True
            ):
                order = [sorted(drawn).index(frame) for frame in drawn]
                assert torch.equal(ours, theirs[order])
            del batch
    seconds = {
        (kind, side): sum(value for place, value in fastest.items() if place[:2] == (kind, side))
        for kind in ("clock", "processor")
        for side in ("module", "decoder")
    }
    return {
        "frames_per_second": {
            side: round(frames_read / seconds["clock", side]) for side in ("module", "decoder")
        },
        "ratio": round(seconds["clock", "decoder"] / seconds["clock", "module"], 3),
        "processor_time_ratio": round(
            seconds["processor", "decoder"] / seconds["processor", "module"], 3
        ),
    }


def pair_speed(original: Path, prepared: Path, rounds: int) -> dict:
    """Pairs of random frames per second through the data module, from either folder."""
    sides = {}
    for side, root in (("original", original), ("prepared", prepared)):
        data = Clips(str(root), SIZE, batch_size=1, frames=2, holdout=0.0)
        data.setup("fit")
        sides[side] = data.train_dataloader()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, loader in sides.items():
            loader.sampler.set_epoch(number)
            start = time.perf_counter()
            count = sum(1 for _ in loader)
            if number:
                seconds[side].append((time.perf_counter() - start) / count)
    per_pair = {side: statistics.median(values) for side, values in seconds.items()}
    megabytes = {
        side: round(sum(p.stat().st_size for p in find_clips(root).values()) / 1e6, 2)
        for side, root in (("original", original), ("prepared", prepared))
    }
    return {
        "pairs_per_second": {side: round(1 / value, 1) for side, value in per_pair.items()},
        "speed_up": round(per_pair["original"] / per_pair["prepared"], 2),
        "megabytes": megabytes,
    }


def memory(folder: Path, backend: str) -> dict:
    """Resident memory over many opens, in a process of its own."""
    command = [sys.executable, __file__, "--opens", backend, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def count_opens(backend: str, folder: Path) -> None:
    paths = [str(path) for path in find_clips(folder).values()]
    rng = np.random.default_rng(0)
    seen = {}
    for number in range(1, OPENS + 1):
        start = int(rng.integers(LENGTH - 2))
        read_clip(paths[number % len(paths)], [start, start + 1], backend)
        if number in (WARM_UP, OPENS // 2, OPENS):
            gc.collect()
            seen[str(number)] = round(resident_mb(), 1)
    growth = round(seen[str(OPENS)] - seen[str(WARM_UP)], 1)
    print(json.dumps({"resident_mb_after_opens": seen, "growth_mb": growth}))


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status; this needs Linux")


def timed(name: str, measure: Callable[[], dict]) -> dict:
    start = time.perf_counter()
    result = measure()
    print(f"{name}: {json.dumps(result)} ({time.perf_counter() - start:.0f} s)", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opens", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="timed repetitions (%(default)s)")
    options = parser.parse_args()
    if options.opens:
        count_opens(options.opens[0], Path(options.opens[1]))
        return
    torch.set_num_threads(1)
    begin, before = time.perf_counter(), os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_clips(Path(temporary))
        prepared = Path(temporary, "prepared")
        clips = find_clips(folders["gop_250"])
        start = time.perf_counter()
        done = prepare_clips(clips, folders["gop_250"], prepared, Settings(SIZE))
        assert len(done.made) == CLIPS, done.failed
        encoded = CLIPS * LENGTH / (time.perf_counter() - start)
        loads = {
            f"{name}_{sampling}_{frames}_batch_{size}": timed(
                f"loading, {name}, {frames} {sampling}, batch {size}",
                lambda f=folder, s=sampling, n=frames, b=size: loading(
                    f, s, n, b, False, options.rounds
                ),
            )
            for name, folder in folders.items()
            for sampling, frames in (("random", 2), ("consecutive", 16))
            for size in (1, CLIPS)
        }
        with_floats = timed(
            "loading and conversion to floats, gop_12, 16 consecutive",
            lambda: loading(folders["gop_12"], "consecutive", 16, CLIPS, True, options.rounds),
        )
        pairs = timed(
            "two frames", lambda: pair_speed(folders["gop_250"], prepared, options.rounds)
        )
        opens = {
            backend: timed(f"memory, {backend}", lambda b=backend: memory(folders["gop_12"], b))
            for backend in ("decord", "pyav")
        }
    result = {
        "benchmark": "video",
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "gpu": None},
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "clips": {"count": CLIPS, "frames": LENGTH, "size": SIZE, "codec": "h264"},
        "load_average_before": [round(load, 2) for load in before],
        "loading_against_the_bare_decoder": loads,
        "loading_with_conversion_to_floats": with_floats,
        "mean_ratio": round(statistics.geometric_mean(load["ratio"] for load in loads.values()), 3),
        "lowest_ratio": min(load["ratio"] for load in loads.values()),
        "lowest_processor_time_ratio": min(load["processor_time_ratio"] for load in loads.values()),
        "two_random_frames": pairs,
        "prepared_frames_per_second": round(encoded),
        "opens": opens | {"count": OPENS, "allowed_growth_mb": GROWTH_MB},
        "memory_is_flat": all(found["growth_mb"] <= GROWTH_MB for found in opens.values()),
        "seconds": round(time.perf_counter() - begin),
    }
    output = ROOT / "benchmarks" / "results" / "video.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
