"""Collecting: one dataset for any number of workers, logged actions are executed ones, errors that help."""

import gymnasium
import numpy as np
import pytest
from dataset_fixtures import POINT_ID, SILENT_ID, PointEnv

from qtransformer_datasets import collect as collect_module
from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.environment import describe_environment
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import DatasetError


def make_config(**changes):
    settings = {"env_id": POINT_ID, "episodes": 6, "imports": ("dataset_fixtures",), "num_workers": 1, "noise_std": 0.8}
    return CollectConfig(**(settings | changes))


def test_the_dataset_does_not_depend_on_the_number_of_workers(tmp_path):
    alone = collect(make_config(), tmp_path / "alone")
    together = collect(make_config(num_workers=2), tmp_path / "together")
    assert alone.fingerprint == together.fingerprint
    assert [episode.seed for episode in together.episodes] == list(range(6))


def test_episode_i_is_that_of_seed_plus_i_and_seeds_differ(tmp_path):
    first = collect(make_config(episodes=2), tmp_path / "a")
    second = collect(make_config(episodes=2, seed=1), tmp_path / "b")
    start = [episode.observations["state"][:][0, 0] for episode in (*first.episodes, *second.episodes)]
    assert start[1] == start[2]
    assert start[0] != start[1]
    assert first.episodes[1].seed == second.episodes[0].seed == 1


def test_logged_actions_are_the_executed_ones(tmp_path):
    dataset = collect(make_config(random_action_probability=0.5), tmp_path / "run")
    for episode in dataset.episodes:
        positions = episode.observations["state"][:][:, 0]
        np.testing.assert_allclose(np.diff(positions), 0.5 * episode.actions[:, 0], atol=1e-6)
        assert np.abs(episode.actions).max() <= 1


def test_without_noise_the_expert_succeeds(tmp_path):
    dataset = collect(make_config(noise_std=0.0, random_action_probability=0.0), tmp_path / "run")
    assert dataset.success_rate == 1.0
    assert all((episode.actions[:, 1] == 0).all() and episode.terminations[-1] for episode in dataset.episodes)


def test_random_actions_are_held_no_longer_than_allowed():
    space = PointEnv().action_space
    config = make_config(noise_std=0.0, random_action_probability=1.0, random_action_hold=3)
    disturb = collect_module._Disturbance(config, space, np.random.default_rng(0))
    actions = np.array([disturb(np.zeros(2, np.float32))[0] for _ in range(3000)])
    runs = np.diff(np.flatnonzero(np.append(np.diff(actions, prepend=np.nan) != 0, True)))
    assert set(runs[actions[np.cumsum(runs) - 1] != 0].tolist()) == {1, 2, 3}


def test_names_units_and_rate_come_from_the_environment(tmp_path):
    spec = collect(make_config(episodes=1), tmp_path / "run").spec
    assert spec.observations[0].elements == ("x", "x_start")
    assert (spec.actions.elements, spec.actions.units) == (("velocity", "unused"), ("m/s", ""))
    assert (spec.environment_id, spec.control_hz) == (POINT_ID, 25.0)


def test_names_are_derived_where_the_environment_has_none():
    environment = gymnasium.make("Pendulum-v1")
    spec = describe_environment(environment)
    assert spec.observations[0].elements == ("state[0]", "state[1]", "state[2]")
    assert (spec.actions.low, spec.actions.elements, spec.control_hz) == ((-2.0,), ("action[0]",), 30.0)


def test_an_interrupt_keeps_the_finished_episodes(tmp_path, monkeypatch):
    run_episode = collect_module.run_episode

    def interrupted(environment, config, index):
        if index == 3:
            raise KeyboardInterrupt
        return run_episode(environment, config, index)

    monkeypatch.setattr(collect_module, "run_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(make_config(), tmp_path / "run")
    assert open_dataset(tmp_path / "run").num_episodes == 3


def test_a_recording_that_broke_off_goes_on_to_the_same_dataset(tmp_path, capsys):
    whole = collect(make_config(), tmp_path / "whole")
    collect(make_config(episodes=2), tmp_path / "run")
    torn = tmp_path / "run" / "data" / ".main_data.hdf5.tmp"
    torn.write_bytes(b"half")
    capsys.readouterr()
    finished = collect(make_config(append=True), tmp_path / "run")
    assert finished.fingerprint == whole.fingerprint
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the recording was interrupted: its 2 finished episodes are kept"
    assert (lines[2].split(",")[0], len(lines)) == ("recorded 3/6 episodes", 2 + 4)
    assert collect(make_config(append=True), tmp_path / "run").fingerprint == whole.fingerprint  # nothing is left to do


def test_a_recording_of_other_settings_is_not_gone_on_with(tmp_path):
    before = collect(make_config(episodes=2), tmp_path / "run")
    with pytest.raises(DatasetError, match=r"run was recorded with another collect, \{'seed': 0, .*, got \{'seed': 9"):
        collect(make_config(seed=9, append=True), tmp_path / "run")
    assert open_dataset(tmp_path / "run").fingerprint == before.fingerprint


def test_plain_progress_lines_off_a_terminal(tmp_path, capsys):
    collect(make_config(episodes=20, noise_std=0.0, random_action_probability=0.0), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (10, "recorded 20/20 episodes, success rate 100%")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "test/Nothing-v0"}, r"env_id \(test/Nothing-v0\) must be a registered environment .*in imports"),
        ({"env_id": SILENT_ID}, r"must have make_expert\(seed\) -> object with reset\(\) and act\(\)"),
        ({"imports": ("no_such_module",)}, r"imports \(no_such_module\) must be an importable module"),
        ({"episodes": 0}, r"episodes \(0\) must be at least 1"),
        ({"num_workers": 0}, r"num_workers \(0\) must be at least 1"),
        ({"noise_std": -1.0}, r"noise_std \(-1.0\) must be at least 0"),
        ({"random_action_probability": 2.0}, r"random_action_probability \(2.0\) must be in \[0, 1\]"),
        ({"random_action_hold": 0}, r"random_action_hold \(0\) must be at least 1"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing_behind(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        collect(make_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("action_space", gymnasium.spaces.Discrete(3), r"action_space must be a bounded Box of shape \(A,\)"),
        ("action_space", gymnasium.spaces.Box(-np.inf, 1, (2,)), "action_space must be a bounded Box"),
        ("observation_space", gymnasium.spaces.Discrete(5), "observation state must be a Box or a Text, got Discrete"),
        ("action_elements", (("only", "m"),), "must name 2 values, got 1; correct the environment"),
    ],
)
def test_unsuitable_environments(attribute, value, message):
    environment = PointEnv()
    setattr(environment, attribute, value)
    with pytest.raises(DatasetError, match=message):
        describe_environment(environment)
