"""Reading LeRobot's layouts as strangers write them: numbers, tasks, names; and refusing wrong columns, in words."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_fixtures import (
    DATA,
    INFO,
    VERSIONS,
    edit_feature,
    edit_json,
    edit_table,
    flags,
    four,
    make_episode,
    texts_of,
    write,
)

from qtransformer.batch import ReadOptions
from qtransformer_datasets.formats import lerobot, open_dataset
from qtransformer_datasets.schema import DatasetError


def test_a_hand_worked_episode(tmp_path):
    folder = tmp_path / "log"
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-001").mkdir(parents=True)
    scalar = {"dtype": "int64", "shape": [1]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": [1], "names": {"motors": ["wheel"]}},
        "next.success": {"dtype": "bool", "shape": [1]},
        **dict.fromkeys(("timestamp", "frame_index", "episode_index", "task_index"), scalar),
    }
    info = {"codebase_version": "v2.0", "fps": 20, "chunks_size": 3}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/{episode_index:03d}.parquet"
    (folder / INFO).write_text(json.dumps({**info, "total_episodes": 1, "features": features}))
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "push"}\n{"task_index": 7, "task": "wait"}\n')
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 4, "tasks": ["push"], "length": 3}\n')
    columns = {
        "observation.state": pa.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], pa.list_(pa.float32(), 2)),
        "action": pa.array([0.5, -0.5, 1.0], pa.float32()),
        "next.success": [False, False, True],
        "timestamp": [0.0, 0.05, 0.1],
        "frame_index": [0, 1, 2],
        "episode_index": [4, 4, 4],
        "task_index": [0, 7, 0],
    }
    pq.write_table(pa.table(columns), folder / "data/chunk-001/004.parquet")
    dataset = open_dataset(folder)
    episode = dataset.episodes[0]
    assert (dataset.dialect, dataset.spec.control_hz, dataset.num_steps) == ("lerobot", 20.0, 3)
    assert episode.source == "data/chunk-001/004.parquet:episode_4"
    np.testing.assert_array_equal(episode.observations["state"], [[0, 1], [2, 3], [4, 5]])
    assert texts_of(episode) == ["push", "wait", "push"]
    assert episode.actions.dtype == np.float32
    np.testing.assert_array_equal(episode.actions, [[0.5], [-0.5], [1.0]])
    assert episode.rewards.tolist() == [0, 0, 1]
    assert episode.terminations.tolist() == [False, False, True]
    assert not episode.truncations.any()
    assert episode.success
    assert not episode.has_final_observation
    assert not episode.length_problems()
    specs = {each.name: (each.kind, each.shape, each.elements) for each in dataset.spec.observations}
    assert specs == {"instruction": ("text", (), ()), "state": ("state", (2,), ("x", "y"))}
    assert dataset.spec.actions.elements == ("wheel",)
    assert dataset.notes == ()


@pytest.mark.parametrize("cameras", ["video", "image"])
def test_both_versions_read_back_what_was_written_and_are_equal(tmp_path, cameras):
    written = four(camera=True)
    old, new = (open_dataset(write(tmp_path / v, v, written, cameras=cameras)) for v in VERSIONS)
    assert old.fingerprint == new.fingerprint
    assert old.spec == new.spec
    for dataset in (old, new):
        assert dataset.num_episodes == 4
        for episode, expected in zip(dataset.episodes, written, strict=True):
            for name in ("actions", "rewards", "terminations", "truncations"):
                np.testing.assert_array_equal(getattr(episode, name), getattr(expected, name))
            for key in ("state", "speed", "instruction"):
                np.testing.assert_array_equal(episode.observations[key], expected.observations[key])
            assert (episode.success, episode.has_final_observation) == (expected.success, False)
            assert not episode.length_problems()
    for one, other in zip(old.episodes, new.episodes, strict=True):
        np.testing.assert_array_equal(one.observations["images/front"][:], other.observations["images/front"][:])


def test_sources_name_file_and_episode_and_rules_say_what_was_done(tmp_path):
    dataset = open_dataset(write(tmp_path, "v3.0", four()))
    assert [each.source for each in dataset.episodes][1:3] == [
        "data/chunk-000/file-000.parquet:episode_1",
        "data/chunk-000/file-001.parquet:episode_2",
    ]
    assert dataset.rules["terminated"] == "the last step, where it is one of success: next.success"
    assert "cannot express truncation" in dataset.rules["truncated"]
    assert dataset.rules["success"] == "next.success at any step"
    assert dataset.rules["rewards"] == "next.reward"
    assert dataset.rules["final observation"].startswith("none: T observations for T actions")
    assert "[-1, 1] by convention" in dataset.rules["action limits"]
    assert dataset.metadata["robot_type"] == "arm"


def test_matrices_scalars_text_and_cast_numbers(tmp_path):
    extra = {"grid": np.arange(24.0).reshape(4, 2, 3), "hint": np.array(["a", "", "ä", "d"])}
    episode = make_episode(4)
    episode = replace(episode, observations={**episode.observations, **extra})
    write(tmp_path, "v2.1", [episode])
    edit_feature(tmp_path, "observation.speed", dtype="float64")
    episode = open_dataset(tmp_path).episodes[0]
    read = episode.observations
    np.testing.assert_array_equal(read["grid"], extra["grid"])
    assert texts_of(episode, "hint") == ["a", "", "ä", "d"]
    assert (read["speed"].shape, read["speed"].dtype) == ((4, 1), np.float64)


def test_extension_types_of_hugging_face_are_read(tmp_path):
    import datasets

    episode = make_episode(4)
    grid = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    write(tmp_path, "v2.1", [replace(episode, observations={**episode.observations, "grid": grid})])
    path = tmp_path / DATA["v2.1"].format(0)
    storage = pa.array(grid.tolist(), pa.list_(pa.list_(pa.float32())))
    array = pa.ExtensionArray.from_storage(datasets.Array2D((2, 3), "float32")(), storage)
    edit_table(path, {"observation.grid": lambda _: array})
    assert isinstance(pq.read_schema(path).field("observation.grid").type, pa.ExtensionType)
    np.testing.assert_array_equal(open_dataset(tmp_path).episodes[0].observations["grid"], grid)


@pytest.mark.parametrize("names", [None, ["one"], {"motors": ["a", "a"]}, {"axes": "xy"}, ["a", "b", "c"]])
def test_names_that_do_not_fit_are_left_out(tmp_path, names):
    write(tmp_path, "v2.1", four())
    edit_feature(tmp_path, "action", names=names)
    assert open_dataset(tmp_path).spec.actions.elements == ("action[0]", "action[1]")


def test_names_in_several_lists_are_joined(tmp_path):
    write(tmp_path, "v2.1", four())
    edit_feature(tmp_path, "action", names={"arm": ["a"], "hand": ["b"]})
    assert open_dataset(tmp_path).spec.actions.elements == ("a", "b")


def test_what_is_left_out_is_told(tmp_path):
    write(tmp_path, "v2.1", four())
    edit_feature(tmp_path, "subtask", dtype="string", shape=[1])
    edit_feature(tmp_path, "observation.images.depth", dtype="video", shape=[9, 9, 1], info={"is_depth_map": True})
    edit_json(tmp_path / INFO, {"total_episodes": 5})
    first, second = open_dataset(tmp_path).notes
    assert first.endswith("left out: subtask, observation.images.depth (depth)")
    assert second.startswith("info.json speaks of 5 episodes, but the meta folder lists 4")


def test_without_tasks_there_is_no_instruction(tmp_path):
    write(tmp_path, "v2.1", four())
    (tmp_path / "meta/tasks.jsonl").write_text("")
    assert "instruction" not in open_dataset(tmp_path).episodes[0].observations
    assert open_dataset(tmp_path, ReadOptions(instruction="go")).episodes[0].instruction == "go"


def test_matches_never_raises(tmp_path):
    assert not lerobot.matches(tmp_path)
    assert not lerobot.matches(tmp_path / "nowhere")
    assert not lerobot.matches(tmp_path / ("long" * 999))
    (tmp_path / "meta").write_text("a file")
    assert not lerobot.matches(tmp_path)
    assert lerobot.matches(write(tmp_path / "log", "v3.0", four()))


@pytest.mark.parametrize("name", ["observation.instruction", "observation.images/front"])
def test_two_observations_of_one_name_are_refused(tmp_path, name):
    write(tmp_path, "v2.1", four(camera=True))
    edit_feature(tmp_path, name, dtype="string", shape=[1])
    with pytest.raises(DatasetError, match=r"must give each observation a name of its own, got .* twice"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("action", None, r"must hold the columns \['action'\] once, found \['episode_index'"),
        ("action", flags(*"abcde"), r"episode_0 action must have the shape \(2,\) after info.json, got \(\)"),
        ("action", flags(*[["a", "b"]] * 5), "episode_0 action must be float32 after info.json, got string"),
        ("action", flags(*[[1.0, 2.0, 3.0]] * 5), r"action must have the shape \(2,\) after info.json, got \(3,\)"),
        ("action", flags([1.0, 2.0], [1.0], *[[1.0, 2.0]] * 3), "got 1 values at step 1 and 2 at step 0"),
        ("action", flags([1.0, 2.0], None, *[[1.0, 2.0]] * 3), "episode_0 action step 1 is empty"),
        ("action", flags(*[[1.0, 2.0]] * 3, [1.0, None], [1.0, 2.0]), "episode_0 action step 3 is empty"),
        ("observation.speed", flags(1.0, None, 2.0, 3.0, 4.0), "episode_0 observation.speed step 1 is empty"),
        ("next.success", flags(*"abcde"), "next.success must be float64 after info.json, got string"),
        ("frame_index", flags(0, 1, 3, 2, 4), "frame_index must count the steps from 0, got 3 at step 2"),
        ("frame_index", flags(0.0, 1.0, 2.0, 3.0, 4.0), "frame_index must be int64 after info.json, got double"),
        ("episode_index", flags(0, 0, 0, 0, 1), "episode_0 must have 5 rows .*got 4 in 5"),
        ("task_index", flags(0, 0, 0, 5, 0), "must be one of the meta folder's tasks, got 5 at step 3"),
        (
            "timestamp",
            flags(0.0, 0.1, 0.26, 0.3, 0.4),
            "front step 2 is of 0.260 s, but its frame in .* shows at 0.200 s",
        ),
    ],
)
def test_wrong_columns_are_explained(tmp_path, column, change, message):
    write(tmp_path, "v2.1", four(camera=True))
    edit_table(tmp_path / DATA["v2.1"].format(0), {column: change})
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


def test_text_and_dtypes_are_checked(tmp_path):
    write(tmp_path, "v2.1", four())
    edit_feature(tmp_path, "observation.speed", dtype="string")
    with pytest.raises(DatasetError, match=r"observation.speed step 0 must be text, got 0.0"):
        open_dataset(tmp_path)
    edit_feature(tmp_path, "observation.speed", dtype="object")
    with pytest.raises(DatasetError, match=r"observation.speed must be string, image, video or one of .*got object"):
        open_dataset(tmp_path)


def test_episodes_of_a_shared_file_must_lie_in_one_piece(tmp_path):
    write(tmp_path, "v3.0", four())
    edit_table(tmp_path / DATA["v3.0"], {"episode_index": flags(0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1)})
    with pytest.raises(DatasetError, match=r"file-000.parquet:episode_0 must have 5 rows one after another"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_end_in_words(tmp_path, seed):
    generator = np.random.default_rng(seed)
    write(tmp_path, VERSIONS[seed % 2], four(camera=True), cameras=("video", "image")[seed % 3 == 0])
    files = sorted(each for each in tmp_path.rglob("*.*") if each.is_file() and each.name != "stats.json")
    for path in files:
        content = path.read_bytes()
        changed = bytearray(content)
        for place in generator.integers(len(changed), size=3):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        try:
            for episode in open_dataset(tmp_path).episodes:
                if "images/front" in episode.observations:
                    episode.observations["images/front"][:]
        except DatasetError:
            pass
        path.write_bytes(content)
