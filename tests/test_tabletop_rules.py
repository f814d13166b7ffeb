"""When a skill of the tabletop suite counts as done: hand-made states, each with the one thing that spoils it."""

import numpy as np
import pytest

from qtransformer_envs.tabletop.close_drawer import CloseDrawer
from qtransformer_envs.tabletop.env import TabletopEnv
from qtransformer_envs.tabletop.knock_over import SIDES, KnockOver
from qtransformer_envs.tabletop.move_near import MoveNear
from qtransformer_envs.tabletop.placing import rest, resting_rotation
from qtransformer_envs.tabletop.registry import TASKS
from qtransformer_envs.tabletop.scene import Scene

HOME_JOINTS = np.array([0.0, -0.18483, 0.0, -2.49674, 0.0, 2.31191, 0.785398])
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


def put(scene, index, x, y, yaw=0.0, standing=True):
    item = scene.items[index]
    scene.place(item, np.array([x, y, rest(item.kind, standing)]), resting_rotation(yaw, standing))


def started(*objects):
    """Returns a scene whose episode has started with these (kind, x, y) standing."""
    scene = Scene([(kind, "red") for kind, *_ in objects])
    for index, (_, x, y) in enumerate(objects):
        put(scene, index, x, y)
    scene.start(HOME_JOINTS)
    return scene


def knocked_over(side, yaw, standing=False, other_moved=0.0, y=-0.14):
    """Returns whether a can with its top towards `yaw` counts as knocked over to `side`."""
    scene = started(("can", 0.5, -0.2), ("cube", 0.4, -0.05))
    task = KnockOver(scene)
    task.side = side
    put(scene, 0, 0.5, y, yaw, standing)
    put(scene, 1, 0.4, -0.05 + other_moved)
    scene.move(STILL)
    return task.is_success()


@pytest.mark.parametrize(("side", "yaw"), [("to the left", np.pi / 2), ("backwards", np.pi), ("forwards", 0.0)])
def test_a_thing_is_knocked_over_when_it_lies_with_its_top_to_the_named_side(side, yaw):
    assert knocked_over(side, yaw)
    assert knocked_over(side, yaw + 0.6)  # 34 degrees
    assert not knocked_over(side, yaw + 0.7)  # 40 degrees
    assert not knocked_over(side, yaw + np.pi)
    assert not knocked_over(side, yaw, standing=True)
    assert knocked_over(side, yaw, y=-0.34)
    assert not knocked_over(side, yaw, y=-0.36)
    assert knocked_over(side, yaw, other_moved=0.025)
    assert not knocked_over(side, yaw, other_moved=0.035)


def test_what_is_to_be_knocked_over_stands_with_room_to_fall_and_the_words_say_where():
    env, sides = TabletopEnv(["knock_over"]), set()
    for seed in range(20):
        env.reset(seed=seed)
        task, scene = env.task, env.scene
        forward = SIDES[task.side][0]
        assert env.instruction.endswith(task.side)
        assert scene.up_component(task.target) > 0.99
        place = scene.position(task.target)[:2]
        landing = place + 0.08 * forward
        others = [scene.position(item)[:2] for item in scene.items if item is not task.target]
        assert min(np.linalg.norm(other - landing) for other in others) > 0.08
        sides.add(task.side)
    assert sides == set(SIDES)


@pytest.mark.parametrize(
    ("opening", "moved", "is_done"), [(0.005, 0.0, True), (0.015, 0.0, False), (0.005, 0.04, False)]
)
def test_the_drawer_is_closed_when_it_is_shut_and_nothing_was_moved(opening, moved, is_done):
    scene = started(("can", 0.5, -0.2), ("cube", 0.4, -0.05))
    scene.open_drawer(opening)
    put(scene, 1, 0.4, -0.05 - moved)
    scene.move(STILL)
    assert CloseDrawer(scene).is_success() == is_done


@pytest.mark.parametrize(
    ("target_x", "other_x", "is_done"), [(0.5, 0.4, True), (0.53, 0.4, False), (0.53, 0.44, False)]
)
def test_the_target_comes_to_the_other_and_not_the_other_way_round(target_x, other_x, is_done):
    scene = started(("can", 0.65, -0.2), ("cube", 0.4, -0.2))
    put(scene, 0, target_x, -0.2)
    put(scene, 1, other_x, -0.2)
    scene.move(STILL)
    assert MoveNear(scene).is_success() == is_done


def test_another_target_may_change_roles_with_the_other_object():
    scene = started(("can", 0.65, -0.2), ("cube", 0.4, -0.2), ("ball", 0.4, 0.0))
    task = MoveNear(scene)
    can, cube, ball = scene.items
    assert (task.target, task.other) == (can, cube)
    swapped, third = task.aimed_at(cube), task.aimed_at(ball)
    assert (swapped.target, swapped.other) == (cube, can)
    assert (third.target, third.other) == (ball, cube)
    assert (task.target, task.other) == (can, cube)
    assert swapped.say("{target} to {other}") == "red cube to red can"


def test_no_episode_starts_done_and_the_hand_has_room_before_the_handle():
    env = TabletopEnv(list(TASKS))
    for seed in range(80):
        info = env.reset(seed=seed)[1]
        assert not info["success"]
        scene = env.scene
        on_table = [item for item in scene.items if not scene.is_in_drawer(item)]
        room = [scene.handle_position()[1] - scene.position(item)[1] for item in on_table]
        assert min(room) > 0.1  # half the width of the hand and a bit
        assert len(on_table) == len(scene.items) - (info["task"] == "take_out_of_drawer")
