"""The arm's MJCF against the published numbers of the Franka Panda, and the arm's control against its Jacobian."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

import math

import mujoco
import numpy as np
import pytest

from qtransformer_envs.arm import HOME, MAX_OPENING, MAX_TILT, WORKSPACE_HIGH, WORKSPACE_LOW, Arm, limit_tilt
from qtransformer_envs.pick_cube import MODEL_PATH
from qtransformer_envs.rotations import clip_norm, matrix_from_vector, vector_from_matrix

# Published: Craig's modified Denavit-Hartenberg parameters, rows of (a, d, alpha); the last row is the flange.
MODIFIED_DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
    (0.0, 0.107, 0.0),
)
LIMITS = np.array(
    [
        (-2.8973, 2.8973),
        (-1.7628, 1.7628),
        (-2.8973, 2.8973),
        (-3.0718, -0.0698),
        (-2.8973, 2.8973),
        (-0.0175, 3.7525),
        (-2.8973, 2.8973),
    ]
)
JOINTS = [f"joint{i}" for i in range(1, 8)]


def modified_dh(joints):
    """Returns the flange's pose, shape (4, 4): the product of Rx(alpha) Tx(a) Rz(theta) Tz(d)."""
    pose = np.eye(4)
    for (a, d, alpha), theta in zip(MODIFIED_DH, [*joints, 0.0], strict=True):
        ca, sa, ct, st = math.cos(alpha), math.sin(alpha), math.cos(theta), math.sin(theta)
        link = [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        pose = pose @ np.array(link)
    return pose


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_path(str(MODEL_PATH))


@pytest.fixture
def data(model):
    return mujoco.MjData(model)


def set_joints(model, data, joints):
    for name, value in zip(JOINTS, joints, strict=True):
        data.joint(name).qpos[0] = value
    mujoco.mj_kinematics(model, data)


def test_dh_at_zero_is_the_published_pose():
    # all joints 0: x = 0.088, z = 0.333 + 0.316 + 0.384 - 0.107, flange pointing down
    pose = modified_dh(np.zeros(7))
    np.testing.assert_allclose(pose[:3, 3], [0.088, 0.0, 0.926], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 2], [0.0, 0.0, -1.0], atol=1e-12)


def test_forward_kinematics_equals_modified_dh(model, data):
    rng = np.random.default_rng(0)
    for _ in range(100):
        joints = rng.uniform(*LIMITS.T)
        set_joints(model, data, joints)
        expected = modified_dh(joints)
        np.testing.assert_allclose(data.site("flange").xpos, expected[:3, 3], atol=1e-6)
        np.testing.assert_allclose(data.site("flange").xmat.reshape(3, 3), expected[:3, :3], atol=1e-6)


def test_joint_limits_are_the_published(model):
    np.testing.assert_array_equal([model.joint(name).range for name in JOINTS], LIMITS)
    np.testing.assert_array_equal([model.actuator(name).ctrlrange for name in JOINTS], LIMITS)
    assert all(model.joint(name).limited for name in JOINTS)


def test_gripper_opens_8_cm_and_pushes_with_70_newton(model):
    fingers = [model.joint(name).range[1] for name in ("left_finger_joint", "right_finger_joint")]
    assert sum(fingers) == pytest.approx(0.08) == MAX_OPENING
    np.testing.assert_array_equal(model.actuator("opening").forcerange, [-70.0, 70.0])


def test_home_holds_the_gripper_upright_above_the_table(model, data):
    set_joints(model, data, HOME)
    arm = Arm(model)
    np.testing.assert_allclose(arm.position(data), [0.45, 0.0, 0.25], atol=1e-3)
    np.testing.assert_allclose(arm.rotation(data), np.diag([1.0, -1.0, -1.0]), atol=1e-3)


def at_home(model, data):
    arm = Arm(model)
    mujoco.mj_resetData(model, data)
    arm.reset(data, HOME, MAX_OPENING)
    mujoco.mj_forward(model, data)
    return arm


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_action_displaces_the_gripper_along_one_axis(model, data, axis, sign):
    arm = at_home(model, data)
    before, action = arm.position(data), np.zeros(7)
    action[axis], action[6] = sign, 1.0
    arm.move(data, action)
    for _ in range(5):
        arm.move(data, np.array([0, 0, 0, 0, 0, 0, 1.0]))
    np.testing.assert_allclose((arm.position(data) - before)[axis], sign * 0.05, atol=2e-3)
    np.testing.assert_allclose(np.delete(arm.position(data) - before, axis), 0.0, atol=2e-3)
    np.testing.assert_allclose(vector_from_matrix(arm.rotation(data) @ np.diag([1.0, -1.0, -1.0])), 0.0, atol=5e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_action_turns_the_gripper_about_one_world_axis(model, data, axis):
    arm = at_home(model, data)
    before, action = arm.rotation(data), np.zeros(7)
    action[3 + axis] = 1.0
    arm.move(data, action)
    for _ in range(5):
        arm.move(data, np.zeros(7))
    expected = np.zeros(3)
    expected[axis] = 0.25
    np.testing.assert_allclose(vector_from_matrix(arm.rotation(data) @ before.T), expected, atol=5e-3)


def test_gripper_closes_no_faster_than_the_hardware(model, data):
    arm = at_home(model, data)
    openings = [arm.opening(data)]
    for _ in range(12):
        arm.move(data, np.array([0, 0, 0, 0, 0, 0, -1.0]))
        openings.append(arm.opening(data))
    assert -np.diff(openings).min() < 0.013  # m in 0.1 s: 0.05 m/s a finger, and a little swing
    assert openings[-1] == pytest.approx(0.0, abs=1e-3)


def test_target_stays_in_the_workspace_and_near_the_gripper(model, data):
    arm = at_home(model, data)
    for _ in range(30):
        arm.move(data, np.array([1.0, 1.0, -1.0, 0, 0, 0, 0]))
        assert (arm.target_position >= WORKSPACE_LOW - 0.081).all()
        assert (arm.target_position <= WORKSPACE_HIGH + 0.081).all()
        assert np.linalg.norm(arm.target_position - arm.position(data)) < 0.16
    assert (np.abs(arm.joint_positions(data)) <= np.abs(LIMITS).max(axis=1) + 0.01).all()


def test_rotation_vector_round_trip():
    rng = np.random.default_rng(0)
    for angle in (1e-9, 1e-3, 1.0, 3.0, math.pi - 1e-9):
        axis = rng.standard_normal(3)
        matrix = matrix_from_vector(angle * axis / np.linalg.norm(axis))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(matrix_from_vector(vector_from_matrix(matrix)), matrix, atol=1e-6)
    np.testing.assert_allclose(matrix_from_vector(np.array([0, 0, math.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_clip_norm():
    np.testing.assert_allclose(clip_norm(np.array([3.0, 4.0, 0.0]), 1.0), [0.6, 0.8, 0.0])
    np.testing.assert_array_equal(clip_norm(np.array([0.3, 0.4, 0.0]), 1.0), [0.3, 0.4, 0.0])


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.2, 3.0])
def test_limit_tilt(tilt):
    down = np.diag([1.0, -1.0, -1.0])
    turned = limit_tilt(matrix_from_vector(np.array([0.6 * tilt, 0.8 * tilt, 0.0])) @ down)
    assert math.acos(-turned[2, 2]) == pytest.approx(min(tilt, MAX_TILT), abs=1e-9)
