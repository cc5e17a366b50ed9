"""``lmdvid doctor``."""

import argparse

HELP = "report what is installed, what is broken and how to repair it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the report; exit code 1 if something is broken."""
    from lmdvid import doctor

    return doctor.main()
