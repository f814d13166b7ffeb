"""Recording: what was finished survives, and what is written is what is read."""

import errno
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from dataset_fixtures import make_episode, make_spec

from qtransformer import files
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import DatasetError

VARIANTS = {
    "flat": (("state",), True),
    "dict": (("camera_pose", "robot/arm", "robot/hand"), True),
    "no-final-observation": (("state",), False),
}


def record(path, episodes, keys=("state",)):
    with Recorder(path, make_spec(keys), attributes={"author": ["somebody"]}) as recorder:
        for episode in episodes:
            recorder.record(episode)
    return open_dataset(path)


def assert_same(one, other):
    for key, array in one.observations.items():
        np.testing.assert_array_equal(array, other.observations[key])
    for name in ("actions", "rewards", "terminations", "truncations"):
        expected, got = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(expected, got)
        assert expected.dtype == got.dtype
    for name in ("success", "seed", "has_final_observation"):
        assert getattr(one, name) == getattr(other, name)
    assert set(one.observations) == set(other.observations)


def test_refuses_a_path_below_a_file(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DatasetError, match=r"notes/log cannot be made \(Not a directory\); choose another path"):
        Recorder(tmp_path / "notes" / "log", make_spec())


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(tmp_path, variant):
    keys, final = VARIANTS[variant]
    episodes = [make_episode(2 + seed, keys=keys, seed=seed, success=seed % 2 == 0, final=final) for seed in range(12)]
    dataset = record(tmp_path / "run", episodes, keys)
    assert dataset.spec == make_spec(keys)
    assert [episode.source for episode in dataset.episodes] == [f"main_data.hdf5:episode_{i}" for i in range(12)]
    for written, read in zip(episodes, dataset.episodes, strict=True):
        assert_same(written, read)
    assert sorted(file.name for file in (tmp_path / "run" / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]
    assert dataset.notes == ()


def test_metadata_counts_and_attributes(tmp_path):
    record(tmp_path / "my run", [make_episode(3), make_episode(4)])
    metadata = json.loads((tmp_path / "my run" / "data" / "metadata.json").read_text())
    assert (metadata["total_episodes"], metadata["total_steps"], metadata["data_format"]) == (2, 7, "hdf5")
    assert (metadata["author"], metadata["dataset_id"]) == (["somebody"], "my-run-v0")


def test_finished_episodes_survive_a_kill(tmp_path):
    recorder = Recorder(tmp_path / "run", make_spec())
    episodes = [make_episode(3, seed=seed) for seed in range(11)]
    for episode in episodes:
        recorder.record(episode)
    (tmp_path / "run" / "data" / "unmerged" / ".episode_11.hdf5.71.tmp").write_bytes(b"half an episode")
    dataset = open_dataset(tmp_path / "run")  # never closed
    assert [episode.seed for episode in dataset.episodes] == list(range(11))
    assert dataset.notes == (
        "the recording was interrupted: these are its finished episodes; 1 that was being written is torn and left out",
    )
    recorder.close()
    assert open_dataset(tmp_path / "run").fingerprint == dataset.fingerprint


def test_an_exception_keeps_the_finished_episodes(tmp_path):
    def episodes():
        yield make_episode()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "run", episodes())
    assert open_dataset(tmp_path / "run").num_episodes == 1


def test_closing_without_episodes_leaves_a_path_that_can_be_used_again(tmp_path):
    Recorder(tmp_path / "run", make_spec()).close()
    assert record(tmp_path / "run", [make_episode()]).num_episodes == 1


def test_closing_twice_is_harmless_and_recording_then_is_refused(tmp_path):
    recorder = Recorder(tmp_path / "run", make_spec())
    recorder.record(make_episode())
    recorder.close()
    recorder.close()
    with pytest.raises(DatasetError, match="is closed; make a new Recorder"):
        recorder.record(make_episode())


def test_refuses_what_exists_and_leaves_it_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DatasetError, match="must be new or empty, but holds something; choose another path"):
            Recorder(path, make_spec())
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(5)}, r"episode 0 of .*rewards must have 3 rows for 3 actions, got 5"),
        ({"observations": {"other": np.zeros((4, 2))}}, r"observations must be \{'state': \(2,\)\}, got \{'other'"),
        ({"actions": np.zeros((3, 1), np.float32)}, r"actions must have shape \(T, 2\), got \(3, 1\)"),
        ({"observations": {"state": np.zeros((4, 2))}}, "observation state must be float32, got float64"),
        ({"seed": 2**63}, "seed must fit into 64 bits, got 9223372036854775808; nothing was written of it"),
    ],
)
def test_refuses_episodes_that_do_not_match(tmp_path, change, message):
    with Recorder(tmp_path / "run", make_spec()) as recorder, pytest.raises(DatasetError, match=message):
        recorder.record(replace(make_episode(), **change))


def test_refuses_an_empty_episode(tmp_path):
    with Recorder(tmp_path / "run", make_spec()) as recorder, pytest.raises(DatasetError, match="at least one step"):
        recorder.record(make_episode(0))


def test_nothing_is_compressed(tmp_path):
    record(tmp_path / "run", [make_episode(500)])
    with h5py.File(tmp_path / "run" / "data" / "main_data.hdf5") as file:
        actions = file["episode_0/actions"]
        assert isinstance(actions, h5py.Dataset)
        assert actions.compression is None
        assert actions.chunks is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_minari_opens_it(tmp_path, variant):
    minari = pytest.importorskip("minari")
    keys, final = VARIANTS[variant]
    record(tmp_path / "run", [make_episode(4, keys=keys, seed=seed, final=final) for seed in range(3)], keys)
    dataset = minari.MinariDataset(tmp_path / "run" / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    episode = dataset[2]
    np.testing.assert_array_equal(episode.actions, make_episode(4, keys=keys, seed=2, final=final).actions)
    found = episode.observations if variant != "dict" else episode.observations["robot"]["arm"]
    key = "state" if variant != "dict" else "robot/arm"
    np.testing.assert_array_equal(found, make_episode(4, keys=keys, seed=2, final=final).observations[key])
    assert episode.infos["success"][-1]


def play(recorder, num_steps, *, terminated=False, value=0.0):
    """Streams an episode as a robot does; it is not ended."""
    recorder.start_episode({"state": np.full(2, value, np.float32)}, seed=7)
    for step in range(num_steps):
        row = np.full(2, value + step + 1, np.float32)
        recorder.step(np.array([0.5, 0.0]), {"state": row}, 1.0, terminated and step == num_steps - 1, False)


def test_a_robot_streams_its_steps(tmp_path):
    with Recorder(tmp_path / "run", make_spec()) as recorder:
        play(recorder, 2, terminated=True)
        assert (recorder.num_pending_steps, recorder.num_episodes) == (2, 0)
        recorder.end_episode(success=True)
        assert (recorder.num_pending_steps, recorder.num_episodes, recorder.num_steps) == (None, 1, 2)
        assert open_dataset(tmp_path / "run").num_episodes == 1  # on disk at once
        play(recorder, 5)
        recorder.discard_episode()
        play(recorder, 3)
        recorder.end_episode(success=False)
    first, second = open_dataset(tmp_path / "run").episodes
    assert first.observations["state"][:][:, 0].tolist() == [0, 1, 2]
    assert (first.rewards.tolist(), first.terminations.tolist(), first.seed) == ([1, 1], [False, True], 7)
    assert (first.success, second.success, second.num_steps) == (True, False, 3)
    assert (second.terminations.any(), second.truncations.tolist()) == (False, [False, False, True])


def test_closing_keeps_the_episode_that_goes_on_as_truncated(tmp_path):
    with Recorder(tmp_path / "run", make_spec()) as recorder:
        play(recorder, 2)
    (episode,) = open_dataset(tmp_path / "run").episodes
    assert (episode.truncations.tolist(), episode.success) == ([False, True], None)
    with Recorder(tmp_path / "other", make_spec()) as recorder:
        play(recorder, 0)
    assert list((tmp_path / "other").iterdir()) == []


def test_streaming_calls_out_of_order_are_refused(tmp_path):
    recorder = Recorder(tmp_path / "run", make_spec())
    for call, arguments in (("step", (0, 0, 0, False, False)), ("end_episode", ()), ("discard_episode", ())):
        with pytest.raises(DatasetError, match=f"run: episode 0 is not started; call start_episode before {call}"):
            getattr(recorder, call)(*arguments)
    play(recorder, 0)
    with pytest.raises(DatasetError, match="episode 0 is not ended; call end_episode or discard_episode first"):
        play(recorder, 1)
    with pytest.raises(DatasetError, match="episode 0 must have at least one step"):
        recorder.end_episode()
    with pytest.raises(DatasetError, match=r"episode 0 step 0: state must be float32 of shape \(2,\), got float64"):
        recorder.step([0, 0], {"state": np.zeros(2)}, 0.0, False, False)
    recorder.close()
    with pytest.raises(DatasetError, match="is closed; make a new Recorder"):
        play(recorder, 1)


def test_an_episode_that_the_disk_refused_can_be_ended_again(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "run", make_spec())
    play(recorder, 2)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync", full)
        with pytest.raises(DatasetError, match=r"episode_0.hdf5 cannot be written \(.*No space left.*\); make room or"):
            recorder.end_episode()
    assert list((tmp_path / "run" / "data" / "unmerged").iterdir()) == []
    recorder.end_episode()
    assert recorder.num_episodes == 1


def test_two_recorders_at_one_path_overwrite_nothing(tmp_path):
    first = Recorder(tmp_path / "run", make_spec())
    second = Recorder(tmp_path / "run", make_spec(), append=True)
    first.record(make_episode(3))
    with pytest.raises(DatasetError, match=r"episode_0.hdf5 is there already: another recorder writes into"):
        second.record(make_episode(4))
    assert open_dataset(tmp_path / "run").num_steps == 3


def test_success_that_nobody_reported_stays_unknown(tmp_path):
    dataset = record(tmp_path / "run", [replace(make_episode(3), success=None), make_episode(4)])
    assert [episode.success for episode in dataset.episodes] == [None, True]
    assert dataset.rules["success"] == "infos/success true at any step; unknown without that flag"
