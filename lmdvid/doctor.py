"""``lmdvid doctor``: what is installed, what is broken, and the one line that repairs it.

What needs no heavy import is checked and printed first, so that the report helps in the very
installations in which importing torch or Lightning fails.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any

ENCODERS = {"libx264": "mp4", "aac": "sound", "gif": "gif"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        subject: what was looked at.
        text: what was found.
        ok: False for something that keeps lmdvid from working as it should.
        advice: what to type or do about it; empty where nothing needs doing.
    """

    subject: str
    text: str
    ok: bool = True
    advice: str = ""

    def __str__(self) -> str:
        """The aligned line, with the advice below it."""
        line = f"  {'ok' if self.ok else '!!'}  {self.subject:<33} {self.text}"
        advice = self.advice if self.ok else f"repair: {self.advice}"
        return f"{line}\n{'':<40}{advice}" if self.advice else line


def main() -> int:
    """Prints the report section by section.

    Returns:
        1 if something is broken, else 0.
    """
    if _installed("lmdvid") is None:
        print("lmdvid is not installed in this environment; repair: pip install -e <its folder>")
        return 1
    system = f"Python {platform.python_version()}, {platform.platform(terse=True)}"
    print(f"lmdvid {distribution('lmdvid').version}, {system}, {os.cpu_count()} CPU cores")
    broken = 0
    for check in (packages, command, accelerators, video, logging):
        print(f"\n{check.__name__}", flush=True)
        for finding in check():
            print(finding, flush=True)
            broken += not finding.ok
    print(f"\n{broken} problem{'s' * (broken != 1)} found" if broken else "\nno problem found")
    return 1 if broken else 0


def packages() -> Iterator[Finding]:
    """Every requirement of lmdvid: its version, or that it is missing, too old or too new."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("packaging", "not installed", False, "pip install packaging")
        return
    for line in distribution("lmdvid").requires or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _installed(wanted.name)
        install = f"pip install '{wanted.name}{wanted.specifier}'"
        if found is None:
            yield Finding(wanted.name, "not installed", False, install)
        elif not wanted.specifier.contains(found, prereleases=True):
            text = f"{found}, but lmdvid needs {wanted.specifier}"
            yield Finding(wanted.name, text, False, install)
        else:
            yield Finding(wanted.name, found)


def command() -> Iterator[Finding]:
    """Who owns the ``lightning`` script; installing or removing a rival replaces or deletes it."""
    own = distribution("lmdvid")
    rivals = sorted(
        script.dist.name
        for script in entry_points(group="console_scripts", name="lightning")
        if script.dist is not None and script.dist.name != own.name
    )
    paths = [Path(str(f.locate())) for f in own.files or [] if f.name == "lightning"]
    if not paths:
        yield Finding("lightning", "lmdvid was installed without it", False, _reinstall(own))
        return
    script = paths[0].resolve()
    if not script.is_file():
        text = f"{script} is gone (another package that had it was removed or upgraded)"
        yield Finding("lightning", text, False, _reinstall(own))
    elif "lmdvid.cli" not in script.read_text(errors="replace"):
        text = f"{script} belongs to {' or '.join(rivals) or 'another package'}"
        yield Finding("lightning", text, False, _reinstall(own))
    else:
        yield _on_path(script)
    for name in rivals:
        yield Finding(name, "also brings a `lightning`; its commands are passed on to it")


def _on_path(script: Path) -> Finding:
    first = shutil.which("lightning")
    if first is None:
        advice = f"add its folder to the PATH: export PATH={script.parent}:$PATH"
        return Finding("lightning", f"{script}, not on the PATH", advice=advice)
    if Path(first).resolve() != script:
        advice = f"type {script}, or export PATH={script.parent}:$PATH"
        return Finding("lightning", f"the PATH leads to {first} instead", False, advice)
    return Finding("lightning", str(script))


def _reinstall(own: Distribution) -> str:
    origin = json.loads(own.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    what = f"-e {origin['url'].removeprefix('file://')}" if editable else own.name
    return f"pip install --force-reinstall --no-deps {what}   (until then: python -m lmdvid)"


def accelerators() -> Iterator[Finding]:
    """What torch can compute on, and whether torchvision breaks it."""
    try:
        torch = import_module("torch")
    except Exception as error:  # a broken build can fail in any way
        yield Finding("torch", f"cannot be imported: {_first_line(error)}", False, _TORCH)
        return
    driver = Path("/proc/driver/nvidia/version").exists()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            text = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
            yield Finding(f"cuda:{index}", text)
            yield _kernels(torch.device("cuda", index))
            yield _recording(torch.device("cuda", index))
    elif driver:
        text = f"an NVIDIA GPU is here, but torch {torch.__version__} cannot use it"
        yield Finding("cuda", text, False, _TORCH)
    else:
        yield Finding("cuda", "none")
    if torch.backends.mps.is_available():
        yield Finding("mps", "available")
    yield Finding("cpu", f"{torch.get_num_threads()} threads")
    yield from _animation(torch)
    if vision := _installed("torchvision"):
        try:
            import_module("torchvision")
        except Exception as error:  # it fails with whatever the mismatch of the two builds hits
            text = f"{vision} does not fit torch {torch.__version__}: {_first_line(error)}"
            advice = "pip uninstall torchvision   (lmdvid does not use it; Lightning imports it)"
            yield Finding("torchvision", text, False, advice)


def _kernels(device: Any) -> Finding:
    """Which implementation of the operations runs on a GPU, and why."""
    subject = f"networks on {device}"
    try:
        dispatch = import_module("lmdvid.ops.dispatch")
        impl, reason = dispatch.setting(), dispatch.obstacle(device)
    except Exception as error:  # as below
        return Finding(subject, _first_line(error), False, "unset LMDVID_OPS")
    if impl == "reference":
        return Finding(subject, "plain PyTorch, because LMDVID_OPS=reference")
    if reason is not None:
        return Finding(subject, f"plain PyTorch, slower than Triton kernels: {reason}")
    if dispatch.interpreted() and impl == "auto":
        return Finding(subject, "plain PyTorch, because TRITON_INTERPRET=1 is for tests")
    return Finding(subject, "Triton kernels")


def _recording(device: Any) -> Finding:
    """Whether work on a GPU is launched as a whole."""
    subject = f"CUDA graphs on {device}"
    try:
        setting = import_module("lmdvid.ops.recording").records()
    except Exception as error:  # as below
        return Finding(subject, _first_line(error), False, "unset LMDVID_GRAPHS")
    if not setting:
        return Finding(subject, "none: operations are launched one by one (LMDVID_GRAPHS=0)")
    several = "" if setting == "all" else "; not where several GPUs train together"
    return Finding(subject, f"LIA's training and animation{several}")


def _animation(torch: Any) -> Iterator[Finding]:
    """What animation on the CPU computes in, and whether it prepares its weights."""
    try:
        onednn = import_module("lmdvid.ops.onednn")
    except Exception as error:  # as above
        yield Finding("lmdvid.ops", f"cannot be imported: {_first_line(error)}", False, _TORCH)
        return
    dtype = onednn.inference_dtype(torch.device("cpu"))
    obstacle = onednn.obstacle(dtype)
    weights = "prepared once" if obstacle is None else f"prepared at every frame: {obstacle}"
    text = f"computes in {str(dtype).removeprefix('torch.')}, weights {weights}"
    yield Finding("animation on the cpu", text)


_TORCH = "install the build of torch for this machine: https://pytorch.org/get-started/locally"


def video() -> Iterator[Finding]:
    """Encoders, a short clip written and read back with every decoder, and decoding on a GPU."""
    try:
        codec = import_module("av.codec").Codec
        clips = import_module("lmdvid.video")
        torch = import_module("torch")
    except Exception as error:  # as above
        yield Finding("lmdvid.video", f"cannot be imported: {_first_line(error)}", False, _VIDEO)
        return
    for name, purpose in ENCODERS.items():
        yield _attempt(f"{name} encoder", lambda name=name: codec(name, "w"), f"({purpose})")

    # A clip whose brightness tells the frame, so that a decoder that skips one is found out.
    levels = torch.arange(8) * 24 + 32
    frames = levels.to(torch.uint8).view(8, 1, 1, 1).expand(8, 64, 64, 3).contiguous()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "doctor.mp4")
        written = _attempt("write mp4", lambda: clips.write_video(path, frames, Fraction(25)))
        yield written
        if not written.ok:
            return
        for backend in ("decord", "pyav"):

            def read(backend: str = backend) -> None:
                seen = clips.read_clip(path, [0, 3, 7], backend=backend).float().mean((1, 2, 3))
                if (seen - levels[[0, 3, 7]]).abs().max() > 4:
                    raise ValueError(f"frames 0, 3, 7 have brightness {seen.tolist()}")

            yield _attempt(f"read mp4 with {backend}", read)
    for name in ("decord", "torchcodec", "pyav"):
        obstacle = clips.gpu_obstacle(name, torch.device("cuda", 0))
        text = "works" if obstacle is None else f"not possible: {name} {obstacle}"
        yield Finding(f"decode on a GPU with {name}", text)


_VIDEO = "pip install --force-reinstall av decord"


def logging() -> Iterator[Finding]:
    """Whether Lightning can be imported and wandb would send runs."""
    try:
        login = import_module("lmdvid.loggers").wandb_login()
    except Exception as error:  # as above
        text = f"cannot be imported: {_first_line(error)}"
        advice = "see the problems above; else pip install --force-reinstall lightning wandb"
        yield Finding("lightning and wandb", text, False, advice)
        return
    if login is None:
        advice = "`wandb login` lets the next ones be sent"
        yield Finding("wandb", "no API key: runs are kept offline", advice=advice)
    else:
        yield Finding("wandb", f"API key found ({login})")


def _attempt(subject: str, action: Callable[[], object], text: str = "works") -> Finding:
    try:
        action()
    except Exception as error:  # reported, whatever it is
        return Finding(subject, f"fails: {_first_line(error)}", False, _VIDEO)
    return Finding(subject, text)


def _installed(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
