"""A file is there when it is complete and on the disk; until then the old one is, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qtransformer import files
from qtransformer.files import SUMS, fsync, leftovers, sha256, write_durably, write_sums


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """The system calls that matter, in order, with what they were for."""
    found, open_, fsync_, replace = [], os.open, os.fsync, Path.replace

    def named(path, flags):
        descriptor = open_(path, flags)
        paths[descriptor] = Path(path)
        return descriptor

    def synced(descriptor):
        path = paths[descriptor]
        found.append("fsync folder" if path.is_dir() else f"fsync {path.read_text()}")
        fsync_(descriptor)

    def replaced(path, target):
        found.append("rename")
        return replace(path, target)

    paths: dict[int, Path] = {}
    monkeypatch.setattr(files.os, "open", named)
    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return found


def test_the_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(tmp_path, steps):
    write_durably(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert steps == ["fsync new", "rename", "fsync folder"]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert leftovers(tmp_path) == [temporary]

    write_durably(path, write)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), RuntimeError("h5py"), KeyboardInterrupt()])
def test_what_ends_the_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_durably(path, fail)
    assert caught.value is error
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_a_disk_that_fails_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(path, lambda temporary: temporary.write_text("new"))
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with pytest.raises(OSError, match="Input/output error"):
        fsync(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EBADF, errno.EINVAL])
def test_a_file_system_that_cannot_wait_for_names_does_without(tmp_path, monkeypatch, code):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)
    fsync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=os.strerror(code)):  # content is another matter
        fsync(tmp_path / "file")


def test_processes_do_not_write_into_the_file_of_each_other(tmp_path, monkeypatch):
    names = []
    for process in (1, 2):
        monkeypatch.setattr(files.os, "getpid", lambda process=process: process)
        write_durably(tmp_path / "file", lambda temporary: (temporary.touch(), names.append(temporary.name)))
    assert names == [".file.1.tmp", ".file.2.tmp"]


def test_leftovers_are_found_by_the_name_of_their_file(tmp_path):
    for name in (".a.1.tmp", ".a.22.tmp", ".ab.1.tmp", "a.1.tmp", "a", ".hidden"):
        (tmp_path / name).touch()
    assert sorted(each.name for each in leftovers(tmp_path)) == [".a.1.tmp", ".a.22.tmp", ".ab.1.tmp"]
    assert sorted(each.name for each in leftovers(tmp_path, "a")) == [".a.1.tmp", ".a.22.tmp"]
    assert [each.name for each in leftovers(tmp_path, "ab*")] == [".ab.1.tmp"]


def test_a_file_without_its_folder_is_not_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        write_durably(tmp_path / "missing" / "file", lambda temporary: temporary.write_text("new"))


def test_sums_are_what_sha256sum_reads(tmp_path):
    """The sum of "abc" is that of FIPS 180-2, appendix B.1."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("abc")
    (tmp_path / "a").touch()
    write_sums(tmp_path)
    write_sums(tmp_path)  # its own sum is not in it
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "b" / "c") == expected
    assert (tmp_path / SUMS).read_text().splitlines() == [f"{sha256(tmp_path / 'a')}  a", f"{expected}  b/c"]
