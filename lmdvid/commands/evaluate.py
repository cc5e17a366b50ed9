"""``lmdvid evaluate``."""

import argparse
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmdvid.commands import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = "score a folder of generated videos against real ones by a named protocol"
EPILOG = (
    "Several processes share the work: torchrun --nproc-per-node 4 -m lmdvid evaluate ... "
    "Exit code 1 where a limit is exceeded. Protocols: lmdvid evaluate --list"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the folders, the protocol and the result."""
    add = parser.add_argument
    add("--real", metavar="DIR", help="folder of real videos (and pictures' folders, .npy files)")
    add("--fake", metavar="DIR", help="folder of generated videos")
    add(
        "--protocol",
        default="fd_effnetlite0_16f",
        metavar="NAME",
        help="default: %(default)s, which needs no download",
    )
    add("--list", action="store_true", help="list the protocols and stop")
    add("--output", metavar="FILE", help="JSON of the whole result")
    add("--weights", metavar="PATH", help="file of the network, or its folder (LMDVID_WEIGHTS)")
    for kind, what in (("keypoints", "key points"), ("identity", "identity embeddings")):
        add(
            f"--{kind}",
            nargs=2,
            metavar=("FAKE", "REAL"),
            help=f".npz or .csv with {what} that a detector found in each video",
        )
    add("--extrapolate", action="store_true", help="also estimate the distance for infinite N")
    add(
        "--fail-above",
        action="append",
        default=[],
        type=_limit,
        metavar="[SCORE=]VALUE",
        help="exit code 1 where a score, the first one unless named, is above; may be repeated",
    )
    add(
        "--fail-below",
        action="append",
        default=[],
        type=_limit,
        metavar="[SCORE=]VALUE",
        help="the same where it is below: for scores that are better the higher they are",
    )
    add("--against", metavar="FILE", help="JSON of an earlier result of the same protocol")
    add("--batch-size", type=int, default=8, metavar="N", help="clips at once (%(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="processes that decode (%(default)s)")
    add("--no-cache", action="store_true", help="neither use nor keep statistics of real videos")
    add("--wandb", metavar="PROJECT", help="also log the scores to Weights & Biases")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; default: the fastest one here")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Score, show and store; compare with a limit and with an earlier result."""
    from lmdvid.metrics.protocols import PROTOCOLS, beyond, check_comparable, protocol

    if options.list:
        width = max(map(len, PROTOCOLS))
        print("\n".join(f"{name:{width}}  {p.about}" for name, p in PROTOCOLS.items()))
        return 0
    for name in ("real", "fake"):
        if getattr(options, name) is None:
            parser.error(f"argument --{name}: is needed")
    for name, least in (("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < least:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"argument {option}: must be {least} or more")
    by = protocol(options.protocol)
    known = [name for names in by.scores(options.extrapolate).values() for name in names]
    above, below = (
        {name or known[0]: value for name, value in limits}
        for limits in (options.fail_above, options.fail_below)
    )
    if unknown := (set(above) | set(below)) - set(known):
        raise UsageError(f"no score {', '.join(sorted(unknown))}: {by.name} has {', '.join(known)}")
    earlier = _earlier(options.against) if options.against else None
    if earlier is not None:  # before an hour of work, where that can be told
        check_comparable({"protocol": earlier.get("protocol")}, {"protocol": by.describe()})

    from data_modules.index import find_clips
    from lmdvid.evaluate import evaluate
    from lmdvid.pretrained import choose_device
    from lmdvid.video import ARRAY_SUFFIXES, VIDEO_SUFFIXES

    folders = [Path(path).expanduser() for path in (options.real, options.fake)]
    found = [find_clips(folder, VIDEO_SUFFIXES | ARRAY_SUFFIXES) for folder in folders]
    for folder, clips in zip(folders, found, strict=True):
        if not clips:
            raise UsageError(
                f"{folder} holds no clip: neither videos, gifs nor folders of pictures"
            )
    detections = {
        kind: tuple(files)
        for kind in ("keypoints", "identity")
        if (files := getattr(options, kind)) is not None
    }
    with _processes(options.device) as (rank, device):
        result = evaluate(
            found[0],
            found[1],
            by,
            weights=options.weights,
            detections=detections,
            extrapolate=options.extrapolate,
            device=choose_device(device),
            batch_size=options.batch_size,
            workers=options.workers,
            cache=None if options.no_cache else _cache(),
            progress=True,
        )
    scores: dict[str, float | None] = result["scores"]
    if rank == 0:
        if options.output:
            path = Path(options.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n")
        if earlier is not None:
            check_comparable(earlier, result)
        _show(result, earlier)
        if options.output:
            print(f"wrote {options.output}")
        if options.wandb:
            _log(options.wandb, result)
    exceeded = beyond(scores, above, below)
    for line in exceeded if rank == 0 else ():
        print(f"FAILED: {line}")
    return int(bool(exceeded))


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number such as 120, or a score's name and one such as lpips=0.2; "
            f"given {text}"
        ) from None


def _earlier(path: str) -> dict[str, Any]:
    try:
        result = json.loads(Path(path).read_text())
        if not isinstance(result["scores"], dict):
            raise ValueError
        if "protocols" not in result:
            result["protocol"]["name"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no result of lmdvid evaluate --output") from None
    if "protocols" in result:
        raise UsageError(
            f"{path} is of lightning test, whose videos never were files: give the result of an "
            "earlier lmdvid evaluate --output"
        )
    return result


def _cache() -> Path | None:
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        return None
    return Path(base, "lmdvid", "statistics")


@contextmanager
def _processes(device: str) -> "Iterator[tuple[int, str]]":
    """The process group that torchrun asks for; this process's rank and device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, device
        return
    import torch
    import torch.distributed as dist

    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()


def _show(result: dict[str, Any], earlier: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=result["protocol"]["name"])
    table.add_column("score")
    table.add_column("value", justify="right")
    if earlier is not None:
        table.add_column("earlier", justify="right")
    for name, value in result["scores"].items():
        row = [name, _number(value)]
        table.add_row(*row, *([_number(earlier["scores"].get(name))] if earlier else []))
    console = Console()
    console.print(table)
    print(
        ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in result["counts"].items())
    )
    if bias := result["bias"]:
        expected = f"{bias['expected']:.4g}: " if "expected" in bias else ""
        print(f"bias of N: {expected}{bias['note']}")
        if "fewer" in bias:
            print(bias["fewer"])
    if result["real_from_cache"]:
        print("real statistics: from the cache, no real clip was decoded")
    for side, report in result["sets"].items():
        for what in ("broken", "too_short"):
            if names := list(report[what]):
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                listed = ", ".join(names[:5])
                print(f"{len(names)} {side} clips {what.replace('_', ' ')}: {listed}{more}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _log(project: str, result: dict[str, Any]) -> None:
    from lmdvid.loggers import WandbLogger

    logger = WandbLogger(project=project, save_dir="runs", name=result["protocol"]["name"])
    logger.log_hyperparams({k: v for k, v in result.items() if k not in ("scores", "sets")})
    logger.log_metrics({k: v for k, v in result["scores"].items() if v is not None})
    logger.experiment.finish()
