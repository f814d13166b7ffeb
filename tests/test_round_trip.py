"""Random datasets, written, read, converted and read again, are the same; `minari` reads the same arrays.

Specs are drawn with nested Dict and Tuple keys, images raw and compressed, text, empty vectors, and every dtype that
the layout can hold; episodes with and without a final observation, down to one step.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec
from qtransformer_datasets.convert import convert_dataset
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.formats.images import compression
from qtransformer_datasets.formats.specs import describe_state
from qtransformer_datasets.frames import Frames
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import Episode

DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint64", "bool")
NAMES = ("state", "arm", "hand left", "größe", "_index_0", "_index_1", "0", "pos.x")
IMAGE_SIDES = (1, 7, 8, 31, 32, 40)

# Specs are drawn as plain tuples: the shape checks of conftest.py use `random`, which a strategy must not.
names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
vectors, matrices = st.tuples(st.integers(0, 5)), st.tuples(st.integers(1, 3), st.integers(1, 7))
states = st.tuples(st.just("state"), names, st.one_of(vectors, matrices), st.sampled_from(DTYPES))
sides = st.sampled_from(IMAGE_SIDES)
images = st.tuples(st.just("image"), names, st.tuples(sides, sides, st.sampled_from((1, 3))), st.just("uint8"))
texts = st.tuples(st.just("text"), names, st.just(()), st.just("str"))
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
environments = st.sampled_from([(None, None, {}), (12.5, "some/Env-v0", {"size": 3, "names": ["a"]})])


def is_sound(observations):
    keys = [name for _, name, _, _ in observations]
    return not any(one.startswith(f"{other}/") for one in keys for other in keys)


observations = st.lists(st.one_of(states, images, texts), min_size=1, max_size=5, unique_by=lambda each: each[1])


def build_spec(observations, num_dimensions, environment):
    described = [
        describe_state(name, shape, dtype) if kind == "state" else ObservationSpec(name, shape, dtype, kind)
        for kind, name, shape, dtype in sorted(observations, key=lambda each: each[1])
    ]
    A = num_dimensions
    actions = ActionSpec((-1.0,) * A, (1.5,) * A, tuple(f"joint {k}" for k in range(A)), ("rad",) * A)
    return DatasetSpec(tuple(described), actions, *environment)


def draw_rows(data, spec, num_rows, generator):
    if spec.kind == "text":
        return np.array(data.draw(st.lists(words, min_size=num_rows, max_size=num_rows)), dtype=str)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.normal(size=(num_rows, *spec.shape)).astype(dtype)
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    rows = generator.choice(np.array(limits, dtype), (num_rows, *spec.shape))
    if spec.kind == "image":
        rows = generator.integers(0, 256, rows.shape, np.uint8)
    elif dtype == np.uint8 and rows.ndim == 2:
        assume(not compression(rows[0].tobytes()))  # refused, see test_minari_writer
    return rows


def draw_episode(data, spec, seed):
    T, final = data.draw(st.integers(1, 4), label="T"), data.draw(st.booleans(), label="final")
    generator = np.random.default_rng(seed)
    ends, terminated = np.arange(T) == T - 1, data.draw(st.booleans(), label="terminated")
    return Episode(
        observations={each.name: draw_rows(data, each, T + final, generator) for each in spec.observations},
        actions=generator.normal(size=(T, spec.actions.num_dimensions)).astype(np.float32),
        rewards=generator.normal(size=T),
        terminations=ends & terminated,
        truncations=ends & (not terminated),
        success=data.draw(st.sampled_from([None, True, False]), label="success"),
        seed=data.draw(st.sampled_from([None, 0, 2**63 - 1]), label="seed"),
        goal=data.draw(st.sampled_from([None, "open the drawer"]), label="goal"),
        behaviour=data.draw(st.sampled_from([None, "noisy_replay", "nach Gefühl"]), label="behaviour"),
        has_final_observation=final,
    )


def assert_same(one, other, *, are_images_exact=True):
    assert set(one.observations) == set(other.observations)
    for key, expected in one.observations.items():
        found = other.observations[key]
        assert found.shape == expected.shape
        is_image = isinstance(found, Frames)
        if are_images_exact or not is_image:
            np.testing.assert_array_equal(found[:], expected[:])
        assert found.dtype == expected.dtype or found.dtype.kind == expected.dtype.kind == "U"
    for name in ("actions", "rewards", "terminations", "truncations"):
        found, expected = getattr(other, name), getattr(one, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    for name in ("success", "seed", "goal", "behaviour", "has_final_observation"):
        assert getattr(one, name) == getattr(other, name)


def at(observations, key):
    """What `minari` has at a "/"-joined key."""
    for part in key.split("/") if isinstance(observations, dict | tuple) else ():
        observations = (
            observations[int(part.removeprefix("_index_"))] if isinstance(observations, tuple) else (observations[part])
        )
    return observations


def assert_minari_reads_it(path, episodes):
    minari = pytest.importorskip("minari")
    dataset = minari.MinariDataset(path / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (len(episodes), sum(each.num_steps for each in episodes))
    for index, episode in enumerate(episodes):
        theirs = dataset[index]
        for key, rows in episode.observations.items():
            found = np.asarray(at(theirs.observations, key))
            np.testing.assert_array_equal(found.reshape(rows.shape), rows[:])
        np.testing.assert_array_equal(theirs.actions, episode.actions)
        np.testing.assert_array_equal(theirs.rewards, episode.rewards)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(observations.filter(is_sound), st.integers(1, 3), environments, st.sampled_from(["raw", "jpeg"]), st.data())
def test_written_read_converted_and_read_is_the_same(drawn, num_dimensions, environment, storage, data):
    spec = build_spec(drawn, num_dimensions, environment)
    episodes = [draw_episode(data, spec, seed) for seed in range(data.draw(st.integers(1, 3), label="episodes"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with Recorder(path / "log", spec, images=storage) as recorder:
            for episode in episodes:
                recorder.record(episode)
        read = open_dataset(path / "log")
        assert read.spec == spec
        for written, found in zip(episodes, read.episodes, strict=True):
            assert_same(written, found, are_images_exact=storage == "raw")
        converted = convert_dataset(read, path / "converted")
        assert (converted.fingerprint, converted.spec) == (read.fingerprint, read.spec)
        for one, other in zip(read.episodes, converted.episodes, strict=True):
            assert_same(one, other)
        for name in ("log", "converted"):
            assert_minari_reads_it(path / name, read.episodes)
        decoded = convert_dataset(read, path / "decoded", images="raw")
        for one, other in zip(read.episodes, decoded.episodes, strict=True):
            assert_same(one, other)
