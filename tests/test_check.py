"""Every check finds its own problem, names the place, and stays silent on sound data."""

from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode

from qtransformer_datasets.check import check_dataset, raise_on_errors
from qtransformer_datasets.schema import DatasetError


def spoil(episode, name, step, value):
    """Returns the episode with one row of an array replaced."""
    is_observation = name == "state"
    array = (episode.observations[name] if is_observation else getattr(episode, name)).copy()
    array[step] = value
    return replace(episode, **({"observations": {name: array}} if is_observation else {name: array}))


def codes(tmp_path, *episodes):
    return [(finding.severity, finding.code) for finding in check_dataset(make_dataset(tmp_path, episodes))]


def test_sound_data_has_no_findings(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(seed=0), make_episode(seed=1, success=False, final=False)])
    assert check_dataset(dataset) == []
    raise_on_errors([])


@pytest.mark.parametrize(
    ("name", "value", "code", "message"),
    [
        ("state", np.nan, "not-finite", "main_data.hdf5:episode_7 observations/state step 2 is NaN or infinite"),
        ("actions", np.inf, "not-finite", "episode_7 actions step 2 is NaN or infinite"),
        ("rewards", np.nan, "not-finite", "episode_7 rewards step 2 is NaN or infinite"),
        (
            "actions",
            1.5,
            "action-limits",
            r"episode_7 actions step 2 lies outside the limits \[-1, -1\] to \[1, 1\] \(data:",
        ),
    ],
)
def test_errors_name_the_place(tmp_path, name, value, code, message):
    dataset = make_dataset(tmp_path, [make_episode(5, seed=1), spoil(make_episode(5, seed=7), name, 2, value)])
    findings = check_dataset(dataset)
    assert code in [finding.code for finding in findings if finding.severity == "error"]
    with pytest.raises(DatasetError, match=message):
        raise_on_errors(findings)


def test_many_places_are_one_finding(tmp_path):
    episodes = [spoil(make_episode(5, seed=seed), "rewards", slice(None), np.nan) for seed in range(3)]
    findings = check_dataset(make_dataset(tmp_path, episodes))
    assert ["(and 14 more places)" in finding.message for finding in findings] == [True]


def test_rounding_at_the_limits_is_no_error(tmp_path):
    assert codes(tmp_path, spoil(make_episode(), "actions", 1, np.float32(1 + 1e-6))) == []


def test_empty_episode(tmp_path):
    assert codes(tmp_path, make_episode(), make_episode(0, seed=1)) == [("error", "empty-episode")]


def test_wrong_lengths(tmp_path):
    broken = replace(make_episode(3, seed=4), rewards=np.ones(2))
    findings = check_dataset(make_dataset(tmp_path, [broken]))
    assert [finding.code for finding in findings] == ["wrong-length"]
    assert "main_data.hdf5:episode_4: rewards must have 3 rows for 3 actions, got 2" in findings[0].message


def test_no_reward_at_all(tmp_path):
    assert codes(tmp_path, make_episode(success=False)) == [("error", "no-reward")]


def test_constant_observation_is_a_warning_with_the_element_name(tmp_path):
    episodes = [make_episode(seed=seed) for seed in range(2)]
    for episode in episodes:
        episode.observations["state"][:, 1] = 4.0
    findings = check_dataset(make_dataset(tmp_path, episodes))
    assert [(finding.severity, finding.code) for finding in findings] == [("warning", "constant-observation")]
    assert "observations/state never changes in state[1];" in findings[0].message
    raise_on_errors(findings)


def test_duplicates_are_a_warning_that_names_both(tmp_path):
    twin = replace(make_episode(seed=3), source="main_data.hdf5:episode_9")
    findings = check_dataset(make_dataset(tmp_path, [make_episode(seed=3), twin]))
    assert [(finding.severity, finding.code) for finding in findings] == [("warning", "duplicate-episode")]
    assert "episode_9 equals main_data.hdf5:episode_3" in findings[0].message


def test_errors_come_first(tmp_path):
    episode = make_episode(success=False)
    assert codes(tmp_path, episode, replace(episode, seed=1)) == [
        ("error", "no-reward"),
        ("warning", "duplicate-episode"),
    ]
