"""Move near: set the named object down beside another one."""

from __future__ import annotations

import math

import numpy as np

from qtransformer_envs.tabletop.placing import place_apart
from qtransformer_envs.tabletop.scene import ON_TABLE
from qtransformer_envs.tabletop.skills import DIRECTIONS, carry, free_place, grasp, holds, release
from qtransformer_envs.tabletop.task import Task

__all__ = ["MoveNear"]

START_DISTANCE = 0.20  # m, at least
NEAR_DISTANCE = 0.12  # m between the middles
GOAL_DISTANCE = 0.09  # m: where the expert sets it down


class MoveNear(Task):
    """Target and other object are on the table, at least 20 cm apart."""

    name = "move_near"
    templates = (
        "move the {target} near the {other}",
        "put the {target} next to the {other}",
        "bring the {target} close to the {other}",
        "place the {target} beside the {other}",
    )
    num_named = 2

    def arrange(self, rng: np.random.Generator) -> None:
        """Puts the two well apart."""
        super().arrange(rng)
        place_apart(self.scene, self.scene.items, rng, apart=START_DISTANCE)

    def is_success(self) -> bool:
        """Returns whether the target rests on the table, let go, within 12 cm of the other, which was not moved."""
        scene, target = self.scene, self.target
        return self._distance() < NEAR_DISTANCE and scene.is_on_table(target) and scene.is_undisturbed(self.other)

    def _distance(self) -> float:
        return math.dist(self.scene.position(self.target)[:2], self.scene.position(self.other)[:2])

    def act(self) -> np.ndarray:
        """Carries the target to the free side of the other object; the hand is narrow on that object's side."""
        scene, target = self.scene, self.target
        there = scene.position(self.other)[:2]
        if holds(scene, target):
            places, pads = there + GOAL_DISTANCE * DIRECTIONS, np.roll(DIRECTIONS, len(DIRECTIONS) // 4, axis=0)
            best = free_place(scene, target, places, pads)
            return carry(scene, target, places[best], np.append(pads[best], 0.0))
        if self._distance() < NEAR_DISTANCE and scene.bottom(target) < ON_TABLE:
            return release(scene)
        return grasp(scene, target)
