"""Converting: the same episodes, whatever held them; compressed images byte for byte, or as asked."""

import io
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode, make_spec
from PIL import Image

from qtransformer.batch import ObservationSpec
from qtransformer_datasets import convert as convert_module
from qtransformer_datasets.convert import convert_dataset
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.frames import Frames
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import DatasetError, EpisodeDataset
from qtransformer_datasets.selection import merge, only_successful

T = 3
BIG, SMALL = (40, 32, 3), (16, 16, 3)


def frames(shape, num_rows=T + 1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_rows, *shape), np.uint8)


def image_dataset(path, images, shapes=(("camera", BIG), ("small", SMALL)), num_episodes=2):
    spec = replace(make_spec(), observations=tuple(ObservationSpec(k, s, "uint8", "image") for k, s in shapes))
    with Recorder(path, spec, images=images) as recorder:
        for seed in range(num_episodes):
            observations = {key: frames(shape, seed=seed) for key, shape in shapes}
            recorder.record(replace(make_episode(T, seed=seed), observations=observations))
    return open_dataset(path)


def foreign(path, rows, *, shape=None):
    """A Minari file by somebody else, with one observation; `shape` of a dataset of compressed rows."""
    path.mkdir()
    with h5py.File(path / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        if shape is None:
            group["observations"] = rows
        else:
            dataset = group.create_dataset("observations", shape, h5py.vlen_dtype(np.uint8))
            for index, row in enumerate(rows):
                dataset[index] = row
        group["actions"], group["rewards"] = np.zeros((T, 2)), np.array([0.0, 0.0, 1.0])
        group["terminations"], group["truncations"] = np.arange(T) == T - 1, np.zeros(T, bool)
        group["infos/other/empty"] = np.zeros((T + 1, 0))
    return open_dataset(path)


def files(shape, kind):
    encoded = []
    for frame in frames(shape):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, kind)
        encoded.append(np.frombuffer(file.getvalue(), np.uint8))
    return encoded


def stored(dataset, key):
    rows = dataset.episodes[0].observations[key]
    assert isinstance(rows, Frames)
    return rows.encoding, list(rows.stored_rows())


@pytest.mark.parametrize("images", ["raw", "jpeg"])
def test_kept_images_keep_the_fingerprint(tmp_path, images):
    dataset = image_dataset(tmp_path / "log", images)
    converted = convert_dataset(dataset, tmp_path / "out")
    assert converted.fingerprint == dataset.fingerprint
    assert stored(converted, "camera")[0] == images
    assert stored(converted, "camera")[1] == stored(dataset, "camera")[1]
    assert converted.metadata["jpeg_encoding"] is (images == "jpeg")


@pytest.mark.parametrize(("kind", "shape"), [("JPEG", BIG), ("JPEG", SMALL), ("PNG", BIG)])
def test_compressed_files_of_others_are_copied_byte_for_byte(tmp_path, kind, shape):
    dataset = foreign(tmp_path / "log", files(shape, kind), shape=(T + 1,))
    converted = convert_dataset(dataset, tmp_path / "out")
    assert converted.fingerprint == dataset.fingerprint
    assert stored(converted, "state") == (kind.lower(), [row.tobytes() for row in files(shape, kind)])


def test_compressed_images_can_be_decoded(tmp_path):
    dataset = image_dataset(tmp_path / "log", "jpeg")
    converted = convert_dataset(dataset, tmp_path / "out", images="raw")
    assert stored(converted, "camera")[0] == "raw"
    for one, other in zip(dataset.episodes, converted.episodes, strict=True):
        np.testing.assert_array_equal(one.observations["camera"][:], other.observations["camera"][:])
    assert converted.fingerprint != dataset.fingerprint  # these are other bytes


def test_raw_images_can_be_compressed(tmp_path):
    dataset = image_dataset(tmp_path / "log", "raw")
    converted = convert_dataset(dataset, tmp_path / "out", images="jpeg")
    assert (stored(converted, "camera")[0], stored(converted, "small")[0]) == ("jpeg", "raw")
    assert convert_dataset(converted, tmp_path / "again", images="jpeg").fingerprint == converted.fingerprint


def test_a_mixture_of_raw_and_compressed_images_must_be_decided(tmp_path):
    raw, jpeg = (image_dataset(tmp_path / images, images) for images in ("raw", "jpeg"))
    mixture = merge([raw, jpeg], tmp_path)
    message = (
        r"got compressed ones in jpeg/main_data.hdf5:episode_0/camera and others in raw/main_data.hdf5:episode_0/cam"
    )
    with pytest.raises(DatasetError, match=message):
        convert_dataset(mixture, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert convert_dataset(mixture, tmp_path / "out", images="raw").num_episodes == 4


def test_episodes_without_a_final_observation_stay_so(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(2 + seed, seed=seed, final=seed % 2 == 0) for seed in range(4)])
    converted = convert_dataset(dataset, tmp_path / "out")
    assert [each.has_final_observation for each in converted.episodes] == [True, False, True, False]
    assert converted.fingerprint == dataset.fingerprint
    with h5py.File(tmp_path / "out" / "data" / "main_data.hdf5") as file:
        assert [len(file[f"episode_{k}/observations"]) for k in range(4)] == [3, 3, 5, 5]  # pyright: ignore


def test_images_in_memory_count_as_raw_ones(tmp_path):
    dataset = image_dataset(tmp_path / "log", "raw")
    episodes = tuple(
        replace(each, observations={key: rows[:] for key, rows in each.observations.items()})
        for each in dataset.episodes
    )
    loaded = EpisodeDataset(tmp_path, dataset.spec, episodes, "npz")
    assert loaded.fingerprint == dataset.fingerprint
    assert convert_dataset(loaded, tmp_path / "out").fingerprint == dataset.fingerprint


def test_what_was_guessed_is_written_down(tmp_path):
    dataset = foreign(tmp_path / "log", np.zeros((T + 1, 2)))
    assert dataset.rules["success"].startswith("a termination")
    converted = convert_dataset(dataset, tmp_path / "out")
    assert (converted.rules["success"], converted.episodes[0].success) == ("infos/success true at any step", True)
    origin = {"dialect": "minari", "path": "log", "rules": dict(dataset.rules)}
    assert converted.metadata["converted_from"] == origin
    again = convert_dataset(converted, tmp_path / "again")
    assert again.metadata["converted_from"] == origin  # where it came from in the first place


def test_minaris_metadata_is_taken_over_but_for_what_described_the_file(tmp_path):
    dataset = foreign(tmp_path / "log", np.zeros((T + 1, 2)))
    metadata = {"author": ["A"], "env_spec": json.dumps({"id": "E-v0"}), "dataset_id": "old-v3", "dataset_size": 12.5}
    converted = convert_dataset(replace(dataset, metadata=metadata | {"total_steps": 99}), tmp_path / "out")
    assert {key: converted.metadata.get(key) for key in metadata} == {
        "author": ["A"],
        "env_spec": metadata["env_spec"],
        "dataset_id": "out-v0",
        "dataset_size": None,
    }
    assert converted.metadata["total_steps"] == T
    other = convert_dataset(replace(dataset, metadata=metadata, dialect="robomimic"), tmp_path / "other")
    assert "author" not in other.metadata


def test_a_selection_is_converted_like_a_whole(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(3, seed=seed, success=seed % 2 == 0) for seed in range(6)])
    converted = convert_dataset(only_successful(dataset), tmp_path / "out")
    assert [episode.seed for episode in converted.episodes] == [0, 2, 4]


def test_an_interrupted_conversion_says_so(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, [make_episode(3, seed=seed) for seed in range(4)])

    def interrupted(dataset):
        yield from dataset.episodes[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "_show_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(dataset, tmp_path / "out")
    left = open_dataset(tmp_path / "out")
    assert left.num_episodes == 2
    assert left.notes == ("the recording was interrupted: these are its finished episodes",)


def test_episodes_of_another_dtype_than_the_spec_are_told(tmp_path):
    wrong = replace(make_episode(2), observations={"state": np.zeros((3, 2))})
    dataset = make_dataset(tmp_path, [make_episode(2), wrong])
    with pytest.raises(DatasetError, match=r"episode 1 of .*: observation state must be float32, got float64"):
        convert_dataset(dataset, tmp_path / "out")


def test_a_path_that_holds_something_is_left_alone(tmp_path):
    dataset = image_dataset(tmp_path / "log", "raw")
    with pytest.raises(DatasetError, match="must be new or empty, but holds something"):
        convert_dataset(dataset, tmp_path / "log")
    assert open_dataset(tmp_path / "log").fingerprint == dataset.fingerprint
