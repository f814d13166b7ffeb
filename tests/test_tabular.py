"""Exact solutions: a small deterministic problem against value iteration, and a bandit where only the joint counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from learner_fixtures import PLAIN, make_config, make_policy

from qtransformer.batch import Batch
from qtransformer.config import LearningConfig
from qtransformer.learner import QTransformerLearner
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy

NUM_STATES, NUM_BINS, GAMMA = 5, 3, 0.8
# A corridor; a^1 says how far right, a^2 must agree with the state's own sign, or the robot slips back to the start.
# From the last state every action with both bins 2 succeeds and ends the episode.
ACTIONS = tuple(itertools.product(range(NUM_BINS), repeat=2))


def transition(state: int, first: int, second: int) -> tuple[float, int, bool]:
    """Returns reward, next state and whether the episode terminated."""
    if state == NUM_STATES - 1:
        is_solved = first == second == 2
        return float(is_solved), state, is_solved
    if second != state % NUM_BINS:
        return 0.0, 0, False
    return 0.0, min(state + first, NUM_STATES - 1), False


def value_iteration() -> tuple[np.ndarray, np.ndarray]:
    """Returns Q^1 (states, bins) and Q^2 (states, bins, bins) of eq. 1, iterated over the tokens."""
    first, second = np.zeros((NUM_STATES, NUM_BINS)), np.zeros((NUM_STATES, NUM_BINS, NUM_BINS))
    for _ in range(200):
        for state, action in itertools.product(range(NUM_STATES), ACTIONS):
            reward, successor, is_over = transition(state, *action)
            second[state, *action] = reward + GAMMA * (0.0 if is_over else first[successor].max())
        first = second.max(axis=2)
    return first, second


def centres(tokens: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns the actions in [-1, 1] at the centres of the bins."""
    return ((2 * tokens + 1) / num_bins - 1).astype(np.float32)


def one_step_batch(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, is_over: np.ndarray) -> Batch:
    """Returns segments of one step; `observations` hold the state and its successor, (B, 2, size)."""
    shape = rewards.shape[0], 1
    return Batch(
        observations={"state": observations.astype(np.float32)},
        actions=actions[:, None],
        rewards=rewards.reshape(shape).astype(np.float32),
        terminations=is_over.reshape(shape),
        has_successor=np.ones(shape, bool),
        monte_carlo_returns=rewards.reshape(shape).astype(np.float32),
        is_success=rewards > 0,
        is_valid=np.ones(shape, bool),
    )


def all_transitions() -> Batch:
    """Returns every state with every action, once."""
    pairs = list(itertools.product(range(NUM_STATES), ACTIONS))
    results = [transition(state, *action) for state, action in pairs]
    one_hot = np.eye(NUM_STATES)
    observations = np.stack([one_hot[[state, each[1]]] for (state, _), each in zip(pairs, results, strict=True)])
    actions = centres(np.array([action for _, action in pairs]), NUM_BINS)
    return one_step_batch(
        observations, actions, np.array([each[0] for each in results]), np.array([each[2] for each in results])
    )


def learnt_values(policy: GreedyPolicy, scale: ReturnScale) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the network says of Q^1 and Q^2, in the unit of the rewards."""
    states, firsts = np.divmod(np.arange(NUM_STATES * NUM_BINS), NUM_BINS)
    observations = {"state": torch.eye(NUM_STATES)[states].unsqueeze(1)}
    tokens = torch.stack([torch.from_numpy(firsts), torch.zeros(len(firsts), dtype=torch.long)], dim=-1).unsqueeze(1)
    with torch.no_grad():
        q_values = scale.from_unit(policy.model(observations, tokens).q_values)[:, 0].numpy()
    q_values = q_values.reshape(NUM_STATES, NUM_BINS, 2, NUM_BINS)
    return q_values[:, 0, 0], q_values[:, :, 1]


def test_value_iteration_by_hand():
    first, second = value_iteration()
    assert first[4].tolist() == pytest.approx([0.64 * 0.8 / 0.64, 0.8, 1.0])
