"""Numbers: not finite, outside limits, without reward, constant, idle; each found where it is, and only there."""

from dataclasses import replace

import numpy as np
import pytest
from check_fixtures import edited, find, log_of, sound_log, with_rows
from dataset_fixtures import make_episode

from qtransformer.batch import ActionSpec, ObservationSpec
from qtransformer_datasets.check import check_environment
from qtransformer_datasets.checks_numbers import IDLE_SHARE

PLACE = "main_data.hdf5:episode_7"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "key"), [("state", "observations/state"), ("actions", "actions"), ("rewards", "rewards")]
)
@pytest.mark.parametrize("final", [True, False])
def test_numbers_that_are_not_finite_are_found_where_they_are(name, key, value, final):
    first = make_episode(5, seed=1, final=final)  # one row less: the next episode's steps must not move
    finding = find(log_of(first, edited(make_episode(6, seed=7), name, 2, value)))["not-finite"]
    assert (finding.severity, finding.places, finding.count) == ("error", (f"{PLACE} {key} step 2",), 1)
    assert finding.message == f"{PLACE} {key} step 2 is NaN or infinite"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["state", "actions", "rewards"])
def test_a_number_that_is_not_finite_brings_no_other_finding(name):
    successes = [make_episode(30, seed=seed) for seed in range(8)]
    assert list(find(log_of(edited(successes[0], name, 3, np.nan), *successes[1:]))) == ["not-finite"]


def test_the_final_observation_is_checked_too():
    finding = find(log_of(make_episode(5, seed=1), edited(make_episode(6, seed=7), "state", 6, np.nan)))["not-finite"]
    assert finding.places == (f"{PLACE} observations/state step 6",)


def test_many_places_are_one_finding_with_the_first_five():
    episodes = [edited(make_episode(5, seed=seed), "rewards", slice(None), np.nan) for seed in range(3)]
    finding = find(log_of(*episodes))["not-finite"]
    assert finding.count == 15
    assert finding.places == tuple(f"main_data.hdf5:episode_0 rewards step {step}" for step in range(5))
    assert finding.message.startswith("main_data.hdf5:episode_0 rewards step 0 (and 14 more places) is NaN")


def test_actions_outside_the_limits_are_an_error():
    episode = edited(make_episode(5, seed=7), "actions", 2, (1.5, 0.0))
    finding = find(log_of(make_episode(5, seed=1), episode))["action-limits"]
    assert finding.places == (f"{PLACE} actions step 2",)
    assert finding.severity == "error"
    assert f"{PLACE} actions step 2 lies outside the limits [-1, -1] to [1, 1] (data: [" in finding.message
    assert "to [1.5, " in finding.message


def test_rounding_at_the_limits_and_actions_at_both_ends_are_no_error():
    generator = np.random.default_rng(0)
    extremes = [
        replace(each, actions=generator.choice([-1.0, 1.0], each.actions.shape).astype(np.float32))
        for each in sound_log().episodes
    ]
    assert find(log_of(*extremes)) == {}
    assert find(log_of(edited(make_episode(), "actions", 1, np.float32(1 + 1e-6)))) == {}
    assert "action-limits" in find(log_of(edited(make_episode(), "actions", 1, np.float32(1 + 1e-4))))


def test_limits_that_are_infinite_limit_nothing():
    log = sound_log()
    limits = ActionSpec((-np.inf, -1.0), (np.inf, np.inf))
    assert find(replace(log, spec=replace(log.spec, actions=limits))) == {}
    below = log_of(*log.episodes, edited(make_episode(5, seed=7), "actions", 3, -2.0))
    found = find(replace(below, spec=replace(log.spec, actions=limits)))
    assert found["action-limits"].count == 1


def test_the_environment_that_cuts_actions_off_is_an_error():
    log = log_of(edited(make_episode(5, seed=7), "actions", slice(None), (0.2, 0.2)))
    assert check_environment(log, (-1.0, -1.0), (1.0, 1.0)) == []
    assert check_environment(log, np.full(2, -np.inf, np.float32), np.full(2, np.inf, np.float32)) == []
    (finding,) = check_environment(edited_log(log), (-0.4, -0.4), (0.4, 0.4))
    assert (finding.severity, finding.code) == ("error", "environment-limits")
    assert finding.places == (f"{PLACE} actions step 3",)
    assert "the environment's limits [-0.4, -0.4] to [0.4, 0.4] (data: [0.2, 0.2] to [0.5, 0.2])" in finding.message


def edited_log(log):
    return log_of(edited(log.episodes[0], "actions", 3, (0.5, 0.2)))


def test_limits_wider_than_the_environments_are_a_warning():
    log = log_of(edited(make_episode(5), "actions", slice(None), (0.2, 0.2)))
    (finding,) = check_environment(log, (-1.0, -0.4), (1.0, 0.4))
    assert (finding.severity, finding.code) == ("warning", "wider-limits")
    assert "allows actions [-1, -1] to [1, 1], beyond the environment's limits [-1, -0.4]" in finding.message


def test_an_environment_with_other_dimensions_is_an_error():
    (finding,) = check_environment(sound_log(), (-1.0,) * 3, (1.0,) * 3)
    assert (finding.severity, finding.code) == ("error", "environment-limits")
    assert "actions have 2 dimensions, the environment's (3,)" in finding.message
    assert check_environment(log_of(), (-1.0,) * 3, (1.0,) * 3) == []


@pytest.mark.parametrize(
    ("rewards", "success", "message"),
    [
        (0.0, True, "log: rewards are zero at every step of all 2 episodes"),
        (-1.0, False, "log: rewards are -1, and nothing ever terminates, at every step of all 2 episodes"),
        (-1.0, True, None),  # the fewer steps the better: that can be learnt
    ],
)
def test_rewards_that_make_no_difference(rewards, success, message):
    episodes = [replace(make_episode(4, seed=seed, success=success), rewards=np.full(4, rewards)) for seed in (0, 1)]
    found = find(log_of(*episodes))
    assert ("no-reward" in found) == (message is not None)
    if message:
        assert (found["no-reward"].severity, found["no-reward"].message) == ("error", message)


def test_one_reward_is_enough():
    failure = make_episode(4, seed=1, success=False)
    assert "no-reward" in find(log_of(failure))
    assert find(log_of(failure, make_episode(4))) == {}


def test_constant_elements_are_named():
    states = [edited(each, "state", (slice(None), 1), 4.0) for each in sound_log().episodes]
    finding = find(log_of(*states))["constant-observation"]
    assert finding.severity == "warning"
    assert finding.message == "log: observations/state never changes in state[1]"
    actions = [edited(each, "actions", (slice(None), 0), 0.5) for each in sound_log().episodes]
    finding = find(log_of(*actions))["constant-action"]
    assert (finding.severity, finding.message) == ("warning", "log: actions never change in left")


def test_constant_only_within_episodes_is_not_constant():
    states = [edited(each, "state", (slice(None), 1), float(k)) for k, each in enumerate(sound_log().episodes)]
    assert "constant-observation" not in find(log_of(*states))


def test_many_constant_elements_without_names_are_numbered_and_cut():
    pixels = ObservationSpec("depth", (3, 4), "float32")
    episodes = [
        with_rows(each, depth=np.zeros((len(each.observations["state"]), 3, 4))) for each in sound_log().episodes
    ]
    finding = find(log_of(*episodes, extra=(pixels,)))["constant-observation"]
    assert finding.message.endswith("in [0], [1], [2], [3], [4], [5], [6], [7] and 4 more")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_whole_numbers_and_flags_pass_every_check(dtype):
    generator = np.random.default_rng(0)
    flags = ObservationSpec("flags", (2,), np.dtype(dtype).name)
    episodes = [
        with_rows(each, flags=generator.integers(0, 2, each.observations["state"].shape).astype(dtype))
        for each in sound_log().episodes
    ]
    assert find(log_of(*episodes, extra=(flags,))) == {}


def idle(num_idle, *, action=0.0, noise=0.0):
    """One episode of 20 steps of which the last `num_idle` change no observation; the others move."""
    episode = make_episode(20, seed=7)
    start = 20 - num_idle
    state = np.array(episode.observations["state"])
    state[start:] = state[start] + noise * np.random.default_rng(0).normal(size=(num_idle + 1, 2))
    return edited(with_rows(episode, state=state), "actions", slice(start, None), action)


def test_idle_steps_are_counted():
    finding = find(log_of(idle(8)))["idle"]
    assert (finding.severity, finding.count) == ("warning", 8)
    assert finding.places[0] == f"{PLACE} actions step 12"
    assert "in 40% of all steps" in finding.message


def test_a_short_rest_is_not_idle():
    assert IDLE_SHARE == 6 / 20
    assert "idle" not in find(log_of(idle(6)))
    assert "idle" in find(log_of(idle(7)))


def test_a_held_position_is_idle_once_it_is_reached_and_its_sensors_may_be_noisy():
    assert find(log_of(idle(9, action=0.7)))["idle"].count == 8  # the first of them is a new command
    assert find(log_of(idle(8, noise=1e-5)))["idle"].count == 8
    assert "idle" not in find(log_of(idle(8, noise=1e-2)))


def test_zero_actions_while_the_world_moves_are_not_idle():
    assert "idle" not in find(log_of(edited(make_episode(20), "actions", slice(1, None), 0.0)))


def test_without_numbers_to_be_seen_nothing_is_called_idle():
    episode = edited(make_episode(20), "actions", slice(1, None), 0.0)
    text = np.full(21, "wait")
    log = log_of(episode)
    spec = replace(log.spec, observations=(ObservationSpec("instruction", (), "str", "text"),))
    assert "idle" not in find(replace(log, spec=spec, episodes=(replace(episode, observations={"instruction": text}),)))
