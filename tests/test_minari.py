"""Reading Minari's layout as strangers write it, and refusing what cannot be read, in words."""

import io
import json

import h5py
import numpy as np
import pytest
from dataset_fixtures import make_episode, make_spec
from PIL import Image

from qtransformer_datasets.formats import hdf5, open_dataset
from qtransformer_datasets.frames import Frames
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import DatasetError

BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -2.0], "high": [1.0, 2.0]}
GROUPS = {"_index_10": 4.0, "_index_2": 3.0}
T = 3


def encode(pixels, form):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(folder, *, episodes=(0,), metadata=None, **changes):
    """Writes a file as Minari does; a change replaces a member of every episode (None removes it)."""
    folder.mkdir(exist_ok=True)
    members = {
        "observations": np.arange(2.0 * (T + 1)).reshape(T + 1, 2),
        "actions": np.full((T, 2), 0.5),
        "rewards": np.array([0.0, 0.0, 1.0]),
        "terminations": np.array([False, False, True]),
        "truncations": np.zeros(T, bool),
    } | changes
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for index in episodes:
            group = file.create_group(f"episode_{index}")
            for name, value in members.items():
                if value is not None:
                    group[name] = value
    if metadata is not None:
        (folder / "metadata.json").write_text(metadata if isinstance(metadata, str) else json.dumps(metadata))
    return folder


def edit(folder, change):
    with h5py.File(folder / "main_data.hdf5", "r+") as file:
        change(file["episode_0"])
    return folder


@pytest.mark.parametrize("part", [".", "data", "data/main_data.hdf5"])
def test_directory_data_directory_and_file_are_the_same_dataset(tmp_path, part):
    write(tmp_path / "data", metadata={"action_space": json.dumps(BOX)})
    dataset = open_dataset(tmp_path / part)
    assert (dataset.dialect, dataset.num_episodes, dataset.num_steps) == ("minari", 1, T)
    assert dataset.fingerprint == open_dataset(tmp_path).fingerprint


def test_flat_observations_are_named_state_and_the_spec_is_derived(tmp_path):
    environment = json.dumps({"id": "Some/Env-v1", "kwargs": {"size": 3}})
    spec = open_dataset(write(tmp_path, metadata={"action_space": json.dumps(BOX), "env_spec": environment})).spec
    assert [(each.name, each.shape, each.elements, each.units) for each in spec.observations] == [
        ("state", (2,), ("state[0]", "state[1]"), ("", ""))
    ]
    assert (spec.actions.low, spec.actions.high) == ((-1.0, -2.0), (1.0, 2.0))
    assert (spec.environment_id, spec.environment_kwargs, spec.control_hz) == ("Some/Env-v1", {"size": 3}, None)


def test_without_metadata_the_limits_are_those_of_the_data_or_the_usual_ones(tmp_path):
    actions = np.array([[0.0, 1.0], [-3.0, 2.0], [1.0, 5.0]])
    dataset = open_dataset(write(tmp_path, actions=actions))
    assert (dataset.spec.actions.low, dataset.spec.actions.high) == ((-3.0, 1.0), (1.0, 5.0))
    assert dataset.rules["action limits"].startswith("the range of the data, since")
    dataset = open_dataset(write(tmp_path))
    assert (dataset.spec.actions.low, dataset.spec.actions.high) == ((-1.0, -1.0), (1.0, 1.0))
    assert dataset.rules["action limits"] == "[-1, 1] by convention; all actions lie in it"


def test_the_rules_are_told(tmp_path):
    rules = open_dataset(write(tmp_path, metadata={"action_space": json.dumps(BOX)})).rules
    assert rules == {
        "terminated": "terminations",
        "truncated": "truncations, where terminations says nothing",
        "success": "a termination in an episode whose rewards sum to more than zero",
        "final observation": "T + 1 observations for T actions",
        "action limits": "action_space in metadata.json",
    }
    rules = open_dataset(write(tmp_path, observations=np.zeros((T, 2)))).rules
    assert rules["final observation"].startswith("1 of 1 episodes have T observations")


def test_groups_of_actions_are_joined_in_their_natural_order(tmp_path):
    write(tmp_path, actions=None)
    for index in (10, 2):
        edit(
            tmp_path, lambda group, k=index: group.create_dataset(f"actions/_index_{k}", data=np.full((T, 1), 0.1 * k))
        )
    dataset = open_dataset(tmp_path)
    assert dataset.spec.actions.elements == ("_index_2[0]", "_index_10[0]")
    np.testing.assert_allclose(dataset.episodes[0].actions, [[0.2, 1.0]] * T, rtol=1e-6)
    boxes = {name: {"type": "Box", "shape": [1], "low": [-limit], "high": [limit]} for name, limit in GROUPS.items()}
    space = json.dumps({"type": "Dict", "subspaces": boxes})
    (tmp_path / "metadata.json").write_text(json.dumps({"action_space": space}))
    assert open_dataset(tmp_path).spec.actions.high == (3.0, 4.0)


def test_text_is_read_as_strings_and_names_the_task(tmp_path):
    texts = ["pick it up", "schiebe es weg, bitte ä", "", "now"]
    write(tmp_path, observations=None)
    edit(tmp_path, lambda group: group.create_dataset("observations/told", data=texts, dtype=h5py.string_dtype()))
    edit(tmp_path, lambda group: group.create_dataset("observations/x", data=np.zeros((T + 1, 1))))
    dataset = open_dataset(tmp_path)
    assert np.asarray(dataset.episodes[0].observations["told"]).tolist() == texts
    assert dataset.episodes[0].instruction == "pick it up"
    assert [(each.name, each.kind, each.shape) for each in dataset.spec.observations] == [
        ("told", "text", ()),
        ("x", "state", (1,)),
    ]


@pytest.mark.parametrize("given", ["last", "first", "gray"])
def test_raw_images_stay_in_the_file_and_come_channels_last(tmp_path, given):
    frames = np.random.default_rng(0).integers(0, 256, (T + 1, 40, 50, 3), np.uint8)
    stored = {"last": frames, "first": np.moveaxis(frames, -1, 1), "gray": frames[..., 0]}[given]
    expected = frames[..., :1] if given == "gray" else frames
    dataset = open_dataset(write(tmp_path, observations=stored))
    found = dataset.episodes[0].observations["state"]
    assert isinstance(found, Frames)
    assert (found.shape, found.encoding, found.nbytes) == (expected.shape, "raw", expected.nbytes)
    np.testing.assert_array_equal(found[:], expected)
    np.testing.assert_array_equal(found[np.array([1, 3])], expected[[1, 3]])
    assert list(found.stored_rows()) == [frame.tobytes() for frame in expected]
    assert dataset.spec.observations[0].kind == "image"
    assert dataset.spec.observations[0].shape == expected.shape[1:]


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "equal length"])
def test_compressed_images_are_known_by_their_bytes_and_never_by_the_flag(tmp_path, form, flag):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = encode(pixels, "PNG" if form == "PNG" else "JPEG")
    write(tmp_path, observations=None, metadata=None if flag is None else {"jpeg_encoding": flag})
    if form == "equal length":
        edit(tmp_path, lambda group: group.create_dataset("observations", data=np.stack([data] * (T + 1))))
    else:
        edit(tmp_path, lambda group: group.create_dataset("observations", (T + 1,), h5py.vlen_dtype(np.uint8)))
        edit(tmp_path, lambda group: [group["observations"].__setitem__(row, data) for row in range(T + 1)])
    found = open_dataset(tmp_path).episodes[0].observations["state"]
    assert isinstance(found, Frames)
    assert (found.shape, found.encoding) == ((T + 1, 32, 32, 3), "png" if form == "PNG" else "jpeg")
    expected = np.asarray(Image.open(io.BytesIO(data.tobytes())))
    np.testing.assert_array_equal(found[1:3], np.stack([expected] * 2))
    np.testing.assert_array_equal(next(found.blocks()), np.stack([expected] * (T + 1)))
    assert found[0:0].shape == (0, 32, 32, 3)


def test_a_damaged_frame_is_named(tmp_path):
    frames = [encode(np.zeros((32, side, 3), np.uint8), "PNG") for side in (32, 32, 40)]
    frames.append(np.frombuffer(b"\xff\xd8 no more", np.uint8))
    write(tmp_path, observations=None)
    edit(tmp_path, lambda group: group.create_dataset("observations", (T + 1,), h5py.vlen_dtype(np.uint8)))
    edit(tmp_path, lambda group: [group["observations"].__setitem__(row, data) for row, data in enumerate(frames)])
    found = open_dataset(tmp_path).episodes[0].observations["state"]
    with pytest.raises(DatasetError, match=r"observations row 2 must have the shape \(32, 32, 3\) of row 0, got"):
        found[0:3]
    with pytest.raises(DatasetError, match=r"main_data.hdf5:episode_0/observations row 3 is no readable JPEG or PNG"):
        found[3:4]


def test_frames_tell_when_their_file_goes_or_changes(tmp_path):
    write(tmp_path, observations=np.zeros((T + 1, 40, 40, 3), np.uint8))
    found = open_dataset(tmp_path).episodes[0].observations["state"]
    (tmp_path / "main_data.hdf5").unlink()
    write(tmp_path, observations=None)
    with pytest.raises(DatasetError, match=r"no longer holds /episode_0/observations; it was changed while"):
        found[0:1]
    (tmp_path / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match="is gone while it is in use"):
        found[0:1]


def test_a_shape_that_claims_more_than_the_file_stores_is_refused(tmp_path):
    write(tmp_path, actions=None)
    edit(tmp_path, lambda group: group.create_dataset("actions", (10**9, 2), np.float64, chunks=(1000, 2)))
    with pytest.raises(DatasetError, match=r"actions claims 16,000 MB by its shape .* but the file stores 0.000 MB"):
        open_dataset(tmp_path)


def test_nested_dict_observations_are_joined_with_a_slash(tmp_path):
    write(tmp_path, observations=None)
    edit(tmp_path, lambda group: group.create_dataset("observations/b/x", data=np.zeros((4, 3))))
    edit(tmp_path, lambda group: group.create_dataset("observations/a", data=np.arange(4)))
    dataset = open_dataset(tmp_path)
    assert {key: value.shape for key, value in dataset.episodes[0].observations.items()} == {"a": (4, 1), "b/x": (4, 3)}


def test_as_many_observations_as_actions_means_no_final_observation(tmp_path):
    assert open_dataset(write(tmp_path)).episodes[0].has_final_observation
    dataset = open_dataset(write(tmp_path, observations=np.zeros((T, 2))))
    assert not dataset.episodes[0].has_final_observation


def test_episodes_come_in_the_order_of_their_integers(tmp_path):
    dataset = open_dataset(write(tmp_path, episodes=(10, 9, 2, 100)))
    names = [episode.source.split(":")[1] for episode in dataset.episodes]
    assert names == ["episode_2", "episode_9", "episode_10", "episode_100"]


def test_where_both_flags_are_set_the_termination_wins(tmp_path):
    episode = open_dataset(write(tmp_path, truncations=np.array([False, False, True]))).episodes[0]
    assert episode.terminations.tolist() == [False, False, True]
    assert not episode.truncations.any()


def test_success_comes_from_the_flag_or_else_from_a_rewarded_termination(tmp_path):
    guessed = open_dataset(write(tmp_path))
    assert guessed.episodes[0].success
    assert guessed.rules["success"].startswith("a termination")
    assert not open_dataset(write(tmp_path, rewards=-np.ones(T))).episodes[0].success
    assert not open_dataset(write(tmp_path, terminations=np.zeros(T, bool))).episodes[0].success
    flag = np.zeros(T + 1, bool)
    flagged = open_dataset(edit(write(tmp_path), lambda group: group.create_dataset("infos/success", data=flag)))
    assert not flagged.episodes[0].success
    assert flagged.rules["success"] == "infos/success true at any step"


def test_mixed_success_flags_are_told(tmp_path):
    write(tmp_path, episodes=(0, 1))
    dataset = open_dataset(edit(tmp_path, lambda group: group.create_dataset("infos/success", data=np.ones(T, bool))))
    assert "without that flag" in dataset.rules["success"]


def test_seed_is_read(tmp_path):
    assert open_dataset(write(tmp_path)).episodes[0].seed is None
    assert open_dataset(edit(tmp_path, lambda group: group.attrs.update(seed=17))).episodes[0].seed == 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, r"main_data.hdf5:episode_0 must hold rewards, found \['actions'"),
        (
            {"actions": np.zeros(T, np.int64)},
            r"episode_0/actions must have shape .*, got \(3,\) int64; only continuous",
        ),
        ({"rewards": np.zeros((T, 2))}, r"episode_0/rewards must have shape \(T,\), one value a step, got \(3, 2\)"),
        ({"observations": 1.0}, "must hold one row a step, got a single value"),
        ({"observations": np.zeros((T + 1, 64, 64, 5), np.uint8)}, "must have 1, 3 or 4 channels, first or last"),
        ({"observations": np.full((T + 1, 9), [255, 216] + [0] * 7, np.uint8)}, "row 0 is no readable JPEG or PNG"),
        ({"rewards": ["pick", "it", "up"]}, "rewards must hold numbers, got object"),
        ({"observations": np.zeros((T + 1, 2), complex)}, "must hold numbers, got complex128"),
        ({"metadata": {"action_space": '{"type": "Discrete", "n": 4}'}}, "action_space must be of Boxes, got Discrete"),
        ({"metadata": {"action_space": "{"}}, "action_space is not valid JSON"),
        ({"metadata": "{"}, "metadata.json is not valid JSON"),
        ({"metadata": "[]"}, "metadata.json must hold a JSON object, got list"),
        ({"metadata": {"qtransformer_spec": {}}}, "qtransformer_spec is damaged"),
        (
            {"metadata": {"qtransformer_spec": make_spec(("other",)).to_json()}},
            r"observations must be \{'other': \(2,\)\} after metadata.json, got \{'state'",
        ),
        (
            {"metadata": {"qtransformer_spec": make_spec().to_json()}, "actions": np.zeros((T, 5))},
            "actions must have 2 dimensions after metadata.json, got 5",
        ),
    ],
)
def test_what_cannot_be_used_is_explained(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


def test_objects_are_refused(tmp_path):
    write(tmp_path, observations=None)
    edit(tmp_path, lambda group: group.create_dataset("observations", (T + 1,), h5py.ref_dtype))
    with pytest.raises(DatasetError, match="must hold numbers"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("link", [h5py.ExternalLink("secret.hdf5", "/x"), h5py.SoftLink("/elsewhere")])
@pytest.mark.parametrize("name", ["observations", "actions", "infos"])
def test_links_are_never_followed(tmp_path, link, name):
    with h5py.File(tmp_path / "secret.hdf5", "w") as secret:
        secret["x"] = np.zeros((T + 1, 2))
    write(tmp_path, **{name: link})
    with pytest.raises(DatasetError, match=f"episode_0/{name} is a link, and links are never followed"):
        open_dataset(tmp_path / "main_data.hdf5")


def test_data_in_other_files_is_never_read(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    write(tmp_path, actions=None)
    external = [(str(tmp_path / "secret.bin"), 0, 48)]
    edit(tmp_path, lambda group: group.create_dataset("actions", (T, 2), np.float64, external=external))
    with pytest.raises(DatasetError, match="episode_0/actions keeps its data in another file"):
        open_dataset(tmp_path)
    write(tmp_path, actions=None)
    layout = h5py.VirtualLayout((T, 2), np.float64)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.hdf5", "x", (T, 2))
    edit(tmp_path, lambda group: group.create_virtual_dataset("actions", layout))
    with pytest.raises(DatasetError, match="episode_0/actions keeps its data in another file"):
        open_dataset(tmp_path)


def test_odd_members_are_refused(tmp_path):
    write(tmp_path, actions=np.dtype("float32"))
    with pytest.raises(DatasetError, match="actions must be a group or a dataset, got Datatype"):
        open_dataset(tmp_path)
    edit(write(tmp_path, observations=None), lambda group: group.create_group("observations"))
    with pytest.raises(DatasetError, match="at least one observation, got an empty group"):
        open_dataset(tmp_path)
    edit(write(tmp_path, observations=None), lambda group: group.create_group("observations" + "/deep" * 12))
    with pytest.raises(DatasetError, match=f"nested more than {hdf5.MAX_DEPTH} groups deep"):
        open_dataset(tmp_path)
    write(tmp_path, observations=None)
    edit(tmp_path, lambda group: group.create_group("observations").__setitem__("again", group["observations"]))
    with pytest.raises(DatasetError, match=f"nested more than {hdf5.MAX_DEPTH} groups deep"):
        open_dataset(tmp_path)
    edit(tmp_path, lambda group: [group["observations"].__setitem__(f"{k}", group["observations"]) for k in range(9)])
    with pytest.raises(DatasetError, match="observations holds more than 4096 groups and datasets"):
        open_dataset(tmp_path)
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        file["episode_0"] = 1
    with pytest.raises(DatasetError, match="episode_0 must be a group, got a dataset"):
        open_dataset(tmp_path)


def test_episodes_must_agree(tmp_path):
    write(tmp_path, episodes=(0, 1))
    edit(
        tmp_path,
        lambda group: group.move("observations", "old") or group.create_dataset("observations/b", data=np.ones((4, 2))),
    )
    with pytest.raises(DatasetError, match=r"episode_1: observations must match .*episode_0, \{'b': .*got \{'state'"):
        open_dataset(tmp_path)


def test_paths_that_hold_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match="nowhere does not exist, nor is it the id of a Minari dataset"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(DatasetError, match=r"holds no dataset, found \['readme.txt'\]; known are Minari, robomimic"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"readme.txt must be an HDF5 file"):
        open_dataset(tmp_path / "readme.txt")
    with pytest.raises(DatasetError, match=r"missing.hdf5 does not exist"):
        hdf5.handle(tmp_path / "missing.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file.create_group("weights")
    with pytest.raises(
        DatasetError, match=r"no known layout: found \['weights'\] at its root; known are Minari, robomimic"
    ):
        open_dataset(tmp_path / "other.hdf5")


def test_a_truncated_file_says_so(tmp_path):
    path = write(tmp_path) / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DatasetError, match=r"main_data.hdf5 is truncated"):
        open_dataset(path)


def test_damage_is_reported_and_never_a_traceback_of_h5py(tmp_path):
    path = write(tmp_path) / "main_data.hdf5"
    content = bytearray(path.read_bytes())
    content[8:60] = bytes(52)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read"):
        open_dataset(path)
    content[:] = write(tmp_path).joinpath("main_data.hdf5").read_bytes().replace(b"TREE", b"TRUE")
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"main_data.hdf5 is damaged \(.*wrong B-tree signature"):
        open_dataset(path)
    write(tmp_path, actions=None)
    edit(
        tmp_path,
        lambda group: group.create_dataset("actions", (T, 2), chunks=(T, 2), data=np.ones((T, 2)), fletcher32=True),
    )
    content = path.read_bytes().replace(np.ones((T, 2)).tobytes(), np.zeros((T, 2)).tobytes())
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"episode_0/actions is damaged .* copy or download"):
        open_dataset(path)


def test_our_own_spec_wins_over_the_derived_one(tmp_path):
    with Recorder(tmp_path / "run", make_spec()) as recorder:
        recorder.record(make_episode())
    assert open_dataset(tmp_path / "run").spec.actions.elements == ("left", "right")
