"""Sequences of raw frames in TFRecord files, read without TensorFlow.

A file is a row of records: `length (8 bytes), its CRC (4), data, their CRC (4)`, little-endian. A
CRC is a CRC32C, rotated and shifted by a constant (tensorflow/core/lib/hash/crc32c.h). The data are
a protobuf message, `tf.train.Example`: a map from names to lists of bytes, floats or integers. As
in BAIR's softmotion30_44k, the picture at time t is the feature `t/CAMERA/encoded`: in spite of its
name the bytes of a square in RGB, and nothing else.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from lmdvid.video.info import (
    DEFAULT_FPS,
    VideoInfo,
    VideoReadError,
    check_indices,
    status,
)

if TYPE_CHECKING:
    from torch import Tensor

RECORD_SUFFIXES = frozenset({".tfrecord", ".tfrecords"})

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_FRAMING = _HEADER.size + _FOOTER.size  # bytes of a record beside its data


def masked_crc(data: bytes) -> int:
    """CRC32C as TFRecords hold it: rotated right by 15 bits, plus a constant."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record_lengths(path: Path) -> list[int]:
    """Bytes of data of each record, found by hopping from header to header.

    It ends before the first record that is cut off or whose length is damaged.

    Raises:
        VideoReadError: The file cannot be read.
    """
    size, place, lengths = status(path).st_size, 0, []
    try:
        with path.open("rb", buffering=0) as file:
            while place < size:
                file.seek(place)
                length = _length(file.read(_HEADER.size))
                if length is None or place + length + _FRAMING > size:
                    break
                lengths.append(length)
                place += length + _FRAMING
    except OSError as error:
        raise VideoReadError(path, str(error.strerror).lower()) from None
    return lengths


def _length(header: bytes) -> int | None:
    if len(header) < _HEADER.size or masked_crc(header[:8]) != _HEADER.unpack(header)[1]:
        return None
    return _HEADER.unpack(header)[0]


@dataclass(frozen=True, slots=True)
class Record:
    """Where one sequence of frames lies.

    Attributes:
        path: the file.
        number: its place among the records of the file, from 0.
        offset: where the record begins, in bytes.
        camera: which pictures are its frames, such as `image_aux1`.
    """

    path: str
    number: int
    offset: int
    camera: str

    def load(self) -> "Example":
        """Read the record and check its CRCs.

        Raises:
            VideoReadError: It cannot be read, or is damaged; the text names file and record.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                length = _length(file.read(_HEADER.size))
                if length is None:
                    raise self.error("the CRC of its length is wrong: damaged, or another file")
                data = file.read(length + _FOOTER.size)
        except OSError as error:
            raise self.error(str(error.strerror).lower()) from None
        if len(data) < length + _FOOTER.size:
            raise self.error("the file ends within it")
        body = data[:length]
        if masked_crc(body) != _FOOTER.unpack(data[length:])[0]:
            raise self.error("the CRC of its data is wrong: a damaged file, to be fetched again")
        try:
            return Example(self, dict(_features(memoryview(body))))
        except (ValueError, IndexError) as error:
            raise self.error(f"no tf.train.Example ({error})") from None

    def error(self, reason: str) -> VideoReadError:
        """What is wrong with this record."""
        return VideoReadError(self.path, f"record {self.number}: {reason}")


def records(
    path: Path, lengths: Sequence[int], size: int, camera: str
) -> tuple[list[Record], list[VideoReadError]]:
    """Find the records of a file by their lengths.

    Args:
        path: the file.
        lengths: see `record_lengths`.
        size: bytes of the file.
        camera: see `Record`.

    Returns:
        The records; and the reason why it is lost for each that is not among them, whose number can
        only be estimated, by its neighbours' lengths.
    """
    found, offset = [], 0
    for number, length in enumerate(lengths):
        found.append(Record(str(path), number, offset, camera))
        offset += length + _FRAMING
    if offset == size:
        return found, []
    count = max(round((size - offset) * len(found) / offset), 1) if found else 1
    reason = "its length is damaged, or the file ends within it"
    if count > 1:
        reason += f"; with it about {count - 1} records behind it are lost"
    return found, [Record(str(path), len(found), offset, camera).error(reason)] * count


class Example:
    """One sequence, still encoded.

    Args:
        record: where it comes from.
        features: what it holds, by name.
    """

    def __init__(self, record: Record, features: dict[str, memoryview]):
        self.record = record
        self.features = features

    def __len__(self) -> int:
        """Number of frames of the record's camera."""
        count = 0
        while self._picture(count) in self.features:
            count += 1
        return count

    @property
    def cameras(self) -> list[str]:
        """What may be asked for as a camera."""
        names = (name.split("/") for name in self.features)
        return sorted({name[1] for name in names if len(name) == 3 and name[2] == "encoded"})

    @property
    def info(self) -> VideoInfo:
        """Facts about the record's camera, by its first frame.

        Raises:
            VideoReadError: It has none, or this is no square of raw RGB.
        """
        side = self._side(self._value(self._picture(0), 1))
        return VideoInfo(len(self), DEFAULT_FPS, side, side, False, "raw", "records")

    def frames(self, indices: Sequence[int]) -> "Tensor":
        """Frames by their numbers, uint8 (T,H,W,3) RGB.

        Raises:
            VideoReadError: There is no such frame, or it is no square of raw RGB.
        """
        import torch

        check_indices(Path(self.record.path), indices, len(self))
        pictures = [self._value(self._picture(index), 1) for index in indices]
        side = self._side(pictures[0])
        if any(len(picture) != len(pictures[0]) for picture in pictures):
            raise self.record.error("its frames change size")
        joined = bytearray().join(pictures)
        return torch.frombuffer(joined, dtype=torch.uint8).view(-1, side, side, 3)

    def floats(self, name: str, indices: Sequence[int]) -> "Tensor":
        """A list of floats for each of some frames, such as the `action` there: float32 (T,D).

        Raises:
            VideoReadError: There is none.
        """
        import torch

        rows = [self._value(f"{index}/{name}", 2) for index in indices]
        if any(len(row) != len(rows[0]) or not row for row in rows):
            raise self.record.error(f"{name} is not as long everywhere")
        if len(rows[0]) % 4:
            raise self.record.error(f"{name} has {len(rows[0])} bytes, which are no floats")
        joined = bytearray().join(rows)
        return torch.frombuffer(joined, dtype=torch.float32).view(len(rows), -1)

    def _picture(self, index: int) -> str:
        return f"{index}/{self.record.camera}/encoded"

    def _value(self, name: str, kind: int) -> bytes:
        """Content of a feature: bytes (kind 1) or the bytes of its floats (kind 2)."""
        feature = self.features.get(name)
        if feature is None:
            raise self.record.error(
                f"it has no {name} (cameras in it: {', '.join(self.cameras) or 'none'})"
            )
        try:
            # Floats are packed into one value, or, as older writers did, a value each.
            parts = [
                part
                for number, values in _fields(feature)
                if number == kind and isinstance(values, memoryview)
                for place, part in _fields(values)
                if place == 1 and isinstance(part, memoryview)
            ]
        except (ValueError, IndexError) as error:
            raise self.record.error(f"{name} is damaged ({error})") from None
        return b"".join(parts)

    def _side(self, picture: bytes) -> int:
        side = isqrt(len(picture) // 3)
        if not side or len(picture) != 3 * side * side:
            raise self.record.error(f"{len(picture)} bytes are no square of raw RGB")
        return side


def _features(example: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Names and contents: Example.features (1), Features.feature (1), an entry's key and value."""
    for features in _messages(example):
        for entry in _messages(features):
            content = dict(_fields(entry))
            name, feature = content.get(1), content.get(2)
            if isinstance(name, memoryview) and isinstance(feature, memoryview):
                yield str(name, "utf-8"), feature


def _messages(data: memoryview) -> Iterator[memoryview]:
    return (value for number, value in _fields(data) if number == 1 and not isinstance(value, int))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of the fields of a protobuf message."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        if key & 7 == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            length, place = _varint(data, place)
        elif key & 7 in _FIXED:
            length = _FIXED[key & 7]
        else:
            raise ValueError(f"wire type {key & 7}")
        if place + length > end:
            raise ValueError("a field ends behind its message")
        yield key >> 3, data[place : place + length]
        place += length


_FIXED = {1: 8, 5: 4}  # bytes of the wire types of fixed length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """An integer in groups of seven bits, the lowest first, and the place behind it."""
    value = data[place]
    place += 1
    if value < 0x80:
        return value, place
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("an integer of more than ten bytes")
