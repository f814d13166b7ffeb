"""Pick up a cube: a 7-joint arm with a parallel gripper lifts a cube of 4 cm edge from a table.

Special about this file: contacts and friction alone hold the cube; physics at 500 Hz, control at 10 Hz. The reward is 1
at success (the cube 10 cm above its rest height, touching both pads), else 0; success terminates the episode.
With `render_mode="rgb_array"` see `rendering.py` for packages and environment variables. It must not know the learner.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.utils import EzPickle

from qtransformer_envs.arm import ACTION_ELEMENTS, CONTROL_HZ, HOME, MAX_OPENING, Arm
from qtransformer_envs.rendering import FastRenderer

if TYPE_CHECKING:
    from qtransformer_envs.pick_cube_expert import PickCubeExpert

__all__ = ["PickCube"]

MODEL_PATH = Path(__file__).parent / "assets" / "pick_cube.xml"
CAMERA = "front"
REST_HEIGHT = 0.02  # m: the cube's centre when it lies on the table
LIFT_HEIGHT = 0.10  # m above REST_HEIGHT
CUBE_AREA_LOW = np.array([0.35, -0.20])  # m
CUBE_AREA_HIGH = np.array([0.65, 0.20])
DROP_HEIGHT = 0.005  # m: the cube starts this much above the table, a little tilted, and settles within a step
MAX_DROP_TILT = 0.05  # rad
JOINT_NOISE = 0.05  # rad, around HOME
JOINTS = tuple(f"joint{i}" for i in range(1, 8))

_AXES = tuple(f"{axis}_axis_{component}" for axis in "xy" for component in "xyz")
STATE_ELEMENTS = (
    *((f"{joint}_position", "rad") for joint in JOINTS),
    *((f"{joint}_velocity", "rad/s") for joint in JOINTS),
    *((f"gripper_position_{axis}", "m") for axis in "xyz"),
    *((f"gripper_{element}", "1") for element in _AXES),
    ("gripper_opening", "m"),
    *((f"cube_position_{axis}", "m") for axis in "xyz"),
    *((f"cube_{element}", "1") for element in _AXES),
)
STATE_LOW = np.array([-4.0] * 7 + [-20.0] * 7 + [-1.5] * 3 + [-1.0] * 6 + [-0.01] + [-5.0] * 3 + [-1.0] * 6, np.float32)
STATE_HIGH = np.array([4.0] * 7 + [20.0] * 7 + [1.5] * 3 + [1.0] * 6 + [0.09] + [5.0] * 3 + [1.0] * 6, np.float32)


class PickCube(gymnasium.Env[dict[str, Any], np.ndarray], EzPickle):
    """The task, without a time limit (Gymnasium's registration adds 80 steps).

    Action (7,), in [-1, 1]: displacement of the gripper's target position (3, world frame, 0.05 m) and orientation (3,
    rotation vector in the world frame, 0.25 rad), and the wanted opening from -1 (closed) to 1 (open). Finite values
    outside are clipped; NaN and infinity raise.

    Observation {"state": (33,)}: see `observation_elements`; values are clipped to the space. An orientation is the
    first two columns of the rotation matrix, which is continuous where quaternions and angles are not.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012 - Gymnasium's own form
    observation_elements: dict[str, tuple[tuple[str, str], ...]] = {"state": STATE_ELEMENTS}  # noqa: RUF012
    action_elements: tuple[tuple[str, str], ...] = ACTION_ELEMENTS
    control_hz: float = CONTROL_HZ

    def __init__(self, render_mode: str | None = None, width: int = 320, height: int = 240) -> None:
        EzPickle.__init__(self, render_mode, width, height)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode ({render_mode!r}) must be None or 'rgb_array'")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(STATE_LOW, STATE_HIGH)})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.model = mujoco.MjModel.from_xml_path(str(MODEL_PATH))
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model)
        self._cube = self.model.body("cube").id
        self._cube_qpos = int(self.model.joint("cube").qposadr[0])
        self._cube_geom, self._left_pad, self._right_pad = (
            self.model.geom(name).id for name in ("cube", "left_pad", "right_pad")
        )
        self._size = (width, height)
        self._renderer: FastRenderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the first observation and info. Draws the arm's joints, the cube's place and its yaw."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.arm.reset(self.data, HOME + self.np_random.uniform(-JOINT_NOISE, JOINT_NOISE, 7), MAX_OPENING)
        place = self.np_random.uniform(CUBE_AREA_LOW, CUBE_AREA_HIGH)
        yaw = self.np_random.uniform(-np.pi, np.pi)
        self.place_cube(np.array([*place, REST_HEIGHT + DROP_HEIGHT]), yaw, self.np_random.uniform(0.01, MAX_DROP_TILT))
        mujoco.mj_forward(self.model, self.data)
        return self._observe(), {"success": self.is_success()}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advances by one control step (0.1 s).

        Args:
            action: shape (7,), see the class. Finite values outside [-1, 1] are clipped.

        Returns:
            observation, reward (1.0 at success, else 0.0), terminated (at success), truncated (False), info with
            `success`.

        Raises:
            ValueError: a wrong shape, NaN or infinity.
        """
        self.arm.move(self.data, np.clip(self._checked(action), -1.0, 1.0))
        success = self.is_success()
        return self._observe(), float(success), success, False, {"success": success}

    def cube_position(self) -> np.ndarray:
        """Returns the cube's centre, shape (3,), m."""
        return self.data.xpos[self._cube].copy()

    def cube_rotation(self) -> np.ndarray:
        """Returns the cube's rotation matrix, shape (3, 3)."""
        return self.data.xmat[self._cube].reshape(3, 3).copy()

    def place_cube(self, position: np.ndarray, yaw: float = 0.0, tilt: float = 0.0) -> None:
        """Puts the cube at `position`, shape (3,), m, turned by `yaw` about z, then `tilt` about the x axis, rad.

        For `reset` and tests; the new state counts from the next step on.
        """
        half_yaw, half_tilt = 0.5 * yaw, 0.5 * tilt
        quaternion = np.zeros(4)
        turn_z = np.array([np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)])
        turn_x = np.array([np.cos(half_tilt), np.sin(half_tilt), 0.0, 0.0])
        mujoco.mju_mulQuat(quaternion, turn_x, turn_z)
        self.data.qpos[self._cube_qpos : self._cube_qpos + 7] = [*position, *quaternion]

    def has_grip(self) -> bool:
        """Returns whether the cube touches both pads."""
        touching = {geom for pair in self.data.contact.geom.tolist() if self._cube_geom in pair for geom in pair}
        return self._left_pad in touching and self._right_pad in touching

    def is_success(self) -> bool:
        """Returns whether the cube is 10 cm above its rest height and touches both pads."""
        return bool(self.data.xpos[self._cube, 2] >= REST_HEIGHT + LIFT_HEIGHT) and self.has_grip()

    def make_expert(self, seed: int) -> PickCubeExpert:
        """Returns the scripted expert of this task, which reads the true state of this environment."""
        from qtransformer_envs.pick_cube_expert import PickCubeExpert

        return PickCubeExpert(self, seed)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride] - never a list
        """Returns a picture, shape (height, width, 3), uint8, or None without a render mode.

        Raises:
            RuntimeError: no graphics backend; the message tells what to install.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs gymnasium.make(..., render_mode='rgb_array')")
            return None
        if self._renderer is None:
            self._renderer = FastRenderer(self.model, *self._size, CAMERA)
        return self._renderer.render(self.data)

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """Returns `action` as float64, shape (7,), or raises ValueError."""
        action = np.asarray(action, np.float64)
        if action.shape != (7,):
            raise ValueError(f"action must have shape (7,), got {action.shape}; pass one action, not a batch")
        if not np.isfinite(action).all():
            index = int(np.flatnonzero(~np.isfinite(action))[0])
            raise ValueError(
                f"action[{index}] ({ACTION_ELEMENTS[index][0]}) must be finite, in [-1, 1], got {action[index]}; "
                "check the policy that computed it for diverged weights or a division by zero"
            )
        return action

    def _observe(self) -> dict[str, np.ndarray]:
        arm, data = self.arm, self.data
        state = np.concatenate(
            [
                arm.joint_positions(data),
                arm.joint_velocities(data),
                arm.position(data),
                arm.rotation(data).T[:2].ravel(),
                [arm.opening(data)],
                self.cube_position(),
                self.cube_rotation().T[:2].ravel(),
            ]
        )
        return {"state": np.clip(state.astype(np.float32), STATE_LOW, STATE_HIGH)}
