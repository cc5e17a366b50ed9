"""``lmdvid puppets``."""

import argparse
import math
from pathlib import Path

HELP = "draw puppet pictures and driving clips to try the program with"
EPILOG = (
    "Then, for example: lmdvid animate --checkpoint puppets --source DIR/still_0.png --driving "
    "DIR/clip_0.mp4 --output out.mp4. No network was trained on these identities and motions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the folder, and say how many of what."""
    add = parser.add_argument
    add("folder", metavar="DIR", help="folder to write still_0.png, ... and clip_0.mp4, ... to")
    add("--kind", choices=("head", "taichi"), default="head", help="of puppet (%(default)s)")
    add("--size", type=int, default=256, metavar="PX", help="32 to 512 (default: %(default)s)")
    add("--stills", type=int, default=4, metavar="N", help="pictures (default: %(default)s)")
    add("--clips", type=int, default=2, metavar="N", help="of other puppets (default: %(default)s)")
    add("--seconds", type=float, default=4.0, metavar="S", help="of each clip (%(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="of all that is drawn (%(default)s)")
    add(
        "--truth",
        action="store_true",
        help="also draw every still's puppet in the poses of every clip, still_0_clip_0.mp4, ...: "
        "what an animation should look like",
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Draw."""
    for name in ("stills", "clips", "seed"):
        if getattr(options, name) < 0:
            parser.error(f"argument --{name}: must be 0 or more; given {getattr(options, name)}")
    frames = round(25 * options.seconds) if math.isfinite(options.seconds) else 0
    if frames < 1:
        parser.error(f"argument --seconds: must be a frame or more; given {options.seconds}")

    from data_modules import puppetry
    from data_modules.puppet_clips import DEMO_SEED
    from lmdvid.video import write_image, write_video

    low, high = puppetry.SIZES
    if not low <= options.size <= high:
        parser.error(f"argument --size: must be {low} to {high}; given {options.size}")
    folder, kind, size = Path(options.folder), options.kind, options.size
    first = DEMO_SEED + 1000 * options.seed
    people = [puppetry.identity(first + i, kind) for i in range(options.stills)]
    for i, who in enumerate(people):
        picture = puppetry.render(who, puppetry.neutral_pose(kind), size, kind)
        write_image(folder / f"still_{i}.png", picture)
    for j in range(options.clips):
        seed = first + options.stills + j
        poses = puppetry.pose_path(seed, frames, kind)
        clip = puppetry.render(puppetry.identity(seed, kind), poses, size, kind)
        write_video(folder / f"clip_{j}.mp4", clip, 25)
        for i, who in enumerate(people if options.truth else []):
            drawn = puppetry.render(who, poses, size, kind)
            write_video(folder / f"still_{i}_clip_{j}.mp4", drawn, 25)
    print(f"wrote {options.stills} stills and {options.clips} clips to {folder}")
    return 0
