"""Derived files: where they lie, and that a damaged or foreign one is never taken for the right one."""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path

from dataset_fixtures import make_dataset, make_episode

from qtransformer_datasets.cache import cache_file, cache_folder, only_one, read_record, write_record


def test_the_cache_lies_in_the_folder_of_a_dataset_or_beside_its_file(tmp_path):
    file = tmp_path / "log.hdf5"
    file.touch()
    assert cache_folder(tmp_path) == tmp_path / ".qtransformer_cache"
    assert cache_folder(file) == tmp_path / "log.hdf5.qtransformer_cache"
    assert (tmp_path / "log.hdf5.qtransformer_cache").is_dir()


def test_the_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").mkdir()
    assert cache_folder(Path("log")) == tmp_path / "log" / ".qtransformer_cache"


def test_the_users_cache_where_nothing_can_be_written_beside_the_data(tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.mkdir()
    (log / ".qtransformer_cache").touch()  # a file is in the way
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user" / "cache"))
    assert cache_folder(log) == tmp_path / "user" / "cache" / "qtransformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(log) == tmp_path / "home" / ".cache" / "qtransformer"
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert cache_folder(log) is None


def test_names_hold_the_fingerprint_and_tell_keys_apart(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode()])
    names = {str(cache_file(dataset, key, ".npy")) for key in ("a/b", "a-b", "a_b")}
    assert len(names) == 3
    assert all(name.startswith(f"{tmp_path}/.qtransformer_cache/{dataset.fingerprint[:16]}-a") for name in names)


def test_a_record_reads_back_and_only_to_its_owner(tmp_path):
    path = tmp_path / "record.json"
    assert read_record(path, {}) is None
    write_record(path, {"fingerprint": "f", "values": [0.1, 2]})
    assert read_record(path, {"fingerprint": "f"}) == {"fingerprint": "f", "values": [0.1, 2]}
    assert read_record(path, {"fingerprint": "g"}) is None
    assert read_record(None, {}) is None
    for damaged in ('{"fingerprint": "f"', "[]", "\xff"):
        path.write_bytes(damaged.encode("latin-1"))
        assert read_record(path, {"fingerprint": "f"}) is None


def test_a_record_that_cannot_be_written_is_left(tmp_path):
    write_record(tmp_path / "missing" / "record.json", {})
    write_record(None, {})
    assert list(tmp_path.iterdir()) == []


def _hold(path, entered):
    with only_one(path):
        path.with_name(f".{path.name}.123.tmp").write_bytes(b"half")
        entered.set()
        time.sleep(60)


def test_a_killed_process_leaves_neither_a_lock_nor_half_a_file(tmp_path):
    path, context = tmp_path / "file", get_context("fork")
    entered = context.Event()
    holder = context.Process(target=_hold, args=(path, entered), daemon=True)
    holder.start()
    assert entered.wait(30)
    holder.kill()
    holder.join()
    assert (tmp_path / ".file.123.tmp").exists()
    with only_one(path):
        assert not (tmp_path / ".file.123.tmp").exists()


def _enter(path, entered):
    with only_one(path):
        entered.set()


def test_one_process_at_a_time(tmp_path):
    path, context = tmp_path / "file", get_context("fork")
    entered = context.Event()
    other = context.Process(target=_enter, args=(path, entered), daemon=True)
    with only_one(path):
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(30)
    other.join()
