"""Which implementation of an operation runs, and why."""

import os
import shutil
import warnings
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "triton"]
"""`auto` is Triton on NVIDIA GPUs where nothing stands against it, oneDNN on x86 CPUs outside
training, and elsewhere the reference."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_setting: Impl | None = None


class _Restore:
    """Puts the setting back that was before, at the end of a `with` block."""

    def __init__(self, before: Impl | None) -> None:
        self.before: Impl | None = before

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        global _setting
        _setting = self.before


def use(impl: Impl) -> _Restore:
    """Choose the implementation of all operations called with `impl="auto"`.

    Holds from now on, in all threads; as `with use("reference"):` until the end of the block.
    Without it, the environment variable LMDVID_OPS decides, and without that `auto`.

    Raises:
        ValueError: For an unknown name.
    """
    global _setting
    restore = _Restore(_setting)
    _setting = _checked(impl, "impl")
    return restore


def setting() -> Impl:
    """What `use`, or else LMDVID_OPS, has chosen."""
    if _setting is not None:
        return _setting
    return _checked(os.environ.get("LMDVID_OPS", "auto"), "LMDVID_OPS")


def obstacle(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"triton has no compiler for {device.type}"
    if torch.version.hip is not None:
        return "they were never tried on AMD"
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        return f"triton needs compute capability 7.5, this GPU has {capability[0]}.{capability[1]}"
    if "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler (apt install gcc, or set CC)"
    return None


def interpreted() -> bool:
    """Whether kernels are interpreted in Python (TRITON_INTERPRET=1), on any device, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(impl: Impl, *tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors is to run as a Triton kernel.

    Raises:
        ValueError: For an unknown `impl`.
        RuntimeError: `impl`, or else the setting, is `triton`, and something stands against it.
    """
    if impl == "auto":
        impl = setting()
    given = [t for t in tensors if t is not None]
    if any(t.numel() == 0 for t in given):
        return False
    if impl == "auto":
        # Not the interpreter, which is for tests alone.
        return all(t.is_cuda and t.dtype in _DTYPES for t in given) and _usable(given[0].device)
    if _checked(impl, "impl") == "reference":
        return False
    device = given[0].device
    if any(t.device != device for t in given):
        raise RuntimeError(
            f"the tensors lie on {', '.join(sorted({str(t.device) for t in given}))}"
        )
    if any(t.dtype not in _DTYPES for t in given):
        raise RuntimeError(f"Triton kernels take {_DTYPES}, not {[t.dtype for t in given]}")
    if (reason := obstacle(device)) is not None:
        raise RuntimeError(f"Triton kernels cannot run on {device}: {reason}. Use 'reference'")
    return True


def _usable(device: torch.device) -> bool:
    if device not in _USABLE:
        reason = "TRITON_INTERPRET=1 is for tests" if interpreted() else obstacle(device)
        _USABLE[device] = reason is None
        if reason is not None:
            warnings.warn(f"plain PyTorch instead of kernels on {device}: {reason}", stacklevel=2)
    return _USABLE[device]


# What torch.compiler.assume_constant_result does, which imports the compiler: a second at the start
# of every program.
_usable._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
_USABLE: dict[torch.device, bool] = {}


def _checked(impl: str, name: str) -> Impl:
    if impl not in get_args(Impl):
        raise ValueError(f"{name}={impl!r}: choose 'auto', 'reference' or 'triton'")
    return impl  # pyright: ignore[reportReturnType]
