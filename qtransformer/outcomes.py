"""What came of the episodes of an evaluation: success rates with intervals, a task and overall; crashes apart.

Success at the end: the environment's `info["success"]` at the last step; it is the headline (`success`, `successes`,
`success_rate`). Success once: at any step. Where an environment says nothing, both are a return above 0. A crashed
episode is neither a success nor a failure: it is in no rate. Pure functions of plain data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WORD_RULE = "info['success'] at the last step"
RETURN_RULE = "return above 0, for want of a word in info"


@dataclass(frozen=True)
class EpisodeOutcome:
    """One episode that was played to its end."""

    seed: int
    success: bool
    """At the last step: the headline."""
    episode_return: float
    length: int
    success_once: bool
    """At any step."""
    task: str | None = None
    """What the environment called it at the reset, `info["task"]`, or else its instruction."""


@dataclass(frozen=True)
class CrashedEpisode:
    """One episode that the environment could not play to its end."""

    seed: int
    length: int
    """Steps before the crash."""
    error: str
    task: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """The outcome of all episodes, in the order of their seeds."""

    environment_id: str
    outcomes: tuple[EpisodeOutcome, ...]
    latency_ms: tuple[float, ...]
    """Wall time of each call of the policy; one call serves all running environments."""
    success_rule: str
    """What counted as a success: the environment's own word, or else a positive return."""
    crashes: tuple[CrashedEpisode, ...] = ()
    stopped: str | None = None
    """Why not all episodes were played; None where all were."""

    def summary(self) -> dict[str, Any]:
        """Returns counts, success rates with 95 % Wilson intervals, return, length and latency; JSON-able.

        `episodes` counts those that were played to their end, `crashed` the others; `tasks` is empty where the
        environment names none.
        """
        tasks = dict.fromkeys(each.task for each in (*self.outcomes, *self.crashes) if each.task is not None)
        return {
            "environment_id": self.environment_id,
            "success_rule": self.success_rule,
            **_tally(self.outcomes, self.crashes),
            "mean_return": float(np.mean([each.episode_return for each in self.outcomes])),
            "mean_length": float(np.mean([each.length for each in self.outcomes])),
            "latency_ms": {
                "median": float(np.median(self.latency_ms)),
                "p99": float(np.percentile(self.latency_ms, 99)),
            },
            "tasks": {task: _tally(_of(task, self.outcomes), _of(task, self.crashes)) for task in sorted(tasks)},
            "stopped": self.stopped,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the summary and every episode."""
        outcomes, crashes = ([asdict(each) for each in episodes] for episodes in (self.outcomes, self.crashes))
        return {**self.summary(), "outcomes": outcomes, "crashes": crashes}


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion (Wilson 1927)."""
    z = 1.959963984540054
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    margin = z * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    scale = 1 + z * z / episodes
    low, high = (centre - margin) / scale, (centre + margin) / scale
    return max(0.0, min(rate, low)), min(1.0, max(rate, high))  # rounding must not push the rate out at 0 and 1


def _tally(outcomes: Sequence[EpisodeOutcome], crashes: Sequence[CrashedEpisode]) -> dict[str, Any]:
    at_end, once = (sum(getattr(each, name) for each in outcomes) for name in ("success", "success_once"))
    return {**_rate(at_end, len(outcomes)), "success_once": _rate(once, len(outcomes)), "crashed": len(crashes)}


def _rate(successes: int, episodes: int) -> dict[str, Any]:
    """Returns the rate with its interval; nothing is known of a task whose episodes all crashed."""
    rate, interval = (successes / episodes, wilson_interval(successes, episodes)) if episodes else (None, (0.0, 1.0))
    return {"successes": successes, "episodes": episodes, "success_rate": rate, "interval": list(interval)}


def _of(task: str, episodes: Iterable[Any]) -> list[Any]:
    return [each for each in episodes if each.task == task]
