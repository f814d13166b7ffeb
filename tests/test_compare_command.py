"""The real command: runs and files side by side, as text, as JSON and as a picture, and its mistakes as one line."""

from __future__ import annotations

import json
import shutil

import pytest
from dataset_fixtures import POINT_ID, make_episode, make_spec

from qtransformer.cli import main
from qtransformer_datasets.recorder import Recorder

TINY = ["--steps", "2", "--batch-size", "4", "--log-every", "2", "--checkpoint-every", "2"]
TINY += ["--num-bins", "4", "--width", "16"]
SEEDS = ("--episodes", 4, "--seed", 7, "--import", "dataset_fixtures")


def say(*arguments):
    return [str(each) for each in arguments]


def fail(capsys, *arguments):
    capsys.readouterr()
    assert main(say("compare", *arguments)) == 2
    captured = capsys.readouterr()
    (line,) = (each for each in captured.err.splitlines() if each)
    assert (captured.out, line.startswith("qtransformer compare: error: ")) == ("", True)
    return line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained run, and a copy in the place of a second training."""
    folder = tmp_path_factory.mktemp("compare")
    with Recorder(folder / "log", make_spec()) as recorder:
        for seed in range(4):
            recorder.record(make_episode(4, seed=seed))
    assert main(say("train", "--dataset", folder / "log", "--out", folder / "run0", *TINY)) == 0
    shutil.copytree(folder / "run0", folder / "run1")
    return folder


@pytest.fixture(scope="module")
def file(runs):
    """What `evaluate --json` says of the first run."""
    with pytest.MonkeyPatch.context() as patch:
        written = []
        patch.setattr("builtins.print", lambda text, **_: written.append(text))
        assert main(say("evaluate", runs / "run0", *SEEDS, "--json")) == 0
    path = runs / "run0.json"
    path.write_text(written[-1])
    return path


def test_a_run_does_what_its_file_says(runs, file, capsys):
    assert (
        main(say("compare", f"run={runs / 'run0'}", f"file={file}", *SEEDS, "--json", "--vectorization", "async")) == 0
    )
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["environment_id"], document["seeds"]) == (POINT_ID, [7, 8, 9, 10])
    run, of_file = document["methods"]
    assert (run["name"], run["trainings"][0]["path"]) == ("run", str(runs / "run0"))
    assert run["trainings"][0]["outcomes"] == of_file["trainings"][0]["outcomes"]
    outcomes = json.loads(file.read_text())["outcomes"]
    assert run["trainings"][0]["outcomes"] == [each["success"] for each in outcomes]
    (pair,) = document["pairs"]
    assert (pair["difference"], pair["p_value"], pair["better"]) == (0.0, 1.0, None)
    assert "4/4" in captured.err


def test_groups_as_text_and_picture(runs, file, tmp_path, capsys):
    group = f"ours={runs / 'run0'},{runs / 'run1'}"
    assert main(say("compare", group, f"x={file}", *SEEDS, "--points", 20, "--picture", tmp_path / "p.png")) == 0
    text = capsys.readouterr().out
    for part in (f"4 episodes in {POINT_ID}", "ours less x:", "to see 20 points", "Verdicts: "):
        assert part in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_end_before_anything_is_played(runs, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qtransformer.compare_sources._play", lambda *_: pytest.fail("played"))
    run = f"run={runs / 'run0'}"
    for arguments, message in (
        ([run, *SEEDS], "policies (1) must be at least 2"),
        ([run, file, *SEEDS, "--points", 0], "points (0.0) must be above 0"),
        ([run, file, *SEEDS, "--seed", 8], "only the first has 11; only the second has 7;"),
        ([run, file, *SEEDS, "--env-id", "test/Narrow-v0"], "got 'test/Narrow-v0' and 'test/Point-v0'"),
        ([run, file, *SEEDS, "--episodes", 0], "episodes (0) must be at least 1"),
        ([run, tmp_path, *SEEDS], "holds no checkpoint"),
        ([run, tmp_path / "missing", *SEEDS], "got nothing there"),
    ):
        assert message in fail(capsys, *arguments)


def test_help_mentions_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    for flag in (
        "--episodes",
        "--seed",
        "--num-envs",
        "--vectorization",
        "--import",
        "--env-id",
        "--json",
        "--points",
        "--picture",
    ):
        assert flag in text
    assert "NAME=PATH,PATH" in text
