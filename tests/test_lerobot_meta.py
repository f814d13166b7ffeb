"""The meta folder of a LeRobot dataset: versions, templates, tasks, and paths that lead nowhere or out."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_fixtures import DATA, INFO, VIDEO, edit_feature, edit_json, edit_table, flags, four, write

from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import DatasetError


def test_their_statistics_are_not_read(tmp_path):
    write(tmp_path, "v3.0", four())
    (tmp_path / "meta/stats.json").write_text('{"action": {"min": [0], "max": [0]}}')
    changed = open_dataset(tmp_path)
    (tmp_path / "meta/stats.json").unlink()
    assert open_dataset(tmp_path).fingerprint == changed.fingerprint


@pytest.mark.parametrize("name", ["task", "__index_level_0__"])
def test_tasks_of_version_3_stand_in_a_column_or_in_the_index(tmp_path, name):
    write(tmp_path, "v3.0", four())
    pq.write_table(pa.table({name: ["pull", "push"], "task_index": [1, 0]}), tmp_path / "meta/tasks.parquet")
    assert [each.instruction for each in open_dataset(tmp_path).episodes] == ["push", "pull", "push", "pull"]


def test_tasks_of_version_3_need_a_column_of_text(tmp_path):
    write(tmp_path, "v3.0", four())
    path = tmp_path / "meta/tasks.parquet"
    for table, message in (
        ({"text": ["a", "b"], "task_index": [0, 1]}, r"tasks.parquet must hold the columns \['task'\] once"),
        ({"task": [3, 4], "task_index": [0, 1]}, r"tasks.parquet: task must be str, got 3"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(DatasetError, match=message):
            open_dataset(tmp_path)


@pytest.mark.parametrize("version", ["v1.6", "v4.0", "2.1", "v21"])
def test_other_versions_are_named(tmp_path, version):
    write(tmp_path, "v2.1", four())
    edit_json(tmp_path / INFO, {"codebase_version": version})
    with pytest.raises(
        DatasetError, match=rf"must be v2.x or v3.x, got {version}; which is not read; convert it to v2.1"
    ):
        open_dataset(tmp_path)


def test_version_1_is_known_by_its_folder(tmp_path):
    (tmp_path / "meta_data").mkdir()
    (tmp_path / "meta_data/info.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"meta_data/info.json is of LeRobot version 1, which is not read; convert"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": None}, "info.json: codebase_version must be str, got None"),
        ({"fps": "10"}, r"info.json: fps must be int \| float, got '10'"),
        ({"fps": True}, "fps must be int"),
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"features": []}, r"features must be dict, got \[\]"),
        ({"features": {"action": 3}}, "feature action must be an object with dtype and shape, got 3"),
        ({"features": {"action": {"dtype": "float32", "shape": [0]}}}, r"shape must hold positive integers, got \[0\]"),
        ({"features": {}}, r"must have the feature action, a vector of real numbers, found only \[\]"),
        ({"features": {"action": {"dtype": "int64", "shape": [2]}}}, r"found int64 of shape \(2,\); only continuous"),
        (
            {"features": {"action": {"dtype": "float32", "shape": [2]}}},
            r"must have features observation.\*, found only",
        ),
        ({"chunks_size": 0}, "chunks_size must be at least 1, got 0"),
        ({"data_path": None}, "data_path must be str, got None"),
        ({"data_path": "data/{secret}.parquet"}, r"must use the fields \['episode_chunk', 'episode_index'\] alone"),
        ({"data_path": "data/{episode_index.__class__}"}, "must use the fields"),
        ({"data_path": "data/{episode_index:0999999999d}"}, "must use the fields"),
        ({"data_path": "data/\0{episode_index}"}, "is no path .*correct info.json"),
        ({"data_path": "../{episode_index}.parquet"}, r"'../0.parquet' leads out of the dataset's folder"),
        ({"data_path": "/etc/passwd"}, "'/etc/passwd' leads out of the dataset's folder"),
    ],
)
def test_a_wrong_description_is_explained(tmp_path, change, message):
    write(tmp_path, "v2.1", four())
    edit_json(tmp_path / INFO, change)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (INFO, "{", "info.json is not valid JSON"),
        (INFO, "[" * 100_000, "info.json is not valid JSON"),
        (INFO, "[]", "info.json must hold a JSON object, got list"),
        (INFO, "\udcff", "info.json is not valid JSON"),
        ("meta/episodes.jsonl", "{}\n{", "episodes.jsonl is not valid JSON, one object a line"),
        ("meta/episodes.jsonl", "{}\n", "episodes.jsonl line 1: episode_index must be int, got None"),
        ("meta/episodes.jsonl", "[]\n", "episodes.jsonl line 1 must be a JSON object"),
        ("meta/episodes.jsonl", "", "must list each episode once, got none"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "length": -1}', "length must not be negative, got -1"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "length": 5}\n' * 2, "got episode 0 twice"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "length": 4}', "episode_0 must have 4 rows .*got 5 in 5"),
        ("meta/episodes.jsonl", '{"episode_index": 1' + "0" * 999 + ', "length": 4}', "0.parquet cannot be opened"),
        ("meta/episodes.jsonl", '{"episode_index": 9, "length": 4}', "episode_000009.parquet is missing; fetch"),
        ("meta/tasks.jsonl", '{"task_index": 0}', "tasks.jsonl line 1: task must be str, got None"),
        ("meta/tasks.jsonl", '{"task_index": 9, "task": "a"}', "task_index must be one of .*got 0 at step 0"),
        (DATA["v2.1"].format(0), "PAR1", "episode_000000.parquet is damaged, or was never finished"),
        (DATA["v2.1"].format(0), "version https://git-lfs.github.com", "is a pointer of git-lfs.*`git lfs pull`"),
        (VIDEO["v2.1"].format(1), "version https://git-lfs.github.com", "episode_000001.mp4 is a pointer of git-lfs"),
        (VIDEO["v2.1"].format(1), "#EXTM3U\n/etc/passwd", "episode_000001.mp4 is damaged"),
    ],
)
def test_wrong_files_are_explained(tmp_path, name, content, message):
    write(tmp_path, "v2.1", four(camera=True))
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["data/chunk-000", VIDEO["v2.1"].format(0), "meta/tasks.jsonl", INFO])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    write(tmp_path / "log", "v2.1", four(camera=True))
    (tmp_path / "log" / name).rename(tmp_path / "secret")
    (tmp_path / "log" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match=r"leads out of the dataset's folder, to .*secret.*cp -rL"):
        open_dataset(tmp_path / "log")


def test_links_inside_the_folder_and_to_it_are_followed(tmp_path):
    write(tmp_path / "log", "v2.1", four())
    (tmp_path / "log/data/chunk-000").rename(tmp_path / "log/data/elsewhere")
    (tmp_path / "log/data/chunk-000").symlink_to("elsewhere")
    (tmp_path / "alias").symlink_to("log")
    assert open_dataset(tmp_path / "alias").num_episodes == 4


def test_a_camera_name_cannot_lead_out(tmp_path):
    write(tmp_path, "v2.1", four())
    edit_feature(tmp_path, "observation.images/../../../../../x", dtype="video", shape=[3, 4, 4])
    with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
        open_dataset(tmp_path)


def test_a_mixed_up_meta_table_is_explained(tmp_path):
    write(tmp_path, "v3.0", four(camera=True))
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    edit_table(path, {"length": flags(5, None, 7, 8)})
    with pytest.raises(DatasetError, match=r"file-000.parquet row 1: length must be int, got None"):
        open_dataset(tmp_path)
    edit_table(path, {"length": None})
    with pytest.raises(DatasetError, match=r"must hold the columns \['length'\] once"):
        open_dataset(tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match="must list each episode once, got none"):
        open_dataset(tmp_path)
