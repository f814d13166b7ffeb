"""What a tabletop episode shows of its objects, and that only the words tell which one is meant."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from qtransformer_datasets.environment import describe_environment
from qtransformer_envs.tabletop.env import TabletopEnv
from qtransformer_envs.tabletop.objects import COLOURS, KINDS
from qtransformer_envs.tabletop.observation import NUM_ROWS, OBJECTS_ELEMENTS, Rows
from qtransformer_envs.tabletop.placing import resting_rotation
from qtransformer_envs.tabletop.registry import TASKS
from qtransformer_envs.tabletop.scene import Scene

HOME_JOINTS = np.array([0.0, -0.18483, 0.0, -2.49674, 0.0, 2.31191, 0.785398])
COLUMNS = [name.removeprefix("row0_") for name, _ in OBJECTS_ELEMENTS[: len(OBJECTS_ELEMENTS) // NUM_ROWS]]
MANIPULATING = [name for name, task in TASKS.items() if task.num_named]


def shown(table, row, *columns):
    return [float(table[row, COLUMNS.index(column)]) for column in columns]


def vector(name):
    return [f"{name}_{component}" for component in "xyz"]


def test_a_row_shows_kind_colour_size_and_pose():
    scene = Scene([("can", "red"), ("block", "blue")])
    scene.place(scene.items[0], np.array([0.5, -0.1, 0.0402]), resting_rotation(0.0, True))
    scene.place(scene.items[1], np.array([0.4, -0.2, 0.0172]), resting_rotation(np.pi / 2, False))
    scene.move_cabinet(np.array([0.01, -0.02]))
    scene.open_drawer(0.1)
    scene.start(HOME_JOINTS)
    rows = Rows(scene, np.array([4, 0, 1, 2, 3, 5]))
    table = rows.observe()
    assert (rows.of(scene.items[0]), rows.of(scene.items[1]), rows.drawer) == (4, 0, 5)
    np.testing.assert_array_equal(table[1:4], 0.0)
    assert [name for name in COLUMNS if name.startswith("is_") and shown(table, 4, name) == [1.0]] == ["is_can"]
    assert shown(table, 4, "red", "green", "blue") == pytest.approx([0.86, 0.16, 0.14])
    assert shown(table, 4, *vector("half_size")) == pytest.approx([0.025, 0.025, 0.04])
    assert shown(table, 4, *vector("position")) == pytest.approx([0.5, -0.1, 0.0402], abs=1e-6)
    assert shown(table, 4, *vector("x_axis"), *vector("z_axis"), "opening") == pytest.approx([1, 0, 0, 0, 0, 1, 0])
    assert shown(table, 0, "is_block", "is_can", *vector("position")) == pytest.approx([1, 0, 0.4, -0.2, 0.0172])
    assert shown(table, 0, *vector("x_axis"), *vector("z_axis")) == pytest.approx([0, 0, -1, 0, 1, 0], abs=1e-6)
    # front at y = 0.29 - 0.02 - 0.1, the bar of the handle 0.047 before it
    assert shown(table, 5, "is_drawer", *vector("position"), "opening") == pytest.approx([1, 0.51, 0.123, 0.078, 0.1])
    assert shown(table, 5, *vector("half_size")) == pytest.approx([0.05, 0.005, 0.007])
    gripper = scene.arm.position(scene.data)
    for row in (0, 4, 5):
        position = np.array(shown(table, row, *vector("position")))
        assert shown(table, row, *vector("from_gripper")) == pytest.approx(position - gripper, abs=1e-6)


def test_the_row_of_the_target_is_any_row_and_stays():
    env, counts = TabletopEnv(["pick"], observations=["objects"]), np.zeros(NUM_ROWS, int)
    for seed in range(60):
        observation, info = env.reset(seed=seed)
        row, target = info["target"], env.task.target
        counts[row] += 1
        assert shown(observation["objects"], row, f"is_{target.kind_name}") == [1.0]
        assert shown(observation["objects"], row, "red", "green", "blue") == pytest.approx(COLOURS[target.colour])
        assert env.step(np.zeros(7))[4]["target"] == row
    assert counts.min() >= 3  # of 10 on average


def test_without_a_named_object_the_target_is_the_drawer():
    env = TabletopEnv(["open_drawer"])
    observation, info = env.reset(seed=0)
    assert shown(observation["objects"], info["target"], "is_drawer") == [1.0]


def rows_that_fit(env, seed):
    """Returns the rows that reset takes as target in this seed's scene."""
    rows = []
    for row in range(NUM_ROWS):
        try:
            env.reset(seed=seed, options={"target": row})
        except ValueError:
            continue
        rows.append(row)
    return rows


@pytest.mark.parametrize("task", ["pick", "move_near", "knock_over", "put_into_drawer"])
def test_another_target_changes_the_words_and_nothing_that_is_seen(task):
    env, instructions = TabletopEnv([task]), 0
    for seed in range(6):
        first, info = env.reset(seed=seed)
        drawn = env.task.target.name
        for row in rows_that_fit(env, seed):
            observation, other = env.reset(seed=seed, options={"target": row})
            np.testing.assert_array_equal(observation["state"], first["state"])
            np.testing.assert_array_equal(observation["objects"], first["objects"])
            goal = env.task.say(TASKS[task].templates[0])
            assert other == {"success": False, "task": task, "goal": goal, "target": row}
            assert env.task.target is not env.task.other
            named = [env.task.target.name, env.task.other.name][: TASKS[task].num_named]
            assert all(name in observation["instruction"] for name in named)
            assert (observation["instruction"] == first["instruction"]) == (row == info["target"])
            assert (env.task.target.name == drawn) == (row == info["target"])
            instructions += row != info["target"]
    assert instructions >= 3


def run_expert(env):
    """Returns the last observation and whether it succeeded."""
    expert = env.unwrapped.make_expert(0)
    while True:
        observation, _, terminated, truncated, info = env.step(expert.act())
        if terminated or truncated:
            return observation, info["success"]


def test_the_expert_picks_the_object_that_the_new_words_mean():
    env: Any = gymnasium.make("qtransformer/Pick-v0")
    rows, successes = rows_that_fit(env.unwrapped, 1), 0
    assert len(rows) >= 2
    for row in rows:
        env.reset(seed=1, options={"target": row})
        observation, success = run_expert(env)
        successes += success
        heights = observation["objects"][:, COLUMNS.index("position_z")]
        gripper = observation["state"][14:17]
        distances = np.linalg.norm(observation["objects"][:, COLUMNS.index("position_x") :][:, :3] - gripper, axis=1)
        assert np.argmax(heights) == np.argmin(distances) == row
    assert successes == len(rows)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("pick", {"object": 1}, r"options \(\{'object': 1\}\) must have the one name 'target'; correct them"),
        (
            "pick",
            {"target": 6},
            r"options\['target'\] \(6\) must be a row that this task can mean here, of \d \(",
        ),
        ("pick", {"target": None}, r"options\['target'\] \(None\) must be a row"),
        ("open_drawer", {"target": 0}, r"options\['target'\] \(0\) must be a row .*, of none: leave it out"),
    ],
)
def test_a_target_that_cannot_be_is_explained(task, options, message):
    with pytest.raises(ValueError, match=message):
        TabletopEnv([task]).reset(seed=0, options=options)


def test_only_the_drawn_object_can_be_taken_out_of_the_drawer():
    env = TabletopEnv(["take_out_of_drawer"])
    for seed in range(5):
        info = env.reset(seed=seed)[1]
        assert rows_that_fit(env, seed) == [info["target"]]


def test_a_target_keeps_to_the_split():
    env = TabletopEnv(["pick"], split="held_out")
    for seed in range(5):
        env.reset(seed=seed)
        for row in rows_that_fit(env, seed):
            env.reset(seed=seed, options={"target": row})
            assert (env.task.target.kind_name, env.task.target.colour) in env._candidates["pick"]


def test_a_log_names_every_element_of_both_keys():
    spec = describe_environment(gymnasium.make("qtransformer/Tabletop-v0"))
    described = {each.name: each for each in spec.observations}
    assert set(described) == {"state", "objects", "instruction"}
    objects = described["objects"]
    assert objects.shape == (NUM_ROWS, len(COLUMNS))
    elements = dict(zip(objects.elements, objects.units, strict=True))
    assert elements["row3_position_x"] == elements["row5_half_size_z"] == elements["row0_opening"] == "m"
    assert [name for name in elements if name.startswith("row2_is_")] == [
        f"row2_is_{kind}" for kind in (*KINDS, "drawer")
    ]
