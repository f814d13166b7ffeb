"""Pick: grip the named object and lift it until its lowest point is 10 cm over the table."""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.skills import grasp, holds, lift
from qtransformer_envs.tabletop.task import Task

__all__ = ["Pick"]

LIFT_HEIGHT = 0.10  # m


class Pick(Task):
    """The target is somewhere on the table, among others."""

    name = "pick"
    templates = ("pick up the {target}", "lift the {target}", "grab the {target} and raise it", "pick the {target}")

    def is_success(self) -> bool:
        """Returns whether the target is high enough and touches both pads."""
        return self.scene.bottom(self.target) >= LIFT_HEIGHT and self.scene.pads_touching(self.target) == 2

    def act(self) -> np.ndarray:
        """Grips the target and lifts it where it is."""
        if holds(self.scene, self.target):
            return lift(self.scene, self.target)
        return grasp(self.scene, self.target)
