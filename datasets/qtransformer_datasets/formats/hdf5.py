"""Opening HDF5 files that strangers made: every failure is a DatasetError, and nothing outside the file is read.

Special about this file: HDF5 can point at other files through external links, soft links, external storage and
virtual datasets, and can hold Python objects. All of these are refused. It must not know any dataset layout.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from ..schema import DatasetError

MAX_DEPTH = 8


def open_hdf5(path: Path) -> h5py.File:
    """Returns the file opened for reading.

    Raises:
        DatasetError: the file is missing, unreadable, not HDF5, truncated or damaged.
    """
    try:
        with path.open("rb"):
            pass
        if not h5py.is_hdf5(path):
            raise DatasetError(
                f"{path} must be an HDF5 file, but its signature is missing; check the path or fetch it again"
            )
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; check the path") from error
    except OSError as error:
        if "truncated" in str(error):
            raise DatasetError(f"{path} is truncated ({error}); copy or download it again") from error
        raise DatasetError(f"{path} cannot be read ({error}); check its permissions, or copy it again") from error


def children(group: h5py.Group) -> dict[str, h5py.Group | h5py.Dataset]:
    """Returns the members of a group by name, in the file's order.

    Raises:
        DatasetError: a member is an external or soft link, or neither a group nor a dataset.
    """
    members = {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise DatasetError(
                f"{place(group)}/{name} is a link, and links are never followed; copy the data into the file"
            )
        member = group[name]
        if not isinstance(member, h5py.Group | h5py.Dataset):
            raise DatasetError(
                f"{place(group)}/{name} must be a group or a dataset, got {type(member).__name__}; remove it"
            )
        members[name] = member
    return members


def leaves(group: h5py.Group, prefix: str = "") -> dict[str, h5py.Dataset]:
    """Returns every dataset below a group; nested names are joined with "/"."""
    if prefix.count("/") > MAX_DEPTH:
        raise DatasetError(f"{place(group)} is nested more than {MAX_DEPTH} groups deep; flatten the file")
    found = {}
    for name, member in children(group).items():
        found |= leaves(member, f"{prefix}{name}/") if isinstance(member, h5py.Group) else {prefix + name: member}
    return found


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """Returns all numbers of a dataset.

    Raises:
        DatasetError: it lives in another file, holds text, objects or compressed images, or is damaged.
    """
    if dataset.is_virtual or dataset.external:
        raise DatasetError(f"{place(dataset)} keeps its data in another file; copy the data into this one")
    if h5py.check_string_dtype(dataset.dtype) is not None:
        raise DatasetError(f"{place(dataset)} holds text, which is not supported yet; leave this key out")
    if h5py.check_vlen_dtype(dataset.dtype) == np.uint8:
        raise DatasetError(f"{place(dataset)} holds compressed images, which are not supported yet; leave this key out")
    if dataset.dtype.kind not in "biuf":
        raise DatasetError(f"{place(dataset)} must hold numbers, got {dataset.dtype}; convert or remove it")
    try:
        return np.asarray(dataset[()])
    except OSError as error:
        raise DatasetError(f"{place(dataset)} is damaged ({error}); copy or download the file again") from error


def place(item: h5py.Group | h5py.Dataset) -> str:
    """Returns "file.hdf5:path/in/file" for messages."""
    return f"{Path(item.file.filename).name}:{(item.name or '').strip('/')}"
