"""Collecting: one dataset for any number of workers, logged actions are executed ones, errors that help."""

import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import gymnasium
import numpy as np
import pytest
from dataset_fixtures import KILLED_ID, POINT_ID, SILENT_ID, PointEnv, make_episode
from mistake_fixtures import SHELF_ID

from qtransformer.signals import Stopped, stop_wish
from qtransformer_datasets import collect as collect_module
from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.environment import describe_environment
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.mix import SHARES
from qtransformer_datasets.schema import DatasetError, Episode


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


def test_without_a_mix_an_episode_is_the_expert_with_the_noise_of_its_own_generator(tmp_path):
    """A log that was begun before there were mixes goes on to the same bytes."""
    dataset = collect(make_config(seed=4, random_action_probability=0.0), tmp_path / "run")
    assert dataset.metadata["algorithm_name"] == "scripted expert with noise"
    assert list(dataset.metadata["collect"]) == ["seed", "noise_std", "random_action_probability", "random_action_hold"]
    assert {episode.behaviour for episode in dataset.episodes} == {None}
    for index, episode in enumerate(dataset.episodes):
        generator = np.random.default_rng([4, index])
        std, _ = generator.uniform(0, 0.8), generator.uniform(0, 0.0)
        for x, action in zip(episode.observations["state"][:][:-1, 0], episode.actions, strict=True):
            generator.random()
            expected = [np.clip(-2 * x, -1, 1), 0.0] + std * generator.standard_normal(2)
            np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-5)


def make_mix(**changes):
    settings = {"env_id": SHELF_ID, "imports": ("mistake_fixtures",), "episodes": 24, "mix": ()}
    return make_config(**(settings | changes))


def test_a_mix_does_not_depend_on_workers_and_goes_on_to_the_same(tmp_path):
    whole = collect(make_mix(), tmp_path / "whole")
    together = collect(make_mix(num_workers=2), tmp_path / "together")
    collect(make_mix(episodes=9), tmp_path / "parts")
    parts = collect(make_mix(append=True), tmp_path / "parts")
    kinds = [episode.behaviour for episode in whole.episodes]
    for other in (together, parts):
        assert other.fingerprint == whole.fingerprint
        assert [episode.behaviour for episode in other.episodes] == kinds
    assert len(set(kinds)) >= 4
    assert whole.metadata["algorithm_name"] == "scripted expert with mistakes"
    assert whole.metadata["collect"]["mix"] == SHARES


def test_the_kind_of_an_episode_depends_on_seed_and_index_alone(tmp_path):
    few = collect(make_mix(episodes=3), tmp_path / "few")
    many = collect(make_mix(noise_std=0.1), tmp_path / "many")
    other = collect(make_mix(seed=1), tmp_path / "other")
    kinds = [[episode.behaviour for episode in each.episodes] for each in (few, many, other)]
    assert kinds[0] == kinds[1][:3]
    assert kinds[1] != kinds[2]


def test_an_episode_of_a_mix_is_logged_as_executed_and_ends_truncated_where_it_stops(tmp_path):
    dataset = collect(make_mix(mix=("early_stop=0.5", "wrong_object=0.5")), tmp_path / "run")
    for episode in dataset.episodes:
        positions = episode.observations["state"][:][:, 0]
        np.testing.assert_allclose(np.diff(positions), 0.5 * episode.actions[:, 0], atol=1e-6)
        assert episode.terminations[-1] == episode.success == bool(episode.rewards[-1])
        assert episode.truncations.tolist() == [False] * (episode.num_steps - 1) + [not episode.success]
    stopped = [episode for episode in dataset.episodes if episode.behaviour == "early_stop"]
    assert {episode.success for episode in stopped} == {False}
    assert max(episode.num_steps for episode in stopped) < 20  # the time limit


def test_an_episode_without_an_object_to_mistake_is_recorded_as_what_it_is(tmp_path):
    dataset = collect(make_mix(mix=("wrong_object=1",), episodes=6), tmp_path / "run")
    kinds = [(episode.instruction == "wait", episode.behaviour) for episode in dataset.episodes]
    assert kinds == [(False, "wrong_object"), (False, "wrong_object"), (True, "noisy_expert")] * 2


def test_shares_that_make_no_sense_are_told_before_anything_is_made():
    with pytest.raises(DatasetError, match=r"mix \(pauses=0.9\) must sum to 1, got 0.9"):
        make_config(mix=("pauses=0.9",))


def test_a_mix_of_another_recording_is_not_gone_on_with(tmp_path):
    collect(make_mix(episodes=2), tmp_path / "run")
    with pytest.raises(DatasetError, match=r"was recorded with another collect, .*'mix': .*'pauses': 1.0"):
        collect(make_mix(mix=("pauses=1",), append=True), tmp_path / "run")


def test_a_bare_mix_says_what_the_environment_lacks(tmp_path, capsys):
    dataset = collect(make_config(mix=()), tmp_path / "run")
    assert "14% more noisy_replay instead" in " ".join(capsys.readouterr().out.split())
    assert "wrong_object" not in dataset.metadata["collect"]["mix"]


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


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_closes_the_log_and_says_how_to_go_on(tmp_path, monkeypatch, number, name):
    whole, run_episode = collect(make_config(), tmp_path / "whole"), collect_module.run_episode

    def interrupted(environment, config, index):
        if index == 3:
            os.kill(os.getpid(), number)
        return run_episode(environment, config, index)

    with monkeypatch.context() as patch:
        patch.setattr(collect_module, "run_episode", interrupted)
        said = f"{name}: 4 of 6 episodes are saved in {tmp_path / 'run'}; go on with the same command and --append"
        with pytest.raises(Stopped, match=re.escape(said)):
            collect(make_config(), tmp_path / "run")
    assert sorted(each.name for each in (tmp_path / "run/data").iterdir()) == ["main_data.hdf5", "metadata.json"]
    assert open_dataset(tmp_path / "run").num_episodes == 4
    assert collect(make_config(append=True), tmp_path / "run").fingerprint == whole.fingerprint


def test_a_signal_after_the_last_episode_is_no_reason_to_go_on(tmp_path, monkeypatch):
    close = collect_module.Recorder.close

    def interrupted(recorder):
        os.kill(os.getpid(), signal.SIGTERM)
        close(recorder)

    monkeypatch.setattr(collect_module.Recorder, "close", interrupted)
    assert collect(make_config(), tmp_path / "run").num_episodes == 6


def test_a_process_that_is_killed_ends_the_recording_and_what_is_there_is_kept(tmp_path):
    settings = {"env_id": KILLED_ID, "episodes": 40}
    with pytest.raises(DatasetError, match=r"num_workers \(2\) must leave memory for each; .* go on with --append"):
        collect(make_config(num_workers=2, **settings), tmp_path / "run")
    going_on = collect(make_config(num_workers=1, append=True, **settings), tmp_path / "run")
    assert going_on.fingerprint == collect(make_config(num_workers=1, **settings), tmp_path / "whole").fingerprint


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_signal_is_heard_while_the_second_episode_is_waited_for(monkeypatch, is_killed):
    """The signal may have ended the workers, too."""
    never, first = threading.Event(), make_episode()

    def play(config: CollectConfig, index: int) -> Episode:
        if index:
            never.wait()
        if index and is_killed:
            raise BrokenProcessPool
        return first

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if is_killed:
            never.set()

    monkeypatch.setattr(collect_module, "_run_in_worker", play)
    with stop_wish() as wish, ThreadPoolExecutor(1) as pool:
        episodes = collect_module._received(pool, make_config(), range(2), wish)
        assert next(episodes) is first
        threading.Timer(0.1, stop).start()
        assert list(episodes) == []
        never.set()


def test_few_episodes_are_made_ahead(monkeypatch):
    played = []
    monkeypatch.setattr(collect_module, "_run_in_worker", lambda config, index: played.append(index) or index)
    with stop_wish() as wish, ThreadPoolExecutor(1) as pool:
        episodes = collect_module._received(pool, make_config(), range(100), wish)
        assert [next(episodes) for _ in range(3)] == [0, 1, 2]
        assert max(played) < 3 + collect_module._AHEAD
        assert [*episodes] == list(range(3, 100))


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
        ({"env_id": "test/Nothing-v0"}, r"env_id \(test/Nothing-v0\) must be a registered environment .*with --import"),
        ({"env_id": SILENT_ID}, r"must have make_expert\(seed\) -> object with reset\(\) and act\(\)"),
        ({"imports": ("no_such_module",)}, r"--import \(no_such_module\) must be an importable module"),
        ({"env_kwargs": "[1]"}, r"env_kwargs \(\[1\]\) must be a JSON object, as in '\{\"image_size\": 64\}'"),
        ({"env_kwargs": "size=3"}, r"env_kwargs \(size=3\) must be a JSON object"),
        (
            {"env_kwargs": '{"colour": 1}'},
            r"must be settings of test/Point-v0: .*'colour'.*; correct them",
        ),
        ({"episodes": 0}, r"episodes \(0\) must be at least 1"),
        ({"num_workers": 0}, r"num_workers \(0\) must be at least 1"),
        ({"noise_std": -1.0}, r"noise_std \(-1.0\) must be at least 0"),
        ({"random_action_probability": 2.0}, r"random_action_probability \(2.0\) must be in \[0, 1\]"),
        ({"random_action_hold": 0}, r"random_action_hold \(0\) must be at least 1"),
        ({"mix": ("dropped_object=1",)}, "mix: dropped_object needs an action element called 'gripper'"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing_behind(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        collect(make_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_settings_of_the_environment_stay_in_the_log(tmp_path):
    settings = '{"observations": ["state", "instruction"], "domain_randomization": 0}'
    environment = {"env_id": "qtransformer/OpenDrawer-v0", "imports": ("qtransformer_envs",), "env_kwargs": settings}
    dataset = collect(make_config(episodes=1, **environment), tmp_path / "run")
    assert [each.name for each in dataset.spec.observations] == ["instruction", "state"]
    assert dataset.spec.environment_kwargs["observations"] == ["state", "instruction"]
    assert dataset.spec.environment_kwargs["domain_randomization"] == 0


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
