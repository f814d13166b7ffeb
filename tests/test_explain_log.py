"""A log as a run sees it: full histories, the origin of each episode, and logs that do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace

import dataset_fixtures
import numpy as np
import pytest
import torch
from dataset_fixtures import make_dataset, make_episode
from learner_fixtures import enlarge, make_config, write_log

from qtransformer.config import RunError
from qtransformer.explain_log import ORIGINS, RunLog, open_log, origins_of
from qtransformer.loading import LoadedRun, load_run
from qtransformer.policy import build_policy
from qtransformer.training import train
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import DatasetError

EPISODES = [make_episode(length, seed=seed, success=seed % 2 == 0) for seed, length in enumerate((5, 1, 2, 7))]
OTHERS = [make_episode(length, seed=seed) for seed, length in ((10, 4), (11, 6))]


def make_run(folder, algorithm="q_transformer", scale=(0.0, 1.0)):
    """A run of two action dimensions and window 3 whose random weights tell on the outputs."""
    config, spec = make_config(algorithm=algorithm), dataset_fixtures.make_spec()
    torch.manual_seed(0)
    policy = enlarge(build_policy(config, spec, {"state": {"mean": [0.0, 0.0], "std": [1.0, 1.0]}}))
    known = dict(zip(("low", "high"), scale, strict=True))
    info = {"config": config.to_json(), "return_scale": known, "instructions": []}
    return LoadedRun(folder, policy, spec, info)


@pytest.fixture
def trained(tmp_path):
    """A run on EPISODES, and its log."""
    log = write_log(tmp_path / "log", EPISODES)
    return load_run(train(make_config(dataset=log, out=tmp_path / "run", steps=1)))


# --- histories --------------------------------------------------------------------------------------------------------


def acted(policy, episode, end, window=3):
    """The policy's values, token by token, while it acts on observation `end` with all the history it may have."""
    frames = episode.observations["state"][max(0, end - window + 1) : end + 1]
    padded = np.concatenate([frames, np.repeat(frames[-1:], window - len(frames), axis=0)])
    observations = {"state": torch.from_numpy(padded[None])}
    with torch.no_grad():
        action = policy.model.greedy(observations, torch.tensor([len(frames)]), policy.choose)
        return policy.values(action.outputs)[0].numpy()


def test_every_step_has_the_history_that_the_policy_has_when_it_acts(tmp_path):
    run = make_run(tmp_path)
    log = RunLog(run, make_dataset(tmp_path, EPISODES))
    predictions = log.predict(log.rows(range(len(EPISODES))))
    places = [(episode, step) for episode in EPISODES for step in range(episode.num_steps)]
    outputs = [acted(run.policy, episode, step) for episode, step in places]
    following = [acted(run.policy, episode, step + 1)[0] for episode, step in places]
    rewards = [episode.rewards[step] for episode, step in places]
    ends = np.array([episode.terminations[step] for episode, step in places])
    np.testing.assert_allclose(predictions.values, [each[0] for each in outputs], atol=1e-5)
    np.testing.assert_allclose(predictions.q_greedy, [each[-1] for each in outputs], atol=1e-5)
    np.testing.assert_allclose(
        predictions.backups, np.where(ends, rewards, rewards + 0.98 * np.array(following)), atol=1e-5
    )


def test_q_of_the_logged_action_is_that_of_the_step_alone(tmp_path):
    run = make_run(tmp_path)
    log = RunLog(run, make_dataset(tmp_path, EPISODES))
    predictions = log.predict(log.rows([3]))
    episode = EPISODES[3]
    tokens = run.policy.tokenizer.encode(torch.from_numpy(episode.actions))
    for step in range(episode.num_steps):
        first = max(0, step - 2)
        frames = {"state": torch.from_numpy(np.asarray(episode.observations["state"])[None, first : step + 1])}
        with torch.no_grad():
            outputs = run.policy.model(frames, tokens[None, first : step + 1])
        expected = outputs.q_values[0, -1, -1, tokens[step, -1]].item()
        assert predictions.q_logged[step] == pytest.approx(expected, abs=1e-5)


def test_rows_and_chunks(tmp_path):
    log = RunLog(make_run(tmp_path), make_dataset(tmp_path, EPISODES))
    assert log.rows([2, 0]).tolist() == [6, 7, 0, 1, 2, 3, 4]
    assert (log.first.tolist(), log.last.tolist()) == ([0, 5, 6, 8], [4, 5, 7, 14])
    assert [log.num_chunks(np.zeros(n, int)) for n in (1, 512, 513)] == [1, 1, 2]


def test_chunks_change_nothing(tmp_path, monkeypatch):
    log = RunLog(make_run(tmp_path), make_dataset(tmp_path, EPISODES))
    whole = log.predict(log.rows(range(4)))
    monkeypatch.setattr("qtransformer.explain_log._CHUNK", 4)
    calls = []
    parts = log.predict(log.rows(range(4)), lambda: calls.append(0))
    assert len(calls) == log.num_chunks(log.rows(range(4))) == 4
    np.testing.assert_allclose(whole.values, parts.values, atol=1e-5)
    np.testing.assert_array_equal(whole.returns, parts.returns)


def test_values_come_in_the_unit_of_the_log(tmp_path):
    dataset = make_dataset(tmp_path, EPISODES)
    unit = RunLog(make_run(tmp_path), dataset)
    scaled = RunLog(make_run(tmp_path, scale=(-50.0, 10.0)), dataset)
    left, right = unit.predict(unit.rows([0])), scaled.predict(scaled.rows([0]))
    np.testing.assert_allclose(-50 + 60 * left.values, right.values, rtol=1e-5)


# --- origins ----------------------------------------------------------------------------------------------------------


def test_the_training_log_was_trained_on(trained):
    assert origins_of(trained, open_log(trained, None)) == ["trained on"] * 4


def test_episodes_are_recognised_by_their_content(trained, tmp_path):
    mixed = open_dataset(write_log(tmp_path / "mixed", [OTHERS[0], EPISODES[3], OTHERS[1], EPISODES[0]]))
    assert origins_of(trained, mixed) == ["held out", "trained on", "held out", "trained on"]


def test_failures_are_held_out_of_a_run_on_successes_alone(tmp_path):
    log = write_log(tmp_path / "log", EPISODES)
    config = make_config(dataset=log, out=tmp_path / "run", steps=1, only_successful=True)
    run = load_run(train(config))
    assert origins_of(run, open_dataset(log)) == ["trained on", "held out", "trained on", "held out"]


@pytest.mark.parametrize("change", ["gone", "other data"])
def test_without_the_training_log_nobody_can_tell(trained, tmp_path, change):
    other = open_dataset(write_log(tmp_path / "other", [*OTHERS, EPISODES[0]]))
    shutil.rmtree(tmp_path / "log")
    if change == "other data":
        write_log(tmp_path / "log", OTHERS)
    assert origins_of(trained, other) == ["of unknown origin"] * 3
    assert set(ORIGINS) == {"held out", "trained on", "of unknown origin"}


# --- logs that cannot be used -----------------------------------------------------------------------------------------


def test_a_training_log_that_is_gone(trained, tmp_path):
    shutil.rmtree(tmp_path / "log")
    with pytest.raises(RunError, match=r"run: its training log \(.*log\) must exist, got no such path; give --dataset"):
        open_log(trained, None)


def test_a_log_of_failures_alone_can_be_asked_about_and_broken_numbers_cannot(trained, tmp_path):
    failures = [make_episode(4, seed=seed, success=False) for seed in (20, 21)]
    assert open_log(trained, write_log(tmp_path / "failures", failures)).num_episodes == 2
    spoilt = replace(EPISODES[0], actions=np.full_like(EPISODES[0].actions, np.nan))
    with pytest.raises(DatasetError, match="not-finite"):
        open_log(trained, write_log(tmp_path / "spoilt", [spoilt]))


def test_a_log_of_another_robot(tmp_path):
    run = make_run(tmp_path)
    dataset = make_dataset(tmp_path, [make_episode(keys=("camera", "state"))], keys=("camera", "state"))
    message = r"observation keys and shapes must be \{'state': \(2,\)\} as in the run's log, got \{'camera'"
    with pytest.raises(RunError, match=message):
        RunLog(run, dataset)
    dataset = make_dataset(tmp_path, EPISODES)
    actions = replace(dataset.spec.actions, low=(-1.0,), high=(1.0,))
    with pytest.raises(RunError, match=r"actions must have 2 dimensions as in the run's log, got 1; give a log of the"):
        RunLog(run, replace(dataset, spec=replace(dataset.spec, actions=actions)))


def test_a_decision_transformer_counts_returns_without_discount(tmp_path):
    dataset = make_dataset(tmp_path, EPISODES)
    for algorithm, first in (("q_transformer", 0.98**4), ("decision_transformer", 1.0)):
        log = RunLog(make_run(tmp_path, algorithm), dataset)
        returns = log.steps(log.rows([0])).batch.monte_carlo_returns[0, 0].item()
        assert returns == pytest.approx(first)
