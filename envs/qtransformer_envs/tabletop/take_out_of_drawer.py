"""Take out of the drawer: the named object, which is in the open drawer, onto the table."""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.placing import rest, resting_rotation
from qtransformer_envs.tabletop.scene import AREA_HIGH, AREA_LOW, DRAWER_TRAVEL
from qtransformer_envs.tabletop.skills import ALONG_FRONT, carry, free_place, grasp, holds, release
from qtransformer_envs.tabletop.task import Task

__all__ = ["TakeOutOfDrawer"]

PLACE_SHIFT = np.array([0.03, 0.015, 0.0])  # m around the middle of the open part
YAW_SHIFT = 0.25  # rad around the yaw at which the pads can be along the front
_GRID = [np.linspace(low + 0.04, high - 0.04, 5) for low, high in zip(AREA_LOW, AREA_HIGH, strict=True)]
PLACES = np.stack(np.meshgrid(*_GRID), axis=-1).reshape(-1, 2)  # m: where it may be set down


class TakeOutOfDrawer(Task):
    """The target is in the open drawer, the other objects are on the table."""

    name = "take_out_of_drawer"
    templates = (
        "take the {target} out of the drawer",
        "get the {target} from the drawer",
        "move the {target} from the drawer to the table",
    )
    openings = (0.145, DRAWER_TRAVEL)

    def arrange(self, rng: np.random.Generator) -> None:
        """Puts the target into the open part of the drawer."""
        super().arrange(rng)
        kind = self.target.kind
        position = self.scene.drawer_middle() + rng.uniform(-PLACE_SHIFT, PLACE_SHIFT)
        position[2] += rest(kind, kind.is_standing)
        yaw = 0.5 * np.pi * rng.choice([-1, 1]) + rng.uniform(-YAW_SHIFT, YAW_SHIFT)
        self.scene.place(self.target, position, resting_rotation(yaw, kind.is_standing))

    def is_success(self) -> bool:
        """Returns whether the target rests on the table, let go."""
        return self.scene.is_on_table(self.target)

    def act(self) -> np.ndarray:
        """Carries the target to the freest place on the table and lets it go there."""
        scene, target = self.scene, self.target
        if holds(scene, target):
            best = free_place(scene, target, PLACES, np.tile(ALONG_FRONT[:2], (len(PLACES), 1)))
            return carry(scene, target, PLACES[best], ALONG_FRONT)
        return release(scene) if scene.is_on_table(target) else grasp(scene, target, ALONG_FRONT)
