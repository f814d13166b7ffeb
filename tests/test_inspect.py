"""The description fits into JSON, states what is in the data whatever that is, and decodes no image."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from check_fixtures import CAMERA, INSTRUCTION, StoredFrames, edited, log_of, with_rows
from dataset_fixtures import make_dataset, make_episode

from qtransformer.batch import ActionSpec, ObservationSpec
from qtransformer_datasets.check import check_dataset
from qtransformer_datasets.inspect import MAX_ELEMENTS, MAX_TEXTS, describe


def described(dataset, findings=()):
    """The description after a trip through strict JSON."""
    return json.loads(json.dumps(describe(dataset, findings), allow_nan=False))


def test_describe_states_the_data(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(3), make_episode(5, seed=1, success=False), make_episode(8, seed=2)])
    dataset = replace(dataset, rules={"terminated": "terminations"}, notes=("interrupted",))
    description = described(dataset, check_dataset(dataset))
    assert (description["episodes"], description["steps"], description["success_rate"]) == (3, 16, 2 / 3)
    assert description["lengths"] == {"min": 3, "median": 5, "max": 8}
    assert description["returns"] == {"min": 0, "median": 1, "max": 1}
    assert description["environment"] == {"id": "test/Point-v0", "kwargs": {}, "control_hz": 10.0}
    assert (description["path"], description["dialect"]) == (str(tmp_path), "minari")
    assert description["fingerprint"] == dataset.fingerprint
    assert (description["rules"], description["notes"]) == ({"terminated": "terminations"}, ["interrupted"])
    assert (description["images"], description["text"], description["findings"]) == ({}, {}, [])


def test_ranges_of_each_element():
    first, second = make_episode(60), make_episode(40, seed=1)
    first.actions[:, 1], second.actions[:, 1] = np.linspace(0, 0.59, 60), np.linspace(0.6, 0.99, 40)
    rows = described(log_of(first, second))["actions"]
    assert [(row["name"], row["unit"], row["low"], row["high"]) for row in rows] == [
        ("left", "m/s", -1, 1),
        ("right", "m/s", -1, 1),
    ]
    figures = {name: rows[1][name] for name in ("min", "q01", "mean", "q99", "max")}
    assert figures == pytest.approx({"min": 0, "q01": 0.0099, "mean": 0.495, "q99": 0.9801, "max": 0.99}, rel=1e-5)
    state = described(log_of(first, second))["observations"]["state"]
    values = np.concatenate([np.array(each.observations["state"]) for each in (first, second)])
    assert [row["max"] for row in state] == values.max(axis=0).tolist()
    assert [row["name"] for row in state] == ["state[0]", "state[1]"]
    assert "low" not in state[0]


def test_missing_names_and_units_are_filled_in():
    dataset = log_of(make_episode())
    observations = tuple(replace(each, elements=(), units=()) for each in dataset.spec.observations)
    actions = ActionSpec((-1.0, -np.inf), (1.0, np.inf), ("only one",), ("m",))
    description = described(replace(dataset, spec=replace(dataset.spec, observations=observations, actions=actions)))
    assert [(row["name"], row["unit"]) for row in description["observations"]["state"]] == [("[0]", ""), ("[1]", "")]
    assert [(row["name"], row["low"], row["high"]) for row in description["actions"]] == [
        ("[0]", -1, 1),
        ("[1]", None, None),
    ]


def test_what_is_not_finite_is_left_out_of_ranges():
    bad = edited(make_episode(4), "state", (slice(None), 0), np.nan)
    bad = edited(edited(bad, "state", (2, 1), np.inf), "rewards", 1, np.nan)
    description = described(log_of(bad))
    first, second = description["observations"]["state"]
    assert {first[name] for name in ("min", "q01", "mean", "q99", "max")} == {None}
    assert second["max"] == float(np.delete(np.array(bad.observations["state"]), 2, axis=0)[:, 1].max())
    assert description["returns"] == {"min": None, "median": None, "max": None}


@pytest.mark.filterwarnings("error")
def test_numbers_at_the_end_of_their_range_make_valid_json():
    huge = np.full((5, 2), 1.7e308)
    (row, _) = described(log_of(with_rows(make_episode(4), state=huge)))["observations"]["state"]
    assert (row["min"], row["mean"], row["max"]) == (1.7e308, None, 1.7e308)


def test_episodes_that_cannot_be_used_are_counted_and_do_not_stop_it():
    broken = replace(make_episode(3, seed=4), rewards=np.ones(2))
    description = described(log_of(broken, make_episode(0, seed=5)))
    assert (description["episodes"], description["steps"]) == (2, 3)
    assert description["lengths"] == {"min": 0, "median": 1.5, "max": 3}
    assert description["observations"] == {}
    assert [row["mean"] for row in description["actions"]] == [None, None]


def test_a_point_cloud_is_one_row():
    size = MAX_ELEMENTS + 1
    cloud = np.tile(np.arange(size, dtype=np.float32), (4, 1))
    log = log_of(with_rows(make_episode(3), cloud=cloud), extra=(ObservationSpec("cloud", (size,), "float32"),))
    (row,) = described(log)["observations"]["cloud"]
    assert (row["name"], row["min"], row["mean"], row["max"]) == (f"all {size} elements", 0, (size - 1) / 2, size - 1)


def test_images_are_described_by_their_stored_bytes():
    frames = [StoredFrames([b"x" * 10, b"x" * 20, b"x" * 30, b"x" * 40]), StoredFrames([b"x" * 50] * 4)]
    log = log_of(*(with_rows(make_episode(3, seed=k), camera=each) for k, each in enumerate(frames)), extra=(CAMERA,))
    assert described(log)["images"] == {
        "camera": {
            "shape": [8, 8, 3],
            "frames": 8,
            "encoding": "jpeg",
            "stored_bytes": 300,
            "decoded_bytes": 8 * 8 * 8 * 3,
        }
    }


def test_images_in_memory_are_raw_and_a_videos_frames_have_no_size():
    array = np.zeros((4, 8, 8, 3), np.uint8)
    image = described(log_of(with_rows(make_episode(3), camera=array), extra=(CAMERA,)))["images"]["camera"]
    assert (image["encoding"], image["stored_bytes"], image["decoded_bytes"]) == ("raw", 768, 768)

    class Video(StoredFrames):
        @property
        def encoding(self):
            return "mp4"

    video = Video([b"a hash"] * 4)
    image = described(log_of(with_rows(make_episode(3), camera=video), extra=(CAMERA,)))["images"]["camera"]
    assert (image["encoding"], image["stored_bytes"]) == ("mp4", None)


def told(*tasks, change=None):
    """One episode a task, success alternating from the first; `change` is what the last is told at its last step."""
    episodes = []
    for seed, task in enumerate(tasks):
        texts = np.array([task] * 3 + [change if change and seed == len(tasks) - 1 else task])
        episodes.append(with_rows(make_episode(3, seed=seed, success=seed % 2 == 0), instruction=texts))
    return log_of(*episodes, extra=(INSTRUCTION,))


def test_tasks_are_counted_with_their_success():
    text = described(told("push", "lift", "push", "push", change="stop"))["text"]["instruction"]
    assert text["different"] == 3
    assert text["most_frequent"] == [
        {"text": "push", "episodes": 3, "success_rate": 2 / 3},
        {"text": "lift", "episodes": 1, "success_rate": 0},
    ]


def test_only_the_most_frequent_tasks_are_listed():
    text = described(told(*(f"task {index:02}" for index in range(30)), "task 29"))["text"]["instruction"]
    assert (text["different"], len(text["most_frequent"])) == (30, MAX_TEXTS)
    assert [each["text"] for each in text["most_frequent"]][:3] == ["task 29", "task 00", "task 01"]


def test_behaviours_are_counted_with_their_success_where_any_is_known():
    episodes = [make_episode(3, seed=seed, success=seed == 0) for seed in range(4)]
    assert described(log_of(*episodes))["behaviours"] == []
    names = ("replay", "replay", "expert", None)
    acted = [replace(each, behaviour=name) for each, name in zip(episodes, names, strict=True)]
    assert described(log_of(*acted))["behaviours"] == [
        {"text": "replay", "episodes": 2, "success_rate": 0.5},
        {"text": "expert", "episodes": 1, "success_rate": 0},
        {"text": "unknown", "episodes": 1, "success_rate": 0},
    ]


def test_findings_come_with_reason_advice_and_places():
    log = log_of(edited(make_episode(5, seed=7), "rewards", 2, np.nan))
    (finding,) = check_dataset(log)
    assert described(log, [finding])["findings"] == [asdict(finding) | {"places": list(finding.places)}]
    assert finding.places == ("main_data.hdf5:episode_7 rewards step 2",)
