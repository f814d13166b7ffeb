"""What a policy expects of several instructions: what relabelling teaches it, and the command that asks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_deploy_commands import call
from word_fixtures import CLOSE, OPEN, PLACES, train_told, write_told_log

from qtransformer.cli import main
from qtransformer.config import RunError
from qtransformer.deploy.controller import ControllerError
from qtransformer.loading import open_policy
from qtransformer.score_command import scored


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_told_log(tmp_path_factory.mktemp("score") / "log")


@pytest.fixture(scope="module")
def relabelled(log: Path) -> Path:
    return train_told(log, log.parent / "relabelled", relabel=0.5)


def values(run: Path, place: float) -> dict[str, float]:
    return scored(open_policy(run), [{"state": np.array([place], np.float32)}], [OPEN, CLOSE])


def test_relabelling_teaches_what_is_not_possible_here(log: Path, relabelled: Path):
    """All of the log succeeds: without relabelling, what never was tried in a place looks as good as what was."""
    plain = train_told(log, log.parent / "plain")
    for text, place in PLACES.items():
        (other,) = {OPEN, CLOSE} - {text}
        told, untold = values(relabelled, place), values(plain, place)
        assert min(told[text], untold[text], untold[other]) > 0.8
        assert told[other] < 0.3


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["score", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_logged_situation(log: Path, relabelled: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--instructions", CLOSE, OPEN, "--dataset", log]
    first = asked(capsys, relabelled, *words)
    assert first["situation"] == {"log": str(log), "episode": 0, "step": 0}
    assert first["range"] == {"low": 0.0, "high": 1.0}
    assert [each["instruction"] for each in first["scores"]] == [OPEN, CLOSE]  # the log's first episode opens it
    assert {each["instruction"]: each["value"] for each in first["scores"]} == values(relabelled, -1.0)
    second = asked(capsys, relabelled, *words, "--episode", 1)
    assert [each["instruction"] for each in second["scores"]] == [CLOSE, OPEN]
    assert main(["score", str(relabelled), *map(str, words)]) == 0
    shown = capsys.readouterr().out
    assert shown.index(OPEN) < shown.index(CLOSE)
    assert "████████" in shown


def test_all_that_the_policy_sees_at_once_is_the_situation(log: Path, tmp_path: Path):
    """A window of two: the value of the second step depends on the first, which is told the same words."""
    run = train_told(log, tmp_path / "run", window=2, steps=3)
    policy, rows = open_policy(run), [{"state": np.array([place], np.float32)} for place in (-1.0, 1.0)]
    both, newest = scored(policy, rows, [OPEN]), scored(policy, rows[1:], [OPEN])
    assert both != newest
    assert scored(policy, [rows[0], *rows], [OPEN]) == both


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--instructions", "open the window"], r"has words that the log never had: \['window'\]; the nearest"),
        (["--instructions"], "must take instructions, and be given some"),
        (["--instructions", OPEN, "--episode", "16"], r"episode \(16\) must be in 0 \.\. 15: .*; change --episode"),
        (["--instructions", OPEN, "--step", "1"], r"step \(1\) must be in 0 \.\. 0: .*; change --step"),
    ],
)
def test_what_cannot_be_asked_of_a_log(log: Path, relabelled: Path, flags: list[str], match: str, capsys):
    assert main(["score", str(relabelled), "--dataset", str(log), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qtransformer score: error: ")
    assert re.search(match, error), error


def test_a_situation_of_the_logs_environment(relabelled: Path, capsys: pytest.CaptureFixture[str]):
    for seed, place in ((0, -1.0), (7, 1.0)):
        found = asked(capsys, relabelled, "--instructions", OPEN, CLOSE, "--import", "word_fixtures", "--seed", seed)
        assert found["situation"] == {"environment": "test/Drawer-v0", "seed": seed}
        assert {each["instruction"]: each["value"] for each in found["scores"]} == values(relabelled, place)


def test_policies_without_values_or_words_are_refused(log: Path, tmp_path: Path):
    cloned = train_told(log, tmp_path / "cloned", steps=1, algorithm="behaviour_cloning")
    with pytest.raises(RunError, match="learns no values; train one that does, as q_transformer"):
        values(cloned, 1.0)
    silent = train_told(log, tmp_path / "silent", steps=1, observations=("state",))
    with pytest.raises(RunError, match="must take instructions, and be given some; train it on a log that has them"):
        values(silent, 1.0)
    with pytest.raises(RunError, match=r"relabel \(0.5\) must be 0 with --algorithm behaviour_cloning, which"):
        train_told(log, tmp_path / "none", relabel=0.5, algorithm="behaviour_cloning")


@pytest.mark.export
def test_a_bundle_gives_the_runs_values_without_torch(log: Path, relabelled: Path, tmp_path: Path):
    assert main(["export", str(relabelled), "--out", str(tmp_path / "bundle")]) == 0
    done = call("score", tmp_path / "bundle", "--instructions", OPEN, CLOSE, "--dataset", log, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = {each["instruction"]: each["value"] for each in json.loads(done.stdout)["scores"]}
    assert found == pytest.approx(values(relabelled, -1.0), abs=1e-4)
    with pytest.raises(ControllerError, match="observation keys"):
        scored(open_policy(tmp_path / "bundle"), [{"place": np.zeros(1)}], [OPEN])
