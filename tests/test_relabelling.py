"""Segments that are told what was not done: by hand, who tells whom, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset
from word_fixtures import CLOSE, OPEN, told_episode

from qtransformer.batch import ObservationSpec
from qtransformer_datasets.schema import DatasetError
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler

PICK = "lift the can"
UNTOUCHED = ("actions", "terminations", "has_successor", "is_valid", "frames")


def episode_of(instruction, num_steps=2, *, reward=0.0, last=1.0, **changes):
    ends = np.arange(num_steps) == num_steps - 1
    rows = np.arange(num_steps + 1, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    return told_episode(
        instruction,
        0.0,
        0.0,
        observations={"instruction": np.array([instruction] * (num_steps + 1)), "state": rows},
        actions=np.full((num_steps, 2), len(instruction) / 100, np.float32),
        rewards=np.where(ends, last, reward),
        terminations=ends,
        truncations=np.zeros(num_steps, bool),
        **changes,
    )


def make_sampler(tmp_path, episodes, share=0.5, batch_size=64, **options):
    dataset = make_dataset(tmp_path, episodes)
    text = ObservationSpec("instruction", (), "str", "text")
    dataset = replace(dataset, spec=replace(dataset.spec, observations=(text, *dataset.spec.observations)))
    return SegmentSampler(
        dataset,
        segment_length=3,
        batch_size=batch_size,
        discount=0.5,
        seed=0,
        options=LoadingOptions(relabel=share, **options),
    )


def told_in(sampler, batch):
    """The words of each segment, and those of the episode that it was cut from, which its actions tell."""
    texts = sampler.texts["instruction"]
    own = {round(len(text) / 100, 4): text for text in texts}
    said = batch.observations["instruction"]
    assert (said == said[:, :1]).all()
    names = [own[round(float(action), 4)] for action in batch.actions[:, 0, 0]]
    return [texts[number] for number in said[:, 0]], names


def test_a_relabelled_segment_by_hand(tmp_path):
    """Successes after two steps, paid 1: with other words they bring nothing, and the bound says so, too."""
    sampler = make_sampler(tmp_path, [episode_of(OPEN), episode_of(CLOSE)])
    plain = make_sampler(tmp_path, [episode_of(OPEN), episode_of(CLOSE)], share=0.0)
    batch, before = sampler.batch(0), plain.batch(0)
    chosen = batch.is_relabelled
    assert 0.3 < chosen.mean() < 0.7
    told, own = told_in(sampler, batch)
    assert all((said != done) == is_other for said, done, is_other in zip(told, own, chosen, strict=True))
    assert not batch.rewards[chosen].any()
    assert not batch.monte_carlo_returns[chosen].any()
    assert not batch.is_success[chosen].any()
    assert before.monte_carlo_returns[chosen].max() == 1
    for name in ("rewards", "monte_carlo_returns", "is_success"):
        np.testing.assert_array_equal(getattr(batch, name)[~chosen], getattr(before, name)[~chosen])
    for name in UNTOUCHED:
        np.testing.assert_array_equal(getattr(batch, name), getattr(before, name))
    np.testing.assert_array_equal(batch.observations["state"], before.observations["state"])
    assert not before.is_relabelled.any()


def test_the_end_of_a_costly_episode_is_no_relief(tmp_path):
    """Each step costs 1, the last one nothing: the least reward for ever is -1 / (1 - 0.5) = -2."""
    sampler = make_sampler(tmp_path, [episode_of(text, reward=-1.0, last=0.0) for text in (OPEN, CLOSE)])
    batch = sampler.batch(0)
    is_first = batch.observations["state"][:, 0, 0] == 0
    for is_chosen, rewards, returns in ((True, [-1, -2, 0], [-2, -2, 0]), (False, [-1, 0, 0], [-1, 0, 0])):
        rows = is_first & (batch.is_relabelled == is_chosen)
        assert rows.any()
        assert (batch.rewards[rows] == rewards).all()
        assert (batch.monte_carlo_returns[rows] == returns).all()


def test_other_tasks_speak_as_often_as_they_have_episodes(tmp_path):
    sampler = make_sampler(tmp_path, [episode_of(text) for text in (OPEN, OPEN, OPEN, CLOSE, PICK)], batch_size=20_000)
    batch = sampler.batch(3)
    told, own = (np.array(each)[batch.is_relabelled] for each in told_in(sampler, batch))
    np.testing.assert_allclose(batch.is_relabelled.mean(), 0.5, atol=0.02)
    assert not (told == own).any()
    np.testing.assert_allclose((told[own == OPEN] == PICK).mean(), 1 / 2, atol=0.03)
    np.testing.assert_allclose((told[own == PICK] == OPEN).mean(), 3 / 4, atol=0.03)


def test_other_words_for_the_same_goal_are_no_other_task(tmp_path):
    pull = "pull it"
    episodes = [episode_of(OPEN, goal="open"), episode_of(pull, goal="open"), episode_of(CLOSE, goal="close")]
    sampler = make_sampler(tmp_path, episodes, batch_size=1000)
    batch = sampler.batch(0)
    told, own = (np.array(each)[batch.is_relabelled] for each in told_in(sampler, batch))
    assert set(zip(told.tolist(), own.tolist(), strict=True)) == {
        (CLOSE, OPEN),
        (CLOSE, pull),
        (OPEN, CLOSE),
        (pull, CLOSE),
    }


def test_texts_may_be_vectors(tmp_path):
    vectors = {OPEN: np.array([1, 0], np.float32), CLOSE: np.array([0, 1], np.float32)}
    sampler = make_sampler(tmp_path, [episode_of(OPEN), episode_of(CLOSE)], encode_text=vectors.__getitem__)
    batch = sampler.batch(0)
    said = batch.observations["instruction"]
    assert (said.dtype, said.shape) == (np.float32, (64, 4, 2))
    was_open = np.isclose(batch.actions[:, 0, 0], len(OPEN) / 100)
    np.testing.assert_array_equal(said[:, 2, 0] == 1, was_open != batch.is_relabelled)


def test_a_batch_is_a_function_of_its_number_and_ranks_share_it(tmp_path):
    episodes = [episode_of(text) for text in (OPEN, CLOSE, PICK)]
    whole = make_sampler(tmp_path, episodes).batch(7)
    again = make_sampler(tmp_path, episodes)
    again.batch(2)
    shares = [make_sampler(tmp_path, episodes, rank=rank, world_size=2) for rank in range(2)]
    for found in (again.batch(7), shares[1].undivided().batch(7)):
        np.testing.assert_equal(vars(found), vars(whole))
    parts = [each.batch(7) for each in shares]
    for name in ("is_relabelled", "rewards"):
        np.testing.assert_array_equal(np.concatenate([getattr(each, name) for each in parts]), getattr(whole, name))
    said = [each.observations["instruction"] for each in parts]
    np.testing.assert_array_equal(np.concatenate(said), whole.observations["instruction"])


def test_segments_that_are_asked_for_are_the_logs(tmp_path):
    sampler = make_sampler(tmp_path, [episode_of(OPEN), episode_of(CLOSE)], share=0.99)
    assert not sampler.segments(np.arange(4)).is_relabelled.any()


def test_a_log_without_another_task_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"--relabel must have two tasks or more, told in an .*, got \['open the"):
        make_sampler(tmp_path, [episode_of(OPEN), episode_of(OPEN)])
    silent = [replace(episode_of(text), task=text) for text in (OPEN, CLOSE)]
    silent = [replace(each, observations={"state": each.observations["state"]}) for each in silent]
    sampler_of = make_dataset(tmp_path, silent)
    with pytest.raises(DatasetError, match="--relabel must have two tasks or more, told in an observation"):
        SegmentSampler(
            sampler_of, segment_length=1, batch_size=1, discount=0.5, seed=0, options=LoadingOptions(relabel=0.5)
        )
    untold = replace(silent[0], task=None)
    with pytest.raises(DatasetError, match="--relabel needs an instruction, got none; add one, or leave that setting"):
        make_sampler(tmp_path, [untold, episode_of(OPEN)])
