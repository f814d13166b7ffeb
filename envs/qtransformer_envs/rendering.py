"""Off-screen pictures of a MuJoCo model, with the settings that make software rendering quick.

Special about this file: shadows and reflections are off, which without a GPU is five times quicker. Set
`LP_NUM_THREADS=1` before Python starts when several processes share the cores; nothing here sets environment variables.
It must not know any task.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

import os
import sys

import mujoco
import numpy as np

__all__ = ["FastRenderer"]

_HELP = (
    "rendering is unavailable ({error}); without a screen install libegl1 libgl1 libgl1-mesa-dri libegl-mesa0 and set "
    "MUJOCO_GL=egl, or install libosmesa6 and set MUJOCO_GL=osmesa, before Python starts"
)


class FastRenderer:
    """Draws a model from one named camera into arrays of shape (height, width, 3), uint8."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int, camera: str) -> None:
        model.vis.quality.shadowsize = 1
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        self._camera = camera
        if _needs_screen():
            raise RuntimeError(_HELP.format(error="there is no screen, and MUJOCO_GL names no renderer without one"))
        try:
            self._renderer = mujoco.Renderer(model, height=height, width=width)
        except Exception as error:  # each backend fails in its own way
            raise RuntimeError(_HELP.format(error=error)) from error
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def show(self, model: mujoco.MjModel) -> None:
        """Draws `model` from now on, which must have the textures and no meshes, as the one before: this takes no time.

        A new renderer takes as long as thirty pictures.
        """
        self._renderer._model = model

    def render(self, data: mujoco.MjData, camera: str | None = None) -> np.ndarray:
        """Returns a picture of the state in `data`, shape (height, width, 3), uint8, from `camera` or the usual one."""
        self._renderer.update_scene(data, camera=camera or self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the graphics context."""
        self._renderer.close()


def _needs_screen() -> bool:
    """Returns whether MuJoCo would open a window where there is no screen, which ends the process."""
    has_screen = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return sys.platform == "linux" and not has_screen and os.environ.get("MUJOCO_GL", "glfw") == "glfw"
