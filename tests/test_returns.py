"""Returns by hand: terminated, cut off, sparse, dense and negative."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from qtransformer_datasets.returns import discounted_returns, least_future, monte_carlo_returns, return_range


def episode(rewards, *, terminated):
    return replace(make_episode(len(rewards), success=terminated), rewards=np.array(rewards, float))


def test_discounted_returns_by_hand():
    np.testing.assert_allclose(discounted_returns(np.array([1.0, 0.0, 2.0, 4.0]), 0.5), [2.0, 2.0, 4.0, 4.0])
    np.testing.assert_allclose(discounted_returns(np.array([0.0, 0.0, 1.0]), 0.9), [0.81, 0.9, 1.0])
    np.testing.assert_allclose(discounted_returns(np.array([-1.0, -1.0]), 0.5, final=-2.0), [-2.0, -2.0])
    assert discounted_returns(np.zeros(0), 0.9).shape == (0,)


def test_sparse_success_is_worth_nothing_after_a_cut():
    episodes = [episode([0, 0, 1], terminated=True), episode([0, 0], terminated=False)]
    found = monte_carlo_returns(episodes, 0.5)
    assert [each.tolist() for each in found] == [[0.25, 0.5, 1.0], [0.0, 0.0]]
    assert return_range(episodes, 0.5) == (0.0, 1.0)


def test_a_penalty_a_step_goes_on_after_a_cut():
    # -1 until success: an episode that was cut off counts as one that never gets there, -1 / (1 - 0.5) from each step
    episodes = [episode([-1, -1, 0], terminated=True), episode([-1, -1, -1], terminated=False)]
    found = monte_carlo_returns(episodes, 0.5)
    assert [each.tolist() for each in found] == [[-1.5, -1.0, 0.0], [-2.0, -2.0, -2.0]]
    assert return_range(episodes, 0.5) == (-2.0, 0.0)


def test_dense_rewards_leave_room_above_the_best_episode():
    # returns 2.5 and 3, and 0 after the end; a quarter of the range above that is less than 3 for ever, 6
    episodes = [episode([1, 3, 0], terminated=True)]
    assert return_range(episodes, 0.5) == (0.0, pytest.approx(3.0 + 0.25 * 3.0))
    # where every step already pays the most, for ever is the limit: 1.75 seen, 2 possible, 2.1875 with a quarter more
    assert return_range([episode([1, 1, 1, 0], terminated=True)], 0.5) == (0.0, pytest.approx(2.0))


def test_where_nothing_ends_there_is_no_return_of_nothing():
    """Cut off, the least reward goes on: 1, 1, ... is 2; so 2.5 + 0.5 and 3 + 1, and a quarter of 1 above."""
    log = [episode([1, 3], terminated=False)]
    assert least_future(log, 0.5) == 2.0
    assert monte_carlo_returns(log, 0.5)[0].tolist() == [3.0, 4.0]
    assert return_range(log, 0.5) == (3.0, 4.25)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=5), min_size=1, max_size=3),
    st.floats(-50, 50),
    st.sampled_from([0.0, 0.5, 0.9]),
)
def test_a_constant_moves_both_ends_alike_where_nothing_ends(rewards, constant, discount):
    low, high = return_range([episode(each, terminated=False) for each in rewards], discount)
    moved = return_range([episode([r + constant for r in each], terminated=False) for each in rewards], discount)
    if high - low > 1e-6:  # not rounding alone
        assert moved == pytest.approx([end + constant / (1 - discount) for end in (low, high)], abs=1e-6)


def test_shifted_rewards_keep_their_order():
    better, worse = episode([-1, 5], terminated=True), episode([-3, -3], terminated=False)
    found = monte_carlo_returns([better, worse], 0.5)
    assert found[0].tolist() == [1.5, 5.0]
    assert found[1].tolist() == [-6.0, -6.0]
    assert return_range([better, worse], 0.5) == (-6.0, 5.0)


def test_without_discount_for_ever_is_the_longest_episode():
    episodes = [episode([-1, -1, -1], terminated=True), episode([-1], terminated=False)]
    assert least_future(episodes, 1.0) == -3.0
    assert monte_carlo_returns(episodes, 1.0)[1].tolist() == [-4.0]


def test_a_log_without_rewards_has_a_range_all_the_same():
    assert return_range([episode([0, 0], terminated=False)], 0.9) == (0.0, 1.0)
