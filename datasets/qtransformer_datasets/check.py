"""Finding what would spoil training before it starts: each check is a small function over all steps.

Special about this file: a finding names the first places (file, episode, key, step) and counts the rest, so a broken
sensor is one line and not thousands. An error makes training senseless; a warning is for the user to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from . import checks_episodes, checks_images, checks_numbers, checks_parts
from .finding import BLOCKING, Finding, finding, places_of
from .schema import DatasetError, EpisodeDataset
from .steps import Steps, sound_steps

__all__ = ["BLOCKING", "Finding", "check_dataset", "check_environment", "check_split", "raise_on_errors"]

Limits: TypeAlias = np.ndarray | Sequence[float]

_CHECKS: tuple[Callable[[Steps], Iterator[Finding]], ...] = (
    checks_numbers.check_finite,
    checks_numbers.check_action_limits,
    checks_numbers.check_rewards,
    checks_episodes.check_early_end,
    checks_episodes.check_time_limits,
    checks_episodes.check_reward_shift,
    checks_episodes.check_final_observations,
    checks_episodes.check_tail,
    checks_parts.check_duplicates,
    checks_parts.check_shard_drift,
    checks_parts.check_units,
    checks_images.check_frozen,
    checks_numbers.check_idle,
    checks_numbers.check_constants,
)


def check_dataset(dataset: EpisodeDataset) -> list[Finding]:
    """Returns all problems found, errors first; empty for a sound dataset.

    Episodes without steps or with arrays of contradicting lengths are reported, and left out of every other check.

    Raises:
        DatasetError: an image cannot be read from its file.
    """
    findings = list(_check_shape(dataset))
    steps = sound_steps(dataset)
    if len(steps):
        with np.errstate(all="ignore"):  # a NaN is reported by its own check
            findings += [each for check in _CHECKS for each in check(steps)]
    return sorted(findings, key=lambda each: each.severity)


def check_environment(dataset: EpisodeDataset, low: Limits, high: Limits) -> list[Finding]:
    """Returns what contradicts the action limits of the environment in which the policy will act.

    Args:
        dataset: the log.
        low: least action of the environment, dimension by dimension.
        high: greatest action.
    """
    steps = sound_steps(dataset)
    limits = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return list(checks_numbers.check_environment_limits(steps, *limits)) if len(steps) else []


def check_split(train: EpisodeDataset, held_out: EpisodeDataset) -> list[Finding]:
    """Returns what makes the held-out episodes no test of the others."""
    return list(checks_parts.check_overlap(train, held_out))


def raise_on_errors(findings: Iterable[Finding], allow: Collection[str] = ()) -> None:
    """Raises the errors among the findings as one, save those whose code is allowed.

    Raises:
        DatasetError: there is at least one error; the message holds all of them. Or an allowed code blocks nothing.
    """
    unknown = [code for code in allow if code not in BLOCKING]
    if unknown:
        raise DatasetError(f"allow ({', '.join(unknown)}) must name codes that block training: {', '.join(BLOCKING)}")
    errors = [each for each in findings if each.severity == "error" and each.code not in allow]
    if errors:
        raise DatasetError("\n".join(f"{each.code}: {each.sentence}" for each in errors))


def _check_shape(dataset: EpisodeDataset) -> Iterator[Finding]:
    empty = [episode.source for episode in dataset.episodes if not episode.num_steps]
    if empty:
        places = places_of(empty)
        yield finding(
            "empty-episode",
            f"{places} has no steps",
            "there is nothing to learn from it",
            "remove it or record it again",
            places,
        )
    wrong = [f"{episode.source}: {text}" for episode in dataset.episodes for text in episode.length_problems()]
    if wrong:
        places = places_of(wrong)
        yield finding(
            "wrong-length",
            str(places),
            "the steps cannot be matched",
            "record or convert these episodes again",
            places,
        )
