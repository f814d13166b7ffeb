"""One door for every dataset: `open_dataset` finds out which layout a path holds and reads it.

Special about this file: what cannot be read is explained (what was found, which layouts are known), never guessed at.
A dialect is a module with `LAYOUT` (a sentence), `matches(path)` and `read(path, options)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from qtransformer.batch import ReadOptions

from .. import selection
from ..schema import DatasetError, EpisodeDataset
from . import d4rl, lerobot, minari, ogbench, robomimic
from .text import with_instruction

DIALECTS: tuple[ModuleType, ...] = (minari, robomimic, d4rl, ogbench, lerobot)
_MINARI_PATH = "MINARI_DATASETS_PATH"


def open_dataset(path: str | Path, options: ReadOptions | None = None) -> EpisodeDataset:
    """Returns the episodes at `path`.

    Args:
        path: a file or folder of a known dialect, a folder of such (shards, read as one set), or the id of a Minari
            dataset below $MINARI_DATASETS_PATH or ~/.minari/datasets.
        options: what the file leaves open.

    Raises:
        DatasetError: nothing is there, it is damaged, or its layout is not known.
    """
    options = options or ReadOptions()
    path = _find(Path(path))
    dialect = _dialect(path)
    if dialect:
        dataset = dialect.read(path, options)
    else:
        dataset = selection.merge([_read_shard(each, options) for each in _shards(path)], path)
    return with_instruction(dataset, options.instruction)


def open_datasets(paths: Sequence[str | Path], options: ReadOptions | None = None) -> EpisodeDataset:
    """Returns the episodes of several datasets as one; see `open_dataset`.

    Raises:
        DatasetError: as `open_dataset`, or they do not belong together.
    """
    datasets = [open_dataset(path, options) for path in paths]
    return datasets[0] if len(datasets) == 1 else selection.merge(datasets, Path(os.path.commonpath(paths)))


def _find(path: Path) -> Path:
    if path.exists():
        return path
    roots = [Path(os.environ[_MINARI_PATH])] if _MINARI_PATH in os.environ else [Path.home() / ".minari" / "datasets"]
    for root in roots:
        if (root / path / "data").is_dir():
            return root / path
    raise DatasetError(
        f"{path} does not exist, nor is it the id of a Minari dataset in {roots[0]}; check the path, or collect a "
        "dataset first"
    )


def _dialect(path: Path) -> ModuleType | None:
    """Returns the dialect of a path, None for a folder that may hold shards.

    Raises:
        DatasetError: it is a file of no known layout, or a damaged one.
    """
    found = next((each for each in DIALECTS if each.matches(path)), None)
    if found is None and not path.is_dir():
        raise DatasetError(f"{path} has no known layout: {_contents(path)}; known are {_known()}")
    return found


def _shards(folder: Path) -> list[Path]:
    found = [each for each in sorted(folder.iterdir()) if _may_be_shard(each)]
    if not found:
        names = sorted(each.name for each in folder.iterdir())[:10]
        raise DatasetError(f"{folder} holds no dataset, found {names or 'nothing'}; known are {_known()}")
    return found


def _may_be_shard(path: Path) -> bool:
    is_data = path.is_dir() or path.suffix in (".hdf5", ".h5", ".npz")
    return is_data and not path.name.startswith(".") and any(each.matches(path) for each in DIALECTS)


def _read_shard(path: Path, options: ReadOptions) -> EpisodeDataset:
    dialect = _dialect(path)
    assert dialect is not None
    return dialect.read(path, options)


def _contents(path: Path) -> str:
    from .hdf5 import open_hdf5

    if path.suffix == ".npz":
        return "a .npz file without observations and terminals"
    with open_hdf5(path) as file:
        return f"found {[str(name) for name in file][:10]} at its root"


def _known() -> str:
    """Returns the names of the dialects; their layouts would not fit into a line."""
    return ", ".join(each.LAYOUT.partition(":")[0] for each in DIALECTS) + "; docs/datasets.md shows each"
