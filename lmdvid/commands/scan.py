"""``lmdvid scan``."""

import argparse
from pathlib import Path

from lmdvid.commands import UsageError

HELP = "look into every clip of a folder: sizes, codecs, what cannot be read"
EPILOG = "Exit code 1 if a clip cannot be read. Training uses the table that this makes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the folder."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of a data set, or one clip")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for one clip, and a second more for every 10 MB (default: %(default)g)",
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Scan, and sum up."""
    if not options.timeout > 0:
        parser.error(f"argument --timeout: must be above 0; given {options.timeout:g}")

    from data_modules.index import find_clips
    from lmdvid.video import scan_clips

    root = Path(options.folder).expanduser()
    paths = find_clips(root)
    if not paths:
        raise UsageError(f"{root} holds no clip: neither videos, gifs nor folders of pictures")
    scan = scan_clips(root, paths.values(), timeout=options.timeout)
    print("\n".join(scan.summary()))
    return int(any(clip.error for clip in scan.clips))
