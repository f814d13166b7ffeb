"""Where a result came from."""

from __future__ import annotations

import re
import subprocess

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
