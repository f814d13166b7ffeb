"""Where outcomes come from: files as they are, runs by playing them; and who may be compared with whom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import POINT_ID

from qtransformer.compare_sources import Play, gather, in_one_table, outcomes_of, parse_methods, read_outcomes
from qtransformer.config import RunError
from qtransformer.evaluation import Plan

PLAY = Play(Plan(episodes=3, num_envs=1, seed=0), ("dataset_fixtures",), None)


def write(path, successes=(True, False, True), seed=0, **changes):
    """Writes what `evaluate --json` prints of these episodes."""
    outcomes = [{"seed": seed + place, "success": success, "length": 3} for place, success in enumerate(successes)]
    document = {"environment_id": POINT_ID, "success_rule": "a rule", "episodes": len(outcomes), "outcomes": outcomes}
    path.write_text(json.dumps({**document, **changes}))
    return path


@pytest.fixture
def files(tmp_path):
    return {name: (write(tmp_path / f"{name}.json"),) for name in ("a", "b")}


# --- the words of the command line ------------------------------------------------------------------------------------


def test_a_path_is_named_by_itself_and_a_group_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("r0", "r1", "lr=0.1"):
        (tmp_path / name).mkdir()
    assert parse_methods(["r0", "ours=r0,r1", "lr=0.1", "x=lr=0.1"]) == {
        "r0": (Path("r0"),),
        "ours": (Path("r0"), Path("r1")),
        "lr=0.1": (Path("lr=0.1"),),
        "x": (Path("lr=0.1"),),
    }


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["r0", "r0"], "r0: must be named once, got it twice; give two names: x=r0 y=r0"),
        (["x=r0", "x=r1"], "x: must be named once, got it twice"),
        (["x=r0,r0"], "x=r0,r0: must name every training once, got one twice"),
        (["=r0"], "=r0: must be PATH or NAME=PATH,PATH, got an empty name or path"),
        (["x="], "x=: must be PATH or NAME=PATH,PATH, got an empty name or path"),
        (["x=r0,"], "x=r0,: must be PATH or NAME=PATH,PATH, got an empty name or path"),
        ([""], "got an empty name or path"),
        (["r0,r1"], "r0,r1: must be a run, a bundle or a file .*, got nothing there; .* as NAME=PATH,PATH"),
        (["x=r0,r7"], "r7: must be a run, a bundle or a file .*, got nothing there"),
    ],
)
def test_words_that_name_no_method(tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    for name in ("r0", "r1"):
        (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=match):
        parse_methods(arguments)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_taken_as_they_are(tmp_path):
    paths = [write(tmp_path / f"{place}.json", rows) for place, rows in enumerate([(1 < 2, 1 > 2), (False, False)])]
    gathered = gather({"x": paths, "y": paths[1:]}, PLAY)
    assert (gathered.environment_id, gathered.success_rule, gathered.seeds) == (POINT_ID, "a rule", (0, 1))
    assert [each.name for each in gathered.methods] == ["x", "y"]
    assert gathered.methods[0].trainings == tuple(map(str, paths))
    np.testing.assert_array_equal(gathered.methods[0].outcomes, [[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(gathered.methods[1].outcomes, [[0.0, 0.0]])
    assert gathered.title() == f"2 episodes in {POINT_ID}"


def test_tasks_are_those_of_the_seeds():
    episodes = [{"seed": 4, "success": True, "task": "push"}, {"seed": 2, "success": False, "task": None}]
    found = outcomes_of({"environment_id": "x", "success_rule": "y", "outcomes": episodes})
    path = Path("one")
    assert in_one_table({"ours": [path]}, {path: found}).tasks == (None, "push")


def test_episodes_are_put_in_the_order_of_their_seeds(tmp_path, files):
    backwards = [{"seed": seed, "success": seed == 2} for seed in (2, 0, 1)]
    path = write(tmp_path / "c.json", outcomes=backwards)
    np.testing.assert_array_equal(gather({**files, "c": [path]}, PLAY).methods[2].outcomes, [[0.0, 0.0, 1.0]])


def test_a_crash_of_one_leaves_the_seed_out_for_all(tmp_path, files):
    """Seed 2 crashed for one of them."""
    path = write(tmp_path / "c.json", (False, False), crashes=[{"seed": 2, "length": 1, "error": "E"}])
    gathered = gather({**files, "c": [path]}, PLAY)
    assert (gathered.seeds, gathered.crashed) == ((0, 1), (2,))
    assert gathered.title() == f"2 episodes in {POINT_ID}, 1 left out (crashed)"
    assert gathered.to_json()["crashed"] == [2]
    np.testing.assert_array_equal(gathered.methods[0].outcomes, [[1.0, 0.0]])
    others = {"a": [path], "b": [write(tmp_path / "d.json", (), crashes=[{"seed": seed} for seed in range(3)])]}
    with pytest.raises(RunError, match=r"every episode crashed for one policy at least \(3\)"):
        gather(others, PLAY)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"successes": (True,) * 5, "seed": 1}, r"seeds of .*a.json and .*c.json must be the same, got "),
        ({"successes": (True,) * 5, "seed": 1}, r"only the first has 0; only the second has 3, 4, 5; compare what"),
        ({"successes": (True,) * 99}, r"got only the second has 3, 4, 5, 6, 7, ... \(96 seeds\); compare"),
        ({"environment_id": "x/Y-v0"}, r"environments of .* must be the same, got 'test/Point-v0' and 'x/Y-v0'"),
        ({"success_rule": "other"}, r"rules of success of .* must be the same, got 'a rule' and 'other'"),
    ],
)
def test_files_of_other_episodes(tmp_path, files, changes, match):
    other = write(tmp_path / "c.json", **changes)
    with pytest.raises(RunError, match=match):
        gather({**files, "c": [other]}, PLAY)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "AttributeError"),
        ("{}", "KeyError: 'outcomes'"),
        ('{"stopped": "hopeless after 3 of 9 episodes"}', "not all episodes: hopeless after 3 of 9 episodes"),
        ('{"outcomes": []}', "outcomes must be episodes with a seed of its own each"),
        ('{"outcomes": [{"seed": 0, "success": true}]}', "KeyError: 'environment_id'"),
        ('{"outcomes": [{"seed": 0, "success": 1}]}', "success must be true or false"),
        ('{"outcomes": [{"seed": 0.5, "success": true}]}', "a seed must be an integer"),
        ('{"outcomes": [{"seed": 0, "success": true}, {"seed": 0, "success": true}]}', "a seed of its own each"),
    ],
)
def test_files_that_are_something_else(tmp_path, text, match):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(RunError, match=rf"other.json: must be what `evaluate --json` prints, .*{match}"):
        read_outcomes(path)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "other").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="other: must be what `evaluate --json` prints"):
        read_outcomes(tmp_path / "other")
