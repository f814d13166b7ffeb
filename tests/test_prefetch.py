"""Batches made ahead of time: the same ones, in the same order, with the state of the one given last."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode
from loading_fixtures import open_images

from qtransformer_datasets.prefetch import Prefetcher
from qtransformer_datasets.windows import SegmentSampler


@pytest.fixture
def make_sampler(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(9, seed=seed) for seed in range(5)])
    return lambda: SegmentSampler(dataset, segment_length=3, batch_size=4, discount=0.5, seed=0)


def actions(source, count):
    return np.stack([source.sample().actions for _ in range(count)])


def prefetching():
    return [each for each in threading.enumerate() if each.name.startswith("prefetch")]


@pytest.mark.parametrize(("num_threads", "depth"), [(0, 1), (1, 1), (1, 2), (3, 5)])
def test_any_number_of_threads_gives_the_same_batches(make_sampler, num_threads, depth):
    with Prefetcher(make_sampler(), num_threads, depth) as prefetcher:
        np.testing.assert_array_equal(actions(prefetcher, 20), actions(make_sampler(), 20))
        assert len(prefetching()) <= num_threads
    assert not prefetching()


def await_all(prefetcher):
    """Waits until all batches that are asked for are ready."""
    for _, batch in prefetcher._ahead:
        batch.result()


def test_no_more_batches_are_made_ahead_than_asked_for(make_sampler, monkeypatch):
    made = []
    batch = SegmentSampler.batch
    monkeypatch.setattr(SegmentSampler, "batch", lambda self, number: made.append(number) or batch(self, number))
    with Prefetcher(make_sampler(), num_threads=1, depth=3) as prefetcher:
        prefetcher.sample()
        await_all(prefetcher)
        assert made == [0, 1, 2, 3]  # one was given, three are ready


def test_the_state_is_that_of_the_batch_given_last(make_sampler):
    whole = make_sampler()
    with Prefetcher(make_sampler(), num_threads=2, depth=4) as prefetcher:
        assert prefetcher.state_dict()["step"] == 0
        actions(prefetcher, 3)
        state = prefetcher.state_dict()
    actions(whole, 3)
    assert state == whole.state_dict()
    resumed = make_sampler()
    resumed.load_state_dict(state)
    with Prefetcher(resumed, num_threads=1) as prefetcher:
        np.testing.assert_array_equal(actions(prefetcher, 4), actions(whole, 4))


def test_moving_the_sampler_moves_what_is_given(make_sampler):
    sampler, other = make_sampler(), make_sampler()
    with Prefetcher(sampler, num_threads=1, depth=2) as prefetcher:
        actions(prefetcher, 5)
        sampler.load_state_dict(sampler.state_dict() | {"step": 1})
        other.sample()
        np.testing.assert_array_equal(actions(prefetcher, 3), actions(other, 3))


@pytest.mark.parametrize("num_threads", [0, 1])
def test_an_error_of_a_thread_reaches_the_caller_and_stays(make_sampler, monkeypatch, num_threads):
    batch = SegmentSampler.batch

    def failing(self, number):
        if number == 2:
            raise OSError("the disk is gone")
        return batch(self, number)

    monkeypatch.setattr(SegmentSampler, "batch", failing)
    with Prefetcher(make_sampler(), num_threads=num_threads) as prefetcher:
        actions(prefetcher, 2)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                prefetcher.sample()
            assert prefetcher.state_dict()["step"] == 2
    assert not prefetching()


@pytest.mark.parametrize("num_threads", [0, 1])
def test_the_time_of_waiting_is_counted(make_sampler, monkeypatch, num_threads):
    monkeypatch.setattr(SegmentSampler, "batch", lambda self, number: time.sleep(0.05))
    with Prefetcher(make_sampler(), num_threads=num_threads, depth=2) as prefetcher:
        assert prefetcher.waited_s == 0
        started = time.perf_counter()
        assert len([prefetcher.sample() for _ in range(3)]) == 3
        assert 0.14 <= prefetcher.waited_s <= time.perf_counter() - started


def test_a_busy_caller_does_not_wait(make_sampler, monkeypatch):
    monkeypatch.setattr(SegmentSampler, "batch", lambda self, number: time.sleep(0.05))
    with Prefetcher(make_sampler(), num_threads=1, depth=2) as prefetcher:
        prefetcher.sample()
        waited = prefetcher.waited_s
        for _ in range(3):
            await_all(prefetcher)
            prefetcher.sample()
        assert prefetcher.waited_s - waited < 3 * 0.05


def test_a_thread_is_the_default_for_images_alone(make_sampler, tmp_path):
    images = SegmentSampler(open_images(tmp_path / "log"), segment_length=2, batch_size=2, discount=0.5, seed=0)
    with Prefetcher(make_sampler()) as numbers, Prefetcher(images) as pictures:
        numbers.sample()
        assert not prefetching()
        pictures.sample()
        assert len(prefetching()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_threads": -1}, r"num_threads \(-1\) must be at least 0"),
        ({"depth": 0}, r"depth \(0\) must be at least 1 and num_threads \(0\)"),
        ({"num_threads": 3}, r"depth \(2\) must be at least 1 and num_threads \(3\)"),
    ],
)
def test_bad_settings(make_sampler, settings, message):
    with pytest.raises(ValueError, match=message):
        Prefetcher(make_sampler(), **settings)
