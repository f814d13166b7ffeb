"""What the equations of `comparison` say of several methods: every method, every pair, one stated error rate.

A method is one policy, or several trainings that differ in nothing but their seed. Two single policies are compared
episode by episode, exactly; as soon as a method has several trainings, those count as drawn at random, too. Holm's
correction keeps the probability of any false verdict at the error rate, however many pairs there are. That holds for
one look at the figures: whoever plays more episodes because of them judges by new seeds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from qtransformer.comparison import (
    ERROR_RATE,
    POWER,
    crossed_difference,
    holm,
    mcnemar_p,
    paired_episodes,
    paired_interval,
    probability_of_improvement,
)
from qtransformer.config import RunError
from qtransformer.outcomes import wilson_interval

EXACT, CROSSED = "exact McNemar", "Student's t over trainings and episodes"


@dataclass(frozen=True)
class Method:
    """What one method did: a policy, or several trainings, in the same episodes as all others."""

    name: str
    trainings: tuple[str, ...]
    """Where each came from."""
    outcomes: Float[np.ndarray, "trainings episodes"]
    """1.0 where a training succeeded, else 0.0."""

    @property
    def rate(self) -> float:
        """Mean success over all trainings and episodes."""
        return float(self.outcomes.mean())

    def interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of the success rate: Wilson's, or Student's if other trainings might be drawn."""
        if len(self.trainings) == 1:
            return wilson_interval(round(self.outcomes.sum()), self.outcomes.size)
        low, high = crossed_difference(self.outcomes, np.zeros((1, self.outcomes.shape[1]))).interval()
        return max(0.0, low), high

    def to_json(self) -> dict[str, Any]:
        """Returns the rate, and every training with its own and all outcomes in the order of the seeds."""
        trainings = []
        for name, outcomes in zip(self.trainings, self.outcomes, strict=True):
            successes, episodes = round(outcomes.sum()), outcomes.size
            rate = {"successes": successes, "episodes": episodes, "success_rate": successes / episodes}
            interval = list(wilson_interval(successes, episodes))
            trainings.append(
                {"path": name, **rate, "interval": interval, "outcomes": [bool(each) for each in outcomes]}
            )
        return {"name": self.name, "success_rate": self.rate, "interval": list(self.interval()), "trainings": trainings}


@dataclass(frozen=True)
class Pair:
    """Two methods in the same episodes; what is said of A holds for B with the sign turned."""

    a: str
    b: str
    test: str
    difference: float
    """Success rate of A less that of B."""
    interval: tuple[float, float]
    """Of the difference, 95 %, for this pair alone."""
    p_value: float
    episodes_needed: int | None
    """A training, to see the asked difference; None where more trainings are needed, not more episodes."""
    only_a: int | None = None
    """Episodes in which A alone succeeded; only for two single policies."""
    only_b: int | None = None
    probability_of_improvement: tuple[float, tuple[float, float]] | None = None
    """P(training of A > training of B) and its interval; only for two methods of several trainings."""
    adjusted_p_value: float = 1.0
    """Holm's, over all pairs."""

    @property
    def better(self) -> str | None:
        """The name of the better method, None where no difference can be told."""
        if self.adjusted_p_value > ERROR_RATE:
            return None
        return self.a if self.difference > 0 else self.b

    def to_json(self, episodes: int) -> dict[str, Any]:
        """Returns all figures and the verdict; `episodes` were played a training."""
        improvement = self.probability_of_improvement
        return {
            "a": self.a,
            "b": self.b,
            "better": self.better,
            "difference": self.difference,
            "interval": list(self.interval),
            "test": self.test,
            "p_value": self.p_value,
            "adjusted_p_value": self.adjusted_p_value,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "episodes_needed": self.episodes_needed,
            "more_episodes": None if self.episodes_needed is None else max(0, self.episodes_needed - episodes),
            "probability_of_improvement": improvement and {"value": improvement[0], "interval": list(improvement[1])},
        }


@dataclass(frozen=True)
class Comparison:
    """All methods in the order in which they were named, and all pairs of them."""

    methods: tuple[Method, ...]
    pairs: tuple[Pair, ...]
    points: float
    """The difference, in percentage points, that `Pair.episodes_needed` is about."""

    @property
    def episodes(self) -> int:
        """Played by every training."""
        return self.methods[0].outcomes.shape[1]

    def to_json(self) -> dict[str, Any]:
        """Returns everything, and how it was judged."""
        return {
            "episodes": self.episodes,
            "error_rate": ERROR_RATE,
            "correction": "Holm",
            "power": POWER,
            "points": self.points,
            "methods": [each.to_json() for each in self.methods],
            "pairs": [each.to_json(self.episodes) for each in self.pairs],
        }


def require_comparable(num_methods: int, points: float) -> None:
    """Stops before anything is played for a comparison that cannot be made.

    Raises:
        RunError: there are not two methods, or `points` is no difference.
    """
    if num_methods < 2:
        raise RunError(f"policies ({num_methods}) must be at least 2 to be compared; name another")
    if not 0 < points < 100:
        raise RunError(f"points ({points}) must be above 0 and below 100 percentage points; change --points")


def compare(methods: Sequence[Method], points: float) -> Comparison:
    """Compares every two of `methods`, and says how many episodes would show a difference of `points`.

    Raises:
        RunError: there are not two methods, `points` is no difference, or several trainings played a single episode.
    """
    require_comparable(len(methods), points)
    if methods[0].outcomes.shape[1] < 2 and any(len(each.trainings) > 1 for each in methods):
        raise RunError("episodes (1) must be at least 2 to compare several trainings; play more")
    names = list(combinations(methods, 2))
    pairs = [_pair(a, b, points / 100, ERROR_RATE / len(names)) for a, b in names]
    adjusted = holm([each.p_value for each in pairs])
    judged = tuple(replace(pair, adjusted_p_value=p) for pair, p in zip(pairs, adjusted, strict=True))
    return Comparison(tuple(methods), judged, points)


def _pair(a: Method, b: Method, difference: float, error_rate: float) -> Pair:
    """Returns the pair, not yet corrected; the episodes that it asks for stand Holm's strictest step, `error_rate`."""
    if len(a.trainings) == len(b.trainings) == 1:
        only_a, only_b = int(np.sum(a.outcomes > b.outcomes)), int(np.sum(a.outcomes < b.outcomes))
        episodes = a.outcomes.size
        return Pair(
            a.name,
            b.name,
            EXACT,
            (only_a - only_b) / episodes,
            paired_interval(only_a, only_b, episodes),
            mcnemar_p(only_a, only_b),
            paired_episodes(difference, (only_a + only_b) / episodes, error_rate),
            only_a,
            only_b,
        )
    crossed, are_several = crossed_difference(a.outcomes, b.outcomes), min(len(a.trainings), len(b.trainings)) > 1
    rates = (each.outcomes.mean(axis=1) for each in (a, b))
    return Pair(
        a.name,
        b.name,
        CROSSED,
        crossed.difference,
        crossed.interval(),
        crossed.p_value(),
        crossed.episodes(difference, a.outcomes.shape[1], error_rate),
        probability_of_improvement=probability_of_improvement(*rates) if are_several else None,
    )
