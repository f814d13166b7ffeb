"""Put into the drawer: the named object, which is on the table, into the open drawer."""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.scene import DRAWER_TRAVEL
from qtransformer_envs.tabletop.skills import ALONG_FRONT, carry, grasp, holds, release
from qtransformer_envs.tabletop.task import Task

__all__ = ["PutIntoDrawer"]

DROP_HEIGHT = 0.035  # m over the table: the object's lowest point when it is let go


class PutIntoDrawer(Task):
    """The drawer is open and empty, the target on the table."""

    name = "put_into_drawer"
    templates = (
        "put the {target} into the drawer",
        "place the {target} in the drawer",
        "drop the {target} into the open drawer",
    )
    openings = (0.13, DRAWER_TRAVEL)

    def is_success(self) -> bool:
        """Returns whether the target is in the drawer, let go."""
        return self.scene.is_in_drawer(self.target) and self.scene.pads_touching(self.target) == 0

    def act(self) -> np.ndarray:
        """Carries the target over the open part of the drawer and lets it go inside."""
        scene, target = self.scene, self.target
        if holds(scene, target):
            return carry(scene, target, scene.drawer_middle()[:2], ALONG_FRONT, DROP_HEIGHT)
        return release(scene) if scene.is_in_drawer(target) else grasp(scene, target, ALONG_FRONT)
