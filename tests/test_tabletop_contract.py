"""What every registered environment must keep: spaces, units, determinism, honest rewards, survival of bad actions."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from qtransformer_envs import ENVIRONMENTS

IDS = list(ENVIRONMENTS)
NUM_STEPS = 30
ENERGY_LIMIT = 500.0  # J: 18 kg of arm at 1 m are 180 J
SPEED_LIMIT = 20.0  # m/s, or rad/s of the arm's joints
SPIN_LIMIT = 150.0  # rad/s: what squeezes a ball of 2 cm radius out at 2 m/s makes it spin with 100
PENETRATION_LIMIT = 0.02  # m: the pads press with 70 N, and the arm with 87 Nm, on what cannot give way


def make(env_id, **kwargs):
    return gymnasium.make(env_id, **kwargs)


def simulation(env):
    """Returns MuJoCo's model and data of the present episode."""
    base = getattr(env.unwrapped, "scene", env.unwrapped)
    return base.model, base.data


def random_actions(env, seed, num_steps):
    return np.random.default_rng(seed).uniform(-1, 1, (num_steps, *env.action_space.shape)).astype(np.float32)


def numbers(observation):
    """Returns all numbers of an observation, in the order of `element_names`."""
    return np.concatenate([value.ravel() for key, value in sorted(observation.items()) if key != "instruction"])


def element_names(env):
    return [name for _, elements in sorted(env.unwrapped.observation_elements.items()) for name, _ in elements]


def digest(env, seed, num_steps=NUM_STEPS):
    """Returns a hash of all that an episode of random actions gives."""
    observation, info = env.reset(seed=seed)
    told, seen = [observation.get("instruction"), info], [numbers(observation)]
    for action in random_actions(env, seed, num_steps):
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(numbers(observation))
        told.append((reward, terminated, truncated, info))
    return hashlib.sha256(np.array(seen).tobytes() + repr(told).encode()).hexdigest()


def run_expert(env, seed):
    """Returns whether the expert succeeds in this episode; checks rewards on the way."""
    env.reset(seed=seed)
    expert = env.unwrapped.make_expert(seed)
    expert.reset()
    while True:
        action = expert.act()
        assert env.action_space.contains(action)
        _, reward, terminated, truncated, info = env.step(action)
        assert reward in (0.0, 1.0)
        assert info["success"] == terminated == bool(reward)
        if terminated or truncated:
            return terminated


def count_random_successes(env, seeds):
    successes = 0
    for seed in seeds:
        env.reset(seed=seed)
        ends = (env.step(action)[2] for action in random_actions(env, seed, env.spec.max_episode_steps))
        successes += any(ends)
    return successes


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_checker(env_id):
    check_env(make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_elements_name_every_number_with_its_unit(env_id):
    env: Any = make(env_id).unwrapped
    pairs = [(elements, env.observation_space[key]) for key, elements in env.observation_elements.items()]
    assert {key for key, space in env.observation_space.items() if isinstance(space, gymnasium.spaces.Box)} == set(
        env.observation_elements
    )
    for elements, space in [*pairs, (env.action_elements, env.action_space)]:
        names = [name for name, _ in elements]
        assert len(set(names)) == len(names) == np.prod(space.shape)
        assert all(unit for _, unit in elements)
    assert env.control_hz == 10.0


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_bits_also_after_pickling(env_id):
    env = make(env_id)
    first = digest(env, 7)
    assert digest(env, 8) != first
    assert digest(env, 7) == first
    assert digest(pickle.loads(pickle.dumps(env)), 7) == first


def test_same_bits_in_another_process():
    code = (
        "import json, gymnasium; from test_tabletop_contract import IDS, digest\n"
        "print(json.dumps({each: digest(gymnasium.make(each), 7) for each in IDS}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(out.stdout.splitlines()[-1]) == {each: digest(make(each), 7) for each in IDS}


def constant_elements(env, num_episodes, num_starts):
    """Returns the names of elements that never change in some episodes of the expert and some more starts."""
    seen = []
    for seed in range(num_episodes):
        seen.append(numbers(env.reset(seed=seed)[0]))
        expert, is_over = env.unwrapped.make_expert(seed), False
        while not is_over:  # a standing object stays upright to the last bit until it is touched
            observation, _, terminated, truncated, _ = env.step(expert.act())
            seen.append(numbers(observation))
            is_over = terminated or truncated
    seen += [numbers(env.reset(seed=num_episodes + seed)[0]) for seed in range(num_starts)]
    return {element_names(env)[i] for i in np.flatnonzero(np.ptp(seen, axis=0) == 0.0)}


@pytest.mark.parametrize("env_id", IDS)
def test_no_observation_element_is_constant(env_id):
    constant = constant_elements(make(env_id), 2, 10)
    columns = {name: name[len("row0_") :] for name in constant if name.startswith("row")}
    assert constant <= set(columns)  # few episodes do not show each kind in each row, but in some of the rows
    num_rows = 6
    assert max((list(columns.values()).count(column) for column in columns.values()), default=0) < num_rows


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_no_observation_element_is_constant_in_any_row(env_id):
    assert constant_elements(make(env_id), 4, 150) == set()


@pytest.mark.parametrize("env_id", IDS)
def test_expert_succeeds(env_id):
    env = make(env_id)
    assert sum(run_expert(env, seed) for seed in range(5)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_expert_succeeds_in_95_of_100(env_id):
    env = make(env_id)
    assert sum(run_expert(env, seed) for seed in range(100)) >= 95


@pytest.mark.parametrize("env_id", IDS)
def test_random_policy_does_not_succeed(env_id):
    assert count_random_successes(make(env_id), range(3)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_random_policy_succeeds_in_less_than_2_of_100(env_id):
    assert count_random_successes(make(env_id), range(100)) < 2


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_action_raises(env_id, value):
    env = make(env_id).unwrapped
    env.reset(seed=0)
    action = np.zeros(7)
    action[4] = value
    with pytest.raises(ValueError, match=r"action\[4\] \(rotation_y\) must be finite, in \[-1, 1\], got .*; check"):
        env.step(action)
    with pytest.raises(ValueError, match=r"must have shape \(7,\), got \(1, 7\)"):
        env.step(np.zeros((1, 7)))


def adversarial_action(rng, kind, step, expert, previous):
    if kind == 0:
        return rng.choice([-1.0, 1.0], 7)
    if kind == 1:
        return rng.choice([-1.0, 0.0, 1.0], 7) if step % 8 == 0 else previous
    action = expert.act().astype(np.float64)
    action[2], action[6] = -1.0, rng.choice([-1.0, 1.0]) if kind == 2 else -1.0  # press on the target
    return action


def free_spins(model):
    """Returns the velocities of a model that are rates of turn of free objects."""
    first = model.jnt_dofadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return (first[:, None] + [3, 4, 5]).ravel()


def check_adversarial(env_id, num_steps):
    """Out-of-bounds actions, held corners, and pressing on the target: nothing may explode, tunnel or warn."""
    env = make(env_id).unwrapped
    rng, action = np.random.default_rng(0), np.zeros(7)
    for step in range(num_steps):
        if step % 50 == 0:
            env.reset(seed=step)
        model, data = simulation(env)
        model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
        action = adversarial_action(rng, (step // 50) % 4, step, env.make_expert(step), action)
        observation = env.step(2.0 * action)[0]
        assert env.observation_space.contains(observation)
        assert np.isfinite(numbers(observation)).all()
        spins = free_spins(model)
        assert np.abs(data.qvel[spins]).max() < SPIN_LIMIT
        assert np.abs(np.delete(data.qvel, spins)).max() < SPEED_LIMIT
        assert np.abs(data.energy).sum() < ENERGY_LIMIT
        assert data.contact.dist.min(initial=0.0) > -PENETRATION_LIMIT
        assert [warning.number for warning in data.warning] == [0] * len(data.warning)


@pytest.mark.parametrize("env_id", IDS)
def test_adversarial_actions_leave_the_simulation_sane(env_id):
    check_adversarial(env_id, 200)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["qtransformer/PickCube-v0", "qtransformer/Tabletop-v0"])  # all tasks and models
def test_many_adversarial_actions_leave_the_simulation_sane(env_id):
    check_adversarial(env_id, 10_000)


@pytest.mark.parametrize("env_id", IDS)
def test_rendering_is_equal_across_two_runs(env_id):
    pictures = []
    for _ in range(2):
        env = make(env_id, render_mode="rgb_array")
        env.reset(seed=3)
        env.step(env.action_space.high)
        try:
            pictures.append(env.render())
        except RuntimeError as error:
            pytest.skip(str(error))
        env.close()
    assert pictures[0].dtype == np.uint8
    assert pictures[0].std() > 10
    np.testing.assert_array_equal(*pictures)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_steps_per_cpu_second(env_id):
    env, rates = make(env_id).unwrapped, []
    for seed in range(10):
        env.reset(seed=seed)
        start = time.process_time()
        for action in random_actions(env, seed, 80):
            env.step(action)
        rates.append(80 / (time.process_time() - start))
    print(f"{env_id}: control steps per CPU-second: median {np.median(rates):.0f}, best {max(rates):.0f}")
    assert max(rates) >= 400  # 600 and more on an idle core; the margin is for shared machines
