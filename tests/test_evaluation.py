"""Success rates: a known interval, one seed an episode, and no influence of how many environments run."""

from __future__ import annotations

from functools import partial
from typing import Any

import evaluation_fixtures  # noqa: F401 - registers the environments
import gymnasium
import numpy as np
import pytest
from dataset_fixtures import POINT_ID
from learner_fixtures import enlarge, make_config, make_policy

from qtransformer.config import RunError
from qtransformer.evaluation import EvaluationError, Plan, evaluate, make_environment
from qtransformer.outcomes import CrashedEpisode, EpisodeOutcome
from qtransformer.policy import CheckpointPolicy
from qtransformer.rollout import Rollout
from qtransformer.vectorization import Step, Vectorization


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


class Walker(SlowingWalker):
    """Walks to zero and on to the other side."""

    def act(self, slots, observations):
        starts = np.array([each["state"][1] for each in observations])
        return np.stack([-np.sign(starts), np.zeros(len(slots))], axis=1).astype(np.float32)


def play(policy, episodes=11, num_envs=1, seed=0, **arguments):
    return evaluate(policy, lambda: gymnasium.make(POINT_ID), Plan(episodes, num_envs, seed), **arguments)


def play_in(name, policy=None, episodes=6, num_envs=2, vectorization: Vectorization = "sync", **plan):
    make = partial(gymnasium.make, f"evaluation_fixtures:test/{name}-v0")
    listening = plan.pop("listening", {})
    return evaluate(
        policy or Walker(), make, Plan(episodes, num_envs, 0, vectorization=vectorization, **plan), **listening
    )


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
    assert outcome == EpisodeOutcome(0, is_success, float(is_success), steps, is_success)


def test_each_episode_is_told_and_each_call_is_timed():
    told = []
    evaluation = play(SlowingWalker(), episodes=5, num_envs=2, on_episode=told.append)
    assert told == list(evaluation.outcomes)  # in the order of their seeds
    assert len(evaluation.latency_ms) >= sum(each.length for each in evaluation.outcomes) / 2
    assert min(evaluation.latency_ms) > 0


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


def test_success_once_and_at_the_end_by_hand():
    """The walker starts in (1, 3), crosses zero in steps of 0.5 and goes on: a success once is lost at the end."""
    evaluation = play_in("Passing", episodes=8)
    for outcome in evaluation.outcomes:
        start = float(gymnasium.make("test/Passing-v0").reset(seed=outcome.seed)[0]["state"][1])
        is_met = [abs(start - 0.5 * steps) < 0.2 for steps in range(1, 13)]
        assert (outcome.success, outcome.success_once) == (False, any(is_met))
        assert (outcome.length, outcome.task) == (12, ("even", "odd")[outcome.seed % 2])
    assert evaluation.success_rule == "info['success'] at the last step"
    assert 0 < sum(each.success_once for each in evaluation.outcomes) < 8


def test_the_task_is_the_instruction_where_info_has_none():
    class InstructedEnv(ThreeStepEnv):
        def observe(self) -> Any:
            return {"state": np.zeros(2, np.float32), "instruction": f"lift the cube {self.seed}"}

    policy = Witness()
    evaluation = evaluate(policy, InstructedEnv, Plan(2, 1, 0, ignored_observations=("instruction",)))
    assert [each.task for each in evaluation.outcomes] == ["lift the cube 0", "lift the cube 1"]
    assert policy.keys == {"state"}


# --- crashes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_envs", "vectorization"), [(1, "sync"), (3, "sync"), (2, "async")])
def test_crashes_are_counted_apart_and_the_other_episodes_go_on(num_envs, vectorization):
    told = []
    listening = {"on_episode": told.append}
    evaluation = play_in("Raising", num_envs=num_envs, vectorization=vectorization, listening=listening)
    sound = play_in("Passing").outcomes
    assert evaluation.outcomes == tuple(each for each in sound if each.seed not in (2, 4))
    at_step, at_reset = evaluation.crashes
    assert (at_step.seed, at_step.length, at_step.task) == (2, 2, "even")
    assert at_step.error.startswith("ValueError: the solver gave up on seed 2 (evaluation_fixtures.py, line ")
    assert (at_reset.seed, at_reset.length, at_reset.task) == (4, 0, None)
    assert [each.seed for each in told] == list(range(6))
    assert [each.seed for each in told if isinstance(each, CrashedEpisode)] == [2, 4]
    assert (evaluation.summary()["episodes"], evaluation.summary()["crashed"]) == (4, 2)


def test_the_death_of_processes_is_counted_and_the_other_episodes_go_on():
    evaluation = play_in("Dying", vectorization="async")
    assert evaluation.outcomes == tuple(each for each in play_in("Passing").outcomes if each.seed not in (2, 4))
    assert [(each.seed, each.length, each.error) for each in evaluation.crashes] == [
        (2, 2, "the environment's process ended with exit code 3"),
        (4, 0, "the environment's process ended with signal SIGKILL"),
    ]


def test_a_diverged_simulation_is_a_crash():
    evaluation = play_in("Diverging", episodes=4)
    assert [each.seed for each in evaluation.outcomes] == [0, 2]
    error = "the simulation diverged: state is NaN or infinite"
    assert evaluation.crashes == (CrashedEpisode(1, 1, error, "odd"), CrashedEpisode(3, 1, error, "odd"))


def test_a_reward_that_is_no_number_is_a_crash():
    class BrokenRewardEnv(ThreeStepEnv):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward if self.seed else float("inf"), terminated, truncated, info

    evaluation = evaluate(Witness(), BrokenRewardEnv, Plan(2, 1, 0))
    assert evaluation.crashes == (CrashedEpisode(0, 0, "the simulation diverged: the reward is NaN or infinite"),)


def test_crashes_alone_are_an_error():
    message = r"every episode crashed \(3 of 3\), the first, of seed 0, after 0 steps: RuntimeError: nothing works \("
    with pytest.raises(EvaluationError, match=message):
        play_in("Hopeless", episodes=3)


def test_an_environment_that_cannot_be_made():
    with pytest.raises(RunError, match=r"the environment cannot be made: FileNotFoundError: arm.xml is missing"):
        play_in("Unmakeable")


# --- whole episodes, and stopping ---------------------------------------------------------------------------------


class Expecting(Walker):
    """Expects less the further it is from zero."""

    def __init__(self):
        super().__init__()
        self.q = {}

    def act(self, slots, observations):
        self.q |= {slot: 1 / (1 + abs(float(each["state"][0]))) for slot, each in zip(slots, observations, strict=True)}
        return super().act(slots, observations)

    def q_value(self, slot):
        return self.q[slot]


@pytest.mark.parametrize("num_envs", [1, 4])
def test_whole_episodes_are_told_in_order(num_envs):
    rollouts = []
    listening = {"listeners": [rollouts.append]}
    evaluation = play_in("Raising", Expecting(), num_envs=num_envs, listening=listening)
    assert [each.seed for each in rollouts] == list(range(6))
    assert [len(each.actions) for each in rollouts] == [12, 12, 3, 12, 0, 12]
    assert [len(each.steps) for each in rollouts] == [13, 13, 3, 13, 0, 13]
    whole = rollouts[0]
    positions = [float(step.observation["state"][0]) for step in whole.steps]
    assert positions == pytest.approx([positions[0] - 0.5 * step for step in range(13)], abs=1e-5)
    assert whole.q_values == pytest.approx([1 / (1 + abs(position)) for position in positions[:-1]])
    assert whole.outcome() == evaluation.outcomes[0]
    assert rollouts[1].success is False


def test_without_a_listener_nothing_but_the_newest_step_is_kept():
    rollout = Rollout(0, (), is_kept=False)
    for _ in range(4):
        rollout.take(Step({"state": np.zeros(1)}, reward=1.0))
    assert len(rollout.steps) == 1
    assert rollout.outcome() == EpisodeOutcome(0, True, 4.0, 3, True)


@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_hopeless_evaluations_stop_and_count_what_was_played(num_envs):
    """All fail: after 6 of 10 episodes at most 4 of 10 can succeed, below 0.45; after 5, still 5 of 10."""
    evaluation = play_in("Passing", episodes=10, num_envs=num_envs, hopeless_below=0.45)
    assert [each.seed for each in evaluation.outcomes] == [0, 1, 2, 3, 4, 5]
    assert evaluation.stopped == (
        "hopeless after 6 of 10 episodes: with successes alone from there on the rate would be 0.4, below 0.45"
    )


def test_a_bound_that_can_still_be_met_stops_nothing():
    assert play_in("Passing", episodes=4).stopped is None
    assert play(SlowingWalker(), episodes=4).stopped is None
    whole = play_in("Passing", episodes=4, hopeless_below=0.01)
    assert (len(whole.outcomes), whole.stopped) == (4, None)  # hopeless at last, but nothing is left to spare


def test_crashes_take_no_hope():
    """After seeds 0 and 1 failed and 2 crashed, 3 of 5 can succeed; a crash that failed would leave 3 of 6."""
    evaluation = play_in("Raising", hopeless_below=0.55)
    assert [each.seed for each in evaluation.outcomes] == [0, 1, 3]
    assert [each.seed for each in evaluation.crashes] == [2]
    assert evaluation.stopped is not None
    assert "the rate would be 0.4, below 0.55" in evaluation.stopped


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
        ((1, 1, 0, (), "sync", 0, 0.0), r"stop_when_hopeless \(0.0\) must be in \(0, 1\]"),
        ((1, 1, 0, (), "sync", 0, 1.5), r"stop_when_hopeless \(1.5\) must be in \(0, 1\]"),
    ],
)
def test_impossible_plans(plan, message):
    with pytest.raises(EvaluationError, match=message):
        Plan(*plan)
