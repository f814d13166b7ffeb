"""Parts of observations put together, in memory or in their file: an episode of a flat file, an episode and its end.

Special about this file: images stay where they are. A part is (rows, start, stop), and what is put together is read
part by part when someone asks. It must not know any file layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np

from ..frames import Frames, Rows
from ..schema import DatasetError

Part: TypeAlias = tuple[Rows, int, int]


def join_rows(parts: Sequence[Part], where: str) -> Rows:
    """Returns the rows of all parts, one after another; `where` names them in messages.

    One part of an array is a view of it.

    Raises:
        DatasetError: the parts differ in kind or in the shape of a row.
    """
    first = parts[0][0]
    for rows, _, _ in parts[1:]:
        if (rows.shape[1:], rows.dtype.kind) != (first.shape[1:], first.dtype.kind):
            raise DatasetError(
                f"{where} must hold rows of one shape and kind, {first.shape[1:]} {first.dtype}, got "
                f"{rows.shape[1:]} {rows.dtype} for the final observation; write the file again"
            )
    frames = [(rows, start, stop) for rows, start, stop in parts if isinstance(rows, Frames)]
    if frames:
        return frames[0][0] if len(frames) == 1 and len(frames[0][0]) == frames[0][2] - frames[0][1] else Joined(frames)
    arrays = [np.asarray(rows[start:stop]) for rows, start, stop in parts]
    if len(arrays) == 1:
        return arrays[0]
    joined = np.concatenate(arrays)
    return joined if joined.dtype.kind == "U" else joined.astype(first.dtype, copy=False)


def are_equal_rows(rows: Rows, row: int, others: Rows, other: int) -> bool:
    """Returns whether one row equals another, NaN equal to NaN; reads only these two."""
    one, two = rows[row : row + 1], others[other : other + 1]
    return bool(np.array_equal(one, two, equal_nan=one.dtype.kind == "f" and two.dtype.kind == "f"))


class Joined(Frames):
    """Ranges of other frames, one after another."""

    def __init__(self, parts: Sequence[tuple[Frames, int, int]]) -> None:
        self.parts = tuple(parts)
        self.shape = (sum(stop - start for _, start, stop in parts), *parts[0][0].shape[1:])

    @property
    def encoding(self) -> str:
        """Of the first part."""
        return self.parts[0][0].encoding

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        found, offset = [], 0
        for frames, start, stop in self.parts:
            here = wanted[(wanted >= offset) & (wanted < offset + stop - start)] - offset + start
            if len(here):
                found.append(frames[_as_slice(here)])
            offset += stop - start
        return np.concatenate(found) if found else np.zeros((0, *self.shape[1:]), np.uint8)

    def stored_rows(self) -> Iterator[bytes]:
        """Yields what stands for each row in the file, part by part."""
        for frames, start, stop in self.parts:
            if frames.encoding == "raw":  # can be read from the middle; what is compressed is walked through
                yield from (frame.tobytes() for block in Joined([(frames, start, stop)]).blocks() for frame in block)
            else:
                yield from islice(frames.stored_rows(), start, stop)


def _as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Returns the rows as a slice where they follow one another: HDF5 reads that at once."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
