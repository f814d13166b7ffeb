"""Exact solutions: a small deterministic problem against value iteration, and a bandit where only the joint counts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_fixtures import PLAIN, UNIT, make_config, make_policy, noise_of

from qtransformer.batch import Batch
from qtransformer.config import LearningConfig
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy
from qtransformer.presets import PRESETS
from qtransformer.q_learning import QTransformerLearner

NUM_STATES, NUM_BINS, GAMMA = 5, 3, 0.8
ACTIONS = tuple(itertools.product(range(NUM_BINS), repeat=2))
SCALE = ReturnScale(-0.5, 1.5)


def transition(state: int, speed: int, grip: int) -> tuple[float, int, bool]:
    """Returns reward, next state and whether the episode terminated.

    A corridor of five places: the right grip (state modulo 3) lets the robot move by its speed. With a wrong one it
    falls at full speed, which ends the episode, and else slips back to the start. In the last place full speed with
    the right grip is the goal: reward 1, the end.
    """
    if grip != state % NUM_BINS:
        return 0.0, 0, speed == 2
    if state == NUM_STATES - 1:
        return float(speed == 2), state, speed == 2
    return 0.0, min(state + speed, NUM_STATES - 1), False


def value_iteration() -> tuple[np.ndarray, np.ndarray]:
    """Returns Q^1 (states, bins) and Q^2 (states, bins, bins) of eq. 1, iterated over the tokens."""
    first, second = np.zeros((NUM_STATES, NUM_BINS)), np.zeros((NUM_STATES, NUM_BINS, NUM_BINS))
    for _ in range(200):
        for state, action in itertools.product(range(NUM_STATES), ACTIONS):
            reward, successor, is_over = transition(state, *action)
            second[state, *action] = reward + GAMMA * (0.0 if is_over else first[successor].max())
        first = second.max(axis=2)
    return first, second


def one_step_batch(observations: np.ndarray, tokens: np.ndarray, rewards: np.ndarray, is_over: np.ndarray) -> Batch:
    """Returns segments of one step; `observations` hold the state and its successor, (B, 2, size)."""
    num_bins = NUM_BINS if tokens.shape[1] == 2 else BANDIT_BINS
    rewards = rewards[:, None].astype(np.float32)
    return Batch(
        observations={"state": observations.astype(np.float32)},
        actions=((2 * tokens + 1) / num_bins - 1).astype(np.float32)[:, None],  # centres of the bins of [-1, 1]
        rewards=rewards,
        terminations=is_over[:, None],
        has_successor=np.ones_like(is_over)[:, None],
        monte_carlo_returns=rewards,
        is_success=rewards[:, 0] > 0,
        is_relabelled=np.zeros(len(rewards), bool),
        is_valid=np.ones(rewards.shape, bool),
        frames=np.tile(np.arange(2), (len(rewards), 1)),
    )


def all_transitions() -> Batch:
    """Returns every state with every action, once."""
    pairs = list(itertools.product(range(NUM_STATES), ACTIONS))
    rewards, successors, is_over = map(np.array, zip(*(transition(s, *a) for s, a in pairs), strict=True))
    states = np.array([state for state, _ in pairs])
    observations = np.eye(NUM_STATES)[np.stack([states, successors], axis=1)]
    return one_step_batch(observations, np.array([action for _, action in pairs]), rewards, is_over)


def learnt_values(policy: GreedyPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the network says of Q^1 and Q^2, in the unit of the rewards."""
    states, speeds = np.divmod(np.arange(NUM_STATES * NUM_BINS), NUM_BINS)
    observations = {"state": torch.eye(NUM_STATES)[states].unsqueeze(1)}
    tokens = torch.from_numpy(np.stack([speeds, np.zeros_like(speeds)], axis=1)).unsqueeze(1)
    with torch.no_grad():
        q_values = SCALE.from_unit(policy.model(observations, tokens).q_values).numpy()
    q_values = q_values.reshape(NUM_STATES, NUM_BINS, 2, NUM_BINS)
    return q_values[:, 0, 0], q_values[:, :, 1]


def learn(learning: LearningConfig, steps: int) -> GreedyPolicy:
    config = make_config(learning, steps=steps, num_bins=NUM_BINS, window=1, width=32, num_layers=1)
    policy = make_policy(config, num_dimensions=2, size=NUM_STATES)
    learner = QTransformerLearner(policy, config, SCALE, noise_of(policy))
    batch = all_transitions()
    for _ in range(steps):
        learner.update(batch)
    return learner.policy.eval()


def test_value_iteration_by_hand():
    first, second = value_iteration()
    # the goal is worth 1 in place 4, gamma one step before; from 0 it takes 2, 2 and the goal: gamma squared
    assert first.max(axis=1) == pytest.approx([0.64, 0.64, 0.8, 0.8, 1.0])
    assert second[4] == pytest.approx(np.array([[0.512, 0.8, 0.512], [0.512, 0.8, 0.512], [0.0, 1.0, 0.0]]))
    assert second[1, 2] == pytest.approx([0.0, 0.8 * 0.8, 0.0])


@pytest.mark.slow
def test_the_learner_finds_the_exact_values_of_every_token():
    learning = replace(PLAIN, discount=GAMMA, learning_rate=1e-2, polyak=0.8)
    learnt, exact = learn(learning, steps=1500), value_iteration()
    for found, expected in zip(learnt_values(learnt), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)


def closed_form(targets: np.ndarray, counts: np.ndarray, alpha: float) -> np.ndarray:
    """Returns the minimiser of eq. 2 over the last axis: target * p / (p + alpha * (1 - p) / (N - 1))."""
    p = counts / counts.sum(axis=-1, keepdims=True)
    return targets * p / (p + alpha * (1 - p) / (NUM_BINS - 1))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_with_the_regularizer_every_token_has_the_closed_form(alpha):
    """One state, one decision, rewards and how often each action was logged as below: no bin is logged alone."""
    counts = np.array([[1, 2, 5], [4, 3, 1], [2, 2, 4]])
    rewards = np.array([[0.9, 0.2, 0.4], [0.1, 0.6, 0.8], [0.5, 0.7, 0.3]])
    tokens = np.repeat(np.array(ACTIONS), counts.ravel(), axis=0)
    observations = np.ones((len(tokens), 2, 1))
    batch = one_step_batch(observations, tokens, rewards[tuple(tokens.T)], np.ones(len(tokens), bool))
    learning = replace(PLAIN, conservative_weight=alpha, learning_rate=5e-3, polyak=0.8)
    config = make_config(learning, steps=1500, num_bins=NUM_BINS, window=1, width=32, num_layers=1)
    policy = make_policy(config, num_dimensions=2, size=1)
    learner = QTransformerLearner(policy, config, UNIT)
    for _ in range(config.steps):
        learner.update(batch)
    second = closed_form(rewards, counts, alpha)
    first = closed_form(second.max(axis=1), counts.sum(axis=1), alpha)
    choices = torch.arange(NUM_BINS).unsqueeze(-1)
    tokens_tried = torch.cat([choices, torch.zeros_like(choices)], dim=-1).unsqueeze(1)
    with torch.no_grad():
        q_values = policy.model({"state": torch.ones(NUM_BINS, 1, 1)}, tokens_tried).q_values[:, 0].numpy()
    np.testing.assert_allclose(q_values[0, 0], first, rtol=0, atol=1e-2)
    np.testing.assert_allclose(q_values[:, 1], second, rtol=0, atol=1e-2)


# --- the bandit ---------------------------------------------------------------------------------------------------

NUM_CONTEXTS, BANDIT_BINS, BANDIT_DIMENSIONS = 8, 8, 3


def bandit_batch(generator: np.random.Generator, wanted: np.ndarray, num_segments: int = 128) -> Batch:
    """Returns single decisions: three in ten are the wanted action, the others random; only all three bins pay."""
    contexts = generator.integers(NUM_CONTEXTS, size=num_segments)
    tokens = generator.integers(BANDIT_BINS, size=(num_segments, BANDIT_DIMENSIONS))
    tokens = np.where(generator.random((num_segments, 1)) < 0.3, wanted[contexts], tokens)
    rewards = (tokens == wanted[contexts]).all(axis=1)
    observations = np.eye(NUM_CONTEXTS)[np.stack([contexts, contexts], axis=1)]
    return one_step_batch(observations, tokens, rewards, np.ones(num_segments, bool))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "steps"), [("default", 150), ("paper", 400)])
def test_the_bandit_is_solved_in_every_context(preset, steps):
    generator = np.random.default_rng(0)
    wanted = generator.integers(BANDIT_BINS, size=(NUM_CONTEXTS, BANDIT_DIMENSIONS))
    learning = replace(PRESETS[preset].get("learning", LearningConfig()), learning_rate=5e-3)
    config = make_config(learning, steps=steps, num_bins=BANDIT_BINS, window=1, width=32, num_layers=1)
    policy = make_policy(config, size=NUM_CONTEXTS)
    learner = QTransformerLearner(policy, config, UNIT, noise_of(policy))
    for _ in range(steps):
        learner.update(bandit_batch(generator, wanted))
    contexts, num_frames = torch.eye(NUM_CONTEXTS).unsqueeze(1), torch.ones(NUM_CONTEXTS, dtype=torch.long)
    with torch.no_grad():
        outputs = learner.policy.eval()({"state": contexts}, num_frames)
    assert outputs.tokens.tolist() == wanted.tolist()
