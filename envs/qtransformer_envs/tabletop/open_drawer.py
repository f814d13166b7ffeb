"""Open the drawer: pull it out by 13 of its 16 cm."""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.skills import CLOSED, approach_closed, compose, point
from qtransformer_envs.tabletop.task import Task

__all__ = ["OpenDrawer"]

OPENED = 0.13  # m
HOOK = np.array([0.0, 0.0235, -0.003])  # m from the handle: between its bar and the front
HOOK_BOX = np.array([0.035, 0.016, 0.016])  # m around it, from which the fingers pull
PULL = np.array([0.0, -0.05, 0.0])  # m
BESIDE = np.array([1.0, 0.0, 1.0])
PADS = np.array([1.0, 0.0, 0.0])  # the closed fingers are thin across their pads, and fit behind the bar


class OpenDrawer(Task):
    """The drawer is closed, or nearly so; objects are on the table."""

    name = "open_drawer"
    templates = ("open the drawer", "pull the drawer open", "pull out the drawer")
    num_named = 0
    openings = (0.0, 0.03)

    def is_success(self) -> bool:
        """Returns whether the drawer is far enough out."""
        return self.scene.drawer_opening() > OPENED

    def act(self) -> np.ndarray:
        """Puts the closed fingers behind the bar of the handle, from above, and pulls."""
        scene = self.scene
        hook = scene.handle_position() + HOOK
        offset = hook - scene.arm.position(scene.data)
        if (np.abs(offset) < HOOK_BOX).all():
            return compose(PULL + offset * BESIDE, point(scene.arm.rotation(scene.data), PADS), CLOSED)
        return approach_closed(scene, hook, PADS)
