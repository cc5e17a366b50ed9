"""``lmdvid generate``."""

import argparse

from lmdvid.commands import whole_numbers

HELP = "make videos from noise, or from a picture and noise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the network and the output, and say which videos."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="network's folder or training .ckpt")
    add(
        "--output",
        required=True,
        metavar="PATH",
        help="folder for one mp4 each; .mp4 or .gif: a grid that plays all; .png or .jpg: a sheet "
        "with a row for each video",
    )
    add("--num", type=int, default=16, metavar="N", help="videos (default: %(default)s)")
    add(
        "--frames",
        type=int,
        metavar="T",
        help="of each (default: what the network makes by itself, 16 or, with a picture, 32)",
    )
    add("--seed", type=int, default=0, metavar="S", help="of all noise (default: %(default)s)")
    add("--image", metavar="PATH", help="picture that moves (ImaGINator)")
    add(
        "--label",
        metavar="CLASS",
        help="what it does, by name or number (default: all classes in turn)",
    )
    add(
        "--truncation",
        type=float,
        default=1.0,
        metavar="PSI",
        help="below 1: more typical, less varied appearances (default: %(default)s)",
    )
    add(
        "--fix",
        choices=("appearance", "motion"),
        help="all videos show the first one's appearance, or perform its motion",
    )
    add(
        "--interpolate",
        action="store_true",
        help="the N videos go from one appearance to another, with one motion",
    )
    add(
        "--activate",
        type=whole_numbers,
        default=(),
        metavar="I,J,...",
        help="move along these directions alone, by the network's own magnitudes",
    )
    add(
        "--control",
        action="append",
        default=[],
        metavar="I=PATH",
        help="go along direction I as told, all others rest: 1=linear:0..3, 511=sine:2,16 "
        "(amplitude, period in frames), 7=constant:1.5; may be repeated",
    )
    add(
        "--alpha",
        metavar="FILE",
        help="the walks themselves: csv with directions as columns and places in each frame as "
        "rows, or an npz of --save-codes",
    )
    add("--save-codes", action="store_true", help="write each video's codes beside it, as .npz")
    add("--fps", type=float, metavar="F", help="frames per second (default: 25)")
    add("--columns", type=int, metavar="N", help="of a grid that plays (default: makes it square)")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="videos at once, into a folder (default: 8)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; default: the fastest one here")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Generate, and say where the videos are."""
    from lmdvid.generate import Plan, generate_files

    plan = Plan(
        frames=options.frames,
        seed=options.seed,
        truncation=options.truncation,
        fix=options.fix,
        interpolate=options.num if options.interpolate else None,
        activate=options.activate,
        control=options.control,
        alpha=options.alpha,
        image=options.image,
        label=options.label,
    )
    paths = generate_files(
        options.checkpoint,
        options.output,
        options.num,
        plan,
        options.fps,
        options.columns,
        options.batch_size,
        options.device,
        options.save_codes,
    )
    print(
        f"wrote {paths[0]}"
        if len(paths) == 1
        else f"wrote {len(paths)} videos to {paths[0].parent}"
    )
    return 0
