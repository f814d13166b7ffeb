"""What is said of methods and pairs: by hand, and as often right as it is said to be, on drawn outcomes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from qtransformer.comparison import paired_episodes
from qtransformer.comparison_pairs import CROSSED, EXACT, Method, compare, require_comparable
from qtransformer.config import RunError
from qtransformer.outcomes import wilson_interval

REPETITIONS = 200


def make_method(name, *rows):
    return Method(name, tuple(f"runs/{name}{place}" for place in range(len(rows))), np.array(rows, float))


def at_most(rate, repetitions=REPETITIONS):
    """Returns the count that events of `rate` exceed once in a thousand times."""
    below = 0.0
    for count in range(repetitions + 1):
        below += math.comb(repetitions, count) * rate**count * (1 - rate) ** (repetitions - count)
        if below >= 0.999:
            return count
    raise AssertionError


def draw_chances(rng, episodes, low=0.1, high=0.7):
    """Returns the chance of success in each episode: some are harder than others, for all policies."""
    return rng.uniform(low, high, episodes)


def draw_method(rng, name, chances, trainings=1, spread=0.0):
    """Returns a method whose trainings differ by about `spread` in their success rate."""
    shifted = np.clip(chances + rng.normal(0, spread, (trainings, 1)), 0, 1)
    return make_method(name, *(rng.random(shifted.shape) < shifted))


# --- by hand ----------------------------------------------------------------------------------------------------------

A = make_method("a", [1, 1, 1, 1, 1, 1, 1, 0, 1, 0])
B = make_method("b", [0, 0, 0, 0, 0, 0, 1, 0, 1, 0])
C = make_method("c", [1, 0, 0, 0, 0, 0, 1, 0, 1, 0])


def test_a_pair_by_hand():
    """A alone succeeds in six episodes, B in none: p = 2 / 64."""
    (pair,) = compare([A, B], 20.0).pairs
    assert (pair.test, pair.only_a, pair.only_b, pair.difference) == (EXACT, 6, 0, pytest.approx(0.6))
    assert pair.p_value == pair.adjusted_p_value == 2 / 64
    assert pair.better == "a"
    assert pair.probability_of_improvement is None
    (turned,) = compare([B, A], 20.0).pairs
    assert (turned.better, turned.difference) == ("a", pytest.approx(-0.6))
    assert turned.interval == (-pair.interval[1], -pair.interval[0])


def test_three_methods_are_corrected_by_hand():
    """p-values 2/64, 2/32 and 1, times 3, 2 and 1: what held for one pair holds for three no more."""
    pairs = compare([A, B, C], 20.0).pairs
    assert [(each.a, each.b) for each in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [each.p_value for each in pairs] == [2 / 64, 2 / 32, 1.0]
    assert [each.adjusted_p_value for each in pairs] == [6 / 64, 4 / 32, 1.0]
    assert [each.better for each in pairs] == [None, None, None]
    alone = compare([A, B], 20.0).pairs[0].episodes_needed
    assert (pairs[0].episodes_needed, alone) == (paired_episodes(0.2, 0.6, 0.05 / 3), paired_episodes(0.2, 0.6, 0.05))


def test_one_training_has_wilsons_interval_and_several_have_a_wider_one():
    assert A.interval() == wilson_interval(8, 10)
    good, bad = [1] * 45 + [0] * 5, [0] * 30 + [1] * 20
    low, high = make_method("m", good, bad, good).interval()
    assert (low, high) == (pytest.approx(0.0, abs=0.1), 1.0)
    assert high - low > np.ptp(wilson_interval(110, 150))


def test_groups_are_compared_over_trainings():
    rng = np.random.default_rng(0)
    chances = draw_chances(rng, 100)
    better, worse = draw_method(rng, "x", chances + 0.3, 4, 0.03), draw_method(rng, "y", chances, 3, 0.03)
    (pair,) = compare([better, worse], 5.0).pairs
    assert (pair.test, pair.only_a, pair.better) == (CROSSED, None, "x")
    assert pair.probability_of_improvement == (1.0, (1.0, 1.0))
    assert pair.difference == pytest.approx(better.outcomes.mean() - worse.outcomes.mean())


def test_a_single_training_stands_for_itself_against_a_group():
    rng = np.random.default_rng(0)
    chances = draw_chances(rng, 60)
    (pair,) = compare([draw_method(rng, "x", chances), draw_method(rng, "y", chances, 3, 0.1)], 5.0).pairs
    assert (pair.test, pair.probability_of_improvement) == (CROSSED, None)


def test_the_document_by_hand():
    document = json.loads(json.dumps(compare([A, B], 90.0).to_json()))
    assert (document["episodes"], document["error_rate"], document["points"]) == (10, 0.05, 90)
    assert document["methods"][0]["trainings"][0]["path"] == "runs/a0"
    assert document["methods"][0]["trainings"][0]["outcomes"] == [bool(each) for each in A.outcomes[0]]
    assert (document["methods"][1]["success_rate"], document["methods"][1]["trainings"][0]["successes"]) == (0.2, 2)
    (pair,) = document["pairs"]
    assert (pair["a"], pair["b"], pair["better"], pair["only_a"], pair["only_b"]) == ("a", "b", "a", 6, 0)
    assert pair["more_episodes"] == max(0, pair["episodes_needed"] - 10)
    group = make_method("g", [1] * 10, [1] * 9 + [0])
    (pair,) = compare([group, make_method("h", [0] * 10, [0] * 10)], 90.0).to_json()["pairs"]
    assert pair["probability_of_improvement"] == {"value": 1.0, "interval": [1.0, 1.0]}


@pytest.mark.parametrize("points", [0.0, -5.0, 100.0, math.nan])
def test_points_that_are_no_difference(points):
    with pytest.raises(RunError, match=r"points \(.*\) must be above 0 and below 100"):
        compare([A, B], points)


def test_what_cannot_be_compared():
    with pytest.raises(RunError, match=r"policies \(1\) must be at least 2"):
        require_comparable(1, 5.0)
    with pytest.raises(RunError, match=r"episodes \(1\) must be at least 2 to compare several trainings"):
        compare([make_method("x", [1], [0]), make_method("y", [1])], 5.0)


# --- as often right as it is said to be -------------------------------------------------------------------------------


def test_the_same_outcomes_differ_in_nothing():
    for name in ("a", "c"):
        (pair,) = compare([A, Method(name, A.trainings, A.outcomes)], 5.0).pairs
        assert (pair.p_value, pair.better, pair.difference) == (1.0, None, 0.0)


@pytest.mark.parametrize(
    ("num_methods", "trainings", "spread"), [(2, 1, 0.0), (4, 1, 0.0), (2, 2, 0.1), (2, 3, 0.0), (3, 3, 0.1)]
)
def test_equal_methods_are_told_apart_no_more_often_than_is_said(num_methods, trainings, spread):
    """Over all pairs: one false verdict in a comparison of several methods counts as much as three."""
    rng, alarms = np.random.default_rng(num_methods * 10 + trainings), 0
    for _ in range(REPETITIONS):
        chances = draw_chances(rng, 60)
        methods = [draw_method(rng, f"m{place}", chances, trainings, spread) for place in range(num_methods)]
        alarms += any(pair.better for pair in compare(methods, 5.0).pairs)
    assert alarms <= at_most(0.05)


def found(trainings, spread, seed):
    """Returns how often a planted difference is found with the episodes that a first look at 100 asked for."""
    rng, count = np.random.default_rng(seed), 0

    def draw(episodes):
        chances = draw_chances(rng, episodes)
        return [
            draw_method(rng, "a", chances + 0.15, trainings, spread),
            draw_method(rng, "b", chances, trainings, spread),
        ]

    for _ in range(REPETITIONS):
        episodes = compare(draw(100), 15.0).pairs[0].episodes_needed
        assert episodes is not None
        count += compare(draw(episodes), 15.0).pairs[0].better == "a"
    return count


def test_a_planted_difference_of_15_points_is_found_with_the_episodes_asked_for():
    """Two policies: power 80 %, less what 200 repetitions scatter."""
    assert REPETITIONS - found(1, 0.0, seed=0) <= at_most(0.2)


def test_a_planted_difference_of_groups_is_found_with_the_episodes_asked_for():
    assert REPETITIONS - found(5, 0.0, seed=1) <= at_most(0.2)
