"""Files that appear under their name when they are complete and on the disk, and not before.

    .NAME.<process>.tmp     while it is written; a killed process leaves it behind
    NAME                    afterwards

Special about this file: both packages write through it, so it needs the standard library alone. It must not know what
is written.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

SUMS = "SHA256SUMS"
_NO_FOLDERS = (errno.EACCES, errno.EBADF, errno.EINVAL)  # from a file system that cannot wait for a folder's names


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file at a temporary path, and renames it to `path` when its content is on the disk.

    Whatever ends the writing early, `path` stays as it was and nothing is left beside it.

    Raises:
        OSError: the disk is full or fails. What `write` raises is passed on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Returns the temporary files in a folder: those of killed processes, unless one is writing.

    Args:
        folder: where `write_durably` wrote.
        name: of the files that were to be written; a pattern of `glob`.
    """
    return list(folder.glob(f".{name}.*.tmp"))


def sha256(path: Path) -> str:
    """Returns the sha256 (hex) of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Writes the sums of all files in `folder` and below to its SHA256SUMS, as `sha256sum --check` reads them.

    Raises:
        OSError: the disk is full or fails.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def fsync(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk.

    Where the system or the file system knows no such thing for folders, the rename alone must do.

    Raises:
        OSError: the disk fails.
    """
    if not path.is_dir():
        _fsync(path, os.O_RDWR)  # some systems refuse a file that is open for reading alone
    elif os.name == "posix":
        try:
            _fsync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in _NO_FOLDERS:
                raise


def _fsync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
