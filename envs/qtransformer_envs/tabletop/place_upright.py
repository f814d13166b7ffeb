"""Place upright: a lying object must come to stand."""

from __future__ import annotations

import math

import numpy as np

from qtransformer_envs.tabletop.objects import KINDS
from qtransformer_envs.tabletop.placing import place_apart, resting_rotation
from qtransformer_envs.tabletop.skills import CLOSED, OPEN, SET_DOWN_HEIGHT, compose, grasp, holds, release
from qtransformer_envs.tabletop.task import Task

__all__ = ["PlaceUpright"]

LOW, HIGH = np.array([0.42, -0.14]), np.array([0.60, 0.02])  # m: where the target lies
YAW_SHIFT = 0.3  # rad around the y axis, along which it lies
PADS = np.array([1.0, 0.0, 0.0])  # this way round the last joint stays clear of its limits while the hand leans
LEAN = 0.78  # rad: how far the gripper leans to one side when it grips, and to the other when it lets go
TURN_HEIGHT = 0.03  # m: lowest point while the object is turned
ALIGNED = 0.36  # rad from upright at which it is set down
MAX_TURN = 0.4  # rad in one step


class PlaceUpright(Task):
    """The target, a tall object, lies among others."""

    name = "place_upright"
    templates = ("place the {target} upright", "stand the {target} up", "set the {target} upright")
    kinds = tuple(name for name, kind in KINDS.items() if kind.is_tall)

    def arrange(self, rng: np.random.Generator) -> None:
        """Makes the target lie where the arm can turn it up: not at the edge, and more or less across the table."""
        super().arrange(rng)
        position = np.full(3, np.inf)
        while (position[:2] < LOW).any() or (position[:2] > HIGH).any():
            place_apart(self.scene, self.scene.items, rng, is_standing=False)
            position = self.scene.start_position(self.target)
        yaw = 0.5 * np.pi * rng.choice([-1, 1]) + rng.uniform(-YAW_SHIFT, YAW_SHIFT)
        self.scene.place(self.target, position, resting_rotation(yaw, is_standing=False))

    def is_success(self) -> bool:
        """Returns whether the target stands on the table, let go."""
        return self.scene.is_upright(self.target) and self.scene.is_on_table(self.target)

    def act(self) -> np.ndarray:
        """Grips the target with the hand leaning to its top, turns it up, sets it down, and draws back."""
        scene, target = self.scene, self.target
        axis = scene.rotation(target)[:, 2]
        if holds(scene, target):
            return self._turn_up(axis)
        if scene.is_upright(target):
            return release(scene)
        flat = axis[:2] / max(math.hypot(axis[0], axis[1]), 1e-9)
        approach = np.array([*(-math.sin(LEAN) * flat), -math.cos(LEAN)])
        return grasp(scene, target, PADS, approach)

    def _turn_up(self, axis: np.ndarray) -> np.ndarray:
        """Returns the action that turns `axis`, shape (3,), up over the table and then sets it down."""
        across = np.array([axis[1], -axis[0], 0.0])  # axis x (0, 0, 1): what turns the axis up
        angle = math.atan2(math.hypot(axis[0], axis[1]), axis[2])
        turn = across * (min(angle, MAX_TURN) / max(math.hypot(axis[0], axis[1]), 1e-9))
        bottom = self.scene.bottom(self.target)
        if angle < ALIGNED and bottom < SET_DOWN_HEIGHT:
            return compose(np.zeros(3), np.zeros(3), OPEN)
        height = TURN_HEIGHT if angle > ALIGNED else 0.0
        return compose(np.array([0.0, 0.0, height - bottom]), turn, CLOSED)
