"""Folders of videos to scores by a named protocol: one clip of each process in memory at a time."""

import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rich.progress import MofNCompleteColumn, Progress
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lmdvid.metrics.animation import (
    IdentityScores,
    KeypointScores,
    ReconstructionScores,
    pairs_of,
)
from lmdvid.metrics.detections import SCORES, as_points, load_detections
from lmdvid.metrics.protocols import NETWORKS, Protocol, Side, protocol
from lmdvid.metrics.samples import TooFewError
from lmdvid.metrics.sets import SetScores
from lmdvid.networks.features.lpips import LPIPS
from lmdvid.video import (
    VideoReadError,
    probe,
    read_clip,
    stream_frames,
    to_float,
    without_suffix,
)

_LARGEST_BATCH = 2**25  # numbers of a batch of clips: 128 MB in float32
_PART = 16  # frames of a long video at a time
_NAMED = 5  # broken files in a message; the result has all

Clips = Mapping[str, Path]


class EvaluationError(ValueError):
    """The folders cannot be scored as asked; the text says why."""


@dataclass
class _Set:
    """One side: what is looked at, and what became of it in all processes."""

    side: Side
    clips: dict[str, Path]
    limit: int | None
    looked_at: int = 0
    """Clips tried, the first ones by name."""
    broken: dict[str, str] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)
    decoded: int = 0
    """Clips decoded by all processes, and by this one."""
    decoded_here: int = 0

    @property
    def usable(self) -> int:
        return self.looked_at - len(self.broken) - len(self.short)

    def first(self) -> dict[str, Path]:
        """Return the clips that a limit takes if all can be used."""
        return dict(list(self.clips.items())[: self.limit])

    def more(self) -> dict[str, Path]:
        """Return the clips to look at next: as many as the limit still lacks; none at the end."""
        lacking = None if self.limit is None else self.limit - self.usable
        chosen = list(self.clips.items())[self.looked_at :][:lacking]
        self.looked_at += len(chosen)
        return dict(chosen)

    def gather(self) -> None:
        """Tell all processes what each has seen."""
        parts = _gather((self.broken, self.short, self.decoded_here))
        self.broken = dict(sorted((k, v) for p in parts for k, v in p[0].items()))
        self.short = sorted({key for p in parts for key in p[1]})
        self.decoded = sum(p[2] for p in parts)

    def report(self) -> dict[str, Any]:
        return {
            "found": len(self.clips),
            "looked_at": self.looked_at,
            "decoded": self.decoded,
            "broken": self.broken,
            "too_short": self.short,
        }


def evaluate(
    real: Clips,
    fake: Clips,
    by: Protocol | str,
    *,
    weights: str | Path | None = None,
    detections: Mapping[str, tuple[str | Path, str | Path]] | None = None,
    extrapolate: bool = False,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    workers: int = 0,
    cache: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score generated videos against real ones.

    In a process group every process takes its share of the clips, without filling up, and all
    return the same result. Files that cannot be read are left out, named and counted.

    Args:
        real: Real videos by name.
        fake: Generated videos by name; pairs are of one name, whatever the suffix.
        by: A protocol or its name.
        weights: File of its network, or a folder; None looks in LMDVID_WEIGHTS.
        detections: For `keypoints` and `identity`, the file of the generated and of the real
            videos; see `load_detections`. The second has every real video or, where another's
            motion drives, for each generated one the picture that it animates. Scores without
            files are None.
        extrapolate: Also estimate the distance for infinitely many clips. This, KVD, precision and
            recall need all features, so only protocols of clips with a limit have them.
        device: Where networks run.
        batch_size: Clips at once; large ones go one at a time.
        workers: Processes that decode; 0 decodes in this one.
        cache: Folder for statistics of real sets, which are reused for the same content,
            protocol and weights; None keeps none.
        progress: Show how far it is.

    Returns:
        `scores` by name, and beside them all that a reader needs: `protocol`, `network`,
        `weights`, `detectors`, `counts` N of both sides, `real_content` (a hash), `sets` (what was
        found, decoded, broken, too short), `bias`, `real_from_cache`, `versions`, `seconds`.

    Raises:
        ProtocolError: There is no protocol of this name, or it cannot be extrapolated.
        EvaluationError: Too few videos can be read, or pairs are not complete.
        WeightsError: The network's file is missing or is another one.
        DetectionsError: A detector's file cannot be used.
    """
    start = time.monotonic()
    by = protocol(by) if isinstance(by, str) else by
    device = torch.device(device)
    sets = [_Set(side, dict(sorted(clips.items())), by.limit) for side, clips in _sides(real, fake)]
    for one in sets:
        if not one.clips:
            raise EvaluationError(f"there is no {_word(one.side)} video")
    result: dict[str, Any] = {
        "scores": {name: None for names in by.scores(extrapolate).values() for name in names},
        "protocol": by.describe(),
        "network": None,
        "weights": {},
        "detectors": {},
        "counts": {},
        "bias": None,
        "real_from_cache": False,
    }
    _compare_detections(result, sets, by, detections or {})  # a wrong file costs no hour of work
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    shown = progress and _rank() == 0
    with Progress(*columns, disable=not shown) as bar:
        if by.features:
            network = NETWORKS[by.features](weights).to(device)
            scores = SetScores(by, network, device, extrapolate)
            fewest = min(len(one.clips) for one in sets)
            if extrapolate and fewest < scores.minimum:  # before an hour of work
                raise EvaluationError(
                    f"{by.name}: an extrapolation in {network.dim} features needs {scores.minimum} "
                    f"clips of each side; there are {fewest}"
                )
            settings = _Settings(scores, device, batch_size, workers, bar)
            _compare_sets(result, sets, settings, None if cache is None else Path(cache))
        if by.pixels:
            _compare_pairs(result, sets, by, weights, device, bar)
    result["scores"] = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in result["scores"].items()
    }
    result["real_content"] = _content(sets[0].clips, sets[0].looked_at or None)
    result["sets"] = {one.side: one.report() for one in sets}
    result["versions"] = _versions()
    result["device"] = str(device)
    result["seconds"] = round(time.monotonic() - start, 2)
    return result


@dataclass
class _Settings:
    scores: SetScores
    device: torch.device
    batch_size: int
    workers: int
    bar: Progress


class _Windows(Dataset):
    """The frames to compare of each clip of one process, or why there are none."""

    def __init__(self, by: Protocol, side: Side, clips: list[tuple[str, Path]]) -> None:
        self.by = by
        self.side: Side = side
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[str, Tensor | str | None]:
        key, path = self.clips[index]
        try:
            indices = self.by.indices(key, probe(path).frames, self.side)
            return key, None if indices is None else read_clip(path, indices)
        except VideoReadError as error:
            return key, error.reason


def _embed(one: _Set, settings: _Settings) -> None:
    """Give the features of as many clips as the limit takes, and keep account in `one`."""
    while more := one.more():
        for clips in _batches(one, list(more.items())[_rank() :: _world()], settings):
            settings.scores.update(to_float(clips.to(settings.device)), one.side == "real")
        one.gather()


def _batches(one: _Set, share: list[tuple[str, Path]], settings: _Settings) -> Iterator[Tensor]:
    """Yield bytes (B, T, H, W, 3) of clips of one size."""
    windows = _Windows(settings.scores.by, one.side, share)
    # A clip at a time, so that no more than two for each worker wait in memory.
    loader = DataLoader(windows, batch_size=None, **_workers(settings.workers))
    task = settings.bar.add_task(f"{_word(one.side)} clips", total=len(share))
    waiting: list[Tensor] = []
    for key, clip in loader:
        settings.bar.advance(task)
        if clip is None:
            one.short.append(key)
        elif isinstance(clip, str):
            one.broken[key] = clip
        else:
            one.decoded_here += 1
            most = min(settings.batch_size, max(1, _LARGEST_BATCH // clip.numel()))
            if waiting and (waiting[0].shape != clip.shape or len(waiting) >= most):
                yield torch.stack(waiting)
                waiting = []
            waiting.append(clip)
    if waiting:
        yield torch.stack(waiting)


def _workers(number: int) -> dict[str, Any]:
    if number == 0:
        return {}
    # Never fork: a forked child hangs when it frees decoders that the parent once opened.
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    return {"num_workers": number, "multiprocessing_context": method}


def _compare_sets(
    result: dict[str, Any], sets: list[_Set], settings: _Settings, cache: Path | None
) -> None:
    scores, by = settings.scores, settings.scores.by
    result["network"] = scores.describe()
    result["weights"][by.features] = scores.network.digest
    known = cache and cache / f"{_cache_key(result, sets[0])}.safetensors"
    statistics = _known(known, sets[0]) if known else None
    result["real_from_cache"] = statistics is not None
    for one in sets:
        if one.side == "fake" or statistics is None:
            _embed(one, settings)
        elif _rank() == 0:
            scores.restore(statistics)
        if one.side == "real" and known and statistics is None:
            _save(known, scores.snapshot(), one)
    result["counts"] |= scores.counts()
    try:
        result["scores"] |= scores.compute()
    except TooFewError as error:
        short = f"fewer than {by.frames * by.stride} frames"
        lost = [f"{name}: {why}" for one in sets for name, why in one.broken.items()]
        lost += [f"{name}: {short}" for one in sets for name in one.short]
        lines = "".join(f"\n  {line}" for line in lost[:_NAMED])
        raise EvaluationError(f"{error}{lines}") from None
    result["bias"] = scores.bias()


def _compare_pairs(
    result: dict[str, Any],
    sets: list[_Set],
    by: Protocol,
    weights: str | Path | None,
    device: torch.device,
    bar: Progress,
) -> None:
    real, fake = map(_by_name, sets)
    if missing := sorted(set(real) - set(fake)):
        raise EvaluationError(
            f"{by.name} compares videos of one name: {len(missing)} of {len(real)} real ones have "
            f"no generated one, the first is {missing[0]}"
        )
    lpips = LPIPS(by.lpips, weights).to(device) if by.lpips else None
    if lpips:
        result["weights"][f"lpips_{by.lpips}"] = lpips.digest
    metric = ReconstructionScores(by.pixels or "video", lpips).to(device)
    names = sorted(real)[_rank() :: _world()]
    for name in bar.track(names, description="pairs"):
        try:
            scores = _pair(metric, fake[name][1], real[name][1], device)
        except VideoReadError as error:
            at_fault = sets[0] if error.path == real[name][1] else sets[1]
            at_fault.broken[real[name][0] if at_fault is sets[0] else fake[name][0]] = error.reason
            continue
        metric.add_video(scores)
        for one in sets:
            one.decoded_here += 1
    for one in sets:
        one.looked_at = len(one.first())
        one.gather()
    counted = "videos" if by.pixels == "video" else "frames"
    result["counts"][counted] = sum(_gather(int(metric.count)))
    try:
        result["scores"] |= {name: v.item() for name, v in metric.compute().items()}
    except ValueError:
        lost = [f"{name}: {why}" for one in sets for name, why in one.broken.items()]
        raise EvaluationError(
            f"{by.name}: no pair of videos can be compared"
            + "".join(f"\n  {line}" for line in lost[:_NAMED])
        ) from None


def _by_name(one: _Set) -> dict[str, tuple[str, Path]]:
    found: dict[str, tuple[str, Path]] = {}
    for key, path in one.first().items():
        name = without_suffix(key)
        if name in found:
            raise EvaluationError(
                f"the {_word(one.side)} videos {found[name][0]} and {key} are both called {name}; "
                "pairs are found by the name without suffix: leave one out"
            )
        found[name] = key, path
    return found


def _pair(metric: ReconstructionScores, fake: Path, real: Path, device: torch.device) -> Tensor:
    parts, pending = [], []
    for made, true in zip_longest(stream_frames(fake), stream_frames(real)):
        if made is None or true is None:
            raise VideoReadError(fake, "it has not as many frames as the real video")
        if made.shape != true.shape:
            sizes = "x".join(map(str, made.shape[:2])), "x".join(map(str, true.shape[:2]))
            raise VideoReadError(fake, f"its frames are {sizes[0]}, the real video's {sizes[1]}")
        pending.append((made, true))
        if len(pending) == _PART:
            parts.append(_part(metric, pending, device))
            pending = []
    if pending:
        parts.append(_part(metric, pending, device))
    return torch.cat(parts)


def _part(
    metric: ReconstructionScores, frames: list[tuple[Tensor, Tensor]], device: torch.device
) -> Tensor:
    made, true = (to_float(torch.stack(side).to(device)) for side in zip(*frames, strict=True))
    return metric.frame_scores(made, true)


def _compare_detections(
    result: dict[str, Any],
    sets: list[_Set],
    by: Protocol,
    files: Mapping[str, tuple[str | Path, str | Path]],
) -> None:
    metrics = {"keypoints": KeypointScores, "identity": IdentityScores}
    if unused := set(files) - set(by.detections):
        raise EvaluationError(f"{by.name} uses no {' and no '.join(sorted(unused))}")
    for kind in by.detections:
        if kind not in files:
            continue
        sides = [load_detections(path) for path in files[kind]]
        result["detectors"][kind] = {
            side: about for side, (_, about) in zip(("fake", "real"), sides, strict=True)
        }
        metric = metrics[kind](sync_on_compute=False)  # every process has read all of it
        fill = any(about["file"].endswith(".csv") for _, about in sides)
        made, real = sides[0][0], sides[1][0]
        # Where another's motion drives, generated videos have names of their own, by which the
        # pictures that they animate are called.
        shown = sets[1] if by.motion == "other" else sets[0]
        named = _by_name(shown)
        lacking = [name for name in named if name not in real and _can_be_read(named[name][1])]
        if wrong := [name for name in real if name not in named] + lacking:
            raise EvaluationError(
                f"{kind}: {files[kind][1]} must have the {len(shown.first())} clips of the "
                f"{_word(shown.side)} videos, named by their path below the folder; {wrong[0]} is "
                "only in one of the two"
            )
        if by.motion == "other":  # one row, of the source picture, stands for all frames
            real = {
                clip: rows.expand(len(made.get(clip, rows)), *rows.shape[1:])
                if len(rows) == 1
                else rows
                for clip, rows in real.items()
            }
        try:
            for _, found, true in pairs_of(made, real, fill):
                form = as_points if kind == "keypoints" else _as_rows
                metric.update(form(found), form(true))
            values = metric.compute()
            result["counts"][f"{kind}_frames"] = metric.true_frames()
        except ValueError as error:
            raise EvaluationError(f"{kind}: {error}") from None
        result["scores"] |= {name: values[name].item() for name in SCORES[kind]}


def _can_be_read(path: Path) -> bool:
    try:
        probe(path)
    except VideoReadError:
        return False
    return True


def _as_rows(values: Tensor) -> Tensor:
    return values.flatten(1)


def _content(clips: Clips, first: int | None) -> str:
    """Return a hash of the names and bytes of the first files."""
    share = list(clips.items())[:first][_rank() :: _world()]
    digests = {key: _digest(path) for key, path in share}
    whole = sorted(item for part in _gather(digests) for item in part.items())
    return sha256(json.dumps(whole).encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{file.name}\0".encode() if path.is_dir() else b"")
        try:
            with file.open("rb") as stream:
                while part := stream.read(1 << 20):
                    digest.update(part)
        except OSError as error:
            digest.update(str(error.strerror).encode())
    return digest.hexdigest()


_FORMAT = 2  # of the statistics; others are made again


def _cache_key(result: dict[str, Any], one: _Set) -> str:
    content = _content(one.clips, one.limit)
    parts = [result["protocol"], result["weights"], content, _FORMAT]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _save(path: Path, statistics: dict[str, Tensor], one: _Set) -> None:
    content = _content(one.clips, one.looked_at)
    if _rank() != 0:
        return
    account = {
        "broken": one.broken,
        "too_short": one.short,
        "looked_at": one.looked_at,
        "content": content,
    }
    data = torch.tensor(list(json.dumps(account).encode()), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({**statistics, "account": data}, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _known(path: Path, one: _Set) -> dict[str, Tensor] | None:
    """Return the statistics of a set where all processes have them and they are still of it."""
    try:
        statistics = load_file(path)
        account = json.loads(bytes(statistics.pop("account").tolist()))
    except (OSError, SafetensorError):  # none, or not whole: they are made again
        statistics, account = {}, {}
    if not all(_gather(bool(statistics))):
        return None
    # The file's name stands for the first clips only: where some of these could not be used, more
    # were looked at, and still more might be.
    seen = _Set(one.side, one.clips, one.limit, account["looked_at"])
    seen.broken, seen.short = account["broken"], account["too_short"]
    if account["content"] != _content(one.clips, seen.looked_at) or replace(seen).more():
        return None
    one.looked_at, one.broken, one.short = seen.looked_at, seen.broken, seen.short
    return statistics


def _sides(real: Clips, fake: Clips) -> tuple[tuple[Side, Clips], tuple[Side, Clips]]:
    return ("real", real), ("fake", fake)


def _word(side: Side) -> str:
    return "real" if side == "real" else "generated"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("lmdvid", "torchmetrics"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _in_group() else 0


def _world() -> int:
    return torch.distributed.get_world_size() if _in_group() else 1


def _gather(value: Any) -> list[Any]:
    if not _in_group():
        return [value]
    parts: list[Any] = [None] * _world()
    torch.distributed.all_gather_object(parts, value)
    return parts
