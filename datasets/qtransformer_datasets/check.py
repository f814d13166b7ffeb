"""Finding what would spoil training before it starts: each check is a small function over the whole dataset.

Special about this file: a finding names the first place (file, episode, key, step) and counts the rest, so a broken
sensor is one line and not thousands. An error makes training senseless; a warning is for the user to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .schema import DatasetError, Episode, EpisodeDataset, fingerprint

LIMIT_TOLERANCE = 1e-5  # of a dimension's range: float32 rounding, no more


@dataclass(frozen=True)
class Finding:
    """One kind of problem, with the first place where it occurs."""

    severity: Literal["error", "warning"]
    code: str
    message: str


def check_dataset(dataset: EpisodeDataset) -> list[Finding]:
    """Returns all problems found, errors first; empty for a sound dataset."""
    findings = [finding for check in _CHECKS for finding in check(dataset)]
    return sorted(findings, key=lambda finding: finding.severity)


def raise_on_errors(findings: Iterable[Finding]) -> None:
    """Raises the errors among the findings as one.

    Raises:
        DatasetError: there is at least one error; the message holds all of them.
    """
    errors = [f"{finding.code}: {finding.message}" for finding in findings if finding.severity == "error"]
    if errors:
        raise DatasetError("\n".join(errors))


def _check_empty(dataset: EpisodeDataset) -> Iterator[Finding]:
    places = [episode.source for episode in dataset.episodes if not episode.num_steps]
    if places:
        yield Finding("error", "empty-episode", f"{_first(places)} has no steps; remove it or record it again")


def _check_lengths(dataset: EpisodeDataset) -> Iterator[Finding]:
    places = [f"{episode.source}: {text}" for episode in dataset.episodes for text in episode.length_problems()]
    if places:
        yield Finding(
            "error", "wrong-length", f"{_first(places)}; the steps cannot be matched: record or convert it again"
        )


def _check_finite(dataset: EpisodeDataset) -> Iterator[Finding]:
    keys = [f"observations/{each.name}" for each in dataset.spec.observations]
    for key in [*keys, "actions", "rewards"]:
        places = _places(dataset, key, lambda rows: ~np.isfinite(rows))
        if places:
            message = (
                f"{_first(places)} is NaN or infinite, and one such number destroys the network; drop these episodes"
            )
            yield Finding("error", "not-finite", message)


def _check_limits(dataset: EpisodeDataset) -> Iterator[Finding]:
    low, high = np.array(dataset.spec.actions.low), np.array(dataset.spec.actions.high)
    slack = LIMIT_TOLERANCE * (high - low)
    places = _places(dataset, "actions", lambda rows: (rows < low - slack) | (rows > high + slack))
    if places:
        actions = np.concatenate([episode.actions for episode in dataset.episodes])
        reach = f"{_brief(np.nanmin(actions, axis=0))} to {_brief(np.nanmax(actions, axis=0))}"
        message = (
            f"{_first(places)} lies outside the limits {_brief(low)} to {_brief(high)} (data: {reach}), so the "
            "environment executed something else; log executed actions, or correct the limits"
        )
        yield Finding("error", "action-limits", message)


def _check_rewards(dataset: EpisodeDataset) -> Iterator[Finding]:
    if not any(np.any(episode.rewards) for episode in dataset.episodes):
        message = (
            f"{dataset.path}: rewards are zero at every step of all {dataset.num_episodes} episodes, so there is "
            "nothing to learn from; add successful episodes or label the rewards"
        )
        yield Finding("error", "no-reward", message)


def _check_constants(dataset: EpisodeDataset) -> Iterator[Finding]:
    for each in dataset.spec.observations:
        rows = [episode.observations[each.name].reshape(-1, int(np.prod(each.shape))) for episode in dataset.episodes]
        low, high = (
            reduce([reduce(array, axis=0) for array in rows if len(array)], axis=0) for reduce in (np.min, np.max)
        )
        names = [_element(each.elements, index) for index in np.flatnonzero(low == high).tolist()]
        if names:
            message = (
                f"{dataset.path}: observations/{each.name} never changes in {', '.join(names)}; "
                "harmless if meant so, else look for a dead sensor"
            )
            yield Finding("warning", "constant-observation", message)


def _check_duplicates(dataset: EpisodeDataset) -> Iterator[Finding]:
    seen: dict[str, Episode] = {}
    places = []
    for episode in dataset.episodes:
        twin = seen.setdefault(fingerprint(dataset.spec, (episode,)), episode)
        if twin is not episode:
            places.append(f"{episode.source} equals {twin.source}")
    if places:
        message = f"{_first(places)}; copies weigh double and spoil a held-out set: remove them"
        yield Finding("warning", "duplicate-episode", message)


_CHECKS: tuple[Callable[[EpisodeDataset], Iterator[Finding]], ...] = (
    _check_empty,
    _check_lengths,
    _check_finite,
    _check_limits,
    _check_rewards,
    _check_constants,
    _check_duplicates,
)


def _places(dataset: EpisodeDataset, key: str, is_bad: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Returns "file:episode key step k" for every step with a bad value in the array named by `key`."""
    places = []
    for episode in dataset.episodes:
        bad = is_bad(_array(episode, key))
        steps = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)) if bad.size else []
        places += [f"{episode.source} {key} step {step}" for step in steps]
    return places


def _array(episode: Episode, key: str) -> np.ndarray:
    folder, _, name = key.partition("/")
    return episode.observations[name] if folder == "observations" else getattr(episode, key)


def _first(places: list[str]) -> str:
    return places[0] + (f" (and {len(places) - 1} more places)" if len(places) > 1 else "")


def _element(elements: tuple[str, ...], index: int) -> str:
    return elements[index] if elements else f"[{index}]"


def _brief(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
