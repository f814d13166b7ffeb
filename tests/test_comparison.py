"""The equations of a comparison: numbers worked by hand, identities, and what they promise, computed exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qtransformer.comparison import (
    crossed_difference,
    holm,
    mcnemar_p,
    paired_episodes,
    paired_interval,
    probability_of_improvement,
)

Z = 1.959963984540054
COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)).filter(lambda each: sum(each) > 0)


def outcomes(num_trainings, num_episodes=6):
    cells = st.lists(st.booleans(), min_size=num_trainings * num_episodes, max_size=num_trainings * num_episodes)
    return cells.map(lambda each: np.array(each, float).reshape(num_trainings, num_episodes))


# --- two policies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (1, 6, 2 * (1 + 7) / 128), (3, 3, 1.0), (12, 2, 2 * 106 / 2**14)],
)
def test_exact_test_by_hand(only_a, only_b, p):
    assert mcnemar_p(only_a, only_b) == pytest.approx(p, rel=1e-12)


def test_exact_test_of_many_episodes():
    assert mcnemar_p(2600, 2400) == pytest.approx(math.erfc(199 / math.sqrt(2 * 5000)), rel=2e-3)
    assert 0 < mcnemar_p(900, 100) < 1e-100


def test_paired_interval_without_discordance_by_hand():
    """All agree: p(d) = 0, so n d = z^2 (1 - d)."""
    limit = Z**2 / (30 + Z**2)
    assert paired_interval(0, 0, 30) == pytest.approx((-limit, limit), abs=1e-12)


def test_paired_interval_of_a_clean_sweep_by_hand():
    """A alone succeeds in all of 5: below, p(d) = (1 - d) / 2, so 5 (1 - d) = z^2 (1 + d)."""
    assert paired_interval(5, 0, 5) == pytest.approx(((5 - Z**2) / (5 + Z**2), 1.0), abs=1e-12)


@pytest.mark.parametrize(("only_a", "only_b", "episodes"), [(12, 2, 50), (3, 9, 20), (1, 0, 40)])
def test_limits_are_where_the_score_test_turns(only_a, only_b, episodes):
    """The likeliest share is searched on a grid here, not solved for."""
    for limit in paired_interval(only_a, only_b, episodes):
        shares = np.linspace(max(0, -limit), (1 - limit) / 2, 400_001)[1:-1]
        likelihood = only_b * np.log(shares) + only_a * np.log(shares + limit)
        likelihood += (episodes - only_a - only_b) * np.log(1 - 2 * shares - limit)
        share = shares[np.argmax(likelihood)]
        score = (only_a - only_b - episodes * limit) / math.sqrt(episodes * (2 * share + limit * (1 - limit)))
        assert abs(score) == pytest.approx(Z, abs=2e-3)


@given(COUNTS)
def test_paired_equations_know_no_order_and_hold_the_estimate(counts):
    only_a, only_b, _ = counts
    episodes = sum(counts)
    low, high = paired_interval(only_a, only_b, episodes)
    assert -1 <= low <= (only_a - only_b) / episodes <= high <= 1
    assert paired_interval(only_b, only_a, episodes) == (-high, -low)
    assert mcnemar_p(only_a, only_b) == mcnemar_p(only_b, only_a)


def test_interval_narrows_with_the_error_rate_and_the_episodes():
    wide, narrow = paired_interval(12, 2, 50, 0.01), paired_interval(12, 2, 50, 0.1)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert np.ptp(paired_interval(48, 8, 200)) < np.ptp(paired_interval(12, 2, 50)) * 0.55


def coverage(episodes, only_a, only_b):
    """Returns the exact probability that the interval holds the true difference."""
    covered, log = 0.0, math.lgamma
    for x in range(episodes + 1):
        for y in range(episodes + 1 - x):
            rest = episodes - x - y
            ways = log(episodes + 1) - log(x + 1) - log(y + 1) - log(rest + 1)
            chance = math.exp(ways) * only_a**x * only_b**y * (1 - only_a - only_b) ** rest
            low, high = paired_interval(x, y, episodes)
            covered += chance * (low <= only_a - only_b <= high)
    return covered


@pytest.mark.parametrize(("only_a", "only_b"), [(0.3, 0.15), (0.05, 0.05), (0.5, 0.01)])
def test_interval_holds_the_truth_as_often_as_it_says(only_a, only_b):
    assert 0.93 <= coverage(25, only_a, only_b) <= 0.995


def test_episodes_needed_by_hand():
    """K = 1.959964 sqrt(0.4) + 0.841621 sqrt(0.36) = 1.744564; ((K + sqrt(K^2 + 0.8)) / 0.4)^2 = 85.8."""
    assert paired_episodes(0.2, 0.4) == 86


def test_policies_differ_at_least_as_often_as_is_to_be_seen():
    assert paired_episodes(0.1, 0.0) == paired_episodes(0.1, 0.1)
    assert paired_episodes(0.1, 0.2) < paired_episodes(0.1, 0.3) < paired_episodes(0.1, 0.3, 0.01)


def power(episodes, difference, discordance):
    """Returns the exact power of the exact test at 5 %."""
    towards, found, log = (discordance + difference) / (2 * discordance), 0.0, math.lgamma
    for m in range(episodes + 1):
        ways = log(episodes + 1) - log(m + 1) - log(episodes - m + 1)
        chance = math.exp(ways) * discordance**m * (1 - discordance) ** (episodes - m)
        critical = [k for k in range(m // 2 + 1) if mcnemar_p(k, m - k) <= 0.05] if chance > 1e-10 else []
        found += chance * sum(
            math.comb(m, k) * (towards ** (m - k) * (1 - towards) ** k + towards**k * (1 - towards) ** (m - k))
            for k in critical
        )
    return found


@pytest.mark.parametrize(
    ("difference", "discordance"), [(0.15, 0.2), (0.15, 0.35), (0.15, 0.5), (0.3, 0.5), (0.1, 0.15)]
)
def test_needed_episodes_have_the_power_that_they_promise(difference, discordance):
    assert 0.8 <= power(paired_episodes(difference, discordance), difference, discordance) < 0.88


def test_holm_by_hand():
    """Ranked 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; none below one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7]) == [0.7]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# --- methods with several trainings -----------------------------------------------------------------------------------

TRAININGS = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
NOTHING = np.zeros((1, 4))


def test_crossed_difference_by_hand():
    """Between episodes (0.5 + 1) / 12 = 1/8, trainings 0.125 / 2 = 1/16, in both 0.5 / 3 / 8 = 1/48."""
    crossed = crossed_difference(TRAININGS, NOTHING)
    assert crossed.difference == 0.5
    assert (crossed.training_part, crossed.episode_part) == pytest.approx((1 / 16 - 1 / 48, 1 / 8 + 1 / 48))
    assert crossed.variance == pytest.approx(1 / 8 + 1 / 16 - 1 / 48)
    assert crossed.degrees_of_freedom == pytest.approx((1 / 6) ** 2 / ((1 / 8) ** 2 / 3 + (1 / 16) ** 2))
    assert crossed.p_value() == pytest.approx(2 * stats.t.sf(0.5 * math.sqrt(6), 3.047619), rel=1e-6)
    margin = stats.t.isf(0.025, 3.047619) * math.sqrt(1 / 6)
    assert crossed.interval() == pytest.approx((0.5 - margin, 1.0), rel=1e-6)


def test_the_variance_is_never_below_one_of_its_parts():
    """Trainings of one rate in different episodes: 1/8 between episodes, 1/24 in both, nothing between trainings."""
    crossed = crossed_difference(np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]), NOTHING)
    assert (crossed.variance, crossed.degrees_of_freedom) == (1 / 8, pytest.approx(3.0))


def test_total_agreement_in_few_episodes_is_no_certainty():
    crossed = crossed_difference(np.ones((2, 2)), np.zeros((2, 2)))
    assert crossed.p_value() > 0.2
    assert crossed_difference(np.ones((2, 50)), np.zeros((2, 50))).p_value() < 1e-6


def test_episodes_for_several_trainings_by_hand():
    """d = (t + z) sqrt(1/24 + 7/48 * 4 / n), solved for n."""
    crossed = crossed_difference(TRAININGS, NOTHING)
    tails = stats.t.isf(0.025, crossed.degrees_of_freedom) + 0.8416212335729143
    expected = 4 * (7 / 48) / ((0.9 / tails) ** 2 - 1 / 24)
    assert expected > 0
    assert crossed.episodes(0.9, 4) == math.ceil(expected)
    assert crossed.episodes(0.5, 4) is None  # (0.5 / tails)^2 < 1/24: the trainings alone hide it


@settings(max_examples=40)
@given(outcomes(3), outcomes(2))
def test_crossed_difference_turns_its_sign_and_holds_the_estimate(a, b):
    there, back = crossed_difference(a, b), crossed_difference(b, a)
    assert back.difference == pytest.approx(-there.difference)
    assert back.variance == pytest.approx(there.variance)
    assert back.p_value() == pytest.approx(there.p_value())
    low, high = there.interval()
    assert -1 <= low <= there.difference <= high <= 1
    assert back.interval() == pytest.approx((-high, -low))


def test_variance_is_that_of_resampled_trainings_and_episodes():
    """Resampling both counts single episodes' noise twice more; drawing one training less corrects for their number."""
    rng = np.random.default_rng(0)
    chances = np.clip(rng.uniform(0.2, 0.8, 80) + rng.normal(0, 0.2, (6, 1)), 0, 1)
    a, b = (rng.random((6, 80)) < chances).astype(float), (rng.random((4, 80)) < chances[:4]).astype(float)
    draws = []
    for _ in range(4000):
        episodes = rng.integers(80, size=80)
        rates = [each[rng.integers(len(each), size=len(each) - 1)][:, episodes].mean() for each in (a, b)]
        draws.append(rates[0] - rates[1])
    crossed = crossed_difference(a, b)
    assert 0.75 * np.var(draws) < crossed.variance < 1.05 * np.var(draws)


def test_probability_of_improvement_by_hand():
    """0.9 and 0.7 beat both, 0.5 ties with one and loses to the other: 4.5 of 6."""
    share, (low, high) = probability_of_improvement(np.array([0.9, 0.5, 0.7]), np.array([0.5, 0.6]))
    assert share == pytest.approx(0.75)
    assert low <= share <= high


def test_probability_of_improvement_of_methods_that_do_not_overlap():
    better, worse = np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3])
    assert probability_of_improvement(better, worse) == (1.0, (1.0, 1.0))
    assert probability_of_improvement(worse, better) == (0.0, (0.0, 0.0))


def test_interval_of_the_improvement_is_that_of_all_resamples():
    """Two trainings each have 16 resamples; with wins ((1, 1), (0, 1)) the shares 0 and 1 have 1/16 and 7/16."""
    a, b = np.array([0.9, 0.5]), np.array([0.6, 0.4])
    share, interval = probability_of_improvement(a, b)
    assert (share, interval) == (0.75, (0.0, 1.0))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=5), st.lists(st.integers(0, 10), min_size=1, max_size=5))
def test_improvement_of_both_ways_is_certain(a, b):
    there, back = (probability_of_improvement(np.array(x) / 10, np.array(y) / 10) for x, y in ((a, b), (b, a)))
    assert there[0] + back[0] == pytest.approx(1)
    assert there[1][0] <= there[0] <= there[1][1]
