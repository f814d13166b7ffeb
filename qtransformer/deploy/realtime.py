"""A controller in a loop of real time: when it wakes up, how long it thinks, which deadlines it misses.

The environment stands for the robot: it moves when the action is sent. A tick is `1 / rate` seconds after the one
before, counted from the start of the episode, so that lateness does not add up. It must not load torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qtransformer.config import RunError
from qtransformer.deploy.controller import FAULT, Controller
from qtransformer.outcomes import CrashedEpisode
from qtransformer.rollout import Rollout
from qtransformer.vectorization import Host, Reset


@dataclass
class Timing:
    """Milliseconds of each step, and what they come to."""

    late_ms: list[float] = field(default_factory=list)
    """How long after its tick a step began."""
    latency_ms: list[float] = field(default_factory=list)
    """What the controller took."""
    environment_ms: list[float] = field(default_factory=list)
    """What the environment took after it, which a robot would not."""
    num_missed: int = 0
    """Deadlines: ticks whose action came after the next tick, and ticks that passed without a step."""

    def to_json(self) -> dict[str, Any]:
        """Returns medians and tails."""
        spread = {
            name: {"median": float(np.median(each)), "p99": float(np.percentile(each, 99)), "max": float(max(each))}
            for name, each in vars(self).items()
            if isinstance(each, list) and each
        }
        return {"steps": len(self.latency_ms), "deadline_misses": self.num_missed, **spread}


@dataclass(frozen=True)
class Drive:
    """One controller, one environment, one rate."""

    controller: Controller
    host: Host
    rate: float
    """Steps a second."""
    ignored_observations: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic
    """That of the controller."""
    sleep: Callable[[float], None] = time.sleep

    def play(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Plays an episode for each seed; returns outcomes, timing, and the controller's counters.

        An episode ends early where the controller sends nothing more: its state is FAULT.
        """
        timing = Timing()
        episodes = [self._episode(seed, timing) for seed in seeds]
        played = [each for each in episodes if "success" in each]
        return {
            "rate": self.rate,
            "successes": sum(each["success"] for each in played),
            "episodes": episodes,
            **timing.to_json(),
            "counters": dict(self.controller.counters),
        }

    def _episode(self, seed: int, timing: Timing) -> dict[str, Any]:
        rollout = Rollout(seed, self.ignored_observations, is_kept=False)
        rollout.take(self.host.answer(Reset(seed)))
        self.controller.reset()
        period, tick = 1 / self.rate, self.clock()
        while not rollout.is_over:
            began = self._wait_until(tick)
            action = self.controller.step(rollout.observation(), began)
            done = self.clock()
            if self.controller.state == FAULT:
                return {"seed": seed, "stopped": self.controller.log[-1].message}
            if action is not None:
                rollout.take(self.host.answer(action))
            timing.late_ms.append(1000 * (began - tick))
            timing.latency_ms.append(1000 * (done - began))
            timing.environment_ms.append(1000 * (self.clock() - done))
            num_passed = int((self.clock() - tick) / period)  # ticks that this step took
            timing.num_missed += max(num_passed - 1, 0) + int(done - tick > period)
            tick += period * max(num_passed, 1)
        return _summary(rollout)

    def _wait_until(self, tick: float) -> float:
        """Returns the time at which it woke up."""
        while (left := tick - self.clock()) > 0:
            self.sleep(left)
        return self.clock()


def _summary(rollout: Rollout) -> dict[str, Any]:
    outcome = rollout.outcome()
    if isinstance(outcome, CrashedEpisode):
        return {"seed": outcome.seed, "crashed": outcome.error}
    facts: Mapping[str, Any] = {"success": outcome.success, "return": outcome.episode_return, "length": outcome.length}
    return {"seed": outcome.seed, **facts}


def period_limits(card: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Returns limits that let a controller step at another rate than the card's: ages and gaps of two periods.

    Raises:
        RunError: the rate is no rate.
    """
    if not rate > 0:
        raise RunError(f"rate ({rate}) must be above 0, in steps a second; change --rate")
    if rate == card["control_hz"]:
        return {}
    observations = {spec["name"]: {"max_age_s": 2 / rate} for spec in card["observations"]}
    return {"observations": observations, "safety": {"max_gap_s": 2 / rate}}
