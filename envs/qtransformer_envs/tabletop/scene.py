"""The table with arm, cabinet and objects: a model composed of parts, and its state.

Special about this file: a model holds the objects of one episode and no others, since each costs time in every step;
it is compiled once a process for each set of kinds. An object that rests, and that nothing can reach within a control
step, sleeps. It must not know any task.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mujoco
import numpy as np

from qtransformer_envs.arm import MAX_OPENING, Arm
from qtransformer_envs.tabletop.objects import COLOURS, KINDS, Kind, add_object
from qtransformer_envs.tabletop.sleep import Sleep

__all__ = ["AREA_HIGH", "AREA_LOW", "DRAWER_TRAVEL", "Item", "Scene", "compiled_model"]

ASSETS = Path(__file__).parents[1] / "assets"
CABINET_POSITION = np.array([0.50, 0.29, 0.0])  # m: the middle of the closed front
DRAWER_TRAVEL = 0.16  # m
DRAWER_HALF_WIDTH = 0.100  # m, inside
DRAWER_DEPTH = (0.005, 0.185)  # m, inside, behind the front
DRAWER_FLOOR = 0.012  # m
FURNITURE = np.array([[-0.13, -DRAWER_TRAVEL - 0.06], [0.13, 0.22]])  # m: the box around cabinet and open drawer
UPRIGHT = 0.97  # vertical part of the axis: 14 degrees
ON_TABLE = 0.01  # m: the lowest point; the floor of the drawer is higher
UNDISTURBED = 0.03  # m
REST_SPEED = 0.05  # m/s
DRAWER_HEIGHT = 0.075  # m: an object whose middle is below this is in it
AREA_LOW = np.array([0.32, -0.31])  # m: where objects start
AREA_HIGH = np.array([0.68, 0.04])
WRIST_CAMERA_POSITION = (0.075, 0.0, 0.0)  # m, in the hand's frame
WRIST_CAMERA_QUATERNION = (0.0, 0.976, 0.0, -0.217)  # along the fingers, and 25 degrees towards them
WRIST_CAMERA_FOVY = 70.0  # degrees


@lru_cache(maxsize=128)
def compiled_model(kind_names: tuple[str, ...]) -> mujoco.MjModel:
    """Returns the model with objects `object0`, `object1`, ... of these kinds; copy it before changing anything."""
    spec = mujoco.MjSpec.from_file(str(ASSETS / "tabletop.xml"))
    cabinet = mujoco.MjSpec.from_file(str(ASSETS / "cabinet.xml"))
    spec.worldbody.add_frame(pos=CABINET_POSITION).attach_body(cabinet.body("cabinet"), "furniture/", "")
    camera = spec.body("hand").add_camera(name="wrist", pos=WRIST_CAMERA_POSITION, quat=WRIST_CAMERA_QUATERNION)
    camera.fovy = WRIST_CAMERA_FOVY
    for index, kind_name in enumerate(kind_names):
        add_object(spec, f"object{index}", KINDS[kind_name])
    return spec.compile()


@dataclass(frozen=True, eq=False)
class Item:
    """One object of the model: its kind and colour, and where MuJoCo keeps it."""

    index: int
    kind_name: str
    colour: str
    body: int
    qpos: int
    dof: int
    geoms: slice

    @property
    def kind(self) -> Kind:
        """What it is made of and how it is held."""
        return KINDS[self.kind_name]

    @property
    def name(self) -> str:
        """What an instruction calls it: colour and kind."""
        return f"{self.colour} {self.kind_name}"


class Scene:
    """A copy of the model with its state: objects of these kinds and colours, to be put somewhere with `place`."""

    def __init__(self, objects: Sequence[tuple[str, str]]) -> None:
        """Makes the scene of an episode; `objects` are kind and colour of each."""
        self.model = copy.deepcopy(compiled_model(tuple(kind for kind, _ in objects)))
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model)
        self.items = tuple(self._find_item(index, *names) for index, names in enumerate(objects))
        for item in self.items:
            self.model.geom_rgba[item.geoms, :3] = COLOURS[item.colour]
        self._sleep = Sleep(self.model, self.items)
        self._pads = tuple(self.model.geom(name).id for name in ("left_pad", "right_pad"))
        self._cabinet = self.model.body("furniture/cabinet").id
        self._handle = self.model.site("furniture/handle").id
        drawer = self.model.joint("furniture/drawer")
        self._drawer_qpos, self._drawer_dof = int(drawer.qposadr[0]), int(drawer.dofadr[0])

    def _find_item(self, index: int, kind_name: str, colour: str) -> Item:
        body, joint = self.model.body(f"object{index}"), self.model.joint(f"object{index}")
        first = int(body.geomadr[0])
        geoms = slice(first, first + int(body.geomnum[0]))
        return Item(index, kind_name, colour, body.id, int(joint.qposadr[0]), int(joint.dofadr[0]), geoms)

    def place(self, item: Item, position: np.ndarray, rotation: np.ndarray) -> None:
        """Puts an object at `position`, shape (3,), m, turned by `rotation`, shape (3, 3), at rest and awake."""
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation, np.float64).ravel())
        self.data.qpos[item.qpos : item.qpos + 7] = [*position, *quaternion]
        self.data.qvel[item.dof : item.dof + 6] = 0.0
        self._sleep.wake(item.index)

    def start(self, joints: np.ndarray) -> None:
        """Puts the arm at `joints`, shape (7,), rad, with the gripper open; all objects are taken to be at rest."""
        self.arm.reset(self.data, joints, MAX_OPENING)
        mujoco.mj_forward(self.model, self.data)
        self._starts = self.data.xpos.copy()
        self._sleep.trust()
        self._update_sleep()

    def move(self, action: np.ndarray) -> None:
        """Advances by one control step under `action`, shape (7,), in [-1, 1]; see `Arm.move`."""
        self.arm.aim(self.data, action)
        self._update_sleep()
        self.arm.go(self.data)

    def _update_sleep(self) -> None:
        reach = self.cabinet_position()[:2] + FURNITURE
        self._sleep.update(self.data, self.arm.path(self.data), reach)

    def position(self, item: Item) -> np.ndarray:
        """Returns the origin of an object, shape (3,), m."""
        return self.data.xpos[item.body].copy()

    def start_position(self, item: Item) -> np.ndarray:
        """Returns where `place` has put an object, shape (3,), m, before its pose is computed."""
        return self.data.qpos[item.qpos : item.qpos + 3].copy()

    def is_undisturbed(self, item: Item) -> bool:
        """Returns whether an object is within 3 cm of where it was when the episode started."""
        return self.distance_moved(item) < UNDISTURBED

    def distance_moved(self, item: Item) -> float:
        """Returns how far an object's origin is from where it was when the episode started, m."""
        return math.dist(self.data.xpos[item.body], self._starts[item.body])

    def rotation(self, item: Item) -> np.ndarray:
        """Returns the rotation matrix of an object, shape (3, 3)."""
        return self.data.xmat[item.body].reshape(3, 3).copy()

    def bottom(self, item: Item) -> float:
        """Returns the height of an object's lowest point over the table, m."""
        x, y, z = (abs(float(value)) for value in self.data.xmat[item.body, 6:9])
        half_x, half_y, half_z = item.kind.half_size
        if item.kind_name == "ball":
            extent = half_z
        elif item.kind.is_round:
            extent = half_z * z + half_x * math.hypot(x, y)
        else:
            extent = half_x * x + half_y * y + half_z * z
        return float(self.data.xpos[item.body, 2]) - extent

    def up_component(self, item: Item) -> float:
        """Returns the vertical part of an object's local z axis: 1 when it stands, 0 when it lies."""
        return float(self.data.xmat[item.body, 8])

    def is_upright(self, item: Item) -> bool:
        """Returns whether an object stands on its base, or on either end if these are alike."""
        up = self.up_component(item)
        return (up if item.kind.has_top else abs(up)) > UPRIGHT

    def is_on_table(self, item: Item) -> bool:
        """Returns whether an object rests on the table, and no pad touches it."""
        is_resting = self.bottom(item) < ON_TABLE and self.speed(item) < REST_SPEED
        return is_resting and self.pads_touching(item) == 0

    def speed(self, item: Item) -> float:
        """Returns the speed of an object's origin, m/s."""
        return float(np.linalg.norm(self.data.qvel[item.dof : item.dof + 3]))

    def pads_touching(self, item: Item) -> int:
        """Returns how many of the two pads touch an object."""
        pairs = self.data.contact.geom.tolist()
        geoms = range(item.geoms.start, item.geoms.stop)
        return sum(any((a == pad and b in geoms) or (b == pad and a in geoms) for a, b in pairs) for pad in self._pads)

    def cabinet_position(self) -> np.ndarray:
        """Returns the middle of the closed front, on the table, shape (3,), m."""
        return self.model.body_pos[self._cabinet].copy()

    def move_cabinet(self, displacement: np.ndarray) -> None:
        """Puts the cabinet `displacement`, shape (2,), m, beside its usual place."""
        self.model.body_pos[self._cabinet, :2] = CABINET_POSITION[:2] + displacement

    def drawer_opening(self) -> float:
        """Returns how far the drawer is out, m: 0 to 0.16."""
        return float(self.data.qpos[self._drawer_qpos])

    def drawer_velocity(self) -> float:
        """Returns the speed at which the drawer comes out, m/s."""
        return float(self.data.qvel[self._drawer_dof])

    def open_drawer(self, opening: float) -> None:
        """Sets how far the drawer is out, m, at rest; what lies in it stays where it is."""
        self.data.qpos[self._drawer_qpos], self.data.qvel[self._drawer_dof] = opening, 0.0

    def handle_position(self) -> np.ndarray:
        """Returns the middle of the drawer's handle, shape (3,), m."""
        return self.data.site_xpos[self._handle].copy()

    def drawer_middle(self) -> np.ndarray:
        """Returns the middle of that part of the drawer's floor that is out of the cabinet, shape (3,), m."""
        x, y, _ = self.cabinet_position()
        return np.array([x, y - 0.5 * (self.drawer_opening() - DRAWER_DEPTH[0]), DRAWER_FLOOR])

    def is_in_drawer(self, item: Item) -> bool:
        """Returns whether an object's origin is between the walls of the drawer and below their top."""
        x, y, z = self.position(item) - self.cabinet_position()
        behind = y + self.drawer_opening()
        is_inside = abs(x) < DRAWER_HALF_WIDTH and DRAWER_DEPTH[0] < behind < DRAWER_DEPTH[1]
        return bool(is_inside and 0.0 < z < DRAWER_HEIGHT)
