"""Images in an HDF5 file, read when asked: raw rows, or one JPEG or PNG file a row.

Special about this file: what a dataset is, is decided by its dtype, shape and first bytes, never by a flag beside it:
writers have set the flag without compressing and compressed without the flag. A file is opened at the first read of
each process and stays open; a handle never crosses a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from ..frames import Frames
from ..schema import DatasetError
from .hdf5 import check_storage, handle, place, read_rows
from .images import compression, decode

MIN_SIDE = 8  # pixels of the smallest camera: a uint8 array of less is a vector or a matrix
_CHANNELS = (1, 3, 4)
_MAX_OPEN = 256


def is_image(dataset: h5py.Dataset) -> bool:
    """Returns whether a dataset holds one image a row: raw uint8, or compressed bytes of free or equal length."""
    if h5py.check_vlen_dtype(dataset.dtype) == np.uint8:
        return True
    if dataset.dtype != np.uint8:
        return False
    if dataset.ndim == 2:
        return len(dataset) > 0 and compression(bytes(_first(dataset))) is not None
    return dataset.ndim == 4 or (dataset.ndim == 3 and min(dataset.shape[1:]) >= MIN_SIDE)


def open_frames(dataset: h5py.Dataset) -> Frames:
    """Returns the images of a dataset, (rows, height, width, channels), to be read later.

    Raises:
        DatasetError: it keeps its data elsewhere, its first image is damaged, or it has no channels axis.
    """
    check_storage(dataset)
    path, name = Path(dataset.file.filename), str(dataset.name)
    if dataset.dtype != np.uint8 or dataset.ndim == 2:
        if dataset.ndim not in (1, 2) or not len(dataset):
            raise DatasetError(f"{place(dataset)} must hold one compressed image a row, got shape {dataset.shape}")
        first = bytes(_first(dataset))
        return CompressedFrames(path, name, (len(dataset), *decode(first, f"{place(dataset)} row 0").shape))
    rows, *frame = dataset.shape
    if len(frame) == 2:
        return RawFrames(path, name, (rows, *frame, 1))
    is_first = frame[2] not in _CHANNELS and frame[0] in _CHANNELS
    if not is_first and frame[2] not in _CHANNELS:
        raise DatasetError(
            f"{place(dataset)} must have 1, 3 or 4 channels, first or last, got rows of shape {tuple(frame)}; "
            "store single frames, not stacks"
        )
    return RawFrames(path, name, (rows, *frame[1:], frame[0]) if is_first else (rows, *frame))


class RawFrames(Frames):
    """Rows of pixels, channels first, last or none; given with channels last."""

    def __init__(self, path: Path, name: str, shape: tuple[int, int, int, int]) -> None:
        self.path, self.name, self.shape = path, name, shape

    @property
    def encoding(self) -> str:
        """Always "raw"."""
        return "raw"

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        pixels = read_rows(_dataset(self.path, self.name), rows)
        if pixels.ndim == 4 and pixels.shape[1:] != self.shape[1:]:
            pixels = np.moveaxis(pixels, 1, -1)
        return np.ascontiguousarray(pixels.reshape(-1, *self.shape[1:]))

    def stored_rows(self) -> Iterator[bytes]:
        """Yields the pixels of each row, channels last."""
        for block in self.blocks():
            yield from (frame.tobytes() for frame in block)


class CompressedFrames(Frames):
    """One JPEG or PNG file a row."""

    def __init__(self, path: Path, name: str, shape: tuple[int, int, int, int]) -> None:
        self.path, self.name, self.shape = path, name, shape

    @property
    def encoding(self) -> str:
        """The kind of the first row's file: "jpeg" or "png"."""
        return compression(next(self.stored_rows())) or "unknown"

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        data = read_rows(_dataset(self.path, self.name), rows)
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows
        frames = [self._decode(bytes(each), int(row)) for row, each in zip(numbers, data, strict=True)]
        return np.stack(frames) if frames else np.zeros((0, *self.shape[1:]), np.uint8)

    def stored_rows(self) -> Iterator[bytes]:
        """Yields the compressed file of each row."""
        dataset = _dataset(self.path, self.name)
        for start in range(0, len(self), 64):
            yield from (bytes(each) for each in read_rows(dataset, slice(start, start + 64)))

    def _decode(self, data: bytes, row: int) -> np.ndarray:
        frame = decode(data, f"{self.path.name}:{self.name.strip('/')} row {row}")
        if frame.shape != self.shape[1:]:
            raise DatasetError(
                f"{self.path.name}:{self.name.strip('/')} row {row} must have the shape {self.shape[1:]} of row 0, got "
                f"{frame.shape}; record the episode again"
            )
        return frame


def _first(dataset: h5py.Dataset) -> np.ndarray:
    return read_rows(dataset, slice(0, 1))[0]


def _dataset(path: Path, name: str) -> h5py.Dataset:
    """Returns the dataset of this process's own handle to the file as it is now."""
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{path} is gone while it is in use ({error.strerror}); put it back") from error
    return _open_dataset(os.getpid(), path, (status.st_ino, status.st_mtime_ns), name)


@lru_cache(maxsize=_MAX_OPEN)
def _open_dataset(process: int, path: Path, version: tuple[int, int], name: str) -> h5py.Dataset:
    try:
        dataset = _open_file(process, path, version)[name]
    except KeyError as error:
        raise DatasetError(f"{path} no longer holds {name}; it was changed while it was in use") from error
    assert isinstance(dataset, h5py.Dataset)
    return dataset


@lru_cache(maxsize=_MAX_OPEN)
def _open_file(process: int, path: Path, version: tuple[int, int]) -> h5py.File:
    return handle(path)
