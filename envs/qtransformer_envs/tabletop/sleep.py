"""Lets objects that rest, and that nothing can reach, cost no simulation time.

Special about this file: a sleeping object has no contacts and no weight, so it stays where it is, to the last bit; it
wakes a control step before anything could touch it. MuJoCo before 3.4 has no sleep of its own. It must not know a task.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np

if TYPE_CHECKING:
    from qtransformer_envs.tabletop.scene import Item

__all__ = ["Sleep"]

REST_SPEED = 0.004  # m/s
REST_SPIN = 0.08  # rad/s
STEPS_AT_REST = 2  # control steps in a row, or a thrown object would fall asleep at its highest point
HAND_LOW = np.array([-0.024, -0.097, -0.105])  # m, in the gripper's frame: hand and fingers around the grasp point
HAND_HIGH = np.array([0.024, 0.097, 0.012])
HAND_GAP = 0.035  # m around the hand in each pose of its path: half of how far a corner goes to the next, at most
STEP = 0.1  # s
OBJECT_GAP = 0.02  # m between an object at rest and a moving one, beside what that one goes in a control step


class Sleep:
    """Which objects of a model sleep."""

    def __init__(self, model: mujoco.MjModel, items: Sequence[Item]) -> None:
        self._model = model
        self._bodies = np.array([item.body for item in items])
        self._dofs = np.array([range(item.dof, item.dof + 6) for item in items])
        self._geoms = [item.geoms for item in items]
        self._radii = np.array([np.linalg.norm(item.kind.half_size) for item in items])
        self.is_asleep = np.zeros(len(items), bool)
        self._steps_at_rest = np.zeros(len(items), int)

    def wake(self, index: int) -> None:
        """Gives an object its contacts and weight."""
        self.is_asleep[index] = False
        self._steps_at_rest[index] = 0
        self._model.geom_contype[self._geoms[index]] = 2
        self._model.geom_conaffinity[self._geoms[index]] = 7
        self._model.body_gravcomp[self._bodies[index]] = 0.0

    def trust(self) -> None:
        """Takes all objects to be at rest now, so that they may sleep at once where nothing can reach them."""
        self._steps_at_rest[:] = STEPS_AT_REST

    def _lull(self, data: mujoco.MjData, index: int) -> None:
        self.is_asleep[index] = True
        self._model.geom_contype[self._geoms[index]] = 0
        self._model.geom_conaffinity[self._geoms[index]] = 0
        self._model.body_gravcomp[self._bodies[index]] = 1.0
        data.qvel[self._dofs[index]] = 0.0
        data.qacc_warmstart[self._dofs[index]] = 0.0

    def update(self, data: mujoco.MjData, path: tuple[np.ndarray, np.ndarray], reach: np.ndarray) -> None:
        """Wakes what may be touched in the coming control step and lulls what rests elsewhere.

        Args:
            data: the state, with poses computed.
            path: positions (poses, 3), m, and rotations (poses, 3, 3) that the grasp point takes in the coming step.
            reach: lowest and highest x and y, shape (2, 2), m, between which nothing sleeps: the drawer moves there.
        """
        positions, velocities = data.xpos[self._bodies], data.qvel[self._dofs]
        speeds = np.sqrt((velocities[:, :3] ** 2).sum(1))
        is_still = (speeds < REST_SPEED) & ((velocities[:, 3:] ** 2).sum(1) < REST_SPIN**2)
        self._steps_at_rest = np.where(is_still, self._steps_at_rest + 1, 0)
        is_near = self._near_hand(positions, path) | self._near_moving(positions, speeds, ~is_still)
        is_near |= ((positions[:, :2] > reach[0]) & (positions[:, :2] < reach[1])).all(1)
        is_awake = is_near | (self._steps_at_rest < STEPS_AT_REST)
        for index in np.flatnonzero(is_awake & self.is_asleep).tolist():
            self.wake(index)
        for index in np.flatnonzero(~is_awake & ~self.is_asleep).tolist():
            self._lull(data, index)

    def _near_hand(self, positions: np.ndarray, path: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        places, rotations = path
        local = (positions - places[:, None]) @ rotations  # (poses, objects, 3)
        outside = np.maximum(np.maximum(local - HAND_HIGH, HAND_LOW - local), 0.0)
        return ((outside**2).sum(2) < (self._radii + HAND_GAP) ** 2).any(0)

    def _near_moving(self, positions: np.ndarray, speeds: np.ndarray, is_moving: np.ndarray) -> np.ndarray:
        is_near = np.zeros(len(positions), bool)
        for index in np.flatnonzero(is_moving):
            distances = np.sqrt(((positions - positions[index]) ** 2).sum(1))
            is_near |= distances < self._radii + self._radii[index] + OBJECT_GAP + STEP * speeds[index]
        return is_near
