"""The log of a run: cut as asked, refused where the network cannot take it, missed when it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dataset_fixtures import make_episode
from learner_fixtures import make_config, write_log
from task_fixtures import write_tasks

from qtransformer.checkpoint import load_checkpoint
from qtransformer.cli import main
from qtransformer.config import DataConfig, RunError
from qtransformer.training import load_dataset, train
from qtransformer.training_log import open_training_log, raise_on_misfit, warn_if_log_changed
from qtransformer_datasets.schema import DatasetError


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("training_log") / "tasks")


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"only_successful": True}, [1, 2, 4, 5]),
        ({"task": "push"}, [1, 3, 5]),
        ({"task": "push", "min_return": 0.5}, [1, 5]),
        ({"observations": ("cup",)}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_settings_choose_episodes_and_keys(tasks, settings, seeds):
    dataset = open_training_log(make_config(dataset=tasks, **settings))
    assert [episode.seed for episode in dataset.episodes] == seeds
    keys = list(settings.get("observations", ("arm", "camera", "cup", "told")))
    assert sorted(each.name for each in dataset.spec.observations) == keys
    assert sorted(dataset.spec.ignored_observations) == sorted({"arm", "camera", "cup", "told"} - set(keys))


def test_what_the_network_cannot_take_is_refused_with_the_flag_that_helps(tasks):
    dataset, _ = load_dataset(make_config(dataset=tasks))  # images, too, are taken
    specs = tuple(replace(each, kind="embedding") if each.name == "cup" else each for each in dataset.spec.observations)
    message = r"got \{'cup': 'embedding'\}; choose others with --observations arm camera told"
    with pytest.raises(RunError, match=message):
        raise_on_misfit(replace(dataset, spec=replace(dataset.spec, observations=specs)))
    with pytest.raises(RunError, match=r"must be numbers or images, and text beside them, got \{'told': 'text'\}"):
        load_dataset(make_config(dataset=tasks, observations=("told",)))
    dataset, _ = load_dataset(make_config(dataset=tasks, observations=("arm", "cup"), task="pick"))
    assert dataset.num_episodes == 3


def test_a_key_that_is_not_there_is_never_made_up(tasks):
    with pytest.raises(DatasetError, match=r"observations \['depth'\] asked for, but the log has"):
        load_dataset(make_config(dataset=tasks, observations=("arm", "depth")))


def test_an_instruction_for_a_log_without_one(tmp_path):
    log = write_log(tmp_path / "log")
    dataset = open_training_log(make_config(dataset=log, instruction="pick it up"))
    assert dataset.episodes[0].instruction == "pick it up"


@pytest.mark.parametrize(
    ("text", "expected"), [("4GB", 4e9), ("500MB", 5e8), ("1.5 GB", 1.5e9), ("7B", 7), ("2kB", 2000), (None, None)]
)
def test_sizes_are_read(text, expected):
    assert DataConfig(memory_limit=text).memory_limit_bytes == expected


@pytest.mark.parametrize("text", ["4", "GB", "-1GB", "4GiB", "0GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RunError, match=r"memory_limit \(.*\) must be a size like 4GB or 500MB; change --memory-limit"):
        DataConfig(memory_limit=text)


def test_an_error_of_the_check_blocks_training_unless_it_is_allowed(tmp_path, capsys):
    failures = [make_episode(4, seed=seed, success=False) for seed in range(3)]
    log = write_log(tmp_path / "log", failures)
    with pytest.raises(DatasetError, match=r"no-reward: .*; or train in spite of it with --allow CODE"):
        load_dataset(make_config(dataset=log))
    dataset, findings = load_dataset(make_config(dataset=log, allow=("no-reward",)))
    assert dataset.num_episodes == 3
    assert "no-reward" in [finding.code for finding in findings]
    assert "no-reward" in capsys.readouterr().err


def test_warnings_are_said_again_at_the_end(tmp_path, capsys):
    twins = [make_episode(4, seed=0), make_episode(4, seed=0), make_episode(5, seed=1, success=False)]
    train(make_config(dataset=write_log(tmp_path / "log", twins), out=tmp_path / "run", steps=1))
    assert capsys.readouterr().err.count("duplicate-episode") == 2


def test_a_log_that_changed_since_is_told_by_evaluate_and_export(tmp_path, capsys):
    log = write_log(tmp_path / "log")
    run = train(make_config(dataset=log, out=tmp_path / "run", steps=1, only_successful=True))
    info = load_checkpoint(run).info
    capsys.readouterr()
    warn_if_log_changed(info)
    assert capsys.readouterr().err == ""

    (log / "data" / "main_data.hdf5").touch()
    warn_if_log_changed(info)
    assert capsys.readouterr().err == "", "a file that was written again with the same content has not changed"

    other = write_log(tmp_path / "other", [make_episode(4, seed=9), make_episode(5, seed=8, success=False)])
    log.rename(tmp_path / "kept")
    warn_if_log_changed(info)
    assert capsys.readouterr().err == "", "a log that is not here says nothing"
    other.rename(log)
    arguments = ["evaluate", str(run), "--episodes", "1", "--import", "dataset_fixtures"]
    assert main(arguments) == 0
    assert "log has changed since this policy was trained on it (fingerprint" in capsys.readouterr().err
    (log / "data" / "main_data.hdf5").write_bytes(b"")
    warn_if_log_changed(info)
    assert "cannot be read any more" in capsys.readouterr().err
    warn_if_log_changed({})


def test_observations_that_were_left_out_are_left_out_in_the_simulator_too(tmp_path, capsys):
    environment = ["--env-id", "test/TwoKeys-v0", "--import", "dataset_fixtures", "--num-workers", "1"]
    log, run = tmp_path / "log", tmp_path / "run"
    assert main(["collect", "--out", str(log), "--episodes", "4", *environment]) == 0
    tiny = ["--steps", "1", "--batch-size", "2", "--width", "16", "--observations", "state"]
    assert main(["train", "--dataset", str(log), "--out", str(run), *tiny]) == 0
    assert main(["evaluate", str(run), "--episodes", "2", "--import", "dataset_fixtures"]) == 0
    assert "of 2 episodes" in capsys.readouterr().out


def test_tasks_stay_known_where_their_text_is_left_out(tasks, tmp_path):
    settings = {"observations": ("arm", "cup"), "balance": "task", "out": tmp_path / "run", "steps": 1}
    run = train(make_config(dataset=tasks, **settings))
    assert load_checkpoint(run).info["spec"]["ignored_observations"] == ["camera", "told"]
    assert {each.instruction for each in open_training_log(make_config(dataset=tasks, **settings)).episodes} == {
        "pick",
        "push",
    }
