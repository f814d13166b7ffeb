"""Drawing without a screen: which renderer is chosen."""

from __future__ import annotations

import os

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
