"""Close the drawer: push it in until less than 1 cm is left, with all objects left where they are."""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.scene import DRAWER_TRAVEL
from qtransformer_envs.tabletop.skills import CLOSED, approach_closed, compose, point
from qtransformer_envs.tabletop.task import Task

__all__ = ["CloseDrawer"]

SHUT = 0.01  # m
BEFORE = np.array([0.0, -0.035, -0.003])  # m from the handle: in front of its bar
BEFORE_BOX = np.array([0.035, 0.03, 0.016])  # m around it, from which the fingers push
PUSH = np.array([0.0, 0.05, 0.0])  # m
BESIDE = np.array([1.0, 0.0, 1.0])
PADS = np.array([1.0, 0.0, 0.0])


class CloseDrawer(Task):
    """The drawer is open nearly all the way, or flailing arms would push it shut; objects are on the table."""

    name = "close_drawer"
    templates = ("close the drawer", "push the drawer shut", "push in the drawer")
    num_named = 0
    openings = (0.14, DRAWER_TRAVEL)

    def is_success(self) -> bool:
        """Returns whether the drawer is shut and no object was moved."""
        scene = self.scene
        return scene.drawer_opening() < SHUT and all(scene.is_undisturbed(item) for item in scene.items)

    def act(self) -> np.ndarray:
        """Puts the closed fingers in front of the handle, from above, and pushes."""
        scene = self.scene
        before = scene.handle_position() + BEFORE
        offset = before - scene.arm.position(scene.data)
        if (np.abs(offset) < BEFORE_BOX).all():
            return compose(PUSH + offset * BESIDE, point(scene.arm.rotation(scene.data), PADS), CLOSED)
        return approach_closed(scene, before, PADS)
