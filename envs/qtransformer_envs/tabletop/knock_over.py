"""Knock over: a standing object must come to lie, fallen to the named side, with all others left where they are."""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.objects import KINDS
from qtransformer_envs.tabletop.placing import place_apart
from qtransformer_envs.tabletop.scene import Item
from qtransformer_envs.tabletop.skills import CLOSED, approach_closed, compose, point
from qtransformer_envs.tabletop.task import Task

__all__ = ["KnockOver"]

# As the arm sees it: what it is told, the direction, and lowest and highest x and y, m, of where the target stands. It
# falls back to the middle of the table: flailing arms push outwards.
SIDES = {
    "to the left": (np.array([0.0, 1.0]), np.array([[0.36, -0.24], [0.66, -0.12]])),
    "backwards": (np.array([-1.0, 0.0]), np.array([[0.50, -0.26], [0.64, 0.00]])),
    "forwards": (np.array([1.0, 0.0]), np.array([[0.34, -0.26], [0.46, 0.00]])),
}
CLEAR_AHEAD, CLEAR_BEHIND, CLEAR_BESIDE = 0.25, 0.14, 0.09  # m around the target, free of others
LYING = 0.3  # vertical part of the axis: 73 degrees from upright
ALONG = 0.8  # part of the axis along the named side: 37 degrees
NEAR_START = 0.15  # m: the fall alone moves the middle by 6 to 9 cm
BELOW_TOP = 0.025  # m: where the fingers push
START_DISTANCE = 0.07  # m from the axis: where they come down
REACH = 0.09  # m from the axis: where they may push from
MAX_BESIDE = 0.015  # m
MAX_OVER = np.array([-0.035, 0.015])  # m that the push may be higher and lower than there
CONTACT = 0.05  # m from the axis: the fingers touch, and must rise with the side that they push
PUSH, RISE = 0.05, 0.03  # m


class KnockOver(Task):
    """The target, a tall object, stands among others, with room to fall."""

    name = "knock_over"
    templates = ("knock over the {target} {side}", "tip the {target} over {side}", "push over the {target} {side}")
    kinds = tuple(name for name, kind in KINDS.items() if kind.is_tall)

    def arrange(self, rng: np.random.Generator) -> None:
        """Draws the side, and makes the target stand where there is room on it."""
        super().arrange(rng)
        self.side = list(SIDES)[rng.integers(len(SIDES))]
        place_apart(self.scene, self.scene.items, rng, is_standing=True)
        while not self._has_room():
            place_apart(self.scene, self.scene.items, rng, is_standing=True)

    def _has_room(self) -> bool:
        forward, (low, high) = SIDES[self.side]
        place = self.scene.start_position(self.target)[:2]
        others = [self.scene.start_position(each)[:2] - place for each in self._others()]
        along, beside = np.array(others) @ forward, np.array(others) @ [-forward[1], forward[0]]
        is_clear = (along > CLEAR_AHEAD) | (along < -CLEAR_BEHIND) | (np.abs(beside) > CLEAR_BESIDE)
        return bool(is_clear.all() and (place >= low).all() and (place <= high).all())

    def _others(self) -> list[Item]:
        return [item for item in self.scene.items if item is not self.target]

    def is_success(self) -> bool:
        """Returns whether the target lies near where it stood, let go, top to the named side, and no other moved."""
        scene, axis = self.scene, self.scene.rotation(self.target)[:, 2]
        has_fallen = abs(axis[2]) < LYING and axis[:2] @ SIDES[self.side][0] > ALONG
        if not has_fallen or not scene.is_on_table(self.target) or scene.distance_moved(self.target) > NEAR_START:
            return False
        return all(scene.is_undisturbed(each) for each in self._others())

    def act(self) -> np.ndarray:
        """Comes down with closed fingers on the side opposite to the named one and pushes near the top."""
        scene, forward = self.scene, SIDES[self.side][0]
        middle, height = scene.position(self.target), 2.0 * self.target.kind.half_size[2] - BELOW_TOP
        side = np.array([-forward[1], forward[0], 0.0])
        start = np.array([*(middle[:2] - START_DISTANCE * forward), height])
        offset = np.array([*middle[:2], height]) - scene.arm.position(scene.data)
        beside, ahead = float(offset @ side), float(offset[:2] @ forward)
        if abs(beside) < MAX_BESIDE and MAX_OVER[0] < offset[2] < MAX_OVER[1] and 0.0 < ahead < REACH:
            move = np.array([*(PUSH * forward), RISE if ahead < CONTACT else offset[2]]) + beside * side
            return compose(move, point(scene.arm.rotation(scene.data), side), CLOSED)
        return approach_closed(scene, start, side)
