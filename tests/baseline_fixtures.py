"""Learners by name, and bandits of two actions that tell them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from learner_fixtures import UNIT, make_batch, make_config, make_policy, noise_of, to_torch

from qtransformer.baselines import LEARNERS
from qtransformer.config import LearningConfig

ONE_STATE, ONE_FRAME = {"state": torch.zeros(1, 1, 2)}, torch.tensor([1])


def make_baseline(algorithm, *, window=1, num_dimensions=2, scale=UNIT, steps=50, num_atoms=1, **learning) -> Any:
    settings = LearningConfig(**{"label_width": 0.0, **learning})
    config = make_config(settings, algorithm=algorithm, window=window, steps=steps, num_atoms=num_atoms)
    policy = make_policy(config, num_dimensions=num_dimensions)
    return LEARNERS[algorithm](policy, config, scale, noise_of(policy))


def two_modes(num_segments=8, **changes):
    """Actions of which 5 in 8 are (bin 3, bin 0), the others (bin 0, bin 3), at equal observations."""
    is_mode = np.arange(num_segments) % 8 < 5
    actions = np.where(is_mode[:, None], [0.75, -0.75], [-0.75, 0.75]).astype(np.float32)[:, None]
    observations = {"state": np.zeros((num_segments, 2, 2), np.float32)}
    return make_batch(
        num_segments, num_steps=1, num_dimensions=2, actions=actions, observations=observations, **changes
    )


def paid_modes(paid, other=0.0, num_segments=8):
    """`two_modes` as episodes of one step, of which the rare action is paid `paid` and the frequent one `other`."""
    is_mode = (np.arange(num_segments) % 8 < 5)[:, None]
    rewards = np.where(is_mode, other, paid).astype(np.float32)
    return two_modes(
        num_segments, rewards=rewards, monte_carlo_returns=rewards, terminations=np.ones((num_segments, 1), bool)
    )


def greedy_tokens(learner):
    with torch.no_grad():
        return learner.policy.eval()(ONE_STATE, ONE_FRAME).tokens.tolist()


def one_step(reward=0.25, **changes):
    """One step of the action (bin 2, bin 1)."""
    actions, rewards = np.array([[[0.25, -0.25]]], np.float32), np.array([[reward]], np.float32)
    return to_torch(make_batch(1, num_steps=1, num_dimensions=2, actions=actions, rewards=rewards, **changes))
