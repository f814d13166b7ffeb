"""Targets by hand: the chain over action tokens, the reward at its end, the bound, the supported arg-max."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_fixtures import PLAIN, enlarge, make_batch, make_config, make_learner, set_values, to_torch

from qtransformer import backup
from qtransformer.normalization import ReturnScale

# Q of 3 tokens x 4 bins, whatever the model sees; the maxima are 0.5, 0.6, 0.7
TABLE = [[0.1, 0.5, 0.2, 0.3], [0.6, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.7]]
NO = np.zeros((1, 2), bool)


def targets_of(learning, scale=None, **changes):
    """Targets and their mask for one segment of 2 steps x 3 tokens, values as in TABLE."""
    config = make_config(replace(PLAIN, discount=0.5, **learning), window=2)
    learner = make_learner(config, scale or ReturnScale(0.0, 1.0))
    set_values(learner.target.model, TABLE)
    fields = {"rewards": np.array([[0.2, 0.1]], np.float32), **changes}
    targets = learner.targets(to_torch(make_batch(1, num_steps=2, **fields)))
    return targets.values[0], targets.is_known[0]


def test_the_chain_of_pure_functions_by_hand():
    # 2 steps x 3 tokens: token i takes the value of token i + 1, the last one R + gamma V' or, at the end, R
    values = torch.tensor([[[0.9, 0.5, 0.4], [0.8, 0.3, 0.2]]])
    rewards, is_over, next_values = (
        torch.tensor([[0.1, 0.7]]),
        torch.tensor([[False, True]]),
        torch.tensor([[0.8, 0.6]]),
    )
    last = backup.environment_step_targets(rewards, is_over, next_values, 0.5)
    assert last.tolist() == [pytest.approx([0.1 + 0.5 * 0.8, 0.7])]
    targets = backup.one_step_targets(values, last)
    assert targets[0].tolist() == [pytest.approx([0.5, 0.4, 0.5]), pytest.approx([0.3, 0.2, 0.7])]


# Four segments of five steps, as in the docstring: to the segment's end; cut off after step 2, its successor logged or
# not; terminated at step 2. Rewards 1, 2, 4, 8, 16 tell the steps apart, values 100, 200, ... the bootstraps.
REWARDS = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], *[[1.0, 2.0, 4.0, 0.0, 0.0]] * 3])
TERMINATIONS = torch.tensor([[False] * 5] * 3 + [[False, False, True, False, False]])
IS_KNOWN = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3, [True] * 3 + [False] * 2])
NEXT_VALUES = torch.tensor([[100.0, 200.0, 300.0, 400.0, 500.0]] * 4)


def many_steps(num_steps, discount=0.5):
    targets = backup.environment_steps_targets(REWARDS, TERMINATIONS, NEXT_VALUES, IS_KNOWN, discount, num_steps)
    return [row[known].tolist() for row, known in zip(targets, IS_KNOWN, strict=True)]


def test_environment_steps_by_hand():
    last = 4 + 300 / 2
    assert many_steps(3) == [
        [1 + 2 / 2 + 4 / 4 + 300 / 8, 2 + 4 / 2 + 8 / 4 + 400 / 8, 4 + 8 / 2 + 16 / 4 + 500 / 8, 8 + 8 + 125, 16 + 250],
        [1 + 2 / 2 + 4 / 4 + 300 / 8, 2 + 4 / 2 + 300 / 4, last],
        [1 + 2 / 2 + 200 / 4, 2 + 200 / 2],
        [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4],
    ]
    assert many_steps(2) == [
        [1 + 2 / 2 + 200 / 4, 2 + 4 / 2 + 300 / 4, 4 + 8 / 2 + 400 / 4, 8 + 8 + 125, 16 + 250],
        [1 + 2 / 2 + 200 / 4, 2 + 4 / 2 + 300 / 4, last],
        [1 + 2 / 2 + 200 / 4, 2 + 200 / 2],
        [1 + 2 / 2 + 200 / 4, 2 + 4 / 2, 4],
    ]


def test_nothing_after_a_termination_counts():
    terminations = torch.tensor([[False, True, False, False, False]])
    arguments = (REWARDS[:1], terminations, NEXT_VALUES[:1], IS_KNOWN[:1], 0.5)
    assert backup.environment_steps_targets(*arguments, 3)[0, :2].tolist() == [1 + 2 / 2, 2]


def test_one_environment_step_is_the_one_step_target():
    one_step = backup.environment_step_targets(REWARDS, TERMINATIONS, NEXT_VALUES, 0.98)
    arguments = (REWARDS, TERMINATIONS, NEXT_VALUES, IS_KNOWN, 0.98)
    assert torch.equal(backup.environment_steps_targets(*arguments, 1), one_step)


def test_segments_of_one_step_have_no_more_to_use():
    alone = (REWARDS[:, :1], TERMINATIONS[:, :1], NEXT_VALUES[:, :1], IS_KNOWN[:, :1], 0.98)
    one_step = backup.environment_step_targets(*alone[:3], 0.98)
    assert torch.equal(backup.environment_steps_targets(*alone, 7), one_step)


def test_more_steps_than_there_are_use_all_of_them():
    assert many_steps(5) == many_steps(50)
    assert many_steps(5)[0][0] == 1 + 2 / 2 + 4 / 4 + 8 / 8 + 16 / 16 + 500 / 32


def test_one_step_targets_of_the_learner_by_hand():
    targets, has_target = targets_of({})
    assert targets.tolist() == [pytest.approx([0.6, 0.7, 0.2 + 0.5 * 0.5]), pytest.approx([0.6, 0.7, 0.1 + 0.5 * 0.5])]
    assert has_target.all()


@pytest.mark.parametrize("step", [0, 1])
def test_the_reward_enters_the_last_token_alone_and_in_full(step):
    rewards = np.array([[0.2, 0.1]], np.float32)
    before, _ = targets_of({}, rewards=rewards)
    rewards[0, step] += 0.3
    after, _ = targets_of({}, rewards=rewards)
    expected = torch.zeros(2, 3)
    expected[step, -1] = 0.3
    torch.testing.assert_close(after - before, expected)


def test_a_termination_drops_the_next_value_and_only_there():
    targets, has_target = targets_of({}, terminations=np.array([[False, True]]))
    assert targets[:, -1].tolist() == pytest.approx([0.2 + 0.5 * 0.5, 0.1])
    assert has_target.all()


def test_the_observation_after_a_termination_does_not_matter():
    config = make_config(replace(PLAIN, discount=0.9), window=2)
    learner = make_learner(config)
    batch = make_batch(2, num_steps=2, terminations=np.array([[False, True], [False, False]]))
    changed = {"state": batch.observations["state"].copy()}
    changed["state"][:, -1] += 5
    before, after = (learner.targets(to_torch(each)).values for each in (batch, replace(batch, observations=changed)))
    assert torch.equal(before[0], after[0])
    assert (before[1, -1, -1] - after[1, -1, -1]).abs() > 1e-4
    assert torch.equal(before[1, :, :-1], after[1, :, :-1])


def test_a_truncation_bootstraps_where_its_successor_is_known():
    targets, has_target = targets_of({}, has_successor=np.array([[True, True]]))
    assert targets[1, -1].item() == pytest.approx(0.1 + 0.5 * 0.5)
    assert has_target.all()


def test_without_a_successor_the_last_token_has_no_target():
    _, has_target = targets_of({}, has_successor=np.array([[True, False]]))
    assert has_target.tolist() == [[True, True, True], [True, True, False]]
    _, has_target = targets_of({"backup": "n_step"}, has_successor=np.array([[True, False]]))
    assert has_target.tolist() == [[True] * 3, [False] * 3]
    _, has_target = targets_of({}, has_successor=NO, terminations=~NO)  # a termination needs none
    assert has_target.all()


def test_padding_has_no_target():
    for chosen in ("one_step", "n_step"):
        _, has_target = targets_of({"backup": chosen}, is_valid=np.array([[True, False]]))
        assert has_target.tolist() == [[True] * 3, [False] * 3]


def test_n_step_shares_the_last_target():
    targets, _ = targets_of({"backup": "n_step"})
    # R + gamma Q of the *last* token of the next step's greedy action: 0.7 in the table
    assert targets.tolist() == [pytest.approx([0.2 + 0.5 * 0.7] * 3), pytest.approx([0.1 + 0.5 * 0.7] * 3)]
    assert torch.equal(backup.shared_targets(targets[:, -1:], 3).squeeze(1), targets)


def test_n_step_rolls_the_next_action_out_greedily_step_by_step():
    learner = make_learner(make_config(replace(PLAIN, discount=0.5, backup="n_step"), window=2))
    enlarge(learner.target)
    batch = to_torch(make_batch(3, num_steps=2, rewards=np.zeros((3, 2), np.float32)))
    targets = learner.targets(batch).values
    for step in range(2):  # the next step sees the frames of the segment up to its own
        frames = {key: value[:, 1 : step + 2] for key, value in batch.observations.items()}
        with torch.no_grad():
            outputs = learner.target(frames, torch.full((3,), step + 1))
        torch.testing.assert_close(targets[:, step, 0], 0.5 * outputs.q_max[:, -1])


def test_advantages_of_logged_actions_by_hand():
    learner = make_learner(make_config(replace(PLAIN, discount=0.5), window=2))
    set_values(learner.target.model, TABLE)
    rewards, ends = np.array([[0.2, 0.1]], np.float32), np.array([[False, True]])
    batch = make_batch(1, num_steps=2, rewards=rewards, terminations=ends)
    # R + gamma V(s') - V(s), where V = 0.5 is the value of the first token
    advantages = learner.targets(to_torch(batch)).advantages
    assert advantages[0].tolist() == pytest.approx([0.2 + 0.5 * 0.5 - 0.5, 0.1 - 0.5])


def test_n_step_of_a_single_token_is_one_step():
    last = torch.rand(2, 3)
    assert torch.equal(backup.shared_targets(last, 1), backup.one_step_targets(torch.rand(2, 3, 1), last))


def test_the_monte_carlo_bound_is_a_value_not_a_logit():
    returns = np.array([[0.9, 0.65]], np.float32)
    for chosen, last in (("one_step", 0.65), ("n_step", 0.65)):
        targets, _ = targets_of({"backup": chosen, "monte_carlo_bound": True}, monte_carlo_returns=returns)
        assert targets[0].tolist() == pytest.approx([0.9] * 3)  # a bound on logits would give 0.711
        assert targets[1, -1].item() == pytest.approx(last)
    targets, _ = targets_of({"monte_carlo_bound": True}, monte_carlo_returns=returns)
    assert targets[1].tolist() == pytest.approx([0.65, 0.7, 0.65])  # max(MC, target), token by token


def test_rewards_and_returns_pass_through_the_return_scale():
    # returns in [-4, 1]: V' = 0.5 is the return -1.5, so the target of the last token is -1 + 0.5 * -1.5 = -1.75
    scale, rewards = ReturnScale(-4.0, 1.0), np.full((1, 2), -1.0, np.float32)
    targets, _ = targets_of({}, scale, rewards=rewards, terminations=np.array([[False, True]]))
    assert targets.tolist() == [pytest.approx([0.6, 0.7, 0.45]), pytest.approx([0.6, 0.7, 0.6])]
    # the last token of the next action is worth 0.7, the return -0.5: -1 + 0.5 * -0.5 = -1.25
    targets, _ = targets_of({"backup": "n_step"}, scale, rewards=rewards, terminations=np.array([[False, True]]))
    assert targets.tolist() == [pytest.approx([0.55] * 3), pytest.approx([0.6] * 3)]
    returns = np.array([[-0.5, -4.0]], np.float32)
    targets, _ = targets_of({"monte_carlo_bound": True}, scale, rewards=rewards, monte_carlo_returns=returns)
    assert targets[0].tolist() == pytest.approx([0.7, 0.7, 0.7])


def policy(q_values, density, threshold, temperature):
    return backup.policy_probabilities(
        torch.tensor(q_values), torch.tensor(density).log(), threshold, temperature
    ).tolist()


def test_the_policy_by_hand():
    q_values, density = [0.9, 0.5, 0.1, 0.4], [0.05, 0.25, 0.4, 0.3]
    assert policy(q_values, density, 0.0, 0.0) == [1, 0, 0, 0]  # the plain maximum
    assert policy(q_values, density, 0.5, 0.0) == [0, 1, 0, 0]  # bin 0 has 1/8 of the likeliest bin's density
    assert policy(q_values, density, 0.7, 0.0) == [0, 0, 0, 1]  # ... and now bin 1, with 5/8, is out too
    weights = np.array(density) * np.exp(np.array(q_values) / 0.5)
    assert policy(q_values, density, 0.0, 0.5) == pytest.approx((weights / weights.sum()).tolist())
    weights[0] = 0.0
    assert policy(q_values, density, 0.5, 0.5) == pytest.approx((weights / weights.sum()).tolist())
    assert policy(q_values, density, 0.0, math.inf) == pytest.approx(density)


def test_of_equal_values_the_lowest_bin_is_chosen():
    assert policy([0.2, 0.7, 0.7, 0.7], [0.25] * 4, 0.0, 0.0) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("probabilities", "median"),
    [
        ([1.0, 0.0, 0.0], 0),
        ([0.0, 0.0, 1.0], 2),
        ([0.25, 0.5, 0.25], 1),
        ([0.5, 0.25, 0.25], 0),  # exactly half lies in bin 0
        ([0.4, 0.25, 0.35], 1),  # the mode is bin 0, where a cut tail piled up
        ([0.45, 0.0, 0.55], 2),  # of two separate modes the likelier one
        ([0.1, 0.1, 0.1], 2),  # a sum that rounding left short
    ],
)
def test_the_median_by_hand(probabilities, median):
    assert backup.median_bins(torch.tensor(probabilities)).item() == median


TENSORS = st.integers(0, 9999).map(lambda seed: torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(seed)))


@given(TENSORS)
def test_temperature_zero_without_a_threshold_is_the_plain_arg_max(tensors):
    chosen = backup.median_bins(backup.policy_probabilities(tensors[0], 9 * tensors[1], 0.0, 0.0))
    assert torch.equal(chosen, tensors[0].argmax(dim=-1))


@given(TENSORS, st.floats(0.01, 0.99))
def test_the_threshold_rule_is_the_maximum_over_supported_bins(tensors, threshold):
    density = tensors[1].softmax(dim=-1)
    is_supported = density >= threshold * density.amax(dim=-1, keepdim=True)
    best = torch.where(is_supported, tensors[0], -torch.inf).argmax(dim=-1)
    assert torch.equal(backup.median_bins(backup.policy_probabilities(tensors[0], tensors[1], threshold, 0.0)), best)


@given(TENSORS, st.floats(0.05, 5))
def test_the_policy_maximises_value_less_divergence(tensors, temperature):
    q_values, logits = tensors[0].double().sigmoid(), tensors[1].double()
    probabilities = backup.policy_probabilities(q_values, logits, 0.0, temperature)

    def objective(each):
        return (each * (q_values - temperature * (each.log() - logits.log_softmax(dim=-1)))).sum(dim=-1)

    others = (probabilities.log() + 0.1 * tensors[1].flip(-1)).softmax(dim=-1)
    assert (objective(probabilities) >= objective(others) - 1e-12).all()


def test_values_at_picks_the_value_of_the_bin():
    q_values = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    assert backup.values_at(q_values, torch.tensor([[1, 0]])).tolist() == [[pytest.approx(0.2), pytest.approx(0.3)]]


def test_the_target_takes_the_maximum_over_supported_bins_alone():
    learner = make_learner(
        make_config(replace(PLAIN, support_threshold=0.5, density_weight=1.0, discount=0.5), window=2)
    )
    set_values(learner.target.model, TABLE)
    with torch.no_grad():
        learner.target.model.density_head.bias[:, 1] = 5.0  # bin 1 alone is supported: Q 0.5, 0.1, 0.2
    targets = learner.targets(to_torch(make_batch(1, num_steps=2, rewards=np.array([[0.2, 0.1]], np.float32))))
    assert targets.values[0, 0].tolist() == pytest.approx([0.1, 0.2, 0.2 + 0.5 * 0.5])


def test_the_spread_of_actions_adds_the_variances_of_their_tokens():
    q_values = torch.tensor([[[0.0, 1.0], [0.2, 0.6]]])
    logits = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
    expected = (0.25 + 0.25 * 0.3**2 + 0.75 * 0.1**2) ** 0.5
    torch.testing.assert_close(backup.action_spread(q_values, logits), torch.tensor([expected]))
    assert backup.action_spread(torch.full((3, 2, 4), 0.7), torch.randn(3, 2, 4)).abs().max() < 1e-6


def test_the_spread_of_actions_is_that_of_their_values():
    """Where each token's Q is the mean of the next one's (eq. 1 with a mean): all four actions, one by one."""
    first = torch.tensor([0.3, 0.7])
    values = torch.tensor([[0.1, 0.5], [0.6, 0.9]])
    given = torch.tensor([[0.4, 0.6], [0.2, 0.8]])
    q_first = (given * values).sum(dim=1)
    actions = (first.unsqueeze(-1) * given).flatten()
    mean = (actions * values.flatten()).sum()
    variance = (actions * (values.flatten() - mean) ** 2).sum()
    spreads = torch.stack(
        [
            backup.action_spread(torch.stack([q_first, values[bin_]]), torch.stack([first, given[bin_]]).log())
            for bin_ in range(2)
        ]
    )
    torch.testing.assert_close((first * spreads**2).sum(), variance)
