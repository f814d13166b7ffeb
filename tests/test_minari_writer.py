"""What the layout can hold: images raw and JPEG, specs that are refused, and that `minari` reads the same frames."""

import io
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from dataset_fixtures import make_episode, make_spec
from PIL import Image

from qtransformer.batch import ActionSpec, ObservationSpec
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.formats.specs import describe_state
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import DatasetError

SHAPES = {"camera": (40, 36, 3), "grey": (32, 48, 1), "small": (31, 40, 3), "wide/depth": (8, 8, 1)}
T = 4


def image_spec(shapes=SHAPES):
    images = tuple(ObservationSpec(key, shape, "uint8", "image") for key, shape in shapes.items())
    return replace(make_spec(), observations=(*images, ObservationSpec("task", (), "str", "text")))


def smooth_frames(shape, num_rows=T + 1):
    """Ramps of brightness, which JPEG keeps to within some units."""
    height, width, channels = shape
    ramp = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 20, width)[None, :, None]
    return np.stack([np.repeat(ramp + 5 * row, channels, axis=2) for row in range(num_rows)]).astype(np.uint8)


def image_episode(shapes=SHAPES):
    texts = np.array(["lift", "Würfel heben", "", "放す", "x"])
    observations = {key: smooth_frames(shape) for key, shape in shapes.items()} | {"task": texts}
    return replace(make_episode(T), observations=observations)


def record(path, images, episode=None, spec=None):
    with Recorder(path, spec or image_spec(), images=images) as recorder:
        recorder.record(episode or image_episode())
    return open_dataset(path)


def dataset_of(path, name):
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        dataset = file[f"episode_0/observations/{name}"]
        assert isinstance(dataset, h5py.Dataset)
        return dataset.dtype, dataset.shape, dataset.chunks, dataset[0]


def test_raw_images_are_contiguous_rows(tmp_path):
    episode = record(tmp_path / "run", "raw").episodes[0]
    for key, shape in SHAPES.items():
        np.testing.assert_array_equal(episode.observations[key][:], image_episode().observations[key])
        assert dataset_of(tmp_path / "run", key)[:3] == (np.uint8, (T + 1, *shape), None)
    assert episode.observations["task"][:].tolist() == ["lift", "Würfel heben", "", "放す", "x"]


def test_jpeg_images_are_files_of_which_minari_knows(tmp_path):
    dataset = record(tmp_path / "run", "jpeg")
    assert dataset.metadata["jpeg_encoding"] is True
    for key in ("camera", "grey"):
        dtype, shape, _, first = dataset_of(tmp_path / "run", key)
        assert (h5py.check_vlen_dtype(dtype), shape) == (np.uint8, (T + 1,))
        with Image.open(io.BytesIO(first.tobytes())) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB" if key == "camera" else "L")
        frames = dataset.episodes[0].observations[key]
        difference = np.abs(frames[:].astype(int) - image_episode().observations[key])
        assert frames.shape == (T + 1, *SHAPES[key])
        assert 0 < difference.max() <= 6
    for key in ("small", "wide/depth"):  # Minari takes them for grids
        np.testing.assert_array_equal(dataset.episodes[0].observations[key][:], image_episode().observations[key])
        assert dataset_of(tmp_path / "run", key)[0] == np.uint8


@pytest.mark.parametrize("images", ["raw", "jpeg"])
def test_minari_gives_the_same_frames(tmp_path, images):
    minari = pytest.importorskip("minari")
    ours = record(tmp_path / "run", images).episodes[0].observations
    theirs = minari.MinariDataset(tmp_path / "run" / "data")
    observations = theirs[0].observations
    found = {key: observations[key] for key in ("camera", "grey", "small")}
    found["wide/depth"] = observations["wide"]["depth"]
    for key, frames in found.items():
        np.testing.assert_array_equal(frames.reshape(ours[key].shape), ours[key][:])
    assert observations["task"] == ours["task"][:].tolist()
    assert theirs.observation_space["grey"].shape == found["grey"].shape[1:]


def test_a_set_without_images_has_no_jpeg_flag(tmp_path):
    Recorder(tmp_path / "run", make_spec(), images="jpeg")
    assert json.loads((tmp_path / "run" / "data" / "metadata.json").read_text())["jpeg_encoding"] is False


def test_appending_with_another_storage_is_refused(tmp_path):
    record(tmp_path / "run", "jpeg")
    with pytest.raises(DatasetError, match=r"stores images as jpeg, got images \(raw\); choose the same"):
        Recorder(tmp_path / "run", image_spec(), append=True)
    record(tmp_path / "other", "raw")
    with pytest.raises(DatasetError, match=r"stores images as raw, got images \(jpeg\)"):
        Recorder(tmp_path / "other", image_spec(), images="jpeg", append=True)


def image(shape=(40, 40, 3), dtype="uint8", name="camera"):
    return ObservationSpec(name, shape, dtype, "image")


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        ((), "must have at least one observation, got none"),
        ((describe_state("a//b", (2,), "float32"),), r"observation 'a//b' must be named by 1 to 8 names joined"),
        ((describe_state("a/../b", (2,), "float32"),), r"observation 'a/../b' must be named by"),
        ((describe_state("/".join("abcdefghi"), (2,), "float32"),), r"'a/b/c/d/e/f/g/h/i' must be named by 1 to 8"),
        (
            (describe_state("a", (2,), "float32"), describe_state("a/b", (2,), "float32")),
            r"observation 'a' must not share its name with \['a/b'\]; rename one",
        ),
        ((image(), image()), "observation 'camera' must not share its name with another"),
        (
            (ObservationSpec("t", (2,), "str", "text"),),
            r"t is text and must be str of shape \(\), got str of shape \(2",
        ),
        (
            (image((3, 40, 40)),),
            r"camera is an image and must be uint8 \(height, width, 1, 3 or 4 channels\), got uint8",
        ),
        ((image(dtype="float32"),), r"is an image and must be uint8 .* got float32 of shape \(40, 40, 3\)"),
        ((image((0, 40, 3)),), r"is an image and must be uint8 .* got uint8 of shape \(0, 40, 3\)"),
        ((image((40, 40, 4)),), r"has four channels, which JPEG cannot hold, got .*; store images raw"),
        ((describe_state("s", (), "float32"),), r"s must be numbers of one axis or more, got float32 of shape \(\)"),
        ((describe_state("s", (2,), "complex64"),), "s must be numbers of one axis or more, got complex64"),
        ((ObservationSpec("s", (2,), "apples"),), "s must be numbers of one axis or more, got apples"),
        ((describe_state("s", (8, 8), "uint8"),), r"s would read back as an image, got uint8 of shape \(8, 8\)"),
        ((describe_state("s", (2, 2, 2), "uint8"),), "s would read back as an image"),
    ],
)
def test_what_would_not_read_back_is_refused_before_anything_is_made(tmp_path, observations, message):
    with pytest.raises(DatasetError, match=message):
        Recorder(tmp_path / "run", replace(make_spec(), observations=observations), images="jpeg")
    assert not (tmp_path / "run").exists()


def test_other_settings_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"images \(png\) must be raw or jpeg; change this setting"):
        Recorder(tmp_path / "run", make_spec(), images="png")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DatasetError, match="actions must have at least one dimension, got none"):
        Recorder(tmp_path / "run", replace(make_spec(), actions=ActionSpec((), ())))
    with pytest.raises(DatasetError, match="environment_kwargs must be plain numbers, strings, lists and dicts"):
        Recorder(tmp_path / "run", replace(make_spec(), environment_kwargs={"reward": object()}))
    assert not (tmp_path / "run").exists()


def test_four_channels_are_kept_raw(tmp_path):
    shapes = {"camera": (40, 40, 4)}
    dataset = record(tmp_path / "run", "raw", image_episode(shapes), image_spec(shapes))
    np.testing.assert_array_equal(dataset.episodes[0].observations["camera"][:], smooth_frames((40, 40, 4)))


@pytest.mark.parametrize("wrong", ["lift\0it", "\udc80"])
def test_text_that_would_not_read_back_is_refused(tmp_path, wrong):
    episode = image_episode()
    episode.observations["task"] = np.array(["lift", wrong, "", "", ""])
    with Recorder(tmp_path / "run", image_spec()) as recorder:
        with pytest.raises(DatasetError, match="observations/task must be text that UTF-8 can hold, without zero char"):
            recorder.record(episode)
        assert list((tmp_path / "run").rglob("*.hdf5*")) == []


def test_numbers_that_look_like_a_jpeg_file_are_refused(tmp_path):
    spec = replace(make_spec(), observations=(describe_state("touch", (3,), "uint8"),))
    rows = np.full((T + 1, 3), 7, np.uint8)
    with Recorder(tmp_path / "run", spec) as recorder:
        recorder.record(replace(make_episode(T), observations={"touch": rows}))
        rows[0] = (255, 216, 255)
        with pytest.raises(DatasetError, match="observations/touch begins like a JPEG or PNG file and would read back"):
            recorder.record(replace(make_episode(T), observations={"touch": rows}))
    (episode,) = open_dataset(tmp_path / "run").episodes
    assert episode.observations["touch"][:].tolist() == [[7, 7, 7]] * (T + 1)
