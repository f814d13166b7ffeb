"""OGBench's npz layout: the dummy last row, success in the middle of a trajectory, labels, and files that attack."""

import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
from dialect_fixtures import make_log, write_ogbench

from qtransformer_datasets.formats import npz, ogbench, open_dataset
from qtransformer_datasets.schema import DatasetError


def read(tmp_path, episodes=None, **switches):
    return open_dataset(write_ogbench(tmp_path / "log.npz", episodes or make_log(), **switches))


def put(tmp_path, **arrays):
    named: dict[str, Any] = {name: np.asarray(each) for name, each in arrays.items()}
    np.savez(tmp_path / "log.npz", **named)
    return open_dataset(tmp_path / "log.npz")


def rows(T):
    return {"observations": np.arange(float(T)), "actions": np.arange(T) / 10}


def header(shape, dtype="<f8", version=(1, 0)):
    """Returns the start of a npy file that claims a shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    data = bytearray(stream.getvalue())
    data[6:8] = bytes(version)
    return bytes(data)


def put_member(tmp_path, content, name="actions"):
    """Writes a sound log in which one member holds these bytes."""
    path = write_ogbench(tmp_path / "sound.npz", make_log())
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "log.npz", "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.namelist():
            new.writestr(each, content if each == f"{name}.npy" else old.read(each))
    return tmp_path / "log.npz"


# --- the layout -------------------------------------------------------------------------------------------------------


def test_hand_worked_rows_hold_one_state_more_than_actions(tmp_path):
    dataset = put(tmp_path, **rows(5), terminals=[0, 0, 1, 0, 1], rewards=[1, 2, 9, 3, 9], masks=[1, 1, 1, 1, 1])
    first, second = dataset.episodes
    assert np.asarray(first.observations["state"]).tolist() == [[0], [1], [2]]
    assert first.actions.tolist() == np.array([[0.0], [0.1]], np.float32).tolist()
    assert np.asarray(second.observations["state"]).tolist() == [[3], [4]]
    assert [each.rewards.tolist() for each in dataset.episodes] == [[1, 2], [3]]
    assert not first.terminations.any()  # terminals end a trajectory, they terminate nothing
    assert first.truncations.tolist() == [False, True]
    assert [each.source for each in dataset.episodes] == ["log.npz:rows 0 to 1", "log.npz:rows 3 to 3"]
    assert dataset.notes == ()


def test_a_success_in_the_middle_ends_an_episode_and_the_rest_is_another(tmp_path):
    masks = [1, 1, 0, 0, 0, 1, 1, 0]  # the last row is a dummy; rows 3 and 4 start in a state of success
    dataset = put(tmp_path, **rows(8), terminals=np.arange(8) == 7, masks=masks)
    assert [each.source for each in dataset.episodes] == ["log.npz:rows 0 to 2", "log.npz:rows 5 to 6"]
    first, second = dataset.episodes
    assert (first.terminations.tolist(), first.truncations.any()) == ([False, False, True], False)
    assert (second.terminations.any(), second.truncations.tolist()) == (False, [False, True])
    assert np.asarray(first.observations["state"]).tolist() == [[0], [1], [2], [3]]
    assert np.asarray(second.observations["state"]).tolist() == [[5], [6], [7]]
    assert [each.success for each in dataset.episodes] == [True, False]
    assert [each.rewards.tolist() for each in dataset.episodes] == [[0, 0, 1], [0, 0]]
    assert dataset.rules["rewards"] == "1 where masks == 0: the file has none"
    assert "(3 rows that start in a state of success, or are dummies, are left out)" in dataset.rules["terminated"]


def test_a_success_at_the_first_and_the_last_step(tmp_path):
    dataset = put(tmp_path, **rows(4), terminals=[0, 0, 0, 1], masks=[0, 1, 0, 1])
    assert [each.source for each in dataset.episodes] == ["log.npz:rows 0 to 0", "log.npz:rows 1 to 2"]
    assert [each.success for each in dataset.episodes] == [True, True]


def test_a_success_does_not_reach_into_the_next_trajectory(tmp_path):
    dataset = put(tmp_path, **rows(6), terminals=[0, 0, 1, 0, 0, 1], masks=[1, 0, 0, 0, 1, 1])
    assert [each.source for each in dataset.episodes] == [f"log.npz:rows {a}" for a in ("0 to 1", "3 to 3", "4 to 4")]


def test_an_unlabelled_log_says_how_to_label_it(tmp_path):
    dataset = read(tmp_path, labels=())
    assert not any(each.rewards.any() for each in dataset.episodes)
    assert [each.success for each in dataset.episodes] == [None] * 3
    (note,) = dataset.notes
    assert note.startswith("rewards are zero: the log is unlabelled")
    assert "add arrays rewards (N,) and masks (N,)" in note
    assert dataset.rules["terminated"] == "never: the file has no masks"


def test_rewards_without_masks_are_used_and_success_stays_unknown(tmp_path):
    dataset = read(tmp_path, labels=("rewards",))
    assert [each.rewards.sum() for each in dataset.episodes] == [1, 0, 1]
    assert [each.success for each in dataset.episodes] == [None] * 3
    assert dataset.notes == ()


def test_a_tail_without_terminal_is_cut_off_and_told(tmp_path):
    dataset = read(tmp_path, tail=True)
    assert [each.num_steps for each in dataset.episodes] == [3, 5, 4]
    assert dataset.notes[0].startswith("no terminal ends rows 10 to 14: read as a trajectory that was cut off; its")
    assert "its last action" not in read(tmp_path, tail=True, next_observations=True).notes[0]


def test_files_with_next_observations_have_no_dummy_row(tmp_path):
    arrays = {**rows(3), "terminals": [0, 1, 1], "masks": [1, 1, 1], "next_observations": [1.0, 7.0, 8.0]}
    dataset = put(tmp_path, **arrays)
    assert [np.asarray(each.observations["state"]).ravel().tolist() for each in dataset.episodes] == [[0, 1, 7], [2, 8]]
    assert dataset.rules["final observation"] == "next_observations of the last step"


def test_images_and_other_arrays(tmp_path):
    frames = np.arange(4 * 16 * 16 * 3).reshape(4, 16, 16, 3).astype(np.uint8)
    dataset = put(tmp_path, observations=frames, actions=np.zeros((4, 2)), terminals=[0, 1, 0, 1], button_states=[1])
    assert dataset.spec.observations[0].kind == "image"
    np.testing.assert_array_equal(dataset.episodes[1].observations["state"], frames[2:])


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(4)}, r"log.npz must hold arrays of one length, .*'rewards': 4"),
        ({"actions": np.zeros((15, 2), int)}, r"log.npz:actions must have shape \(N, A\) .* got \(15, 2\) int64"),
        ({"actions": np.zeros((15, 2, 2))}, r"log.npz:actions must have shape"),
        ({"rewards": np.zeros((15, 2))}, r"log.npz:rewards must have shape \(N,\)"),
        ({"terminals": np.full(15, 0.5)}, r"log.npz:terminals step 0 must be 0 or 1, got 0.5 \(and 14"),
        ({"masks": np.full(15, -1.0)}, "log.npz:masks step 0 must be 0 or 1, got -1"),
        ({"observations": np.array(["a"] * 15)}, "log.npz:observations must hold numbers, got <U1"),
        ({"rewards": np.zeros(15, complex)}, "log.npz:rewards must hold numbers, got complex128"),
        ({"terminals": np.ones(15, bool)}, "log.npz:rows 0 to 0: a trajectory must have two states or more"),
        (dict.fromkeys(("observations", "actions", "terminals", "rewards", "masks"), np.zeros(0)), "holds no steps"),
        (
            dict.fromkeys(("observations", "actions", "terminals", "rewards", "masks"), 0.0),
            r"log.npz: \['obs.* single value",
        ),
        ({"terminals": None}, "a .npz file without observations and terminals"),
    ],
)
def test_bad_arrays_are_explained(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, **changes)


class Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("name", ["observations", "actions", "terminals", "rewards", "masks"])
def test_objects_are_never_unpickled(tmp_path, name):
    array = np.empty(15, object)
    array[:] = [Attack()] * 15
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    with pytest.raises(DatasetError, match=f"log.npz:{name} holds Python objects, which are never unpickled"):
        open_dataset(put_member(tmp_path, stream.getvalue(), name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**12,)), "log.npz:actions claims 8,000,000,000,000 bytes by its shape .*, but stores 0"),
        (header((15, 2)) + bytes(100), r"claims 240 bytes by its shape \(15, 2\), but stores 100"),
        (header((-5, -3)) + bytes(120), r"claims 120 bytes by its shape \(-5, -3\), but stores 120"),
        (header((2,), version=(3, 0)) + bytes(16), r"must be a npy array of version 1 or 2, got \(3, 0\)"),
        (b"", "log.npz:actions is damaged"),
        (b"no array at all", "log.npz:actions is damaged"),
        (pickle.dumps(Attack()), "log.npz:actions is damaged"),
        (b"\x93NUMPY\x01\x00\x05\x00[[[[[", "log.npz:actions is damaged"),
        (header((1,), "<V4") + bytes(4), "must hold numbers, got"),
    ],
)
def test_headers_are_checked_before_memory_is_taken(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(put_member(tmp_path, content))


def test_random_headers_end_in_words(tmp_path):
    generator = np.random.default_rng(0)
    sound, messages = header((15, 2)) + bytes(240), []
    for _ in range(100):
        content = bytearray(sound)
        for position in generator.integers(6, 70, 3):
            content[position] = int(generator.integers(0, 256))
        path = put_member(tmp_path, bytes(content))
        try:
            npz.read_npz(path, ["actions"])
        except DatasetError as error:
            messages.append(str(error))
    assert messages
    assert all("log.npz:actions" in message for message in messages)


def test_a_zip_bomb_is_refused_before_it_grows(tmp_path):
    num_rows = npz._SMALL // 8
    content = header((num_rows + 1,)) + bytes(8 * (num_rows + 1))
    with pytest.raises(DatasetError, match=r"log.npz:actions would grow from 0\.\d+ MB to 67 MB, more than any log"):
        open_dataset(put_member(tmp_path, content))


def test_what_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "available_memory", lambda: 100)
    with pytest.raises(DatasetError, match=r"log.npz needs 0.0 GB of memory, and 0.0 GB are free: an npz file cannot"):
        read(tmp_path)


def test_flipped_and_missing_bytes_are_damage(tmp_path):
    path = tmp_path / "log.npz"
    np.savez(path, **rows(15), terminals=np.arange(15) == 14)
    content = path.read_bytes()
    position = content.index(np.arange(15.0).tobytes()) + 20
    path.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
    with pytest.raises(DatasetError, match=r"log.npz:observations is damaged \(Bad CRC-32"):
        open_dataset(path)
    path.write_bytes(content[:-30])
    with pytest.raises(DatasetError, match=r"log.npz is no sound npz file \(.*\); copy or download it again"):
        open_dataset(path)
    with pytest.raises(DatasetError, match=r"nowhere.npz does not exist"):
        npz.read_npz(tmp_path / "nowhere.npz", ["observations"])


def test_encrypted_members_are_refused(tmp_path):
    path = write_ogbench(tmp_path / "log.npz", make_log())
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 1)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"log.npz:\w+ is damaged \(.*encrypted"):
        open_dataset(path)


def test_only_npz_files_match(tmp_path):
    path = write_ogbench(tmp_path / "log.npz", make_log())
    assert ogbench.matches(path)
    other = tmp_path / "log.zip"
    path.rename(other)
    assert not ogbench.matches(other)
    assert not ogbench.matches(tmp_path)
