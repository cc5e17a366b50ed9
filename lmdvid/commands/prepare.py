"""``lmdvid prepare``."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmdvid.commands import UsageError

if TYPE_CHECKING:
    from data_modules.metadata import Wanted
    from lmdvid.prepare import Prepared

HELP = "re-encode clips, or cut them out of raw downloads, so that training reads them fast"
EPILOG = (
    "Exit code 1 if a clip failed. Started again, it goes on where it stopped; other settings "
    "encode everything anew. Originals are only read, and nothing is downloaded: videos of a list "
    "that are not there are counted, listed in prepare_missing.txt, and no failure. voxceleb and "
    "taichi take the csv of FOMM's video-preprocessing, ted that of MRAA: ted384-metadata.csv, "
    "attached to issue 12 of github.com/snap-research/articulated-animation, MRAA's repository. "
    "(The ted-metadata.csv in that repository has boxes of another crop; clips of it fail.) Boxes "
    "are stretched to squares, as in the published sets; --fit crop or pad keeps shapes."
)
_LISTS = ("voxceleb", "taichi", "ted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the folders and the settings."""
    add = parser.add_argument
    add(
        "what",
        choices=("clips", "bair", *_LISTS, "shards", "merge"),
        help="clips: videos, gifs and folders of frames, at any depth. bair: TFRecords. voxceleb, "
        "taichi, ted: videos named by their id, and a list of clips in them. shards: pack clips as "
        "they are into large files, for object storage. merge: unite the records that parts "
        "(--shard) left in the output",
    )
    add("--input", metavar="FOLDER", help="originals, which are only read")
    add("--output", required=True, metavar="FOLDER", help="where train/ and test/ are made")
    add("--metadata", metavar="CSV", help="the list of clips (voxceleb, taichi, ted)")
    add("--size", type=int, metavar="PX", help="side of the frames (default: 256; bair: 64)")
    add(
        "--fit",
        choices=("crop", "pad", "stretch", "keep"),
        help="cut out the central square, as training does; pad to a square; stretch to one; or "
        "keep the shape with a shorter side of PX (default: crop; with a list: stretch)",
    )
    add("--crf", type=float, metavar="N", help="quality, 0 best, 51 worst (default: 18)")
    add(
        "--to",
        choices=("mp4", "png"),
        help="bair: videos, or folders of pictures, which lose nothing (default: mp4)",
    )
    add("--camera", choices=("image_aux1", "image_main"), help="bair (default: image_aux1)")
    add("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    add("--chunk-mb", type=float, metavar="MB", help="shards: size of a file (default: 64)")
    add(
        "--shard",
        metavar="I/N",
        help="only the I-th of N parts of the originals, from 1/N to N/N, so that many machines "
        "prepare one set; then `merge` unites their records",
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Prepare, and count."""
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1; given {options.jobs}")
    if options.what == "merge":
        return _merge(options)
    if options.input is None:
        parser.error("the following arguments are required: --input")
    lists, encodes = options.what in _LISTS, options.what != "shards"
    for name, fits in (
        ("metadata", lists),
        ("to", options.what == "bair"),
        ("camera", options.what == "bair"),
        ("size", encodes),
        ("fit", encodes),
        ("crf", encodes),
        ("jobs", encodes),
        ("chunk_mb", not encodes),
    ):
        if getattr(options, name) is not None and not fits:
            parser.error(f"argument --{name.replace('_', '-')}: not for {options.what}")
    if options.what == "shards":
        return _shards(options, parser)
    if options.to == "png" and options.crf is not None:
        parser.error("argument --crf: not for png, which loses nothing")
    if lists and options.metadata is None:
        parser.error(f"{options.what} needs --metadata, the csv that lists its clips")

    from lmdvid.prepare import PrepareError, Settings, Shard, prepare_clips, prepare_cuts

    root, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    wanted = None
    try:
        size = options.size
        if size is None:
            size = 64 if options.what == "bair" else 256
        settings = Settings(size, options.fit or ("stretch" if lists else "crop"))
        if options.crf is not None:
            settings = replace(settings, crf=options.crf)
        shard = Shard.parse(options.shard) if options.shard else None
        rest = (root, output, settings, options.jobs)
        if options.what == "clips":
            done = prepare_clips(_whole_clips(root), *rest, progress=True, shard=shard)
        else:
            wanted = _listed(options, root) if lists else _recorded(options, root)
            missing, failed = wanted.missing, wanted.failed
            more = {"missing": missing, "failed": failed, "shard": shard}
            done = prepare_cuts(wanted.cuts, *rest, progress=True, **more)
    except PrepareError as error:
        raise UsageError(str(error)) from None
    if wanted is not None and done.missing is not None:
        print(
            f"{len(wanted.missing)} videos are missing, with {wanted.clips_missing} of "
            f"{wanted.clips_missing + len(wanted.cuts)} clips (listed in {done.missing})"
        )
    return _count(done, root, output)


def _shards(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Pack clips, without encoding them again."""
    from data_modules.index import find_clips
    from data_modules.packing import write_shards
    from lmdvid import prepare
    from lmdvid.video import ARRAY_SUFFIXES, VIDEO_SUFFIXES

    megabytes = 64 if options.chunk_mb is None else options.chunk_mb
    if not 0 < megabytes <= 4000:
        parser.error(f"argument --chunk-mb: must be above 0, at most 4000; given {megabytes:g}")
    root, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    clips = find_clips(root, VIDEO_SUFFIXES | ARRAY_SUFFIXES)
    if not clips:
        raise UsageError(
            f"{root} holds no clip: neither videos, gifs, .npy files nor folders of pictures "
            "(TFRecords become videos by `lmdvid prepare bair`)"
        )
    try:
        shard = prepare.Shard.parse(options.shard) if options.shard else None
        mark = shard.mark if shard else ""
        if shard is not None:
            clips = {name: path for name, path in clips.items() if shard.holds(name)}
        prepare.check_apart(root, output)
        output.mkdir(parents=True, exist_ok=True)
        with prepare.locked(output, mark):
            done = write_shards(clips, root, output, int(1e6 * megabytes), mark, _shown)
            lines = [reason for _, reason in sorted(done.failed.items())]
            report = prepare.write_list(output / prepare.FAILURES.format(shard=mark), lines)
    except prepare.PrepareError as error:
        raise UsageError(str(error)) from None
    for reason in lines[:20]:
        print(reason, file=sys.stderr)
    failed = f"{len(lines)} failed (listed in {report})" if lines else "0 failed"
    print(
        f"{done.clips} clips packed into {done.made + done.kept} chunks, of which {done.kept} were "
        f"there already, {failed}"
    )
    return int(bool(lines))


def _shown(pieces: Iterable[Any], count: int) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    words = "packing clips"
    return track(pieces, words, count, console=console, disable=not console.is_terminal)


def _merge(options: argparse.Namespace) -> int:
    from data_modules.packing import merge_shards, parts_of
    from lmdvid.prepare import PrepareError, locked, merge, merge_lists

    output = Path(options.output).expanduser()
    try:
        if parts := parts_of(output):
            with locked(output, ""):  # none of the parts is being packed anew
                clips = merge_shards(output, parts)
                merge_lists(output, parts)
            print(f"{len(parts)} parts united: {clips} clips are packed in {options.output}")
            return 0
        shards, files = merge(output)
    except PrepareError as error:
        raise UsageError(str(error)) from None
    print(f"{shards} shards united: {files} files are known in {options.output}")
    return 0


def _whole_clips(root: Path) -> dict[str, Path]:
    from data_modules.index import find_clips

    clips = find_clips(root)
    if not clips:
        raise UsageError(f"{root} holds no clip: neither videos, gifs nor folders of pictures")
    return clips


def _listed(options: argparse.Namespace, root: Path) -> "Wanted":
    from data_modules.metadata import videos_by_id, wanted_clips

    table = Path(options.metadata).expanduser()
    wanted = wanted_clips(table, videos_by_id(root), people=options.what == "voxceleb")
    if not wanted.cuts and not wanted.missing:
        raise UsageError(f"{table}: the list has no rows")
    if not wanted.cuts:
        some = ", ".join(wanted.missing[:3])
        raise UsageError(
            f"{root} holds none of the {len(wanted.missing)} videos of {table} (such as {some}); "
            "it is to have files like ID.mp4"
        )
    return wanted


def _recorded(options: argparse.Namespace, root: Path) -> "Wanted":
    from data_modules.metadata import recorded_clips

    suffix = "" if options.to == "png" else ".mp4"
    wanted = recorded_clips(root, options.camera or "image_aux1", suffix)
    if not wanted.cuts:
        reasons = "; ".join(wanted.failed.values())
        raise UsageError(
            f"{root} holds no TFRecord file that can be read{reasons and ': '}{reasons}"
        )
    return wanted


def _count(done: "Prepared", root: Path, output: Path) -> int:
    for reason in list(done.failed.values())[:20]:
        print(reason, file=sys.stderr)
    if done.strangers:
        print(f"{len(done.strangers)} file(s) in {output} come from no clip in {root}: left there")
    failed = f"{len(done.failed)} failed (listed in {done.report})" if done.failed else "0 failed"
    print(f"{len(done.made)} clips prepared, {len(done.kept)} were there already, {failed}")
    return int(bool(done.failed))
