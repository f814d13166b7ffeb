"""The episode that goes on: what it accepts, and what it says of a wrong step; hand-worked steps."""

from dataclasses import replace

import numpy as np
import pytest

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec, flatten_observation
from qtransformer_datasets.episode_buffer import EpisodeBuffer
from qtransformer_datasets.formats.specs import describe_state
from qtransformer_datasets.schema import DatasetError

OBSERVATIONS = (
    describe_state("arm/joints", (2,), "float32"),
    ObservationSpec("camera", (2, 2, 3), "uint8", "image"),
    describe_state("grip", (1,), "int8"),
    ObservationSpec("task", (), "str", "text"),
)
SPEC = DatasetSpec(OBSERVATIONS, ActionSpec((-1.0, -1.0), (1.0, 1.0), ("a", "b"), ("", "")))


def observe(value=0, **changes):
    joints, camera = np.full(2, value, np.float32), np.full((2, 2, 3), value, np.uint8)
    return {"arm": {"joints": joints}, "camera": camera, "grip": np.int8(value), "task": "lift"} | changes


def test_flatten_joins_nested_keys_and_numbers_the_parts_of_a_tuple():
    nested = {"robot": {"arm": 1, "hands": (2, {"left": 3})}, "task": "lift"}
    assert flatten_observation(nested) == {
        "robot/arm": 1,
        "robot/hands/_index_0": 2,
        "robot/hands/_index_1/left": 3,
        "task": "lift",
    }
    assert flatten_observation(5) == {"state": 5}


def test_steps_become_an_episode():
    buffer = EpisodeBuffer(SPEC, observe(0), seed=4, source="robot:episode 0")
    buffer.step([0.5, -1], observe(1), 2, False, False)
    assert (buffer.num_steps, buffer.is_over) == (1, False)
    buffer.step(np.array([1.0, 0.0]), observe(2), 3.5, True, True)
    episode = buffer.episode(np.True_)  # pyright: ignore[reportArgumentType]
    assert buffer.is_over
    assert episode.observations["arm/joints"][:].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert episode.observations["camera"][:][:, 0, 0].tolist() == [[0] * 3, [1] * 3, [2] * 3]
    assert episode.observations["grip"][:].tolist() == [[0], [1], [2]]
    assert episode.observations["task"][:].tolist() == ["lift"] * 3
    assert {key: str(rows.dtype) for key, rows in episode.observations.items()} == {
        "arm/joints": "float32",
        "camera": "uint8",
        "grip": "int8",
        "task": "<U4",
    }
    assert (episode.actions.tolist(), episode.actions.dtype) == ([[0.5, -1], [1, 0]], np.float32)
    assert (episode.rewards.tolist(), episode.rewards.dtype) == ([2, 3.5], np.float64)
    assert (episode.terminations.tolist(), episode.truncations.tolist()) == ([False, True], [False, False])
    assert (episode.success, episode.seed, episode.source) == (True, 4, "robot:episode 0")


def test_an_episode_that_was_not_terminated_is_truncated():
    buffer = EpisodeBuffer(SPEC, observe())
    buffer.step([0, 0], observe(), 0, False, False)
    episode = buffer.episode()
    assert (episode.terminations.tolist(), episode.truncations.tolist()) == ([False], [True])
    assert episode.success is None


def test_the_caller_may_reuse_its_arrays():
    observation, action = observe(0), np.zeros(2, np.float32)
    buffer = EpisodeBuffer(SPEC, observation)
    for value in (1, 2):
        observation["camera"][:], action[:] = value, value
        buffer.step(action, observation, 0.0, False, False)
    episode = buffer.episode()
    assert episode.observations["camera"][:][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert episode.actions[:, 0].tolist() == [1, 2]


def test_lists_and_plain_numbers_take_the_dtype_of_the_spec():
    buffer = EpisodeBuffer(SPEC, observe(arm={"joints": [1, 2]}))
    buffer.step([0, 0], observe(arm={"joints": [0.5, 1.5]}), 0.0, False, False)
    joints = buffer.episode().observations["arm/joints"][:]
    assert (joints.tolist(), joints.dtype) == ([[1, 2], [0.5, 1.5]], np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, r"step 0: the observation must have the keys \['arm/joints', 'camera', 'grip', 'task'\], got"),
        ({"extra": 1}, r"must have the keys \[.*\], got \[.*'extra'.*\]"),
        ({"camera": np.zeros((3, 2, 2), np.uint8)}, r"step 0: camera must be uint8 of shape \(2, 2, 3\), got uint8 of"),
        ({"camera": np.zeros((2, 2, 3))}, r"camera must be uint8 of shape \(2, 2, 3\), got float64 of shape"),
        ({"arm": {"joints": np.zeros(2)}}, r"arm/joints must be float32 of shape \(2,\), got float64 of shape \(2,\)"),
        ({"arm": {"joints": ["a", "b"]}}, r"arm/joints must be float32 of shape \(2,\), got <U1 of shape"),
        ({"arm": {"joints": [[1], [1, 2]]}}, r"arm/joints must be an array of numbers, got list \("),
        ({"grip": 1.5}, r"grip must be int8 of shape \(1,\), got float64"),
        ({"grip": 300}, r"grip must fit into int8, got 300"),
        ({"task": b"lift"}, r"step 0: task must be a string, got bytes"),
        ({"task": "lift\0it"}, r"task must be text that UTF-8 can hold, without zero characters, got 'lift\\x00it'"),
        ({"task": "\udc80"}, r"task must be text that UTF-8 can hold"),
    ],
)
def test_a_wrong_observation_is_refused_at_its_step_and_changes_nothing(changes, message):
    buffer = EpisodeBuffer(SPEC, observe(), source="robot:episode 7")
    with pytest.raises(DatasetError, match=message) as caught:
        buffer.step([0, 0], observe(**changes), 0.0, False, False)
    assert str(caught.value).startswith("robot:episode 7 step 0: ")
    with pytest.raises(DatasetError, match="robot:episode 7 observation 0: "):
        EpisodeBuffer(SPEC, observe(**changes), source="robot:episode 7")
    buffer.step([1, 1], observe(5), 1.0, True, False)
    assert buffer.episode().observations["grip"][:].tolist() == [[0], [5]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros(3)}, r"step 1: action must be numbers of shape \(2,\), got float64 of shape \(3,\)"),
        ({"action": [True, False]}, r"action must be numbers of shape \(2,\), got bool"),
        ({"action": {"arm": 1}}, r"action must be numbers of shape \(2,\), got object"),
        ({"reward": np.zeros(1)}, r"step 1: reward must be one number, got float64 of shape \(1,\)"),
        ({"reward": "1"}, r"reward must be one number, got <U1"),
        ({"terminated": 1}, r"step 1: terminated must be True or False, got 1"),
        ({"truncated": None}, r"step 1: truncated must be True or False, got None"),
    ],
)
def test_a_wrong_step_is_refused_and_changes_nothing(changes, message):
    step = {"action": [0, 0], "observation": observe(), "reward": 0.0, "terminated": False, "truncated": False}
    buffer = EpisodeBuffer(SPEC, observe())
    buffer.step(**step)
    with pytest.raises(DatasetError, match=message):
        buffer.step(**(step | changes))
    assert buffer.num_steps == 1
    assert not buffer.episode().length_problems()


def test_calls_out_of_order_are_refused():
    buffer = EpisodeBuffer(SPEC, observe(), source="robot:episode 1")
    with pytest.raises(DatasetError, match="robot:episode 1 must have at least one step, got none; take steps, or"):
        buffer.episode()
    buffer.step([0, 0], observe(), 0.0, False, True)
    with pytest.raises(DatasetError, match="step 1: the episode ended at the step before; end it and start the next"):
        buffer.step([0, 0], observe(), 0.0, False, False)
    with pytest.raises(DatasetError, match="robot:episode 1: success must be True or False, got 1"):
        buffer.episode(1)  # pyright: ignore[reportArgumentType]


def test_a_bare_array_is_the_state():
    spec = replace(SPEC, observations=(describe_state("state", (3,), "float64"),))
    buffer = EpisodeBuffer(spec, np.arange(3.0))
    buffer.step([0, 0], [1, 2, 3], 0.0, False, False)
    assert buffer.episode().observations["state"][:].tolist() == [[0, 1, 2], [1, 2, 3]]
