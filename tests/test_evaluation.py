"""Success rates: a known interval, one seed an episode, and no influence of how many environments run."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from dataset_fixtures import POINT_ID
from learner_fixtures import enlarge, make_config, make_policy

from qtransformer.evaluation import (
    EpisodeOutcome,
    Evaluation,
    EvaluationError,
    Plan,
    evaluate,
    make_environment,
    wilson_interval,
)
from qtransformer.policy import CheckpointPolicy


class SlowingWalker:
    """Walks to zero, with smaller steps the longer its episode lasts: a stale history changes the outcome."""

    def __init__(self):
        self.num_steps = {}

    def reset(self, slot):
        self.num_steps[slot] = 0

    def act(self, slots, observations):
        for slot in slots:
            self.num_steps[slot] += 1
        sizes = np.array([0.9 ** self.num_steps[slot] for slot in slots])
        positions = np.array([each["state"][0] for each in observations])
        return np.stack([-sizes * np.sign(positions), np.zeros(len(slots))], axis=1).astype(np.float32)


def play(policy, episodes=11, num_envs=1, seed=0, **arguments):
    return evaluate(policy, lambda: gymnasium.make(POINT_ID), Plan(episodes, num_envs, seed), **arguments)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 20, 0.0, 0.1611252), (20, 20, 0.8388748, 1.0), (50, 100, 0.4038315, 0.5961685)],
)
def test_wilson_interval_of_known_proportions(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("num_envs", [2, 5, 50])
@pytest.mark.parametrize("kind", ["walker", "network"])
def test_the_outcome_does_not_depend_on_the_number_of_environments(kind, num_envs):
    network = enlarge(make_policy(make_config(num_bins=8), num_dimensions=2))
    policies = [SlowingWalker() if kind == "walker" else CheckpointPolicy(network) for _ in range(2)]
    alone, together = play(policies[0]), play(policies[1], num_envs=num_envs)
    assert alone.outcomes == together.outcomes
    assert len({each.episode_return for each in alone.outcomes} | {each.length for each in alone.outcomes}) > 1


def test_episode_i_has_seed_plus_i():
    outcomes = play(SlowingWalker(), episodes=6, num_envs=4, seed=3).outcomes
    assert [each.seed for each in outcomes] == [3, 4, 5, 6, 7, 8]
    assert outcomes[2:] == play(SlowingWalker(), episodes=4, num_envs=1, seed=5).outcomes


def test_one_episode_by_hand():
    (outcome,) = play(SlowingWalker(), episodes=1).outcomes
    position, steps = gymnasium.make(POINT_ID).reset(seed=0)[0]["state"][0], 0
    while abs(position) >= 0.2 and steps < 12:
        steps += 1
        position -= 0.5 * 0.9**steps * np.sign(position)
    is_success = bool(abs(position) < 0.2)
    assert outcome == EpisodeOutcome(0, is_success, float(is_success), steps)


def test_each_episode_is_told_and_each_call_is_timed():
    told = []
    evaluation = play(SlowingWalker(), episodes=5, num_envs=2, on_episode=told.append)
    assert sorted(told, key=lambda each: each.seed) == list(evaluation.outcomes)
    assert len(evaluation.latency_ms) >= sum(each.length for each in evaluation.outcomes) / 2
    assert min(evaluation.latency_ms) > 0


def test_summary_by_hand():
    outcomes = tuple(EpisodeOutcome(seed, seed < 8, float(seed), 10 + seed) for seed in range(10))
    document = json.loads(json.dumps(Evaluation("x/Y-v0", outcomes, (1.0, 2.0, 9.0), "a rule").to_json()))
    assert document["interval"] == pytest.approx([0.4901625, 0.9433178], abs=1e-6)
    assert (document["successes"], document["episodes"], document["success_rate"]) == (8, 10, 0.8)
    assert (document["mean_return"], document["mean_length"]) == (4.5, 14.5)
    assert document["latency_ms"] == {"median": 2.0, "p99": pytest.approx(8.86)}
    assert document["outcomes"][9] == {"seed": 9, "success": False, "episode_return": 9.0, "length": 19}
    assert (document["environment_id"], document["success_rule"]) == ("x/Y-v0", "a rule")


class ThreeStepEnv(gymnasium.Env):
    """Says nothing of success, and observes a bare array; ends after three steps with the return of its seed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def observe(self) -> Any:
        return np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), float(self.seed or 0) / 3, False, self.steps == 3, {}


class NestedEnv(ThreeStepEnv):
    """The same with groups of keys, as Minari keeps them."""

    def observe(self) -> Any:
        return {"robot": {"arm": super().observe()}, "cube": super().observe()}


class Witness:
    """Does nothing, and remembers which keys it saw."""

    keys = frozenset()

    def reset(self, slot):
        pass

    def act(self, slots, observations):
        self.keys |= frozenset(key for each in observations for key in each)
        return np.zeros((len(slots), 1), np.float32)


@pytest.mark.parametrize(("make", "keys"), [(ThreeStepEnv, {"state"}), (NestedEnv, {"robot/arm", "cube"})])
def test_observations_have_the_keys_of_the_dataset(make, keys):
    policy = Witness()
    evaluation = evaluate(policy, make, Plan(2, 1, 0))
    assert policy.keys == keys
    assert evaluation.environment_id == "unregistered"


def test_without_a_success_flag_a_positive_return_is_success():
    evaluation = evaluate(Witness(), ThreeStepEnv, Plan(2, 2, 0))
    assert evaluation.success_rule == "return above 0, for want of a word in info"
    assert [(each.success, each.episode_return) for each in evaluation.outcomes] == [
        (False, 0.0),
        (True, pytest.approx(1.0)),
    ]


def test_unknown_environments():
    for name in ("test/Nothing-v0", "not a name!"):
        with pytest.raises(EvaluationError, match=r"environment id \('.*'\) is unknown: .*--import"):
            make_environment(name, {}, ())


def test_a_module_that_cannot_be_imported():
    with pytest.raises(
        EvaluationError, match=r"--import no_such_module: .*; install the package that registers the id"
    ):
        make_environment(POINT_ID, {}, ("no_such_module",))


def test_an_environment_is_made_with_its_settings():
    environment = make_environment(POINT_ID, {"max_episode_steps": 3}, ("dataset_fixtures",))
    assert environment.spec is not None
    assert (environment.spec.id, environment.spec.max_episode_steps) == (POINT_ID, 3)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((0, 1, 0), r"episodes \(0\) must be at least 1"),
        ((1, 0, 0), r"num_envs \(0\) must be at least 1"),
        ((1, 1, -1), r"seed \(-1\) must be at least 0"),
    ],
)
def test_impossible_plans(plan, message):
    with pytest.raises(EvaluationError, match=message):
        Plan(*plan)
