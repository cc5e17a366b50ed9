"""Study a network's directions from end to end, and write what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from lmdvid.directions import (
    DIRECTIONS_FILE,
    Direction,
    Directions,
    directions_path,
    write_directions,
)
from lmdvid.generate import VideoGenerator
from lmdvid.interpret import InterpretationError, plots
from lmdvid.interpret.flow import REGION_NAMES, Regions, optical_flow, read_flow
from lmdvid.interpret.measure import (
    Batches,
    DirectionMotion,
    GroundTruth,
    Observed,
    Sweeps,
    compare_with_truth,
    direction_motion,
    dis_flow,
    leakage,
    name_of,
    observe,
    picture_jacobian,
    picture_sweeps,
    walk_sweeps,
    walks,
)
from lmdvid.interpret.report import Card, Report
from lmdvid.interpret.statistics import MagnitudeStatistics, magnitude_statistics
from lmdvid.manipulate import Manipulator, places, there_and_back
from lmdvid.pretrained import in_the_box, save_network
from lmdvid.video import to_uint8

Rotation = Literal["varimax", "supervised"]

_SHOWN = 3  # pictures or videos beside each other in a card
_ROUND = 24  # frames of a card's video
_FPS = 12
_FLOW_KEY = (
    "Colours of flow: the hue is where a pixel moves to, white stands still. Arrows are the mean "
    "flow while the magnitude grows; petals are the share of all flow by angle."
)


@dataclass(frozen=True)
class Settings:
    """How to study.

    Attributes:
        sweeps: Pictures, or videos from noise, that each direction moves.
        steps: Steps of a picture's sweep, each way.
        threshold: Flow vectors shorter than this, in pixels, are left out.
        regions: Of the flow's angles, see `flow.motion_by_angle`.
        places: Regions of the picture by name, (x, y, width, height) as shares of its side.
        fit_frames: Frames of training clips to learn regressions and rotations from.
        rotate: Study the directions after this rotation.
        save: Folder for the rotated network.
        save_sweeps: Folder for `000.npz`, ...: `positive` and `negative`, uint8 (K, T, H, W, 3),
            for another program to compute flow of.
        read_flow: Folder with that flow, see `flow.read_flow`.
        frames: Of each video from noise.
        shown: Directions of videos from noise to study, those that vary most.
        seed: Of their noise.
        pose_names: Of the known pose's coordinates.
        measured_on: The data, in words.
        progress: Show progress bars.
    """

    sweeps: int = 12
    steps: int = 4
    threshold: float = 0.1
    regions: Regions = "axes"
    places: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    fit_frames: int = 2000
    rotate: Rotation | None = None
    save: Path | None = None
    save_sweeps: Path | None = None
    read_flow: Path | None = None
    frames: int = 16
    shown: int = 8
    seed: int = 0
    pose_names: Sequence[str] | None = None
    measured_on: str = ""
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("sweeps", "steps", "fit_frames", "shown"):
            if getattr(self, name) < 1:
                raise InterpretationError(f"{name} is {getattr(self, name)}: choose 1 or more")
        if self.frames < 2:
            raise InterpretationError(f"frames is {self.frames}: motion needs 2 or more")
        if (self.rotate is None) != (self.save is None):
            raise InterpretationError("a rotation and the folder to save it in go together")


def study(
    network: nn.Module,
    checkpoint: str | Path,
    output: str | Path,
    batches: Callable[[Literal["fit", "held"]], Batches] | None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Measure a network's directions; write `index.html`, `report.json` and `directions.json`.

    Args:
        network: An animation network with directions, or a generator of videos from noise.
        checkpoint: Where it is from: `directions.json` goes beside it, too.
        output: Folder of the report.
        batches: Clips of training (`fit`) and held-out ones (`held`), see `measure.observe`; not
            needed for a generator from noise.
        settings: How.

    Returns:
        What `report.json` holds.

    Raises:
        InterpretationError: If the network has no directions, or the request makes no sense.
    """
    settings, output = settings or Settings(), Path(output)
    plots.check(flow=settings.read_flow is None)
    if not hasattr(network, "navigator"):
        name = type(network).__module__.rpartition(".")[2]
        raise InterpretationError(f"{checkpoint} holds the {name} network: it has no directions")
    output.mkdir(parents=True, exist_ok=True)
    report = Report("What each motion direction does", f"{checkpoint}: {_describe(network)}")
    if hasattr(network, "sample_codes"):
        if settings.rotate is not None:
            raise InterpretationError("rotations are for networks that animate pictures")
        directions = _study_videos(network, report, settings)  # pyright: ignore[reportArgumentType]
    else:
        if batches is None:
            raise InterpretationError("an animation network is studied on data: give --config")
        directions = _study_pictures(Manipulator(network), report, batches, settings)
    report.write(output)
    targets = [output / DIRECTIONS_FILE]
    if settings.save is not None:
        save_network(network, settings.save)
        targets.append(settings.save / DIRECTIONS_FILE)
    elif str(checkpoint) not in in_the_box():  # what is installed stays as it is
        targets.append(directions_path(checkpoint))
    for target in targets:
        write_directions(target, network.navigator, directions)  # pyright: ignore
    return report.numbers


def _describe(network: nn.Module) -> str:
    config: Mapping[str, Any] = getattr(network, "config", {})
    kind = type(network).__module__.rpartition(".")[2]
    facts = [f"{name} {config[name]}" for name in ("size", "dim", "directions") if name in config]
    count = sum(p.numel() for p in network.parameters())
    return f"{kind}, {', '.join(facts)}, {count:,} parameters"


def _masks(settings: Settings, size: int) -> dict[str, np.ndarray]:
    masks = {}
    for name, (x, y, width, height) in settings.places.items():
        mask = np.zeros((size, size), bool)
        left, top = round(x * size), round(y * size)
        mask[top : top + round(height * size), left : left + round(width * size)] = True
        if not mask.any():
            raise InterpretationError(
                f"region {name} is empty: give x, y, width and height as shares, such as "
                "mouth=0.35,0.6,0.3,0.2"
            )
        masks[name] = mask
    return masks


def _measured(
    settings: Settings, direction: int, sweeps: Sweeps, masks: Mapping[str, np.ndarray]
) -> DirectionMotion:
    if settings.save_sweeps is not None:
        settings.save_sweeps.mkdir(parents=True, exist_ok=True)
        path = settings.save_sweeps / f"{direction:03d}.npz"
        np.savez_compressed(path, positive=sweeps.positive, negative=sweeps.negative)
    flow = dis_flow
    if settings.read_flow is not None:
        path = settings.read_flow / f"{direction:03d}.npz"

        def flow(direction: int, sweeps: Sweeps) -> tuple[np.ndarray, np.ndarray]:
            return read_flow(path, sweeps.positive.shape)

    return direction_motion(direction, sweeps, flow, settings.threshold, settings.regions, masks)


# Networks that animate pictures


def _study_pictures(
    manipulator: Manipulator,
    report: Report,
    batches: Callable[[Literal["fit", "held"]], Batches],
    settings: Settings,
) -> Directions:
    held = observe(manipulator, batches("held"), pictures=max(settings.sweeps, _SHOWN))
    statistics = magnitude_statistics(held.alpha)
    found: GroundTruth | None = None
    jacobian = None
    if held.pose or settings.rotate == "varimax":
        jacobian = picture_jacobian(manipulator, held.pictures[:8], float(statistics.std.mean()))
    if held.pose and jacobian is not None:
        fit = observe(manipulator, batches("fit"), settings.fit_frames, transfer=False)
        names = settings.pose_names or [f"pose {i}" for i in range(held.pose[0].shape[1])]
        found = compare_with_truth(fit, held, names, jacobian)
    if settings.rotate is not None:
        held = _rotate(manipulator, held, found, jacobian, settings.rotate)
        statistics = magnitude_statistics(held.alpha)
    frames = sum(map(len, held.alpha))
    measured_on = f"{len(held.alpha)} held-out clips, {frames} frames, {settings.measured_on}"
    percentiles = statistics.percentiles.tolist()
    manipulator.known = Directions(measured_on, [Direction("", p) for p in percentiles])

    masks = _masks(settings, manipulator.size)
    motions, cards, names = [], [], []
    directions = range(manipulator.count)
    scores = found.scores[settings.rotate or "as trained"] if found else None
    for direction in track(directions, "directions", disable=not settings.progress):
        sweeps = picture_sweeps(
            manipulator, held.pictures[: settings.sweeps], direction, settings.steps
        )
        motion = _measured(settings, direction, sweeps, masks)
        factors = found.factors if found else None
        name = name_of(direction, motion, scores, factors, settings.regions)
        cards.append(_picture_card(manipulator, held.pictures, direction, name, motion, settings))
        motions.append(motion)
        names.append(name)
    leaks = leakage(held, statistics)
    _write_pictures(report, held, statistics, found, motions, names, cards, leaks, settings)
    report.numbers["measured_on"] = measured_on
    report.subtitle += f". Measured on {measured_on}."
    pairs = zip(names, percentiles, strict=True)
    return Directions(measured_on, [Direction(name, p) for name, p in pairs])


def _rotate(
    manipulator: Manipulator,
    held: Observed,
    found: GroundTruth | None,
    jacobian: np.ndarray | None,
    rotate: Rotation,
) -> Observed:
    if found is not None:
        rotation = found.rotations[rotate]
    elif rotate == "varimax" and jacobian is not None:
        from lmdvid.interpret.ground_truth import varimax

        rotation = varimax(jacobian)
    else:
        raise InterpretationError(
            "a supervised rotation needs data with known poses, such as puppets: choose varimax"
        )
    manipulator.network.rotate_directions(torch.from_numpy(rotation))  # pyright: ignore
    return held.rotated(rotation)


def _picture_card(
    manipulator: Manipulator,
    pictures: Tensor,
    direction: int,
    name: str,
    motion: DirectionMotion,
    settings: Settings,
) -> Card:
    assert manipulator.known is not None
    middle = manipulator.known[direction].middle
    shown = pictures[:_SHOWN]
    own = manipulator.network.encode_source(shown.to(manipulator.device)).codes[:, direction].cpu()

    def moved(path: Sequence[float], of: Tensor, starts: Tensor) -> np.ndarray:
        """Pictures (K, 3, S, S) at magnitudes of this direction, uint8 (K, T, S, S, 3)."""
        made = [
            manipulator.sweep(picture, direction, (middle + np.array(path) - start).tolist())
            for picture, start in zip(of, starts.tolist(), strict=True)
        ]
        return to_uint8(torch.stack(made).cpu()).numpy()

    reach = manipulator.reach(direction)
    videos = moved(there_and_back(reach, _ROUND), shown, own)
    strip = np.concatenate(list(moved(places(reach, 7), shown[:1], own[:1])[0]), axis=1)
    low, high = (f"{middle + end:+.2f}" for end in reach)
    return Card(
        direction,
        name,
        _remark(motion, settings.regions),
        plots.mp4(_with_flow(videos, settings, loops=True), _FPS),
        [plots.mean_flow_plot(motion.mean_flow, videos[0, 0]), plots.rose_plot(motion.rose)],
        plots.png(strip),
        (f"α = {low} (1st percentile)", f"α = {high} (99th percentile)"),
    )


def _remark(motion: DirectionMotion, regions: Regions) -> str:
    """Where the flow goes, the largest share first, if it goes anywhere."""
    shares = motion.positive.share
    if not shares.any():
        return "no flow above the threshold"
    most = int(shares.argmax())
    return f"{shares[most]:.0%} {REGION_NAMES[regions][most]}, {motion.length:.2f} px per step"


def _with_flow(videos: np.ndarray, settings: Settings, loops: bool) -> np.ndarray:
    """Videos (K, T, H, W, 3) in a row, (T, H or 2 H, K W, 3), their flow in colours below."""
    row = np.concatenate(list(videos), axis=2)
    if settings.read_flow is not None:
        return row
    # The last frame of a loop moves on to the first one.
    end = videos[:, :1] if loops else videos[:, -1:]
    closed = np.concatenate([videos, end], axis=1)
    flow = np.stack([optical_flow(video) for video in closed])
    largest = float(np.percentile(np.linalg.norm(flow, axis=-1), 99.5))
    colours = plots.flow_colours(flow, max(largest, settings.threshold))
    return np.concatenate([row, np.concatenate(list(colours), axis=2)], axis=1)


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _motion_table(
    report: Report,
    directions: Sequence[int],
    names: Sequence[str],
    motions: Sequence[DirectionMotion],
    settings: Settings,
    extra: Mapping[str, Sequence[str]],
) -> None:
    where = REGION_NAMES[settings.regions]
    spots = list(settings.places)
    head = ["", "name", *extra]
    head += [f"φ {w}" for w in where] + [f"S {w}" for w in where] + ["±α swaps"]
    head += [f"φ {spot}" for spot in spots]
    rows = []
    for place, (direction, name, motion) in enumerate(zip(directions, names, motions, strict=True)):
        row = [f"d{direction}", name, *(values[place] for values in extra.values())]
        row += [f"{1000 * phi:.1f}" for phi in motion.positive.phi]
        row += map(_percent, motion.positive.share)
        row.append(_number(motion.opposition))
        row += [f"{1000 * motion.places[spot][0]:.1f}" for spot in spots]
        rows.append(row)
    report.table(head, rows, words=2)
    report.parts.append(
        "<p>φ: mean length of the flow vectors in a region, in thousandths of the frame's height "
        "per step, while the magnitude grows. S: the region's share of all flow. ±α swaps: 1 where "
        "a falling magnitude moves pixels exactly the opposite way.</p>"
    )


def _motion_numbers(
    directions: Sequence[int],
    names: Sequence[str],
    motions: Sequence[DirectionMotion],
    regions: Regions,
) -> dict[str, Any]:
    def one(direction: int, name: str, motion: DirectionMotion) -> dict[str, Any]:
        phi = motion.positive.phi
        ranks = {}
        if regions == "axes":
            ranks = {"horizontal": phi[0] + phi[2], "vertical": phi[1] + phi[3]}
        return {
            "index": direction,
            "name": name,
            "positive": motion.positive,
            "negative": motion.negative,
            "opposition": motion.opposition,
            "flow_length_px": motion.length,
            "places": {k: {"phi": p, "share": s} for k, (p, s) in motion.places.items()},
            **ranks,
        }

    entries = [one(*each) for each in zip(directions, names, motions, strict=True)]
    found: dict[str, Any] = {"regions": REGION_NAMES[regions], "directions": entries}
    if regions == "axes":
        for axis in ("horizontal", "vertical"):
            ranked = sorted(entries, key=lambda entry: -entry[axis])
            found[f"most_{axis}"] = [entry["index"] for entry in ranked]
    return found


def _write_pictures(
    report: Report,
    held: Observed,
    statistics: MagnitudeStatistics,
    found: GroundTruth | None,
    motions: Sequence[DirectionMotion],
    names: Sequence[str],
    cards: Sequence[Card],
    leaks: Mapping[str, Any],
    settings: Settings,
) -> None:
    count = len(names)
    current = settings.rotate or "as trained"
    labels = [f"d{i}" for i in range(count)]
    tiles = {
        f"effective dimension of motion, of {count}": f"{statistics.effective_dimension:.1f}",
    }
    if found:
        scores = found.scores[current]
        tiles |= {
            "R² of each pose by its best direction": _number(scores.best),
            "R² by all directions together": _number(
                float(scores.dci.informativeness.clip(0).mean())
            ),
            "disentanglement, completeness": f"{scores.dci.disentanglement:.2f}, "
            f"{scores.dci.completeness:.2f}",
        }
    if leaks:
        tiles |= {
            "identity in α": _percent(leaks["identity_in_alpha"]),
            "pose in w₀": _percent(leaks["pose_in_appearance"]),
        }
    if held.transfer:
        made, still = np.mean(held.transfer, axis=0)
        tiles["dB: motion of another identity"] = f"{made:.1f}"
        tiles["dB: the source standing still"] = f"{still:.1f}"
    report.tiles(tiles)

    about = "as trained" if settings.rotate is None else f"after the {settings.rotate} rotation"
    report.heading(
        "Directions",
        f"Each direction alone ({about}), on held-out pictures: from the median of its magnitude "
        "to the 99th percentile, through the median to the 1st, and back. Everything else about "
        "the picture is as it is.",
    )
    report.key(plots.png(plots.flow_wheel()), _FLOW_KEY)
    report.cards(cards)
    extra = {
        "std of α": [_number(s) for s in statistics.std],
        "share of variance": [
            _percent(s) for s in statistics.std**2 / max((statistics.std**2).sum(), 1e-30)
        ],
    }
    if leaks:
        each = leaks["identity_in_each_direction"]
        extra["identity in α"] = [_percent(min(x, 9.99)) for x in each]
    _motion_table(report, range(count), names, motions, settings, extra)

    ranked = np.argsort(-statistics.activity)
    report.heading(
        "Magnitudes",
        "How the magnitudes vary over the held-out clips: how many axes their variance really "
        "needs, which directions go together, and how much each changes from frame to frame. Most "
        f"active are {', '.join(labels[i] for i in ranked[:4])}.",
    )
    report.plots(
        {
            "Variance along the axes of the magnitudes' covariance, and their sum; "
            f"90 % are reached with {statistics.dimensions_90}.": plots.spectrum_plot(
                statistics.spectrum, statistics.effective_dimension
            ),
            "Correlation of the magnitudes.": plots.matrix_plot(
                statistics.correlation, labels, labels, signed=True, size=(3.0, 2.6)
            ),
            "Change from frame to frame, mean over the clips.": plots.activity_plot(
                statistics.activity_over_time, labels, statistics.std
            )
            if len(statistics.activity_over_time)
            else plots.matrix_plot(np.zeros((1, 1)), [""], [""]),
        }
    )
    if found:
        _write_truth(report, found, current, labels)
    report.numbers |= {
        "coordinates": current,
        **_motion_numbers(range(count), names, motions, settings.regions),
        "magnitudes": statistics,
        "most_active": ranked,
        "leakage": leaks,
        "transfer": {
            "clips": len(held.transfer),
            **(
                dict(zip(("cross_psnr", "cross_copy_psnr"), np.mean(held.transfer, 0), strict=True))
                if held.transfer
                else {}
            ),
        },
        "settings": settings.__dict__
        | {
            name: str(getattr(settings, name) or "")
            for name in ("save", "save_sweeps", "read_flow")
        },
    }
    if found:
        report.numbers["ground_truth"] = {
            "factors": found.factors.names,
            **{
                name: {"best_r2": s.best, "r2": s.r2, "dci": s.dci}
                for name, s in found.scores.items()
            },
        }


def _write_truth(report: Report, found: GroundTruth, current: str, labels: Sequence[str]) -> None:
    report.heading(
        "Ground truth",
        "These clips know their poses. A cell is the share of a pose's variance that a line on one "
        "magnitude explains, on held-out identities. The same walk can be measured along other "
        "axes of its span: varimax looks for axes that change few pixels each, without any truth; "
        "the supervised rotation for axes that explain single poses best, on training clips. "
        "Neither changes a single picture.",
    )
    names = [name.replace("_", " ") for name in found.factors.names]
    shown = {
        name: found.scores[name] for name in dict.fromkeys(("as trained", current, "supervised"))
    }
    report.plots(
        {
            f"R², {name}.": plots.matrix_plot(s.r2, labels, names, numbers=True)
            for name, s in shown.items()
        }
    )
    head = ["coordinates", "mean best R²", "disentanglement", "completeness", *names]
    rows = [
        [
            name,
            _number(s.best),
            _number(s.dci.disentanglement),
            _number(s.dci.completeness),
            *(_number(float(x)) for x in s.r2.max(0)),
        ]
        for name, s in found.scores.items()
    ]
    together = found.scores[current].dci.informativeness
    rows.append(["all directions together", "", "", "", *(_number(float(x)) for x in together)])
    report.table(head, rows)


# Generators of videos from noise


def _study_videos(network: VideoGenerator, report: Report, settings: Settings) -> Directions:
    codes = walks(network, settings.sweeps, settings.frames, settings.seed)
    alpha = codes.alpha.double().cpu().numpy()
    statistics = magnitude_statistics(list(alpha))
    count = min(settings.shown, alpha.shape[2])
    directions = [int(i) for i in np.argsort(-statistics.std)[:count]]
    masks = _masks(settings, network.size)
    motions, cards, names = [], [], []
    for direction in track(directions, "directions", disable=not settings.progress):
        sweeps = walk_sweeps(network, codes, direction)
        motion = _measured(settings, direction, sweeps, masks)
        name = name_of(direction, motion, None, None, settings.regions)
        videos = sweeps.positive[:_SHOWN]
        cards.append(
            Card(
                direction,
                name,
                _remark(motion, settings.regions),
                plots.mp4(_with_flow(videos, settings, loops=False), _FPS),
                [
                    plots.mean_flow_plot(motion.mean_flow, videos[0, 0]),
                    plots.rose_plot(motion.rose),
                ],
            )
        )
        motions.append(motion)
        names.append(name)
    share = float((statistics.std[directions] ** 2).sum() / max((statistics.std**2).sum(), 1e-30))
    report.tiles(
        {
            f"effective dimension of the steps, of {alpha.shape[2]}": (
                f"{statistics.effective_dimension:.1f}"
            ),
            f"of their variance in the {count} directions below": _percent(share),
            "videos": str(len(alpha)),
            "frames of each": str(settings.frames),
        }
    )
    report.heading(
        "Directions",
        "Each direction alone: the magnitudes that the network draws along it, and 0 along all "
        "others. The directions that vary most, most first; below each frame the optical flow to "
        "the next.",
    )
    report.key(plots.png(plots.flow_wheel()), _FLOW_KEY)
    report.cards(cards)
    extra = {"std of α": [_number(statistics.std[d], 3) for d in directions]}
    _motion_table(report, directions, names, motions, settings, extra)
    numbers = _motion_numbers(directions, names, motions, settings.regions)
    if settings.regions == "axes":
        across, along = numbers["most_horizontal"][0], numbers["most_vertical"][0]
        report.parts.append(f"<p>Most to the side moves d{across}, most up and down d{along}.</p>")
    report.heading(
        "Trajectories",
        "Where videos go along these directions: the running sums of their magnitudes, a line for "
        "each video.",
    )
    start = np.zeros((len(alpha), 1, alpha.shape[2]))
    walked = np.concatenate([start, alpha.cumsum(1)], axis=1)
    first = directions[:5]
    report.plots({"Places along the directions.": plots.trajectory_plot(walked[..., first], first)})
    report.heading("Magnitudes", "How the steps vary over videos and time.")
    report.plots(
        {
            "Variance along the axes of the steps' covariance (the first 20), and their sum.": (
                plots.spectrum_plot(statistics.spectrum[:20], statistics.effective_dimension)
            ),
            "Correlation of the directions above.": plots.matrix_plot(
                statistics.correlation[np.ix_(directions, directions)],
                [f"d{d}" for d in directions],
                [f"d{d}" for d in directions],
                signed=True,
                size=(3.0, 2.6),
            ),
        }
    )
    report.numbers |= {
        **numbers,
        "effective_dimension": statistics.effective_dimension,
        "spectrum": statistics.spectrum,
        "std": statistics.std,
        "trajectories": {str(d): walked[..., d] for d in directions},
        "seed": settings.seed,
    }
    named = dict(zip(directions, names, strict=True))
    measured_on = f"the steps of {len(alpha)} videos of {settings.frames} frames from noise"
    return Directions(
        measured_on,
        [Direction(named.get(i, ""), p) for i, p in enumerate(statistics.percentiles.tolist())],
    )
