"""Who acts: the expert, its actions once more, the expert aimed at something else."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from dataset_fixtures import POINT_ID
from mistake_fixtures import SHELF_ID

import qtransformer_envs  # noqa: F401 - registers the suite
from qtransformer_datasets.behaviours import WrongObject, aims_at_objects, expert, rehearse, replay, wrong_tasks


@pytest.fixture
def shelf():
    return gymnasium.make(SHELF_ID)


def play(environment, act):
    """Returns the actions of an episode that was reset, and its last step's flags and info."""
    actions, end = [], (False, False, {})
    while not any(end[:2]) and (action := act()) is not None:
        actions.append(action)
        *_, terminated, truncated, info = environment.step(action)
        end = terminated, truncated, info
    return actions, end


def test_a_rehearsal_is_the_experts_episode_and_a_replay_repeats_it(shelf):
    actions = rehearse(shelf, 4)
    shelf.reset(seed=4)
    again, (terminated, _, info) = play(shelf, expert(shelf, 4))
    np.testing.assert_array_equal(actions, again)
    assert (len(actions), terminated, info["success"]) == (6, True, True)  # 3 m, 0.5 m a step, until 0.2 m are left
    shelf.reset(seed=4)
    repeated, (terminated, *_) = play(shelf, replay(actions))
    np.testing.assert_array_equal(actions, repeated)
    assert terminated


def test_a_replay_does_not_look_and_ends_with_its_actions(shelf):
    shelf.reset(seed=4)
    shelf.unwrapped.x = -9.0
    actions, (terminated, truncated, _) = play(shelf, replay([np.ones(2, np.float32)] * 3))
    assert (len(actions), terminated, truncated) == (3, False, False)


def test_a_wrong_task_is_about_an_object_that_is_not_named_and_not_done(shelf):
    for seed, names in ((0, ["red cup"]), (1, ["red cup"]), (2, [])):
        shelf.reset(seed=seed)
        base = shelf.unwrapped
        assert ("touch the" in base.instruction) == bool(names)
        others = {"red cup", "blue cup"} - {base.task.target.name}  # the pot is where the hand is: nothing to do
        assert [task.target.name for task in wrong_tasks(shelf)] == (sorted(others) if names else [])


def test_the_expert_of_a_wrong_task_does_that_and_stops_while_the_environment_keeps_its_own(shelf):
    shelf.reset(seed=0)
    base, (wrong,) = shelf.unwrapped, wrong_tasks(shelf)
    right = base.task
    actions, (terminated, truncated, info) = play(shelf, WrongObject(shelf, 0, wrong))
    assert wrong.is_success()
    assert base.task is right
    assert right.target is not wrong.target
    assert (len(actions), terminated, truncated, info["success"]) == (7, False, False, False)  # one step when done


def test_the_task_is_put_back_when_the_expert_fails(shelf, monkeypatch):
    shelf.reset(seed=0)
    right, (wrong,) = shelf.unwrapped.task, wrong_tasks(shelf)
    monkeypatch.setattr("mistake_fixtures.ShelfExpert.act", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        WrongObject(shelf, 0, wrong)()
    assert shelf.unwrapped.task is right


def test_what_can_be_aimed_at_objects(shelf):
    shelf.reset(seed=0)
    assert aims_at_objects(shelf)
    for name in ("instruction", "task", "scene"):
        shelf.reset(seed=0)
        setattr(shelf.unwrapped, name, None)
        assert not aims_at_objects(shelf)
    point = gymnasium.make(POINT_ID)
    point.reset(seed=0)
    assert not aims_at_objects(point)


@pytest.mark.parametrize("seed", range(6))
def test_in_the_tabletop_suite_another_object_is_picked(seed):
    environment = gymnasium.make("qtransformer/Pick-v0")
    environment.reset(seed=seed)
    base: Any = environment.unwrapped
    target, wrong = base.task.target, wrong_tasks(environment)[0]
    _, (*_, info) = play(environment, WrongObject(environment, seed, wrong))
    assert not info["success"]
    assert wrong.is_success()
    assert base.scene.bottom(target) < 0.02
    assert wrong.target.name not in base.instruction


def test_a_policy_that_ends_its_episodes_ends_this_one_too_in_the_belief_that_it_is_done():
    environment = gymnasium.make("qtransformer/Pick-v0", terminate_action=True)
    environment.reset(seed=0)
    actions, (terminated, _, info) = play(environment, WrongObject(environment, 0, wrong_tasks(environment)[0]))
    assert (terminated, info["success"]) == (True, False)
    assert [action[7] > 0 for action in actions] == [False] * (len(actions) - 1) + [True]


@pytest.mark.parametrize(("task", "can"), [("OpenDrawer", False), ("TakeOutOfDrawer", False), ("PutIntoDrawer", True)])
def test_a_wrong_object_needs_words_that_name_one_and_another_to_move(task, can):
    environment = gymnasium.make(f"qtransformer/{task}-v0")
    environment.reset(seed=3)
    assert bool(wrong_tasks(environment)) == can
