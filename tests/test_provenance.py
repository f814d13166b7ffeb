"""Where a result came from."""

from __future__ import annotations

import re
import subprocess

import pytest

from qtransformer import provenance


def test_versions():
    assert {"python", "torch", "numpy", "qtransformer"} <= set(provenance.versions())


def test_the_revision_is_that_of_this_checkout_or_unknown(monkeypatch):
    git_revision = provenance.git_revision.__wrapped__  # without the memory
    assert git_revision() is None or re.fullmatch(r"[0-9a-f]{40}\+?", str(git_revision()))
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None


def test_a_package_inside_another_repository_is_not_of_its_revision(tmp_path, monkeypatch):
    run = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*run, "init", "-q"], check=True)
    subprocess.run([*run, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    installed = tmp_path / "provenance.py"
    installed.write_text("")
    monkeypatch.setattr(provenance, "_HERE", installed)
    assert provenance.git_revision.__wrapped__() is None
    subprocess.run([*run, "add", "provenance.py"], check=True)
    assert str(provenance.git_revision.__wrapped__()).endswith("+")


def test_changes_are_those_since_the_revision(tmp_path, monkeypatch):
    run = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    here = tmp_path / "provenance.py"
    here.write_text("a = 1\n")
    subprocess.run([*run, "init", "-q"], check=True)
    subprocess.run([*run, "add", "."], check=True)
    subprocess.run([*run, "commit", "-q", "-m", "first"], check=True)
    monkeypatch.setattr(provenance, "_HERE", here)
    assert provenance.git_changes() is None
    assert provenance.untracked_sources() == []
    here.write_text("a = 2\n")
    (tmp_path / "new.py").write_text("")
    assert "-a = 1\n+a = 2\n" in str(provenance.git_changes())
    assert provenance.untracked_sources() == ["new.py"]
    monkeypatch.setenv("PATH", "")
    assert provenance.git_changes() is None
    assert provenance.untracked_sources() == []


def test_every_process_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git_changes", lambda: None)
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", "--out", "a b"])
    provenance.add_session(tmp_path, 0, 10, "cpu", 1)
    monkeypatch.setattr(provenance, "git_changes", lambda: "+ b\n")
    provenance.add_session(tmp_path, 4, 10, "cpu", 2)
    first, second = provenance.sessions(tmp_path)
    assert (first["first_step"], first["steps"], first["device"], first["changes"]) == (0, 10, "cpu", None)
    assert [each["num_processes"] for each in (first, second)] == [1, 2]
    assert first["command"] == "python train.py --out 'a b'"
    assert first["versions"] == provenance.versions()
    assert first["git_revision"] == provenance.git_revision()
    assert (second["first_step"], (tmp_path / second["changes"]).read_text()) == (4, "+ b\n")


def test_large_changes_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git_changes", lambda: "+" * 2**21)
    provenance.add_session(tmp_path, 0, 10, "cpu", 1)
    (session,) = provenance.sessions(tmp_path)
    text = (tmp_path / session["changes"]).read_text()
    assert len(text) < 2**20 + 100
    assert text.endswith("\n(cut: too large to keep)\n")


@pytest.mark.parametrize("content", ["", "[]", '{"sessions": [3]}', "\x00"])
def test_damaged_sessions_are_none(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert provenance.sessions(tmp_path) == []
    assert provenance.sessions(tmp_path / "missing") == []
