"""The ``lightning`` and ``lmdvid`` commands: dispatch, parser, defaults, error messages.

Nothing heavy is imported before a command is known to need it: help, ``--version`` and a mistyped
command answer at once, and ``doctor`` can report on a broken installation.
"""

import argparse
import difflib
import errno
import inspect
import logging
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, NoReturn

from lmdvid import commands
from lmdvid.commands import UsageError

TRAINING = {
    "fit": "train a model",
    "validate": "score a model on the validation clips",
    "test": "score a model on the test clips",
    "predict": "run a model over the prediction clips",
}

DEFAULTS = """\
Set by this command, whatever the configuration says: on a processor without bf16 instructions,
bf16-mixed becomes 32-true, with a line that says so; options cannot be abbreviated; on CUDA,
float32 matrix products use TF32 (torch.set_float32_matmul_precision("high")); config.yaml in the
log directory is overwritten, so that a run can be repeated; with --ckpt_path the configuration
gives every argument and the checkpoint the state; --ckpt_path last is the newest checkpoint of the
experiment (of its first logger's folder and name); checkpoints are written under another name and
then renamed, so that a kill leaves the previous one whole; metrics.csv is written row by row, and
a resumed run's begins with the rows before the checkpoint; SIGTERM and SIGUSR1 end a training with
the checkpoint interrupted.ckpt, and in a SLURM job SIGUSR1 has it queued again. Class paths are
full dotted names; modules are looked for in the environment first, then in the current directory.
Where the data and the model both have an argument `size`, or `frames`, the two must be equal.
LMDVID_DEBUG=1 shows tracebacks."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs one command line.

    Args:
        argv: arguments after the program's name; default those of the process.

    Returns:
        Exit code: 0 for success, 1 for a run that failed, 2 for a command line or
        configuration that makes no sense, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    prog = _program()
    # A console script sees its own folder, not the current one. Appended, so that a file of the
    # user's can never stand in for an installed module.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())

    # Clips and feature maps are many pages of memory, new ones all the time: in large pages the
    # system hands them out several times as fast. torch reads this when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    command = argv[0] if argv else "--help"
    try:
        if command in ("-h", "--help"):
            print(_overview(prog))
            return 0 if argv else 2
        if command == "--version":
            libraries = ", ".join(f"{name} {version(name)}" for name in ("lightning", "torch"))
            print(f"lmdvid {version('lmdvid')} ({libraries})")
            return 0
        if command in commands.names():
            return commands.run(command, argv[1:], prog)
        if command in TRAINING or command.startswith("-"):
            build_cli(argv, prog=prog)
            return 0
        return _delegate(prog, argv)
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        # Lightning shuts a run down after Ctrl-C and leaves with code 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return 130
        raise
    except Exception as error:
        text = None if _debugging() else explain(error)
        if text is None:
            raise
        print(f"{prog}: error: {text}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


_OWN = ("lmdvid.", "data_modules.")
_ENDED_WORKER = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) (is killed by signal: \w+|exited unexpectedly)"
)
_ENDED_PEER = re.compile(r"Connection (closed|reset) by peer|remote process exited", re.I)


def explain(error: BaseException) -> str | None:
    """Words an exception for the person at the terminal, or returns None for a bug.

    Expected are: exception classes that lmdvid or data_modules define (or that derive from one of
    those), files that cannot be opened, what Lightning calls a misconfiguration, weights that do
    not fit or cannot be read, and memory or disk running out. Everything else keeps its traceback.
    """
    text = str(error)
    if text.startswith("Caught ") and " in DataLoader worker process" in text:
        # torch puts the worker's traceback into the message, and may change the class.
        name, _, text = text.strip().splitlines()[-1].partition(": ")
        return text if name.startswith(_OWN) or name == "FileNotFoundError" else None
    if found := _ENDED_WORKER.search(text):
        return (
            f"a process that reads clips ended ({found[0]}), as where memory runs out: lower "
            "data.init_args.num_workers or batch_size, and go on with --ckpt_path last"
        )
    if found := _ENDED_PEER.search(text):
        return (
            f"another process of this training ended ({found[0].lower()}); what it said tells why. "
            "Go on with --ckpt_path last"
        )
    if any(f"{c.__module__}.".startswith(_OWN) for c in type(error).mro()):
        return text
    if isinstance(error, OSError):
        if error.filename is not None:
            return f"{error.strerror}: {error.filename}"
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENOSPC:
            return error.strerror or text
        return None
    if type(error).__name__ == "MisconfigurationException":
        return text
    if isinstance(error, pickle.UnpicklingError):
        reason, *_ = text.splitlines() or [type(error).__name__]
        return f"cannot read the checkpoint: {reason}"
    if isinstance(error, RuntimeError) and text.startswith("Error(s) in loading state_dict"):
        lines = [line.strip() for line in text.splitlines()]
        shown = "\n  ".join(line[:200] + "…" * (len(line) > 200) for line in lines[1:4])
        return f"the checkpoint does not fit the configured model. {lines[0]}\n  {shown}"
    if type(error).__name__ == "OutOfMemoryError":
        batch = "data.init_args.batch_size, or --batch-size of animate"
        return f"{text.split('. ')[0]}. Lower the batch size: {batch}."
    return None


def _debugging() -> bool:
    return os.environ.get("LMDVID_DEBUG", "0") not in ("", "0")


def _program() -> str:
    path = Path(sys.argv[0])
    return "python -m lmdvid" if path.name == "__main__.py" else path.name


def _overview(prog: str) -> str:
    others = {name: commands.load(name).HELP for name in commands.names()}
    lines = "\n".join(f"  {name:<10} {text}" for name, text in (TRAINING | others).items())
    return (
        f"usage: {prog} <command> [options]\n\n{lines}\n\n"
        f"  {prog} fit --config experiments/lia_puppets.yaml    trains without data of your own\n"
        f"  {prog} <command> --help                             lists a command's options\n"
        f"  {prog} --version"
    )


def _delegate(prog: str, argv: list[str]) -> int | None:
    """Hands the line to another installed program that is also called ``lightning``."""
    for script in entry_points(group="console_scripts", name="lightning"):
        if script.dist is not None and script.dist.name != "lmdvid":
            sys.argv[1:] = argv
            return script.load()()
    known = [*TRAINING, *commands.names()]
    meant = _nearest(argv[0], known)
    raise UsageError(f"no command '{argv[0]}'{meant} (commands: {', '.join(known)})")


# Lines that tell whoever trains a model nothing they can act on.
_NOISE = (
    # advertisements for services of Lightning's makers, printed at every start
    "litlogger",
    "litmodels",
    # nobody asks whether a TPU is used; one that is used is named in the configuration
    "TPU available",
)


_TIME_LIMIT = (
    "trainer.max_time counts a run and what it was resumed from together: to go on, give more, "
    "such as --trainer.max_time 00:01:00:00 (days:hours:minutes:seconds) --ckpt_path last"
)


def _has_bf16(torch) -> bool:
    """Whether this processor multiplies bf16 itself; oneDNN imitates it where it does not."""
    return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _refuse_stale_addresses() -> None:
    """Refuse what hangs, or fails to connect, at the first restart, perhaps days after the start.

    torchrun keeps one store for all attempts (torch 2.13; its other kinds of rendezvous always do),
    where a process that comes first finds the addresses that the earlier attempt left.
    """
    more_than_one = int(os.environ.get("WORLD_SIZE", "1")) > 1
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if more_than_one and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UsageError(
            "torchrun --max-restarts lets processes look for those of an earlier attempt: put "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before `torchrun`, and use --rdzv-backend c10d "
            "(on one machine --standalone)"
        )


def _useful(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if text.startswith("Time limit reached"):  # also at once, where a run is resumed after that
        record.msg, record.args = f"{text} {_TIME_LIMIT}", None
    return not any(word in text for word in _NOISE)


def _silence() -> None:
    if not (log := logging.getLogger("lmdvid")).handlers:
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_useful)
    # Lightning 2.6 calls retired functions of torch and of jsonargparse at every start.
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
    # The summary table counts 4 bytes a parameter under mixed precision, which is what it takes.
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    # The frozen feature network and the averaged generator are in eval mode on purpose.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
    # Every run has a folder of its own, so a resumed one keeps its checkpoints elsewhere.
    warnings.filterwarnings("ignore", "The dirpath has changed")
    # Checkpoints hold the weights after the step: what one wants, and what resuming needs.
    warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def summarise(message: str) -> str:
    """Shortens what jsonargparse says of a value to its key, the reason and the value given.

    Where a value may be, say, a class or nothing, the original reports every alternative with the
    Python types that were tried; here the deepest one is kept, which is the one that was meant.
    """
    place: list[tuple[int, str]] = []  # (indentation, key) of the values the line lies within
    classes: list[tuple[int, str]] = []  # (indentation, class path), likewise
    reasons: list[tuple[tuple[int, str, str], str]] = []  # (depth, key, class path), reason
    given = built = ""
    starts = True
    for line in filter(str.strip, message.splitlines()):
        text = line.lstrip(" -")
        indent = len(line) - len(text)
        starts = starts or line.lstrip().startswith("- ")
        place = [entry for entry in place if entry[0] < indent]
        classes = [entry for entry in classes if entry[0] < indent]
        if found := re.match(r'Parser key "(.+?)":\s*(.*)', text):
            # What belongs to the outermost key is not always indented.
            place.append((indent if place else -1, found[1]))
            text, starts = found[2], True
        elif found := re.match(r"Problem with given class_path '(.+?)':", text):
            classes.append((indent, found[1]))
            place.append((indent, "init_args"))
            text, starts = "", True
        elif found := re.match(r"Given value: Namespace\(class_path='(.+?)'", text):
            built = found[1]
        elif found := re.match(r"Given value: (?!NestedArg|Namespace|\{)(.*)", text):
            given = found[1]
        if not text or text.startswith(_SCAFFOLD):
            continue
        key, owner = ".".join(name for _, name in place), classes[-1][1] if classes else ""
        if starts or not reasons:
            reasons.append(((len(place), key, owner), _reason(text, owner)))
        else:
            reasons[-1] = (reasons[-1][0], f"{reasons[-1][1]} {text}")
        starts = False
    if not reasons:
        return message
    deepest = max((where for where, _ in reasons), key=lambda where: where[0])
    text = "; or ".join(dict.fromkeys(reason for where, reason in reasons if where == deepest))
    key = deepest[1].removesuffix(".init_args") or built
    if given and not re.search(rf"(?<!\w){re.escape(given)}(?!\w)", text):
        text += f"; given {given}"
    return f"{key}: {text}" if key else text


_SCAFFOLD = (
    "Does not validate against",
    "Subtypes: ",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)


def _reason(text: str, owner: str) -> str:
    if found := re.match(r"Option '(.+?)' is not accepted", text):
        known = _arguments(owner)
        meant = _nearest(found[1], known) or f"; it has {', '.join(known) or 'none'}"
        return f"{owner} has no argument '{found[1]}'{meant}"
    if found := re.match(r"module '(.+?)' has no attribute '(.+?)'", text):
        return text + _nearest(found[2], dir(import_module(found[1])))
    if found := re.match(r"Expected a dot import path string: (.*)", text):
        return f"'{found[1]}' is no dotted class path such as package.module.Class"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    return re.sub(r"\. Got value: ", "; given ", re.sub(r"^Expected an? ", "expected ", text))


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _nearest(word: str, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, options, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _unknown_option(message: str, parser) -> str | None:
    found = re.search(r"unrecognized arguments: (\S+?)(?:[= ]|$)", message) or re.search(
        r"does not accept option '(.+?)'", message
    )
    if found is None:
        return None
    subcommands = parser._subcommands_action
    parsers = subcommands._name_parser_map.values() if subcommands else [parser]
    known = {name.lstrip("-") for p in parsers for name in p._option_string_actions}
    return f"no option '{found[1]}'" + _nearest(found[1].lstrip("-"), known)


def _broken_file(message: str, args: Sequence[str]) -> str | None:
    """Names the configuration file that is no YAML, which the parser's message leaves out."""
    if not message.startswith("Problems parsing config"):
        return None
    import yaml

    for word in args:
        path = Path(word.partition("=")[2] or word)
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            try:
                yaml.safe_load(path.read_text())
            except yaml.YAMLError as error:
                return f"{path} is no valid YAML: {' '.join(str(error).split())}"
    return None


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def build_cli(args: Sequence[str], *, prog: str = "lightning", run: bool = True):
    """Parses a training command line and, with ``run``, carries it out.

    Args:
        args: such as ``["fit", "--config", "experiments/lia_puppets.yaml"]``; without the command
            where ``run`` is false.
        prog: name of the program in messages.
        run: False only builds trainer, model and data, as attributes of what is returned.

    Returns:
        The ``LightningCLI``.

    Raises:
        SystemExit: with code 2 for an option or configuration that is not understood.
        UsageError: for settings that a constructor refuses, or that contradict each other.
    """
    _silence()
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.utilities import rank_zero_info

    from lmdvid import checkpoints
    from lmdvid.callbacks import ContinuedLog
    from lmdvid.preemption import Preemption

    class Parser(LightningArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if _debugging() or not self.exit_on_error:  # parsers of nested classes do not exit
                raise argparse.ArgumentError(None, message) from ex
            name = f"{prog} {args[0]}" if args and args[0] in TRAINING else prog
            text = _unknown_option(message, self) or _broken_file(message, args)
            text = text or summarise(message)
            if text.startswith("the following arguments are required"):
                text += " (an experiment's file gives them: --config experiments/NAME.yaml)"
            self.exit(2, f"{name}: error: {text}\nsee {name} --help\n")

    class CLI(LightningCLI):
        def parse_arguments(self, parser, args) -> None:
            self.config = parser.parse_args(args)

        def _parse_ckpt_path(self) -> None:
            # Lightning would let the checkpoint's arguments win over the command line's, in
            # silence. Here the configuration is the whole truth; the checkpoint gives the weights.
            path = self._section().get("ckpt_path")
            if not path or not Path(path).is_file():
                return
            try:
                checkpoints.check(Path(path), *self._wanted())
            except checkpoints.CheckpointError as error:
                beside = checkpoints.folders_beside(Path(path))
                other = checkpoints.newest(beside, *self._wanted(), besides=Path(path))
                remedy = (
                    f"the newest usable one is --ckpt_path {_relative(other[0])} (step {other[1]})"
                    if other
                    else "give a .ckpt file that `fit` wrote"
                )
                raise UsageError(f"ckpt_path: {error}; {remedy}") from error

        def _wanted(self) -> tuple[bool, bool]:
            """Whether training goes on from the checkpoint, and whether it holds plain data."""
            training = self.config["subcommand"] == "fit"
            return training, self._section().get("weights_only") is not False

        def _prepare_subcommand_kwargs(self, subcommand: str) -> dict:
            kwargs = super()._prepare_subcommand_kwargs(subcommand)
            if kwargs.get("ckpt_path") == "last":
                # process 0 tells the others when they can talk
                zero = self.trainer.is_global_zero
                kwargs["ckpt_path"] = self._last(subcommand) if zero else None
            return kwargs

        def _last(self, subcommand: str) -> str | None:
            # Lightning looks in the folder of the run that is about to begin, finds nothing
            # there, and trains from the start.
            found = checkpoints.newest(checkpoints.folders(self.trainer), *self._wanted())
            if found:
                rank_zero_info(f"--ckpt_path last: {_relative(found[0])} (step {found[1]})")
                return str(found[0])
            if subcommand != "fit":
                raise UsageError(
                    "ckpt_path: last, but this experiment has no checkpoint yet; run `fit` first, "
                    "or give the path of a .ckpt file"
                )
            rank_zero_info(
                "--ckpt_path last: no checkpoint of this experiment yet, so it begins at step 0"
            )
            return None

        def before_instantiate_classes(self) -> None:
            import torch

            _refuse_stale_addresses()
            if self.config.get("subcommand") == "predict":
                # Nobody is left to take them when the command ends; callbacks write them.
                self._section()["return_predictions"] = False
            for name, what in (("size", "frames have size"), ("frames", "clips have frames")):
                model, data = (self._argument(key, name) for key in ("model", "data"))
                if None not in (model, data) and model != data:
                    raise UsageError(
                        f"the data's {what} {data} and the model expects {model}: set "
                        f"data.init_args.{name} and model.init_args.{name} to the same value"
                    )
            trainer = self._section().get("trainer") or {}
            if (
                trainer.get("precision") in ("bf16-mixed", "bf16")
                and trainer.get("accelerator") in ("auto", "cpu")
                and not torch.accelerator.is_available()
                and not _has_bf16(torch)
            ):
                trainer["precision"] = "32-true"
                print(
                    "this processor has no bf16 instructions and would imitate bf16-mixed about "
                    "twenty times slower: training in 32-true instead"
                )
            if torch.cuda.is_available():
                # TF32 products keep 10 bits of mantissa, enough for training, and run several
                # times faster than float32 ones; torch asks for this choice in a warning.
                torch.set_float32_matmul_precision("high")

        def _section(self):
            return self.config[self.config["subcommand"]] if run else self.config

        def _argument(self, key: str, name: str) -> object:
            return ((self._section().get(key) or {}).get("init_args") or {}).get(name)

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except ValueError as error:
                # A constructor refused its arguments, and they all come from the configuration.
                raise UsageError(summarise(str(error))) from error

        def instantiate_trainer(self, **kwargs):
            trainer: Any = super().instantiate_trainer(**kwargs)
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none was configured
                trainer.strategy.checkpoint_io = checkpoints.AtomicCheckpointIO()
            if trainer.fast_dev_run:  # in which Lightning 2.6 still has `save_last` write its file
                trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, Checkpoint)]
            return trainer

    kwargs: dict = {"prog": prog, "allow_abbrev": False}
    return CLI(
        LightningModule,
        LightningDataModule,
        trainer_class=checkpoints.Trainer,
        parser_class=Parser,
        parser_kwargs=kwargs | {name: {"epilog": DEFAULTS} for name in TRAINING},
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"callbacks": [ContinuedLog(), Preemption()]},
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        args=list(args),
        run=run,
    )
