"""Where the images of a training set are kept, decided by what memory and disk allow, and said before it is done.

Special about this file: the speed that it forecasts is measured, on windows read from this very log and, for RAM and
the memory map, on the same windows put there. It must not know how batches are drawn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from rich.console import Console

from .cache import cache_folder
from .image_rows import Images, MappedRows, MemoryRows, RowSource
from .schema import DatasetError, EpisodeDataset

Storage: TypeAlias = Literal["auto", "memory", "mapped", "file"]
MEMORY_SHARE = 0.5  # of the memory that is free, where the user names no limit: the learner needs some, too
_DISK_SHARE = 0.9  # of the free disk that a cache may take
_SAMPLE_WINDOWS, _SAMPLE_SECONDS, _SAMPLE_FRAMES = 32, 0.5, 6  # what a forecast reads, and how long at most
_SAMPLE_BYTES = 2**26  # of frames that are held for it
_PLACES = {"memory": "in memory", "mapped": "memory map in {folder}", "file": "read from the file each time"}


def open_images(dataset: EpisodeDataset, keys: Sequence[str], storage: Storage, spare: int) -> dict[str, RowSource]:
    """Returns the images of each key where `storage` wants them, and says on stderr where that is and what it gives.

    auto     RAM where raw images fit into `spare`; else the memory map where the disk has room; else RAM where they
             fit; else the file
    memory, mapped, file      as named; where the disk is full, the file stands in for the map, and a line says so

    Args:
        dataset: its images.
        keys: of the observations that are images.
        storage: where the rows shall be.
        spare: bytes of memory that images may take.

    Raises:
        DatasetError: `memory` was asked for, and they do not fit.
    """
    images = [Images(dataset, key) for key in keys]
    if not images:
        return {}
    needed, folder = sum(each.num_bytes for each in images), cache_folder(dataset.path)
    if storage == "memory" and needed > spare:
        raise DatasetError(
            f"{dataset.path}: images need {_size(needed)} of memory, but the limit leaves {_size(max(0, spare))}; "
            "raise the memory limit, or store them mapped"
        )
    chosen = _choose(images, spare, folder) if storage == "auto" else storage
    _say(forecast(images, chosen, folder))
    if chosen == "memory":
        return {each.key: each.in_memory() for each in images}
    if chosen == "mapped":
        try:
            return {each.key: each.mapped() for each in images}
        except OSError as error:
            _say(f"images: the cache cannot be written ({error.strerror or error}); reading from the file each time")
    return {each.key: each.in_file() for each in images}


def forecast(images: Sequence[Images], storage: str, folder: Path | None) -> str:
    """Returns a sentence on the size, the place, and the frames a second to expect from it there."""
    total = sum(each.num_bytes for each in images)
    rates = [_expected_rate(each, storage, folder) for each in images]
    rate = len(rates) / sum(1 / each for each in rates)
    place = _PLACES[storage].format(folder=folder or "a folder of the cache")
    frames = ", ".join(f"{each.key} {each.shape[0]:,} of {'x'.join(map(str, each.shape[1:]))}" for each in images)
    return f"images: {_size(total)} ({frames}), {place}; {rate:,.0f} frames/s expected, by a sample"


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the bytes of memory that this process may still take, as the system and its container tell."""
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        available = next(1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:")
    except (OSError, StopIteration):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return available if limit == "max" else min(available, max(0, int(limit) - int(used)))
    except OSError:
        return available


def check_memory(dataset: EpisodeDataset, copied: int, memory_limit: int | None) -> int:
    """Returns the bytes that are left for images, after the numbers of a log and their training copy.

    Args:
        dataset: the numbers that are in memory already.
        copied: bytes of the copy.
        memory_limit: bytes that all of it may take; None for `MEMORY_SHARE` of what is free, and the numbers.

    Raises:
        DatasetError: the numbers alone exceed the limit.
    """
    held = sum(_bytes_of_numbers(each.observations) + each.actions.nbytes for each in dataset.episodes)
    limit = held + int(MEMORY_SHARE * available_memory()) if memory_limit is None else memory_limit
    if held + copied > limit:
        raise DatasetError(
            f"{dataset.path}: numbers need {_size(held + copied)} of memory ({_size(held)} as read, {_size(copied)} "
            f"for training), but the limit is {_size(limit)}; raise it, or leave out episodes or observations"
        )
    return limit - held - copied


def _choose(images: Sequence[Images], spare: int, folder: Path | None) -> Storage:
    fits = sum(each.num_bytes for each in images) <= spare
    if fits and all(each.is_raw for each in images):
        return "memory"
    missing = sum(each.num_bytes for each in images if not each.is_cached())
    if not missing or (folder and missing <= _DISK_SHARE * shutil.disk_usage(folder).free):
        return "mapped"
    return "memory" if fits else "file"


def _expected_rate(images: Images, storage: str, folder: Path | None) -> float:
    """Returns frames a second, of windows as training reads them."""
    if storage == "file":
        return _rate(images.in_file(), images.shape[0])
    if storage == "mapped" and images.is_cached():
        return _rate(images.mapped(), images.shape[0])
    sample = _sample(images)
    if storage == "memory" or folder is None:
        return _rate(MemoryRows(sample), len(sample))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sample") as place:
        np.save(Path(place) / "sample.npy", sample)
        return _rate(MappedRows(Path(place) / "sample.npy"), len(sample))


def _sample(images: Images) -> np.ndarray:
    """Returns the images of some windows, some megabytes at most."""
    found, num_bytes = [], 0
    for window in _windows(images.in_file(), images.shape[0]):
        found.append(window)
        num_bytes += window.nbytes
        if num_bytes > _SAMPLE_BYTES:
            break
    return np.concatenate(found)


def _rate(source: RowSource, num_rows: int) -> float:
    next(_windows(source, num_rows))  # opening costs once
    started = time.perf_counter()
    num_read = sum(len(window) for window in _windows(source, num_rows))
    return num_read / (time.perf_counter() - started)


def _windows(source: RowSource, num_rows: int) -> Iterator[np.ndarray]:
    """Yields windows of rows, spread over the whole: as many as there is time for, at least one."""
    length = min(_SAMPLE_FRAMES, num_rows)
    started = time.perf_counter()
    for start in np.random.default_rng(0).integers(num_rows - length + 1, size=_SAMPLE_WINDOWS).tolist():
        yield source.take(np.arange(start, start + length))
        if time.perf_counter() - started > _SAMPLE_SECONDS:
            return


def _bytes_of_numbers(observations: Mapping[str, object]) -> int:
    return sum(rows.nbytes for rows in observations.values() if isinstance(rows, np.ndarray))


def _size(num_bytes: int) -> str:
    """Returns bytes as people write them."""
    scale, unit = next((each for each in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if num_bytes >= each[0]), (1, "bytes"))
    return f"{num_bytes / scale:.3g} {unit}"


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
