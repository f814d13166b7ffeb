"""Shares of kinds of episodes: reading them, fitting them to an environment, drawing, and what each kind is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from dataset_fixtures import POINT_ID
from mistake_fixtures import SHELF_ID

from qtransformer_datasets.behaviours import rehearse
from qtransformer_datasets.mix import SHARES, Play, draw_kind, fit_shares, read_shares
from qtransformer_datasets.schema import DatasetError


@pytest.fixture
def shelf():
    return gymnasium.make(SHELF_ID)


def start(kind, environment, seed=0, noise=lambda action: action, generator=None):
    """Returns the play and what acts in it, once the environment was reset to the episode."""
    play = Play(kind, environment, seed)
    environment.reset(seed=seed)
    return play, play.start(noise, generator or np.random.default_rng(seed))


def actions(act, num_steps):
    """Returns the next actions, without taking them."""
    return np.array([act() for _ in range(num_steps)])


def run(kind, environment, seed=0, noise=lambda action: action):
    """Returns kind, actions and success of an episode."""
    play, act = start(kind, environment, seed, noise)
    executed, is_over, info = [], False, {}
    while not is_over and (action := act()) is not None:
        executed.append(action)
        *_, terminated, truncated, info = environment.step(action)
        is_over = terminated or truncated
    return play.kind, np.array(executed), info["success"]


def test_the_shares_of_the_paper():
    assert sum(SHARES.values()) == pytest.approx(1)
    assert SHARES["demonstrations"] == 0.08
    assert read_shares(()) == read_shares(("",)) == SHARES


def test_shares_are_read_in_one_order_without_zeros():
    expected = {"demonstrations": 0.25, "noisy_replay": 0.75}
    assert read_shares(("noisy_replay=0.75,demonstrations=0.25",)) == expected
    assert list(read_shares(("noisy_replay=.75", "pauses=0", "demonstrations=0.25"))) == list(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("replays=1",), r"mix \(replays=1\) must be kind=share, each of demonstrations, noisy_replay, .*, pauses at"),
        (("pauses=0.5,pauses=0.5",), r"mix \(pauses=0.5\) must be kind=share, each of .* at most once"),
        (("pauses",), r"mix \(pauses\) must have a share in \[0, 1\], got none; write kind=share"),
        (("pauses=much",), r"mix \(pauses=much\) must have a share in \[0, 1\], got much"),
        (("pauses=-1,demonstrations=2",), r"mix \(pauses=-1\) must have a share in \[0, 1\], got -1"),
        (("pauses=nan",), r"mix \(pauses=nan\) must have a share in \[0, 1\], got nan"),
        (("pauses=0.5,early_stop=0.4",), r"mix \(pauses=0.5, early_stop=0.4\) must sum to 1, got 0.9; change"),
    ],
)
def test_shares_that_make_no_sense(words, message):
    with pytest.raises(DatasetError, match=message):
        read_shares(words)


def test_what_an_environment_can_do_is_left_as_it_is(shelf):
    assert fit_shares((), shelf, 0) == (SHARES, ())
    assert fit_shares(("wrong_object=1",), shelf, 0) == ({"wrong_object": 1.0}, ())


def test_what_an_environment_cannot_do_becomes_replays_and_is_said():
    shares, notes = fit_shares((), gymnasium.make(POINT_ID), 0)
    assert not {"wrong_object", "dropped_object"} & set(shares)
    assert shares["noisy_replay"] == pytest.approx(0.64)
    assert sum(shares.values()) == pytest.approx(1)
    assert notes == (
        "mix: wrong_object needs an instruction, and a scene of named objects that its task can be aimed at; "
        "dropped_object needs an action element called 'gripper', which this environment lacks: "
        "14% more noisy_replay instead",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wrong_object=1",), "mix: wrong_object needs an instruction, and .* lacks; leave out wrong_object"),
        (("pauses=0.5,dropped_object=0.5",), "mix: dropped_object needs an action element called 'gripper', which"),
    ],
)
def test_what_was_asked_for_and_cannot_be_done_is_an_error(words, message):
    with pytest.raises(DatasetError, match=message):
        fit_shares(words, gymnasium.make(POINT_ID), 0)


def test_kinds_are_drawn_by_their_shares():
    shares = {"demonstrations": 0.1, "pauses": 0.9}
    kinds = Counter(draw_kind(shares, np.random.default_rng([7, index])) for index in range(2000))
    assert set(kinds) == set(shares)
    assert kinds["demonstrations"] == pytest.approx(200, abs=45)  # 3.3 standard deviations


def test_a_demonstration_has_no_noise(shelf):
    _, executed, success = run("demonstrations", shelf, noise=lambda action: 0 * action)
    np.testing.assert_array_equal(executed, rehearse(shelf, 0))
    assert success


def test_a_noisy_expert_sees_what_noise_does_and_a_noisy_replay_does_not(shelf):
    def push(action):
        return action + np.array([0.1, 0.0], np.float32)

    intended = np.array(rehearse(shelf, 1))
    assert shelf.unwrapped.task.target.name == "red cup"
    _, executed, success = run("noisy_expert", shelf, 1, push)
    assert (len(executed), success) == (7, True)  # 0.45 m a step, until 0.2 m are left
    kind, executed, success = run("noisy_replay", shelf, 1, push)
    np.testing.assert_array_equal(executed, intended + np.array([0.1, 0.0], np.float32))
    assert (kind, success) == ("noisy_replay", False)


def test_an_early_stop_ends_before_the_rehearsal_did(shelf):
    lengths = {len(run("early_stop", shelf, seed)[1]) for seed in range(40)}
    assert lengths == set(range(1, len(rehearse(shelf, 0)) + 1))


def test_a_dropped_object_opens_the_gripper_and_pauses_stand_still(shelf):
    def still(action):
        return action * np.array([0, 1], np.float32)  # never arrives

    _, act = start("dropped_object", shelf, 0, still)
    closed = actions(act, 4)[:, 1].tolist()
    shelf.unwrapped.x = shelf.unwrapped.task.target.x - 1.0  # where the expert closes
    closed += actions(act, 25)[:, 1].tolist()
    assert closed[:4] == [1, 1, 1, 1]
    assert closed[4] == closed[-1] == -1
    assert 2 <= closed[4:].count(1) <= 5
    _, act = start("pauses", shelf, 0)
    speeds = np.abs(actions(act, 300)[:, 0]).tolist()
    assert 0 < sum(speed < 0.2 for speed in speeds) < 200
    assert max(speeds) == 1


def test_a_wrong_object_is_touched_and_where_none_is_named_it_is_the_noisy_expert(shelf):
    kind, _, success = run("wrong_object", shelf, 0)
    assert (kind, success) == ("wrong_object", False)
    kind, _, success = run("wrong_object", shelf, 2)
    assert (shelf.unwrapped.instruction, kind, success) == ("wait", "noisy_expert", True)


def test_the_guide_names_every_kind_with_its_share():
    guide = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text()
    for kind, share in SHARES.items():
        assert f"| `{kind}` | {share:.0%}".replace("%", " %") in guide
