"""Drawing without a screen: MuJoCo chooses its renderer when it is imported, so it must be told before."""

from __future__ import annotations

import os
from ctypes.util import find_library

_BACKENDS = {"EGL": "egl", "OSMesa": "osmesa"}  # library -> MUJOCO_GL


def choose_renderer() -> None:
    """Sets MUJOCO_GL to a renderer that is installed and needs no screen, unless it is set; call it before MuJoCo."""
    backend = next((gl for library, gl in _BACKENDS.items() if find_library(library)), None)
    if backend is not None:
        os.environ.setdefault("MUJOCO_GL", backend)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # a software renderer's threads would take the policy's core
