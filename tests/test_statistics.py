"""Statistics of observations against numpy; the values that quantile bins stand for, by hand and by their rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st
from loading_fixtures import make_frames, open_images

from qtransformer_datasets import statistics as module
from qtransformer_datasets.formats import hdf5_frames, open_dataset
from qtransformer_datasets.schema import Episode
from qtransformer_datasets.statistics import action_centres, statistics
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler


def as_double(episode: Episode) -> Episode:
    states = {key: np.asarray(rows, np.float64) for key, rows in episode.observations.items()}
    return replace(episode, observations=states)


def test_statistics_match_numpy_where_a_sum_of_squares_fails(tmp_path):
    episodes = [make_episode(n, seed=n) for n in (1, 7, 30)]
    episodes = [
        replace(each, observations={"state": np.asarray(each.observations["state"]) + 1e9})
        for each in map(as_double, episodes)
    ]
    rows = np.concatenate([np.asarray(episode.observations["state"]) for episode in episodes])
    found = statistics(make_dataset(tmp_path, episodes))["state"]
    for name in ("mean", "std", "min", "max"):
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], getattr(rows, name)(axis=0), rtol=1e-6)


QUANTILES = {"q01": 0.01, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q99": 0.99}


def assert_described(found, rows):
    """`rows` are (count, *shape)."""
    assert set(found) == {"mean", "std", "min", "max", *QUANTILES}
    for name, value in found.items():
        expected = np.quantile(rows, QUANTILES[name], axis=0) if name in QUANTILES else getattr(rows, name)(axis=0)
        assert (value.dtype, value.shape) == (np.float64, rows.shape[1:])
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [8, 1000, 2**26])
def test_quantiles_are_exact_however_many_elements_are_sorted_at_a_time(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(n, 3, 2)) for n in (1, 40, 7)]
    assert_described(module.describe(arrays), np.concatenate(arrays))


def test_quantiles_by_hand():
    found = module.describe([np.array([[3.0], [0.0]]), np.array([[1.0], [2.0], [4.0]])])
    assert [found[name].tolist() for name in QUANTILES] == [[0.04], [1.0], [2.0], [3.0], [3.96]]


def test_integers_and_flags_have_statistics(tmp_path):
    episode = make_episode(3)
    rows = {"flag": np.array([[True], [False], [True], [True]]), "count": np.arange(4)[:, None]}
    found = statistics(make_dataset(tmp_path, [replace(episode, observations=rows)], keys=("flag", "count")))
    assert (found["flag"]["mean"].tolist(), found["count"]["q50"].tolist()) == ([0.75], [1.5])


def test_constant_and_single_values_have_no_spread(tmp_path):
    for value in (0.1, -3e8, 0.0):
        episodes = [replace(make_episode(n), observations={"state": np.full((n + 1, 2), value)}) for n in (3, 50)]
        with np.errstate(all="raise"):
            found = statistics(make_dataset(tmp_path, episodes))["state"]
        for name in set(found) - {"std"}:
            np.testing.assert_allclose(found[name], value, rtol=1e-15)
        assert (found["std"] <= 1e-15 * abs(value)).all()


def test_moments_of_parts_merge_to_those_of_the_whole():
    rows = np.random.default_rng(0).normal(5, 2, (60, 3))
    parts = [module.Moments.of(part) for part in np.split(rows, [0, 7, 7, 41])]
    forwards = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]).merge(parts[4])
    pairs = parts[4].merge(parts[0].merge(parts[1])).merge(parts[3].merge(parts[2]))
    for merged in (forwards, pairs):
        for name, value in vars(module.Moments.of(rows)).items():
            np.testing.assert_allclose(getattr(merged, name), value, rtol=1e-12)
    nothing = module.Moments.of(rows[:0])
    assert nothing.merge(nothing).count == 0


def test_no_rows_have_no_statistics(tmp_path):
    for found in (module.describe([np.zeros((0, 2))]), module.describe_histogram(np.zeros((2, 256), np.int64))):
        assert set(found) == {"mean", "std", "min", "max", *QUANTILES}
        assert all(value.shape == (2,) and np.isnan(value).all() for value in found.values())


@settings(deadline=None)
@given(st.integers(0, 9999).map(np.random.default_rng), st.integers(1, 200), st.integers(1, 256))
def test_a_histogram_says_what_its_pixels_say(generator, num, values):
    pixels = generator.integers(values, size=(num, 3)).astype(np.uint8)
    counts = np.stack([np.bincount(column, minlength=256) for column in pixels.T])
    assert_described(module.describe_histogram(counts), pixels.astype(np.float64))


def test_images_are_described_by_channel_and_text_is_left_out(tmp_path):
    dataset = open_images(tmp_path / "log")
    texts = {"instruction": np.array(["push"] * 6)}
    first = dataset.episodes[0]
    told = dataset.with_episodes([replace(first, observations={**texts, **first.observations})])
    found = statistics(told)
    assert list(found) == ["camera", "state"]
    pixels = make_frames(6, 0).reshape(-1, 3).astype(np.float64)
    assert_described(found["camera"], pixels)
    assert_described(found["state"], np.asarray(told.episodes[0].observations["state"], np.float64))


def test_images_are_decoded_once_for_cache_and_statistics(tmp_path, monkeypatch):
    dataset, decoded = open_images(tmp_path / "log", encoding="png"), []
    decode = hdf5_frames.decode
    monkeypatch.setattr(hdf5_frames, "decode", lambda data, where: decoded.append(where) or decode(data, where))
    options = LoadingOptions(storage="mapped")
    sampler = SegmentSampler(dataset, segment_length=2, batch_size=8, discount=0.5, seed=0, options=options)
    assert len(set(decoded)) == 16
    before = len(decoded)
    statistics(dataset)
    sampler.sample()
    statistics(open_dataset(dataset.path))
    assert len(decoded) == before + 3  # the first image of each episode, whose size is read at opening


def test_statistics_of_many_numbers_are_kept(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, [make_episode(30), make_episode(20)])
    before = statistics(dataset)
    assert list(tmp_path.iterdir()) == []  # few are not worth a file
    monkeypatch.setattr(module, "_WORTH_KEEPING", 1)
    np.testing.assert_equal(statistics(dataset), before)
    monkeypatch.setattr(module, "describe", lambda _: pytest.fail("described again"))
    kept = statistics(dataset)
    np.testing.assert_equal(kept, before)
    assert kept["state"]["q99"].dtype == np.float64
    with pytest.raises(pytest.fail.Exception, match="described again"):
        statistics(make_dataset(tmp_path, [make_episode(30)]))


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
    if len(logged) < num:
        assert np.isin(logged, chosen).all()
    assert np.isin(logged[counts * num > num_steps + 1], chosen).all()  # those that fill a share


@settings(deadline=None)
@given(LOGS, st.sampled_from([2, 3, 32]), st.integers(32, 600))
def test_without_ties_every_centre_speaks_for_as_many_steps(generator, num, num_steps):
    steps = np.sort(generator.choice(module._RESOLUTION + 1, num_steps, replace=False))
    ranks = np.searchsorted(steps, module._middles(steps, num), side="right")
    np.testing.assert_allclose(ranks, (np.arange(num) + 0.5) * num_steps / num, atol=1.51)
