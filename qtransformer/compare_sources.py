"""Where `compare` takes outcomes from: files of `evaluate --json` as they are, runs and bundles by playing them.

All must have met the same episodes: one environment, one set of seeds, one rule of success. A seed whose episode
crashed for one of them is left out for all. What was played and what was read pass through the same document. It must
not know statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.comparison_pairs import Method
from qtransformer.config import RunError
from qtransformer.console import progress
from qtransformer.evaluation import Plan, evaluate, make_environment
from qtransformer.loading import OpenedPolicy, open_policy
from qtransformer.training_log import warn_if_log_changed

_FEW = 5  # seeds that a message names


@dataclass(frozen=True)
class Play:
    """How runs and bundles are played."""

    plan: Plan
    imports: tuple[str, ...]
    environment_id: str | None
    """Another environment than the one that the logs came from."""


@dataclass(frozen=True)
class Outcomes:
    """What one policy did."""

    environment_id: str
    success_rule: str
    successes: Mapping[int, bool]
    """By seed, where the episode was played to its end."""
    crashed: frozenset[int]
    """Seeds of the other episodes."""
    tasks: Mapping[int, str | None] = field(default_factory=dict)
    """By seed, what the environment called it."""

    @property
    def seeds(self) -> set[int]:
        """All that were played."""
        return {*self.successes, *self.crashed}


@dataclass(frozen=True)
class Gathered:
    """What all did in the same episodes, in the order of the seeds."""

    environment_id: str
    success_rule: str
    seeds: tuple[int, ...]
    crashed: tuple[int, ...]
    """Seeds that are left out, since an episode of theirs crashed."""
    methods: tuple[Method, ...]
    tasks: tuple[str | None, ...] = ()
    """What the environment called each of the episodes."""

    def title(self) -> str:
        """Returns what was played, in words."""
        left_out = f", {len(self.crashed)} left out (crashed)" if self.crashed else ""
        return f"{len(self.seeds)} episodes in {self.environment_id}{left_out}"

    def to_json(self) -> dict[str, Any]:
        """Returns what was played."""
        where = {"environment_id": self.environment_id, "success_rule": self.success_rule}
        return {**where, "seeds": list(self.seeds), "crashed": list(self.crashed)}


def parse_methods(arguments: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Returns the paths of each method by its name: PATH is named by its path, NAME=PATH,PATH holds several trainings.

    Raises:
        RunError: a name or a path is missing, is there twice, or leads nowhere.
    """
    methods: dict[str, tuple[Path, ...]] = {}
    for argument in arguments:
        name, paths = argument, (argument,)
        if "=" in argument and not Path(argument).exists():
            name, _, listed = argument.partition("=")
            paths = tuple(listed.split(","))
        if not (name and all(paths)):
            raise RunError(f"{argument}: must be PATH or NAME=PATH,PATH, got an empty name or path; write it out")
        if name in methods:
            raise RunError(f"{name}: must be named once, got it twice; give two names: x={paths[0]} y={paths[0]}")
        if len(set(paths)) < len(paths):
            raise RunError(f"{argument}: must name every training once, got one twice; it would count as two")
        methods[name] = tuple(map(Path, paths))
        for path in methods[name]:
            if not path.exists():
                raise RunError(
                    f"{path}: must be a run, a bundle or a file of `evaluate --json`, got nothing there; "
                    "check the path, and write several trainings as NAME=PATH,PATH"
                )
    return methods


def gather(methods: Mapping[str, Sequence[Path]], play: Play) -> Gathered:
    """Returns what all methods did; nothing is played before files and environments are known to agree.

    Raises:
        RunError, ControllerError: something cannot be read or played, or they met different episodes.
    """
    paths = list(dict.fromkeys(path for each in methods.values() for path in each))
    played = {path: read_outcomes(path) for path in paths if not path.is_dir()}
    policies = {path: open_policy(path) for path in paths if path.is_dir()}
    environments = {path: policy.environment(play.environment_id) for path, policy in policies.items()}
    ids = {path: played[path].environment_id if path in played else environments[path][0] for path in paths}
    _require_same("environments", ids)
    _require_same("settings of the environment", {path: str(kwargs) for path, (_, kwargs) in environments.items()})
    planned = set(range(play.plan.seed, play.plan.seed + play.plan.episodes))
    _require_same_seeds({path: played[path].seeds if path in played else planned for path in paths})
    for path, policy in policies.items():
        warn_if_log_changed(policy.origin)
        played[path] = _play(policy, play)
    return in_one_table(methods, played)


def in_one_table(methods: Mapping[str, Sequence[Path]], played: Mapping[Path, Outcomes]) -> Gathered:
    """Returns what was played for each method, side by side.

    Raises:
        RunError: they met different episodes, or one crashed in each of them.
    """
    _require_same("environments", {path: each.environment_id for path, each in played.items()})
    _require_same("rules of success", {path: each.success_rule for path, each in played.items()})
    _require_same_seeds({path: each.seeds for path, each in played.items()})
    first, crashed = next(iter(played.values())), set().union(*(each.crashed for each in played.values()))
    seeds = tuple(sorted(first.seeds - crashed))
    if not seeds:
        raise RunError(f"every episode crashed for one policy at least ({len(crashed)}); correct the environment")

    def table(paths: Sequence[Path]) -> np.ndarray:
        return np.array([[float(played[path].successes[seed]) for seed in seeds] for path in paths])

    named = tuple(Method(name, tuple(map(str, each)), table(each)) for name, each in methods.items())
    tasks = tuple(first.tasks.get(seed) for seed in seeds)
    return Gathered(first.environment_id, first.success_rule, seeds, tuple(sorted(crashed)), named, tasks)


def read_outcomes(path: Path) -> Outcomes:
    """Returns what `evaluate --json` printed into a file.

    Raises:
        RunError: it is something else.
    """
    try:
        return outcomes_of(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunError(f"{path}: must be what `evaluate --json` prints, got something else ({reason})") from error


def outcomes_of(document: Any) -> Outcomes:
    """Returns what `Evaluation.to_json` holds; files of earlier versions tell of no crashes.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the document is something else.
    """
    if document.get("stopped"):
        raise ValueError(f"not all episodes: {document['stopped']}")
    successes = {each["seed"]: each["success"] for each in document["outcomes"]}
    crashed = frozenset(each["seed"] for each in document.get("crashes", ()))
    num_episodes = len(document["outcomes"]) + len(document.get("crashes", ()))
    if not num_episodes or len({*successes, *crashed}) < num_episodes:
        raise ValueError("outcomes must be episodes with a seed of its own each")
    if {type(each) for each in (*successes, *crashed)} != {int} or {type(each) for each in successes.values()} - {bool}:
        raise ValueError("a seed must be an integer, success must be true or false")
    tasks = {each["seed"]: None if each.get("task") is None else str(each["task"]) for each in document["outcomes"]}
    return Outcomes(str(document["environment_id"]), str(document["success_rule"]), successes, crashed, tasks)


def _play(opened: OpenedPolicy, play: Play) -> Outcomes:
    plan = replace(play.plan, ignored_observations=opened.ignored_observations)
    make = partial(make_environment, *opened.environment(play.environment_id), play.imports)
    with progress(f"compare: {opened.path}", plan.episodes) as advance:
        evaluation = evaluate(opened.policy, make, plan, on_episode=lambda _: advance())
    return outcomes_of(evaluation.to_json())


def _require_same(what: str, values: Mapping[Path, str]) -> None:
    """Raises unless all values are one."""
    _require_agreement(what, values, lambda one, other: f"{one!r} and {other!r}")


def _require_same_seeds(seeds: Mapping[Path, Collection[int]]) -> None:
    def explain(one: Collection[int], other: Collection[int]) -> str:
        parts = [(set(one) - set(other), "only the first has"), (set(other) - set(one), "only the second has")]
        return "; ".join(f"{words} {_few(different)}" for different, words in parts if different)

    _require_agreement("seeds", seeds, explain)


def _require_agreement(what: str, values: Mapping[Path, Any], explain: Callable[[Any, Any], str]) -> None:
    (first, value), *others = values.items() or [(Path(), None)]
    for path, other in others:
        if other != value:
            raise RunError(
                f"{what} of {first} and {path} must be the same, got {explain(value, other)}; "
                "compare what was evaluated alike (--env-id, --seed, --episodes)"
            )


def _few(seeds: Collection[int]) -> str:
    named = ", ".join(map(str, sorted(seeds)[:_FEW]))
    return named if len(seeds) <= _FEW else f"{named}, ... ({len(seeds)} seeds)"
