"""`collect --mix`, `inspect` and `convert` by their real commands."""

from __future__ import annotations

import json

import pytest
from dataset_fixtures import make_episode
from learner_fixtures import write_log
from mistake_fixtures import SHELF_ID
from task_fixtures import write_tasks

from qtransformer.cli import main
from qtransformer_datasets.formats import open_dataset


def say(*arguments):
    return main([str(each) for each in arguments])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("commands") / "tasks")


@pytest.mark.parametrize(
    ("mix", "kinds"),
    [
        ((), {"demonstrations", "noisy_replay", "noisy_expert"}),
        (("demonstrations=0.5,noisy_replay=0.5",), {"demonstrations", "noisy_replay"}),
        (("demonstrations=0.5", "noisy_replay=0.5"), {"demonstrations", "noisy_replay"}),
    ],
)
def test_collect_records_a_mix_and_inspect_shows_it(tmp_path, capsys, mix, kinds):
    shelf = ("--env-id", SHELF_ID, "--import", "mistake_fixtures", "--episodes", 30, "--num-workers", 1)
    assert say("collect", "--out", tmp_path / "log", *shelf, "--mix", *mix) == 0
    assert "what acted" in capsys.readouterr().out
    assert say("inspect", tmp_path / "log", "--json", "--import", "mistake_fixtures") == 0
    behaviours = {row["text"]: row for row in json.loads(capsys.readouterr().out)["behaviours"]}
    assert kinds <= set(behaviours)
    assert bool(mix) <= (kinds == set(behaviours))
    assert sum(row["episodes"] for row in behaviours.values()) == 30
    assert behaviours["demonstrations"]["success_rate"] == 1.0


def test_a_mix_that_cannot_be_is_one_line(tmp_path, capsys):
    assert say("collect", "--out", tmp_path / "log", "--env-id", SHELF_ID, "--mix", "replays=1") == 2
    assert "mix (replays=1) must be kind=share, each of demonstrations" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


def test_inspect_writes_json_and_a_page(tasks, tmp_path, capsys):
    assert say("inspect", tasks, "--json", "--html", tmp_path / "page.html") == 0
    captured = capsys.readouterr()
    description = json.loads(captured.out)
    assert (description["episodes"], description["dialect"]) == (6, "minari")
    assert description["rules"]["terminated"] == "terminations"
    assert f"inspected: {tmp_path / 'page.html'}" in captured.err
    assert "<html" in (tmp_path / "page.html").read_text()


def test_inspect_reads_several_as_one(tmp_path, capsys):
    logs = [write_log(tmp_path / name, [make_episode(4, seed=seed)]) for seed, name in enumerate("ab")]
    assert say("inspect", *logs, "--json") == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert say("inspect", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2


def test_inspect_holds_the_log_against_its_environment(tmp_path, capsys):
    environment = ("--env-id", "test/Narrow-v0", "--import", "dataset_fixtures")
    assert say("inspect", write_log(tmp_path / "log"), *environment, "--json") == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert "environment-limits" in [each["code"] for each in findings]
    assert say("inspect", tmp_path / "log", "--env-id", "nowhere/Nothing-v0") == 2
    assert "environment id ('nowhere/Nothing-v0') is unknown" in capsys.readouterr().err


def test_convert_keeps_the_content_bit_for_bit(tasks, tmp_path, capsys):
    assert say("convert", tasks, "--out", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.out == f"converted: {tmp_path / 'out'}: 6 episodes, 24 steps\n"
    assert "terminated: terminations" in captured.err
    assert open_dataset(tmp_path / "out").fingerprint == open_dataset(tasks).fingerprint


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [
        (("--success",), [1, 2, 4, 5]),
        (("--task", "push"), [1, 3, 5]),
        (("--min-return", 0.5, "--task", "pick"), [2, 4]),
    ],
)
def test_convert_filters(tasks, tmp_path, flags, seeds):
    assert say("convert", tasks, "--out", tmp_path / "out", *flags) == 0
    assert [episode.seed for episode in open_dataset(tmp_path / "out").episodes] == seeds


def test_convert_merges_splits_and_selects(tmp_path):
    logs = [write_log(tmp_path / name) for name in "ab"]
    flags = ("--held-out", 0.25, "--observations", "state", "--instruction", "go")
    assert say("convert", *logs, "--out", tmp_path / "out", *flags) == 0
    parts = [open_dataset(tmp_path / "out" / name) for name in ("train", "held-out")]
    assert [part.num_episodes for part in parts] == [6, 2]
    assert [each.name for each in parts[0].spec.observations] == ["state"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "fly"), "none of 6 episodes has the task 'fly'; known are ['pick', 'push']"),
        (("--observations", "depth"), "observations ['depth'] asked for, but the log has"),
        (("--held-out", 2), "held_out (2.0) must be between 0 and 1"),
        (("--instruction", "fly"), "has text of its own in ['told']"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tasks, tmp_path, capsys, flags, message):
    assert say("convert", tasks, "--out", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_episode_on_both_sides_of_a_split_is_told(tmp_path, capsys):
    log = write_log(tmp_path / "log", [make_episode(4, seed=0)] * 2)
    assert say("convert", log, "--out", tmp_path / "out", "--held-out", 0.5) == 0
    assert "split-overlap" in capsys.readouterr().err
