"""Networks on disk: our folders, training checkpoints, and the authors' files.

Loading never runs code from a file: tensors come from safetensors or from `torch.load` restricted
to plain data, and a class is taken by name only from inside `lmdvid.networks`.
"""

import argparse
import hashlib
import importlib
import json
import pickle
import pkgutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lmdvid import networks
from lmdvid.navigator import LatentNavigator
from lmdvid.networks import WeightsError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
BOX = Path(__file__).parent / "weights"
"""Networks that are installed with the program, a folder each."""


class DeviceError(ValueError):
    """A device is not there."""


def in_the_box() -> list[str]:
    """Names of the networks that are installed with the program."""
    return sorted(path.parent.name for path in BOX.glob(f"*/{CONFIG_FILE}"))


def locate(path: str | Path) -> Path:
    """The path of a checkpoint, or the folder of a network in the box by its name.

    The name wins over a file or folder of that name: `./puppets` is the latter.
    """
    return BOX / path if str(path) in in_the_box() else Path(path)


def save_network(network: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a network as `model.safetensors` and `config.json`.

    Args:
        network: A network of `lmdvid.networks` with its constructor's arguments in `config`.
        folder: Made where missing; files in it of these names are replaced.
        dtype: Of floating-point weights in the file; None keeps them as they are. They are loaded
            as float32 in any case.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    kind = type(network)
    arguments = dict(network.config)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if isinstance(navigator := getattr(network, "navigator", None), LatentNavigator):
        # It may have been put there since.
        arguments |= {"directions": navigator.directions, "orthogonal": navigator.orthogonal}
    config = {"network": f"{kind.__module__}.{kind.__qualname__}", "config": arguments}
    # Both are complete before either takes its place.
    weights_part, config_part = folder / f"{WEIGHTS_FILE}.part", folder / f"{CONFIG_FILE}.part"
    try:
        save_file(state, weights_part)
        config_part.write_text(json.dumps(config, indent=2) + "\n")
        weights_part.chmod(config_part.stat().st_mode)  # safetensors lets nobody else read it
        weights_part.replace(folder / WEIGHTS_FILE)
        config_part.replace(folder / CONFIG_FILE)
    finally:
        weights_part.unlink(missing_ok=True)
        config_part.unlink(missing_ok=True)


def load_network(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a network for inference.

    Args:
        path: A folder written by `save_network` (or `lmdvid convert`), a training checkpoint
            `.ckpt`, whose averaged generator is taken, or the name of a network in the box.
        device: Where it goes.

    Returns:
        The network in evaluation mode, float32, without gradients.

    Raises:
        WeightsError: If there is nothing at `path`, or nothing that this program wrote.
    """
    path = locate(path)
    if path.is_dir():
        name, config, state = _read_folder(path)
    elif path.is_file():
        name, config, state = _read_checkpoint(path)
    else:
        raise WeightsError(
            f"no checkpoint at {path}: give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, "
            f"a training checkpoint (.ckpt), or one in the box: {', '.join(in_the_box()) or 'none'}"
        )
    network = _build(path, name, config, sum(value.numel() for value in state.values()))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit {name}: {_first_line(error)}") from error
    return network.to(device).eval().requires_grad_(False)


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA, then Apple's GPU, then the CPU, whichever is there.

    Raises:
        DeviceError: If it is not there.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator is not None else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"device {name!r} is not available here: choose cpu, or what `lmdvid doctor` lists "
            "under accelerators"
        ) from error


def convert(
    path: str | Path,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    preset: str | None = None,
) -> str:
    """Turn the authors' file, or a training checkpoint, into a folder that `load_network` reads.

    Args:
        path: The authors' checkpoint (the system is recognised from its keys) or a `.ckpt`.
        folder: Where `model.safetensors` and `config.json` go.
        dtype: Of the weights in the file, see `save_network`.
        preset: What weights cannot tell, by a name of the system's module (its `PRESETS`); None is
            that of the authors' file itself, where its hash is known, or the system's usual one.

    Returns:
        A report: what it is, and every group of entries that was left out.

    Raises:
        WeightsError: If the file is neither, or the preset is none of its system's.
    """
    path = Path(path)
    content = _load_plain(path)
    notes = []
    if "lmdvid_generator" in content:
        network = load_network(path)
        if hasattr(network, "order_directions"):
            notes = ["motion directions numbered by the spread of their magnitudes, largest first"]
            network.order_directions()  # pyright: ignore[reportCallIssue]
        left_out = Counter({"training state (discriminator, optimisers, raw weights)": 1})
        system = f"averaged generator of a training checkpoint, step {content['global_step']}"
    else:
        tensors = dict(_flatten(content))
        module = _recognise(path, tensors)
        chosen = _preset(path, module, preset)
        try:
            config, state, dropped = module.from_original(tensors, *chosen)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error
        network = module.Generator(**config)
        network.load_state_dict(state)
        left_out = Counter(_group(key) for key in dropped)
        system = f"the authors' {module.__name__.rpartition('.')[2].upper()} generator"
    save_network(network, folder, dtype)
    arguments = ", ".join(f"{k}={v}" for k, v in network.config.items())  # pyright: ignore
    count = sum(p.numel() for p in network.parameters())
    lines = [f"{path}: {system}", f"  {arguments}", f"  {count:,} parameters converted"]
    lines += [f"  {note}" for note in notes]
    lines += [f"  left out: {n} x {what}" for what, n in sorted(left_out.items())]
    return "\n".join(
        [*lines, f"wrote {Path(folder, WEIGHTS_FILE)} and {Path(folder, CONFIG_FILE)}"]
    )


def _read_folder(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        description = json.loads((path / CONFIG_FILE).read_text())
        name, config = description["network"], description["config"]
        return name, config, load_file(path / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} has no {Path(str(error.filename or WEIGHTS_FILE)).name}: "
            f"a network's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {_first_line(error)}") from error


def _read_checkpoint(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    content = _load_plain(path)
    if "lmdvid_generator" not in content:
        raise WeightsError(
            f"{path} is not a training checkpoint of this program; if it is the authors' file, "
            f"run: lmdvid convert {path} FOLDER"
        )
    generator, prefix = content["lmdvid_generator"], "generator_ema.network."
    state = {
        key.removeprefix(prefix): value
        for key, value in content["state_dict"].items()
        if key.startswith(prefix)
    }
    return generator["network"], generator["config"], state


def _load_plain(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path} is half of a network: give its folder, {path.parent}")
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}")
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and not start.startswith(b"\x80"):
        raise WeightsError(f"{path} is not a checkpoint: PyTorch wrote no such file")
    try:
        # The authors' files hold their command line as a Namespace; nothing else is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds Python objects beside tensors, and loading them could "
            "run code. Ask its author for a file with tensors only"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise WeightsError(
            f"{path} is not a checkpoint, or it is cut off: PyTorch cannot read it"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, not a checkpoint's dictionary"
        )
    return content


def _build(path: Path, name: str, config: dict[str, Any], numbers: int) -> nn.Module:
    module, _, kind = str(name).rpartition(".")
    known = {f"{networks.__name__}.{m.name}" for m in pkgutil.iter_modules(networks.__path__)}
    if module not in known:
        raise WeightsError(f"{path} asks for {name!r}; only networks of lmdvid.networks are built")
    cls = getattr(importlib.import_module(module), kind, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module):
        raise WeightsError(f"{path} asks for {name!r}, which this version does not have")
    try:
        # A configuration may ask for any amount of memory. (Networks that compute nothing when they
        # are made, besides drawing random numbers, spare the start a second: see test_box.py.)
        with torch.device("meta"):
            parts = cls(**config).state_dict().values()
        if (asked := sum(value.numel() for value in parts)) > numbers:
            raise WeightsError(
                f"{path} does not fit {name}: its configuration asks for {asked} numbers, and the "
                f"file holds {numbers}"
            )
        return cls(**config)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not fit this version's {name}: {error}") from error


def _recognise(path: Path, tensors: Mapping[str, Tensor]) -> ModuleType:
    """The module of `lmdvid.networks` that knows these keys."""
    families = []
    for info in pkgutil.iter_modules(networks.__path__):
        module = importlib.import_module(f"{networks.__name__}.{info.name}")
        if hasattr(module, "from_original"):
            families.append(info.name)
            if module.matches(tensors):
                return module
    first = ", ".join(list(tensors)[:3]) or "no tensors"
    raise WeightsError(
        f"{path} is none of the systems that can be converted ({', '.join(families)}); "
        f"its first keys: {first}"
    )


def _preset(path: Path, module: ModuleType, preset: str | None) -> tuple[str | None, ...]:
    """The argument that says what weights cannot, for a system that needs one."""
    presets = getattr(module, "PRESETS", {})
    if preset is not None and preset not in presets:
        raise WeightsError(
            f"{path}: no preset {preset!r} for {module.__name__.rpartition('.')[2]}, which has "
            f"{', '.join(presets) or 'none'}"
        )
    released = getattr(module, "RELEASED", {})
    if preset is None and released:
        with path.open("rb") as file:
            preset = released.get(hashlib.file_digest(file, "sha256").hexdigest())
    return (preset,) if presets else ()


def _flatten(content: Mapping[Any, Any], prefix: str = ""):
    """Tensors of nested dictionaries by dotted name, without DataParallel's `module.`."""
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield prefix + str(key).removeprefix("module."), value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")


def _group(key: str) -> str:
    """What a left-out key belongs to, for the report."""
    head = key.split(".")[0]
    if key.endswith((".kernel", "down.weight")):
        return "fixed filter"
    if head in ("gen", "enc", "dec"):
        return "parameter that nothing reads"
    return f"entry of {head!r}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
