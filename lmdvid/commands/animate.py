"""``lmdvid animate``."""

import argparse
import sys
from typing import Any

from lmdvid.commands import UsageError, box, edit, magnitude, whole_numbers

HELP = "bring a picture to life with the motion of a video"
EPILOG = (
    "--pairs: outputs that are complete are kept, so that the same line, started again after "
    "whatever, goes on; several invocations may work on one folder at the same time, also on "
    "machines that share its disk (several GPUs: one each, with --device). summary.csv says what "
    "came of each pair. Exit code 1 if one failed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the files and say how to move."""
    add = parser.add_argument
    add(
        "--source",
        nargs="+",
        metavar="IMAGE",
        help="picture to animate; several make a grid, a row for each",
    )
    add(
        "--driving",
        nargs="+",
        metavar="VIDEO",
        help="video, gif, frame folder or image; several make a grid, a column for each, as long "
        "as the longest, with the rate and the sound of the first",
    )
    add(
        "--checkpoint",
        metavar="PATH",
        help="converted folder, training .ckpt, or `puppets`, which is installed",
    )
    add(
        "--output",
        metavar="FILE",
        help="result: .mp4, .gif, .npz (raw values), or .png, .jpg for one driving image",
    )
    add(
        "--pairs",
        metavar="CSV",
        help="instead of these three: a table with the columns source, driving and perhaps output, "
        "with paths relative to it, and to --output-dir",
    )
    add("--output-dir", metavar="FOLDER", help="where the results of --pairs go")
    add("--jobs", type=int, metavar="N", help="processes for --pairs (default: 1)")
    add(
        "--retry-failed",
        action="store_true",
        help="try pairs again that have failed; else only where their files have changed",
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
    add(
        "--compile",
        action="store_true",
        help="compile the network first, on a CPU: about a minute for steady work that is faster, "
        "most for small networks; needs g++",
    )
    add("--no-audio", action="store_true", help="leave the driver's sound out")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Animate, and say where the result is."""
    for name in ("batch_size", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument {_listed([name])}: must be at least 1; given {value}")

    how = {
        "mode": options.mode,
        "side_by_side": options.side_by_side,
        "fit": options.fit,
        "audio": not options.no_audio,
        "absolute_directions": options.absolute_directions,
        "magnitude": options.magnitude,
        "crop": options.crop,
        "driving_crop": options.driving_crop,
        "paste_back": options.paste_back,
        "edit": edit(options.set),
        "reference": options.reference,
    }
    network = {
        "batch_size": options.batch_size,
        "device": options.device,
        "dtype": options.dtype,
    }
    one, many = ("source", "driving", "output", "compile"), ("output_dir", "jobs", "retry_failed")
    if options.pairs is not None:
        needed, others = ("checkpoint", "output_dir"), one
    else:
        needed, others = ("source", "driving", "checkpoint", "output"), many
    if missing := [name for name in needed if getattr(options, name) is None]:
        parser.error(f"the following arguments are required: {_listed(missing)}")
    if given := [name for name in others if getattr(options, name)]:
        parser.error(f"{_listed(given)}: {'not ' if options.pairs else 'only '}with --pairs")
    if options.pairs is not None:
        return _animate_pairs(options, how, network)

    from lmdvid import animate

    path = animate.animate_file(
        options.source,
        options.driving,
        options.checkpoint,
        options.output,
        progress=True,
        compile=options.compile,
        **how,
        **network,
    )
    print(f"wrote {path}")
    return 0


def _listed(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _animate_pairs(
    options: argparse.Namespace, how: dict[str, Any], network: dict[str, Any]
) -> int:
    from lmdvid.jobs import JobError, animate_pairs, read_pairs

    try:
        pairs = read_pairs(options.pairs)
        summary = animate_pairs(
            pairs,
            options.checkpoint,
            options.output_dir,
            how,
            jobs=options.jobs or 1,
            retry_failed=options.retry_failed,
            progress=True,
            **network,
        )
    except JobError as error:
        raise UsageError(str(error)) from None
    for line in summary.failures():
        print(line, file=sys.stderr)
    print(summary)
    return int(bool(summary.failed))


def _reference(text: str) -> int | str:
    if text == "best":
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 'best' or a frame such as 0; given {text}")
