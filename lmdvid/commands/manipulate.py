"""``lmdvid manipulate``."""

import argparse

from lmdvid.commands import box, edit, magnitude, whole_numbers

HELP = "move a picture by hand along the motion directions of a network"
EPILOG = (
    "Without --set every direction is swept: how far is read from directions.json beside the "
    "weights, which `lmdvid interpret` writes, or else 3 to either side. A video edited from its "
    "first frame alone: lmdvid animate --source CLIP --driving CLIP --set 3=1.5 ..."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the files, and say where to go."""
    add = parser.add_argument
    add(
        "--source",
        required=True,
        metavar="FILE",
        help="picture; or a video, of which --set edits every frame and a sweep shows the first",
    )
    add(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="converted folder, training .ckpt, or `puppets`, which is installed",
    )
    add(
        "--output",
        required=True,
        metavar="PATH",
        help="sweep: .png, .jpg (rows: directions, columns: how far), .mp4, .gif (all at once), or "
        "a folder for a sheet and a video of each; --set: .png, .jpg, or .mp4, .gif",
    )
    add(
        "--set",
        type=magnitude,
        action="append",
        default=[],
        metavar="I=DELTA",
        help="go DELTA along direction I, such as 3=1.5; may be repeated",
    )
    add(
        "--start",
        choices=("source", "reference"),
        default="source",
        help="begin at the picture's own pose, or at the network's reference (default: source)",
    )
    add(
        "--directions",
        type=whole_numbers,
        metavar="I,J,...",
        help="sweep these, counted from 0 (default: all)",
    )
    add("--columns", type=int, metavar="N", help="of the sheet, odd (default: 7)")
    add(
        "--range",
        type=_range,
        metavar="LOW..HIGH",
        help="sweep every direction so far, such as --range=-2..2",
    )
    add("--side-by-side", action="store_true", help="show the source beside what --set makes of it")
    add(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="how frames become square (default: %(default)s)",
    )
    add(
        "--crop",
        type=box,
        metavar="X,Y,W,H|face",
        help="part of the source to use: upper left corner, width and height in pixels, or the "
        "largest face with room around it (needs opencv-python-headless<5)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; default: the fastest one here")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Manipulate, and say where the results are."""
    from lmdvid.manipulate import manipulate_file

    paths = manipulate_file(
        options.source,
        options.checkpoint,
        options.output,
        edit(options.set),
        options.directions,
        options.columns,
        options.range,
        options.start,
        options.side_by_side,
        options.fit,
        options.crop,
        options.device,
    )
    if len(paths) > 1:
        print(f"wrote {len(paths)} files to {paths[0].parent}")
    else:
        print(f"wrote {paths[0]}")
    return 0


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("..")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected two numbers such as -2..2; given {text}"
        ) from None
