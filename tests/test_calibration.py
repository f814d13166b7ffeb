"""Means with intervals that count episodes, rank correlation and groups, all against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qtransformer.calibration import calibrate, mean_of, rank_correlation


def array(*values):
    return np.array(values, np.float64)


def test_the_interval_of_a_mean_counts_episodes():
    """Residual sums of the two episodes: 2 - 2 * 5/3 = -4/3 and 3 - 5/3 = 4/3; variance 2/1 * 2 * 16/9 / 9 = 64/81."""
    mean = mean_of(array(1, 1, 3), np.array([7, 7, 9]))
    half = 1.96 * 8 / 9
    assert (mean.mean, mean.num_steps, mean.num_episodes) == (pytest.approx(5 / 3), 3, 2)
    assert (mean.low, mean.high) == (pytest.approx(5 / 3 - half), pytest.approx(5 / 3 + half))


def test_copies_of_a_step_inside_an_episode_are_no_further_evidence():
    once = mean_of(array(0, 1, 5), np.array([0, 1, 2]))
    often = mean_of(np.repeat(array(0, 1, 5), 100), np.repeat(np.array([0, 1, 2]), 100))
    assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_steps_that_are_episodes_have_the_usual_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    mean = mean_of(values, np.arange(50))
    assert mean.high - mean.mean == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(50))


def test_one_episode_has_no_interval():
    mean = mean_of(array(1, 2), np.array([0, 0]))
    assert mean.mean == 1.5
    assert math.isnan(mean.low)
    assert math.isnan(mean.high)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (array(1, 2, 3), array(10, 20, 900), 1.0),
        (array(1, 2, 3), array(3, 2, -5), -1.0),
        (array(1, 1, 2), array(1, 2, 3), math.sqrt(0.75)),  # ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(1.5 * 2)
    ],
)
def test_rank_correlation(left, right, expected):
    assert rank_correlation(left, right) == pytest.approx(expected)


def test_rank_correlation_of_a_constant_is_not_defined():
    assert math.isnan(rank_correlation(array(1, 1, 1), array(1, 2, 3)))
    assert math.isnan(rank_correlation(array(1, 2, 3), array(4, 4, 4)))


def test_groups_follow_the_predictions():
    """Predictions 0 .. 19 shuffled, return = half of the prediction: groups of two, lowest first."""
    predictions = np.random.default_rng(0).permutation(20).astype(np.float64)
    calibration = calibrate(predictions, predictions / 2, np.arange(20))
    assert [group.prediction for group in calibration.groups] == [0.5 + 2 * k for k in range(10)]
    assert [group.realised.mean for group in calibration.groups] == [0.25 + k for k in range(10)]
    assert calibration.bias.mean == pytest.approx(9.5 / 2)
    assert calibration.error == pytest.approx(math.sqrt(np.mean((np.arange(20) / 2) ** 2)))
    assert calibration.rank_correlation == pytest.approx(1.0)


def test_fewer_steps_than_groups():
    calibration = calibrate(array(2, 1), array(0, 0), np.array([0, 1]))
    assert [group.prediction for group in calibration.groups] == [1.0, 2.0]
    assert calibration.bias.mean == 1.5
