"""The real `evaluate` with a trained policy: the same bits for any number of environments, here and in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qtransformer.cli import main

COLLECT = ["--env-id", "test/Point-v0", "--imports", "dataset_fixtures", "--num-workers", "1", "--noise-std", "0.3"]
TINY = ["--steps", "30", "--batch-size", "8", "--log-every", "30", "--num-bins", "5", "--width", "16"]
EPISODES = ("--episodes", 7, "--seed", 3, "--import", "evaluation_fixtures")
PASSING = (*EPISODES, "--env-id", "test/Passing-v0")


def say(*arguments):
    return [str(each) for each in arguments]


def told(capsys, *arguments):
    """Runs a command that must succeed; returns its JSON."""
    capsys.readouterr()
    assert main(say(*arguments, "--json")) == 0
    return json.loads(capsys.readouterr().out)


def fail(capsys, *arguments):
    """Runs a command that must fail; returns its one line."""
    capsys.readouterr()
    assert main(say(*arguments)) == 2
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if line and not line.startswith("evaluate: "))
    assert captured.out == ""
    return line.removeprefix("qtransformer evaluate: error: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    assert main(say("collect", "--out", folder / "log", "--episodes", 8, *COLLECT)) == 0
    assert main(say("train", "--dataset", folder / "log", "--out", folder / "run", *TINY)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def alone(run):
    """What one environment says in a program of its own."""
    command = [sys.executable, "-m", "qtransformer.cli", *say("evaluate", run, *PASSING, "--num-envs", 1, "--json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_outcomes_have_the_same_bits(run, alone, capsys, num_envs, vectorization):
    found = told(capsys, "evaluate", run, *PASSING, "--num-envs", num_envs, "--vectorization", vectorization)
    del found["latency_ms"]
    assert found == {key: value for key, value in alone.items() if key != "latency_ms"}


def test_the_episodes_differ(alone):
    """Else the comparison above would compare nothing."""
    assert [each["seed"] for each in alone["outcomes"]] == [3, 4, 5, 6, 7, 8, 9]
    assert len({each["episode_return"] for each in alone["outcomes"]}) == 7
    assert list(alone["tasks"]) == ["even", "odd"]


def test_crashes_do_not_change_the_other_episodes(run, alone, capsys):
    arguments = (*EPISODES, "--env-id", "test/Raising-v0", "--num-envs", 3)
    found = told(capsys, "evaluate", run, *arguments)
    assert found["outcomes"] == [each for each in alone["outcomes"] if each["seed"] not in (4, 7, 9)]
    assert (found["episodes"], found["crashed"], [each["seed"] for each in found["crashes"]]) == (4, 3, [4, 7, 9])
    assert main(say("evaluate", run, *arguments)) == 0
    captured = capsys.readouterr()
    assert "3 episodes, counted in no rate" in captured.out
    assert "of 4 episodes" in captured.out
    assert "evaluate: 7/7" in captured.err


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_crashes_alone_end_in_one_line(run, capsys, vectorization):
    arguments = (*EPISODES, "--env-id", "test/Hopeless-v0", "--num-envs", 1, "--vectorization", vectorization)
    message = fail(capsys, "evaluate", run, *arguments)
    assert message.startswith("every episode crashed (7 of 7), the first, of seed 3, after 0 steps: RuntimeError: ")
