"""What a policy says of logged steps: exact for values set by hand, and what it says when it acts for all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_fixtures import UNIT, enlarge, make_batch, make_config, make_policy, set_values, to_torch

from qtransformer.config import LearningConfig, RunError
from qtransformer.normalization import ReturnScale
from qtransformer.predictions import Predictions, Steps, concatenate, predict

TABLE = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.5], [0.7, 0.1, 0.1, 0.1]]
PLAIN_MAXIMUM = LearningConfig(support_temperature=0.0)


def make_steps(num_segments=3, positions=(2, 0, 1), **changes):
    batch = make_batch(num_segments, **changes)
    return Steps(to_torch(batch), torch.tensor(positions))


@pytest.fixture
def table_policy():
    """Q = TABLE[token][bin], whatever the policy sees."""
    policy = make_policy(make_config(PLAIN_MAXIMUM)).eval()
    set_values(policy.model, TABLE)
    return policy


def test_values_worked_by_hand(table_policy):
    """V is the maximum of the first token, the greedy action's Q that of the last; the logged bin of it is bin 1."""
    actions = np.full((3, 3, 3), -0.25, np.float32)
    predictions = predict(table_policy, make_steps(actions=actions), UNIT, 0.9)
    np.testing.assert_allclose(predictions.values, 0.4, rtol=1e-5)
    np.testing.assert_allclose(predictions.q_greedy, 0.7, rtol=1e-5)
    np.testing.assert_allclose(predictions.q_logged, 0.1, rtol=1e-5)


def test_values_come_in_the_unit_of_the_log(table_policy):
    predictions = predict(table_policy, make_steps(), ReturnScale(-50.0, 0.0), 0.9)
    np.testing.assert_allclose(predictions.values, -50 + 50 * 0.4, rtol=1e-5)
    np.testing.assert_allclose(predictions.q_greedy, -50 + 50 * 0.7, rtol=1e-5)


def test_backups_worked_by_hand(table_policy):
    """R + 0.9 V, with V = -30; R alone where the episode terminated; unknown where no successor was logged."""
    ends, open_ends = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    ends[1, 0], open_ends[2, 1], open_ends[1, 0] = True, False, False
    rewards = np.full((3, 3), 2, np.float32)
    steps = make_steps(rewards=rewards, terminations=ends, has_successor=open_ends)
    predictions = predict(table_policy, steps, ReturnScale(-50.0, 0.0), 0.9)
    np.testing.assert_allclose(predictions.backups, [2 - 27, 2, np.nan], rtol=1e-5)
    assert predictions.terminations.tolist() == [False, True, False]


def test_returns_are_those_of_the_step_asked_for(table_policy):
    steps = make_steps()
    expected = [steps.batch.monte_carlo_returns[row, position] for row, position in enumerate((2, 0, 1))]
    np.testing.assert_array_equal(predict(table_policy, steps, UNIT, 0.9).returns, expected)


@pytest.mark.parametrize("algorithm", ["q_transformer", "implicit_q_learning"])
def test_what_follows_the_step_changes_nothing_but_the_backup(algorithm):
    """Steps at position 0 and 1 see the frames up to them, their backups one frame more."""
    policy = enlarge(make_policy(make_config(algorithm=algorithm)))
    steps = make_steps(2, (0, 1))
    before = predict(policy, steps, UNIT, 0.9)
    state = steps.batch.observations["state"].clone()
    state[0, 2:], state[1, 3:] = 9.0, 9.0
    later = predict(policy, Steps(replace(steps.batch, observations={"state": state}), steps.positions), UNIT, 0.9)
    for name in ("values", "q_logged", "q_greedy", "backups"):
        np.testing.assert_array_equal(getattr(before, name), getattr(later, name))
    state[0, 1], state[1, 2] = 9.0, 9.0
    changed = predict(policy, Steps(replace(steps.batch, observations={"state": state}), steps.positions), UNIT, 0.9)
    np.testing.assert_array_equal(before.values, changed.values)
    assert (before.backups != changed.backups).all()


def test_a_value_head_says_v_and_no_equation_ties_it_to_the_tokens():
    policy = enlarge(make_policy(make_config(algorithm="implicit_q_learning")))
    steps = make_steps()
    predictions = predict(policy, steps, UNIT, 0.9)
    with torch.no_grad():
        expected = policy.model.state_values({"state": steps.batch.observations["state"][:, :-1]})
    np.testing.assert_allclose(predictions.values, expected[torch.arange(3), steps.positions], rtol=1e-6)
    assert np.isnan(predictions.q_greedy).all()
    assert np.isfinite(predictions.q_logged).all()


def test_one_value_that_is_not_finite_is_named(table_policy):
    steps = make_steps()
    steps.batch.observations["state"][1, 0] = torch.nan
    with pytest.raises(RunError, match=r"values must be finite, got NaN or infinity; the run diverged: train again"):
        predict(table_policy, steps, UNIT, 0.9)


def test_parts_are_joined_in_order(table_policy):
    parts = [predict(table_policy, make_steps(seed=seed), UNIT, 0.9) for seed in (0, 1)]
    joined = concatenate(parts)
    for name in Predictions.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(joined, name)[3:], getattr(parts[1], name))
