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


def edit(pairs: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Directions and how far to go, of an option that may be repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UsageError("a direction is set twice: give --set once for each")
    return found


def magnitude(text: str) -> tuple[int, float]:
    """Read an option such as `3=1.5`: a direction and how far to go along it."""
    direction, _, value = text.partition("=")
    try:
        return int(direction), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a direction and a number such as 3=1.5; given {text}"
        ) from None


def box(text: str) -> tuple[int, ...] | str:
    """Read an option such as `40,0,256,256`, or `face`."""
    if text == "face":
        return text
    numbers = text.split(",")
    if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(
            f"expected 'face' or x,y,width,height in pixels, such as 40,0,256,256; given {text}"
        )
    return tuple(map(int, numbers))
