"""``lmdvid interpret``."""

import argparse
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from lmdvid.commands import UsageError

HELP = "measure and name what every motion direction does; a report as one HTML page"
EPILOG = (
    "Writes OUTPUT/index.html, which opens without a network, report.json, and directions.json, "
    "also beside the weights, where `lmdvid manipulate` finds names and ranges. Needs the extra: "
    "pip install 'lmdvid[interpret]'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the network, the data and the report, and say how to measure."""
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="experiment whose data to look at; not needed for a network from noise, nor for one "
        "that is installed",
    )
    add(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="converted folder, training .ckpt, or `puppets`, which is installed",
    )
    add("--output", required=True, metavar="DIR", help="folder of the report")
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the data, instead of the experiment's: --data root=/path",
    )
    add("--sweeps", type=int, default=12, metavar="K", help="pictures or videos (%(default)s)")
    add("--steps", type=int, default=4, metavar="N", help="of a sweep, each way (%(default)s)")
    add(
        "--threshold",
        type=float,
        default=0.1,
        metavar="PX",
        help="leave out shorter flow vectors (%(default)s)",
    )
    add(
        "--regions",
        choices=("axes", "quadrants"),
        default="axes",
        help="of the flow's angles: centred on the axes, or between them (%(default)s)",
    )
    add(
        "--place",
        action="append",
        default=[],
        type=_place,
        metavar="NAME=X,Y,W,H",
        help="also measure in this part of the picture, in shares of its side: "
        "mouth=0.35,0.6,0.3,0.2; may be repeated",
    )
    add(
        "--rotate",
        choices=("varimax", "supervised"),
        help="measure along the best axes of the directions' span instead; pictures stay the same",
    )
    add("--save", metavar="DIR", help="folder for the network with the rotated directions")
    add(
        "--save-sweeps",
        metavar="DIR",
        help="keep the sweeps as .npz, for another program to compute flow of",
    )
    add("--flow", metavar="DIR", help="folder with that flow, .npz of the same names")
    add("--frames", type=int, default=16, metavar="T", help="of videos from noise (%(default)s)")
    add("--top", type=int, default=8, metavar="N", help="directions of those (%(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="of their noise (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; default: the fastest one here")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Study, write, and say what was found."""
    from lmdvid.interpret.study import Settings, study
    from lmdvid.pretrained import choose_device, load_network, locate

    given = {
        "sweeps": options.sweeps,
        "steps": options.steps,
        "threshold": options.threshold,
        "regions": options.regions,
        "places": dict(options.place),
        "rotate": options.rotate,
        "save": Path(options.save) if options.save else None,
        "save_sweeps": Path(options.save_sweeps) if options.save_sweeps else None,
        "read_flow": Path(options.flow) if options.flow else None,
        "frames": options.frames,
        "shown": options.top,
        "seed": options.seed,
        "progress": True,
    }
    settings = Settings(**given)
    network = load_network(options.checkpoint, choose_device(options.device))
    config = options.config
    beside = locate(options.checkpoint) / "experiment.yaml"
    if config is None and beside.is_file():
        config = beside
    batches = None
    if hasattr(network, "navigator") and not hasattr(network, "sample_codes"):
        if config is None:
            raise UsageError("give the experiment whose data to look at: --config experiments/...")
        data = data_of(Path(config), options.data)
        names = getattr(data, "pose_names", None)
        kind = f"{type(data).__module__}.{type(data).__qualname__}"
        settings = Settings(**given, pose_names=names, measured_on=kind)
        batches = partial(_batches, data)

    numbers = study(network, options.checkpoint, options.output, batches, settings)
    for entry in numbers["directions"]:
        print(f"d{entry['index']:<4} {entry['name']}")
    print(f"wrote {Path(options.output, 'index.html')}")
    return 0


def data_of(config: Path, changes: list[str]) -> Any:
    """The data module of an experiment, set up without a trainer.

    Args:
        config: The experiment.
        changes: Arguments of the data, `name=value`, that replace the experiment's.

    Raises:
        UsageError: If it is no experiment, or the data cannot be made.
    """
    import yaml
    from lightning import LightningDataModule

    try:
        described = yaml.safe_load(config.read_text("utf-8"))["data"]
        module, _, name = described["class_path"].rpartition(".")
        arguments = dict(described.get("init_args") or {})
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{config} is no experiment: it describes no data ({error})") from error
    for change in changes:
        argument, sign, value = change.partition("=")
        if not sign:
            raise UsageError(f"--data {change}: give NAME=VALUE, such as root=/path")
        try:
            arguments[argument] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--data {change}: {value!r} is no YAML value") from None
    try:
        kind = getattr(import_module(module), name)
        if not issubclass(kind, LightningDataModule):
            raise TypeError(f"{module}.{name} is no LightningDataModule")
        data: Any = kind(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"the data of {config}: {error}") from error
    data.prepare_data()
    data.setup()
    return data


def _batches(data: Any, split: str) -> Iterator[dict[str, Any]]:
    loader = data.train_dataloader() if split == "fit" else data.test_dataloader()
    return (data.on_after_batch_transfer(batch, 0) for batch in loader)


def _place(text: str) -> tuple[str, tuple[float, ...]]:
    name, _, numbers = text.partition("=")
    try:
        box = tuple(map(float, numbers.split(",")))
        if len(box) != 4 or not name or not all(0 <= x <= 1 for x in box):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected NAME=X,Y,WIDTH,HEIGHT in shares from 0 to 1; given {text}"
        ) from None
    return name, box
