"""The loop of real time on a clock that only moves when something takes time: every figure is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_fixtures import CARD, write_bundle
from realtime_fixtures import CoastEnv

from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller, make_session
from qtransformer.deploy.realtime import Drive, period_limits
from qtransformer.vectorization import Host


class Clock:
    """Sleeping oversleeps by a millisecond."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 0.001


class SlowSession:
    """Takes its time, one entry a step."""

    def __init__(self, folder: Path, clock: Clock, seconds: Iterator[float]) -> None:
        self._session = make_session((folder / "policy.onnx").read_bytes())
        self._clock, self._seconds = clock, seconds

    def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self._clock.now += next(self._seconds)
        return self._session.run(names, inputs)


def drive(
    folder: Path, thinking: list[float], moving: float = 0.0, bad_from: int = 99, **limits: Any
) -> dict[str, Any]:
    clock = Clock()

    def take_time() -> None:
        clock.now += moving

    session = SlowSession(folder, clock, iter([0.0, *thinking]))  # the first is the warm-up
    controller = Controller(folder, session=session, clock=clock, limits=limits)
    host = Host(lambda: CoastEnv(bad_from, take_time))
    return Drive(controller, host, 10.0, clock=clock, sleep=clock.sleep).play([7])


def test_a_loop_in_time(tmp_path: Path):
    report = drive(write_bundle(tmp_path), [0.01, 0.03, 0.02, 0.02], moving=0.005)
    assert (report["steps"], report["deadline_misses"], report["successes"]) == (4, 0, 1)
    assert report["episodes"] == [{"seed": 7, "success": True, "return": 4.0, "length": 4}]
    assert report["latency_ms"] == pytest.approx({"median": 20.0, "p99": 29.7, "max": 30.0})
    assert report["late_ms"] == pytest.approx({"median": 1.0, "p99": 1.0, "max": 1.0}, abs=0.05)  # the first: at once
    assert report["environment_ms"]["max"] == pytest.approx(5.0)
    assert report["counters"]["accepted"] == 4


def test_missed_deadlines(tmp_path: Path):
    """The second step takes 2.5 periods: it misses its own deadline, and the next tick has no step; then it is late."""
    report = drive(write_bundle(tmp_path), [0.01, 0.25, 0.01, 0.01])
    assert report["deadline_misses"] == 2
    assert report["late_ms"]["max"] == pytest.approx(51.0, abs=1.5)


def test_a_slow_environment_is_no_missed_deadline_of_the_controller_unless_ticks_pass(tmp_path: Path):
    assert drive(write_bundle(tmp_path), [0.01] * 4, moving=0.08)["deadline_misses"] == 0
    assert drive(write_bundle(tmp_path), [0.01] * 4, moving=0.21)["deadline_misses"] == 4


def test_an_episode_ends_where_the_controller_gives_up(tmp_path: Path):
    ranges = {"state": {"hard_low": [-9.0, -9.0], "hard_high": [9.0, 9.0]}}
    report = drive(write_bundle(tmp_path), [0.01] * 4, bad_from=1, observations=ranges)
    (episode,) = report["episodes"]
    assert "3 refused steps" in episode["stopped"] or "element 0 is 1e+08" in episode["stopped"]
    assert (report["successes"], report["counters"]["hard_range"]) == (0, 3)


def test_limits_follow_the_rate():
    assert period_limits(CARD, 10.0) == {}
    limits = period_limits(CARD, 50.0)
    assert limits["safety"] == {"max_gap_s": 0.04}
    assert limits["observations"] == {"state": {"max_age_s": 0.04}, "goal": {"max_age_s": 0.04}}
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(RunError, match=r"rate \(\S+\) must be above 0"):
            period_limits(CARD, rate)
