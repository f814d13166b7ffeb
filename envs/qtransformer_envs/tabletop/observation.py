"""The `state` of every task: arm, target, other object and drawer, in fixed places.

Special about this file: one layout for all tasks, so that one policy can learn them together; the kind of the target
is told by its size and whether it is round. Where the words name no
object or only one, the free places hold the first distractors. It must not know any task's rules.
"""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.scene import Item, Scene
from qtransformer_envs.tabletop.task import Task

__all__ = ["STATE_ELEMENTS", "STATE_HIGH", "STATE_LOW", "observe_state"]

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
Bounded = tuple[str, str, float, float]  # name, unit, lowest and highest value


def _vector(name: str, unit: str, limit: float) -> tuple[Bounded, ...]:
    return tuple((f"{name}_{component}", unit, -limit, limit) for component in "xyz")


def _object(name: str) -> tuple[Bounded, ...]:
    axes = (*_vector(f"{name}_x_axis", "1", 1.0), *_vector(f"{name}_z_axis", "1", 1.0))
    return (*_vector(f"{name}_position", "m", 5.0), *axes)


_LAYOUT: tuple[Bounded, ...] = (
    *((f"{joint}_position", "rad", -4.0, 4.0) for joint in JOINTS),
    *((f"{joint}_velocity", "rad/s", -20.0, 20.0) for joint in JOINTS),
    *_vector("gripper_position", "m", 1.5),
    *_vector("gripper_x_axis", "1", 1.0),
    *_vector("gripper_y_axis", "1", 1.0),
    ("gripper_opening", "m", -0.01, 0.09),
    *_object("target"),
    *_vector("target_half_size", "m", 0.1),
    ("target_is_round", "1", 0.0, 1.0),
    *_object("other"),
    ("drawer_opening", "m", -0.05, 0.20),
    ("handle_position_x", "m", 0.0, 1.0),
    ("handle_position_y", "m", -1.0, 1.0),
)
STATE_ELEMENTS: tuple[tuple[str, str], ...] = tuple((name, unit) for name, unit, _, _ in _LAYOUT)
STATE_LOW = np.array([low for *_, low, _ in _LAYOUT], np.float32)
STATE_HIGH = np.array([high for *_, high in _LAYOUT], np.float32)


def observe_state(task: Task) -> np.ndarray:
    """Returns the state, float32, clipped to its space; `STATE_ELEMENTS` names its elements."""
    scene, arm, data = task.scene, task.scene.arm, task.scene.data
    state = np.concatenate(
        [
            arm.joint_positions(data),
            arm.joint_velocities(data),
            arm.position(data),
            arm.rotation(data).T[:2].ravel(),
            [arm.opening(data)],
            _pose(scene, task.target),
            [*task.target.kind.half_size, float(task.target.kind.is_round)],
            _pose(scene, task.other),
            [scene.drawer_opening(), *scene.handle_position()[:2]],
        ]
    )
    return np.clip(state.astype(np.float32), STATE_LOW, STATE_HIGH)


def _pose(scene: Scene, item: Item) -> np.ndarray:
    return np.concatenate([scene.position(item), scene.rotation(item).T[::2].ravel()])
