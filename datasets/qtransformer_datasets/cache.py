"""Files derived from a dataset: where they lie, which dataset they belong to, and who may write one.

    LOG/.qtransformer_cache/          beside the data of a folder (LOG.qtransformer_cache beside a file), or, where
                                      nothing can be written there, $XDG_CACHE_HOME/qtransformer
        <fingerprint>-<key>.npy       all images of an observation, one after the other
        <fingerprint>-<key>.json      how often each pixel value occurs in them
        <fingerprint>-numbers.statistics.json

Special about this file: names begin with the fingerprint of the content, so a changed dataset never meets what belongs
to the old one. Everything can be deleted at any time. It must not know what the files are for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qtransformer.files import leftovers, write_durably

from .schema import EpisodeDataset

FOLDER = ".qtransformer_cache"
_DIGITS = 16  # of the fingerprint, in names; the files that matter hold all of it


def cache_folder(path: Path) -> Path | None:
    """Returns the folder for what is derived from the dataset at `path`, made where missing; None if none can be."""
    beside = path / FOLDER if path.is_dir() else path.with_name(path.name + FOLDER)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return next((each for each in (beside.absolute(), Path(root) / "qtransformer") if _is_usable(each)), None)


def cache_file(dataset: EpisodeDataset, name: str, suffix: str) -> Path | None:
    """Returns the path of a derived file, whether it is there or not; None where nothing can be written."""
    folder = cache_folder(dataset.path)
    return folder and folder / f"{dataset.fingerprint[:_DIGITS]}-{quote(name, safe='')}{suffix}"


def read_record(path: Path | None, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a JSON file's content; None where it is missing, damaged, or of another identity than this."""
    try:
        record = json.loads(path.read_text()) if path else None
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and all(record.get(name) == value for name, value in identity.items())
    return record if is_ours else None


def write_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Writes a small JSON file, or leaves it where nothing can be written: it only saves time."""
    if path is not None:
        try:
            write_durably(path, lambda temporary: temporary.write_text(json.dumps(record)))
        except OSError:
            return


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Lets one process at a time in, so that the ranks of one machine write a large file once; ends with the process.

    What a killed one left half-written is removed. Where the system has no such locks, all write, each its own file.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    with path.with_name(f".{path.name}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for torn in leftovers(path.parent, escape(path.name)):
            torn.unlink()
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a fork of this process has it open, too


def _is_usable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True, parents=not folder.name.endswith(FOLDER))
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
