"""Opening Parquet files that strangers made: every failure is a DatasetError that names file, column and step.

Special about this file: pyarrow is optional and imported by the functions that need it. Lists become rows of the
declared shape, so that a ragged or empty value is an error with its step and never a guess. It must not know any
dataset layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..frames import Frames
from ..schema import DatasetError
from .images import compression, decode

_SMALL = 2**24  # bytes that any file may claim
_MAX_COMPRESSION = 1100  # of numbers; run lengths can claim far more, a log of sensors does not
_LFS_POINTER = b"version https://git-lfs"
_BATCH = 64  # images read at a time
_MAX_CACHED = 4  # row groups of images, compressed


def open_parquet(path: Path) -> Any:
    """Returns the file as `pyarrow.parquet.ParquetFile`.

    Raises:
        DatasetError: pyarrow is not installed, or the file is missing, damaged, or claims far more than it holds.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DatasetError(f"{path} needs pyarrow to be read; pip install 'qtransformer[lerobot]'") from error
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except _errors() as error:
        raise DatasetError(f"{path} {why_unreadable(path, error)}") from error
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    claimed = 8 * sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if claimed > max(_SMALL, _MAX_COMPRESSION * path.stat().st_size):
        raise DatasetError(
            f"{path} claims {claimed / 1e6:,.0f} MB of values in {path.stat().st_size / 1e6:,.3f} MB; it is damaged: "
            "copy or record it again"
        )
    return file


def why_unreadable(path: Path, error: Exception) -> str:
    """Returns what is wrong with a file that a library refused, and what to do; to follow its path in a message."""
    reason = " ".join(str(error).split())
    try:
        if not path.is_file():
            return "is missing; fetch the whole dataset"
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except OSError:
        return f"cannot be opened ({reason}); check its permissions"
    if head == _LFS_POINTER:
        return "is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"
    return f"is damaged, or was never finished ({reason}); copy, download or record it again"


def column_names(path: Path) -> list[str]:
    """Returns the names of a file's columns.

    Raises:
        DatasetError: as `open_parquet`.
    """
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def read_table(path: Path, columns: Sequence[str]) -> Any:
    """Returns these columns of a file as `pyarrow.Table`.

    Raises:
        DatasetError: as `open_parquet`, or a column is missing.
    """
    with open_parquet(path) as file:
        names = list(file.schema_arrow.names)
        missing = [name for name in columns if names.count(name) != 1]
        if missing:
            raise DatasetError(
                f"{path} must hold the columns {missing} once, found {sorted(names)}; record or convert it again"
            )
        try:
            table = file.read(columns=list(columns), use_threads=False)
            table.validate(full=True)
        except _errors() as error:
            raise DatasetError(f"{path} {why_unreadable(path, error)}") from error
    return table


def read_numbers(table: Any, name: str, shape: tuple[int, ...], dtype: str, where: str) -> np.ndarray:
    """Returns (rows, *shape) of a column of numbers or of nested lists; a scalar column has the shape (1,) or ().

    Args:
        table: `pyarrow.Table`, whose rows count as steps in messages.
        name: of the column.
        shape: of one row.
        dtype: to return; the stored one must be of the same kind or a lesser one.
        where: the file and episode, for messages.

    Raises:
        DatasetError: a row has another shape or is empty, or the values are of another kind.
    """
    values, size = _plain(table.column(name)), int(np.prod(shape))
    dims: list[int] = []
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        _refuse_nulls(values, int(np.prod(dims)), f"{where} {name}")
        dims.append(_common_length(values, shape, f"{where} {name}"))
        values = _plain(values.flatten())
    if tuple(dims) != shape and (dims or size != 1):
        raise DatasetError(
            f"{where} {name} must have the shape {shape} after info.json, got {tuple(dims)}; correct info.json"
        )
    _refuse_nulls(values, size, f"{where} {name}")
    stored = values.to_numpy(zero_copy_only=False)
    if stored.dtype.kind not in "biuf" or not np.can_cast(stored.dtype, dtype, "same_kind"):
        raise DatasetError(f"{where} {name} must be {dtype} after info.json, got {values.type}; correct or convert it")
    return stored.astype(dtype).reshape(len(table), *shape)


def read_texts(table: Any, name: str, where: str) -> np.ndarray:
    """Returns (rows,) strings.

    Raises:
        DatasetError: the column holds something else, or an empty value.
    """
    values = table.column(name).to_pylist()
    wrong = next((step for step, value in enumerate(values) if not isinstance(value, str)), None)
    if wrong is not None:
        raise DatasetError(f"{where} {name} step {wrong} must be text, got {values[wrong]!r}; correct or convert it")
    return np.array(values, dtype=str)


class ParquetImages(Frames):
    """A column of JPEG or PNG files, as Hugging Face's `Image` stores them: struct {bytes, path}."""

    def __init__(self, path: Path, column: str, start: int, count: int) -> None:
        """Looks at the first image.

        Args:
            path: the Parquet file.
            column: its name.
            start: row of the file where the episode begins.
            count: number of rows.

        Raises:
            DatasetError: the column is missing or holds no images.
        """
        self.path, self.column, self._start = path, column, start
        with open_parquet(path) as file:
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        first = self._read(0)
        self.shape = (count, *decode(first, self._where(0)).shape)
        self._encoding = compression(first) or "unknown"

    @property
    def encoding(self) -> str:
        """The kind of the first image."""
        return self._encoding

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows
        frames = [self._decode(int(row)) for row in numbers]
        return np.stack(frames) if frames else np.zeros((0, *self.shape[1:]), np.uint8)

    def stored_rows(self) -> Iterator[bytes]:
        """Yields the compressed images."""
        yield from (self._read(row) for row in range(len(self)))

    def _decode(self, row: int) -> np.ndarray:
        frame = decode(self._read(row), self._where(row))
        if frame.shape != self.shape[1:]:
            raise DatasetError(
                f"{self._where(row)} must have the shape {self.shape[1:]} of step 0, got {frame.shape}; "
                "record the episode again"
            )
        return frame

    def _read(self, row: int) -> bytes:
        place = self._start + row
        group = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[group - 1]) if group else 0
        data = _images(self.path, _version(self.path), self.column, group)[place - before]
        if not data:
            raise DatasetError(f"{self._where(row)} holds no image, at most the path of one; embed the images")
        return data

    def _where(self, row: int) -> str:
        return f"{self.path} {self.column} step {row} (row {self._start + row} of the file)"


@lru_cache(maxsize=_MAX_CACHED)
def _images(path: Path, version: int, column: str, group: int) -> list[bytes | None]:
    """Returns the compressed images of a row group; a row group is what Parquet can read at the least."""
    with open_parquet(path) as file:
        try:
            batches = file.iter_batches(_BATCH, row_groups=[group], columns=[column], use_threads=False)
            values = [value for batch in batches for value in batch.column(column).to_pylist()]
        except _errors() as error:
            raise DatasetError(f"{path} {column} {why_unreadable(path, error)}") from error
    images = [value.get("bytes") if isinstance(value, dict) else value for value in values]
    wrong = next((image for image in images if not isinstance(image, bytes | None)), None)
    if wrong is not None:
        raise DatasetError(f"{path} {column} must hold compressed images, got {type(wrong).__name__}; convert it again")
    return images


def _version(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise DatasetError(f"{path} is gone while it is in use ({error.strerror}); put it back") from error


def _plain(column: Any) -> Any:
    """Returns a column as one array, without the extension types that Hugging Face gives to matrices."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return array.storage if hasattr(array, "storage") else array


def _common_length(values: Any, shape: tuple[int, ...], where: str) -> int:
    lengths = np.diff(_offsets(values))
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0]))
        raise DatasetError(
            f"{where} must have the shape {shape} at every step, got {lengths[row]} values at step {row} and "
            f"{lengths[0]} at step 0; record the episode again"
        )
    return int(lengths[0]) if len(lengths) else 0


def _offsets(values: Any) -> np.ndarray:
    if hasattr(values, "offsets"):
        return values.offsets.to_numpy()
    return np.arange(len(values) + 1) * values.type.list_size


def _refuse_nulls(values: Any, size: int, where: str) -> None:
    if values.null_count:
        step = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // max(1, size)
        raise DatasetError(f"{where} step {step} is empty; record the episode again, or leave it out")


def _errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError)
