"""What every task shows: `state`, the arm alone, and `objects`, a row for each thing that there is, in random order.

Special about this file: one layout for all tasks, so that one policy can learn them together; nothing in it tells which
object the words mean, so that they must be read. It must not know any task.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.combinations import MAX_DISTRACTORS
from qtransformer_envs.tabletop.objects import COLOURS, KINDS
from qtransformer_envs.tabletop.scene import Item, Scene

__all__ = [
    "NUM_ROWS", "OBJECTS_ELEMENTS", "OBJECTS_HIGH", "OBJECTS_LOW", "STATE_ELEMENTS", "STATE_HIGH", "STATE_LOW", "Rows",
    "observe_state",
]  # fmt: skip

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
NUM_ROWS = MAX_DISTRACTORS + 2  # the target, its distractors, and the drawer
Bounded = tuple[str, str, float, float]  # name, unit, lowest and highest value


def _vector(name: str, unit: str, limit: float) -> tuple[Bounded, ...]:
    return tuple((f"{name}_{component}", unit, -limit, limit) for component in "xyz")


def _split(layout: tuple[Bounded, ...]) -> tuple[tuple[tuple[str, str], ...], np.ndarray, np.ndarray]:
    """Returns name and unit of each element, and the lowest and highest values, shape (num_elements,), float32."""
    elements = tuple((name, unit) for name, unit, _, _ in layout)
    low, high = (np.array([element[i] for element in layout], np.float32) for i in (2, 3))
    return elements, low, high


STATE_ELEMENTS, STATE_LOW, STATE_HIGH = _split(
    (
        *((f"{joint}_position", "rad", -4.0, 4.0) for joint in JOINTS),
        *((f"{joint}_velocity", "rad/s", -20.0, 20.0) for joint in JOINTS),
        *_vector("gripper_position", "m", 1.5),
        *_vector("gripper_x_axis", "1", 1.0),
        *_vector("gripper_y_axis", "1", 1.0),
        ("gripper_opening", "m", -0.01, 0.09),
    )
)
_KINDS = (*KINDS, "drawer")
_LOOKS: tuple[Bounded, ...] = (
    *((f"is_{kind}", "1", 0.0, 1.0) for kind in _KINDS),
    *((colour, "1", 0.0, 1.0) for colour in ("red", "green", "blue")),
    *((f"half_size_{component}", "m", 0.0, 0.1) for component in "xyz"),
)
_POSE: tuple[Bounded, ...] = (
    *_vector("from_gripper", "m", 5.0),
    *_vector("position", "m", 5.0),
    *_vector("x_axis", "1", 1.0),
    *_vector("z_axis", "1", 1.0),
    ("opening", "m", -0.05, 0.20),
)
_COLUMNS = _LOOKS + _POSE
OBJECTS_ELEMENTS, _LOW, _HIGH = _split(
    tuple((f"row{row}_{name}", unit, low, high) for row in range(NUM_ROWS) for name, unit, low, high in _COLUMNS)
)
OBJECTS_LOW, OBJECTS_HIGH = _LOW.reshape(NUM_ROWS, -1), _HIGH.reshape(NUM_ROWS, -1)
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # x axis and z axis of what is not turned
_AXES = [0, 3, 6, 2, 5, 8]  # of a rotation matrix, flat: its x axis, then its z axis


def observe_state(scene: Scene) -> np.ndarray:
    """Returns the arm's state, float32, clipped to its space; `STATE_ELEMENTS` names its elements."""
    arm, data = scene.arm, scene.data
    state = np.concatenate(
        [
            arm.joint_positions(data),
            arm.joint_velocities(data),
            arm.position(data),
            arm.rotation(data).T[:2].ravel(),
            [arm.opening(data)],
        ]
    )
    return np.clip(state.astype(np.float32), STATE_LOW, STATE_HIGH)


class Rows:
    """Which row of `objects` shows what, in one episode: kind, colour, half size (the drawer's: its handle's), pose.

    A place stands there twice, in the world and from the gripper: of 100 episodes of Pick, cloning of 600 clean ones
    succeeds in 47 with both, in 5 with the first alone (docs/LOG.md).
    """

    def __init__(self, scene: Scene, order: np.ndarray) -> None:
        """`order`, shape (NUM_ROWS,), is a permutation: the rows of the scene's items, and last that of the drawer."""
        self._scene = scene
        self._rows, self.drawer = order[: len(scene.items)], int(order[-1])
        self._bodies = np.array([item.body for item in scene.items])
        self._table = np.zeros((NUM_ROWS, len(_COLUMNS)), np.float32)
        for item in scene.items:
            self._show(self.of(item), item.kind_name, COLOURS[item.colour], item.kind.half_size)
        handle = scene.model.geom("furniture/handle").size
        self._show(self.drawer, "drawer", scene.model.material("furniture/drawer").rgba[:3], handle)

    def _show(self, row: int, kind: str, colour: np.ndarray | tuple, half_size: np.ndarray | tuple) -> None:
        is_kind = [float(kind == each) for each in _KINDS]
        self._table[row, : len(_LOOKS)] = [*is_kind, *colour, *half_size]

    def of(self, item: Item) -> int:
        """Returns the row of an object."""
        return int(self._rows[item.index])

    def observe(self) -> np.ndarray:
        """Returns `objects`, shape (NUM_ROWS, num_columns), float32; `OBJECTS_ELEMENTS` names them row by row."""
        scene, table = self._scene, self._table.copy()
        data, first = scene.data, len(_LOOKS)
        gripper, handle = scene.arm.position(data), scene.handle_position()
        table[self._rows, first : first + 3] = data.xpos[self._bodies] - gripper
        table[self._rows, first + 3 : first + 6] = data.xpos[self._bodies]
        table[self._rows, first + 6 : first + 12] = data.xmat[self._bodies][:, _AXES]
        table[self.drawer, first:] = [*(handle - gripper), *handle, *_UPRIGHT, scene.drawer_opening()]
        return np.clip(table, OBJECTS_LOW, OBJECTS_HIGH)
