"""Success rates in simulation: one fixed seed an episode, the same outcome however many environments run side by side.

Episode i is played with seed `seed + i`, by whichever environment is free; the policy sees rows that do not depend on
each other. It must not know torch: a bundle is evaluated in a process that never loads it.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from qtransformer.batch import flatten_observation
from qtransformer.config import RunError

Observation = Mapping[str, np.ndarray]


@runtime_checkable
class Policy(Protocol):
    """What can be evaluated: it holds the history of `num_envs` episodes, one a slot."""

    def reset(self, slot: int) -> None:
        """Forgets the history of `slot`: a new episode starts there."""
        ...

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> np.ndarray:
        """Returns one action a slot, (len(slots), action_dim)."""
        ...


class EvaluationError(RunError):
    """The evaluation cannot start; the message says what to do."""


@dataclass(frozen=True)
class EpisodeOutcome:
    """One played episode."""

    seed: int
    success: bool
    episode_return: float
    length: int


@dataclass(frozen=True)
class Evaluation:
    """The outcome of all episodes, in the order of their seeds."""

    environment_id: str
    outcomes: tuple[EpisodeOutcome, ...]
    latency_ms: tuple[float, ...]
    """Wall time of each call of the policy; one call serves all running environments."""
    success_rule: str
    """What counted as a success: the environment's own word, or else a positive return."""

    def summary(self) -> dict[str, Any]:
        """Returns counts, success rate with its 95 % Wilson interval, return, length and latency; JSON-able."""
        successes, episodes = sum(each.success for each in self.outcomes), len(self.outcomes)
        return {
            "environment_id": self.environment_id,
            "success_rule": self.success_rule,
            "successes": successes,
            "episodes": episodes,
            "success_rate": successes / episodes,
            "interval": list(wilson_interval(successes, episodes)),
            "mean_return": float(np.mean([each.episode_return for each in self.outcomes])),
            "mean_length": float(np.mean([each.length for each in self.outcomes])),
            "latency_ms": {
                "median": float(np.median(self.latency_ms)),
                "p99": float(np.percentile(self.latency_ms, 99)),
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the summary and every episode."""
        return {**self.summary(), "outcomes": [asdict(each) for each in self.outcomes]}


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion (Wilson 1927)."""
    z = 1.959963984540054
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    margin = z * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    scale = 1 + z * z / episodes
    low, high = (centre - margin) / scale, (centre + margin) / scale
    return max(0.0, min(rate, low)), min(1.0, max(rate, high))  # rounding must not push the rate out at 0 and 1


def make_environment(environment_id: str, kwargs: Mapping[str, Any], imports: Sequence[str]) -> gymnasium.Env:
    """Returns the environment, after importing the modules that register it.

    Raises:
        EvaluationError: the id is unknown, or a module cannot be imported.
    """
    try:
        for module in imports:
            importlib.import_module(module)
        return gymnasium.make(environment_id, **kwargs)
    except ImportError as error:
        raise EvaluationError(f"--import {error.name}: {error}; install the package that registers the id") from error
    except gymnasium.error.Error as error:
        raise EvaluationError(
            f"environment id ({environment_id!r}) is unknown: {error}; name the package that registers it with --import"
        ) from error


@dataclass(frozen=True)
class Plan:
    """Which episodes to play, and how many at a time."""

    episodes: int
    num_envs: int
    seed: int
    """Of the first episode; the next has seed + 1."""
    ignored_observations: tuple[str, ...] = ()
    """Keys of the environment that the policy was trained without, on purpose."""

    def __post_init__(self) -> None:
        for name in ("episodes", "num_envs"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"{name} ({getattr(self, name)}) must be at least 1; change it")
        if self.seed < 0:
            raise EvaluationError(f"seed ({self.seed}) must be at least 0; change it")


def evaluate(
    policy: Policy,
    make: Callable[[], gymnasium.Env],
    plan: Plan,
    on_episode: Callable[[EpisodeOutcome], None] = lambda outcome: None,
) -> Evaluation:
    """Plays the episodes of `plan`, and calls `on_episode` as each ends."""
    waiting = iter(range(plan.seed, plan.seed + plan.episodes))
    slots = [_Slot(index, make(), plan.ignored_observations) for index in range(min(plan.num_envs, plan.episodes))]
    environment_id = slots[0].environment.spec.id if slots[0].environment.spec else "unregistered"
    outcomes, latency_ms = [], []
    for slot in slots:
        slot.start(policy, waiting)
    while running := [slot for slot in slots if slot.observation is not None]:
        started = time.perf_counter()
        actions = policy.act([slot.index for slot in running], [slot.observed() for slot in running])
        latency_ms.append(1000 * (time.perf_counter() - started))
        for slot, action in zip(running, actions, strict=True):
            outcome = slot.step(action)
            if outcome is not None:
                outcomes.append(outcome)
                on_episode(outcome)
                slot.start(policy, waiting)
    for slot in slots:
        slot.environment.close()
    ordered = tuple(sorted(outcomes, key=lambda each: each.seed))
    return Evaluation(environment_id, ordered, tuple(latency_ms), slots[0].success_rule)


class _Slot:
    """One environment and the episode it plays."""

    def __init__(self, index: int, environment: gymnasium.Env, ignored: tuple[str, ...]) -> None:
        self.index, self.environment, self.ignored = index, environment, ignored
        self.observation: Any = None
        self.success_rule = ""

    def start(self, policy: Policy, seeds: Iterator[int]) -> None:
        """Begins the next waiting episode; without one the slot stays idle."""
        self.observation = None
        seed = next(seeds, None)
        if seed is not None:
            self.seed, self.episode_return, self.length = seed, 0.0, 0
            self.observation, _ = self.environment.reset(seed=seed)
            policy.reset(self.index)

    def observed(self) -> Observation:
        """Returns the newest observation by key as in a log: nested keys joined by "/", a plain array is `state`."""
        leaves = flatten_observation(self.observation)
        return {key: value for key, value in leaves.items() if key not in self.ignored}

    def step(self, action: np.ndarray) -> EpisodeOutcome | None:
        """Advances the episode; returns its outcome when it ends."""
        self.observation, reward, terminated, truncated, info = self.environment.step(action)
        self.episode_return += float(reward)
        self.length += 1
        if not (terminated or truncated):
            return None
        has_word = "success" in info
        self.success_rule = (
            "info['success'] at the last step" if has_word else "return above 0, for want of a word in info"
        )
        success = bool(info["success"] if has_word else self.episode_return > 0)
        return EpisodeOutcome(self.seed, success, self.episode_return, self.length)
