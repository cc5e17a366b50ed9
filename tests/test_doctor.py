import json
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch

from lmdvid import doctor
from lmdvid.doctor import Finding
from lmdvid.ops import dispatch, onednn


class Package:
    """What importlib.metadata says about an installed distribution."""

    name = "lmdvid"
    version = "0.1.0"

    def __init__(self, folder: Path, requires=(), editable=None, script=True):
        self.requires = list(requires)
        self._origin = editable and {"url": f"file://{editable}", "dir_info": {"editable": True}}
        script_file = types.SimpleNamespace(name="lightning", locate=lambda: folder / "lightning")
        self.files = [script_file] if script else []

    def read_text(self, name):
        assert name == "direct_url.json"
        return json.dumps(self._origin) if self._origin else None


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Replaces the installed lmdvid; returns (install, folder of the scripts)."""

    def install(rivals=(), **package):
        own = Package(tmp_path, **package)
        others = [types.SimpleNamespace(dist=types.SimpleNamespace(name=n)) for n in rivals]
        monkeypatch.setattr(doctor, "distribution", lambda name: own)
        monkeypatch.setattr(
            doctor, "entry_points", lambda **_: [types.SimpleNamespace(dist=own), *others]
        )

    monkeypatch.setenv("PATH", str(tmp_path))
    return install, tmp_path


def write_script(folder: Path, module: str) -> Path:
    script = folder / "lightning"
    script.write_text(f"#!/usr/bin/env python3\nfrom {module} import main\n")
    script.chmod(0o755)
    return script


def test_this_installation_is_sound(capsys):
    assert doctor.main() == 0
    report = capsys.readouterr().out
    titles = [line for line in report.splitlines() if line and not line.startswith(" ")]
    assert titles[1:] == ["packages", "command", "accelerators", "video", "logging", titles[-1]]
    assert titles[-1] == "no problem found"
    assert "!!" not in report
    for tried in ("read mp4 with decord", "read mp4 with pyav"):
        assert f"ok  {tried}" in report


def test_problems_are_counted_and_change_the_exit_code(capsys, monkeypatch):
    def command():
        yield Finding("thing", "is gone", False, "pip install thing")
        yield Finding("other", "is there")

    def nothing():
        return iter(())

    monkeypatch.setattr(doctor, "command", command)
    for name in ("packages", "accelerators", "video", "logging"):
        monkeypatch.setattr(doctor, name, nothing)
    assert doctor.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"  !!  {'thing':<33} is gone" in lines
    assert f"{'':<40}repair: pip install thing" in lines
    assert lines[-1] == "1 problem found"


def test_missing_and_unfitting_packages_are_named_with_their_repair(tmp_path, monkeypatch):
    versions = {"numpy": "1.26.0", "av": "15.1.0"}

    def distribution(name):
        if name == "lmdvid":
            needs = ["numpy>=2", "av>=15", "wandb>=0.21", "decord2>=3; python_version < '3'"]
            return Package(tmp_path, requires=[*needs, "pytest>=8; extra == 'dev'"])
        if name not in versions:
            raise doctor.PackageNotFoundError(name)
        return types.SimpleNamespace(version=versions[name])

    monkeypatch.setattr(doctor, "distribution", distribution)
    found = {finding.subject: finding for finding in doctor.packages()}
    assert set(found) == {"numpy", "av", "wandb"}
    assert not found["numpy"].ok
    assert "1.26.0" in found["numpy"].text
    assert found["numpy"].advice == "pip install 'numpy>=2'"
    assert not found["wandb"].ok
    assert found["wandb"].advice == "pip install 'wandb>=0.21'"
    assert found["av"] == Finding("av", "15.1.0")


def test_own_script_on_the_path_is_fine(installation):
    install, folder = installation
    install()
    script = write_script(folder, "lmdvid.cli")
    assert list(doctor.command()) == [Finding("lightning", str(script))]


def test_own_script_off_the_path_is_a_remark(installation, monkeypatch):
    install, folder = installation
    install()
    write_script(folder, "lmdvid.cli")
    monkeypatch.setenv("PATH", "/nosuch")
    (finding,) = doctor.command()
    assert finding.ok
    assert finding.advice.endswith(f"export PATH={folder}:$PATH")


def test_another_script_first_on_the_path_is_a_problem(installation, monkeypatch):
    install, folder = installation
    install()
    script = write_script(folder, "lmdvid.cli")
    (folder / "first").mkdir()
    other = write_script(folder / "first", "lightning_sdk")
    monkeypatch.setenv("PATH", f"{other.parent}:{folder}")
    (finding,) = doctor.command()
    assert not finding.ok
    assert str(other) in finding.text
    assert str(script) in finding.advice


def test_script_taken_by_another_package(installation):
    install, folder = installation
    install(rivals=["lightning_sdk"])
    write_script(folder, "lightning_sdk.cli.entrypoint")
    taken, rival = doctor.command()
    assert not taken.ok
    assert taken.text.endswith("belongs to lightning_sdk")
    assert taken.advice.startswith("pip install --force-reinstall --no-deps lmdvid ")
    assert rival.ok
    assert rival.subject == "lightning_sdk"


def test_script_deleted_by_another_package(installation):
    install, _ = installation
    install(editable="/home/me/lmdvid")
    (finding,) = doctor.command()
    assert not finding.ok
    assert "is gone" in finding.text
    assert "--force-reinstall --no-deps -e /home/me/lmdvid " in finding.advice
    assert "python -m lmdvid" in finding.advice


def test_installed_without_script(installation):
    install, _ = installation
    install(script=False)
    (finding,) = doctor.command()
    assert not finding.ok


def test_torchvision_of_another_build_is_a_problem(monkeypatch):
    def missing_operator(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return import_module(name)

    monkeypatch.setattr(doctor, "import_module", missing_operator)
    monkeypatch.setattr(doctor, "_installed", lambda name: "0.24.0")
    vision = {finding.subject: finding for finding in doctor.accelerators()}["torchvision"]
    assert not vision.ok
    assert vision.text.endswith("operator torchvision::nms does not exist")
    assert vision.advice.startswith("pip uninstall torchvision")


def test_how_the_cpu_animates_is_told(monkeypatch):
    def told() -> str:
        findings = {finding.subject: finding for finding in doctor.accelerators()}
        return findings["animation on the cpu"].text

    monkeypatch.setattr(onednn, "obstacle", lambda dtype: None)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert told() == "computes in bfloat16, weights prepared once"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert told() == "computes in float32, weights prepared once"
    monkeypatch.setattr(onednn, "obstacle", lambda dtype: "there is none")
    assert told() == "computes in float32, weights prepared at every frame: there is none"


def test_what_runs_on_a_gpu_is_told_with_the_reason(monkeypatch):
    def told(reason=None, impl="auto"):
        monkeypatch.setattr(dispatch, "obstacle", lambda device: reason)
        monkeypatch.setenv("LMDVID_OPS", impl)
        finding = doctor._kernels(torch.device("cuda", 0))
        assert finding.subject == "networks on cuda:0"
        return finding

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert told().text == "Triton kernels"
    missing = "triton is not installed (pip install triton)"
    assert told(missing).text == f"plain PyTorch, slower than Triton kernels: {missing}"
    assert "LMDVID_OPS=reference" in told(impl="reference").text
    assert not told(impl="fast").ok
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in told().text


def test_modules_that_cannot_be_imported_are_reported(monkeypatch):
    def fails(name):
        raise ImportError(f"{name}: libbroken.so is missing")

    monkeypatch.setattr(doctor, "import_module", fails)
    for section in (doctor.accelerators, doctor.video, doctor.logging):
        (finding,) = section()
        assert not finding.ok
        assert "libbroken.so is missing" in finding.text
        assert finding.advice


def test_a_decoder_that_returns_other_frames_is_found_out(monkeypatch):
    from lmdvid import video

    read = video.read_clip
    monkeypatch.setattr(
        video,
        "read_clip",
        lambda path, indices, backend: read(
            path, [i + (backend == "decord") for i in indices[:2]] + [7], backend=backend
        ),
    )
    found = {finding.subject: finding for finding in doctor.video()}
    assert not found["read mp4 with decord"].ok
    assert "brightness" in found["read mp4 with decord"].text
    assert found["read mp4 with pyav"].ok


def test_nothing_can_be_read_where_nothing_can_be_written(monkeypatch):
    from lmdvid import video

    def fails(*_):
        raise OSError("no encoder")

    monkeypatch.setattr(video, "write_video", fails)
    last = list(doctor.video())[-1]
    assert (last.subject, last.ok, last.text) == ("write mp4", False, "fails: no encoder")


def test_wandb_key_is_a_remark(monkeypatch):
    from lmdvid import loggers

    monkeypatch.setattr(loggers, "wandb_login", lambda: None)
    (finding,) = doctor.logging()
    assert finding.ok
    assert "wandb login" in finding.advice
    monkeypatch.setattr(loggers, "wandb_login", lambda: "settings")
    assert list(doctor.logging()) == [Finding("wandb", "API key found (settings)")]


def test_a_checkout_that_is_not_installed_is_told_so(monkeypatch, capsys):
    def missing(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "distribution", missing)
    assert doctor.main() == 1
    assert "pip install -e" in capsys.readouterr().out


def test_what_is_recorded_on_a_gpu_is_told(monkeypatch):
    def told(setting):
        monkeypatch.setenv("LMDVID_GRAPHS", setting)
        return doctor._recording(torch.device("cuda", 0))

    assert told("1").text.endswith("not where several GPUs train together")
    assert told("all").text == "LIA's training and animation"
    assert "LMDVID_GRAPHS=0" in told("0").text
    assert not told("yes").ok
