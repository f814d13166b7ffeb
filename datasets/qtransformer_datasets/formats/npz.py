"""Opening npz files that strangers made: nothing is unpickled, and nothing is read that cannot fit.

Special about this file: what a member holds is known from its header and the archive's directory before any memory
is taken, so a zip bomb and a header that claims terabytes are refused. It must not know any dataset layout.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ..schema import DatasetError
from ..storage import available_memory

_SMALL = 2**26  # bytes that any array may claim
_MAX_COMPRESSION = 200  # logs reach 30; a bomb made of zeros reaches 1032
_MAX_HEADER = 10_000  # characters
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError)


def npz_names(path: Path) -> list[str] | None:
    """Returns the names of the arrays in a file, None where it cannot be opened as an npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGE:
        return None


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns those of the named arrays that are in the file.

    Raises:
        DatasetError: the file is damaged, or an array holds no numbers, claims more than it stores or than fits into
            memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            present = [name for name in names if f"{name}.npy" in archive.namelist()]
            members = {name: archive.getinfo(f"{name}.npy") for name in present}
            _check_memory(path, sum(each.file_size for each in members.values()))
            return {name: _read_member(archive, each, f"{path.name}:{name}") for name, each in members.items()}
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; check the path") from error
    except _DAMAGE as error:
        raise DatasetError(f"{path} is no sound npz file ({error}); copy or download it again") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    if member.file_size > max(_SMALL, _MAX_COMPRESSION * member.compress_size):
        raise DatasetError(
            f"{where} would grow from {member.compress_size / 1e6:,.3f} MB to {member.file_size / 1e6:,.0f} MB, more "
            "than any log does; download the file again from a source that you trust"
        )
    try:
        with archive.open(member) as stream:
            _check_header(stream, member.file_size, where)
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
    except DatasetError:
        raise
    except Exception as error:  # numpy gives a header to Python's own parser, which fails in many ways
        raise DatasetError(f"{where} is damaged ({error}); copy or download the file again") from error


def _check_header(stream: IO[bytes], num_bytes: int, where: str) -> None:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise DatasetError(f"{where} must be a npy array of version 1 or 2, got {version}; save it again with numpy")
    shape, _, dtype = read(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise DatasetError(
            f"{where} holds Python objects, which are never unpickled since that runs code; save plain numbers"
        )
    if dtype.kind not in "biuf":
        raise DatasetError(f"{where} must hold numbers, got {dtype}; convert or remove it")
    claimed, stored = math.prod(shape) * dtype.itemsize, num_bytes - stream.tell()
    if claimed != stored or min(shape, default=0) < 0:
        raise DatasetError(
            f"{where} claims {claimed:,} bytes by its shape {shape}, but stores {stored:,}; copy or save it again"
        )


def _check_memory(path: Path, num_bytes: int) -> None:
    available = available_memory()
    if num_bytes > available:
        raise DatasetError(
            f"{path} needs {num_bytes / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free: an npz file "
            "cannot be read in parts; close other programs, or convert it to Minari on a larger machine"
        )
