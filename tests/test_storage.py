"""Where images are kept: what fits where, what is said of it, and what happens when the disk is full after all."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode
from loading_fixtures import make_frames, open_images

from qtransformer_datasets import image_rows, storage
from qtransformer_datasets.image_rows import FileRows, Images, MappedRows, MemoryRows
from qtransformer_datasets.schema import DatasetError
from qtransformer_datasets.storage import available_memory, check_memory
from qtransformer_datasets.storage import open_images as open_storage

BYTES = 16 * 8 * 10 * 3  # of all frames of the log
Usage = namedtuple("Usage", "total used free")
FRAMES = np.concatenate([make_frames(length + 1, seed) for seed, length in enumerate((5, 1, 7))])


def set_free_disk(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, free))


@pytest.mark.parametrize(
    ("encoding", "spare", "free", "expected"),
    [
        ("raw", BYTES, 10 * BYTES, MemoryRows),
        ("raw", BYTES - 1, 10 * BYTES, MappedRows),
        ("raw", BYTES - 1, BYTES, FileRows),  # a tenth of the disk stays free
        ("png", BYTES, 10 * BYTES, MappedRows),  # decoded once and not at every start
        ("png", BYTES, BYTES, MemoryRows),
        ("png", 0, BYTES, FileRows),
    ],
)
def test_auto_goes_by_what_fits(tmp_path, monkeypatch, encoding, spare, free, expected):
    dataset = open_images(tmp_path / "log", encoding=encoding)
    set_free_disk(monkeypatch, free)
    source = open_storage(dataset, ["camera"], "auto", spare)["camera"]
    assert type(source) is expected
    np.testing.assert_array_equal(source.take(np.arange(16)), FRAMES)


def test_a_cache_that_is_there_needs_no_disk(tmp_path, monkeypatch):
    dataset = open_images(tmp_path / "log")
    Images(dataset, "camera").mapped()
    set_free_disk(monkeypatch, 0)
    assert type(open_storage(dataset, ["camera"], "auto", 0)["camera"]) is MappedRows


@pytest.mark.parametrize(("name", "expected"), [("memory", MemoryRows), ("mapped", MappedRows), ("file", FileRows)])
def test_what_is_asked_for_is_done(tmp_path, name, expected):
    dataset = open_images(tmp_path / "log")
    assert type(open_storage(dataset, ["camera"], name, BYTES)["camera"]) is expected


def test_memory_that_does_not_suffice(tmp_path):
    with pytest.raises(DatasetError, match=r"images need 3.84 kB of memory, but the limit leaves 3.84 kB; raise the"):
        open_storage(open_images(tmp_path / "log"), ["camera"], "memory", BYTES - 1)


@pytest.mark.parametrize("name", ["auto", "mapped"])
def test_a_full_disk_leads_to_the_file_and_a_line(tmp_path, monkeypatch, capsys, name):
    dataset = open_images(tmp_path / "log")
    monkeypatch.setattr(image_rows, "write_durably", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    source = open_storage(dataset, ["camera"], name, 0)["camera"]
    assert type(source) is FileRows
    said = capsys.readouterr().err
    assert "images: the cache cannot be written (No space left); reading from the file each time" in said


def test_a_disk_without_room_is_not_filled(tmp_path, monkeypatch, capsys):
    dataset = open_images(tmp_path / "log")
    set_free_disk(monkeypatch, BYTES - 1)
    assert type(open_storage(dataset, ["camera"], "mapped", 0)["camera"]) is FileRows
    assert "cannot be written (it needs 3,840 bytes, and the disk has 3,839); reading" in capsys.readouterr().err


def test_the_sample_is_small(tmp_path, monkeypatch):
    images = Images(open_images(tmp_path / "log"), "camera")
    assert len(storage._sample(images)) == 32 * 6
    monkeypatch.setattr(storage, "_SAMPLE_BYTES", 3000)
    assert len(storage._sample(images)) == 3 * 6  # windows of 1440 bytes


def test_without_a_folder_for_the_cache(tmp_path, monkeypatch, capsys):
    for module in (storage, image_rows):
        monkeypatch.setattr(module, "cache_folder" if module is storage else "cache_file", lambda *_: None)
    dataset = open_images(tmp_path / "log")
    assert type(open_storage(dataset, ["camera"], "auto", 0)["camera"]) is FileRows
    assert type(open_storage(dataset, ["camera"], "mapped", 0)["camera"]) is FileRows
    assert "neither the dataset's folder nor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "place"),
    [("memory", "in memory"), ("mapped", r"memory map in .*/log/\.qtransformer_cache"), ("file", "read from the file")],
)
def test_the_forecast_says_size_place_and_speed(tmp_path, capsys, name, place):
    dataset = open_images(tmp_path / "log")
    for _ in range(2):  # before and after the cache is written
        open_storage(dataset, ["camera"], name, BYTES)
        said = capsys.readouterr().err
        pattern = rf"images: 3.84 kB \(camera 16 of 8x10x3\), {place}.*; ([\d,]+) frames/s expected, by a sample\n"
        found = re.fullmatch(pattern, said)
        assert found, said
        assert int(found[1].replace(",", "")) > 10


def test_the_sample_leaves_nothing(tmp_path):
    dataset = open_images(tmp_path / "log")
    storage.forecast([Images(dataset, "camera")], "mapped", dataset.path)
    assert sorted(each.name for each in dataset.path.iterdir()) == [".qtransformer_cache", "main_data.hdf5"]
    assert list((dataset.path / ".qtransformer_cache").iterdir()) == []


class Slow:
    """A source of rows that takes a while for each window, by a clock of its own."""

    def __init__(self, seconds):
        self.seconds, self.windows = seconds, []

    def take(self, rows):
        self.windows.append(rows)
        return rows

    def rate(self, monkeypatch, num_rows):
        monkeypatch.setattr("time.perf_counter", lambda: self.seconds * len(self.windows))
        return storage._rate(self, num_rows)


def test_the_rate_is_measured(monkeypatch):
    source = Slow(0.005)
    assert source.rate(monkeypatch, 1000) == pytest.approx(6 / 0.005)
    assert len(source.windows) == 33  # one to open it
    assert all((np.diff(rows) == 1).all() and len(rows) == 6 for rows in source.windows)
    assert Slow(0.005).rate(monkeypatch, 2) == pytest.approx(2 / 0.005)


def test_measuring_has_an_end(monkeypatch):
    source = Slow(0.3)
    source.rate(monkeypatch, 1000)
    assert len(source.windows) == 3


def test_a_log_without_images_says_nothing(tmp_path, capsys):
    assert open_storage(make_dataset(tmp_path, [make_episode()]), [], "auto", 0) == {}
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_memory_is_what_system_and_container_allow(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:    3000 kB\n")
    assert available_memory(meminfo, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_memory(meminfo, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory(meminfo, tmp_path) == 4000
    (tmp_path / "memory.current").write_text("6000\n")
    assert available_memory(meminfo, tmp_path) == 0
    assert available_memory(tmp_path / "missing", tmp_path / "missing") > 2**20


def test_numbers_that_exceed_the_limit(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(1000), make_episode(500)])
    held = 1502 * 8 + 1500 * 8
    assert check_memory(dataset, 1000, held + 1500) == 500
    assert check_memory(dataset, 1000, held + 1000) == 0
    with pytest.raises(
        DatasetError,
        match=r"need 25 kB of memory \(24 kB as read, 1 kB for training\), but the limit is 25 kB; raise it",
    ):
        check_memory(dataset, 1000, held + 999)


def test_without_a_limit_half_of_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "available_memory", lambda: 10_000)
    assert check_memory(make_dataset(tmp_path, [make_episode()]), 1000, None) == 4000


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (3840, "3.84 kB"), (3.1e9, "3.1 GB"), (42e6, "42 MB")]
)
def test_sizes_as_people_write_them(size, text):
    assert storage._size(int(size)) == text
