"""How episodes end: flags inside, no flags, time limits as terminals, rewards a step off, missing last observations."""

from dataclasses import replace

import numpy as np
import pytest
from check_fixtures import edited, find, log_of, sound_log, with_rows
from dataset_fixtures import make_episode

PLACE = "main_data.hdf5:episode_7"


def test_sound_logs_have_no_findings():
    assert find(sound_log()) == {}
    assert find(log_of(make_episode(seed=0), make_episode(seed=1, success=False))) == {}
    assert find(log_of(make_episode(seed=0), make_episode(seed=1, final=False))) == {}  # nothing follows a success


@pytest.mark.parametrize("name", ["terminations", "truncations"])
def test_flags_before_the_last_step_are_an_error(name):
    finding = find(log_of(make_episode(4, seed=1), edited(make_episode(6, seed=7), name, 2, True)))["early-end"]
    assert (finding.severity, finding.places) == ("error", (f"{PLACE} {name} step 2",))
    assert finding.message == f"{PLACE} {name} step 2 is set before the last step"


def test_an_episode_that_ends_with_neither_flag_is_told():
    finding = find(log_of(make_episode(4, seed=1), edited(make_episode(6, seed=7), "terminations", 5, False)))
    assert finding["unterminated-tail"].severity == "warning"
    assert finding["unterminated-tail"].places == (PLACE,)


def limited(num_at_limit, num_before=0, length=30):
    """Failures that terminate at `length`, some a step before, and a success."""
    failures = [
        replace(each, terminations=each.truncations, truncations=each.terminations)
        for each in (
            *(make_episode(length, seed=seed, success=False) for seed in range(1, 1 + num_at_limit)),
            *(make_episode(length - 1, seed=seed, success=False) for seed in range(50, 50 + num_before)),
        )
    ]
    return log_of(make_episode(length // 2, seed=0), *failures)


def test_time_limits_taken_for_terminals_are_found():
    finding = find(limited(5))["time-limit-terminals"]
    assert (finding.severity, finding.count) == ("warning", 5)
    assert finding.places[0] == "main_data.hdf5:episode_1"
    assert "terminates without a reward after 30 steps, which no episode exceeds" in finding.message


def test_few_failures_at_the_greatest_length_are_chance():
    assert find(limited(4)) == {}


def test_failures_of_about_the_same_length_are_no_time_limit():
    assert "time-limit-terminals" in find(limited(6, 5))
    assert "time-limit-terminals" not in find(limited(6, 6))


def test_successes_at_the_greatest_length_and_truncations_are_no_time_limit():
    assert find(log_of(*(make_episode(30, seed=seed) for seed in range(6)))) == {}
    cut = [make_episode(30, seed=seed, success=False) for seed in range(1, 7)]
    assert find(log_of(make_episode(20), *cut)) == {}


def test_time_limits_are_found_among_dense_rewards():
    def dense(seed, is_terminal):
        episode = make_episode(30, seed=seed, success=is_terminal)
        return replace(episode, rewards=np.random.default_rng(seed).uniform(size=30))

    assert "time-limit-terminals" in find(log_of(*(dense(seed, True) for seed in range(20))))
    assert find(log_of(*(dense(seed, False) for seed in range(20)))) == {}


def test_a_reward_for_every_step_survived_hides_no_time_limit():
    def survivor(seed, length):
        return replace(make_episode(length, seed=seed), rewards=np.ones(length))

    log = log_of(*(survivor(seed, 10 + seed) for seed in range(5)), *(survivor(seed, 30) for seed in range(5, 11)))
    assert find(log)["time-limit-terminals"].count == 6


def test_episodes_of_one_step_have_no_time_limit():
    episodes = [replace(make_episode(1, seed=seed), rewards=np.array([float(seed == 0)])) for seed in range(8)]
    assert "time-limit-terminals" not in find(log_of(*episodes))


def shifted(num_shifted, num_sound, reward_step):
    """Successes of 20 steps, some of which are rewarded at `reward_step`."""
    moved = [
        replace(make_episode(20, seed=seed), rewards=np.eye(20)[reward_step]) for seed in range(7, 7 + num_shifted)
    ]
    return log_of(*moved, *(make_episode(20, seed=seed) for seed in range(50, 50 + num_sound)))


def test_rewards_one_step_before_the_termination_are_found():
    finding = find(shifted(3, 3, 18))["reward-shift"]
    assert (finding.severity, finding.count, finding.places[0]) == ("warning", 3, PLACE)
    assert "is rewarded one step before its termination" in finding.message


def test_rewards_one_step_after_the_termination_are_found():
    episodes = [
        replace(each, terminations=np.arange(20) == 18, truncations=np.arange(20) == 19)
        for each in shifted(0, 4, 0).episodes
    ]
    finding = find(log_of(*episodes))["reward-shift"]
    assert "is rewarded one step after its termination" in finding.message
    assert finding.count == 4


@pytest.mark.parametrize(
    ("num_shifted", "num_sound", "step"),
    [(2, 0, 18), (3, 4, 18), (6, 0, 17), (6, 0, 19)],  # few, less than half, a subgoal, as it should be
)
def test_single_and_earlier_rewards_are_no_shift(num_shifted, num_sound, step):
    assert "reward-shift" not in find(shifted(num_shifted, num_sound, step))


def test_frequent_rewards_mark_no_event():
    rewards = np.arange(20) % 2 == 0  # at 0, 2, ..., 18, and not at the last step
    episodes = [replace(make_episode(20, seed=seed), rewards=rewards.astype(float)) for seed in range(6)]
    assert "reward-shift" not in find(log_of(*episodes))


def test_a_step_cost_until_success_is_read_the_same_way():
    def paid(seed, step):
        return replace(make_episode(20, seed=seed), rewards=np.eye(20)[step] - 1)

    assert find(log_of(*(paid(seed, 19) for seed in range(4)))) == {}
    assert "reward-shift" in find(log_of(*(paid(seed, 18) for seed in range(4))))


def test_what_missing_final_observations_cost_is_told():
    cut = make_episode(6, seed=7, success=False, final=False)
    finding = find(log_of(make_episode(4, seed=1, final=False), cut))["no-final-observation"]
    assert (finding.severity, finding.places) == ("warning", (PLACE,))
    assert finding.why == "1 of 10 steps (0.1 of all) have no successor to learn from"


def doubled(episode, *rows):
    """The episode with these rows of its state equal to the ones before."""
    state = np.array(episode.observations["state"])
    for row in rows:
        state[row] = state[row - 1]
    return with_rows(episode, state=state)


def repeated(success):
    return doubled(make_episode(6, seed=7, success=success), 6)


def test_a_final_observation_that_repeats_the_one_before_is_found():
    finding = find(log_of(make_episode(6, seed=1), repeated(False)))["repeated-final"]
    assert (finding.severity, finding.places) == ("warning", (PLACE,))
    one_step = doubled(make_episode(1, seed=7, success=False), 1)
    assert find(log_of(make_episode(6, seed=1), one_step))["repeated-final"].places == (PLACE,)


def test_a_repeated_row_is_harmless_after_a_termination_at_rest_or_where_it_is_usual():
    assert find(log_of(repeated(True))) == {}
    cut, success = make_episode(20, seed=7, success=False), make_episode(20)
    assert find(log_of(success, doubled(cut, 19, 20))) == {}
    assert "repeated-final" in find(log_of(success, doubled(cut, 2, 5, 8, 20)))
    usual = doubled(success, 2, 4, 6, 8, 10, 12, 14)  # with three others, 10 of 38 steps before the end
    assert "repeated-final" not in find(log_of(usual, doubled(cut, 2, 5, 8, 20)))


def test_half_of_the_ends_may_stand_still():
    moving = make_episode(6, seed=1, success=False)
    assert "repeated-final" not in find(log_of(moving, repeated(False)))
    assert "repeated-final" in find(log_of(moving, repeated(False), replace(repeated(False), source="again")))
