"""Rates and their intervals by hand: overall, a task, at the end, once; crashes in none of them."""

from __future__ import annotations

import json

import pytest

from qtransformer.outcomes import CrashedEpisode, EpisodeOutcome, Evaluation, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 20, 0.0, 0.1611252), (20, 20, 0.8388748, 1.0), (50, 100, 0.4038315, 0.5961685)],
)
def test_wilson_interval_of_known_proportions(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-6)


def test_summary_by_hand():
    outcomes = tuple(EpisodeOutcome(seed, seed < 8, float(seed), 10 + seed, True) for seed in range(10))
    document = json.loads(json.dumps(Evaluation("x/Y-v0", outcomes, (1.0, 2.0, 9.0), "a rule").to_json()))
    assert document["interval"] == pytest.approx([0.4901625, 0.9433178], abs=1e-6)
    assert (document["successes"], document["episodes"], document["success_rate"]) == (8, 10, 0.8)
    assert document["success_once"]["interval"] == pytest.approx([0.7224672, 1.0], abs=1e-6)
    assert [document["success_once"][key] for key in ("successes", "episodes", "success_rate")] == [10, 10, 1.0]
    assert (document["mean_return"], document["mean_length"]) == (4.5, 14.5)
    assert document["latency_ms"] == {"median": 2.0, "p99": pytest.approx(8.86)}
    expected = {"seed": 9, "success": False, "episode_return": 9.0, "length": 19, "success_once": True, "task": None}
    assert document["outcomes"][9] == expected
    assert (document["environment_id"], document["success_rule"]) == ("x/Y-v0", "a rule")
    assert [document[key] for key in ("crashed", "crashes", "tasks", "stopped")] == [0, [], {}, None]


def test_tasks_and_crashes_by_hand():
    outcomes = (
        EpisodeOutcome(0, True, 1.0, 5, True, "pick"),
        EpisodeOutcome(1, False, 0.0, 9, True, "push"),
        EpisodeOutcome(2, False, 0.0, 9, False, "pick"),
    )
    crashes = (CrashedEpisode(3, 4, "ValueError: no", "pick"), CrashedEpisode(4, 0, "the process ended", "open"))
    summary = Evaluation("x/Y-v0", outcomes, (1.0,), "a rule", crashes, "no hope").summary()
    assert (summary["successes"], summary["episodes"], summary["crashed"], summary["stopped"]) == (1, 3, 2, "no hope")
    assert list(summary["tasks"]) == ["open", "pick", "push"]
    counted = {
        task: (each["successes"], each["success_once"]["successes"], each["episodes"], each["crashed"])
        for task, each in summary["tasks"].items()
    }
    assert counted == {"open": (0, 0, 0, 1), "pick": (1, 1, 2, 1), "push": (0, 1, 1, 0)}
    assert summary["tasks"]["pick"]["interval"] == list(wilson_interval(1, 2))
    assert (summary["tasks"]["open"]["success_rate"], summary["tasks"]["open"]["interval"]) == (None, [0.0, 1.0])
    assert summary["mean_length"] == pytest.approx(23 / 3)


def test_crashes_are_told_one_by_one():
    crash = CrashedEpisode(3, 4, "ValueError: no", "pick")
    evaluation = Evaluation("x/Y-v0", (EpisodeOutcome(0, True, 1.0, 5, True),), (1.0,), "a rule", (crash,))
    assert evaluation.to_json()["crashes"] == [{"seed": 3, "length": 4, "error": "ValueError: no", "task": "pick"}]
