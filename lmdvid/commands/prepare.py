"""``lmdvid prepare``."""

import argparse
import sys
from pathlib import Path

from lmdvid.commands import UsageError

HELP = "re-encode clips, so that training reads them several times faster"
EPILOG = (
    "Exit code 1 if a clip failed. Started again, it goes on where it stopped; other settings "
    "encode everything anew."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the folders and the settings."""
    add = parser.add_argument
    add("what", choices=("clips",), help="videos, gifs and folders of frames, at any depth")
    add("--input", required=True, metavar="FOLDER", help="originals, which are only read")
    add("--output", required=True, metavar="FOLDER", help="where the same folders are made")
    add("--size", type=int, default=256, metavar="PX", help="side of the frames (%(default)s)")
    add(
        "--fit",
        choices=("crop", "pad", "keep"),
        default="crop",
        help="cut out the central square, as training does; pad to a square; or keep the shape "
        "with a shorter side of PX (default: %(default)s)",
    )
    add(
        "--crf", type=float, default=18, metavar="N", help="quality, 0 best, 51 worst (%(default)g)"
    )
    add("--jobs", type=int, metavar="N", help="processes (default: one for each core)")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Prepare, and count."""
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1; given {options.jobs}")

    from data_modules.index import find_clips
    from lmdvid.prepare import PrepareError, Settings, prepare_clips

    root, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    clips = find_clips(root)
    if not clips:
        raise UsageError(f"{root} holds no clip: neither videos, gifs nor folders of pictures")
    try:
        settings = Settings(options.size, options.fit, options.crf)
        done = prepare_clips(clips, root, output, settings, options.jobs, progress=True)
    except PrepareError as error:
        raise UsageError(str(error)) from None
    for reason in list(done.failed.values())[:20]:
        print(reason, file=sys.stderr)
    if done.strangers:
        print(f"{len(done.strangers)} file(s) in {output} come from no clip in {root}: left there")
    failed = f"{len(done.failed)} failed (listed in {done.report})" if done.failed else "0 failed"
    print(f"{len(done.made)} clips prepared, {len(done.kept)} were there already, {failed}")
    return int(bool(done.failed))
