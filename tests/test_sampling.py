"""Which steps batches begin at: by hand, in proportion to their weights, the same at every call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode
from hypothesis import given
from hypothesis import strategies as st

from qtransformer_datasets.sampling import StartSampler, step_weights
from qtransformer_datasets.schema import DatasetError


def make_starts(lengths, weights, seed=0):
    return StartSampler(np.array(lengths), np.array(weights, float), seed)


def told(length, task):
    episode = make_episode(length, success=task == "lift")
    texts = {} if task is None else {"instruction": np.array([task] * (length + 1))}
    return replace(episode, observations=episode.observations | texts)


def test_positions_by_hand():
    starts = make_starts([3, 2], [1, 3])
    assert starts.at(np.array([0.0, 0.9, 2.9, 3.0, 5.9, 6.0, 8.99])).tolist() == [0, 0, 2, 3, 3, 4, 4]


def test_the_random_numbers_are_those_of_numpys_philox():
    uniform = np.random.Generator(np.random.Philox(key=np.array([7, 3], np.uint64))).random(5)
    assert make_starts([1000], [1], seed=7).draw(3, 5).tolist() == np.floor(1000 * uniform).astype(int).tolist()


@pytest.mark.parametrize("weights", [[1, 1, 1], [4, 1, 0.5]])
def test_steps_are_drawn_in_proportion_to_their_weights(weights):
    lengths = [1, 2, 17]
    drawn = make_starts(lengths, weights).draw(0, 40_000)
    chances = np.repeat(weights, lengths) / np.dot(weights, lengths)
    counts = np.bincount(drawn, minlength=20)
    assert ((counts - 40_000 * chances) ** 2 / (40_000 * chances)).sum() < 50  # chi-square, 19 degrees: 1e-4


def test_seed_and_number_decide_the_draw_and_nothing_else():
    starts, draws = make_starts([100_000], [1]), {}
    for number in (5, 0, 5, 2**40):
        draws.setdefault(number, []).append(starts.draw(number, 8).tolist())
    assert draws[5][0] == draws[5][1]
    others = [draws[0][0], draws[2**40][0], make_starts([100_000], [1], seed=1).draw(5, 8).tolist()]
    assert draws[5][0] not in others
    assert make_starts([100_000], [1]).draw(5, 8).tolist() == draws[5][0]
    assert make_starts([9], [1], seed=2**64 - 1).draw(0, 3).shape == (3,)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1e-6, 1e6)), min_size=1, max_size=20), st.integers(0, 2**64 - 1)
)
def test_every_draw_is_a_step(episodes, seed):
    lengths, weights = zip(*episodes, strict=True)
    drawn = make_starts(lengths, weights, seed).draw(0, 200)
    assert drawn.dtype == np.int64
    assert ((drawn >= 0) & (drawn < sum(lengths))).all()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match=rf"seed \({seed}\) must be in \[0, 2\^64\)"):
        make_starts([1], [1], seed)


def shares(dataset, balance):
    """Returns the chance that a start lies in each episode."""
    masses = step_weights(dataset, balance) * [episode.num_steps for episode in dataset.episodes]
    return (masses / masses.sum()).tolist()


def test_all_steps_alike(tmp_path):
    assert shares(make_dataset(tmp_path, [make_episode(1), make_episode(3)]), "steps") == [0.25, 0.75]


def test_each_instruction_as_often(tmp_path):
    dataset = make_dataset(tmp_path, [told(1, "lift"), told(6, "push"), told(3, "lift")])
    np.testing.assert_allclose(shares(dataset, "task"), [1 / 8, 1 / 2, 3 / 8])


def test_half_from_successes(tmp_path):
    episodes = [make_episode(2), make_episode(30, success=False), replace(make_episode(10), success=None)]
    np.testing.assert_allclose(shares(make_dataset(tmp_path, episodes), "success"), [1 / 2, 3 / 8, 1 / 8])


def test_where_all_succeeded_all_steps_are_alike(tmp_path):
    assert shares(make_dataset(tmp_path, [make_episode(1), make_episode(3)]), "success") == [0.25, 0.75]


def test_better_returns_are_drawn_more_often_whatever_their_unit(tmp_path):
    rewards = [np.array([0.0, each]) for each in (5.0, -1.0, 2.0, 2.0)]
    for factor in (1.0, 1e-6, 1e6):
        episodes = [replace(make_episode(2), rewards=factor * each) for each in rewards]
        weights = step_weights(make_dataset(tmp_path, episodes), "return")
        assert weights.tolist() == [7 / 4, 1 / 4, 1.0, 1.0]  # ranks 3.5, 0.5, and 2 for the two that tie


def test_equal_returns_are_drawn_alike(tmp_path):
    assert step_weights(make_dataset(tmp_path, [make_episode(n) for n in (1, 2, 9)]), "return").tolist() == [1, 1, 1]


def test_a_log_that_does_not_say_what_the_balance_goes_by(tmp_path):
    silent = replace(make_episode(2), success=None)
    with pytest.raises(DatasetError, match="balance 'success' needs to know which episodes succeeded; use 'steps'"):
        step_weights(make_dataset(tmp_path, [silent]), "success")
    with pytest.raises(DatasetError, match=r"episode_0: balance 'task' needs an instruction, got none; add one, or"):
        step_weights(make_dataset(tmp_path, [told(1, "lift"), told(1, None)]), "task")
