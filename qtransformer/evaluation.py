"""Success rates in simulation: one fixed seed an episode, the same outcome however many environments run side by side.

Episode i is played with seed `seed + i`, by whichever environment is free; the policy sees rows that do not depend on
each other, and whoever listens hears of the episodes in the order of their seeds. An episode whose environment crashes
is counted apart. It must not know torch: a bundle is evaluated in a process that never loads it.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from qtransformer.config import RunError
from qtransformer.outcomes import RETURN_RULE, WORD_RULE, CrashedEpisode, EpisodeOutcome, Evaluation
from qtransformer.rollout import Observation, Rollout
from qtransformer.vectorization import AsyncEnvironments, Reset, SyncEnvironments, Vectorization, open_environments

# An absolute path, one of a home or drive, one that leads up, or module:name.
_PLACE = re.compile(r"^[/~.\\]|^\w:[\\/]|(^|[/\\])\.\.([/\\]|$)|^[A-Za-z_][\w.]*:\S+$")


@runtime_checkable
class Policy(Protocol):
    """What can be evaluated: it holds the history of `num_envs` episodes, one a slot."""

    def reset(self, slot: int) -> None:
        """Forgets the history of `slot`: a new episode starts there."""
        ...

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> np.ndarray:
        """Returns one action a slot, (len(slots), action_dim)."""
        ...


@runtime_checkable
class ValuingPolicy(Policy, Protocol):
    """A policy that can tell what it expects of its actions."""

    def q_value(self, slot: int) -> float:
        """Returns Q in (0, 1) of the last action of `slot`, all its dimensions together."""
        ...


class EvaluationError(RunError):
    """The evaluation cannot start, or found nothing to judge; the message says what to do."""


def make_environment(environment_id: str, kwargs: Mapping[str, Any], imports: Sequence[str]) -> gymnasium.Env:
    """Returns the environment, after importing the modules that register it.

    Id and settings come from a log. Gymnasium imports what stands before a colon in an id, so that must be among
    `imports`; a setting must be no path, and no such id.

    Raises:
        EvaluationError: the id is unknown, a module cannot be imported or was not asked for, or a setting leads out.
    """
    for name, value in kwargs.items():
        _refuse_places(name, value)
    module, colon, _ = environment_id.rpartition(":")
    if colon and module not in imports:
        raise EvaluationError(
            f"environment id ({environment_id!r}) would import {module!r}; if you trust it, name it with --import"
        )
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


def _refuse_places(name: str, value: Any) -> None:
    """Makes sure that no text in a setting names a file, or a module to import.

    Raises:
        EvaluationError: one does.
    """
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for each in value:
            _refuse_places(name, each)
    elif isinstance(value, str) and _PLACE.search(value):
        raise EvaluationError(
            f"environment setting {name} ({value!r}) of the log names a file or a module, and these are not followed; "
            "register an id with this setting in a module of yours, and name them with --env-id and --import"
        )


@dataclass(frozen=True)
class Plan:
    """Which episodes to play, and how."""

    episodes: int
    num_envs: int
    seed: int
    """Of the first episode; the next has seed + 1."""
    ignored_observations: tuple[str, ...] = ()
    """Keys of the environment that the policy was trained without, on purpose."""
    vectorization: Vectorization = "sync"
    num_drawn: int = 0
    """Episodes, from the first seed on, whose steps come with pictures."""
    hopeless_below: float | None = None
    """Stop as soon as the success rate must stay below this, even if all episodes to come succeed."""

    def __post_init__(self) -> None:
        for name in ("episodes", "num_envs"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"{name} ({getattr(self, name)}) must be at least 1; change it")
        if self.seed < 0:
            raise EvaluationError(f"seed ({self.seed}) must be at least 0; change it")
        if self.hopeless_below is not None and not 0 < self.hopeless_below <= 1:
            raise EvaluationError(f"stop_when_hopeless ({self.hopeless_below}) must be in (0, 1]; change it")


def evaluate(
    policy: Policy,
    make: Callable[[], gymnasium.Env],
    plan: Plan,
    on_episode: Callable[[EpisodeOutcome | CrashedEpisode], None] = lambda outcome: None,
    listeners: Sequence[Callable[[Rollout], None]] = (),
) -> Evaluation:
    """Plays the episodes of `plan`, and tells of them in the order of their seeds, each as soon as those before ended.

    Args:
        policy: one whose actions do not depend on what else is in the batch.
        make: returns a new environment; with `vectorization="async"` something that pickle can send.
        plan: which episodes, and how.
        on_episode: called with each outcome.
        listeners: each is called with each whole episode, crashed ones included, which is kept in memory for them.

    Raises:
        EvaluationError: every episode crashed.
        RunError: an environment cannot be made, or not be drawn.
    """
    outcomes: list[EpisodeOutcome] = []
    crashes: list[CrashedEpisode] = []
    stopped, rule = None, ""
    with open_environments(plan.vectorization, make, min(plan.num_envs, plan.episodes)) as environments:
        game = _Game(policy, environments, plan, is_kept=bool(listeners))
        for rollout in _in_order(game.play(), plan.seed):
            outcome = rollout.outcome()
            if isinstance(outcome, CrashedEpisode):
                crashes.append(outcome)
            else:
                outcomes.append(outcome)
                rule = rule or (RETURN_RULE if rollout.success is None else WORD_RULE)
            for listen in listeners:
                listen(rollout)
            on_episode(outcome)
            stopped = _hopeless(plan, outcomes, crashes)
            if stopped:
                break
    if not outcomes:
        raise EvaluationError(
            f"every episode crashed ({len(crashes)} of {plan.episodes}), the first, of seed {crashes[0].seed}, after "
            f"{crashes[0].length} steps: {crashes[0].error}; correct the environment"
        )
    id_ = environments.facts.environment_id
    return Evaluation(id_, tuple(outcomes), tuple(game.latency_ms), rule, tuple(crashes), stopped)


class _Game:
    """The policy in all environments: it acts for those in the midst of an episode while the others are reset."""

    def __init__(
        self, policy: Policy, environments: SyncEnvironments | AsyncEnvironments, plan: Plan, is_kept: bool
    ) -> None:
        self._policy, self._environments, self._plan, self._is_kept = policy, environments, plan, is_kept
        self.latency_ms: list[float] = []

    def play(self) -> Iterator[Rollout]:
        """Yields each episode when it is over."""
        plan, render_fps = self._plan, self._environments.facts.render_fps
        waiting, running = iter(range(plan.seed, plan.seed + plan.episodes)), dict[int, Rollout]()
        while True:
            commands: dict[int, Reset | np.ndarray] = dict(self._act(running)) if running else {}
            for slot in range(min(plan.num_envs, plan.episodes)):
                if slot not in running and (seed := next(waiting, None)) is not None:
                    is_drawn = seed - plan.seed < plan.num_drawn
                    commands[slot] = Reset(seed, is_drawn)
                    running[slot] = Rollout(seed, plan.ignored_observations, self._is_kept, is_drawn, render_fps)
                    self._policy.reset(slot)
            if not commands:
                return
            for slot, reply in self._environments.answer(commands).items():
                running[slot].take(reply)
                if running[slot].is_over:
                    yield running.pop(slot)

    def _act(self, running: Mapping[int, Rollout]) -> dict[int, np.ndarray]:
        started, slots = time.perf_counter(), sorted(running)
        actions = self._policy.act(slots, [running[slot].observation() for slot in slots])
        self.latency_ms.append(1000 * (time.perf_counter() - started))
        if self._is_kept:
            for slot, action in zip(slots, actions, strict=True):
                running[slot].actions.append(np.array(action))
                if isinstance(self._policy, ValuingPolicy):
                    running[slot].q_values.append(self._policy.q_value(slot))
        return dict(zip(slots, actions, strict=True))


def _in_order(rollouts: Iterable[Rollout], seed: int) -> Iterator[Rollout]:
    """Yields the episodes by seed, from `seed` on: what is told then does not depend on which of them ended first."""
    early: dict[int, Rollout] = {}
    for rollout in rollouts:
        early[rollout.seed] = rollout
        while seed in early:
            yield early.pop(seed)
            seed += 1


def _hopeless(plan: Plan, outcomes: Sequence[EpisodeOutcome], crashes: Sequence[CrashedEpisode]) -> str | None:
    """Returns why there is no hope left, judging the episodes so far, in the order of their seeds; else None.

    Those of later seeds that ended earlier do not count, so that the result does not depend on `num_envs`.
    """
    to_come = plan.episodes - len(outcomes) - len(crashes)
    if plan.hopeless_below is None or not to_come or not outcomes:
        return None
    best = (sum(each.success for each in outcomes) + to_come) / (len(outcomes) + to_come)
    if best >= plan.hopeless_below:
        return None
    return (
        f"hopeless after {plan.episodes - to_come} of {plan.episodes} episodes: with successes alone from there on "
        f"the rate would be {best:.3g}, below {plan.hopeless_below:g}"
    )
