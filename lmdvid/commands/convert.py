"""``lmdvid convert``."""

import argparse

HELP = "turn an official checkpoint or a training run into a folder of weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the file and the folder."""
    parser.add_argument("path", help="official checkpoint (.pt) or training checkpoint (.ckpt)")
    parser.add_argument("folder", help="folder to write model.safetensors and config.json to")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number format in the file; bfloat16 halves it (default: as they are). Networks are "
        "loaded as float32 in any case",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="what weights cannot tell: mraa-vox256, mraa-taichi256, mraa-ted384, mraa-mgif256 for "
        "files that are none of MRAA's released ones; fomm (as today's PyTorch runs it, the "
        "default) or fomm-corners (as the one of its time did)",
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Convert, and report what was left out."""
    import torch

    from lmdvid import pretrained

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    print(pretrained.convert(options.path, options.folder, dtype, options.preset))
    return 0
