"""D4RL's flat layout: where episodes end, what follows their last step, and bad files."""

import h5py
import numpy as np
import pytest
from dialect_fixtures import SIDE, assert_same, make_log, write_d4rl

from qtransformer.batch import ReadOptions
from qtransformer_datasets.formats import d4rl, open_dataset
from qtransformer_datasets.schema import DatasetError


def read(tmp_path, episodes=None, **switches):
    return open_dataset(write_d4rl(tmp_path / "log.hdf5", make_log() if episodes is None else episodes, **switches))


def edit(tmp_path, change, **switches):
    path = write_d4rl(tmp_path / "log.hdf5", make_log(), **switches)
    with h5py.File(path, "r+") as file:
        change(file)
    return open_dataset(path)


def put(group, name, value):
    group[name] = value


def replace(file, name, value):
    del file[name]
    file[name] = value


def lengths(dataset):
    return [each.num_steps for each in dataset.episodes]


def test_hand_worked_rows_are_cut_at_both_flags(tmp_path):
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        file["observations"] = np.arange(6.0)
        file["actions"] = np.arange(6.0) / 10
        file["rewards"] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        file["terminals"] = [False, True, False, True, False, False]
        file["timeouts"] = [False, False, False, True, True, False]  # row 3 has both: the termination wins
    dataset = open_dataset(tmp_path / "log.hdf5")
    assert [each.rewards.tolist() for each in dataset.episodes] == [[0, 1], [2, 3], [4], [5]]
    assert [each.terminations[-1] for each in dataset.episodes] == [True, True, False, False]
    assert [each.truncations[-1] for each in dataset.episodes] == [False, False, True, True]
    assert np.asarray(dataset.episodes[1].observations["state"]).tolist() == [[2.0], [3.0]]
    assert [each.source for each in dataset.episodes][1] == "log.hdf5:rows 2 to 3"
    assert [each.success for each in dataset.episodes] == [None] * 4  # a termination may be a fall
    assert dataset.rules["success"].startswith("unknown")


def test_the_row_after_a_timeout_is_no_successor(tmp_path):
    dataset = read(tmp_path)
    assert not any(each.has_final_observation for each in dataset.episodes)
    assert [len(each.observations["state"]) for each in dataset.episodes] == [3, 5, 4]
    assert "no successor" in dataset.rules["final observation"]


def test_next_observations_give_the_final_one_unless_they_are_the_next_episodes_first(tmp_path):
    for found, expected in zip(read(tmp_path, next_observations="next").episodes, make_log(), strict=True):
        np.testing.assert_array_equal(found.observations["state"], expected.observations["state"])
    shifted = read(tmp_path, next_observations="shifted")
    assert [each.has_final_observation for each in shifted.episodes] == [False, False, True]
    assert "not in 2 of 3 episodes" in shifted.rules["final observation"]


def test_an_unterminated_tail_is_truncated_and_told(tmp_path):
    dataset = read(tmp_path, tail=True)
    assert lengths(dataset) == [3, 5, 4]
    assert dataset.episodes[-1].truncations.tolist() == [False] * 3 + [True]
    assert dataset.notes == (
        "the last 4 steps end with neither terminal nor timeout: read as an episode that was cut off",
    )
    assert read(tmp_path).notes == ()


def test_an_old_file_without_timeouts_is_cut_at_terminals_alone(tmp_path):
    dataset = read(tmp_path, timeouts=False)
    assert lengths(dataset) == [3, 9]  # the time limit after row 7 cannot be seen
    assert dataset.notes[0].startswith("no timeouts: where a time limit cut")
    assert "add an array timeouts (N,)" in dataset.notes[0]
    assert dataset.rules["truncated"] == "the file's end alone: it has no timeouts"


def test_without_timeouts_and_terminals_all_is_one_episode(tmp_path):
    dataset = read(tmp_path, make_log(successes=(False,) * 3), timeouts=False)
    assert lengths(dataset) == [12]
    (note,) = dataset.notes
    assert note.startswith("no timeouts and no terminal: all 12 steps are read as one episode")
    assert "add an array timeouts" in note


def test_timeouts_without_any_terminal_are_told_as_in_maze2d(tmp_path):
    dataset = read(tmp_path, make_log(successes=(False,) * 3))
    assert lengths(dataset) == [3, 5, 4]
    assert "in maze2d timeouts mark only a change of goal" in dataset.notes[0]


def test_success_is_a_reward_where_rewards_are_one_number_or_none(tmp_path):
    assert [each.success for each in read(tmp_path).episodes] == [True, False, True]
    episodes = make_log()
    episodes[1].rewards[0] = -0.5
    assert [each.success for each in read(tmp_path, episodes).episodes] == [None] * 3
    for episode in episodes:
        episode.rewards[:] = 1.0  # a reward for staying upright: its end is a fall
    assert [each.success for each in read(tmp_path, episodes).episodes] == [None] * 3


def test_metadata_is_kept_and_infos_are_no_observation(tmp_path):
    dataset = read(tmp_path, extras=True)
    assert dataset.metadata == {
        "algorithm": "SAC",
        "env_name": "hopper-medium-v2",
        "environment_id": "hopper-medium-v2",
        "iteration": 7,
    }
    assert dataset.spec.environment_id == "hopper-medium-v2"
    assert [each.name for each in dataset.spec.observations] == ["state"]


def test_images_stay_in_the_file(tmp_path):
    episodes = make_log(cameras=("state",), keys=())
    for successors in ("next", None):
        path = tmp_path / f"{successors}.hdf5"
        dataset = open_dataset(write_d4rl(path, episodes, next_observations=successors))
        for found, expected in zip(dataset.episodes, episodes, strict=True):
            assert not isinstance(found.observations["state"], np.ndarray)
            assert_same(found, expected)
            rows = expected.observations["state"][: len(found.observations["state"])]
            assert [*found.observations["state"].stored_rows()] == [each.tobytes() for each in rows]
        assert dataset.spec.observations[0].shape == (SIDE, SIDE, 3)


def test_groups_of_observations_are_joined(tmp_path):
    def nest(file):
        file.move("observations", "old")
        file.create_group("observations/a")
        file.move("old", "observations/a/b")

    assert list(edit(tmp_path, nest).episodes[0].observations) == ["a/b"]


def test_every_array_is_read_once_and_whole(tmp_path, monkeypatch):
    reads = []
    original = h5py.Dataset.__getitem__

    def count(self, rows, *args):
        reads.append((self.name, rows))
        return original(self, rows, *args)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", count)
    path = write_d4rl(tmp_path / "log.hdf5", make_log(), next_observations="next")
    reads.clear()
    d4rl.read(path, ReadOptions())
    names = ["observations", "next_observations", "actions", "rewards", "terminals", "timeouts"]
    assert sorted(reads) == sorted((f"/{name}", ()) for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("terminals"), r"log.hdf5: must hold terminals, found \['actions'"),
        (lambda f: replace(f, "rewards", np.zeros(9)), r"log.hdf5 must hold arrays of one length, .*'rewards': 9"),
        (lambda f: replace(f, "timeouts", np.zeros(9)), "one length, .*'timeouts': 9"),
        (lambda f: replace(f, "observations", np.zeros((9, 2))), "one length, .*'observations/state': 9"),
        (lambda f: replace(f, "next_observations", np.zeros((9, 2))), "one length, .*'next_observations/state': 9"),
        (lambda f: replace(f, "next_observations", np.zeros((12, 5))), "state must hold rows of one shape and kind"),
        (
            lambda f: (f.pop("next_observations"), f.create_dataset("next_observations/b", data=np.zeros(12))),
            r"next_observations must have the keys \['state'\] of observations, got \['b'\]",
        ),
        (lambda f: replace(f, "terminals", np.full(12, 0.25)), "log.hdf5:terminals step 0 must be 0 or 1, got 0.25"),
        (lambda f: replace(f, "timeouts", np.full(12, 2)), r"log.hdf5:timeouts step 0 must be 0 or 1, got 2 \(and 11"),
        (lambda f: replace(f, "rewards", ["a"] * 12), "log.hdf5:rewards must hold numbers, got object"),
        (lambda f: replace(f, "actions", np.zeros((12, 2), int)), "only continuous actions work"),
        (lambda f: (f.pop("rewards"), f.create_group("rewards/x")), "rewards must have shape .*, got a group"),
        (lambda f: replace(f, "rewards", h5py.ExternalLink("x", "/x")), "rewards is a link"),
        (lambda f: replace(f, "timeouts", h5py.SoftLink("/terminals")), "timeouts is a link"),
        (lambda f: replace(f, "timeouts", h5py.SoftLink("/nowhere")), "timeouts is a link"),
        (
            lambda f: (f.pop("observations"), f.create_dataset("observations", (10**12,), "f4")),
            "observations claims 4,000",
        ),
        (lambda f: put(f.create_group("metadata"), "x", h5py.SoftLink("/x")), "metadata/x is a link"),
    ],
)
def test_bad_files_are_explained(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message):
        edit(tmp_path, change, next_observations="next")


def test_an_empty_file_is_explained(tmp_path):
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals"):
            file[name] = np.zeros((0, 2)) if name in ("observations", "actions") else np.zeros(0)
    with pytest.raises(DatasetError, match=r"log.hdf5 holds no steps; remove it or record it again"):
        open_dataset(tmp_path / "log.hdf5")
