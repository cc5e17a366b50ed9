"""LIA, FOMM and MRAA on puppets, each trained for the same time on this machine: `make comparison`.

    python benchmarks/comparison.py [MINUTES]

Trains each for MINUTES (default 12) with its puppets experiment; MRAA's last quarter goes to its
AVD network. Then all show held-out identities: themselves (each clip rebuilt from its first frame),
and in another identity's motion, whose truth is drawn. Writes benchmarks/results/comparison.json
with the curves of training, the table in docs/comparison.md, the still docs/comparison.png and
out/comparison.mp4: driving | LIA | FOMM | MRAA | truth. Killed and started again, it goes on. About
50 minutes on two cores; OMP_NUM_THREADS=1 keeps each training to one of them.
"""

import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo import newest, processor
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data_modules.puppets import Puppets
from lmdvid.animate import Animator
from lmdvid.tasks.animation import reconstruction_scores
from lmdvid.video import to_float, to_uint8, write_image, write_video

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("lia", "fomm", "mraa")
SHOWN = 4  # identities in the video and the still
SCALE = 2


def budgets(minutes: float) -> dict[str, list[tuple[str, float]]]:
    """Experiments of each system and their minutes."""
    return {
        "lia": [("lia_puppets", minutes)],
        "fomm": [("fomm_puppets", minutes)],
        "mraa": [("mraa_puppets", 0.75 * minutes), ("mraa_puppets_avd", 0.25 * minutes)],
    }


def train(experiment: str, minutes: float, start_from: Path | None) -> Path:
    """Trains where that has not been done for this budget; returns the checkpoint."""
    name = f"comparison_{experiment}_{minutes:g}_minutes"
    done = ROOT / "runs" / name / "done"
    if not done.exists():
        limit = time.strftime("00:%H:%M:%S", time.gmtime(60 * minutes))
        command = [sys.executable, "-m", "lmdvid", "fit", "--ckpt_path", "last"]
        command += ["--config", f"experiments/{experiment}.yaml"]
        command += ["--trainer.logger.init_args.name", name]
        command += ["--trainer.max_time", limit, "--trainer.max_steps", "-1"]
        if start_from is not None:
            command += ["--model.init_args.start_from", str(start_from)]
        subprocess.run(command, cwd=ROOT, check=True)
        done.touch()
    return newest(f"runs/{name}/version_*/checkpoints/last.ckpt")


def curve(checkpoint: Path, points: int = 20) -> dict[str, list[float]]:
    """Losses over training, averaged over `points` spans, and validation scores."""
    columns: dict[str, list[tuple[int, float]]] = {}
    with (checkpoint.parent.parent / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name.startswith(("generator/", "val/")):
                    columns.setdefault(name, []).append((int(row["step"]) + 1, float(value)))
    curves: dict[str, list[float]] = {}
    for name, found in columns.items():
        length = max(1, len(found) // points)
        spans = [found[i : i + length] for i in range(0, len(found), length)]
        curves[f"{name} step"] = [span[-1][0] for span in spans]
        curves[name] = [round(sum(v for _, v in span) / len(span), 4) for span in spans]
    return curves


def test_batches() -> list[dict[str, Any]]:
    """Held-out identities: their clips, other identities' motion, and the drawn truth."""
    data = Puppets(
        str(ROOT / "data/puppets"), clip_frames=96, eval_frames=48, batch_size=4, backend="pyav"
    )
    data.prepare_data()
    data.setup("test")
    return list(data.test_dataloader())


def shown(animator: Animator, source: Tensor, driving: Tensor, mode: Any) -> Tensor:
    videos = [animator.animate(s, d, mode) for s, d in zip(source, driving, strict=True)]
    return torch.stack(videos).clamp(-1, 1)


def evaluate(animator: Animator, batches: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean scores of reconstruction, and of the cross-identity task in every mode."""
    tasks: dict[str, tuple[str, str, Any]] = {"same identity": ("video", "video", "absolute")}
    for mode in animator.network.modes:
        tasks[f"other identity, {mode}"] = ("cross_driving", "cross_truth", mode)
    results: dict[str, dict[str, float]] = {}
    for task, (driving, truth, mode) in tasks.items():
        sums: dict[str, float] = {}
        count = 0
        for batch in batches:
            video = as_floats(batch["video"])
            made = shown(animator, video[:, 0], as_floats(batch[driving]), mode)
            first = 1 if task == "same identity" else 0  # the source itself is no task
            scores = reconstruction_scores(
                made[:, first:], as_floats(batch[truth])[:, first:], video[:, 0]
            )
            count += len(video)
            for name, value in scores.items():
                sums[name] = sums.get(name, 0.0) + len(video) * float(value)
        results[task] = {name: round(total / count, 4) for name, total in sums.items()}
        print(task, results[task], flush=True)
    return results


def as_floats(video: Tensor) -> Tensor:
    """Clips of a loader, uint8 (B, T, H, W, 3), as (B, T, 3, H, W) in [-1, 1]."""
    return to_float(video) if video.dtype == torch.uint8 else video


def heading(words: list[str], width: int) -> Tensor:
    """Words above columns, uint8 (18, len(words) * width, 3)."""
    picture = Image.new("RGB", (len(words) * width, 18), "white")
    for i, word in enumerate(words):
        place = (i * width + 4, 2)
        ImageDraw.Draw(picture).text(place, word, "black", ImageFont.load_default(12))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(18, picture.width, 3)


def draw(animators: dict[str, Animator], batch: dict[str, Any]) -> None:
    """The video and the still: source, driving, each system, truth; absolute mode."""
    source = as_floats(batch["video"])[:SHOWN, 0]
    driving, truth = (as_floats(batch[key])[:SHOWN] for key in ("cross_driving", "cross_truth"))
    columns = {"driving": driving}
    columns |= {
        name.upper(): shown(a, source, driving, "absolute") for name, a in animators.items()
    }
    columns |= {"truth": truth}
    stack = torch.stack(list(columns.values()))  # (columns, identities, T, 3, H, W)
    large = F.interpolate(stack.flatten(0, 2), scale_factor=float(SCALE), mode="bicubic")
    frames = to_uint8(large.clamp(-1, 1)).unflatten(0, stack.shape[:3])
    frames = rearrange(frames, "c b t h w d -> t (b h) (c w) d")
    top = heading(list(columns), SCALE * stack.shape[-1])
    frames = torch.cat([top.expand(len(frames), -1, -1, -1), frames], dim=1)
    write_video(ROOT / "out/comparison.mp4", frames, 25)

    # Each identity at a moment of its own, its source in front.
    moments = [(i + 1) * stack.shape[2] // (SHOWN + 1) for i in range(len(source))]
    rows = torch.stack([stack[:, i, t] for i, t in enumerate(moments)], dim=1)
    rows = torch.cat([source[None], rows])
    large = F.interpolate(rows.flatten(0, 1), scale_factor=float(SCALE), mode="bicubic")
    still = to_uint8(large.clamp(-1, 1)).unflatten(0, rows.shape[:2])
    top = heading(["source", *columns], SCALE * stack.shape[-1])
    write_image(
        ROOT / "docs/comparison.png",
        torch.cat([top, rearrange(still, "c b h w d -> (b h) (c w) d")]),
    )


def table(result: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        "| system, parameters, steps | task | PSNR, dB | above copying the source | SSIM | L1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, system in result["systems"].items():
        steps = " + ".join(f"{n:,}" for n in system["steps"].values())
        title = f"{name.upper()}, {system['parameters'] / 1e6:.2f} M, {steps}"
        for task, s in system["scores"].items():
            gain = s["psnr"] - s["copy_psnr"]
            lines.append(
                f"| {title} | {task} | {s['psnr']:.2f} | {gain:+.2f} | {s['ssim']:.3f} "
                f"| {s['l1']:.4f} |"
            )
            title = ""
    machine = result["machine"]
    lines += [
        "",
        f"{result['minutes']:g} minutes of training each on {machine['threads']} of "
        f"{machine['cores']} cores, {machine['processor']}, "
        f"torch {result['versions']['torch']}, {result['date']}; {result['clips']} held-out "
        f"identities, {result['frames']} frames each, 64 px.",
    ]
    return "\n".join(lines)


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 12.0
    os.chdir(ROOT)
    result: dict[str, Any] = {
        "benchmark": "comparison",
        "date": date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": None,
        },
        "versions": {p: version(p) for p in ("lmdvid", "torch", "lightning", "numpy")}
        | {"python": platform.python_version()},
        "minutes": minutes,
        "systems": {},
    }
    checkpoints: dict[str, list[Path]] = {}
    for name in SYSTEMS:
        checkpoints[name] = []
        for experiment, share in budgets(minutes)[name]:
            before = checkpoints[name][-1] if checkpoints[name] else None
            checkpoints[name].append(train(experiment, share, before))
    batches = test_batches()
    result["clips"] = sum(len(batch["video"]) for batch in batches)
    result["frames"] = batches[0]["video"].shape[1]
    animators = {}
    for name, paths in checkpoints.items():
        print(f"{name.upper()}: {paths[-1]}", flush=True)
        animators[name] = Animator.from_pretrained(paths[-1], dtype=torch.float32)
        network: Any = animators[name].network
        stages = [experiment for experiment, _ in budgets(minutes)[name]]
        runs = [torch.load(path, weights_only=True, map_location="cpu") for path in paths]
        result["systems"][name] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "steps": {e: run["global_step"] for e, run in zip(stages, runs, strict=True)},
            "scores": evaluate(animators[name], batches),
            "curves": {e: curve(path) for e, path in zip(stages, paths, strict=True)},
        }
    draw(animators, batches[0])
    output = ROOT / "benchmarks/results/comparison.json"
    output.write_text(json.dumps(result, indent=1) + "\n")
    document = ROOT / "docs/comparison.md"
    text = document.read_text()
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.S)
    document.write_text(marked.sub(lambda m: f"{m[1]}{table(result)}\n{m[2]}", text))
    print(table(result))


if __name__ == "__main__":
    main()
