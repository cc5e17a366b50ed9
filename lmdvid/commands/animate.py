"""``lmdvid animate``."""

import argparse

from lmdvid.commands import box, edit, magnitude, whole_numbers

HELP = "bring a picture to life with the motion of a video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the files and say how to move."""
    add = parser.add_argument
    add(
        "--source",
        required=True,
        nargs="+",
        metavar="IMAGE",
        help="picture to animate; several make a grid, a row for each",
    )
    add(
        "--driving",
        required=True,
        nargs="+",
        metavar="VIDEO",
        help="video, gif, frame folder or image; several make a grid, a column for each, as long "
        "as the longest, with the rate and the sound of the first",
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
        metavar="FILE",
        help="result: .mp4, .gif, .npz (raw values), or .png, .jpg for one driving image",
    )
    add(
        "--mode",
        choices=("relative", "adaptive", "absolute", "avd"),
        help="move the source by the driver's change since its first frame; for FOMM and MRAA, as "
        "much larger as the source is (adaptive); into the driver's own pose; for MRAA, into its "
        "pose in the source's shape (avd) (default: relative; absolute where the driver is one "
        "image)",
    )
    add(
        "--reference",
        type=_reference,
        default=0,
        metavar="N|best",
        help="driving frame, counted from 0, since which change is counted: one in which the "
        "driver is posed as the source is; best looks for it (default: %(default)s)",
    )
    add(
        "--absolute-directions",
        type=whole_numbers,
        default=(),
        metavar="I,J,...",
        help="motion directions, counted from 0, that follow the driver's own pose while the "
        "others move relatively",
    )
    add(
        "--magnitude",
        type=float,
        default=1.0,
        metavar="M",
        help="factor on the driver's change (relative) or pose (absolute) along every direction "
        "(default: %(default)s)",
    )
    add(
        "--set",
        type=magnitude,
        action="append",
        default=[],
        metavar="I=DELTA",
        help="edit the source before it moves: go DELTA along direction I; may be repeated",
    )
    add("--side-by-side", action="store_true", help="write source, driver and result in one row")
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
    add(
        "--driving-crop",
        type=box,
        metavar="X,Y,W,H|face",
        help="the same for the driver; a face is looked for in its first frame",
    )
    add(
        "--paste-back",
        action="store_true",
        help="show the result in its place in the whole source picture, with a soft edge",
    )
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="driving frames per pass (default: 8; fewer on a CPU, where a few large frames are "
        "faster than many)",
    )
    add(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps; default: the fastest one here",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="number format of the network (default: bfloat16 on a processor with instructions "
        "for it, where it is twice as fast, else float32)",
    )
    add("--no-audio", action="store_true", help="leave the driver's sound out")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Animate, and say where the result is."""
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"argument --batch-size: must be at least 1; given {options.batch_size}")

    from lmdvid import animate

    path = animate.animate_file(
        options.source,
        options.driving,
        options.checkpoint,
        options.output,
        mode=options.mode,
        side_by_side=options.side_by_side,
        fit=options.fit,
        batch_size=options.batch_size,
        device=options.device,
        dtype=options.dtype,
        audio=not options.no_audio,
        progress=True,
        absolute_directions=options.absolute_directions,
        magnitude=options.magnitude,
        crop=options.crop,
        driving_crop=options.driving_crop,
        paste_back=options.paste_back,
        edit=edit(options.set),
        reference=options.reference,
    )
    print(f"wrote {path}")
    return 0


def _reference(text: str) -> int | str:
    if text == "best":
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 'best' or a frame such as 0; given {text}")
