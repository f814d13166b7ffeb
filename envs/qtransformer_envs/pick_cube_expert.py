"""The scripted expert of PickCube: feedback on the true state, without memory.

Special about this file: the action is a function of the present poses alone, smooth but for the gripper's command, so
it recovers from a dropped or pushed cube and from noise on its actions, and can be imitated. It must not know the
physics; it reads poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qtransformer_envs.arm import POSITION_SCALE, ROTATION_SCALE
from qtransformer_envs.rotations import clip_norm, vector_from_matrix

if TYPE_CHECKING:
    from qtransformer_envs.pick_cube import PickCube

__all__ = ["PickCubeExpert", "Scene", "pick_action"]

GAIN = 0.6  # share of an error that one action removes
MAX_MOVE = 0.03  # m: the longest displacement it commands in one step
HOVER_HEIGHT = 0.09  # m above the cube's centre while not aligned
LIFTED_HEIGHT = 0.17  # m: where the gripped cube is carried
ALIGNED_ACROSS = 0.020  # m beside the cube's centre that descending allows, across the pads: nothing to hit there
ALIGNED_BETWEEN = 0.010  # m, from pad to pad: a pad would land on the cube
ALIGNED_ANGLE = 0.2  # rad
WIDE_OPENING = 0.065  # m that descending asks for
GRIPPED_OPENING = 0.045  # m: pads further apart than this do not grip
START_BOX = np.array([0.012, 0.022, 0.012])  # m: where the cube's centre must be, in the gripper's frame, to close
CLOSING_BOX = np.array([0.020, 0.022, 0.018])  # m: ... and to go on once the pads are less than WIDE_OPENING apart


@dataclass(frozen=True)
class Scene:
    """What the expert looks at: positions (3,) in m, rotations (3, 3), the opening in m, and contact with both pads."""

    gripper_position: np.ndarray
    gripper_rotation: np.ndarray
    opening: float
    cube_position: np.ndarray
    cube_rotation: np.ndarray
    has_grip: bool


class PickCubeExpert:
    """Acts in the environment that it was made from, whose true state it reads.

    `seed` is there because collectors seed every policy; this expert draws nothing.
    """

    def __init__(self, env: PickCube, seed: int) -> None:
        self._env = env
        self.seed = seed

    def reset(self) -> None:
        """Starts an episode; nothing to forget."""

    def act(self) -> np.ndarray:
        """Returns the action for the present state, shape (7,), float32, in [-1, 1]."""
        env = self._env
        arm, data = env.arm, env.data
        return pick_action(
            Scene(
                arm.position(data),
                arm.rotation(data),
                arm.opening(data),
                env.cube_position(),
                env.cube_rotation(),
                env.has_grip(),
            )
        )


def pick_action(scene: Scene) -> np.ndarray:
    """Returns the action, shape (7,), float32: align above the cube, descend, close, lift."""
    turn = grasp_turn(scene.gripper_rotation, scene.cube_rotation)
    in_gripper = scene.gripper_rotation.T @ (scene.cube_position - scene.gripper_position)
    is_inside = bool((np.abs(in_gripper) < (START_BOX if scene.opening > WIDE_OPENING else CLOSING_BOX)).all())
    if scene.has_grip and scene.opening < GRIPPED_OPENING:
        move, gripper = np.array([0.0, 0.0, LIFTED_HEIGHT - scene.gripper_position[2]]), -1.0
    elif is_inside:
        move, gripper = scene.cube_position - scene.gripper_position, -1.0
    else:
        move, gripper = approach(scene, in_gripper, turn), 1.0
    move = clip_norm(GAIN * move, MAX_MOVE)
    action = np.concatenate([move / POSITION_SCALE, GAIN * turn / ROTATION_SCALE, [gripper]])
    return np.clip(action, -1.0, 1.0).astype(np.float32)


def approach(scene: Scene, in_gripper: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Returns the displacement, shape (3,), m, towards the cube down a funnel: the worse aligned, the higher.

    Beside and below the funnel the gripper rises before it goes sideways, so as not to push the cube. `in_gripper`,
    shape (3,), m, is the cube's centre in the gripper's frame, `turn`, shape (3,), rad, the rotation still to go.
    """
    offset = scene.cube_position - scene.gripper_position
    across, between, _ = np.abs(in_gripper)
    angle = math.sqrt(float(turn @ turn))
    misaligned = 8.0 * max(0.0, between - ALIGNED_BETWEEN) + 4.0 * max(0.0, across - ALIGNED_ACROSS)
    misaligned += 0.6 * max(0.0, angle - ALIGNED_ANGLE)
    closed = 3.0 * max(0.0, WIDE_OPENING - scene.opening)
    rise = offset[2] + min(HOVER_HEIGHT, misaligned + closed)
    sideways = min(max(1.0 - (rise - 0.01) / 0.03, 0.0), 1.0)
    return np.array([sideways * offset[0], sideways * offset[1], rise])


def grasp_turn(gripper_rotation: np.ndarray, cube_rotation: np.ndarray) -> np.ndarray:
    """Returns the rotation vector, shape (3,), rad, that points the gripper down with its pads along two cube faces.

    Of the cube's four equal yaws it is the nearest to the gripper's.
    """
    across = int(np.argmin(np.abs(cube_rotation[2])))  # the cube axis that lies flattest
    cube_yaw = math.atan2(cube_rotation[1, across], cube_rotation[0, across])
    gripper_yaw = math.atan2(gripper_rotation[1, 0], gripper_rotation[0, 0])
    quarter = 0.5 * math.pi
    yaw = cube_yaw + quarter * round((gripper_yaw - cube_yaw) / quarter)
    c, s = math.cos(yaw), math.sin(yaw)
    goal = np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])
    return vector_from_matrix(goal @ gripper_rotation.T)
