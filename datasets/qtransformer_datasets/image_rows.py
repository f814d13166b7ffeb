"""The images of one observation, all episodes one after the other, wherever they lie: RAM, a memory map, their file.

Special about this file: rows are counted through all episodes, and `take` gives any of them by number. Whoever walks
through all images also counts how often each pixel value occurs, so that statistics decode nothing again. Nothing here
holds an open handle across a fork or in a pickle. It must not know which place is the best one.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from rich.console import Console
from rich.progress import Progress

from qtransformer.files import write_durably

from .cache import cache_file, only_one, read_record, write_record
from .frames import Frames, Rows, blocks, is_image
from .schema import DatasetError, EpisodeDataset

NUM_VALUES = 256  # of a uint8 pixel
_COUNTED = 2**18  # pixels that are counted at a time


class RowSource(Protocol):
    """Rows of an observation that can be had by number."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns (*rows.shape, *row shape): the rows of these numbers."""
        ...


class MemoryRows:
    """Rows in RAM, of images or numbers."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns a copy of the rows."""
        return self.array.take(rows, axis=0)


class EncodedRows:
    """Rows in RAM that stand for rows of a table, which many of them share: texts."""

    def __init__(self, numbers: np.ndarray, table: np.ndarray) -> None:
        self.numbers, self.table = numbers, table

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns the table's rows that they stand for."""
        return self.table.take(self.numbers.take(rows), axis=0)


class MappedRows:
    """Rows of an .npy file that the system pages in; opened at the first use in each process, also after a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}

    def array(self) -> np.ndarray:
        """Returns the mapped file, read-only.

        Raises:
            OSError, ValueError, EOFError: it is gone, or torn.
        """
        array = np.load(self.path, mmap_mode="r", allow_pickle=False) if self._array is None else self._array
        self._array = array
        return array

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns a copy of the rows."""
        return np.asarray(self.array().take(rows, axis=0))


class FileRows:
    """Rows that are read and decoded each time, from the file that they came in."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows; each is decoded once, however often it is asked for."""
        wanted, index = np.unique(rows, return_inverse=True)
        parts = np.searchsorted(self._images.firsts, wanted, side="right") - 1
        found = np.empty((len(wanted), *self._images.shape[1:]), np.uint8)
        begins = np.flatnonzero((np.diff(wanted, prepend=-2) != 1) | (np.diff(parts, prepend=-1) != 0))
        for begin, end in itertools.pairwise([*begins.tolist(), len(wanted)]):  # runs: files like them best
            first = wanted[begin] - self._images.firsts[parts[begin]]
            found[begin:end] = self._images.parts[parts[begin]][first : first + end - begin]
        return found[index.reshape(rows.shape)]


class Images:
    """All images of one observation of a dataset."""

    def __init__(self, dataset: EpisodeDataset, key: str) -> None:
        """Takes the images of the observation `key`; reads none.

        Raises:
            DatasetError: an episode holds something else under that key.
        """
        self.key = key
        self.parts: list[Rows] = [episode.observations[key] for episode in dataset.episodes]
        for episode, part in zip(dataset.episodes, self.parts, strict=True):
            if not is_image(part) or part.shape[1:] != self.parts[0].shape[1:]:
                raise DatasetError(
                    f"{episode.source}: observations/{key} must hold images of shape {self.parts[0].shape[1:]}, got "
                    f"{part.shape[1:]} {part.dtype}; record it again"
                )
        lengths = [len(part) for part in self.parts]
        self.firsts = np.cumsum(lengths) - lengths
        self.shape = (sum(lengths), *self.parts[0].shape[1:])
        self.num_bytes = int(np.prod(self.shape))
        first = self.parts[0]  # the others are most likely alike, and it only decides what is best
        self.is_raw = not isinstance(first, Frames) or first.encoding == "raw"
        self._identity = {"fingerprint": dataset.fingerprint, "key": key, "shape": list(self.shape)}
        self._cache, self._record = (cache_file(dataset, key, suffix) for suffix in (".npy", ".json"))

    def histogram(self) -> np.ndarray:
        """Returns (channels, 256) int64, how often each value occurs; walks through the images where nobody yet did."""
        known = self._known_histogram()
        if known is not None:
            return np.array(known, np.int64)
        counts = np.zeros((self.shape[-1], NUM_VALUES), np.int64)
        for _ in self._walk(counts, "statistics of"):
            pass
        return counts

    def in_memory(self) -> MemoryRows:
        """Returns the images, decoded into RAM."""
        counts, array = np.zeros((self.shape[-1], NUM_VALUES), np.int64), np.empty(self.shape, np.uint8)
        first = 0
        for block in self._walk(counts, "reading"):
            array[first : first + len(block)] = block
            first += len(block)
        return MemoryRows(array)

    def in_file(self) -> FileRows:
        """Returns the images as they are in their file."""
        return FileRows(self)

    def mapped(self) -> MappedRows:
        """Returns the images in the cache, which is written first where it is missing, torn or of other data.

        Raises:
            OSError: it cannot be written.
        """
        path = self._cache
        if path is None:
            raise OSError("neither the dataset's folder nor the user's cache folder can be written")
        with only_one(path):
            if not self.is_cached():
                if (free := shutil.disk_usage(path.parent).free) < self.num_bytes:
                    raise OSError(f"it needs {self.num_bytes:,} bytes, and the disk has {free:,}")
                write_durably(path, self._write)
        return MappedRows(path)

    def is_cached(self) -> bool:
        """Returns whether the cache is there, is of these images, and has their first, middle and last row."""
        if self._cache is None or self._known_histogram() is None:
            return False
        cached, rows = MappedRows(self._cache), np.array([0, self.shape[0] // 2, self.shape[0] - 1])
        try:
            array = cached.array()
        except (OSError, ValueError, EOFError):
            return False
        is_alike = array.shape == self.shape and array.dtype == np.uint8 and array.flags.c_contiguous
        return is_alike and np.array_equal(cached.take(rows), self.in_file().take(rows))

    def _known_histogram(self) -> list[list[int]] | None:
        return (read_record(self._record, self._identity) or {}).get("histogram")

    def _write(self, path: Path) -> None:
        """Writes through the file and not through a map, where a full disk would be a signal instead of an error."""
        counts = np.zeros((self.shape[-1], NUM_VALUES), np.int64)
        with path.open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
            for block in self._walk(counts, "writing the cache of"):
                file.write(np.ascontiguousarray(block).data)

    def _walk(self, counts: np.ndarray, doing: str) -> Iterator[np.ndarray]:
        """Yields all images in order, under a progress bar; fills `counts`, and keeps them when it is through."""
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"{doing} {self.key}", total=self.shape[0])
            for part in self.parts:
                for block in blocks(part):
                    _count(counts, block)
                    yield block
                    bar.advance(task, len(block))
        write_record(self._record, {**self._identity, "histogram": counts.tolist()})


def _count(counts: np.ndarray, block: np.ndarray) -> None:
    """Adds the values of a block of images to (channels, 256) counts; some at a time, bincount takes 8 bytes each."""
    for channel in range(len(counts)):
        values = block[..., channel].ravel()
        for first in range(0, len(values), _COUNTED):
            counts[channel] += np.bincount(values[first : first + _COUNTED], minlength=NUM_VALUES)
