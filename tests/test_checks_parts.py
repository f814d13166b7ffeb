"""Parts of a log against each other: copies, shards with another mean, episodes in another unit."""

from dataclasses import replace

import numpy as np
import pytest
from check_fixtures import CAMERA, StoredFrames, edited, find, log_of, sound_log, with_rows
from dataset_fixtures import make_episode

from qtransformer_datasets.check import check_dataset, check_split
from qtransformer_datasets.selection import split

ROWS = [bytes([row]) for row in range(4)]


def test_copies_are_told_with_what_they_equal():
    twin = replace(make_episode(seed=3), source="main_data.hdf5:episode_9")
    finding = find(log_of(make_episode(seed=3), twin))["duplicate-episode"]
    assert (finding.severity, finding.count) == ("warning", 1)
    assert finding.message == "main_data.hdf5:episode_9 equals main_data.hdf5:episode_3"


def test_the_same_episode_twice_is_a_copy_and_thrice_two():
    episode = make_episode(seed=3)
    assert find(log_of(episode, make_episode(), episode, episode))["duplicate-episode"].count == 2


@pytest.mark.parametrize("name", ["state", "actions", "rewards"])
def test_episodes_that_differ_in_one_number_are_no_copies(name):
    other = edited(make_episode(seed=3), name, 1, 0.25)
    assert "duplicate-episode" not in find(log_of(make_episode(seed=3), other))


def test_images_decide_where_all_else_is_equal_and_are_read_only_then():
    first, other, third = StoredFrames(ROWS), StoredFrames([*ROWS[:3], b"new"]), StoredFrames(ROWS)
    episode = make_episode(seed=3)
    log = log_of(with_rows(episode, camera=first), with_rows(make_episode(seed=4), camera=third), extra=(CAMERA,))
    before = third.num_reads
    assert check_dataset(log) == []
    assert third.num_reads == before + 1  # for frozen frames
    twins = log_of(with_rows(episode, camera=first), with_rows(episode, camera=other), extra=(CAMERA,))
    assert "duplicate-episode" not in find(twins)
    twins = log_of(with_rows(episode, camera=first), with_rows(episode, camera=third), extra=(CAMERA,))
    assert "duplicate-episode" in find(twins)


def test_copies_across_a_split_are_found():
    log = sound_log()
    train, held_out = split(log, 0.25)
    assert check_split(train, held_out) == []
    leaked = replace(train.episodes[2], source="other.hdf5:episode_0")
    (finding,) = check_split(train, held_out.with_episodes([*held_out.episodes, leaked]))
    assert (finding.severity, finding.code, finding.count) == ("warning", "split-overlap", 1)
    assert finding.message == (f"held-out other.hdf5:episode_0 equals {train.episodes[2].source}, which is trained on")
    assert finding.why == "1 of 4 held-out episodes tell nothing about new ones"
    (finding,) = check_split(log, log)
    assert finding.count == 12


def test_held_out_episodes_with_the_same_actions_and_other_observations_are_new():
    episode = make_episode(seed=3)
    assert check_split(log_of(episode), log_of(edited(episode, "state", 0, 0.5))) == []


def sharded(num, offset, *, scale=1.0, name="state"):
    """Two shards of `num` episodes; the second is shifted in its last element."""
    episodes = []
    for seed in range(2 * num):
        episode = replace(make_episode(20, seed=seed), source=f"shard_{seed // num}/main_data.hdf5:episode_{seed}")
        values = np.array(episode.observations["state"] if name == "state" else episode.actions)
        values[:, 1] = values[:, 1] * scale + offset * (seed >= num)
        episodes.append(with_rows(episode, state=values) if name == "state" else replace(episode, actions=values))
    return log_of(*episodes)


def test_a_shard_with_another_mean_is_found_on_both_sides():
    findings = [each for each in check_dataset(sharded(5, 4.0)) if each.code == "shard-drift"]
    assert [each.message.split(":")[0] for each in findings] == ["shard_0", "shard_1"]
    assert {each.severity for each in findings} == {"warning"}
    assert "state has another mean than in the other shards in state[1] (state[1]: 4." in findings[1].message
    assert findings[1].places[0] == "shard_1/main_data.hdf5:episode_5"
    assert findings[1].count == 5


def test_actions_drift_too():
    log = sharded(5, 0.5, scale=0.1, name="actions")
    assert {each.code for each in check_dataset(log)} == {"shard-drift"}
    assert "actions has another mean than in the other shards in right" in check_dataset(log)[0].message


@pytest.mark.parametrize(
    ("num", "offset", "scale"),
    [(5, 0.0, 1.0), (4, 4.0, 1.0), (40, 0.9, 1.0)],  # the same, too few episodes to tell, certain but small
)
def test_shards_that_agree_or_cannot_be_told_apart(num, offset, scale):
    assert check_dataset(sharded(num, offset, scale=scale)) == []


def test_chance_between_few_episodes_is_no_drift():
    """Episodes that differ much among themselves: a shift of the shards' means is expected."""
    episodes = sharded(5, 0.0).episodes
    moved = [with_rows(each, state=np.array(each.observations["state"]) + 10.0 * k) for k, each in enumerate(episodes)]
    assert check_dataset(log_of(*moved)) == []


def test_without_shards_nothing_drifts():
    log = sharded(5, 4.0)
    assert check_dataset(log_of(*(replace(e, source=e.source.split("/")[1]) for e in log.episodes))) == []


def in_unit(ratio, num_large, *, width=1.0):
    """Twelve episodes whose second element reaches 1 to `width`; the last `num_large` are `ratio` times as large."""
    episodes = []
    for seed in range(12):
        episode = make_episode(20, seed=seed)
        values = np.array(episode.observations["state"], np.float64)
        reach = width ** (seed / 11) * (ratio if seed >= 12 - num_large else 1.0)
        values[:, 1] *= reach / np.abs(values[:, 1]).max()
        episodes.append(with_rows(episode, state=values))
    return log_of(*episodes)


@pytest.mark.parametrize("ratio", [57.3, 100.0, 1000.0])
def test_episodes_in_another_unit_are_found(ratio):
    finding = find(in_unit(ratio, 3))["unit-change"]
    assert (finding.severity, finding.count) == ("warning", 3)
    assert finding.places[0] == "main_data.hdf5:episode_9"
    assert f"has state of up to {ratio:.4g} in state[1] where other episodes reach 1" in finding.message


@pytest.mark.parametrize(
    ("ratio", "num", "width"),
    [(57.3, 2, 1.0), (57.3, 10, 1.0), (10.0, 6, 1.0), (300.0, 6, 1.0), (57.3, 6, 40.0), (1.0, 0, 1e4)],
)
def test_few_episodes_other_ratios_and_sizes_that_vary_anyway_are_no_unit(ratio, num, width):
    assert "unit-change" not in find(in_unit(ratio, num, width=width))


def test_elements_that_are_zero_in_some_episodes_are_no_unit():
    assert "unit-change" not in find(in_unit(0.0, 6))
    log = in_unit(57.3, 3)
    still = [edited(each, "state", (slice(None), 1), 0.0) for each in log.episodes[:2]]
    assert find(log_of(*still, *log.episodes[2:]))["unit-change"].count == 3
