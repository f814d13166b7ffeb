"""Statistics of observations against numpy; the values that quantile bins stand for, by hand and by their rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from qtransformer_datasets import statistics as module
from qtransformer_datasets.schema import Episode
from qtransformer_datasets.statistics import action_centres, statistics


def as_double(episode: Episode) -> Episode:
    return replace(episode, observations={key: value.astype(np.float64) for key, value in episode.observations.items()})


def test_statistics_match_numpy_where_a_sum_of_squares_fails(tmp_path):
    episodes = [make_episode(n, seed=n) for n in (1, 7, 30)]
    episodes = [
        replace(each, observations={"state": each.observations["state"] + 1e9}) for each in map(as_double, episodes)
    ]
    rows = np.concatenate([episode.observations["state"] for episode in episodes])
    found = statistics(make_dataset(tmp_path, episodes))["state"]
    for name in ("mean", "std", "min", "max"):
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], getattr(rows, name)(axis=0), rtol=1e-6)


def centres_of(tmp_path, first, second, num_cells):
    """Centres of a log of two dimensions with limits -1 and 1, in two episodes."""
    actions = np.stack([first, second], axis=1).astype(np.float32)
    half = len(actions) // 2
    episodes = [replace(make_episode(len(rows)), actions=rows) for rows in (actions[:half], actions[half:])]
    return action_centres(make_dataset(tmp_path, episodes), num_cells)


def test_a_smooth_dimension_gives_the_middles_of_equal_shares(tmp_path):
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 0.2, 20_000).clip(-1, 1), generator.uniform(-0.1, 0.5, 20_000)
    centres = centres_of(tmp_path, first, second, 16)
    middles = (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(centres[0], np.quantile(first, middles), atol=1e-3)
    np.testing.assert_allclose(centres[1], np.quantile(second, middles), atol=1e-3)


@pytest.mark.parametrize("num_cells", [2, 3, 32, 256])
def test_the_two_values_of_a_gripper_are_centres(tmp_path, num_cells):
    gripper = np.repeat([-1.0, 1.0], [90, 10])
    centres = centres_of(tmp_path, gripper, 0.04 * (gripper > 0), num_cells)
    assert (centres[0, 0], centres[0, -1]) == (-1, 1)
    assert np.abs(centres[1]).min() < 2e-6
    assert np.abs(centres[1] - 0.04).min() < 2e-6
    assert (np.diff(centres) > 0).all()


def test_a_dimension_that_never_changes_keeps_its_value(tmp_path):
    centres = centres_of(tmp_path, np.zeros(9), np.full(9, -1.0), 4)
    # the value fills a cell; the rest is the step spread over the limits at -3/4, -1/4, 1/4, 3/4
    assert centres[0].tolist() == [-0.75, -0.25, 0.0, 0.75]
    assert centres[1].tolist() == [-1.0, -0.75, -0.25, 0.75]


def test_frequent_values_take_one_cell_and_leave_the_rest_to_others(tmp_path):
    # 60 % stand still: of 4 cells one is that value, three share the rest, 0.51, 0.52, ... 0.90, at their middles
    rest = 0.5 + np.arange(1, 41) / 100
    centres = centres_of(tmp_path, np.concatenate([np.zeros(60), rest]), np.linspace(-1, 1, 100), 4)
    np.testing.assert_allclose(centres[0, 1:], [0.57, 0.70, 0.84], atol=0.011)
    assert centres[0, 0] == 0


def test_limits_that_coincide_give_one_value(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(5)])
    actions = replace(dataset.spec.actions, low=(-1.0, 0.25), high=(1.0, 0.25))
    with np.errstate(all="raise"):
        centres = action_centres(replace(dataset, spec=replace(dataset.spec, actions=actions)), 3)
    assert centres[1].tolist() == [0.25] * 3
    assert (np.diff(centres[0]) > 0).all()


def test_actions_beyond_the_limits_count_at_the_limits(tmp_path):
    centres = centres_of(tmp_path, np.repeat([-1.00001, 1.00001], 5), np.repeat([-0.5, 0.5], 5), 4)
    assert (centres[0, 0], centres[0, -1]) == (-1, 1)


def test_cutting_to_equal_shares_by_hand():
    # a fourth of 20 is 5, so 11 is cut; a third of the other 9 is 3, so 4 is cut; half of the other 5 cuts no more
    assert (module._capped(np.array([4, 1, 11, 2, 2]), 4) / 2).tolist() == [2.5, 1, 2.5, 2, 2]
    assert module._capped(np.array([1, 1, 1, 1]), 2).tolist() == [2, 2, 2, 2]  # nothing to cut; times 2
    assert module._capped(np.array([9, 1, 5]), 3).tolist() == [1, 1, 1]  # as many values as shares


LOGS = st.integers(0, 9999).map(np.random.default_rng)


@settings(deadline=None)
@given(LOGS, st.sampled_from([2, 3, 32, 256, 4096]), st.integers(1, 300), st.integers(1, 400))
def test_values_are_distinct_and_hold_what_is_logged_often(generator, num, num_values, num_steps):
    values = generator.choice(module._RESOLUTION + 1, num_values, replace=False)
    steps = generator.choice(values, num_steps, p=generator.dirichlet(np.full(num_values, 0.3)))
    chosen = module._middles(steps, num)
    assert (np.diff(chosen) > 0).all()
    assert (len(chosen), chosen[0] >= 0, chosen[-1] <= module._RESOLUTION) == (num, True, True)
    logged, counts = np.unique(steps, return_counts=True)
    if len(logged) <= num:
        assert np.isin(logged, chosen).all()
    assert np.isin(logged[counts * num > num_steps + 1], chosen).all()  # those that fill a share


@settings(deadline=None)
@given(LOGS, st.sampled_from([2, 3, 32]), st.integers(32, 600))
def test_without_ties_every_centre_speaks_for_as_many_steps(generator, num, num_steps):
    steps = np.sort(generator.choice(module._RESOLUTION + 1, num_steps, replace=False))
    ranks = np.searchsorted(steps, module._middles(steps, num), side="right")
    np.testing.assert_allclose(ranks, (np.arange(num) + 0.5) * num_steps / num, atol=1.51)
