"""Folders of videos to scores by a named protocol: one clip of each process in memory at a time."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
from lmdvid.metrics.detections import as_points, load_detections
from lmdvid.metrics.frechet import (
    ExtrapolatedFrechetDistance,
    FrechetDistance,
    expected_distance,
)
from lmdvid.metrics.kernel import KernelDistance
from lmdvid.metrics.precision_recall import PrecisionRecall
from lmdvid.metrics.protocols import NETWORKS, Protocol, Side, protocol
from lmdvid.metrics.samples import TwoSampleMetric
from lmdvid.networks.features.frozen import VideoFeatures
from lmdvid.networks.features.lpips import LPIPS
from lmdvid.video import VideoReadError, probe, read_clip, stream_frames, to_float

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
    found: int
    broken: dict[str, str] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)
    decoded: int = 0

    def gather(self) -> None:
        """Add up what the processes have seen."""
        parts = _gather((self.broken, self.short, self.decoded))
        self.broken = dict(sorted((k, v) for p in parts for k, v in p[0].items()))
        self.short = sorted(key for p in parts for key in p[1])
        self.decoded = sum(p[2] for p in parts)

    def report(self) -> dict[str, Any]:
        return {
            "found": self.found,
            "looked_at": len(self.clips),
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
            videos; see `load_detections`. Scores without files are None.
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
        ProtocolError: There is no protocol of this name.
        EvaluationError: Too few videos can be read, or pairs are not complete.
        WeightsError: The network's file is missing or is another one.
        DetectionsError: A detector's file cannot be used.
    """
    start = time.monotonic()
    by = protocol(by) if isinstance(by, str) else by
    device = torch.device(device)
    sets = [
        _Set(side, dict(sorted(clips.items())[: by.limit]), len(clips))
        for side, clips in _sides(real, fake)
    ]
    for one in sets:
        if not one.clips:
            raise EvaluationError(f"there is no {_word(one.side)} video")
    result: dict[str, Any] = {
        "scores": {},
        "protocol": by.describe(),
        "network": None,
        "weights": {},
        "detectors": {},
        "counts": {},
        "bias": None,
        "real_from_cache": False,
    }
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    shown = progress and _rank() == 0
    with Progress(*columns, disable=not shown) as bar:
        if by.features:
            network = NETWORKS[by.features](weights).to(device)
            settings = _Settings(by, network, device, batch_size, workers, bar)
            _compare_sets(
                result, sets, settings, extrapolate, None if cache is None else Path(cache)
            )
        if by.pixels:
            _compare_pairs(result, sets, by, weights, device, bar)
    _compare_detections(result, by, detections or {})
    result["real_content"] = result.get("real_content") or _content(sets[0])
    result["sets"] = {one.side: one.report() for one in sets}
    result["versions"] = _versions()
    result["device"] = str(device)
    result["seconds"] = round(time.monotonic() - start, 2)
    return result


@dataclass
class _Settings:
    by: Protocol
    network: VideoFeatures
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


def _embed(one: _Set, settings: _Settings) -> Iterator[Tensor]:
    """Yield rows of features, and keep account in `one`."""
    share = list(one.clips.items())[_rank() :: _world()]
    windows = _Windows(settings.by, one.side, share)
    # A clip at a time, so that no more than two for each worker wait in memory.
    loader = DataLoader(windows, batch_size=None, num_workers=settings.workers)
    task = settings.bar.add_task(f"{_word(one.side)} clips", total=len(share))
    waiting: list[Tensor] = []
    for key, clip in loader:
        settings.bar.advance(task)
        if clip is None:
            one.short.append(key)
        elif isinstance(clip, str):
            one.broken[key] = clip
        else:
            one.decoded += 1
            most = min(settings.batch_size, max(1, _LARGEST_BATCH // clip.numel()))
            if waiting and (waiting[0].shape != clip.shape or len(waiting) >= most):
                yield _rows(waiting, settings)
                waiting = []
            waiting.append(clip)
    if waiting:
        yield _rows(waiting, settings)


def _rows(clips: list[Tensor], settings: _Settings) -> Tensor:
    return settings.network(to_float(torch.stack(clips).to(settings.device)))


def _compare_sets(
    result: dict[str, Any],
    sets: list[_Set],
    settings: _Settings,
    extrapolate: bool,
    cache: Path | None,
) -> None:
    by, network, device = settings.by, settings.network, settings.device
    distance = FrechetDistance(network.dim, by.ddof).to(device)
    metrics: dict[str, TwoSampleMetric] = {by.name: distance}
    # Rows are kept, and compared with each other, only where a limit bounds their number.
    keeps_rows = not network.per_frame and by.limit is not None
    if extrapolate and not keeps_rows:
        raise EvaluationError(f"{by.name} keeps no features: it cannot be extrapolated")
    if keeps_rows:
        metrics["kvd"] = KernelDistance(network.dim).to(device)
        metrics["precision_recall"] = PrecisionRecall(network.dim).to(device)
        if extrapolate:
            metrics["extrapolated"] = ExtrapolatedFrechetDistance(network.dim, by.ddof).to(device)

    result["network"] = {"name": by.features, "dim": network.dim, "resize": network.resize}
    result["weights"][by.features] = network.digest
    result["real_content"] = _content(sets[0])
    known = cache and cache / f"{_cache_key(result)}.safetensors"
    statistics = _agreed(_load(known)) if known else None
    result["real_from_cache"] = statistics is not None
    for one in sets:
        if one.side == "real" and statistics is not None:
            broken = json.loads(bytes(statistics.pop("broken").tolist()))
            one.broken, one.short = broken["broken"], broken["too_short"]
            if _rank() == 0:
                _restore(metrics, statistics)
            continue
        for rows in _embed(one, settings):
            for metric in metrics.values():
                metric.update(rows, real=one.side == "real")
        one.gather()
        if one.side == "real" and known:
            _save(known, _snapshot(metrics), one)

    counts = {
        f"{side}_{'frames' if network.per_frame else 'clips'}": _total(
            getattr(distance, f"{side}_count")
        )
        for side in ("real", "fake")
    }
    result["counts"] |= counts
    least = max(metric.minimum for metric in metrics.values())
    if min(counts.values()) < least:
        real, fake = counts.values()
        lost = [f"{name}: {why}" for one in sets for name, why in one.broken.items()]
        lost += [
            f"{name}: fewer than {by.frames * by.stride} frames" for s in sets for name in s.short
        ]
        raise EvaluationError(
            f"{by.name}: {real} real and {fake} generated samples can be used; at least {least} "
            "of each are needed" + "".join(f"\n  {line}" for line in lost[:_NAMED])
        )
    for name, metric in metrics.items():
        value = metric.compute()
        if isinstance(value, dict):
            result["scores"] |= {key: v.item() for key, v in value.items()}
        else:
            label = f"{by.name}_extrapolated" if name == "extrapolated" else name
            result["scores"][label] = value.item()
    result["bias"] = _bias(distance, counts, network.per_frame)


def _bias(distance: FrechetDistance, counts: dict[str, int], per_frame: bool) -> dict[str, Any]:
    """What the distance owes to the number of samples."""
    real, fake = counts.values()
    note: dict[str, Any] = {"real": real, "fake": fake, "features": distance.dim}
    if per_frame:
        note["note"] = "frames of one video are not independent: the bias is not known"
    elif min(real, fake) < 2 * distance.dim:
        note["note"] = (
            "fewer samples than twice the features: compare with distances of the same numbers only"
        )
    else:
        with distance.sync_context(should_sync=_world() > 1):
            eigenvalues = distance.real_eigenvalues()
        note["expected"] = expected_distance(eigenvalues, real, fake).item()
        note["note"] = "about what as many samples of one and the same distribution would give"
    return note


def _compare_pairs(
    result: dict[str, Any],
    sets: list[_Set],
    by: Protocol,
    weights: str | Path | None,
    device: torch.device,
    bar: Progress,
) -> None:
    real, fake = (
        {Path(k).with_suffix("").as_posix(): (k, p) for k, p in s.clips.items()} for s in sets
    )
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
            one.decoded += 1
    for one in sets:
        one.gather()
    result["counts"]["videos" if by.pixels == "video" else "frames"] = _total(metric.count)
    try:
        result["scores"] |= {name: v.item() for name, v in metric.compute().items()}
    except ValueError:
        lost = [f"{name}: {why}" for one in sets for name, why in one.broken.items()]
        raise EvaluationError(
            f"{by.name}: no pair of videos can be compared"
            + "".join(f"\n  {line}" for line in lost[:_NAMED])
        ) from None


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
    by: Protocol,
    files: Mapping[str, tuple[str | Path, str | Path]],
) -> None:
    metrics = {"keypoints": KeypointScores, "identity": IdentityScores}
    if unused := set(files) - set(by.detections):
        raise EvaluationError(f"{by.name} uses no {' and no '.join(sorted(unused))}")
    shown = {"keypoints": ("akd", "mkr"), "identity": ("aed", "csim", "missed")}
    for kind in by.detections:
        result["scores"] |= dict.fromkeys(shown[kind])
        if kind not in files:
            continue
        sides = [load_detections(path) for path in files[kind]]
        result["detectors"][kind] = {
            side: about for side, (_, about) in zip(("fake", "real"), sides, strict=True)
        }
        metric = metrics[kind](sync_on_compute=False)  # every process has read all of it
        fill = any(about["file"].endswith(".csv") for _, about in sides)
        try:
            for _, found, true in pairs_of(sides[0][0], sides[1][0], fill):
                form = as_points if kind == "keypoints" else _as_rows
                metric.update(form(found), form(true))
            values = metric.compute()
        except ValueError as error:
            raise EvaluationError(f"{kind}: {error}") from None
        result["scores"] |= {name: values[name].item() for name in shown[kind]}


def _as_rows(values: Tensor) -> Tensor:
    return values.flatten(1)


def _content(one: _Set) -> str:
    """Return a hash of the names and bytes of all its files."""
    share = list(one.clips.items())[_rank() :: _world()]
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


def _cache_key(result: dict[str, Any]) -> str:
    parts = [result["protocol"], result["weights"], result["real_content"], _FORMAT]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


_FORMAT = 1  # of the statistics; another one is made again


def _snapshot(metrics: Mapping[str, TwoSampleMetric]) -> dict[str, Tensor]:
    """Return the real side of all processes: the rows where they are kept, else the sums."""
    metric = next((m for m in metrics.values() if not isinstance(m, FrechetDistance)), None)
    metric = metric or next(iter(metrics.values()))
    with metric.sync_context(should_sync=_world() > 1):
        found = {"rows": metric.rows("real").cpu(), "count": metric.real_count.cpu()}
        if isinstance(metric, FrechetDistance):
            found |= {"sum": metric.real_sum.cpu(), "products": metric.real_products.cpu()}
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def _restore(metrics: Mapping[str, TwoSampleMetric], statistics: Mapping[str, Tensor]) -> None:
    for metric in metrics.values():
        device = metric.real_count.device
        if isinstance(metric, FrechetDistance) and "sum" in statistics:
            metric.real_sum = statistics["sum"].to(device)
            metric.real_products = statistics["products"].to(device)
            metric.real_count = statistics["count"].to(device)
            metric.real_rows = [statistics["rows"].to(device)]
        else:
            metric.update(statistics["rows"], real=True)


def _save(path: Path, statistics: dict[str, Tensor], one: _Set) -> None:
    if _rank() != 0:
        return
    account = json.dumps({"broken": one.broken, "too_short": one.short}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({**statistics, "broken": torch.tensor(list(account), dtype=torch.uint8)}, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):  # none, or not whole: it is made again
        return None


def _agreed(statistics: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """None unless every process has them."""
    return statistics if all(_gather(statistics is not None)) else None


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


def _total(count: Tensor) -> int:
    return sum(_gather(int(count)))
