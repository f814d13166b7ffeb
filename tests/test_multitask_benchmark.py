"""The benchmark of many skills: flags, figures by hand, which object is approached, and the whole of it in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import qtransformer_envs  # noqa: F401 - registers the environments

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import multitask  # noqa: E402  # pyright: ignore[reportMissingImports]
import told_apart  # noqa: E402  # pyright: ignore[reportMissingImports]


def test_methods_differ_as_they_say():
    ours = multitask.flags(multitask.OURS, 90)
    assert multitask.flags(multitask.WORDLESS, 90) == (*ours, "--observations", "objects", "state")
    cloning = multitask.flags(multitask.CLONING, 90)
    assert cloning == ("--algorithm", "behaviour_cloning", *multitask.NETWORK, "--steps", "90")
    assert ours == (*multitask.NETWORK, *multitask.BALANCE, "--steps", "90")
    assert multitask.flags(multitask.SUCCESSES, 90)[-3:] == ("--only-successful", "--steps", "30")


def test_seeds_are_joined_by_skill_and_means_are_over_skills():
    results = {
        "tabletop/ours/0": {"tasks": {"pick": [3, 4], "open_drawer": [1, 2]}},
        "tabletop/ours/1": {"tasks": {"pick": [1, 4], "open_drawer": [2, 2]}},
        "tabletop/cloning/0": {"tasks": {"pick": [1, 8], "open_drawer": [1, 4]}},
    }
    table = multitask.tabulate(results, multitask.read_arguments(["--seeds", "2"]))
    assert {skill: each["success_rate"] for skill, each in table["ours"].items()} == {"open_drawer": 0.75, "pick": 0.5}
    assert table["ours"]["pick"]["episodes"] == 8
    log = {"pick": multitask.rate(1, 10), "open_drawer": multitask.rate(3, 10)}
    found = multitask.summary({"log": log, **table})
    assert found["mean_success"] == {"log": 0.2, "ours": 0.625, "cloning": 0.1875}
    assert (found["ratio"], found["ratio_to_log"]) == (3.333, 3.125)


class Reaching:
    """Moves the gripper straight to the middle of the object in one row."""

    def __init__(self, environment, row):
        self.environment, self.row = environment, row

    def reset(self, slot):
        pass

    def act(self, slots, observations):
        (observation,) = observations
        place = told_apart.columns(self.environment, "objects", f"row{self.row}_position")
        hand = told_apart.columns(self.environment, "state", "gripper_position")
        offset = observation["objects"].ravel()[place] - observation["state"][hand]
        return np.concatenate([np.clip(20 * offset, -1, 1), np.zeros(3), [1.0]])[None].astype(np.float32)


def test_the_object_that_the_gripper_comes_nearest_to_is_approached():
    environment = gymnasium.make(told_apart.ENVIRONMENT)
    observation, info = environment.reset(seed=4)
    rows = told_apart.object_rows(environment, observation)
    assert info["target"] in rows
    assert len(rows) == len(environment.unwrapped.scene.items)  # pyright: ignore[reportAttributeAccessIssue]
    for row in rows[:2]:
        observation, _ = environment.reset(seed=4)
        assert told_apart.approached(environment, Reaching(environment, row), observation) == row


@pytest.mark.slow
def test_the_whole_of_it_in_small(tmp_path, capsys):
    assert multitask.main(["--quick", "--work", str(tmp_path), "--picture", str(tmp_path / "picture.png")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["success"]) == {"log", "ours", "cloning"}
    assert result["told_apart"]["episodes"] >= 2
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    before = (tmp_path / "quick" / "results.jsonl").read_text()
    assert multitask.main(["--quick", "--work", str(tmp_path)]) == 0
    assert (tmp_path / "quick" / "results.jsonl").read_text() == before
