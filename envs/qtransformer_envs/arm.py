"""Cartesian control of the 7-joint arm and its parallel gripper: an action becomes joint targets.

Special about this file: it is shared by every task that includes `assets/panda_arm.xml`. The arm keeps a target pose;
an action displaces it; damped least squares turns it into joint targets, and MuJoCo's position actuators follow them.
It must not know any task, reward or observation.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

import math

import mujoco
import numpy as np

from qtransformer_envs.rotations import clip_norm, matrix_from_vector, vector_from_matrix

__all__ = ["ACTION_ELEMENTS", "CONTROL_HZ", "HOME", "MAX_OPENING", "POSITION_SCALE", "ROTATION_SCALE", "Arm"]

CONTROL_HZ = 10.0
NUM_RAMP_STAGES = 5  # actuator targets move in this many equal stages within a control step
RAMP = np.arange(1, NUM_RAMP_STAGES + 1)[:, None] / NUM_RAMP_STAGES  # share of the way at each stage
POSITION_SCALE = 0.05  # m of target displacement for an action of 1
ROTATION_SCALE = 0.25  # rad of target rotation for an action of 1
MAX_OPENING = 0.08  # m between the pads
OPENING_SPEED = 0.1  # m/s, both fingers together: the published 0.05 m/s a finger
MAX_POSITION_LEAD = 0.08  # m that the target may be ahead of the measured position
MAX_ROTATION_LEAD = 0.4  # rad
MAX_OPENING_LEAD = 0.01  # m
MAX_TILT = 0.8  # rad between the gripper's axis and straight down
WORKSPACE_LOW = np.array([0.25, -0.35, 0.012])  # m, of the grasp point between the pads
WORKSPACE_HIGH = np.array([0.75, 0.35, 0.45])
VELOCITY_LIMITS = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])  # rad/s, published
DAMPING = 1e-3  # of the least squares: (m or rad) ** 2
POSTURE_GAIN = 0.05  # share of the way home that the spare joint goes in one iteration
NUM_ITERATIONS = 2

# Joint positions (rad) with the grasp point at (0.45, 0, 0.25) m and the gripper pointing down.
HOME = np.array([0.0, -0.18483, 0.0, -2.49674, 0.0, 2.31191, 0.785398])

ACTION_ELEMENTS = (
    ("displacement_x", f"{POSITION_SCALE} m"),
    ("displacement_y", f"{POSITION_SCALE} m"),
    ("displacement_z", f"{POSITION_SCALE} m"),
    ("rotation_x", f"{ROTATION_SCALE} rad"),
    ("rotation_y", f"{ROTATION_SCALE} rad"),
    ("rotation_z", f"{ROTATION_SCALE} rad"),
    ("gripper", "1"),
)


class Arm:
    """The arm inside a MuJoCo model: measurements, a target pose, and the joint targets that reach for it."""

    def __init__(self, model: mujoco.MjModel) -> None:
        names = [f"joint{i}" for i in range(1, 8)]
        self._model = model
        self._scratch = mujoco.MjData(model)
        self._positions = np.array([model.joint(name).qposadr[0] for name in names])
        self._velocities = np.array([model.joint(name).dofadr[0] for name in names])
        fingers = ("left_finger_joint", "right_finger_joint")
        self._fingers = np.array([model.joint(name).qposadr[0] for name in fingers])
        self._actuators = np.array([model.actuator(name).id for name in [*names, "opening"]])
        self._site = model.site("grasp").id
        self._limits = np.array([model.joint(name).range for name in names])
        self._jacobian = np.zeros((6, model.nv))
        self._substeps = round(1.0 / (CONTROL_HZ * NUM_RAMP_STAGES * model.opt.timestep))
        self.target_position = np.zeros(3)
        self.target_rotation = np.eye(3)
        self.target_joints = np.zeros(7)
        self.target_opening = 0.0

    def reset(self, data: mujoco.MjData, joints: np.ndarray, opening: float) -> None:
        """Puts the arm at `joints`, shape (7,), rad, with the pads `opening` m apart, at rest; targets where it is."""
        data.qpos[self._positions] = self.target_joints = np.clip(joints, *self._limits.T)
        data.qpos[self._fingers] = 0.5 * opening
        self.target_opening = opening
        data.ctrl[self._actuators] = [*self.target_joints, opening]
        mujoco.mj_kinematics(self._model, data)
        self.target_position, self.target_rotation = self.position(data), self.rotation(data)

    def joint_positions(self, data: mujoco.MjData) -> np.ndarray:
        """Returns the joint positions, shape (7,), rad."""
        return data.qpos[self._positions]

    def joint_velocities(self, data: mujoco.MjData) -> np.ndarray:
        """Returns the joint velocities, shape (7,), rad/s."""
        return data.qvel[self._velocities]

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """Returns the position of the point between the pads, shape (3,), m."""
        return data.site_xpos[self._site].copy()

    def rotation(self, data: mujoco.MjData) -> np.ndarray:
        """Returns the gripper's rotation matrix, shape (3, 3): x across the pads, y from pad to pad, z outwards."""
        return data.site_xmat[self._site].reshape(3, 3).copy()

    def opening(self, data: mujoco.MjData) -> float:
        """Returns the distance between the pads, m."""
        return float(data.qpos[self._fingers].sum())

    def move(self, data: mujoco.MjData, action: np.ndarray) -> None:
        """Advances the simulation by one control step under `action`, shape (7,), each in [-1, 1].

        Action: target displacement (3, world frame), target rotation vector (3, world frame), gripper opening from
        -1 (closed) to 1 (open).
        """
        self.aim(data, action)
        self.go(data)

    def go(self, data: mujoco.MjData) -> None:
        """Advances the simulation by one control step, towards the target that `aim` has set."""
        controls = data.ctrl
        start = controls[self._actuators]
        goal = np.append(self._solve_joints(), self.target_opening)
        for stage in start + (goal - start) * RAMP:
            controls[self._actuators] = stage
            mujoco.mj_step(self._model, data, self._substeps)
        mujoco.mj_kinematics(self._model, data)  # poses of the state after the last physics step

    def aim(self, data: mujoco.MjData, action: np.ndarray) -> None:
        """Moves target pose and opening as `action` says, kept within the workspace and near to what is measured."""
        position, rotation, opening = self.position(data), self.rotation(data), self.opening(data)
        wanted = np.clip(self.target_position + POSITION_SCALE * action[:3], WORKSPACE_LOW, WORKSPACE_HIGH)
        self.target_position = position + clip_norm(wanted - position, MAX_POSITION_LEAD)
        turned = limit_tilt(matrix_from_vector(ROTATION_SCALE * action[3:6]) @ self.target_rotation)
        lead = clip_norm(vector_from_matrix(turned @ rotation.T), MAX_ROTATION_LEAD)
        self.target_rotation = matrix_from_vector(lead) @ rotation
        wanted_opening = 0.5 * MAX_OPENING * (1.0 + float(action[6]))
        change = OPENING_SPEED / CONTROL_HZ
        ramped = min(max(wanted_opening, self.target_opening - change), self.target_opening + change)
        ramped = min(max(ramped, opening - MAX_OPENING_LEAD), opening + MAX_OPENING_LEAD)
        self.target_opening = min(max(ramped, 0.0), MAX_OPENING)

    def path(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """Returns positions (3, 3), m, and rotations (3, 3, 3) of the gripper: now, half-way, and at the target."""
        position, rotation = self.position(data), self.rotation(data)
        half = matrix_from_vector(0.5 * vector_from_matrix(self.target_rotation @ rotation.T)) @ rotation
        positions = np.array([position, 0.5 * (position + self.target_position), self.target_position])
        return positions, np.array([rotation, half, self.target_rotation])

    def _solve_joints(self) -> np.ndarray:
        """Updates and returns the joint targets, shape (7,), rad: within limits, and no faster than the joints go."""
        change = VELOCITY_LIMITS / CONTROL_HZ
        low = np.maximum(self._limits[:, 0], self.target_joints - change)
        high = np.minimum(self._limits[:, 1], self.target_joints + change)
        joints = self.target_joints
        for _ in range(NUM_ITERATIONS):
            error, jacobian = self._pose_error(joints)
            joints = np.clip(joints + damped_least_squares(jacobian, error, HOME - joints), low, high)
        self.target_joints = joints
        return joints

    def _pose_error(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns target minus pose, shape (6,), m and rad, and the Jacobian, shape (6, 7), both at `joints`."""
        scratch = self._scratch
        scratch.qpos[self._positions] = joints
        mujoco.mj_kinematics(self._model, scratch)
        mujoco.mj_comPos(self._model, scratch)
        mujoco.mj_jacSite(self._model, scratch, self._jacobian[:3], self._jacobian[3:], self._site)
        turn = vector_from_matrix(self.target_rotation @ self.rotation(scratch).T)
        error = np.concatenate([self.target_position - self.position(scratch), turn])
        return error, self._jacobian[:, self._velocities]


def damped_least_squares(jacobian: np.ndarray, error: np.ndarray, posture: np.ndarray) -> np.ndarray:
    """Returns a joint change, shape (7,): J^T (J J^T + d I)^-1 e, plus a part of `posture` that J does not see.

    Buss (2004), Introduction to inverse kinematics, eq. 11, with d = `DAMPING`, and its null-space term.
    """
    square = jacobian @ jacobian.T
    square.flat[::7] += DAMPING
    wish = POSTURE_GAIN * posture
    return wish + jacobian.T @ np.linalg.solve(square, error - jacobian @ wish)


def limit_tilt(rotation: np.ndarray) -> np.ndarray:
    """Returns `rotation`, shape (3, 3), turned back so that its z axis is at most `MAX_TILT` rad from straight down."""
    x, y, z = rotation[:, 2].tolist()
    tilt = math.atan2(math.hypot(x, y), -z)
    if tilt <= MAX_TILT:
        return rotation
    # z x (0, 0, -1) = (-y, x, 0): the axis that turns the gripper's axis towards straight down
    length = max(math.hypot(x, y), 1e-9)
    return matrix_from_vector(np.array([-y, x, 0.0]) * ((tilt - MAX_TILT) / length)) @ rotation
