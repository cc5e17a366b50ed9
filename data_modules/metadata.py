"""Public lists of data sets, tables of clips in videos, and raw downloads: which clips to make."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from data_modules.index import DataError, find_clips, without_suffix
from lmdvid.video import RECORD_SUFFIXES, Cut, VideoReadError, record_lengths, records

_COLUMNS = ("video_id", "start", "end", "bbox", "fps", "width", "height", "partition")
_YT_DLP = re.compile(r"\[([\w-]{11})\]$")  # `title [ID]`, as yt-dlp names files
_RANGE = re.compile(r"(.+)#(\d+)#(\d+)")


@dataclass
class Wanted:
    """What a list asks for.

    Attributes:
        cuts: for each clip whose video is there, its name and what it is made of.
        missing: ids of videos that are not there.
        clips_missing: how many clips are out of these.
        failed: what cannot be made of what is there: name or file, and reason.
    """

    cuts: dict[str, Cut] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    clips_missing: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def videos_by_id(root: Path) -> dict[str, Path]:
    """Find downloaded videos in and below a folder.

    Returns:
        The path of each id: the name without suffix, or, as yt-dlp writes it, `title [ID]`.
    """
    videos: dict[str, Path] = {}
    for key, path in find_clips(root).items():
        name = without_suffix(key.rsplit("/", 1)[-1])
        named = _YT_DLP.search(name)
        videos.setdefault(named[1] if named else name, path)
    return videos


def wanted_clips(table: Path, videos: Mapping[str, Path], people: bool = False) -> Wanted:
    """Read a list of clips as it comes with FOMM (VoxCeleb, TaiChi-HD) and MRAA (TED-talks).

    Its columns are `video_id,start,end,bbox,fps,width,height,partition`, and perhaps `person_id`:
    frames `start` to `end`, the last not included, at `fps`, and `left-top-right-bottom` in frames
    of `width` x `height`. Where `video_id` is `ID#START#END`, as in MRAA's list, the range is read
    from there, and counts the video's own frames.

    Names are those that data modules read: `train/VIDEO#START#END.mp4`, with `PERSON#` before it if
    `people`. Different clips of one name, such as two people in one shot, are numbered.

    Raises:
        DataError: if this is no such list.
    """
    wanted, missing = Wanted(), {}
    for line, row in _rows(table, ("person_id",) if people else ()):
        try:
            video, span, fps = _span(row)
            left, top, right, bottom = (int(edge) for edge in row["bbox"].split("-"))
            size = int(row["width"]), int(row["height"])
            if not (0 <= left < right and 0 <= top < bottom and min(size) > 0):
                raise ValueError(f"an empty box {row['bbox']}")
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(f"{table}, line {line}: {error}") from None
        names = [row["partition"], *([row["person_id"]] if people else []), video]
        for name in names:
            if "/" in name or "\\" in name or name in ("", ".", ".."):
                raise DataError(f"{table}, line {line}: no name for a file: '{name}' in {names}")
        if video not in videos:
            missing[video] = missing.get(video, 0) + 1
            continue
        cut = Cut(videos[video], span, fps, (left, top, right, bottom), size)
        person = f"{row['person_id']}#" if people else ""
        name = f"{row['partition']}/{person}{video}#{span[0]:06d}#{span[1]:06d}"
        number, unique = 1, name
        while wanted.cuts.get(f"{unique}.mp4", cut) != cut:
            number += 1
            unique = f"{name}#{number}"
        wanted.cuts[f"{unique}.mp4"] = cut
    wanted.missing, wanted.clips_missing = sorted(missing), sum(missing.values())
    return wanted


def _rows(table: Path, more: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            absent = [name for name in (*_COLUMNS, *more) if name not in (rows.fieldnames or ())]
            if absent:
                raise DataError(
                    f"{table} lacks the column(s) {', '.join(absent)}; "
                    f"it has {', '.join(rows.fieldnames or ()) or 'none'}"
                )
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(f"{table}, line {rows.line_num}: other columns than the first")
                yield rows.line_num, row
    except FileNotFoundError:
        raise DataError(f"{table} does not exist; give the csv that lists the clips") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}") from None


def _span(row: Mapping[str, str]) -> tuple[str, tuple[int, int], Fraction | None]:
    """Video, range of frames, and the rate that counts them."""
    video, fps = row["video_id"], Fraction(row["fps"])
    start, end = int(row["start"]), int(row["end"])
    if found := _RANGE.fullmatch(video):
        # MRAA's list repeats neither range nor rate in the columns: there they are 0 and 10.
        video, start, end, fps = found[1], int(found[2]), int(found[3]), None
    if not 0 <= start < end or (fps is not None and fps <= 0):
        raise ValueError(f"no range of frames: {start} to {end} at {row['fps']}")
    return video, (start, end), fps


def recorded_clips(root: Path, camera: str, suffix: str) -> Wanted:
    """List the sequences in the TFRecord files in and below a folder.

    Args:
        root: such as `softmotion30_44k`.
        camera: whose pictures.
        suffix: of the names, which are those of the files with each record's number behind them:
            `train/traj_0_to_255/17`, and that.
    """
    wanted = Wanted()
    for key, path in find_clips(root, RECORD_SUFFIXES).items():
        if path.suffix.lower() not in RECORD_SUFFIXES:  # a folder of pictures
            continue
        name = key.removesuffix(path.suffix)
        try:
            found, errors = records(path, record_lengths(path), path.stat().st_size, camera)
        except VideoReadError as error:
            wanted.failed[key] = str(error)
            continue
        for number, record in enumerate(found):
            wanted.cuts[f"{name}/{number}{suffix}"] = Cut(path, record=record)
        for number, error in enumerate(errors, len(found)):
            wanted.failed[f"{name}/{number}{suffix}"] = str(error)
    return wanted
