"""Heaps that would lead libhdf5 in a circle are found; sound ones pass, whatever they hold."""

import struct
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from qtransformer_datasets.formats import hdf5
from qtransformer_datasets.formats.hdf5_heaps import check_heaps
from qtransformer_datasets.schema import DatasetError


def write(path, texts=("pick up the cup",) * 3):
    with h5py.File(path, "w") as file:
        file.attrs["env_args"] = "x" * 20
        file.create_dataset("texts", data=list(texts), dtype=h5py.string_dtype())
        frames = file.create_dataset("frames", (3,), h5py.vlen_dtype(np.uint8))
        for row in range(3):
            frames[row] = np.arange(5 * row + 1, dtype=np.uint8)
    return path


def spoil(path):
    """Lets the first object of the first heap end among zeros: what follows has no index and no size."""
    content = bytearray(path.read_bytes())
    place = content.find(b"GCOL") + 16
    content[place + 8 : place + 16] = struct.pack("<Q", 104)
    content[place + 16 + 104 : place + 4000] = bytes(4000 - 120)
    path.write_bytes(content)
    return path


def test_sound_heaps_of_many_sizes_pass(tmp_path):
    texts = ["y" * length for length in (0, 1, 7, 8, 9, 500, 5000, 3)]
    check_heaps(write(tmp_path / "sound.hdf5", texts))
    with hdf5.open_hdf5(tmp_path / "sound.hdf5") as file:
        assert hdf5.read_text(hdf5.leaves(file)["texts"]).tolist() == texts
        assert hdf5.read_attribute(file, "env_args") == "x" * 20
        assert hdf5.read_attribute(file, "nothing") is None


@pytest.mark.parametrize("content", [b"", b"GCOL\x01\0\0\0", b"GCOL\x01\0\0\0" + struct.pack("<Q", 2**60)])
def test_what_is_no_heap_passes(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    check_heaps(tmp_path / "file")


READS: dict[str, Callable[[Any], object]] = {
    "texts": lambda file: hdf5.read_text(file["texts"]),
    "frames": lambda file: hdf5.read_rows(file["frames"], slice(0, 1)),
    "attribute": lambda file: hdf5.read_attribute(file, "env_args"),
}


@pytest.mark.parametrize("name", READS)
def test_a_circle_is_refused_before_libhdf5_walks_it(tmp_path, name):
    path = spoil(write(tmp_path / "damaged.hdf5"))
    with hdf5.open_hdf5(path) as file, pytest.raises(DatasetError, match=r"damaged.hdf5 is damaged \(a heap of"):
        READS[name](file)


def test_a_file_that_changed_is_looked_at_again(tmp_path):
    path = write(tmp_path / "file.hdf5")
    check_heaps(path)
    spoil(path)
    with pytest.raises(DatasetError, match="leads nowhere"):
        check_heaps(path)
