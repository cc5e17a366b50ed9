"""Callbacks: videos of what a task shows, its scores, and a log that survives a kill."""

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning as L
import torch
from einops import rearrange
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lmdvid.loggers import log_video
from lmdvid.metrics.batches import BatchScores
from lmdvid.metrics.detections import DetectionsError
from lmdvid.metrics.probe import PictureProbe, ProbeError, leakage
from lmdvid.metrics.protocols import ProtocolError, beyond, protocol
from lmdvid.networks import MissingWeightsError
from lmdvid.networks.features.frozen import VideoFeatures
from lmdvid.ops import Impl, use
from lmdvid.video import to_float, to_uint8, write_image, write_video


class ScoresError(ValueError):
    """Scores that were asked for are missing, or are beyond their limits; the text has them."""


class SampleVideos(L.Callback):
    """Write a task's panels side by side as one video per validation, for every logger.

    A task's `validation_step` and `test_step` return panels by name: pictures (B, 3, H, W) or
    clips (B, T, 3, H, W) in [-1, 1]. They become the columns of a video whose rows are clips.

    Args:
        clips: Rows, the first clips of the validation set.
        fps: Frames per second.
        output: Where testing writes its video and, beside it, a picture (`.png`) of moments spread
            over time; None writes neither.
    """

    def __init__(self, clips: int = 4, fps: int = 10, output: str | None = None) -> None:
        self.clips = clips
        self.fps = fps
        self.output = output
        self._rows: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the first clips' panels."""
        self._collect(trainer, outputs)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the first clips' panels, which may be long, if they are written."""
        if self.output is not None:
            self._collect(trainer, outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the video to every logger."""
        if not (rows := self._take()) or trainer.sanity_checking:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sample.mp4"
            write_video(path, to_uint8(stack(rows)), self.fps)
            log_video(trainer.loggers, "sample", path, trainer.global_step)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `output` and the picture beside it."""
        if self.output is None or not (rows := self._take()):
            return
        output = Path(self.output)
        write_video(output, to_uint8(stack(rows)), self.fps)
        write_image(output.with_suffix(".png"), to_uint8(moments(rows)))
        print(f"wrote {output} and {output.with_suffix('.png')}")

    def _collect(self, trainer: L.Trainer, outputs: Any) -> None:
        if not trainer.is_global_zero or not isinstance(outputs, dict):
            return
        shown = [panel for panel in outputs.values() if isinstance(panel, Tensor)]
        length = max((p.shape[1] for p in shown if p.ndim == 5), default=1)
        panels = [
            panel if panel.ndim == 5 else panel[:, None].expand(-1, length, -1, -1, -1)
            for panel in shown
        ]
        for row in zip(*panels, strict=True):
            if len(self._rows) < self.clips:
                self._rows.append(torch.stack([p.detach().float().cpu() for p in row]))

    def _take(self) -> list[Tensor]:
        rows, self._rows = self._rows, []
        return rows


class StoreScores(L.Callback):
    """Score what a task makes in testing by protocols, and store all scores as JSON.

    Every score that the task and other callbacks log is stored with what it depends on. Protocols
    add theirs as `test/NAME` and `test/NAME_SCORE`; the file has their results whole, in the form
    of `lmdvid evaluate`, so that only like is compared with like.

    A task's `test_step` returns under `compared` pairs of videos (B, T, 3, H, W), the results and
    the real ones: `own` are pictures animated by their own video's motion, `other` by another
    identity's, `noise` videos from noise. Networks are loaded before anything is generated.

    Args:
        output: The JSON file; None writes `scores.json` beside the logger's files.
        protocols: Their names, see `lmdvid evaluate --list`; without the weights that one of them
            needs, the test does not begin.
        published: More of them, each left out, and named, where its published weights are missing.
        weights: Folder of weights; None looks in LMDVID_WEIGHTS.
        detectors: Dotted paths of installed functions for AKD, MKR (`keypoints`), AED and CSIM
            (`identity`), see `lmdvid.metrics.detections.load_detector`; without one, the scores
            are null.
        fail_above: Highest values of scores by their names in the file; where one is above, the
            test fails once everything is stored.
        fail_below: The same for lowest values, of scores that are better the higher they are.

    Raises:
        ProtocolError: There is no such protocol, or the task does not make what it compares.
        DetectionsError: No protocol uses the detector, or there is none.
        WeightsError: Weights are missing, or are others than the published ones.
        ScoresError: When all is stored: scores are beyond their limits, or `protocols` have too
            few clips for theirs.
    """

    def __init__(
        self,
        output: str | None = None,
        protocols: Sequence[str] = (),
        published: Sequence[str] = (),
        weights: str | None = None,
        detectors: Mapping[str, str] | None = None,
        fail_above: Mapping[str, float] | None = None,
        fail_below: Mapping[str, float] | None = None,
    ) -> None:
        self.output = output
        self.protocols = [protocol(name) for name in protocols]
        self.published = [protocol(name) for name in published]
        self.fail_above = fail_above
        self.fail_below = fail_below
        used = sorted({kind for by in self.protocols + self.published for kind in by.detections})
        if unknown := sorted(set(detectors or {}) - set(used)):
            raise DetectionsError(
                f"StoreScores: its protocols use no detector of {' and '.join(unknown)}, but of "
                f"{' and '.join(used) or 'nothing'}"
            )
        self.weights = weights
        self.detectors = detectors

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load what the protocols need, before anything is generated."""
        self._scores: list[BatchScores] = []
        self._results: list[dict[str, Any]] = []
        self._left_out: dict[str, str] = {}
        self._failures: list[str] = []
        self._content: dict[str, str] = {}
        self._given: set[tuple[int, int, int]] = set()
        if stage != "test":
            return
        networks: dict[str, VideoFeatures] = {}
        options = self.weights, trainer.strategy.root_device, self.detectors, networks
        for by in self.protocols:
            self._scores.append(BatchScores(by, *options))
        for by in self.published:
            try:
                self._scores.append(BatchScores(by, *options))
            except MissingWeightsError as error:
                self._left_out[by.name] = " ".join(str(error).split())
        if self._left_out and trainer.is_global_zero:
            print(
                f"left out, without their weights: {', '.join(self._left_out)} (`lmdvid weights` "
                "says where to get them)"
            )

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *args: Any
    ) -> None:
        """Refuse data without another's motion before anything is generated."""
        for scores in self._scores:
            if scores.by.motion == "other" and "cross_driving" not in batch:
                raise ProtocolError(
                    f"StoreScores: {scores.by.name} compares videos that another's motion drives, "
                    "which this data does not give: where it animates, set data.init_args.cross "
                    "true, else leave the protocol out"
                )

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        """Compare this batch's videos."""
        keys, real = list(map(str, batch["key"])), batch["video"]
        self._given.add((real.shape[1], *real.shape[-2:]))
        for key, video in zip(keys, to_uint8(real.cpu()), strict=True):
            self._content[key] = sha256(video.numpy().tobytes()).hexdigest()
        compared = outputs.get("compared", {}) if isinstance(outputs, dict) else {}
        for scores in self._scores:
            by = scores.by
            kind = "noise" if "noise" in compared and by.motion == "own" else by.motion
            pairs = by.pixels is not None or bool(by.detections)
            if kind not in compared or (kind == "noise" and pairs):
                given = ", ".join(compared) or "nothing"
                wanted = "own or noise" if by.motion == "own" and not pairs else by.motion
                raise ProtocolError(
                    f"StoreScores: {by.name} compares videos of the kind {wanted}, but "
                    f"{type(pl_module).__name__} gives {given}; leave the protocol out"
                )
            scores.update(keys, *compared[kind], source=real[:, 0])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the protocols' scores."""
        for scores in self._scores:
            name = scores.by.name
            result = scores.compute()
            self._results.append(result)
            if result["missing"]:
                reasons = "; ".join(dict.fromkeys(result["missing"].values()))
                self._left_out[name] = f"no {', '.join(result['missing'])}: {reasons}"
                if scores.by in self.protocols:
                    self._failures.append(self._left_out[name])
            for score, value in result["scores"].items():
                if value is not None:
                    label = f"test/{name}" if score == name else f"test/{name}_{score}"
                    pl_module.log(label, value, sync_dist=True)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        # Finite or null: JSON has nothing else.
        scores = {
            name.removeprefix("test/"): value.item() if value.isfinite() else None
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith("test/")
        }
        self._failures += beyond(scores, self.fail_above, self.fail_below)
        seen = (self._content, self._given, [s.too_short for s in self._scores])
        parts: list[Any] = [seen]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
        # All processes must ask for the folder.
        path = Path(self.output) if self.output else Path(trainer.log_dir or ".", "scores.json")
        if not trainer.is_global_zero:
            return
        content = {key: digest for part in parts for key, digest in part[0].items()}
        shapes = sorted({shape for part in parts for shape in part[1]})
        shared = {
            "real_content": sha256(json.dumps(sorted(content.items())).encode()).hexdigest(),
            "split": "test",
            "codec": "none: generated frames are compared as they are",
            "size_given": sorted({f"{height} x {width}" for _, height, width in shapes}),
            "frames_given": [shapes[0][0], shapes[-1][0]] if shapes else None,
        }
        short = {
            one.by.name: sorted(name for part in parts for name in part[2][index])
            for index, one in enumerate(self._scores)
        }
        for result in self._results:
            result |= shared | {"too_short": short[result["protocol"]["name"]]}
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        stored = {
            "scores": scores,
            "clips": len(content),
            "task": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "data": None if data is None else f"{type(data).__module__}.{type(data).__qualname__}",
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "protocols": self._results,
            "left_out": self._left_out,
            "torch": torch.__version__,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stored, indent=2) + "\n")
        for name, reason in self._left_out.items():
            print(f"{name}: {reason}")
        for result in self._results:
            if result["bias"] and "fewer" in result["bias"]:
                print(f"{result['protocol']['name']}: {result['bias']['fewer']}")
        print(f"wrote {path}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Fail where scores are missing or beyond their limits: the table has been shown."""
        if stage == "test" and self._failures:
            raise ScoresError("the test has failed: " + "\n  ".join(self._failures))


class ProbeScores(L.Callback):
    """Pose error and identity leakage of animations, where pose and identity are known.

    Before testing two `PictureProbe`s learn to read pose and identity off real training pictures;
    each process brings its share, and all learn from all of them. Then, over the panels `result`,
    `truth` and `driving` of a cross-identity test, in standard deviations of the coordinates that
    the probe can read:
    `pose_error` is the mean |difference| of the pose read off result and truth; `still_pose_error`
    what the source standing still would have; `probe_pose_error` is how far the probe itself is
    from the exact pose of real test pictures. `identity_leak` is 0 where the result keeps the
    source's identity, 1 where it shows the driver's, see `leakage`.

    Args:
        pictures: Real pictures to learn from.

    Raises:
        ProbeError: There is no data module, or its clips are too few or lack pose or identity.
    """

    def __init__(self, pictures: int = 1200) -> None:
        self.pictures = pictures
        self._probes: dict[str, PictureProbe] = {}
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what has nothing to learn from."""
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if stage == "test" and data is None:
            raise ProbeError("ProbeScores learns from the training clips of a data module")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train the probes."""
        self._sums = {}
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        # Test alone does not set the training clips up.
        data.setup("fit")
        probe = PictureProbe().to(pl_module.device)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        count = 0
        for batch in data.train_dataloader():
            if missing := {"identity", "pose"} - set(batch):
                raise ProbeError(
                    f"ProbeScores needs {' and '.join(sorted(missing))} in every batch; only data "
                    "with known poses and identities, such as puppets, has them"
                )
            video = batch["video"]
            video = to_float(video) if video.dtype == torch.uint8 else video
            count += video.shape[0] * video.shape[1]
            found.append(
                (
                    probe.features(video.flatten(0, 1).to(pl_module.device)),
                    batch["pose"].flatten(0, 1),
                    batch["identity"].repeat_interleave(video.shape[1], 0),
                )
            )
            if count * trainer.world_size >= self.pictures:
                break
        share = [torch.cat(parts).cpu() for parts in zip(*found, strict=True)]
        shares: list[Any] = [share]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, share)
        features, pose, identity = (
            torch.cat(parts).to(pl_module.device) for parts in zip(*shares, strict=True)
        )
        groups = identity.unique(dim=0, return_inverse=True)[1]
        for name, targets in (("pose", pose), ("identity", identity)):
            fitted = PictureProbe(probe.network).fit(features, targets, groups)
            if not fitted.readable.any():
                raise ProbeError(
                    f"ProbeScores: {len(features)} pictures of {len(groups.unique())} identities "
                    f"are too few to read any {name} off; raise `pictures` or draw more identities"
                )
            self._probes[name] = fitted

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        """Read pose and identity off this batch's panels."""
        if "truth" not in outputs:
            return
        frames = {name: outputs[name].flatten(0, 1) for name in ("result", "truth", "driving")}
        length = outputs["result"].shape[1]
        frames["source"] = outputs["source"].repeat_interleave(length, 0)
        pose, identity = self._probes["pose"], self._probes["identity"]
        read = {name: pose(images) for name, images in frames.items()}
        for score, name in (("pose_error", "result"), ("still_pose_error", "source")):
            self._add(score, (read[name] - read["truth"]).abs())
        true = pose.normalise(batch["pose"].flatten(0, 1))
        self._add("probe_pose_error", (pose(batch["video"].flatten(0, 1)) - true).abs())
        sides = [identity(frames[name]) for name in ("result", "truth", "driving")]
        self._add_up("identity_leak", *leakage(*sides))

    def _add(self, name: str, errors: Tensor) -> None:
        self._add_up(name, errors.sum(), torch.tensor(errors.numel(), device=errors.device))

    def _add_up(self, name: str, total: Tensor, weight: Tensor) -> None:
        before = self._sums.get(name, (0, 0))
        self._sums[name] = (before[0] + total, before[1] + weight)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores."""
        for name, (total, weight) in self._sums.items():
            total, weight = (trainer.strategy.reduce(x, reduce_op="sum") for x in (total, weight))
            pl_module.log(f"test/{name}", (total / weight).float(), sync_dist=True)
        for name, probe in self._probes.items():
            readable = probe.readable.sum().float()
            pl_module.log(f"test/{name}_coordinates", readable, sync_dist=True)


class PredictionVideos(L.Callback):
    """Write what `lightning predict` makes, one video per key.

    A task's `predict_step` returns `key`, a list of names, and `video` (B, T, 3, H, W) in [-1, 1].

    Args:
        folder: Where `<key>.mp4` goes.
        fps: Frames per second.
    """

    def __init__(self, folder: str, fps: int = 25) -> None:
        self.folder = Path(folder)
        self.fps = fps
        self._wrote = False

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Write this batch's videos."""
        for key, video in zip(outputs["key"], outputs["video"], strict=True):
            name = str(key).replace("/", "_").removesuffix(".mp4")
            write_video(self.folder / f"{name}.mp4", to_uint8(video.cpu()), self.fps)
            self._wrote = True

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where they are."""
        if trainer.is_global_zero and self._wrote:
            print(f"wrote the videos in {self.folder}")


class Operations(L.Callback):
    """Choose the implementation of the networks' operations for a run, see `lmdvid.ops.use`.

    Args:
        impl: `auto`, `reference` (plain PyTorch) or `triton`, which fails where it cannot run.
    """

    def __init__(self, impl: Impl) -> None:
        self.impl: Impl = impl

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose, until the end of the run."""
        self._restore = use(self.impl)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the choice as it was."""
        self._restore.__exit__()


class ContinuedLog(L.Callback):
    """Keep metrics.csv whole through kills: the command line adds this to every training.

    Every row is written as it is logged. A resumed run has a folder of its own; its metrics.csv
    begins with the rows that the run it goes on from logged before the checkpoint, so that each
    step is there once. The earlier run's file stays as it is. A step's row is logged after its
    checkpoint: only a kill between the two costs a row. A validation that follows the checkpoint's
    step is made again, see `make_up_validation`, and its row takes the earlier one's place.

    What ModelCheckpoints remember of the earlier folder, such as the best score, they keep, which
    Lightning would have them forget; the files there stay.

    The position in the epoch, too, is taken from where the loader stands: Lightning counts the
    batches of the earlier run, which had other ones if it had other processes or batch sizes.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[CSVLogger, list[dict[str, Any]]]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the earlier rows, and count the batches that are behind."""
        _continue_epoch(trainer)
        self._waiting = []
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger._flush_logs_every_n_steps = 1  # Lightning writes at every hundredth step
                if trainer.ckpt_path:
                    earlier = Path(trainer.ckpt_path).parent.parent / "metrics.csv"
                    # As many rows as batches; `global_step` leaves out those that were skipped.
                    last = trainer.fit_loop.total_batch_idx
                    rows, waiting = earlier_rows(earlier, last + 1), []
                    while rows and int(rows[-1]["step"]) == last and _validates(rows[-1]):
                        waiting.insert(0, rows.pop())
                    self._waiting.append((logger, waiting))
                    logger.experiment.metrics = rows + logger.experiment.metrics
                    logger.save()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let what ModelCheckpoints remember count in the new folder."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                state["dirpath"] = callback.dirpath

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let its row be the only one."""
        self._waiting = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the earlier validation's row after all: the task has not made it again."""
        for logger, rows in self._waiting:
            logger.experiment.metrics += rows
        self._waiting = []


def _validates(row: dict[str, Any]) -> bool:
    return any(name.startswith("val") for name in row)


def _continue_epoch(trainer: L.Trainer) -> None:
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    progress = trainer.fit_loop.epoch_loop.batch_progress
    behind = getattr(loaders[0], "batches_drawn", 0) if len(loaders) == 1 else 0
    if not behind or progress.is_last_batch or progress.current.ready == behind:
        return
    current = progress.current
    unfinished = current.ready - current.completed  # its checkpoint was written within a batch
    for count in ("ready", "started", "processed"):
        setattr(current, count, behind)
    current.completed = behind - unfinished


def earlier_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Rows of a metrics.csv, none where there is no such file, that were logged before a step."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]


def stack(rows: list[Tensor]) -> Tensor:
    """Rows of panels (P, T, 3, H, W) to one clip (T, 3, rows H, P W) of the shortest length."""
    length = min(row.shape[1] for row in rows)
    grid = torch.stack([row[:, :length] for row in rows])
    return rearrange(grid, "r p t c h w -> t c (r h) (p w)")


def moments(rows: list[Tensor]) -> Tensor:
    """Rows of panels (P, T, 3, H, W) to a picture (3, rows H, P W), each row at another time."""
    lines = []
    for i, row in enumerate(rows):
        frame = row[:, (i + 1) * row.shape[1] // (len(rows) + 1)]
        lines.append(rearrange(frame, "p c h w -> c h (p w)"))
    return torch.cat(lines, dim=1)
