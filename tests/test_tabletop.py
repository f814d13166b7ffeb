"""The parts of the tabletop suite: objects at rest, sleep, words, splits, levels, and the rules of success."""

import itertools
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
import pytest

from qtransformer_datasets.behaviours import rehearse
from qtransformer_envs.tabletop import combinations
from qtransformer_envs.tabletop.env import TabletopEnv
from qtransformer_envs.tabletop.objects import COLOURS, KINDS
from qtransformer_envs.tabletop.placing import rest, resting_rotation
from qtransformer_envs.tabletop.registry import TASKS
from qtransformer_envs.tabletop.scene import Scene, compiled_model
from qtransformer_envs.tabletop.skills import OPEN, compose, descend, pad_axis, point

DOWN = np.diag([1.0, -1.0, -1.0])
HOME_JOINTS = np.array([0.0, -0.18483, 0.0, -2.49674, 0.0, 2.31191, 0.785398])
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


def make_scene(*objects, standing=True):
    """Returns a scene with these (kind, x, y) at rest."""
    scene = Scene([(kind, "red") for kind, *_ in objects])
    for item, (_, x, y) in zip(scene.items, objects, strict=True):
        scene.place(item, np.array([x, y, rest(item.kind, standing)]), resting_rotation(0.4, standing))
    scene.start(HOME_JOINTS)
    return scene


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standing", [True, False])
def test_objects_rest_where_they_are_put(kind, standing):
    if not standing and kind in ("bowl", "ball"):
        pytest.skip("a bowl on its rim rolls, a ball has no side to lie on")
    scene = make_scene((kind, 0.5, -0.2), standing=standing)
    item = scene.items[0]
    assert scene.bottom(item) == pytest.approx(0.0002, abs=1e-6)
    scene._sleep.wake(0)
    before = scene.position(item)
    for _ in range(10):
        scene._sleep.wake(0)
        scene.arm.move(scene.data, STILL)
    np.testing.assert_allclose(scene.position(item), before, atol=2e-3)
    assert scene.speed(item) < 0.01
    assert abs(scene.up_component(item) - standing) < 0.02


def test_what_rests_out_of_reach_sleeps_to_the_last_bit():
    scene = make_scene(("cube", 0.35, -0.3), ("ball", 0.65, -0.3))
    assert scene._sleep.is_asleep.all()
    before = [scene.position(item) for item in scene.items]
    for _ in range(10):
        scene.move(STILL)
    np.testing.assert_array_equal([scene.position(item) for item in scene.items], before)
    assert scene.data.ncon == 0


def test_a_sleeping_object_wakes_before_the_hand_comes_and_is_pushed():
    scene = make_scene(("cube", 0.5, -0.1))
    start = scene.position(scene.items[0])
    assert scene._sleep.is_asleep[0]
    for step in range(30):
        scene.move(np.array([0.125 * (step < 8), -0.5 * (step >= 10), -0.6 * (step < 9), 0, 0, 0, -1.0]))
    assert np.linalg.norm(scene.position(scene.items[0]) - start) > 0.02


def test_a_hand_never_goes_through_a_sleeping_object():
    least = []
    for seed in range(4):
        environment = gymnasium.make("qtransformer/KnockOver-v0")
        actions = rehearse(environment, seed)
        environment.reset(seed=seed)
        scene, generator = cast("TabletopEnv", environment.unwrapped).scene, np.random.default_rng(seed)
        for action in actions:
            environment.step(np.clip(action + generator.normal(0, 0.8, 7), -1, 1))
            asleep = [item for item in scene.items if scene._sleep.is_asleep[item.index]]
            least.extend(hand_distance(scene, item) for item in asleep)
    assert len(least) > 100
    assert min(least) > 0


def hand_distance(scene, item):
    """Returns how far an object is from hand, fingers and pads, m."""
    hand = [scene.model.geom(name).id for name in ("hand", "left_finger", "left_pad", "right_finger", "right_pad")]
    geoms = range(item.geoms.start, item.geoms.stop)
    pairs = itertools.product(geoms, hand)
    distance = mujoco.mj_geomDistance  # pyright: ignore[reportAttributeAccessIssue] - no stubs
    return min(distance(scene.model, scene.data, a, b, 1.0, None) for a, b in pairs)


def test_a_moving_object_wakes_the_one_that_it_hits():
    scene = make_scene(("ball", 0.4, -0.2), ("ball", 0.55, -0.2))
    scene._sleep.wake(0)
    scene.data.qvel[scene.items[0].dof] = 1.5
    for _ in range(5):
        scene.move(STILL)
    assert scene.position(scene.items[1])[0] > 0.56


def test_an_object_falls_though_it_was_put_in_the_air_at_rest():
    scene = make_scene(("cube", 0.4, -0.2))
    scene.place(scene.items[0], np.array([0.4, -0.2, 0.4]), np.eye(3))
    for _ in range(8):
        scene.move(STILL)
    assert scene.bottom(scene.items[0]) == pytest.approx(0.0, abs=1e-3)


def test_a_set_of_kinds_is_compiled_once():
    compiled_model.cache_clear()
    for colour in ("red", "blue"):
        Scene([("cube", colour), ("can", "green")])
    assert compiled_model.cache_info().misses == 1


def test_every_skill_with_a_target_holds_out_one_colour_of_each_kind():
    for skill, table in combinations.HELD_OUT.items():
        assert len(set(table.values())) == len(table), skill
        assert set(table) <= set(KINDS)
        assert set(table.values()) <= set(COLOURS)
    for skill, task in TASKS.items():
        train, held_out = (combinations.targets(skill, task.kinds, split) for split in ("train", "held_out"))
        assert not set(train) & set(held_out)
        assert set(train) | set(held_out) == set(combinations.targets(skill, task.kinds, "all"))
        assert {kind for kind, _ in train} == set(task.kinds)
        assert {colour for _, colour in train} == set(COLOURS)
        assert not task.num_named or {kind for kind, _ in held_out} == set(task.kinds)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_episodes_keep_to_their_split(split):
    env = TabletopEnv(["pick"], split=split)
    for seed in range(25):
        env.reset(seed=seed)
        target = env.task.target
        assert (combinations.HELD_OUT["pick"][target.kind_name] == target.colour) == (split == "held_out")


def test_held_out_episodes_are_of_tasks_that_name_an_object():
    env: Any = gymnasium.make("qtransformer/Tabletop-v0", split="held_out")
    tasks = {env.reset(seed=seed)[1]["task"] for seed in range(60)}
    assert tasks == set(combinations.HELD_OUT)


def test_words_name_the_target_and_no_two_objects_are_alike():
    env, instructions, numbers, goals = TabletopEnv(list(TASKS)), set(), set(), {}
    for seed in range(60):
        observation, info = env.reset(seed=seed)
        assert observation["instruction"] == env.instruction
        assert info["task"] == env.task.name
        named = [env.task.target.name, env.task.other.name][: env.task.num_named]
        assert all(name in env.instruction for name in named)
        side = env.task.side if env.task.name == "knock_over" else ""
        goals.setdefault((env.task.name, *named, side), set()).add(info["goal"])
        names = [item.name for item in env.scene.items]
        assert len(set(names)) == len(names)
        numbers.add(len(names))
        instructions.add(env.instruction)
    assert numbers == {2, 3, 4, 5}
    assert len(instructions) > 40
    assert {len(each) for each in goals.values()} == {1}  # whatever the words
    assert len(set.union(*goals.values())) == len(goals) < len(instructions)


@pytest.mark.parametrize("task", TASKS)
def test_every_template_fits_into_the_space(task):
    longest = max((f"{colour} {kind}" for colour in COLOURS for kind in KINDS), key=len)
    space = TabletopEnv([task], observations=["instruction"]).observation_space
    for template in TASKS[task].templates:
        assert space.contains({"instruction": template.format(target=longest, other=longest, side="to the left")})
    assert len(TASKS[task].templates) >= 3


def changed_by_level(level):
    """Returns which of masses, friction, lights and cameras differ between two episodes with the same objects."""
    env, models = TabletopEnv(["pick"], domain_randomization=level), {}
    for seed in range(400):
        env.reset(seed=seed)
        key = tuple(item.kind_name for item in env.scene.items)
        if key in models:
            one, other = models[key], env.scene.model
            names = ("body_mass", "geom_friction", "light_diffuse", "cam_pos")
            return [name for name in names if not np.array_equal(getattr(one, name), getattr(other, name))]
        models[key] = env.scene.model
    raise AssertionError("no two episodes have the same kinds")


def test_levels_of_randomization():
    assert changed_by_level(0) == []
    assert changed_by_level(1) == ["body_mass", "geom_friction"]
    assert changed_by_level(2) == ["body_mass", "geom_friction", "light_diffuse", "cam_pos"]


def test_observations_are_what_was_asked_for():
    env = TabletopEnv(["pick"], observations=["instruction"])
    assert list(env.reset(seed=0)[0]) == ["instruction"]
    assert env.observation_elements == {}
    env = TabletopEnv(["pick"], observations=["image/wrist", "image/front"], image_size=48)
    try:
        observation, _ = env.reset(seed=0)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert env.observation_space.contains(observation)
    assert observation["image/front"].shape == (48, 48, 3)
    assert not np.array_equal(observation["image/front"], observation["image/wrist"])
    first = observation["image/front"]
    env.reset(seed=1)  # another model with the same renderer
    np.testing.assert_array_equal(env.reset(seed=0)[0]["image/front"], first)
    env.close()


def test_the_policy_may_end_the_episode_itself():
    env: Any = gymnasium.make("qtransformer/Pick-v0", terminate_action=True)
    assert env.action_space.shape == (8,)
    assert env.unwrapped.action_elements[7] == ("terminate", "1")
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.array([0, 0, 0, 0, 0, 0, 1, 1], np.float32))
    assert (reward, terminated, info["success"]) == (0.0, True, False)
    env.reset(seed=0)
    expert, ends = env.unwrapped.make_expert(0), []
    while not ends or not (ends[-1][2] or ends[-1][3]):
        ends.append(env.step(expert.act()))
    assert [end[1] for end in ends] == [0.0] * (len(ends) - 1) + [1.0]
    assert ends[-1][2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["juggle"]}, r"tasks \(\['juggle'\]\) must be of 'pick', .*correct this setting"),
        ({"tasks": []}, r"tasks \(\[\]\) must be of 'pick', .*got none"),
        ({"observations": ["smell"]}, r"observations \(\['smell'\]\) must be of 'state', 'objects', 'image/front'"),
        ({"domain_randomization": 3}, r"domain_randomization \(\[3\]\) must be of 0, 1, 2"),
        ({"split": "test"}, r"split \(\['test'\]\) must be of 'train', 'held_out', 'all'"),
        ({"render_mode": "human"}, r"render_mode \(\['human'\]\) must be of None, 'rgb_array'"),
        (
            {"tasks": ["open_drawer", "close_drawer"], "split": "held_out"},
            r"split \('held_out'\) must have targets for some task, got none for open_drawer, close_drawer: .*'all'",
        ),
        ({"image_size": 0}, r"image_size \(0\) must be at least 1 pixel"),
    ],
)
def test_wrong_settings_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        TabletopEnv(**{"tasks": ["pick"], **settings})


def test_the_gripper_turns_the_shorter_way():
    np.testing.assert_allclose(point(DOWN, np.array([0.0, 1.0, 0.0])), 0.0, atol=1e-9)
    np.testing.assert_allclose(point(DOWN, np.array([0.0, -1.0, 0.5])), 0.0, atol=1e-9)
    turn = point(DOWN, np.array([np.sin(0.3), np.cos(0.3), 0.0]))
    np.testing.assert_allclose(turn, [0.0, 0.0, -0.3], atol=1e-9)


def test_the_pads_take_a_block_that_stands_on_an_edge():
    """Both of its narrow axes lean by 45 degrees: neither is flat, and the nearer one is taken."""
    half = 0.5**0.5
    rotation = np.array([[half, half, 0.0], [0.0, 0.0, 1.0], [half, -half, 0.0]])
    item = Scene([("block", "red"), ("can", "red")]).items[0]
    assert np.array_equal(pad_axis(item, rotation, np.array([1.0, 0.0, 0.3])), rotation[:, 0])


def test_the_gripper_leans_where_it_is_asked_to():
    lean = np.array([np.sin(0.4), 0.0, -np.cos(0.4)])
    np.testing.assert_allclose(point(DOWN, np.array([0.0, 1.0, 0.0]), lean), [0.0, -0.4, 0.0], atol=1e-9)


def test_the_funnel_rises_before_it_goes_sideways():
    np.testing.assert_allclose(descend(np.array([0.1, 0.0, 0.0]), 1.0), [0.0, 0.0, 0.11])
    np.testing.assert_allclose(descend(np.array([0.0, 0.0, -0.1]), 0.0), [0.0, 0.0, -0.1])
    np.testing.assert_allclose(descend(np.array([0.1, 0.0, -0.11]), 1.0), [0.1, 0.0, 0.0])


def test_compose_goes_part_of_the_way_and_stays_in_bounds():
    action = compose(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 5.0]), OPEN)
    np.testing.assert_allclose(action, [0.6, 0, 0, 0, 0, 1, 1], atol=1e-6)  # 0.03 m of 0.05 m, its longest move
