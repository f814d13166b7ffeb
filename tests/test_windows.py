"""Segments: hand-worked numbers, padding, uniform starts, resuming."""

import json
from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode
from loading_fixtures import make_frames, open_images

from qtransformer_datasets.frames import Frames
from qtransformer_datasets.image_rows import MemoryRows
from qtransformer_datasets.schema import DatasetError
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler, looked_at


def counting_episode(first, num_steps, *, final=True, success=True):
    """Observation and action of step k are first + k, so that every number tells where it comes from."""
    episode = make_episode(num_steps, success=success, final=final)
    rows = (first + np.arange(num_steps + final))[:, None].astype(np.float32) * np.ones(2, np.float32)
    return replace(episode, observations={"state": rows}, actions=rows[:num_steps])


def make_sampler(tmp_path, episodes, **changes):
    settings = {"segment_length": 3, "batch_size": 4, "discount": 0.5, "seed": 0} | changes
    return SegmentSampler(make_dataset(tmp_path, episodes), **settings)


def test_segments_by_hand(tmp_path):
    sampler = make_sampler(tmp_path, [counting_episode(10, 4), counting_episode(20, 2, success=False)])
    batch = sampler.segments(np.array([0, 2, 4]))
    assert batch.observations["state"][..., 0].tolist() == [[10, 11, 12, 13], [12, 13, 14, 14], [20, 21, 22, 22]]
    assert batch.actions[..., 0].tolist() == [[10, 11, 12], [12, 13, 0], [20, 21, 0]]
    assert batch.rewards.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert batch.monte_carlo_returns.tolist() == [[0.125, 0.25, 0.5], [0.5, 1, 0], [0, 0, 0]]
    assert batch.is_valid.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert batch.terminations.tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert batch.has_successor.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert batch.is_success.tolist() == [True, True, False]


def test_a_long_segment_is_its_short_ones_in_a_row(tmp_path):
    # what targets over several environment steps rest on: segments much longer than any episode, or than a window
    episodes = [counting_episode(10, 4), counting_episode(20, 7, final=False), counting_episode(30, 1)]
    long, short = (make_sampler(tmp_path, episodes, segment_length=length) for length in (9, 1))
    batch = long.segments(np.arange(12))
    for start, length in ((0, 4), (2, 2), (4, 7), (8, 3), (11, 1)):
        rows = short.segments(np.arange(start, start + length))
        for name in ("actions", "rewards", "terminations", "has_successor", "monte_carlo_returns"):
            np.testing.assert_array_equal(getattr(batch, name)[start, :length], getattr(rows, name)[:, 0])
            assert not getattr(batch, name)[start, length:].any()
        assert batch.is_valid[start].tolist() == [True] * length + [False] * (9 - length)
        observations = batch.observations["state"][start]
        np.testing.assert_array_equal(
            observations[: length + 1], [*rows.observations["state"][:, 0], observations[length]]
        )
        np.testing.assert_array_equal(observations[length:], [rows.observations["state"][-1, 1]] * (10 - length))


def test_the_last_step_without_final_observation_has_no_successor(tmp_path):
    sampler = make_sampler(tmp_path, [counting_episode(10, 2, final=False), counting_episode(20, 3)])
    batch = sampler.segments(np.array([0, 2]))
    assert batch.observations["state"][..., 0].tolist() == [[10, 11, 11, 11], [20, 21, 22, 23]]
    assert batch.has_successor.tolist() == [[True, False, False], [True, True, True]]


def test_shapes_and_types_of_the_contract(tmp_path):
    batch = make_sampler(tmp_path, [make_episode(5), make_episode(7)], batch_size=6).sample()
    described = {name: (value.shape, str(value.dtype)) for name, value in vars(batch).items() if name != "observations"}
    assert described == {
        "actions": ((6, 3, 2), "float32"),
        "rewards": ((6, 3), "float32"),
        "terminations": ((6, 3), "bool"),
        "has_successor": ((6, 3), "bool"),
        "monte_carlo_returns": ((6, 3), "float32"),
        "is_success": ((6,), "bool"),
        "is_relabelled": ((6,), "bool"),
        "is_valid": ((6, 3), "bool"),
        "frames": ((6, 4), "int64"),
    }
    assert (batch.observations["state"].shape, batch.observations["state"].dtype) == ((6, 4, 2), np.float32)


def test_float64_observations_become_float32(tmp_path):
    episode = make_episode()
    double = replace(episode, observations={"state": np.asarray(episode.observations["state"], np.float64)})
    assert make_sampler(tmp_path, [double]).sample().observations["state"].dtype == np.float32


def test_every_step_is_equally_likely_to_be_the_start(tmp_path):
    episodes = [counting_episode(0, 1), counting_episode(100, 2), counting_episode(200, 17)]
    sampler = make_sampler(tmp_path, episodes, batch_size=40_000)
    starts, counts = np.unique(sampler.sample().observations["state"][:, 0, 0], return_counts=True)
    assert starts.tolist() == [0, 100, 101, *range(200, 217)]
    expected = 40_000 / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees: 50 has probability 1e-4


def test_a_resumed_sampler_continues_the_draws(tmp_path):
    episodes = [make_episode(9, seed=seed) for seed in range(5)]
    uninterrupted, first = make_sampler(tmp_path, episodes), make_sampler(tmp_path, episodes)
    for _ in range(3):
        uninterrupted.sample()
        first.sample()
    resumed = make_sampler(tmp_path, episodes)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(3):
        np.testing.assert_array_equal(uninterrupted.sample().actions, resumed.sample().actions)


def test_a_state_of_the_older_rule_is_refused(tmp_path):
    sampler = make_sampler(tmp_path, [make_episode()])
    state = {
        "generator": np.random.default_rng(0).bit_generator.state,
        "fingerprint": sampler.state_dict()["fingerprint"],
    }
    with pytest.raises(DatasetError, match="state of the draws must be a step, got a generator of an older version"):
        sampler.load_state_dict(state)


def same(one, other):
    np.testing.assert_equal(vars(one), vars(other))
    return True


def test_a_batch_is_a_function_of_its_number(tmp_path):
    episodes = [make_episode(9, seed=seed) for seed in range(5)]
    sampler, other = make_sampler(tmp_path, episodes), make_sampler(tmp_path, episodes)
    batches = [sampler.sample() for _ in range(4)]
    assert sampler.state_dict()["step"] == 4
    assert all(same(other.batch(number), batches[number]) for number in (3, 0, 2, 1, 3))
    assert other.state_dict()["step"] == 0
    assert not np.array_equal(batches[0].actions, make_sampler(tmp_path, episodes, seed=1).batch(0).actions)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_batch_that_one_alone_would_have(tmp_path, world_size):
    episodes = [make_episode(9, seed=seed) for seed in range(5)]
    options = [LoadingOptions(rank=rank, world_size=world_size) for rank in range(world_size)]
    samplers = [make_sampler(tmp_path, episodes, options=each) for each in options]
    shares = [each.batch(7) for each in samplers]
    whole = make_sampler(tmp_path, episodes).batch(7)
    for each in samplers:
        np.testing.assert_array_equal(each.undivided().batch(7).actions, whole.actions)
    assert len(shares[0].actions) == 4 // world_size
    np.testing.assert_array_equal(np.concatenate([each.actions for each in shares]), whole.actions)


def test_the_balance_decides_what_is_drawn(tmp_path):
    episodes = [counting_episode(10, 2), counting_episode(100, 98, success=False)]
    shares = {
        name: make_sampler(tmp_path, episodes, batch_size=4000, options=LoadingOptions(balance=name))
        .sample()
        .is_success
        for name in ("steps", "success", "return")
    }
    np.testing.assert_allclose(shares["steps"].mean(), 0.02, atol=0.01)
    np.testing.assert_allclose(shares["success"].mean(), 0.5, atol=0.04)
    np.testing.assert_allclose(shares["return"].mean(), 2 * 3 / (2 * 3 + 98), atol=0.02)


def test_texts_become_numbers_of_sorted_strings(tmp_path):
    rows = (["push", "push", "lift the red cube"], ["åka", "lift the red cube"])
    episodes = [replace(make_episode(len(texts) - 1), observations={"instruction": np.array(texts)}) for texts in rows]
    sampler = make_sampler(tmp_path, episodes)
    assert sampler.texts == {"instruction": ["lift the red cube", "push", "åka"]}
    numbers = sampler.segments(np.array([0, 1, 2])).observations["instruction"]
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]


def test_texts_become_what_an_encoder_makes_of_them(tmp_path):
    """Once for each different text."""
    rows = (["push", "push", "lift"], ["pull", "lift"])
    episodes = [replace(make_episode(len(texts) - 1), observations={"instruction": np.array(texts)}) for texts in rows]
    asked = []

    def encode(text):
        asked.append(text)
        return np.array([len(text), ord(text[2])], np.float32)

    sampler = make_sampler(tmp_path, episodes, options=LoadingOptions(encode_text=encode))
    vectors = sampler.segments(np.array([0, 2])).observations["instruction"]
    assert asked == ["lift", "pull", "push"]
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 4, 2))
    assert vectors[:, :3].tolist() == [[[4, 115], [4, 115], [4, 102]], [[4, 108], [4, 102], [4, 102]]]


def test_types_that_differ_between_episodes_meet(tmp_path):
    whole = replace(make_episode(2), observations={"state": np.arange(6).reshape(3, 2)})
    parts = replace(make_episode(2), observations={"state": np.full((3, 2), 0.5)})
    states = make_sampler(tmp_path, [whole, parts]).segments(np.array([0, 2])).observations["state"]
    assert (states.dtype, states[0, 2].tolist(), states[1, 0].tolist()) == (np.float32, [4, 5], [0.5, 0.5])
    assert make_sampler(tmp_path, [whole]).sample().observations["state"].dtype == np.int64


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("storage", ["auto", "memory", "mapped", "file"])
def test_images_go_the_way_of_numbers(tmp_path, storage, encoding, final):
    lengths = (5, 1, 7)
    dataset = open_images(tmp_path / "log", lengths=lengths, encoding=encoding, final=final)
    assert isinstance(dataset.episodes[0].observations["camera"], Frames)
    sampler = SegmentSampler(
        dataset, segment_length=3, batch_size=4, discount=0.5, seed=0, options=LoadingOptions(storage=storage)
    )
    assert sampler.has_images
    batch = sampler.segments(np.arange(13))
    assert batch.observations["camera"].dtype == np.uint8
    start = 0
    for index, length in enumerate(lengths):
        frames, last = make_frames(length + final, index), length - 1 + final
        for first in range(length):
            wanted = np.minimum(first + np.arange(4), last)
            np.testing.assert_array_equal(batch.observations["camera"][start], frames[wanted])
            np.testing.assert_array_equal(batch.observations["state"][start, :, 0], 2 * wanted + 100 * index)
            start += 1


def test_memory_is_limited_and_counted(tmp_path):
    # 301 rows of 2 float32; a step of 2 + 1 + 1 float32 and 2 bool, and the 8 bytes of its episode's number
    episodes, copied = [make_episode(300)], 301 * 8 + 300 * (18 + 8)
    held = 301 * 8 + 300 * 8
    make_sampler(tmp_path, episodes, options=LoadingOptions(memory_limit=held + copied))
    with pytest.raises(DatasetError, match=r"numbers need 15 kB of memory \(4.81 kB as read, 10.2 kB for training\)"):
        make_sampler(tmp_path, episodes, options=LoadingOptions(memory_limit=held + copied - 1))


def test_images_take_what_numbers_leave(tmp_path, capsys):
    dataset = open_images(tmp_path / "log")
    limits = []
    for limit in (100_000, 4_000):
        SegmentSampler(
            dataset, segment_length=2, batch_size=1, discount=0.5, seed=0, options=LoadingOptions(memory_limit=limit)
        )
        limits.append("in memory" in capsys.readouterr().err)
    assert limits == [True, False]


def test_resuming_on_other_data_is_refused(tmp_path):
    state = make_sampler(tmp_path, [make_episode(seed=0)]).state_dict()
    with pytest.raises(DatasetError, match=r"fingerprint \(.*\) must equal the saved .* resume with the dataset"):
        make_sampler(tmp_path, [make_episode(seed=1)]).load_state_dict(state)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"segment_length": 0}, r"segment_length \(0\) must be at least 1"),
        ({"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        ({"discount": 1.5}, r"discount \(1.5\) must be in \[0, 1\]"),
        ({"seed": -1}, r"seed \(-1\) must be in \[0, 2\^64\)"),
        ({"options": LoadingOptions(world_size=0)}, r"world_size \(0\) must be at least 1"),
        ({"options": LoadingOptions(rank=2, world_size=2)}, r"rank \(2\) must be in \[0, 2\)"),
        ({"options": LoadingOptions(rank=-1)}, r"rank \(-1\) must be in \[0, 1\)"),
        ({"options": LoadingOptions(world_size=3)}, r"batch_size \(4\) must be a multiple of the world size 3"),
    ],
)
def test_bad_settings(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(tmp_path, [make_episode()], **setting)


def test_data_that_cannot_be_cut(tmp_path):
    broken = replace(make_episode(3), rewards=np.zeros(2))
    for episodes, message in (
        ([broken], "episode_0: rewards must have 3 rows"),
        ([make_episode(0)], "at least one step"),
        ([], "at least one episode"),
    ):
        with pytest.raises(DatasetError, match=message):
            make_sampler(tmp_path, episodes)


@pytest.mark.parametrize(
    ("is_known", "window", "frames"),
    [
        ([1, 1, 1, 1, 1, 1], 2, [0, 1, 5, 6]),  # five environment steps
        ([1, 1, 1, 0, 0, 0], 2, [0, 1, 2, 3]),  # cut off: the last known step is the third
        ([1, 0, 0, 0, 0, 0], 2, [0, 1, 2, 3]),  # its window begins at 1, in the first one, whose end it shares
        ([1, 1, 1, 1], 3, [0, 1, 2, 3, 4]),  # two environment steps: the windows overlap
        ([1, 1, 1, 1], 4, [0, 1, 2, 3, 4]),
        ([1, 1, 1, 1], 1, [0, 4]),
        ([1, 1, 1, 1], None, [0, 1, 2, 3, 4]),
    ],
)
def test_which_observations_are_looked_at(is_known, window, frames):
    assert looked_at(np.array([is_known], bool), window, True).tolist() == [frames]
    alone = frames if window is None else list(range(window))
    assert looked_at(np.array([is_known], bool), window, False).tolist() == [alone]


def test_only_images_that_are_looked_at_are_loaded(tmp_path, monkeypatch):
    dataset, taken = open_images(tmp_path / "log"), []
    take = MemoryRows.take

    def counted(rows, wanted):
        taken.append((wanted.size, rows.array.ndim))
        return take(rows, wanted)

    monkeypatch.setattr(MemoryRows, "take", counted)
    full, thin = (
        SegmentSampler(dataset, segment_length=5, batch_size=6, discount=0.9, seed=0, options=options)
        for options in (LoadingOptions(storage="memory"), LoadingOptions(storage="memory", window=2))
    )
    taken.clear()  # a forecast of the speed read some
    everything, batch = full.sample(), thin.sample()
    assert sorted(taken) == [(24, 4), (36, 2), (36, 2), (36, 4)]  # 6 segments of 4 images instead of 6
    seen = everything.observations["camera"][np.arange(6)[:, None], batch.frames]
    np.testing.assert_array_equal(batch.observations["camera"], seen)
    np.testing.assert_array_equal(batch.observations["state"], everything.observations["state"])


def test_a_window_that_does_not_fit_the_segment(tmp_path):
    with pytest.raises(ValueError, match=r"window \(4\) must be in \[1, 3\], the segment's steps; correct it"):
        make_sampler(tmp_path, [counting_episode(0, 4)], options=LoadingOptions(window=4))
