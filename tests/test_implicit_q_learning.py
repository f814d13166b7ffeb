"""IQL: every term by hand, the value of a bandit, and nothing asked of actions that were not logged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from baseline_fixtures import greedy_tokens, make_baseline, one_step, paid_modes
from learner_fixtures import UNIT, loss_of, make_batch, set_values, to_torch

from qtransformer.baselines import implicit_weights
from qtransformer.normalization import ReturnScale

Q_TABLE = [[0.9] * 4, [0.3, 0.6, 0.2, 0.1]]  # the first token's must not matter


def known_learner(scale=UNIT, value=0.5, **learning):
    """Q = 0.6 of the action (any, bin 1), V = 0.5 and a uniform density, whatever the state."""
    learner = make_baseline("implicit_q_learning", scale=scale, **learning)
    for policy in (learner.policy, learner.target):
        set_values(policy.model, Q_TABLE)
        with torch.no_grad():
            policy.model.value_head.weight.zero_()
            policy.model.value_head.bias.fill_(math.log(value / (1 - value)))
    return learner


@pytest.mark.parametrize(("value", "level"), [(0.5, 0.9), (0.8, 0.1)])
def test_the_terms_of_the_loss_by_hand(value, level):
    loss, figures = loss_of(known_learner(value=value, discount=0.5), one_step())
    backup, weight = 0.25 + 0.5 * value, math.exp(10 * (0.6 - value))
    expected = {
        "expectile_error": level * (0.6 - value) ** 2,
        "squared_error": 0.5 * (0.6 - backup) ** 2,
        "cross_entropy": weight * math.log(4),
        "imitation_weight": weight,
        "value": value,
        "q_logged": 0.6,
        "target": backup,
    }
    assert {name: figures[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(sum(list(expected.values())[:3]), rel=1e-4)


def test_backups_in_the_unit_of_the_log():
    learner = known_learner(ReturnScale(-2.0, 2.0), discount=0.5, value=0.75)  # V = 1
    assert learner.implicit_targets(one_step()).backups.item() == pytest.approx((0.25 + 0.5 + 2) / 4)
    assert learner.implicit_targets(one_step(reward=0.65)).backups.item() == pytest.approx((0.65 + 0.5 + 2) / 4)
    assert loss_of(learner, one_step())[1]["value"].item() == pytest.approx(1.0)


def test_where_the_backup_ends():
    yes, no = np.ones((1, 1), bool), np.zeros((1, 1), bool)
    learner = known_learner(discount=0.5)
    over = learner.implicit_targets(one_step(terminations=yes, has_successor=no))
    assert (over.backups.item(), over.is_known.item()) == (0.25, True)
    assert not learner.implicit_targets(one_step(has_successor=no)).is_known.item()
    assert not learner.implicit_targets(one_step(is_valid=no)).is_known.item()
    assert loss_of(learner, one_step(has_successor=no))[1]["squared_error"].item() == 0


def test_unlogged_actions_are_never_asked():
    learner, batch = known_learner(), one_step()
    before = learner.implicit_targets(batch)
    set_values(learner.target.model, [[0.1] * 4, [0.99, 0.6, 0.99, 0.99]])
    assert all(torch.equal(left, right) for left, right in zip(before, learner.implicit_targets(batch), strict=True))
    set_values(learner.target.model, [[0.1] * 4, [0.99, 0.7, 0.99, 0.99]])
    assert learner.implicit_targets(batch).q_logged.item() == pytest.approx(0.7)


def test_which_network_each_target_is_of():
    """Eq. 5 takes Q of the target network, eq. 6 the V that is being learnt."""
    learner, batch = known_learner(), one_step()
    before = learner.implicit_targets(batch)
    set_values(learner.policy.model, [[0.1] * 4] * 2)
    with torch.no_grad():
        learner.target.model.value_head.bias.fill_(1.0)
    assert all(torch.equal(left, right) for left, right in zip(before, learner.implicit_targets(batch), strict=True))


def test_returns_over_several_environment_steps():
    learner = known_learner(discount=0.5, environment_steps=2)
    rewards = np.array([[0.25, 0.125]], np.float32)
    batch = make_batch(1, num_steps=2, num_dimensions=2, rewards=rewards)
    assert learner.implicit_targets(to_torch(batch)).backups.tolist() == [[0.25 + 0.5 * 0.125 + 0.25 * 0.5]]


def test_weights_by_hand():
    weights = implicit_weights(torch.tensor([0.0, 0.1, -0.3, 1.0]), 10)
    torch.testing.assert_close(weights, torch.tensor([1.0, math.e, math.exp(-3), 100.0]))


@pytest.mark.parametrize(("level", "num_atoms"), [(0.5, 51), (0.9, 1)])
def test_the_value_of_a_bandit_is_the_expectile(level, num_atoms):
    """3 in 8 actions are paid 1: the minimiser of 3 l (1 - V)^2 + 5 (1 - l) V^2 is 3 l / (3 l + 5 (1 - l))."""
    settings = {"learning_rate": 0.02, "polyak": 0.8, "weight_decay": 0.0, "num_atoms": num_atoms}
    learner, batch = make_baseline("implicit_q_learning", expectile=level, steps=120, **settings), paid_modes(1.0)
    figures = [learner.update(batch) for _ in range(120)][-1]
    assert figures["value"].item() == pytest.approx(3 * level / (3 * level + 5 * (1 - level)), abs=0.02)
    assert figures["q_logged"].item() == pytest.approx(3 / 8, abs=0.01)
    assert greedy_tokens(learner) == [[0, 3]]  # cloning takes the frequent action


def test_inverse_temperature_0_is_cloning():
    learner, batch = make_baseline("implicit_q_learning", inverse_temperature=0.0), paid_modes(1.0)
    cross_entropy = loss_of(make_baseline("behaviour_cloning"), to_torch(batch))[1]["cross_entropy"]
    torch.testing.assert_close(loss_of(learner, to_torch(batch))[1]["cross_entropy"], cross_entropy)
