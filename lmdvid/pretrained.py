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
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

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
    network = _build(path, name, config, state)
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
        step = content.get("global_step", "unknown")
        system = f"averaged generator of a training checkpoint, step {step}"
    else:
        try:
            tensors = dict(_flatten(content))
        except RecursionError as error:
            raise WeightsError(f"{path} is refused: it contains itself") from error
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
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {_first_line(error)}") from error


def _read_checkpoint(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    content = _load_plain(path)
    if "lmdvid_generator" not in content:
        raise WeightsError(
            f"{path} is not a training checkpoint of this program; if it is the authors' file, "
            f"run: lmdvid convert {path} FOLDER"
        )
    generator, prefix = content["lmdvid_generator"], "generator_ema.network."
    try:
        state = {
            key.removeprefix(prefix): value
            for key, value in content["state_dict"].items()
            if key.startswith(prefix) and isinstance(value, Tensor)
        }
        return generator["network"], generator["config"], state
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {_first_line(error)}") from error


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
    if start == b"PK" and not _is_stored(path):
        raise WeightsError(f"{path} is refused: it is compressed, which PyTorch never does")
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
    for value in _tensors(content):
        whole = value.layout == torch.strided and value.device.type == "cpu"
        if not whole or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise WeightsError(
                f"{path} is refused: its tensors promise more numbers than the file holds"
            )
    return content


def _is_stored(path: Path) -> bool:
    """Whether what a zip file holds takes no more memory than the file takes of the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return True  # PyTorch says what is wrong with it


def _tensors(content: object) -> Iterator[Tensor]:
    """All tensors in nested containers, which may hold each other."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _build(path: Path, name: str, config: Any, state: Mapping[str, Tensor]) -> nn.Module:
    module, _, kind = str(name).rpartition(".")
    known = {f"{networks.__name__}.{m.name}" for m in pkgutil.iter_modules(networks.__path__)}
    if module not in known:
        raise WeightsError(f"{path} asks for {name!r}; only networks of lmdvid.networks are built")
    cls = getattr(importlib.import_module(module), kind, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module):
        raise WeightsError(f"{path} asks for {name!r}, which this version does not have")
    # Tensors may be views of the same numbers.
    storages = {value.untyped_storage().data_ptr(): value for value in state.values()}
    numbers = sum(v.untyped_storage().nbytes() // v.element_size() for v in storages.values())
    try:
        # A configuration may ask for any amount of memory, and for any number of layers. (Networks
        # that compute nothing when they are made, besides drawing random numbers, spare the start a
        # second: see test_box.py.)
        with torch.device("meta"), _at_most(len(state)):
            if not all(value <= numbers for value in _whole_numbers(config)):
                raise WeightsError(f"its configuration has a number above {numbers}, all weights")
            parts = cls(**config).state_dict().values()
            if (asked := sum(value.numel() for value in parts)) > numbers:
                raise WeightsError(
                    f"its configuration asks for {asked} numbers, and the file holds {numbers}"
                )
        return cls(**config)
    except Exception as error:  # whatever a constructor makes of arguments that a stranger chose
        raise WeightsError(
            f"{path} does not fit this version's {name}: {_first_line(error)}"
        ) from error


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Let this thread build no network of more parameters."""
    thread, count = threading.get_ident(), 0

    def check(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > parameters:
            raise WeightsError(
                f"its configuration asks for more than the {parameters} tensors of the file"
            )

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _whole_numbers(value: object) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        yield from _whole_numbers([*value.values()])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _whole_numbers(part)


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
