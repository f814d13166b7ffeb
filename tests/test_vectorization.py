"""Environments side by side: the same answers here and in processes of their own, and what a crash becomes."""

from __future__ import annotations

from functools import partial

import evaluation_fixtures  # noqa: F401 - registers the environments
import gymnasium
import numpy as np
import pytest

from qtransformer.config import RunError
from qtransformer.vectorization import Crash, EnvironmentFacts, Reset, Step, open_environments

KINDS = ("sync", "async")
RIGHT, LEFT = np.array([1, 0], np.float32), np.array([-1, 0], np.float32)


def make(name, **kwargs):
    return partial(gymnasium.make, f"evaluation_fixtures:test/{name}-v0", **kwargs)


def ask(environments, commands) -> dict[int, Step]:
    """The answers, none of which may be a crash."""
    answers = environments.answer(commands)
    assert [each for each in answers.values() if not isinstance(each, Step)] == []
    return answers


def as_plain(step):
    return {key: value.tolist() for key, value in step.observation.items()}, step.reward, step.success, step.task


@pytest.mark.parametrize("kind", KINDS)
def test_answers_by_hand(kind):
    alone = gymnasium.make("test/Passing-v0")
    start = float(alone.reset(seed=7)[0]["state"][0])
    with open_environments(kind, make("Passing"), 2) as environments:
        assert environments.facts == EnvironmentFacts("test/Passing-v0", 25.0)
        (reset,) = ask(environments, {1: Reset(7)}).values()
        assert (reset.reward, reset.success, reset.task, reset.frame) == (0.0, None, "odd", None)
        np.testing.assert_array_equal(reset.observation["state"], np.array([start, start], np.float32))
        answers = ask(environments, {0: Reset(8), 1: RIGHT})  # a reset beside a step
        assert sorted(answers) == [0, 1]
        assert (answers[0].task, answers[1].success) == ("even", False)
        assert answers[1].observation["state"][0] == np.float32(start + 0.5)
        for _ in range(11):
            answers = ask(environments, {1: LEFT})
        assert (answers[1].truncated, answers[1].terminated) == (True, False)


def test_sync_and_async_answer_the_same():
    told = []
    for kind in KINDS:
        with open_environments(kind, make("Passing"), 3) as environments:
            rounds = [ask(environments, {slot: Reset(slot + 10) for slot in range(3)})]
            rounds += [ask(environments, {slot: LEFT * (slot + 1) / 3 for slot in range(3)}) for _ in range(12)]
        told.append([{slot: as_plain(step) for slot, step in answers.items()} for answers in rounds])
    assert told[0] == told[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_is_a_crash_and_the_environment_is_made_anew(kind):
    with open_environments(kind, make("Raising"), 2) as environments:
        environments.answer({0: Reset(2), 1: Reset(3)})
        for _ in range(2):
            environments.answer({0: LEFT, 1: LEFT})
        answers = environments.answer({0: LEFT, 1: LEFT})
        assert isinstance(answers[0], Crash)
        assert answers[0].error.startswith("ValueError: the solver gave up on seed 2 (evaluation_fixtures.py, line ")
        assert isinstance(answers[1], Step)
        (at_reset,) = environments.answer({0: Reset(4)}).values()
        assert isinstance(at_reset, Crash)
        assert at_reset.error.startswith("OSError: no such cube, seed 4 (")
        again, other = environments.answer({0: Reset(5), 1: LEFT}).values()
        assert isinstance(again, Step)
        assert isinstance(other, Step)


def test_the_death_of_a_process_is_a_crash_and_the_others_go_on():
    with open_environments("async", make("Dying"), 2) as environments:
        ask(environments, {0: Reset(2), 1: Reset(3)})
        before = [ask(environments, {0: LEFT, 1: LEFT})[1].observation["state"][0] for _ in range(2)]
        dead, alive = environments.answer({0: LEFT, 1: LEFT}).values()
        assert dead == Crash("the environment's process ended with exit code 3")
        assert isinstance(alive, Step)
        assert alive.observation["state"][0] == pytest.approx(before[-1] - 0.5)
        assert environments.answer({0: Reset(4)})[0] == Crash("the environment's process ended with signal SIGKILL")
        assert ask(environments, {0: Reset(5)})[0].task == "odd"


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_come_with_the_steps_of_drawn_episodes(kind):
    with open_environments(kind, make("Passing", render_mode="rgb_array"), 1) as environments:
        frames = [ask(environments, {0: command})[0].frame for command in (Reset(7, is_drawn=True), LEFT)]
        assert [frame[1, 1, 0] for frame in frames if frame is not None] == [0, 10]
        assert [frame.shape for frame in frames if frame is not None] == [(48, 64, 3)] * 2
        assert [ask(environments, {0: command})[0].frame for command in (Reset(8), LEFT)] == [None, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unseen", "rendering is unavailable .no display.; without a screen install libegl1 .* MUJOCO_GL=osmesa"),
        ("EmptyPicture", r"render\(\) must return uint8 pictures \(height, width, 3\), got NoneType; give the"),
    ],
)
def test_what_cannot_be_drawn(kind, name, message):
    drawn = make(name, render_mode="rgb_array")
    with open_environments(kind, drawn, 1) as environments, pytest.raises(RunError, match=message):
        environments.answer({0: Reset(7, is_drawn=True)})


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_made(kind):
    message = r"the environment cannot be made: FileNotFoundError: arm.xml is missing \(evaluation_fixtures.py, line"
    with pytest.raises(RunError, match=message), open_environments(kind, make("Unmakeable"), 2):
        pass


def test_a_process_that_dies_while_it_makes_its_environment():
    message = "the environment's process ended with exit code 5 while it made its environment; try --vectorization sync"
    with pytest.raises(RunError, match=message), open_environments("async", make("Stillborn"), 1):
        pass


def test_what_comes_back_is_no_array_that_the_environment_writes_into_again():
    class Reusing(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 9, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        array = np.zeros(1, np.float32)

        def reset(self, *, seed=None, options=None):
            self.array[:] = 0
            return self.array, {}

        def step(self, action):
            self.array += 1
            return self.array, 0.0, False, False, {}

    with open_environments("sync", Reusing, 1) as environments:
        steps = [ask(environments, {0: command})[0] for command in (Reset(0), RIGHT, RIGHT)]
        assert environments.facts == EnvironmentFacts("unregistered", 10.0)
    assert [step.observation["state"][0] for step in steps] == [0, 1, 2]
