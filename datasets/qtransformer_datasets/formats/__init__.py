"""One door for every dataset: `open_dataset` finds out which layout a path holds and reads it.

Special about this file: what cannot be read is explained (what was found, which layouts are known), never guessed at.
"""

from __future__ import annotations

from pathlib import Path

from ..schema import DatasetError, EpisodeDataset
from . import minari
from .hdf5 import open_hdf5


def open_dataset(path: str | Path) -> EpisodeDataset:
    """Returns the episodes at `path`: a dataset directory, its `data` directory, or the HDF5 file itself.

    Raises:
        DatasetError: nothing is there, it is damaged, or its layout is not known.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist; check the path, or collect a dataset first")
    files = minari.locate(path)
    if not files:
        found = sorted(each.name for each in path.iterdir())
        raise DatasetError(
            f"{path} must hold data/{minari.MAIN_NAME} or a finished episode, found {found}; check the path"
        )
    with open_hdf5(files[0]) as file:
        names, is_minari = sorted(file), minari.matches(file)
    if not is_minari:
        raise DatasetError(f"{files[0]} has no known layout: found {names[:10]} at its root; known is {minari.LAYOUT}")
    return minari.read(path, files)
