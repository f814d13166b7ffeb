"""Cloning: it finds the mode of the log, and nothing but the actions tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from learner_fixtures import UNIT, assert_same_bits, copied, make_batch, make_config, make_policy, to_torch

from qtransformer.baselines import LEARNERS, BehaviourCloning
from qtransformer.config import LearningConfig
from qtransformer.learner import QTransformerLearner


def make_cloning(**learning):
    config = make_config(LearningConfig(**{"label_width": 0.0, **learning}), algorithm="behaviour_cloning", window=1)
    return BehaviourCloning(make_policy(config, num_dimensions=2), config, UNIT)


def two_modes(num_segments=64):
    """Actions of which 5 in 8 are (bin 3, bin 0), the others (bin 0, bin 3), at equal observations."""
    is_mode = np.arange(num_segments) % 8 < 5
    actions = np.where(is_mode[:, None], [0.75, -0.75], [-0.75, 0.75]).astype(np.float32)[:, None]
    observations = {"state": np.zeros((num_segments, 2, 2), np.float32)}
    return make_batch(num_segments, num_steps=1, num_dimensions=2, actions=actions, observations=observations)


def test_cloning_picks_the_joint_mode():
    learner, batch = make_cloning(learning_rate=0.03), two_modes()
    figures = [learner.update(batch) for _ in range(60)][-1]
    policy = learner.policy.eval()
    with torch.no_grad():
        outputs = policy({"state": torch.zeros(1, 1, 2)}, torch.tensor([1]))
        density = policy.model.first_token_outputs({"state": torch.zeros(1, 1, 2)}).density_logits.softmax(dim=-1)
    assert outputs.tokens.tolist() == [[3, 0]]
    torch.testing.assert_close(density[0, 0], torch.tensor([0.375, 0, 0, 0.625]), rtol=0, atol=0.05)
    # the first token is right 5 times in 8; given it, the second always
    assert abs(figures["accuracy"].item() - (0.625 + 1) / 2) < 1e-3


def test_cloning_does_not_use_rewards():
    learners, batch = [make_cloning(), make_cloning()], two_modes()
    other = replace(
        batch,
        rewards=batch.rewards + 5,
        monte_carlo_returns=batch.monte_carlo_returns + 5,
        terminations=~batch.terminations,
        has_successor=~batch.has_successor,
        is_success=~batch.is_success,
    )
    figures = [learner.update(each) for learner, each in zip(learners, (batch, other), strict=True)]
    assert_same_bits(figures[0], figures[1])
    assert_same_bits(*(learner.policy.state_dict() for learner in learners))


def test_cloning_ignores_padding():
    batch = make_batch(4, num_steps=1, num_dimensions=2, is_valid=np.array([[True], [True], [False], [True]]))
    changed = replace(batch, actions=np.where(batch.is_valid[..., None], batch.actions, 0.99).astype(np.float32))
    losses = [make_cloning().loss(to_torch(each))[0] for each in (batch, changed)]
    assert torch.equal(losses[0], losses[1])


def test_a_cloned_state_round_trips():
    learner, restored = make_cloning(), make_cloning()
    learner.update(two_modes())
    restored.load_state(*map(copied, learner.state()))
    for each in (learner, restored):
        each.update(two_modes())
    assert_same_bits(learner.policy.state_dict(), restored.policy.state_dict())


def test_algorithms_by_name():
    assert {"q_transformer": QTransformerLearner, "behaviour_cloning": BehaviourCloning} == LEARNERS
