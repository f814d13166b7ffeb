"""The contract of PickCube: Gymnasium's checker, determinism, honest success, and survival of bad actions."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

import pickle
import subprocess
import sys
import time

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import qtransformer_envs
from qtransformer_envs.pick_cube import CUBE_AREA_HIGH, CUBE_AREA_LOW, PickCube

ID = "qtransformer/PickCube-v0"
OPEN = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture
def env():
    env = PickCube()
    yield env
    env.close()


def roll(env, seed, actions):
    observation, _ = env.reset(seed=seed)
    states = [observation["state"]]
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        states.append(observation["state"])
        if terminated or truncated:
            break
    return np.array(states)


def random_actions(seed, num_steps):
    return np.random.default_rng(seed).uniform(-1, 1, (num_steps, 7)).astype(np.float32)


def test_registered_with_80_steps():
    assert ID in qtransformer_envs.ENVIRONMENTS
    env = gymnasium.make(ID)
    env.reset(seed=0)
    for step in range(80):
        *_, terminated, truncated, _ = env.step(OPEN)
        assert not terminated
        assert truncated == (step == 79)


def test_importing_registers_and_does_not_load_mujoco():
    code = "import sys, qtransformer_envs; print('mujoco' in sys.modules, 'torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.split() == ["False", "False"]


@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_checker():
    check_env(PickCube(), skip_render_check=True)


def test_elements_name_every_number(env):
    assert len(env.observation_elements["state"]) == env.observation_space["state"].shape[0] == 33
    assert len(env.action_elements) == env.action_space.shape[0] == 7
    for elements in (env.observation_elements["state"], env.action_elements):
        names = [name for name, _ in elements]
        assert len(set(names)) == len(names)
        assert all(unit for _, unit in elements)
    assert env.control_hz == 10.0


def test_element_order_matches_the_simulation(env):
    observation, info = env.reset(seed=3)
    named = dict(zip([name for name, _ in env.observation_elements["state"]], observation["state"], strict=True))
    assert info == {"success": False}
    assert named["joint4_position"] == np.float32(env.data.joint("joint4").qpos[0])
    assert named["gripper_opening"] == pytest.approx(0.08)
    assert named["cube_position_z"] == pytest.approx(0.025)
    np.testing.assert_allclose(
        [named[f"gripper_position_{axis}"] for axis in "xyz"], env.data.site("grasp").xpos, atol=1e-6
    )
    rotation = env.data.body("cube").xmat.reshape(3, 3)
    np.testing.assert_allclose([named[f"cube_x_axis_{axis}"] for axis in "xyz"], rotation[:, 0], atol=1e-6)
    np.testing.assert_allclose([named[f"cube_y_axis_{axis}"] for axis in "xyz"], rotation[:, 1], atol=1e-6)


def test_step_is_a_tenth_of_a_second_of_500_hz(env):
    env.reset(seed=0)
    env.step(OPEN)
    assert env.model.opt.timestep == 0.002
    assert env.data.time == pytest.approx(0.1)


def test_same_seed_same_bits_also_after_other_episodes(env):
    actions = random_actions(0, 40)
    first = roll(env, 7, actions)
    roll(env, 8, random_actions(1, 25))
    np.testing.assert_array_equal(roll(env, 7, actions), first)
    np.testing.assert_array_equal(roll(PickCube(), 7, actions), first)
    assert not np.array_equal(roll(env, 9, actions)[0], first[0])


def test_starts_are_spread_over_the_area_and_clear_of_the_gripper(env):
    places, yaws = [], []
    for seed in range(60):
        env.reset(seed=seed)
        places.append(env.cube_position()[:2])
        yaws.append(np.arctan2(env.cube_rotation()[1, 0], env.cube_rotation()[0, 0]))
        assert np.linalg.norm(env.cube_position() - env.arm.position(env.data)) > 0.15
    assert (np.min(places, axis=0) >= CUBE_AREA_LOW).all()
    assert (np.max(places, axis=0) <= CUBE_AREA_HIGH).all()
    assert (np.ptp(places, axis=0) > [0.2, 0.3]).all()
    assert np.ptp(yaws) > 5.0


@pytest.mark.parametrize("seed", range(5))
def test_no_observation_element_is_constant(env, seed):
    states = roll(env, seed, random_actions(seed, 40))
    constant = np.flatnonzero(np.ptp(states, axis=0) == 0.0)
    assert [env.observation_elements["state"][i] for i in constant] == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_action_raises(env, value):
    env.reset(seed=0)
    action = OPEN.copy()
    action[4] = value
    with pytest.raises(ValueError, match=r"action\[4\] \(rotation_y\) must be finite, in \[-1, 1\], got .*; check"):
        env.step(action)


def test_wrong_shape_raises(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(7,\), got \(1, 7\)"):
        env.step(OPEN[None])


def test_unknown_render_mode_raises():
    with pytest.raises(ValueError, match=r"render_mode \('human'\) must be"):
        PickCube(render_mode="human")


def test_missing_graphics_says_what_to_install(env, monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("no backend")

    monkeypatch.setenv("MUJOCO_GL", "egl")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    env.render_mode = "rgb_array"
    with pytest.raises(RuntimeError, match=r"no backend.*libegl1.*MUJOCO_GL=egl.*libosmesa6"):
        env.render()


def test_without_a_screen_a_window_is_not_tried(env, monkeypatch):
    """MuJoCo would end the process."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    env.render_mode = "rgb_array"
    with pytest.raises(RuntimeError, match=r"there is no screen, and MUJOCO_GL names no renderer.*MUJOCO_GL=egl"):
        env.render()


def test_rendering_gives_a_picture_of_the_asked_size():
    env = PickCube(render_mode="rgb_array", width=96, height=64)
    env.reset(seed=0)
    try:
        picture = env.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert picture is not None
    assert picture.shape == (64, 96, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
    env.close()


def test_finite_actions_out_of_bounds_are_clipped(env):
    actions = 3.0 * random_actions(0, 10)
    np.testing.assert_array_equal(roll(env, 0, actions), roll(env, 0, np.clip(actions, -1, 1)))


def test_pickle_makes_the_same_environment(env):
    copy = pickle.loads(pickle.dumps(PickCube(width=64, height=48)))
    assert copy._size == (64, 48)
    np.testing.assert_array_equal(roll(copy, 1, random_actions(0, 5)), roll(env, 1, random_actions(0, 5)))


def test_cube_thrown_into_the_air_is_no_success(env):
    env.reset(seed=0)
    env.place_cube(np.array([0.6, 0.2, 0.6]))
    _, reward, terminated, _, info = env.step(OPEN)
    assert env.cube_position()[2] > 0.12
    assert (reward, terminated, info) == (0.0, False, {"success": False})


def test_cube_gripped_in_the_air_is_success(env):
    env.reset(seed=0)
    for _ in range(3):  # pads 5 cm apart
        env.step(np.array([0, 0, 0, 0, 0, 0, 0.25]))
    rewards = []
    for _ in range(4):  # put there again until the pads have come together
        env.place_cube(env.arm.position(env.data))
        rewards.append(env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))[1])
        if rewards[-1]:
            break
    assert rewards[-1] == 1.0
    assert env.has_grip()
    for _ in range(5):  # and it stays held, by friction alone
        env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert env.is_success()


def test_cube_gripped_on_the_table_is_no_success(env):
    env.reset(seed=0)
    expert = env.make_expert(0)
    while not env.has_grip():
        _, reward, terminated, _, _ = env.step(expert.act())
        assert (reward, terminated) == (0.0, False)
    assert env.cube_position()[2] < 0.03
    assert not env.is_success()


def test_random_policy_never_succeeds():
    env = gymnasium.make(ID)
    for seed in range(20):
        env.reset(seed=seed)
        for action in random_actions(seed, 80):
            *_, terminated, _, _ = env.step(action)
            assert not terminated


def adversarial_action(rng, kind, step, expert, previous):
    if kind == 0:
        return rng.choice([-1.0, 1.0], 7)
    if kind == 1:
        return rng.choice([-1.0, 0.0, 1.0], 7) if step % 8 == 0 else previous
    action = expert.act().astype(np.float64)
    action[2], action[6] = -1.0, rng.choice([-1.0, 1.0]) if kind == 2 else -1.0  # press on the cube
    return action


def check_adversarial(env, num_steps):
    env.model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    rng, expert, action = np.random.default_rng(0), env.make_expert(0), np.zeros(7)
    for step in range(num_steps):
        if step % 80 == 0:
            env.reset(seed=step)
        action = adversarial_action(rng, (step // 80) % 4, step, expert, action)
        observation = env.step(action)[0]
        assert np.isfinite(observation["state"]).all()
        assert env.observation_space.contains(observation)
        assert np.abs(env.data.qvel).max() < 60.0
        assert np.abs(env.data.energy).sum() < 500.0  # J: 18 kg at 1 m is 180 J
    assert [warning.number for warning in env.data.warning] == [0] * len(env.data.warning)


def test_adversarial_actions_leave_the_simulation_sane(env):
    check_adversarial(env, 2_000)


@pytest.mark.slow
def test_many_adversarial_actions_leave_the_simulation_sane(env):
    check_adversarial(env, 10_000)


@pytest.mark.slow
def test_steps_per_cpu_second(env):
    rates = []
    for seed in range(10):
        actions = random_actions(seed, 80)
        env.reset(seed=seed)
        start = time.process_time()
        for action in actions:
            env.step(action)
        rates.append(80 / (time.process_time() - start))
    print(f"control steps per CPU-second: median {np.median(rates):.0f}, best {max(rates):.0f}")
    assert max(rates) >= 300  # 600 and more on an idle core; the margin is for shared machines
