"""Opening HDF5 files that strangers made: every failure is a DatasetError, and nothing outside the file is read.

Special about this file: HDF5 can point at other files through external links, soft links, external storage and
virtual datasets, can ask for plugins, and can hold Python objects. All of these are refused. It must not know any
dataset layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ..schema import DatasetError
from .hdf5_heaps import check_heaps

MAX_DEPTH = 8
_MAX_MEMBERS = 4096  # of one episode's observations or actions
_SMALL = 2**24  # bytes that any dataset may claim
_MAX_COMPRESSION = 1100  # deflate reaches 1032
_FILTERS = {  # that libhdf5 and h5py bring along; for any other, libhdf5 would load a library from its plugin folder
    *(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP),
    *(h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET, h5py.h5z.FILTER_LZF),
}


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Gives the file opened for reading; what h5py cannot read of it inside the block is a DatasetError, too.

    Raises:
        DatasetError: the file is missing, unreadable, not HDF5, truncated or damaged.
    """
    with handle(path) as file:
        try:
            yield file
        except Exception as error:
            if not _is_from_h5py(error):
                raise
            raise DatasetError(f"{path} is damaged ({_words(error)}); copy or download it again") from error


def handle(path: Path) -> h5py.File:
    """Returns the file opened for reading, for the caller to close; see `open_hdf5`."""
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
    except (OSError, RuntimeError) as error:
        if "truncated" in str(error):
            raise DatasetError(f"{path} is truncated ({error}); copy or download it again") from error
        raise DatasetError(f"{path} cannot be read ({error}); check its permissions, or copy it again") from error


def _is_from_h5py(error: Exception) -> bool:
    """Returns whether an error was raised inside h5py, which uses every built-in kind for a damaged file."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and "h5py" in Path(trace.tb_frame.f_code.co_filename).parts


def _words(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def root_names(path: Path) -> list[str]:
    """Returns the names at the root of a file; empty where it is no HDF5 file that can be read."""
    try:
        with open_hdf5(path) as file:
            return [str(name) for name in file]
    except DatasetError:
        return []


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Returns a member of a group.

    Raises:
        DatasetError: there is none of this name; the message lists those that there are.
    """
    members = children(group)
    if name not in members:
        raise DatasetError(f"{place(group)} must hold {name}, found {sorted(members)}; record or convert it again")
    return members[name]


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


def leaves(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Returns every dataset below a group; nested names are joined with "/".

    Raises:
        DatasetError: the groups are too many or too deep, as where a group is linked into itself.
    """
    found: dict[str, h5py.Dataset] = {}
    waiting = [("", group)]
    for prefix, each in waiting:  # grows while it is walked through
        if prefix.count("/") > MAX_DEPTH:
            raise DatasetError(f"{place(each)} is nested more than {MAX_DEPTH} groups deep; flatten the file")
        for name, member in children(each).items():
            if isinstance(member, h5py.Group):
                waiting.append((f"{prefix}{name}/", member))
            else:
                found[prefix + name] = member
        if len(waiting) + len(found) > _MAX_MEMBERS:
            raise DatasetError(f"{place(group)} holds more than {_MAX_MEMBERS} groups and datasets; flatten the file")
    return found


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """Returns all numbers of a dataset.

    Raises:
        DatasetError: it lives in another file, claims more than it stores, holds no numbers, or is damaged.
    """
    check_storage(dataset)
    if dataset.dtype.kind not in "biuf":
        raise DatasetError(f"{place(dataset)} must hold numbers, got {dataset.dtype}; convert or remove it")
    return np.asarray(read_rows(dataset, ()))


def read_text(dataset: h5py.Dataset) -> np.ndarray:
    """Returns the strings of a dataset as a numpy array of str; h5py stores them as UTF-8.

    Raises:
        DatasetError: as `read_array`, or it holds no text.
    """
    check_storage(dataset)
    if not is_text(dataset):
        raise DatasetError(f"{place(dataset)} must hold text, got {dataset.dtype}; convert or remove it")
    values = np.asarray(read_rows(dataset, ()))
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.flat]
    return np.array(texts, dtype=str).reshape(values.shape)


def is_text(dataset: h5py.Dataset) -> bool:
    """Returns whether a dataset holds strings, of fixed or free length."""
    return h5py.check_string_dtype(dataset.dtype) is not None


def read_rows(dataset: h5py.Dataset, rows: slice | np.ndarray | tuple[()]) -> np.ndarray:
    """Returns some rows of a dataset as h5py gives them, `()` for all.

    Raises:
        DatasetError: the file is damaged there.
    """
    if h5py.check_vlen_dtype(dataset.dtype) or h5py.check_string_dtype(dataset.dtype):
        check_heaps(Path(dataset.file.filename))
    try:
        return dataset[rows]
    except Exception as error:
        if not _is_from_h5py(error):
            raise
        raise DatasetError(f"{place(dataset)} is damaged ({_words(error)}); copy or download it again") from error


def read_attribute(group: h5py.Group, name: str) -> object:
    """Returns an attribute as h5py gives it; None where there is none of this name."""
    if name not in group.attrs:
        return None
    if group.attrs.get_id(name).dtype.kind == "O":
        check_heaps(Path(group.file.filename))
    return group.attrs[name]


def check_storage(dataset: h5py.Dataset) -> None:
    """Refuses a dataset whose data lie in another file, need a plugin, or are far fewer than its shape claims.

    A file of a few bytes can claim a shape of terabytes: what was never written reads as zeros.

    Raises:
        DatasetError: it is such a dataset.
    """
    if dataset.is_virtual or dataset.external:
        raise DatasetError(f"{place(dataset)} keeps its data in another file; copy the data into this one")
    pipeline = dataset.id.get_create_plist()
    strange = {pipeline.get_filter(index)[0] for index in range(pipeline.get_nfilters())} - _FILTERS
    if strange:
        raise DatasetError(
            f"{place(dataset)} needs the HDF5 filter {min(strange)}, a plugin, and plugins are never loaded; write it "
            "again with gzip, lzf or no compression"
        )
    claimed, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if claimed > max(_SMALL, _MAX_COMPRESSION * stored):
        raise DatasetError(
            f"{place(dataset)} claims {claimed / 1e6:,.0f} MB by its shape {dataset.shape}, but the file stores "
            f"{stored / 1e6:,.3f} MB of it; it is damaged or was never written: copy or record it again"
        )


def place(item: h5py.Group | h5py.Dataset) -> str:
    """Returns "file.hdf5:path/in/file" for messages."""
    return f"{Path(item.file.filename).name}:{(item.name or '').strip('/')}"
