"""Arrays out of .npz files of strangers: how much memory they take is known before any is taken."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

_HEADER = 65536  # bytes, longer ones are no headers of arrays


def load_arrays(
    path: str | Path, limit: int, names: set[str] | None = None
) -> dict[str, np.ndarray]:
    """Read arrays, never Python objects.

    A few bytes of zip may hold gigabytes of zeros, and a header may promise what is not there: both
    are refused before anything is decompressed.

    Args:
        path: of the file.
        limit: bytes that all these arrays together may take.
        names: of those to read; None reads all.

    Returns:
        The arrays by name; names that are not there are left out.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no npz file, holds objects, or takes more memory than `limit`.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if names is not None and name not in names:
                    continue
                with archive.open(entry) as member:
                    size = _bytes(member)
                limit -= size
                if limit < 0 or entry.file_size > size + _HEADER:
                    raise ValueError(
                        f"its array '{name}' takes {size} bytes, more than is expected"
                    )
                with archive.open(entry) as member:
                    arrays[name] = npy.read_array(
                        member, allow_pickle=False, max_header_size=_HEADER
                    )
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"no whole .npz file ({error})") from None
    return arrays


def _bytes(member: IO[bytes]) -> int:
    """How many the array behind a header takes."""
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"arrays of version {version} are not known")
    shape, _, dtype = read(member, max_header_size=_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and loading them could run code")
    return math.prod(shape) * dtype.itemsize
