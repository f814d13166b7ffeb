"""robomimic's layout: the three meanings of `dones`, where an episode ends, its final observation, and bad files."""

import dataclasses
import io
import json

import h5py
import numpy as np
import pytest
from dialect_fixtures import assert_same, make_log, write_robomimic
from PIL import Image

from qtransformer.batch import Dones, ReadOptions
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.frames import Frames
from qtransformer_datasets.schema import DatasetError

ALL, FAILED = (True, True, True), (False, False, False)


def read(tmp_path, episodes=None, asked: Dones = "infer", **switches):
    path = write_robomimic(tmp_path / "log.hdf5", make_log() if episodes is None else episodes, **switches)
    return open_dataset(path, ReadOptions(dones=asked))


def edit(tmp_path, change, **switches):
    """Writes a log, changes the file, and reads it."""
    path = write_robomimic(tmp_path / "log.hdf5", make_log(), **switches)
    with h5py.File(path, "r+") as file:
        change(file["data"])
    return open_dataset(path)


def replace(group, name, value):
    del group[name]
    group[name] = value


def widen(group):
    for name in ("obs", "next_obs"):
        replace(group, f"{name}/state", np.arange(15.0).reshape(5, 3) + (name == "obs"))


def put(tmp_path, *columns, asked: Dones = "infer"):
    """Reads demonstrations with these (rewards, dones), and an observation that counts the steps."""
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for index, (rewards, dones) in enumerate(columns):
            group = file.create_group(f"data/demo_{index}")
            T = len(rewards if rewards is not None else dones)
            group["actions"] = np.zeros((T, 1))
            group["obs/x"] = np.arange(float(T))
            for name, values in (("rewards", rewards), ("dones", dones)):
                if values is not None:
                    group[name] = np.array(values, float)
    return open_dataset(tmp_path / "log.hdf5", ReadOptions(dones=asked))


def ends(dataset):
    """Returns (steps, terminated, truncated, success) of each episode."""
    return [
        (each.num_steps, bool(each.terminations[-1]), bool(each.truncations[-1]), each.success)
        for each in dataset.episodes
    ]


# --- what dones mark --------------------------------------------------------------------------------------------------

SUCCEEDED, FAILED_END = (True, False, True), (False, True, False)


@pytest.mark.parametrize(
    ("columns", "expected", "rule"),
    [
        # dones are the rewarded steps: success; the first ends the episode, the step after it is left out
        ([([0, 1, 1], [0, 1, 1]), ([0, 0], [0, 0])], [(2, *SUCCEEDED), (2, *FAILED_END)], "mark success (every done"),
        # each last step alone is done, also of the episode that never got a reward: a time limit
        ([([0, 0, 1], [0, 0, 1]), ([0, 0], [0, 1])], [(3, *SUCCEEDED), (2, *FAILED_END)], "the last step of each"),
        # the same, but the successful one stays in success
        ([([0, 1, 1], [0, 0, 1]), ([0, 0], [0, 1])], [(2, *SUCCEEDED), (2, *FAILED_END)], "the last step of each"),
        # dones are the rewarded steps and every last step
        ([([0, 1, 1], [0, 1, 1]), ([0, 0], [0, 1])], [(2, *SUCCEEDED), (2, *FAILED_END)], "success and the last step"),
        # a reward comes again after the done: dones still are successes
        ([([0, 1, 1], [0, 1, 0]), ([0, 0], [0, 0])], [(2, *SUCCEEDED), (2, *FAILED_END)], "every done is a rewarded"),
        # rewards at every step say nothing: a last step without done shows that a done is a success
        ([([0.1, 0.9], [0, 1]), ([0.1, 0.2], [0, 0])], [(2, *SUCCEEDED), (2, *FAILED_END)], "do not end with a done"),
        # a reward for every step that the robot stands: no mark of success either
        ([([1, 1], [0, 1]), ([1, 1], [0, 1])], [(2, False, True, None)] * 2, "nothing says that it is a success"),
        # nor do these: all are done before their last step
        ([([0.1, 0.9, 0.9], [0, 1, 1])], [(2, *SUCCEEDED)], "every episode is done before its last step"),
        # and all dones at last steps say nothing of success at all
        (
            [([0.1, 0.9], [0, 1]), ([0.1, 0.2], [0, 1])],
            [(2, False, True, None), (2, False, True, None)],
            "nothing says that it is a success",
        ),
        # no rewards: a last step without done shows it
        ([(None, [0, 1, 1]), (None, [0, 0])], [(2, *SUCCEEDED), (2, *FAILED_END)], "some episodes do not end with"),
        # no dones, and rewards that stay
        ([([0, 1, 1], None), ([0, 0], None)], [(2, *SUCCEEDED), (2, *FAILED_END)], "there are no dones"),
        # dones that mark nothing are as none
        ([([0, 1, 1], [0, 0, 0]), ([0, 0], [0, 0])], [(2, *SUCCEEDED), (2, *FAILED_END)], "dones mark no step at all"),
        # no dones, and a reward that comes and goes is no state of success
        ([([0, 1, 0], None)], [(3, False, True, None)], "there are no dones"),
    ],
)
def test_dones_are_inferred_from_the_data(tmp_path, columns, expected, rule):
    dataset = put(tmp_path, *columns)
    assert ends(dataset) == expected
    assert rule in dataset.rules["dones"]


@pytest.mark.parametrize(
    ("columns", "place"),
    [
        # a done one step after its reward
        ([([0, 1, 0, 0], [0, 0, 1, 0]), ([0, 0], [0, 0])], "demo_0 step 2 is done without a reward"),
        # a last step is done without a reward, another is not
        ([([0, 1, 0], [0, 1, 0]), ([0, 0], [0, 1])], "demo_1 step 1 is done without a reward"),
        # dense rewards: a time limit, or success at the last step?
        ([([0.1, 0.9, 0.9], [0, 1, 1]), ([0.1, 0.2], [0, 1])], "demo_1 is done at its last step alone"),
    ],
)
def test_dones_that_cannot_be_understood_are_refused(tmp_path, columns, place):
    with pytest.raises(DatasetError, match=rf"{place}.* --dones success, --dones last-step or --dones both"):
        put(tmp_path, *columns)
    assert put(tmp_path, *columns, asked="success").rules["dones"] == "dones mark success (as was asked for)"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("success", [(2, *SUCCEEDED), (2, *SUCCEEDED)]),
        ("last-step", [(2, *SUCCEEDED), (2, *FAILED_END)]),
        ("both", [(2, *SUCCEEDED), (2, *FAILED_END)]),
    ],
)
def test_the_users_word_decides(tmp_path, asked, expected):
    columns = ([0, 1, 1], [0, 1, 1]), ([0, 0], [0, 1])
    dataset = put(tmp_path, *columns, asked=asked)
    assert ends(dataset) == expected
    assert "(as was asked for)" in dataset.rules["dones"]


def test_both_with_rewards_at_every_step_cannot_know_the_last_step(tmp_path):
    dataset = put(tmp_path, ([0.1, 0.9, 0.9], [0, 1, 1]), ([0.1, 0.2], [0, 1]), asked="both")
    assert ends(dataset) == [(2, True, False, True), (2, False, True, None)]


def test_time_limits_marked_as_dones_never_terminate(tmp_path):
    dataset = read(tmp_path, make_log(successes=FAILED), dones="last-step")
    assert [each[1:] for each in ends(dataset)] == [(False, True, None)] * 3
    assert dataset.rules["terminated"] == "never"


def test_steps_after_success_are_left_out_and_counted(tmp_path):
    dataset = read(tmp_path, linger=4)
    assert [each.num_steps for each in dataset.episodes] == [3, 5, 4]
    assert dataset.rules["terminated"].endswith("8 steps after it are left out")
    for found, expected in zip(dataset.episodes, make_log(), strict=True):
        assert_same(found, expected)
    assert all(each.has_final_observation for each in read(tmp_path, make_log(successes=ALL), linger=1).episodes)


def test_missing_rewards_become_one_at_success(tmp_path):
    dataset = read(tmp_path, rewards=False)
    assert [each.rewards.tolist() for each in dataset.episodes] == [[0, 0, 1], [0] * 5, [0, 0, 0, 1]]
    assert dataset.rules["rewards"] == "1 at success, else 0: the file has none"
    assert "rewards" not in read(tmp_path).rules


@pytest.mark.parametrize("switches", [{"dones": None}, {"dones": "last-step"}, {"dones": "last-step", "asked": "both"}])
def test_without_rewards_and_success_nothing_can_be_learnt(tmp_path, switches):
    with pytest.raises(DatasetError, match=r"log.hdf5 has no rewards, and nothing tells success .* --dones success"):
        read(tmp_path, rewards=False, **switches)


def test_demonstrations_that_all_succeed_can_be_declared_so(tmp_path):
    dataset = read(tmp_path, make_log(successes=ALL), rewards=False, dones="last-step", asked="success")
    assert [each.rewards[-1] for each in dataset.episodes] == [1, 1, 1]


def test_the_success_attribute_stands_in_for_dones(tmp_path):
    def mark(data):
        for index, success in enumerate((True, False, True)):
            data[f"demo_{index}"].attrs["success"] = success

    dataset = edit(tmp_path, mark, dones=None, rewards=False)
    assert ends(dataset) == [(3, *SUCCEEDED), (5, *FAILED_END), (4, *SUCCEEDED)]
    assert dataset.rules["success"].startswith("the attribute success")


def test_a_meaning_of_absent_dones_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="has no dones whose meaning 'both' could be; leave --dones out"):
        read(tmp_path, dones=None, asked="both")


# --- the final observation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("next_obs", "expected"), [("next", True), ("repeat", False), (None, False)])
def test_the_final_observation_is_next_obs_where_it_is_new(tmp_path, next_obs, expected):
    dataset = read(tmp_path, next_obs=next_obs)
    assert [each.has_final_observation for each in dataset.episodes] == [expected] * 3
    assert ("none in 3 of 3 episodes" in dataset.rules["final observation"]) != expected


def test_a_repeated_observation_with_a_dead_sensor_is_no_successor(tmp_path):
    episodes = make_log()
    for episode in episodes:
        np.asarray(episode.observations["state"])[-2, 0] = np.nan
    assert not any(each.has_final_observation for each in read(tmp_path, episodes, next_obs="repeat").episodes)


def test_next_obs_without_a_key_gives_no_final_observation(tmp_path):
    dataset = edit(tmp_path, lambda data: data["demo_1"].move("next_obs/state", "next_obs/other"))
    assert [each.has_final_observation for each in dataset.episodes] == [True, False, True]


@pytest.mark.parametrize("next_obs", ["next", "repeat", None])
def test_images_stay_in_the_file(tmp_path, next_obs):
    episodes = make_log(cameras=("eye",))
    dataset = read(tmp_path, episodes, next_obs=next_obs, linger=2)
    for found, expected in zip(dataset.episodes, episodes, strict=True):
        eye = found.observations["eye"]
        assert not isinstance(eye, np.ndarray)
        assert_same(found, expected)
        rows = np.arange(0, len(eye), 2)
        np.testing.assert_array_equal(eye[rows], expected.observations["eye"][rows])
        np.testing.assert_array_equal(
            eye[np.array([len(eye) - 1])], expected.observations["eye"][len(eye) - 1 : len(eye)]
        )
        np.testing.assert_array_equal(np.concatenate(list(eye.blocks())), expected.observations["eye"][: len(eye)])
        assert [*eye.stored_rows()] == [frame.tobytes() for frame in expected.observations["eye"][: len(eye)]]
        assert eye[5:5].shape == (0, 16, 16, 3)
        assert eye.encoding == "raw"
    assert [each.kind for each in dataset.spec.observations] == ["image", "state"]


def test_only_an_image_may_change_at_the_end(tmp_path):
    episodes = make_log(cameras=("eye",))
    for episode in episodes:
        state = np.asarray(episode.observations["state"])
        state[-1] = state[-2]
    assert all(each.has_final_observation for each in read(tmp_path, episodes).episodes)


def test_compressed_images_are_joined_with_the_final_one(tmp_path):
    frames = np.full((4, 16, 16, 3), [[[[0]]], [[[80]]], [[[160]]], [[[240]]]], np.uint8)

    def compress(data):
        for name, rows in (("obs", frames[:3]), ("next_obs", frames[1:])):
            bytes_of = [np.frombuffer(_png(each), np.uint8) for each in rows]
            made = data["demo_0"].create_dataset(f"{name}/eye", (3,), h5py.vlen_dtype(np.uint8))
            for index, each in enumerate(bytes_of):
                made[index] = each
        for name in ("demo_1", "demo_2"):
            del data[name]

    eye = edit(tmp_path, compress).episodes[0].observations["eye"]
    assert isinstance(eye, Frames)
    np.testing.assert_array_equal(eye[:], frames)
    assert [*eye.stored_rows()] == [_png(each) for each in frames]
    assert eye.encoding == "png"


def _png(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


# --- names, order, metadata -------------------------------------------------------------------------------------------


def test_demonstrations_come_in_the_order_of_their_integers(tmp_path):
    dataset = read(tmp_path, numbers=(10, 2, 100))
    assert [each.source for each in dataset.episodes] == [f"log.hdf5:data/demo_{k}" for k in (2, 10, 100)]
    assert [each.num_steps for each in dataset.episodes] == [5, 3, 4]


def test_nested_observations_are_joined_and_states_are_none(tmp_path):
    dataset = read(tmp_path, make_log(keys=("robot/arm/pose", "object")))
    assert set(dataset.episodes[0].observations) == {"object", "robot/arm/pose"}


def test_the_environment_and_the_masks_are_kept(tmp_path):
    arguments = {"env_name": "Isaac-Lift-v0", "type": 2, "env_kwargs": {"size": 3}}
    dataset = read(tmp_path, env_args=arguments, masks=("train", "valid"))
    assert dataset.metadata["env_args"] == arguments
    assert dataset.metadata["masks"] == {"train": 3, "valid": 3}
    assert (dataset.spec.environment_id, dataset.spec.environment_kwargs) == ("Isaac-Lift-v0", {"size": 3})


@pytest.mark.parametrize("arguments", [None, {"env_name": "Lift", "env_kwargs": {"size": 3}}, "no JSON", "[1]"])
def test_a_name_that_gymnasium_does_not_know_is_no_id(tmp_path, arguments):
    dataset = read(tmp_path, env_args=arguments)
    assert (dataset.spec.environment_id, dataset.spec.environment_kwargs) == (None, {})
    assert ("env_args" in dataset.metadata) == (arguments is not None)


def test_actions_beyond_their_convention_widen_the_limits(tmp_path):
    episodes = make_log()
    episodes[1].actions[2, 0] = 24.0
    dataset = read(tmp_path, episodes)
    assert dataset.spec.actions.high[0] == 24.0
    assert "range of the data" in dataset.rules["action limits"]


def test_instructions_are_read_where_robocasa_and_libero_put_them(tmp_path):
    def per_episode(data):
        for index in range(3):
            data[f"demo_{index}"].attrs["ep_meta"] = json.dumps({"lang": f"open drawer {index}"})

    dataset = edit(tmp_path, per_episode)
    assert [each.instruction for each in dataset.episodes] == [f"open drawer {k}" for k in range(3)]
    assert [len(each.observations["instruction"]) for each in dataset.episodes] == [4, 6, 5]
    whole = edit(
        tmp_path, lambda data: data.attrs.update(problem_info=json.dumps({"language_instruction": "pick the bowl"}))
    )
    assert {each.instruction for each in whole.episodes} == {"pick the bowl"}
    with pytest.raises(DatasetError, match=r"demo_1 and .*demo_0: only one of them has an instruction"):
        edit(tmp_path, lambda data: data["demo_0"].attrs.update(ep_meta='{"lang": "x"}'))


def test_a_text_among_the_observations_wins_over_the_attribute(tmp_path):
    def write(data):
        for T, name in ((3, "demo_0"), (5, "demo_1"), (4, "demo_2")):
            data[name].attrs["ep_meta"] = '{"lang": "no"}'
            data[name]["obs/told"] = ["yes"] * T
            data[name]["next_obs/told"] = ["yes"] * T

    dataset = edit(tmp_path, write)
    assert sorted(dataset.episodes[0].observations) == ["state", "told"]
    assert len(dataset.episodes[0].observations["told"]) == 4


def test_what_is_no_demonstration_is_told(tmp_path):
    dataset = edit(tmp_path, lambda data: data.create_group("notes"))
    assert dataset.notes == ("left out of data, since it is no demonstration: notes",)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["demo_1"].move("obs/state", "obs/b"), r"demo_1: obs must have the keys \['state'\] .* \['b'\]"),
        (lambda d: d["demo_1"].pop("actions"), r"data/demo_1 must hold actions, found \['dones'"),
        (lambda d: d["demo_1"].pop("obs"), r"data/demo_1 must hold obs, found \['actions'.*dataset_states_to_obs"),
        (lambda d: d["demo_1"].pop("rewards"), "demo_1 must hold rewards as .*demo_0 does"),
        (lambda d: d["demo_1"].pop("dones"), "demo_1 must hold dones as .*demo_0 does"),
        (lambda d: replace(d, "demo_1", 3.0), "data/demo_1 must be a group, got a dataset"),
        (lambda d: replace(d, "demo_1/next_obs", 3.0), "demo_1/next_obs must be a group, got a dataset"),
        (lambda d: replace(d, "demo_1/rewards", np.zeros(4)), r"demo_1 must hold arrays of one length, .*'rewards': 4"),
        (lambda d: replace(d, "demo_1/obs/state", np.zeros((6, 2))), r"one length, .*'obs/state': 6"),
        (lambda d: replace(d, "demo_1/next_obs/state", np.zeros((4, 2))), r"one length, .*'next_obs/state': 4"),
        (lambda d: replace(d, "demo_1/next_obs/state", np.ones((5, 3))), r"next_obs/state must hold rows of one shape"),
        (lambda d: widen(d["demo_1"]), r"demo_1: observations must match .*\(2,\).*\(3,\)"),
        (lambda d: replace(d, "demo_1/dones", np.full(5, 0.5)), r"demo_1/dones step 0 must be 0 or 1, got 0.5 \(and 4"),
        (lambda d: replace(d, "demo_1/dones", np.full(5, np.nan)), "demo_1/dones step 0 must be 0 or 1, got nan"),
        (lambda d: replace(d, "demo_1/dones", ["a"] * 5), "demo_1/dones must hold numbers, got object"),
        (lambda d: replace(d, "demo_1/dones", np.zeros((5, 2))), r"demo_1/dones must have shape \(T,\)"),
        (lambda d: replace(d, "demo_1/actions", np.zeros((5, 2), int)), "only continuous actions work"),
        (lambda d: replace(d, "demo_1/actions", np.zeros((5, 3))), "demo_1: actions must match"),
        (lambda d: replace(d, "demo_1/obs/state", h5py.ExternalLink("x", "/x")), "obs/state is a link"),
        (lambda d: replace(d, "demo_1/obs", h5py.SoftLink("/data/demo_0/obs")), "demo_1/obs is a link"),
        (lambda d: replace(d, "demo_1", h5py.ExternalLink("x", "/x")), "data/demo_1 is a link"),
        (lambda d: d["demo_1"].create_dataset("obs/big", (10**12,), "f4"), "demo_1/obs/big claims 4,000,000 MB"),
    ],
)
def test_bad_files_are_explained(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message):
        edit(tmp_path, change)


def test_empty_files_are_explained(tmp_path):
    with pytest.raises(DatasetError, match=r"log.hdf5:data must hold groups demo_0, demo_1, ..., found \[\]"):
        read(tmp_path, [])
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data"] = 1.0
    with pytest.raises(DatasetError, match="data must be a group, got a dataset"):
        open_dataset(tmp_path / "other.hdf5")
    empty = dataclasses.replace(
        make_log((1,), (False,))[0],
        actions=np.zeros((0, 2), np.float32),
        **{name: np.zeros(0, bool) for name in ("rewards", "terminations", "truncations")},
        observations={"state": np.zeros((1, 2))},
    )
    with pytest.raises(DatasetError, match="data/demo_1 holds no steps; remove it"):
        read(tmp_path, [make_log()[0], empty])
