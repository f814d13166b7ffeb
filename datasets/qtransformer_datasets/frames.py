"""Rows of images that stay in their file until someone asks for them.

Special about this file: `Frames` behaves like an array of shape (rows, height, width, channels) uint8 for reading, so
that code which takes rows needs not know where they lie. It must not know which file layouts there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

_BLOCK_BYTES = 16 * 2**20  # how much is decoded at a time where a whole episode is walked through


class Frames(ABC):
    """The images of one observation key in one episode, one a row; `frames[rows]` reads and decodes."""

    shape: tuple[int, int, int, int]  # (rows, height, width, channels)
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes when decoded."""
        return int(np.prod(self.shape))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[0 : len(self)], dtype)

    @property
    @abstractmethod
    def encoding(self) -> str:
        """How a frame is stored, in a word for people: "raw", "jpeg", "png", "mp4"."""

    @abstractmethod
    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns (n, height, width, channels) uint8: the rows of a slice, or of increasing indices.

        Raises:
            DatasetError: the file is damaged there.
        """

    @abstractmethod
    def stored_rows(self) -> Iterator[bytes]:
        """Yields what stands for each row in the file, without decoding where that is possible.

        Equal bytes mean equal frames: fingerprints and the check for frozen cameras rest on it.
        """

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all rows in order, decoded, some megabytes at a time."""
        yield from blocks(self)


Rows: TypeAlias = np.ndarray | Frames


def is_image(rows: Rows) -> bool:
    """Returns whether rows are images, in memory or still in their file."""
    return isinstance(rows, Frames) or (rows.dtype == np.uint8 and rows.ndim == 4)


def blocks(rows: Rows) -> Iterator[np.ndarray]:
    """Yields the rows of an array or of frames in order, some megabytes at a time."""
    size = max(1, _BLOCK_BYTES // max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
