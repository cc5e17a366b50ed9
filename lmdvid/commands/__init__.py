"""What ``lmdvid`` does besides training: one file for each command, named after it.

A command's file has `HELP`, one line; `add_arguments(parser)`; and `run(options, parser)`, which
returns the exit code. It may have `EPILOG`. Whatever is heavy is imported within `run`, so that
help and a mistyped option answer at once.
"""

import argparse
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn


class UsageError(ValueError):
    """What was asked for cannot be done as written; the text says why and what to do."""


class Parser(argparse.ArgumentParser):
    """Plain options, with errors in two lines instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\nsee {self.prog} --help\n")


def names() -> list[str]:
    """The commands, in the order of the alphabet."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The file of a command."""
    return import_module(f"{__name__}.{name}")


def run(name: str, argv: Sequence[str], prog: str) -> int:
    """Parse a command's line and carry it out.

    Args:
        name: one of `names()`.
        argv: arguments after the command.
        prog: name of the program in messages.

    Returns:
        The exit code.
    """
    command = load(name)
    parser = Parser(
        prog=f"{prog} {name}",
        description=command.HELP,
        epilog=getattr(command, "EPILOG", None),
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv), parser)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read an option such as `3,7`."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers such as 3,7; given {text}"
        ) from None
