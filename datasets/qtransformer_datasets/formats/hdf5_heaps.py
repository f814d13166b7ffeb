"""A look into the heaps that hold strings and compressed images, before libhdf5 reads them.

Special about this file: one kind of damage, a heap object of no size in a place of no use, makes libhdf5 walk in a
circle for ever, so files are searched for it first. The layout is that of the HDF5 specification, III.E:

    collection   "GCOL", version 1, 3 zeros | size, 8 bytes | objects
    object       index, 2 bytes | 6 bytes | size, 8 bytes | data, padded to 8 bytes; index 0 is free space, all of it
"""

from __future__ import annotations

import mmap
import struct
from functools import lru_cache
from pathlib import Path

from ..schema import DatasetError

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER = 16  # bytes of a collection's header, and of an object's


def check_heaps(path: Path) -> None:
    """Makes sure that libhdf5 can walk through every heap of a file; asked again, it looks only if the file changed.

    Raises:
        DatasetError: a heap is damaged so that it could not.
    """
    status = path.stat()
    if _has_circle(path, (status.st_ino, status.st_mtime_ns, status.st_size)):
        raise DatasetError(f"{path} is damaged (a heap of strings or images leads nowhere); copy or download it again")


@lru_cache(maxsize=256)
def _has_circle(path: Path, version: tuple[int, int, int]) -> bool:
    if version[2] < _HEADER:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_SIGNATURE)
        while start >= 0:
            if _is_circle(content, start):
                return True
            start = content.find(_SIGNATURE, start + 1)
    return False


def _is_circle(content: mmap.mmap, start: int) -> bool:
    """Returns whether a walk through the collection that begins at `start` would never end."""
    if start + _HEADER > len(content):
        return False
    (size,) = struct.unpack_from("<Q", content, start + 8)
    place, end = start + _HEADER, min(start + size, len(content))
    while place + _HEADER <= end:
        index, length = struct.unpack_from("<H6xQ", content, place)
        if index == 0 and length == 0:
            return True
        place += length if index == 0 else _HEADER + -(-length // 8) * 8
    return False
