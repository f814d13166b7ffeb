"""The command line: the whole path on a fake robot, and every mistake as one line on stderr with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_fixtures import POINT_ID, make_episode, make_spec
from learner_fixtures import write_log

import qtransformer
from qtransformer.checkpoint import FORMAT_VERSION
from qtransformer.cli import main
from qtransformer_datasets.recorder import Recorder

COLLECT = ["--env-id", POINT_ID, "--import", "dataset_fixtures", "--num-workers", "1"]
TINY = ["--steps", "4", "--batch-size", "4", "--log-every", "2", "--checkpoint-every", "2"]
TINY += ["--num-bins", "4", "--width", "16"]


def say(*arguments):
    return [str(each) for each in arguments]


def fail(capsys, *arguments):
    """Runs a command that must fail; returns its message, and checks the form that every mistake has."""
    arguments = say(*arguments)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line]
    start = f"qtransformer {arguments[0]}: error: "
    assert captured.out == ""
    assert len(lines) == 1
    assert lines[0].startswith(start)
    return lines[0].removeprefix(start)


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "log"
    assert main(say("collect", "--out", folder, "--episodes", 8, "--noise-std", 0.3, *COLLECT)) == 0
    return folder


@pytest.fixture(scope="module")
def run(log):
    folder = log.parent / "run"
    assert main(say("train", "--dataset", log, "--out", folder, *TINY)) == 0
    return folder


# --- the path -----------------------------------------------------------------------------------------------------


def test_collect_and_inspect(log, capsys):
    assert main(say("inspect", log, "--json")) == 0
    description = json.loads(capsys.readouterr().out)
    assert (description["episodes"], description["environment"]["id"]) == (8, POINT_ID)
    assert [row["name"] for row in description["actions"]] == ["velocity", "unused"]
    assert main(say("inspect", log)) == 0
    assert "velocity" in capsys.readouterr().out


def test_train_names_the_run_folder(log, tmp_path, capsys):
    assert main(say("train", "--dataset", log, "--out", tmp_path / "run", *TINY)) == 0
    captured = capsys.readouterr()
    assert captured.out == f"trained: {tmp_path / 'run'}\n"
    assert "q_transformer: 4/4" in captured.err


def test_flags_reach_the_settings(run):
    config = json.loads((run / "config.json").read_text())
    assert (config["steps"], config["batch_size"], config["tokens"]["num_bins"]) == (4, 4, 4)
    assert (config["model"]["width"], config["model"]["window"]) == (16, 2)


@pytest.mark.parametrize("preset", [["--preset", "paper"], ["--preset=paper"]])
def test_the_paper_preset_and_flags_over_it(log, tmp_path, preset):
    tiny = ["--steps", "1", "--batch-size", "2", "--width", "16", "--polyak", "0.5"]
    assert main(say("train", "--dataset", log, "--out", tmp_path / "run", *preset, *tiny)) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["preset"] == "paper"
    assert config["tokens"] == {"num_bins": 256, "num_levels": 1, "binning": "uniform", "order": "level_major"}
    assert (config["model"]["window"], config["model"]["width"]) == (6, 16)
    expected = {"discount": 0.98, "conservative_weight": 1.0, "monte_carlo_bound": True, "polyak": 0.5}
    expected |= {"support_threshold": 0.0, "support_temperature": 0.0, "density_weight": 0.0, "label_width": 0.0}
    assert {name: config["learning"][name] for name in expected} == expected


def test_evaluate_prints_json_that_does_not_depend_on_num_envs(run, capsys):
    documents = []
    for num_envs in (1, 3):
        arguments = ("--episodes", 5, "--num-envs", num_envs, "--seed", 7, "--import", "dataset_fixtures", "--json")
        assert main(say("evaluate", run, *arguments)) == 0
        captured = capsys.readouterr()
        documents.append(json.loads(captured.out))
        assert "evaluate: 5/5" in captured.err
    assert [each["seed"] for each in documents[0]["outcomes"]] == [7, 8, 9, 10, 11]
    assert documents[0]["outcomes"] == documents[1]["outcomes"]
    assert documents[0]["environment_id"] == POINT_ID


def test_evaluate_prints_a_table(run, capsys):
    assert main(say("evaluate", run, "--episodes", 2, "--import", "dataset_fixtures")) == 0
    assert "of 2 episodes" in capsys.readouterr().out


def test_resume_goes_on(log, tmp_path, capsys):
    arguments = ("train", "--dataset", log, "--out", tmp_path / "run", *TINY)
    assert main(say(*arguments, "--steps", 2)) == 0
    assert main(say(*arguments, "--resume")) == 0
    assert (tmp_path / "run" / "checkpoints" / "step_000000004").is_dir()


def test_an_interrupt_says_so(log, tmp_path, monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("qtransformer.training.train", interrupt)
    assert main(say("train", "--dataset", log, "--out", tmp_path / "run")) == 130
    assert capsys.readouterr().err == "qtransformer train: interrupted; what was finished is kept\n"


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("collect", ["--out", "--env-id", "--episodes", "--seed", "--num-workers", "--noise-std", "--import"]),
        ("inspect", ["--json", "PATH"]),
        ("train", ["--dataset", "--out", "--preset", "--resume", "--num-bins", "--window", "--discount", "--import"]),
        ("evaluate", ["--episodes", "--num-envs", "--seed", "--import", "--env-id", "--json"]),
        ("export", ["--out", "PATH"]),
        ("demo", ["--out", "--quick"]),
    ],
)
def test_help_mentions_every_flag(capsys, command, flags):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert [flag for flag in flags if flag not in text] == []


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert [each for each in ("collect", "inspect", "train", "evaluate", "export", "demo") if each not in text] == []


@pytest.mark.parametrize("arguments", [["--help"], ["collect", "--help"], ["inspect"], ["inspect", "--json"]])
def test_a_reader_that_goes_away_ends_it_silently(arguments, log, monkeypatch, capsys):
    """As after `qtransformer --help | head -1`; `inspect` prints through rich, which has a rule of its own."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    with pytest.raises(SystemExit) as exit_:
        main(say(*arguments, *([log] if arguments[0] == "inspect" else [])))
    assert exit_.value.code == 141
    sys.stdout.close()  # nothing is left that could not be written
    assert capsys.readouterr().err == ""


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["train"], ["train", "--dataset", "x", "--out", "y", "--stps", "1"]]
)
def test_words_that_are_no_command_end_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def no_dataset(tmp_path):
    """Paths that hold no dataset, and what is said of each."""
    (tmp_path / "text.txt").write_text("not HDF5")
    (tmp_path / "empty").mkdir()
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["numbers"] = np.arange(3)
    return {
        "missing": "does not exist, nor is it",
        "text.txt": "must be an HDF5 file",
        "empty": "holds no dataset, found nothing",
        "other.hdf5": "has no known layout: found ['numbers']",
    }


def test_paths_that_hold_no_dataset(no_dataset, tmp_path, capsys):
    for name, message in no_dataset.items():
        assert message in fail(capsys, "inspect", tmp_path / name)
        assert message in fail(capsys, "train", "--dataset", tmp_path / name, "--out", tmp_path / "run", *TINY)
        assert contents(tmp_path / "run") == {}


def spoilt(name, value):
    episode = make_episode(5, seed=1)
    array = np.array(episode.observations["state"] if name == "state" else episode.actions)
    array[2] = value
    return replace(episode, **({"observations": {"state": array}} if name == "state" else {"actions": array}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("state", np.nan, "not-finite: main_data.hdf5:episode_1 observations/state step 2 is NaN or infinite"),
        ("actions", np.nan, "not-finite: main_data.hdf5:episode_1 actions step 2 is NaN or infinite"),
        ("actions", 1.5, "action-limits: main_data.hdf5:episode_1 actions step 2 lies outside the limits"),
    ],
)
def test_numbers_that_cannot_be_learnt_from(tmp_path, capsys, name, value, message):
    log = write_log(tmp_path / "log", [make_episode(4), spoilt(name, value)])
    assert message in fail(capsys, "train", "--dataset", log, "--out", tmp_path / "run", *TINY)
    assert contents(tmp_path / "run") == {}
    assert main(say("inspect", log)) == 0  # inspect says it too, and is no failure
    assert message.split(":")[0] in capsys.readouterr().out


def test_an_episode_without_steps(tmp_path, capsys):
    log = write_log(tmp_path / "log", [make_episode(4), make_episode(3, seed=1)])
    with h5py.File(log / "data" / "main_data.hdf5", "a") as file:
        for name in ("actions", "rewards", "terminations", "truncations"):
            rows = file["episode_1"][name][:0]  # type: ignore[index]
            del file[f"episode_1/{name}"]
            file[f"episode_1/{name}"] = rows
        rows = file["episode_1/observations"][:1]  # type: ignore[index]
        del file["episode_1/observations"]
        file["episode_1/observations"] = rows
    message = fail(capsys, "train", "--dataset", log, "--out", tmp_path / "run", *TINY)
    assert message.startswith("empty-episode: main_data.hdf5:episode_1 has no steps")


def test_collect_mistakes(tmp_path, capsys):
    out = tmp_path / "log"
    message = fail(capsys, "collect", "--out", out, "--env-id", "test/Nothing-v0", "--num-workers", 1)
    assert "env_id (test/Nothing-v0) must be a registered environment" in message
    message = fail(capsys, "collect", "--out", out, *COLLECT[:2], "--import", "no_such_module")
    assert "--import (no_such_module) must be an importable module" in message
    assert "episodes (0) must be at least 1" in fail(capsys, "collect", "--out", out, *COLLECT, "--episodes", 0)
    assert not out.exists()


def test_nothing_is_overwritten(log, run, capsys):
    before = contents(log), contents(run)
    assert "must be new or empty" in fail(capsys, "collect", "--out", log, *COLLECT)
    for folder in (log, run):
        assert "already holds something" in fail(capsys, "train", "--dataset", log, "--out", folder, *TINY)
        assert "must not exist or be an empty folder" in fail(capsys, "export", run, "--out", folder)
    assert (contents(log), contents(run)) == before


def test_train_mistakes(log, tmp_path, capsys):
    train = "train", "--dataset", log, "--out", tmp_path / "run"
    for flags, message in (
        (["--num-bins", 1], "num_bins (1) must be at least 2; change --num-bins"),
        (["--steps", 0], "steps (0) must be at least 1"),
        (["--density-weight", 0], "density_weight (0.0) must be above 0, or support_threshold"),
        (["--preset", "paper", "--support-threshold", 0.1], "the density says what is supported"),
        (["--discount", 2], "discount (2.0) must be in [0, 1]"),
        (["--num-heads", 3], "num_heads (3) must divide width (64)"),
        (["--device", "cuda:99"], "--device cuda:99: is not usable here"),
    ):
        assert message in fail(capsys, *train, *flags)
    assert contents(tmp_path / "run") == {}


def test_evaluate_mistakes(run, tmp_path, capsys):
    known = "--import", "dataset_fixtures"
    for arguments, message in (
        ([tmp_path / "missing"], "must be the folder of a run or of a bundle"),
        ([tmp_path], "holds no checkpoint"),
        ([run, "--env-id", "test/Nothing-v0"], "environment id ('test/Nothing-v0') is unknown"),
        ([run, "--import", "no_such_module"], "--import no_such_module"),
        ([run, *known, "--episodes", 0], "episodes (0) must be at least 1"),
        ([run, *known, "--num-envs", 0], "num_envs (0) must be at least 1"),
        ([run, *known, "--seed", -1], "seed (-1) must be at least 0"),
        (
            [run, "--env-id", "Pendulum-v1"],
            "observation must have the keys and shapes {'state': (2,)} of the log, got {'state': (3,)}",
        ),
    ):
        assert message in fail(capsys, "evaluate", *arguments)


def test_a_log_that_names_no_environment(tmp_path, capsys):
    with Recorder(tmp_path / "log", replace(make_spec(), environment_id=None)) as recorder:
        recorder.record(make_episode(4))
    assert main(say("train", "--dataset", tmp_path / "log", "--out", tmp_path / "run", *TINY)) == 0
    capsys.readouterr()
    assert "its log names no environment; name one with --env-id" in fail(capsys, "evaluate", tmp_path / "run")


def test_a_checkpoint_of_another_version_or_damaged(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "checkpoints" / "step_000000004" / "checkpoint.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format_version": 1}))
    for command in (["evaluate", copy], ["export", copy, "--out", tmp_path / "bundle"]):
        expected = f"checkpoint format (1) must be {FORMAT_VERSION}; open it with qtransformer 0.1.0"
        assert expected in fail(capsys, *command)
    path.write_text("{")
    shutil.rmtree(path.parent.with_name("step_000000002"))  # else that one is used
    assert "checkpoint.json: is damaged" in fail(capsys, "evaluate", copy)
    path.write_text(json.dumps(document))
    assert "checkpoint.json: is damaged" in fail(capsys, "evaluate", copy)  # not what was written
    assert not (tmp_path / "bundle").exists()


def test_export_of_what_is_no_run(tmp_path, capsys):
    assert "holds no checkpoint" in fail(capsys, "export", tmp_path / "missing", "--out", tmp_path / "bundle")


def test_as_a_program(tmp_path):
    root = Path(str(qtransformer.__file__)).parents[1]
    command = [
        sys.executable,
        "-m",
        "qtransformer.cli",
        "train",
        "--dataset",
        "missing",
        "--out",
        str(tmp_path / "run"),
    ]
    path = os.pathsep.join(str(root / each) for each in (".", "envs", "datasets"))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("qtransformer train: error: missing does not exist, nor is it the id of a Minari")
    assert len(result.stderr.splitlines()) == 1
