"""Drawing without a screen: which renderer is chosen, and one episode of a bundle as pictures."""

from __future__ import annotations

import os

import numpy as np
import pytest

from qtransformer import pictures


@pytest.mark.parametrize(
    ("installed", "given", "chosen"),
    [
        (("EGL", "OSMesa"), None, "egl"),
        (("OSMesa",), None, "osmesa"),
        ((), None, None),
        (("EGL",), "glfw", "glfw"),
    ],
)
def test_the_renderer_is_one_that_needs_no_screen_unless_it_was_chosen(monkeypatch, installed, given, chosen):
    monkeypatch.setattr(pictures, "find_library", lambda name: f"lib{name}.so" if name in installed else None)
    monkeypatch.setattr(os, "environ", {"LP_NUM_THREADS": "2"} if given is None else {"MUJOCO_GL": given})
    pictures.choose_renderer()
    assert os.environ.get("MUJOCO_GL") == chosen
    assert os.environ["LP_NUM_THREADS"] == ("2" if given is None else "1")


def test_nothing_is_returned_where_nothing_can_be_played(tmp_path):
    assert pictures.record_frames(tmp_path / "missing", 0, tmp_path / "frames.npz") is None


def test_frames_come_from_the_process_that_drew_them(tmp_path, monkeypatch):
    """The process itself is played by the demo's tests; here it is one that writes what it was told."""
    script = tmp_path / "python"
    frames = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.savez(tmp_path / "drawn.npz", frames=frames)
    script.write_text(f'#!/bin/sh\ntest "$3" = bundle && test "$5" = 7 && cp {tmp_path}/drawn.npz "$4"\n')
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    found = pictures.record_frames(pictures.Path("bundle"), 7, tmp_path / "frames.npz")
    assert found is not None
    np.testing.assert_array_equal(found, frames)
    assert pictures.record_frames(pictures.Path("bundle"), 8, tmp_path / "frames.npz") is None
