"""``lmdvid convert``."""

import argparse

HELP = "turn an official checkpoint or a training run into a folder of weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the file and the folder."""
    parser.add_argument("path", help="official checkpoint (.pt) or training checkpoint (.ckpt)")
    parser.add_argument("folder", help="folder to write model.safetensors and config.json to")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Convert, and report what was left out."""
    from lmdvid import pretrained

    print(pretrained.convert(options.path, options.folder))
    return 0
