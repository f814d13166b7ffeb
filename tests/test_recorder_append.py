"""Going on with a recording that was closed or killed: every finished episode once, in whatever state the kill left."""

import errno
import shutil
from dataclasses import replace

import h5py
import pytest
from dataset_fixtures import make_episode, make_spec

from qtransformer_datasets.formats import minari, open_dataset
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import DatasetError


def record(path, episodes):
    with Recorder(path, make_spec(), attributes={"author": ["somebody"]}) as recorder:
        for episode in episodes:
            recorder.record(episode)
    return open_dataset(path)


def interrupt(path, episodes):
    """A recording as a kill leaves it, never closed."""
    recorder = Recorder(path, make_spec(), attributes={"author": ["somebody"]})
    for episode in episodes:
        recorder.record(episode)
    return path / "data"


def append(path, episodes, **changes):
    with Recorder(path, changes.pop("spec", make_spec()), append=True, **changes) as recorder:
        for episode in episodes:
            recorder.record(episode)
    return recorder


EPISODES = tuple(make_episode(3 + seed, seed=seed) for seed in range(12))


@pytest.mark.parametrize("is_closed", [True, False])
def test_appending_goes_on_where_the_recording_ended(tmp_path, is_closed):
    whole = record(tmp_path / "whole", EPISODES)
    if is_closed:
        record(tmp_path / "run", EPISODES[:5])
    else:
        interrupt(tmp_path / "run", EPISODES[:5])
    recorder = append(tmp_path / "run", EPISODES[5:])
    assert recorder.notes == () if is_closed else ("the recording was interrupted: its 5 finished episodes are kept",)
    dataset = open_dataset(tmp_path / "run")
    assert (dataset.fingerprint, recorder.num_episodes, recorder.num_steps) == (whole.fingerprint, 12, whole.num_steps)
    assert (dataset.metadata["total_episodes"], dataset.metadata["author"]) == (12, ["somebody"])


def test_appending_nothing_closes_the_recording(tmp_path):
    data = interrupt(tmp_path / "run", EPISODES[:2])
    append(tmp_path / "run", [])
    assert sorted(file.name for file in data.iterdir()) == ["main_data.hdf5", "metadata.json"]
    written = (data / "main_data.hdf5").stat().st_mtime_ns
    append(tmp_path / "run", [])
    assert (data / "main_data.hdf5").stat().st_mtime_ns == written  # nothing to merge


def test_appending_to_nothing_starts_a_recording(tmp_path):
    append(tmp_path / "new", EPISODES[:1])
    (tmp_path / "half" / "data" / "unmerged").mkdir(parents=True)  # killed before metadata.json was there
    append(tmp_path / "half", EPISODES[:1])
    assert open_dataset(tmp_path / "new").fingerprint == open_dataset(tmp_path / "half").fingerprint


def test_what_was_torn_is_removed_and_told(tmp_path):
    data = interrupt(tmp_path / "run", EPISODES[:2])
    by_earlier_versions = data / ".main_data.hdf5.tmp"  # they did not name the process
    for file in (data / "unmerged" / ".episode_2.hdf5.71.tmp", by_earlier_versions):
        file.write_bytes(b"half")
    recorder = Recorder(tmp_path / "run", make_spec(), append=True)
    assert [file.name for file in data.rglob(".*")] == []
    recorder.record(EPISODES[2])
    recorder.close()
    assert recorder.notes == (
        "the recording was interrupted: its 2 finished episodes are kept",
        ".episode_2.hdf5.71.tmp was being written and is torn: removed",
        ".main_data.hdf5.tmp was being written and is torn: removed",
    )
    assert open_dataset(tmp_path / "run").fingerprint == record(tmp_path / "whole", EPISODES[:3]).fingerprint


@pytest.mark.parametrize("num_cleaned", range(4))
def test_a_kill_while_cleaning_leaves_each_episode_once(tmp_path, num_cleaned):
    """The main file has appeared, and some of the episodes that it holds now are removed."""
    data = interrupt(tmp_path / "run", EPISODES[:3])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    append(tmp_path / "copy", [])
    shutil.copy(tmp_path / "copy" / "data" / "main_data.hdf5", data)
    for index in range(num_cleaned):
        (data / "unmerged" / f"episode_{index}.hdf5").unlink()
    whole = open_dataset(tmp_path / "copy")
    assert open_dataset(tmp_path / "run").fingerprint == whole.fingerprint
    assert open_dataset(tmp_path / "run").notes == ()
    recorder = append(tmp_path / "run", [])
    assert (recorder.notes, recorder.num_episodes) == ((), 3)
    assert open_dataset(tmp_path / "run").fingerprint == whole.fingerprint
    assert not (data / "unmerged").exists()


def test_a_kill_while_appending_keeps_both_parts(tmp_path):
    record(tmp_path / "run", EPISODES[:9])
    recorder = Recorder(tmp_path / "run", make_spec(), append=True)
    for episode in EPISODES[9:]:
        recorder.record(episode)
    dataset = open_dataset(tmp_path / "run")
    assert [episode.seed for episode in dataset.episodes] == list(range(12))
    assert "interrupted" in dataset.notes[0]
    assert dataset.fingerprint == record(tmp_path / "whole", EPISODES).fingerprint
    append(tmp_path / "run", [])
    assert open_dataset(tmp_path / "run").fingerprint == dataset.fingerprint


def test_a_merge_that_the_disk_refuses_leaves_the_episodes_readable(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "run", make_spec())
    recorder.record(EPISODES[0])

    def full(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recorder, "_merge", full)
    with pytest.raises(DatasetError, match=r"main_data.hdf5 cannot be written"):
        recorder.close()
    assert open_dataset(tmp_path / "run").num_episodes == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"spec": make_spec(("other",))},
            r"run has another spec: observations must be \[\{'name': 'state'.*got .*'other'",
        ),
        ({"spec": replace(make_spec(), control_hz=5.0)}, "has another spec: control_hz must be 10.0, got 5.0; choose"),
        ({"attributes": {"author": ["me"]}}, r"recorded with another author, \['somebody'\], got \['me'\]; choose"),
    ],
)
def test_appending_something_else_is_refused_and_changes_nothing(tmp_path, changes, message):
    before = record(tmp_path / "run", EPISODES[:2])
    with pytest.raises(DatasetError, match=message):
        append(tmp_path / "run", [], **changes)
    assert open_dataset(tmp_path / "run").fingerprint == before.fingerprint


def test_appending_to_what_is_no_recording_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DatasetError, match="must be a recording to append to, but has no folder data"):
            append(path, [])
    record(tmp_path / "foreign", EPISODES[:1])
    (tmp_path / "foreign" / "data" / "metadata.json").write_text('{"total_episodes": 1}')
    with pytest.raises(DatasetError, match="was not written by this recorder; convert it first"):
        append(tmp_path / "foreign", [])
    record(tmp_path / "gap", EPISODES[:3])
    with h5py.File(tmp_path / "gap" / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1"]
    with pytest.raises(DatasetError, match=r"lacks some of its episodes, found \['episode_0', 'episode_2'\]"):
        append(tmp_path / "gap", [])


def test_locating_looks_into_no_file_unless_it_must(tmp_path, monkeypatch):
    record(tmp_path / "run", EPISODES[:1])
    monkeypatch.setattr(minari, "root_names", None)
    assert [file.name for file in minari.locate(tmp_path / "run")] == ["main_data.hdf5"]
