"""What never reaches the actuators, and what does instead: fallbacks, limits, watchdog, states, counters, log."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from controller_fixtures import CARD, observation, write_bundle

from qtransformer.deploy.controller import COUNTERS, FAULTS, LIMITS, Controller, ControllerError

BAD = observation(np.nan, 0.0)
LOW, HIGH = np.array([-1, -2], np.float32), np.array([1, 2], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


class Clock:
    """Stands still between steps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(folder: Path, clock: Clock | None = None, **limits: Any) -> Controller:
    controller = Controller(folder, limits=limits, clock=clock or Clock())
    controller.reset()
    return controller


def told(action: np.ndarray | None) -> list[float] | None:
    return None if action is None else np.round(action.astype(float), 5).tolist()


# --- fallbacks and states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fallback", "before", "after"),
    [
        ("zero", [0.0, 0.0], [0.0, 0.0]),
        ("last", None, [0.3, 0.6]),
        ("stop", None, None),
        ("hold", None, [0.0, 0.6]),  # the second dimension is absolute: there is nothing to hold before it was sent
    ],
)
def test_a_refused_step_is_answered_by_the_fallback(folder: Path, fallback: str, before: Any, after: Any):
    controller = make(folder, safety={"fallback": fallback}, actions={"modes": ["delta", "absolute"]})
    assert told(controller.step(BAD)) == before
    assert told(controller.step(observation(0.03, 0.06))) == [0.3, 0.6]
    assert told(controller.step(BAD)) == after
    assert told(controller.step(observation(0.03, 0.06))) == [0.3, 0.6]


def test_holding_changes_alone_needs_no_command_before(folder: Path):
    controller = make(folder, safety={"fallback": "hold"}, actions={"modes": ["delta", "delta"]})
    assert told(controller.step(BAD)) == [0.0, 0.0]


def test_states(folder: Path):
    controller = Controller(folder)
    states = [controller.state]
    assert told(controller.step(observation(0.03, 0.06))) == [0.0, 0.0]
    assert controller.counters["not_reset"] == 1
    controller.reset()
    states.append(controller.state)
    for each in (observation(0.03, 0.06), BAD, BAD, observation(0.03, 0.06), BAD, BAD, BAD):
        controller.step(each)
        states.append(controller.state)
    assert states == ["INIT", "READY", *["RUNNING"] * 6, "FAULT"]
    assert told(controller.step(observation(0.03, 0.06))) == [0.0, 0.0]
    assert controller.counters["latched"] == 1
    controller.reset()
    assert told(controller.step(observation(0.03, 0.06))) == [0.3, 0.6]
    assert controller.state == "RUNNING"


def test_the_caller_may_change_what_it_was_given(folder: Path):
    controller = make(folder, safety={"fallback": "last"})
    action = controller.step(observation(0.03, 0.06))
    assert action is not None
    action[:] = 9.0
    assert told(controller.step(BAD)) == [0.3, 0.6]


# --- ranges -------------------------------------------------------------------------------------------------------


def test_hard_range_refuses_and_training_range_counts(tmp_path: Path):
    state, goal = CARD["observations"]
    ranged = {
        **state,
        "training_low": [-1, -1],
        "training_high": [1, 1],
        "hard_low": [-3, None],
        "hard_high": [3, None],
    }
    controller = make(write_bundle(tmp_path, observations=[ranged, goal]))
    for x, y, hard, usual in (
        (0, 0, 0, 0),
        (1, -1, 0, 0),
        (1.01, 0, 0, 1),
        (3, 0, 0, 2),
        (0, 1e6, 0, 3),
        (-3.01, 0, 1, 3),
    ):
        controller.step(observation(x, y))
        assert (controller.counters["hard_range"], controller.counters["training_range"]) == (hard, usual)
    message = "observation 'state': element 0 is -3.01, must lie between -3 and 3; look for a wrong unit"
    assert controller.log[-1].message == message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e4])
@pytest.mark.parametrize("place", range(6))
def test_what_no_sensor_reads_never_reaches_the_actuators(folder: Path, bad: float, place: int):
    """NaN, infinity or millimetres for tenths of micrometres, in any frame: the next action is as if it never came."""
    limits: dict[str, Any] = {"observations": {"state": {"hard_low": [-3.0, -3.0], "hard_high": [3.0, 3.0]}}}
    ours, clean = make(folder, **limits), make(folder)
    frames = np.random.default_rng(place).uniform(0.01, 0.09, (6, 2))
    for index, frame in enumerate(frames):
        if index == place:
            for element in (0, 1):
                spoilt = frame.copy()
                spoilt[element] *= bad
                assert told(ours.step(observation(*spoilt))) == [0.0, 0.0]
        np.testing.assert_array_equal(ours.step(observation(*frame)), clean.step(observation(*frame)))
    assert ours.counters["hard_range" if np.isfinite(bad) else "not_finite"] == 2


# --- limits -------------------------------------------------------------------------------------------------------


def test_bounds(folder: Path):
    controller = make(folder, actions={"low": [-0.5, -2.0]})
    assert told(controller.step(observation(-0.09, 0.3))) == [-0.5, 2.0]
    assert controller.counters["bounds"] == 1


def test_the_rate_is_limited_against_what_was_sent(folder: Path):
    """Two units a second at 10 Hz: 0.2 a step; the mean over the window asks for 0.9 and then 0.6."""
    controller = make(folder, actions={"rate_limit": [2.0, None]})
    assert told(controller.step(observation(0.0, 0.0))) == [0.0, 0.0]  # the first is free: nothing is known
    assert told(controller.step(observation(0.09, 0.09))) == [0.2, 0.6]
    assert told(controller.step(observation(0.09, 0.09))) == [0.4, 0.6]
    assert told(controller.step(BAD)) == [0.2, 0.0]  # the fallback, too
    assert controller.counters["rate"] == 3
    controller.reset(sent=[-1.0, 0.0])
    assert told(controller.step(observation(0.05, 0.0))) == [-0.8, 0.0]


def test_the_workspace_keeps_a_position_inside(folder: Path):
    """The hand is at state x; an action of 1 moves it by 0.1: at 0.05 it may go to 0.08, at 0.09 it must come back."""
    side = {"observation": "state", "element": "x", "low": 0.0, "high": 0.08, "scale": 0.1}
    controller = make(folder, safety={"workspace": {"dx": side}})
    assert told(controller.step(observation(0.05, 0.0))) == [0.3, 0.0]
    controller.reset()
    assert told(controller.step(observation(0.09, 0.0))) == [-0.1, 0.0]
    controller.reset()
    assert told(controller.step(observation(0.02, 0.0))) == [0.2, 0.0]
    assert controller.counters["workspace"] == 2
    controller = make(folder, safety={"workspace": {"dx": side}, "fallback": "last"})
    controller.step(observation(0.05, 0.06))
    assert told(controller.step(BAD)) == [0.0, 0.6]  # nobody knows where the hand is now: it stays


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"speed": {}}, "limits: speed speed {} must be names of"),
        ({"actions": {"max": [1, 1]}}, r"limits: actions actions {'max': \[1, 1\]} must be names of"),
        ({"observations": {"arm": {"max_age_s": 1.0}}}, "limits: observations arm"),
        ({"actions": 1}, "limits: actions actions 1 must be names of"),
        ({"observations": {"state": 1}}, "limits: observations state 1 must be names of"),
        ({"actions": {"low": [0.0]}}, r"low: must hold 2 numbers, got \[0.0\]"),
        ({"actions": {"rate_limit": ["fast", 1]}}, "rate_limit: must hold 2 numbers"),
        ({"actions": {"rate_limit": 3}}, "rate_limit: must hold 2 numbers, got 3"),
        ({"actions": {"modes": ["delta"]}}, r"actions modes \(\['delta'\]\) must be"),
        ({"actions": {"modes": ["delta", "up"]}}, r"actions modes \(\['delta', 'up'\]\) must be"),
        ({"safety": {"max_gap_s": 0}}, "max_gap_s, max_age_s must be above 0 or null"),
        ({"observations": {"goal": {"max_age_s": "1"}}}, "max_gap_s, max_age_s must be above 0 or null"),
        ({"safety": {"faults_before_latching": None}}, "faults_before_latching at least 1"),
        ({"safety": {"workspace": {"dx": 1}}}, "workspace 'dx': TypeError"),
        ({"actions": {"low": [2.0, 0.0]}}, "low must not lie above high"),
        ({"actions": {"high": None}}, "low must not lie above high, and neither be missing"),
        ({"observations": {"state": {"hard_low": [1.0]}}}, r"hard_low: must hold 2 numbers, got \[1.0\]"),
        ({"safety": {"fallback": "dance"}}, r"fallback \(dance\) must be one of"),
        ({"safety": {"fallback": "hold"}}, "fallback 'hold' needs actions modes"),
        (
            {"safety": {"fallback": "hold"}, "actions": {"modes": ["delta", None]}},
            "fallback 'hold' needs actions modes",
        ),
        ({"safety": {"workspace": {"dz": {}}}}, "workspace 'dz': ValueError"),
        ({"safety": {"workspace": {"dx": {"observation": "arm"}}}}, "workspace 'dx': KeyError"),
        (
            {"safety": {"workspace": {"dx": {"observation": "state", "element": "x", "low": 1.0, "high": 0.0}}}},
            "workspace 'dx': .*low must be at most high",
        ),
    ],
)
def test_limits_that_make_no_sense(folder: Path, limits: dict[str, Any], match: str):
    with pytest.raises(ControllerError, match=match):
        Controller(folder, limits=limits)


def test_a_rate_needs_to_know_the_period(tmp_path: Path):
    folder = write_bundle(tmp_path, control_hz=None)
    with pytest.raises(ControllerError, match="rate_limit needs control_hz"):
        Controller(folder, limits={"actions": {"rate_limit": [1.0, 1.0]}})


@pytest.mark.parametrize("sent", [[1.0], [np.nan, 0.0], "fast", [[1.0], 2.0]])
def test_a_command_that_is_none(folder: Path, sent: Any):
    with pytest.raises(ControllerError, match="action must be 2 finite numbers"):
        Controller(folder).reset(sent=sent)


def test_the_card_lists_what_can_be_set():
    observations = {name for each in CARD["observations"] for name in each}
    assert set(LIMITS["observations"]) <= observations
    assert all(set(LIMITS[part]) <= set(CARD[part]) for part in ("actions", "safety"))


# --- watchdog -----------------------------------------------------------------------------------------------------


def test_a_late_step_is_refused_and_the_next_is_not(folder: Path):
    clock = Clock()
    controller = make(folder, clock, safety={"max_gap_s": 0.2})
    clock.now += 50.0  # waiting for the first step is no gap
    for seconds, late in ((0.0, 0), (0.19, 0), (0.21, 1), (0.1, 1)):
        clock.now += seconds
        controller.step(observation(0.03, 0.06))
        assert controller.counters["late"] == late
    assert controller.counters["accepted"] == 3


def test_stale_observations(folder: Path):
    clock = Clock()
    limits = {"state": {"max_age_s": 0.1}, "goal": {"max_age_s": 1.0}}
    controller = make(folder, clock, observations=limits)
    expected = 0
    for timestamp, is_refused in (
        (None, False),
        (99.95, False),
        (99.95, False),  # a slow sensor says the same again
        (99.94, True),  # but none goes back in time
        (99.85, True),
        ({"goal": 99.95, "state": 100.0}, False),
        ({"goal": 99.5}, True),
        (100.5, True),  # nor comes from the future
        (float("nan"), True),
        ({"goal": 100.0, "state": 100.0}, False),
    ):
        controller.step(observation(0.03, 0.06), timestamp)
        expected += is_refused
        assert controller.counters["stale"] == expected, timestamp
        if controller.state == "FAULT":
            controller.reset()
    assert "'state': is nan s old, at most 0.1 s" in str(controller.log[-2].message)


# --- words --------------------------------------------------------------------------------------------------------


@pytest.fixture
def told_folder(tmp_path: Path) -> Path:
    """The state takes its two numbers from a text, as a graph of 2 inputs would take a vector of 128."""
    state, goal = CARD["observations"]
    return write_bundle(
        tmp_path, observations=[{**state, "kind": "text"}, goal], instructions=["touch red", "touch blue"]
    )


def test_an_instruction_at_reset_stands_in_for_that_of_a_step(told_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from qtransformer.deploy import controller as module

    monkeypatch.setattr(module.WordEncoder, "encode", lambda self, text: np.array([len(text) / 100, 0], np.float32))
    controller = make(told_folder)
    goal = {"goal": np.zeros(1)}
    controller.step(goal)
    assert controller.counters["keys"] == 1
    controller.reset("touch red")
    assert told(controller.step(goal)) == [0.9, 0.0]
    controller.reset("touch red")
    assert told(controller.step({**goal, "state": "blue"})) == [0.4, 0.0]
    controller.reset()
    controller.step(goal)
    assert controller.counters["keys"] == 2


def test_instructions_that_cannot_be_told(folder: Path, told_folder: Path):
    with pytest.raises(ControllerError, match="this policy has no text observation"):
        Controller(folder).reset("touch red")
    controller = make(told_folder)
    with pytest.raises(ControllerError, match=r"has words that the log never had: \['mug'\]"):
        controller.reset("touch mug")
    assert told(controller.step({"goal": np.zeros(1), "state": "mug"})) == [0.0, 0.0]
    assert controller.counters["instruction"] == 1


# --- log ----------------------------------------------------------------------------------------------------------


def test_the_log_holds_the_last_minute(folder: Path, tmp_path: Path):
    controller = make(folder)
    for step in range(700):
        controller.step(BAD if step == 690 else observation(0.03, step / 10_000))
    assert len(controller.log) == 600
    controller.save_log(tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (len(lines), lines[-10]["reason"], lines[-10]["action"]) == (600, "not_finite", [0.0, 0.0])
    assert lines[-1]["observation"]["state"] == [float(np.float32(0.03)), float(np.float32(0.0699))]
    assert (lines[-1]["state"], lines[-1]["reason"], lines[-1]["message"]) == ("RUNNING", None, None)


# --- everything at once -------------------------------------------------------------------------------------------


def as_copied(folder: Path) -> ModuleType:
    """The bundle's own controller.py, free of the type checks of the tests: what comes in may be anything."""
    spec = importlib.util.spec_from_file_location("bundled_controller", folder / "controller.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fuzzed(rng: np.random.Generator) -> Any:
    """An observation with one of all kinds of mistakes, or none."""
    good = {"state": rng.normal(size=2) * 0.1, "goal": rng.normal(size=1)}
    key = ("state", "goal")[rng.integers(2)]
    kinds = [
        lambda: good,
        lambda: {**good, key: good[key] * 10.0 ** rng.integers(-300, 300)},
        lambda: {**good, key: np.full(good[key].shape, rng.choice([np.nan, np.inf, -np.inf, 3.4e38, 1e-45, -0.0]))},
        lambda: {**good, key: rng.normal(size=tuple(rng.integers(0, 4, rng.integers(0, 4))))},
        lambda: {name: value for name, value in good.items() if name != key},
        lambda: {**good, "extra": 1, 7: 2},
        lambda: {**good, key: good[key].astype(rng.choice(["int8", "complex64", "bool", "U3", "O", "float16", "S2"]))},
        lambda: {**good, key: rng.choice(np.array([None, "x", b"y", {}, [[1], [1, 2]], object()], object))},
        lambda: rng.choice(np.array([None, 3, "state", (), [good]], object)),
        lambda: {**good, key: Hostile()},
    ]
    return kinds[0 if rng.random() < 0.4 else rng.integers(len(kinds))]()


class Hostile:
    """A sensor's object that fails when it is looked at."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise RuntimeError("the driver is gone")


@pytest.mark.slow
def test_10_000_fuzzed_observations(folder: Path):
    module, clock, rng = as_copied(folder), Clock(), np.random.default_rng(0)
    limits = {
        "observations": {"state": {"hard_low": [-1.0] * 2, "hard_high": [1.0] * 2, "max_age_s": 0.1}},
        "safety": {"fallback": "last", "max_gap_s": 0.3},
        "actions": {"rate_limit": [5.0, None]},
    }
    controller = module.Controller(folder, limits=limits, clock=clock)
    answers = {"nothing": 0, "action": 0}
    sent = None
    for _ in range(10_000):
        if rng.random() < 0.1:
            controller.reset(sent=sent)
        clock.now += rng.choice([0.1, 0.1, 0.1, 0.4, -1.0], p=[0.4, 0.3, 0.2, 0.08, 0.02])
        times = [None, clock.now, clock.now - 0.05, {}, clock.now - 1, np.nan, "now"]
        timestamp = times[rng.integers(4) if rng.random() < 0.8 else rng.integers(7)]
        action = controller.step(fuzzed(rng), timestamp)
        answers["nothing" if action is None else "action"] += 1
        if action is not None:
            assert ((action >= LOW) & (action <= HIGH)).all()  # false for NaN, too
            assert sent is None or abs(action[0] - sent[0]) <= 0.5 + 1e-6
            sent = action
    counters = controller.counters
    assert set(counters) == {*COUNTERS, *FAULTS}
    assert counters["steps"] == 10_000 == counters["accepted"] + sum(counters[reason] for reason in FAULTS)
    assert [reason for reason in FAULTS if not counters[reason] and reason not in ("instruction", "network")] == []
    assert counters["accepted"] > 500
    assert answers["action"] > 5000


@pytest.mark.slow
def test_nothing_grows(folder: Path):
    controller, rng = as_copied(folder).Controller(folder), np.random.default_rng(1)
    controller.reset()
    sizes = []
    tracemalloc.start()
    for step in range(4000):
        if step % 10 == 0:
            controller.reset()
        controller.step(fuzzed(rng))
        if step in (1999, 3999):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] < sizes[0] + 100_000
