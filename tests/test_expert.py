"""The scripted expert of PickCube: it succeeds, recovers, and is a function of the state alone."""

import math

import gymnasium
import numpy as np
import pytest

import qtransformer_envs  # noqa: F401 - registers the task
from qtransformer_envs.pick_cube import PickCube
from qtransformer_envs.pick_cube_expert import Scene, grasp_turn, pick_action
from qtransformer_envs.rotations import matrix_from_vector

ID = "qtransformer/PickCube-v0"
DOWN = np.diag([1.0, -1.0, -1.0])


def count_successes(seeds, noise=0.0, disturb=None):
    """Returns the number of episodes that succeed; `disturb(env, step, action, rng)` may change the action."""
    env = gymnasium.make(ID)
    task = env.unwrapped
    assert isinstance(task, PickCube)
    successes, lengths = 0, []
    for seed in seeds:
        env.reset(seed=seed)
        expert, rng = task.make_expert(seed), np.random.default_rng(seed)
        expert.reset()
        for step in range(80):
            action = np.clip(expert.act() + noise * rng.standard_normal(7), -1, 1)
            if disturb is not None:
                action = disturb(task, step, action, rng)
            *_, terminated, _, _ = env.step(action.astype(np.float32))
            if terminated:
                successes += 1
                lengths.append(step + 1)
                break
    return successes, float(np.mean(lengths)) if lengths else math.nan


def scene(gripper=(0.5, 0.0, 0.2), cube=(0.5, 0.0, 0.02), yaw=0.0, opening=0.08, has_grip=False):
    cube_rotation = matrix_from_vector(np.array([0.0, 0.0, yaw]))
    return Scene(np.array(gripper), DOWN, opening, np.array(cube), cube_rotation, has_grip)


def test_above_the_cube_it_descends_open():
    action = pick_action(scene())
    np.testing.assert_allclose(action, [0, 0, -0.6, 0, 0, 0, 1], atol=1e-6)  # 0.03 m down: its longest move


def test_beside_the_cube_it_rises_before_it_goes_sideways():
    action = pick_action(scene(gripper=(0.42, 0.0, 0.02)))
    np.testing.assert_allclose(action, [0, 0, 0.6, 0, 0, 0, 1], atol=1e-6)


def test_around_the_cube_it_closes_and_stays():
    np.testing.assert_allclose(pick_action(scene(gripper=(0.5, 0.0, 0.02))), [0, 0, 0, 0, 0, 0, -1], atol=1e-6)


def test_with_a_grip_it_lifts():
    action = pick_action(scene(gripper=(0.5, 0.0, 0.02), opening=0.04, has_grip=True))
    np.testing.assert_allclose(action, [0, 0, 0.6, 0, 0, 0, -1], atol=1e-6)


@pytest.mark.parametrize(
    ("yaw", "expected"), [(0.3, 0.3), (math.pi / 2 + 0.3, 0.3), (1.2, 1.2 - math.pi / 2), (3, 3 - math.pi)]
)
def test_it_turns_to_the_nearest_of_four_equal_yaws(yaw, expected):
    turn = grasp_turn(DOWN, scene(yaw=yaw).cube_rotation)
    np.testing.assert_allclose(turn, [0, 0, expected], atol=1e-6)


@pytest.mark.parametrize("flip", [(math.pi / 2, 0, 0), (0, math.pi / 2, 0), (math.pi, 0, 0)])
def test_it_does_not_matter_which_face_the_cube_lies_on(flip):
    rotation = matrix_from_vector(np.array([0.0, 0.0, 0.3])) @ matrix_from_vector(np.array(flip, float))
    np.testing.assert_allclose(grasp_turn(DOWN, rotation), [0, 0, 0.3], atol=1e-6)


def test_it_is_a_function_of_the_state():
    env = PickCube()
    env.reset(seed=0)
    one, other = env.make_expert(0), env.make_expert(1)
    for _ in range(10):
        action = one.act()
        np.testing.assert_array_equal(action, other.act())
        assert action.shape == (7,)
        assert action.dtype == np.float32
        assert env.action_space.contains(action)
        env.step(action)


def test_it_succeeds():
    successes, length = count_successes(range(20))
    assert successes >= 19
    assert 15 <= length <= 45


def test_it_bears_noise():
    assert count_successes(range(20), noise=0.2)[0] >= 17


def test_it_recovers_from_random_actions():
    def disturb(env, step, action, rng):
        return rng.uniform(-1, 1, 7) if 8 <= step < 20 else action

    assert count_successes(range(20), disturb=disturb)[0] >= 18


def test_it_picks_a_dropped_cube_again():
    def disturb(env, step, action, rng):
        if env.cube_position()[2] > 0.08 and step < 30:
            action[6] = 1.0
        return action

    assert count_successes(range(10), disturb=disturb)[0] >= 9


def test_it_follows_a_pushed_cube():
    def disturb(env, step, action, rng):
        if step == 8:
            env.place_cube(np.array([0.4, -0.15, 0.03]), yaw=1.0)
        return action

    assert count_successes(range(10), disturb=disturb)[0] >= 9


@pytest.mark.slow
def test_it_succeeds_in_95_of_100():
    assert count_successes(range(100))[0] >= 95
