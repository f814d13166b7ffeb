"""What is executed instead of what was intended, step by step."""

from __future__ import annotations

from itertools import groupby

import gymnasium
import numpy as np
import pytest

from qtransformer_datasets import disturbances
from qtransformer_datasets.disturbances import Drop, EarlyStop, Noise, Pauses

LIMITS = gymnasium.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
GRIPPER = 1
CLOSED, OPEN = np.array([0.5, 0.0], np.float32), np.array([0.5, 4.0], np.float32)


def draw(seed=0):
    return np.random.default_rng(seed)


def noise(generator, std=0.0, probability=0.0, hold=1):
    return Noise(LIMITS, generator, std=std, probability=probability, hold=hold)


def test_noise_is_that_of_the_drawn_skill_and_draws_in_a_fixed_order():
    """A log that was begun before goes on to the same bytes: two draws of skill, then two or three a step."""
    disturb, again = noise(draw(), std=0.8, probability=0.5, hold=1), draw()
    std, probability = again.uniform(0, 0.8) * np.array([1, 2], np.float32), again.uniform(0, 0.5)
    for _ in range(50):
        if again.random() < probability:
            again.integers(1, 2)
            expected = again.uniform(LIMITS.low, LIMITS.high)
        else:
            expected = CLOSED + std * again.standard_normal(2)
        np.testing.assert_array_equal(disturb(CLOSED), np.clip(expected, LIMITS.low, LIMITS.high).astype(np.float32))


def test_without_noise_the_intended_action_is_executed():
    disturb = noise(draw())
    np.testing.assert_array_equal([disturb(CLOSED) for _ in range(20)], [CLOSED] * 20)


def test_random_actions_are_held_no_longer_than_allowed():
    disturb = noise(draw(), probability=1.0, hold=3)
    actions = [float(disturb(CLOSED)[0]) for _ in range(3000)]
    assert {len(list(run)) for value, run in groupby(actions) if value != CLOSED[0]} == {1, 2, 3}


def pauses_of(actions):
    return [len(list(run)) for is_pause, run in groupby(abs(row[0]) < 0.2 for row in actions) if is_pause]


def test_pauses_are_near_zero_as_long_as_said_and_keep_the_gripper(monkeypatch):
    monkeypatch.setattr(disturbances, "PAUSE_PROBABILITY", 0.02)  # so that hardly two follow each other
    disturb = Pauses(LIMITS, draw(), GRIPPER)
    actions = [disturb(OPEN) for _ in range(20000)]
    assert {float(action[GRIPPER]) for action in actions} == {4.0}
    lengths = pauses_of(actions)
    assert min(lengths) == 3
    assert np.mean([3 <= length <= 15 for length in lengths]) > 0.8
    assert set(range(3, 16)) <= set(lengths)
    assert np.isclose(np.mean([row[0] == 0.5 for row in actions]), 1 / (1 + 9 * 0.02), atol=0.05)  # 9 steps a pause


def test_a_pause_without_a_gripper_is_near_zero_in_all_elements():
    space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    disturb = Pauses(space, draw(), None)
    actions = [disturb(np.ones(2, np.float32)) for _ in range(400)]
    paused = np.array([action for action in actions if action[0] != 1])
    assert 50 < len(paused) < 350
    assert np.abs(paused).max() < 0.1
    assert np.std(paused) == pytest.approx(disturbances.PAUSE_STD, rel=0.2)


def test_an_object_is_dropped_once_after_the_gripper_has_closed():
    delays, lengths = set(), set()
    for seed in range(300):
        disturb = Drop(LIMITS, draw(seed), GRIPPER)
        actions = np.array([disturb(action) for action in [OPEN] * 5 + [CLOSED] * 30])
        assert (actions[:, 0] == 0.5).all()
        assert (actions[:5] == OPEN).all()
        is_open = actions[5:, GRIPPER] == 4.0
        (start,) = np.flatnonzero(np.diff(is_open, prepend=False) & is_open)
        delays.add(int(start))
        lengths.add(int(is_open.sum()))
    assert delays == set(range(3, 13))
    assert lengths == {2, 3, 4, 5}


def test_nothing_is_dropped_before_the_gripper_has_closed():
    disturb = Drop(LIMITS, draw(), GRIPPER)
    assert all((disturb(OPEN) == OPEN).all() for _ in range(40))


def test_an_early_stop_comes_after_one_to_all_steps():
    lengths = set()
    for seed in range(100):
        disturb = EarlyStop(draw(seed), 4)
        actions = [disturb(CLOSED) for _ in range(6)]
        lengths.add(sum(action is not None for action in actions))
        assert actions[0] is CLOSED
    assert lengths == {1, 2, 3, 4}
