"""The parts of an episode in HDF5, as several layouts have them: vectors, actions, observations of every kind.

Special about this file: groups become names joined with "/", in their natural order (`_index_2` before `_index_10`).
What has no meaning here (objects, text where numbers belong) is refused by its place.
"""

from __future__ import annotations

import h5py
import numpy as np

from qtransformer.batch import FLAT_KEY

from ..frames import Rows
from ..schema import DatasetError
from .hdf5 import is_text, leaves, place, read_array, read_text
from .hdf5_frames import is_image, open_frames
from .specs import natural_order


def read_vector(dataset: h5py.Group | h5py.Dataset, dtype: type) -> np.ndarray:
    """Returns (T,) numbers, one a step; a column (T, 1) counts as such.

    Raises:
        DatasetError: it is a group, or of another shape.
    """
    if isinstance(dataset, h5py.Group) or dataset.ndim not in (1, 2) or (dataset.ndim == 2 and dataset.shape[1] != 1):
        found = "a group" if isinstance(dataset, h5py.Group) else str(dataset.shape)
        raise DatasetError(f"{place(dataset)} must have shape (T,), one value a step, got {found}; convert it again")
    return read_array(dataset).astype(dtype).reshape(-1)


def read_actions(member: h5py.Group | h5py.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (T, A) float32 actions, and the names of the dimensions where groups give them, else no names.

    The groups of a Dict or Tuple of actions are joined in their natural order, as `arm[0]`, `arm[1]`, `gripper[0]`.

    Raises:
        DatasetError: an action is no vector of real numbers, or there is none.
    """
    if isinstance(member, h5py.Dataset):
        return _read_action(member), ()
    parts = {key: _read_action(part) for key, part in sorted(leaves(member).items(), key=_by_name)}
    if not parts or len({len(part) for part in parts.values()}) != 1:
        lengths = {key: len(part) for key, part in parts.items()}
        raise DatasetError(f"{place(member)} must hold actions of one length, got {lengths or 'none'}; record it again")
    names = tuple(f"{key}[{index}]" for key, part in parts.items() for index in range(part.shape[1]))
    return np.concatenate(list(parts.values()), axis=1), names


def read_observations(member: h5py.Group | h5py.Dataset) -> dict[str, Rows]:
    """Returns the observations below a group by joined name, or a bare dataset as `state`.

    Raises:
        DatasetError: there is none, or one has no rows.
    """
    datasets = leaves(member) if isinstance(member, h5py.Group) else {FLAT_KEY: member}
    if not datasets:
        raise DatasetError(f"{place(member)} must hold at least one observation, got an empty group; record it again")
    return {key: read_observation(dataset) for key, dataset in sorted(datasets.items(), key=_by_name)}


def read_observation(dataset: h5py.Dataset) -> Rows:
    """Returns the rows of one observation: numbers, strings, or images that stay in the file.

    Raises:
        DatasetError: it is a single value, or holds something else.
    """
    if dataset.ndim == 0:
        raise DatasetError(f"{place(dataset)} must hold one row a step, got a single value; record it again")
    if is_image(dataset):
        return open_frames(dataset)
    if is_text(dataset):
        return read_text(dataset)
    rows = read_array(dataset)
    return rows[:, None] if rows.ndim == 1 else rows


def _read_action(dataset: h5py.Dataset) -> np.ndarray:
    is_vector = dataset.ndim in (1, 2) and 0 not in dataset.shape[1:]
    if not is_vector or dataset.dtype.kind != "f":
        raise DatasetError(
            f"{place(dataset)} must have shape (T, A) and hold real numbers, got {dataset.shape} {dataset.dtype}; only "
            "continuous actions work"
        )
    rows = read_array(dataset).astype(np.float32)
    return rows if rows.ndim == 2 else rows[:, None]


def _by_name(item: tuple[str, h5py.Dataset]) -> list[tuple[str, int]]:
    return natural_order(item[0])
