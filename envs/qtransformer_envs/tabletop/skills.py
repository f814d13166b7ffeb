"""What the experts of all tasks are made of: grasping, carrying and letting go, as feedback on the true state.

Special about this file: every function maps the present state to an action, without memory, so that the experts recover
from noise, from dropped and from pushed objects, and can be imitated. It must not know any task.
"""

from __future__ import annotations

import math

import numpy as np

from qtransformer_envs.arm import MAX_OPENING, POSITION_SCALE, ROTATION_SCALE
from qtransformer_envs.rotations import clip_norm, vector_from_matrix
from qtransformer_envs.tabletop.scene import AREA_HIGH, AREA_LOW, Item, Scene

__all__ = [
    "ALONG_FRONT", "CLOSED", "DIRECTIONS", "OPEN", "SET_DOWN_HEIGHT", "approach_closed", "carry", "compose", "descend",
    "free_place", "grasp", "holds", "lift", "point", "release",
]  # fmt: skip

GAIN = 0.6  # share of an error that one action removes
MAX_MOVE = 0.03  # m: the longest displacement it commands in one step
HOVER_HEIGHT = 0.11  # m above the grasp while not aligned: the fingers pass over standing objects
CARRY_HEIGHT = 0.14  # m: the lowest point of what is carried passes over standing objects
ALIGNED_ACROSS = 0.015  # m beside the grasp that descending allows, across the pads: nothing to hit there
ALIGNED_ANGLE = 0.2  # rad
FINGER_ROOM = 0.025  # m wider than the object the pads open before they descend
MAX_WIDE = 0.074  # m: what they open at most: a target of 0.08 is reached slowly
GRIPPED_ROOM = 0.008  # m: pads further apart than the object by this do not grip
CLOSE_BOX = np.array([0.012, 0.022, 0.012])  # m: where the grasp must be, in the gripper's frame, to close
CLOSING_BOX = np.array([0.020, 0.022, 0.020])  # m: ... and to go on closing
CARRY_TURN = 0.25  # rad that are asked for at once: what is turned faster slips
SET_DOWN_HEIGHT = 0.006  # m: the lowest point of what is let go
HANDLE_POINTS = np.array([[x, 0.0] for x in (-0.1, -0.05, 0.0, 0.05, 0.1)])  # m, along the drawer's front
HAND_HALF_LENGTH = 0.09  # m, along the pads
ALONG_FRONT = np.array([1.0, 0.0, 0.0])  # of the drawer: the hand, with its pads along it, fits before front and handle
_ANGLES = np.arange(16) * (np.pi / 8)
DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # around an object
WIDEST_HALF = 0.03  # m: half of what fits between the pads
FLAT = 0.7  # an axis whose vertical part is less is flat
DOWN = np.array([0.0, 0.0, -1.0])
OPEN, CLOSED = 1.0, -1.0


def compose(move: np.ndarray, turn: np.ndarray, gripper: float) -> np.ndarray:
    """Returns the action, shape (7,), float32, that goes a part of `move`, (3,), m, and `turn`, (3,), rad."""
    move = clip_norm(GAIN * move, MAX_MOVE)
    action = np.concatenate([move / POSITION_SCALE, GAIN * turn / ROTATION_SCALE, [gripper]])
    return np.clip(action, -1.0, 1.0).astype(np.float32)


def point(
    gripper_rotation: np.ndarray, pads: np.ndarray, approach: np.ndarray = DOWN, near: np.ndarray | None = None
) -> np.ndarray:
    """Returns the turn, shape (3,), rad, that points the gripper along `approach` with its pads along `pads`.

    Args:
        gripper_rotation: shape (3, 3).
        pads: direction, shape (3,), whose horizontal part counts; it may come out either way round.
        approach: unit vector, shape (3,), at right angles to `pads`.
        near: direction, shape (3,), that decides which way round; None: the shorter turn.
    """
    y = np.array([pads[0], pads[1], 0.0])
    side = float(y @ (gripper_rotation[:, 1] if near is None else near))
    y /= math.copysign(max(math.hypot(y[0], y[1]), 1e-9), side)
    x = [y[1] * approach[2] - y[2] * approach[1], y[2] * approach[0] - y[0] * approach[2]]
    x.append(y[0] * approach[1] - y[1] * approach[0])  # y x approach: numpy's own takes as long as all the rest
    goal = np.array([x, y, approach]).T
    return vector_from_matrix(goal @ gripper_rotation.T)


def pad_axis(item: Item, rotation: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the direction, shape (3,), along which the pads take an object: of all that fit, nearest to `wanted`."""
    axes = rotation.T  # rows: the object's own axes
    if not item.kind.is_round:
        halves = zip(axes, item.kind.half_size, strict=True)
        narrow = [axis for axis, half in halves if half < WIDEST_HALF]
        flat = [axis for axis in narrow if abs(axis[2]) < FLAT]  # none while it stands on an edge
        return max(flat or narrow, key=lambda axis: abs(axis @ wanted))
    if item.kind_name == "ball" or abs(axes[2, 2]) > FLAT:
        return wanted
    return np.array([-axes[2, 1], axes[2, 0], 0.0])


def grasp_point(scene: Scene, item: Item) -> np.ndarray:
    """Returns the point of an object, shape (3,), m, that the pads take."""
    return scene.position(item) + item.kind.grasp_height * scene.rotation(item)[:, 2]


def holds(scene: Scene, item: Item) -> bool:
    """Returns whether the pads grip an object."""
    opening = scene.arm.opening(scene.data)
    return opening < item.kind.grasp_width + GRIPPED_ROOM and scene.pads_touching(item) == 2


def grasp(scene: Scene, item: Item, wanted: np.ndarray | None = None, approach: np.ndarray = DOWN) -> np.ndarray:
    """Returns the action that comes nearer to gripping an object: align above it, descend, close.

    Args:
        scene: where.
        item: what to grip.
        wanted: direction of the pads, shape (3,): of all that the object permits, the nearest; None: as they are.
        approach: where the gripper points, unit vector, shape (3,).
    """
    position, rotation = scene.arm.position(scene.data), scene.arm.rotation(scene.data)
    offset = grasp_point(scene, item) - position
    pads = pad_axis(item, scene.rotation(item), rotation[:, 1] if wanted is None else wanted)
    turn = point(rotation, pads, approach, wanted)
    in_gripper = rotation.T @ offset
    wide = min(item.kind.grasp_width + FINGER_ROOM, MAX_WIDE)
    opening = scene.arm.opening(scene.data)
    if (np.abs(in_gripper) < (CLOSE_BOX if opening > wide else CLOSING_BOX)).all():
        return compose(offset, turn, CLOSED)
    room = 0.5 * (MAX_OPENING - item.kind.grasp_width) - 0.004
    y = rotation[:, 1]
    between, across = abs(float(in_gripper[1])), abs(float(offset[0] * y[1] - offset[1] * y[0]))
    misaligned = 8.0 * max(0.0, between - min(0.010, room)) + 4.0 * max(0.0, across - ALIGNED_ACROSS)
    misaligned += 0.6 * max(0.0, math.sqrt(float(turn @ turn)) - ALIGNED_ANGLE)
    return compose(descend(offset, misaligned + 3.0 * max(0.0, wide - opening)), turn, OPEN)


def descend(offset: np.ndarray, misaligned: float, hover: float = HOVER_HEIGHT) -> np.ndarray:
    """Returns the displacement, shape (3,), m, down a funnel to what is `offset`, shape (3,), m, away.

    The more `misaligned`, m, the higher above it, up to `hover`; below the funnel's wall it rises before it goes
    sideways, so as not to push what stands there.
    """
    rise = offset[2] + min(hover, misaligned)
    sideways = min(max(1.0 - (rise - 0.01) / 0.03, 0.0), 1.0)
    return np.array([sideways * offset[0], sideways * offset[1], rise])


def approach_closed(scene: Scene, goal: np.ndarray, pads: np.ndarray) -> np.ndarray:
    """Returns the action that brings the closed fingers to `goal`, shape (3,), m, from above, pads along `pads`."""
    rotation = scene.arm.rotation(scene.data)
    offset, turn = goal - scene.arm.position(scene.data), point(rotation, pads)
    misaligned = 6.0 * max(0.0, math.hypot(offset[0], offset[1]) - 0.008)
    misaligned += 0.6 * max(0.0, math.sqrt(float(turn @ turn)) - ALIGNED_ANGLE)
    misaligned += 3.0 * max(0.0, scene.arm.opening(scene.data) - 0.02)
    return compose(descend(offset, misaligned), turn, CLOSED)


def carry(
    scene: Scene, item: Item, goal: np.ndarray, pads: np.ndarray | None = None, drop: float = SET_DOWN_HEIGHT
) -> np.ndarray:
    """Returns the action that brings a gripped object over a place, then down, and opens the pads there.

    Args:
        scene: where.
        item: what is carried.
        goal: the place, shape (2,), m.
        pads: direction of the pads, shape (3,), None: as they are.
        drop: m over the table, of the object's lowest point, at which they open.
    """
    beside = goal - scene.position(item)[:2]
    bottom, distance = scene.bottom(item), math.hypot(*beside)
    rotation = scene.arm.rotation(scene.data)
    turn = clip_norm(point(rotation, rotation[:, 1] if pads is None else pads), CARRY_TURN)
    if distance < 0.03 and bottom < drop:
        return compose(np.zeros(3), turn, OPEN)
    misaligned = 6.0 * max(0.0, distance - 0.015) + 0.5 * max(0.0, math.sqrt(float(turn @ turn)) - ALIGNED_ANGLE)
    rise = max(min(CARRY_HEIGHT, misaligned), drop - 0.004) - bottom
    sideways = min(max(1.0 - (rise - 0.01) / 0.03, 0.0), 1.0)
    return compose(np.array([sideways * beside[0], sideways * beside[1], rise]), turn, CLOSED)


def lift(scene: Scene, item: Item) -> np.ndarray:
    """Returns the action that raises a gripped object over everything else."""
    rotation = scene.arm.rotation(scene.data)
    rise = np.array([0.0, 0.0, CARRY_HEIGHT - scene.bottom(item)])
    return compose(rise, point(rotation, rotation[:, 1]), CLOSED)


def free_place(scene: Scene, item: Item, places: np.ndarray, pads: np.ndarray) -> int:
    """Returns the index of the place where hand and object are furthest from everything else but `item`.

    Args:
        scene: where.
        item: what is carried there.
        places: shape (num_places, 2), m.
        pads: directions of the pads there, shape (num_places, 2).
    """
    handle = scene.handle_position()[:2]
    others = [scene.position(each)[:2] for each in scene.items if each is not item]
    obstacles = np.concatenate([others, handle + HANDLE_POINTS])
    hand = np.stack([places + share * HAND_HALF_LENGTH * pads for share in (-1.0, -0.5, 0.0, 0.5, 1.0)], axis=1)
    distances = np.linalg.norm(hand[:, :, None] - obstacles, axis=-1).min(axis=(1, 2))
    is_outside = ((places < AREA_LOW) | (places > AREA_HIGH)).any(axis=1)
    return int(np.argmax(distances - is_outside))


def release(scene: Scene) -> np.ndarray:
    """Returns the action that opens the pads, and then goes up along the gripper's axis."""
    is_open = scene.arm.opening(scene.data) > MAX_WIDE
    return compose(-0.05 * is_open * scene.arm.rotation(scene.data)[:, 2], np.zeros(3), OPEN)
