import signal
import subprocess
import sys
import sysconfig
import types
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch  # noqa: F401  its log handlers must not be bound to one test's capture
import pytest
import torch
import yaml
from torch._utils import ExceptionWrapper

from lmdvid import cli
from lmdvid.video import VideoReadError

HERE = Path(__file__).parent
SCRIPT = Path(sysconfig.get_path("scripts"), "lightning")
# Lightning names its checkpoints after the epoch and the number of steps.
CHECKPOINT = "checkpoints/epoch=0-step=4.ckpt"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current directory: an experiment, and its classes in a module beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("LMDVID_DEBUG", raising=False)
    Path("regression.py").write_text((HERE / "regression.py").read_text())
    experiment = {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": [
                {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "runs", "name": "line"},
                }
            ],
        },
        "model": {"class_path": "regression.Regression"},
        "data": {"class_path": "regression.Rows"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def outcome(capsys, line: str) -> tuple[int | None, str]:
    """Exit code and error text of one command line."""
    capsys.readouterr()
    try:
        code = cli.main(line.split())
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


def script(*words: str, timeout: float = 100) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout, check=False
    )


# What is said of a line: the exit code, and words that the error has to contain.
ROOT = Path(__file__).resolve().parent.parent
MISTAKES = {
    "fit --config nosuch.yaml": ["config: File does not exist", "nosuch.yaml"],
    "fit": ["fit.data, fit.model", "--config experiments/"],
    "fit --config run.yaml --trainer.max_epoch 3": ["trainer.max_epoch", "'trainer.max_epochs'?"],
    "fit --config run.yaml --config typo.yaml": ["trainer.max_epoch", "'trainer.max_epochs'?"],
    "fit --config broken.yaml": ["broken.yaml is no valid YAML", "line 2"],
    "fit --config run.yaml --trainer.max_epochs x": ["trainer.max_epochs: expected int; given x"],
    "fit --config run.yaml --trainer.precision bf17": ["trainer.precision", "'bf16-mixed'", "bf17"],
    "fit --config run.yaml --model.init_args.lr abc": ["model.init_args.lr: expected float", "abc"],
    "fit --config run.yaml --model.init_args.lrr 3": ["regression.Regression", "'lrr'", "'lr'?"],
    "fit --config run.yaml --model.init_args.zzz 3": ["'zzz'; it has size, lr, head, fails"],
    "fit --config run.yaml --model regression.Regresion": ["model: ", "'Regression'?"],
    "fit --config run.yaml --model nosuch.Model": ["model: No module named 'nosuch'"],
    "fit --config run.yaml --model regression.Rows": ["model: ", "LightningModule", "Rows"],
    "fit --config run.yaml --data Nosuch": ["data: 'Nosuch' is no dotted class path"],
    "fit --config run.yaml --model.init_args.head regression.Head"
    " --model.init_args.head.init_args.bound x": [
        "model.init_args.head.init_args.bound: expected one of 'none', 'tanh'; given x"
    ],
    "fit --config run.yaml --trainer.logger lightning.pytorch.loggers.CSVLogger"
    " --trainer.logger.sav_dir 3": ["trainer.logger: ", "CSVLogger", "'save_dir'?"],
    "fit --config run.yaml --data.init_args.size 6": ["size 6", "expects 4", "data.init_args.size"],
    "fit --config run.yaml --data.init_args.size 5 --model.init_args.size 5": [
        "regression.Regression: size must be even; got 5"
    ],
    f"fit --config {ROOT}/experiments/inmodegan_puppets.yaml --data.init_args.frames 2": [
        "clips have frames 2 and the model expects 16",
        "data.init_args.frames",
    ],
    "fit --config run.yaml --trainer.accelerator abacus": ["accelerator", "abacus"],
    "fit --config run.yaml --ckpt_path run.yaml": ["ckpt_path: run.yaml", ".ckpt"],
    "fitt": ["no command 'fitt'", "'fit'?", "animate, convert, doctor"],
    "animate --source a.png": ["--driving, --checkpoint, --output", "see lightning animate --help"],
    "animate --source a --driving b --checkpoint c --output d --mode no": ["--mode", "'relative'"],
    "animate --source a --driving b --checkpoint c --output d --batch-size 0": ["--batch-size"],
    "animate --source a --driving b --checkpoint c --output d --crop 1,2,3": ["'face'", "1,2,3"],
    "animate --source a --driving b --checkpoint c --output d --crop 1,2,-3,4": ["--crop"],
    "animate --source a --driving b --checkpoint c --output d --absolute-directions x": ["3,7"],
    "animate --source a --driv b --checkpoint c --output d": ["unrecognized", "--driv b"],
    "convert a.pt": ["folder"],
    "doctor --all": ["--all"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_explained_in_a_few_lines(folder, capsys, line):
    Path("typo.yaml").write_text("trainer: {max_epoch: 3}")
    Path("broken.yaml").write_text("trainer: {max_epochs: 3\nmodel: [")
    code, error = outcome(capsys, line)
    assert code == 2
    assert len(error.splitlines()) <= 4
    assert max(map(len, error.splitlines())) < 400
    assert "usage:" not in error
    assert "Traceback" not in error
    for words in MISTAKES[line]:
        assert words in error


FAILURES = {
    "fit --config run.yaml --data.init_args.root /nosuch": "No such file or directory: /nosuch",
    "fit --config run.yaml --ckpt_path nosuch.ckpt": "Checkpoint file not found: nosuch.ckpt",
    "fit --config run.yaml --model.init_args.fails clip": "cannot read clip.mp4: it is empty",
    "fit --config run.yaml --trainer.fast_dev_run -1": "fast_dev_run=-1 is not a valid",
}


@pytest.mark.parametrize("line", FAILURES)
def test_expected_failures_of_a_run_have_no_traceback(folder, capsys, line):
    code, error = outcome(capsys, line)
    assert code == 1
    assert FAILURES[line] in error.splitlines()[-1]
    assert "Traceback" not in error


def test_bugs_keep_their_traceback(folder):
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main("fit --config run.yaml --model.init_args.fails bug".split())


def test_debug_variable_shows_every_traceback(folder, monkeypatch):
    monkeypatch.setenv("LMDVID_DEBUG", "1")
    with pytest.raises(VideoReadError):
        cli.main("fit --config run.yaml --model.init_args.fails clip".split())


def test_interrupt_ends_with_130(folder, capsys):
    handler = signal.getsignal(signal.SIGINT)
    try:
        code, error = outcome(capsys, "fit --config run.yaml --model.init_args.fails interrupt")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning switches it off for good
    assert code == 130
    assert "Traceback" not in error


def test_explain_knows_own_errors_and_weights_that_do_not_fit():
    class ClipError(VideoReadError):  # defined elsewhere, derived from one of ours
        pass

    assert cli.explain(ClipError("a.mp4", "empty")) == "cannot read a.mp4: empty"
    assert cli.explain(ValueError("a bug")) is None
    assert cli.explain(OSError("odd")) is None
    assert cli.explain(OSError(28, "No space left on device")) == "No space left on device"
    with pytest.raises(RuntimeError) as mismatch:
        torch.nn.Linear(2, 2).load_state_dict(torch.nn.Linear(2, 3).state_dict())
    text = cli.explain(mismatch.value)
    assert text is not None
    assert "size mismatch for weight" in text
    memory = cli.explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert memory is not None
    assert memory.startswith("CUDA out of memory. Lower the batch size: data.init_args.batch_size")


def test_explain_looks_through_the_traceback_of_a_loader_worker():
    def from_worker(error: Exception) -> str | None:
        try:
            raise error
        except Exception:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
        with pytest.raises(Exception, match="Traceback") as raised:
            wrapped.reraise()
        return cli.explain(raised.value)

    assert from_worker(VideoReadError("a.mp4", "empty")) == "cannot read a.mp4: empty"
    missing = FileNotFoundError(2, "No such file or directory", "a.mp4")
    assert from_worker(missing) == "[Errno 2] No such file or directory: 'a.mp4'"
    assert from_worker(ValueError("a bug")) is None


@pytest.mark.slow
def test_script_and_module_train_without_noise_with_classes_of_the_current_folder(folder):
    for number, door in enumerate([[str(SCRIPT)], ["-m", "lmdvid"]]):
        done = script(*door, "fit", "--config", "run.yaml")
        assert done.returncode == 0, done.stderr
        run = Path(f"runs/line/version_{number}")
        assert {p.name for p in run.iterdir()} >= {"config.yaml", "metrics.csv", "checkpoints"}
        for noise in ("litlogger", "litmodels", "TPU", "LeafSpec"):
            assert noise not in done.stdout + done.stderr


def test_second_run_works_without_logger_too(folder, capsys):
    for _ in range(2):
        line = "fit --config run.yaml --trainer.logger false --trainer.enable_checkpointing false"
        assert outcome(capsys, line)[0] == 0
    assert yaml.safe_load(Path("config.yaml").read_text())["trainer"]["logger"] is False


def test_restarts_that_would_look_for_processes_of_before_are_refused(folder, capsys, monkeypatch):
    for name, value in (("MAX_RESTARTS", "3"), ("USE_AGENT_STORE", "True")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    assert outcome(capsys, "fit --config run.yaml")[0] == 0  # alone there is nobody to look for
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, error = outcome(capsys, "fit --config run.yaml")
    assert code == 2
    assert "put TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before `torchrun`" in error


def test_bf16_is_not_imitated_by_processors_without_it(folder, capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    built = {}
    for has, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(cli, "_has_bf16", lambda torch, has=has: has)
        line = ["--config", "run.yaml", "--trainer.precision", "bf16-mixed"]
        built[precision] = cli.build_cli(line, run=False).trainer.precision
    assert built == {"bf16-mixed": "bf16-mixed", "32-true": "32-true"}
    assert "training in 32-true instead" in capsys.readouterr().out


def test_resuming_takes_arguments_from_the_configuration_and_state_from_the_file(folder, capsys):
    assert outcome(capsys, "fit --config run.yaml")[0] == 0
    first = Path("runs/line/version_0", CHECKPOINT)
    line = f"fit --config run.yaml --ckpt_path {first} --trainer.max_epochs 2"
    assert outcome(capsys, f"{line} --model.init_args.lr 0.5")[0] == 0
    second = Path("runs/line/version_1")
    saved = yaml.safe_load((second / "config.yaml").read_text())
    assert saved["model"]["init_args"]["lr"] == 0.5
    state = torch.load(second / "checkpoints/epoch=1-step=8.ckpt", weights_only=True)
    assert state["global_step"] == 8
    assert state["hyper_parameters"]["lr"] == 0.5


def test_weights_of_another_architecture_are_refused_in_few_lines(folder, capsys):
    assert outcome(capsys, "fit --config run.yaml")[0] == 0
    line = f"fit --config run.yaml --ckpt_path runs/line/version_0/{CHECKPOINT}"
    code, error = outcome(capsys, f"{line} --model.init_args.size 6 --data.init_args.size 6")
    assert code == 1
    assert "does not fit the configured model" in error
    assert "line.weight" in error
    assert len(error.splitlines()) <= 5


@pytest.mark.slow
def test_two_processes_are_started_by_the_command_itself(folder):
    words = "fit --config run.yaml --trainer.devices 2 --trainer.strategy ddp"
    done = script(str(SCRIPT), *words.split())
    assert done.returncode == 0, done.stderr
    assert Path("rank0.txt").read_text() == Path("rank1.txt").read_text()


def test_light_commands_import_neither_torch_nor_lightning(folder):
    code = (
        "import sys; from lmdvid import cli, doctor\n"
        "assert cli.main(['--version']) == 0\n"
        "assert cli.main(['--help']) == 0\n"
        "assert cli.main(['fitt']) == 2\n"
        "try: cli.main(['animate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'lightning', 'wandb', 'yaml'} & set(sys.modules)"
    )
    done = script("-c", code)
    assert done.returncode == 0, done.stderr
    assert f"lmdvid {version('lmdvid')} (lightning {version('lightning')}" in done.stdout


def test_overview_and_help_say_what_the_command_sets(folder, capsys):
    assert cli.main([]) == 2
    overview = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "animate", "convert", "doctor"):
        assert f"\n  {command} " in overview
    with pytest.raises(SystemExit, match="0"):
        cli.main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: lightning [options] fit")
    assert "data and the model both have an argument `size`" in text
    assert "TF32" in text


def test_program_name_follows_the_door_that_was_taken(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lmdvid"])
    assert outcome(capsys, "nosuch")[1].startswith("lmdvid: error: no command 'nosuch'")
    monkeypatch.setattr(sys, "argv", ["/x/lmdvid/__main__.py"])
    assert outcome(capsys, "nosuch")[1].startswith("python -m lmdvid: error:")


def test_the_current_folder_comes_last_on_the_path(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    outcome(capsys, "--version")
    outcome(capsys, "--version")
    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_unknown_commands_go_to_the_other_program_of_that_name(folder, capsys, monkeypatch):
    calls = []

    def entry(owner, target):
        return types.SimpleNamespace(dist=types.SimpleNamespace(name=owner), load=lambda: target)

    def studio() -> int:
        calls.append(sys.argv[1:])
        return 7

    scripts = [entry("lmdvid", cli.main), entry("lightning_sdk", studio)]
    asked = []
    monkeypatch.setattr(cli, "entry_points", lambda **query: asked.append(query) or scripts)
    assert cli.main(["studio", "--help"]) == 7
    assert calls == [["studio", "--help"]]
    assert asked == [{"group": "console_scripts", "name": "lightning"}]

    monkeypatch.setattr(cli, "entry_points", lambda **_: scripts[:1])
    code, error = outcome(capsys, "studio")
    assert (code, len(error.splitlines())) == (2, 1)
    assert "fit, validate, test, predict, animate, convert, doctor" in error


def test_animate_passes_every_option(folder, monkeypatch):
    calls = []
    fake = types.ModuleType("lmdvid.animate")
    fake.animate_file = lambda *args, **kwargs: calls.append((args, kwargs))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmdvid.animate", fake)
    monkeypatch.setattr("lmdvid.animate", fake, raising=False)
    line = "animate --source f.png --driving d.mp4 --checkpoint c --output o.mp4"
    assert cli.main(line.split()) == 0
    more = "--mode absolute --side-by-side --fit pad --batch-size 3 --device cpu --dtype bfloat16"
    parts = "--absolute-directions 3,7 --magnitude 1.5 --crop 1,2,3,4 --driving-crop face"
    edit = "--set 3=1.5 --set 7=-0.8 --reference best"
    rest = [*edit.split(), "--no-audio", "--compile"]
    assert cli.main([*line.split(), *more.split(), *parts.split(), *rest]) == 0
    several = line.replace("f.png", "f.png g.png").replace("d.mp4", "d.mp4 e.mp4")
    assert cli.main([*several.split(), "--paste-back"]) == 0
    files = (["f.png"], ["d.mp4"], "c", "o.mp4")
    assert calls[0] == (
        files,
        {
            "mode": None,
            "side_by_side": False,
            "fit": "crop",
            "batch_size": None,
            "device": "auto",
            "dtype": None,
            "audio": True,
            "progress": True,
            "absolute_directions": (),
            "magnitude": 1.0,
            "crop": None,
            "driving_crop": None,
            "paste_back": False,
            "edit": {},
            "reference": 0,
            "compile": False,
        },
    )
    assert calls[1] == (
        files,
        {
            "mode": "absolute",
            "side_by_side": True,
            "fit": "pad",
            "batch_size": 3,
            "device": "cpu",
            "dtype": "bfloat16",
            "audio": False,
            "progress": True,
            "absolute_directions": (3, 7),
            "magnitude": 1.5,
            "crop": (1, 2, 3, 4),
            "driving_crop": "face",
            "paste_back": False,
            "edit": {3: 1.5, 7: -0.8},
            "reference": "best",
            "compile": True,
        },
    )
    assert calls[2][0] == (["f.png", "g.png"], ["d.mp4", "e.mp4"], "c", "o.mp4")
    assert calls[2][1]["paste_back"] is True


def test_animate_words_the_errors_of_files(folder, monkeypatch, capsys):
    def animate_file(sources, *_, **__):
        raise VideoReadError(sources[0], "no such file")

    fake = types.ModuleType("lmdvid.animate")
    fake.animate_file = animate_file  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmdvid.animate", fake)
    monkeypatch.setattr("lmdvid.animate", fake, raising=False)
    code, error = outcome(
        capsys, "animate --source f.png --driving d.mp4 --checkpoint c --output o.mp4"
    )
    assert (code, error) == (1, "lightning: error: cannot read f.png: no such file\n")


def test_convert_prints_the_report(folder, monkeypatch, capsys):
    fake = types.ModuleType("lmdvid.pretrained")
    fake.convert = lambda path, folder, *how: f"{path} -> {folder}: 201 tensors {how}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmdvid.pretrained", fake)
    monkeypatch.setattr("lmdvid.pretrained", fake, raising=False)
    assert cli.main(["convert", "a.pt", "out"]) == 0
    assert capsys.readouterr().out == "a.pt -> out: 201 tensors (None, None)\n"


def test_summarise_keeps_messages_it_does_not_understand():
    assert cli.summarise("plain words") == "plain words"
    assert cli.summarise("two\nlines of one reason") == "two lines of one reason"
    assert cli.summarise("Errors:") == "Errors:"
