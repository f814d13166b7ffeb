"""All steps of a dataset laid end to end, so that a check is a few array operations whatever the number of episodes.

        episode           0           1
        step  k           0   1   2   0   1
        steps             0   1   2   3   4          actions, rewards, terminations, truncations
        rows              0   1   2 3 4   5 (6)      observations: one row more where there is a final observation

Special about this file: only numbers are laid out. Images and text stay where they are. It must not know any check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from qtransformer.batch import ObservationSpec

from .finding import Places, places_of
from .schema import Episode, EpisodeDataset

_STILL = 1e-4  # of an element's standard deviation: a smaller change in one step is the noise of a sensor at rest
_NAMED = 8  # elements in one message


class Steps:
    """The steps of the episodes that have any; their arrays must have the right lengths."""

    def __init__(self, dataset: EpisodeDataset, episodes: Sequence[Episode]) -> None:
        self.dataset, self.spec = dataset, dataset.spec
        self.episodes = [episode for episode in episodes if episode.num_steps]
        self.lengths = np.array([episode.num_steps for episode in self.episodes], np.int64)
        self.has_final = np.array([episode.has_final_observation for episode in self.episodes], bool)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.last = self.starts + self.lengths - 1  # step of each episode

    def __len__(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def actions(self) -> np.ndarray:
        """(steps, A)."""
        none = np.zeros((0, self.spec.actions.num_dimensions), np.float32)
        return np.concatenate([none, *(episode.actions for episode in self.episodes)])

    @cached_property
    def rewards(self) -> np.ndarray:
        """(steps,)."""
        return np.concatenate([episode.rewards for episode in self.episodes])

    @cached_property
    def terminations(self) -> np.ndarray:
        """(steps,) bool."""
        return np.concatenate([episode.terminations for episode in self.episodes])

    @cached_property
    def truncations(self) -> np.ndarray:
        """(steps,) bool."""
        return np.concatenate([episode.truncations for episode in self.episodes])

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """(rows, elements) by key: the observations that are numbers."""
        keys = [each.name for each in self.spec.observations if self.episodes and _is_numeric(each, self.episodes[0])]
        return {key: np.concatenate([_flat(episode, key) for episode in self.episodes]) for key in keys}

    @cached_property
    def is_rewarded(self) -> np.ndarray:
        """(steps,) bool: the step pays more than the log's usual step."""
        finite = self.rewards[np.isfinite(self.rewards)]
        return self.rewards > (np.median(finite) if len(finite) else np.inf)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The name of each element of every state, by key, and of each dimension of the "actions"; `[k]` without."""
        named = {each.name: each.elements for each in self.spec.observations if each.name in self.states}
        sizes = {key: rows.shape[1] for key, rows in self.states.items()} | {"actions": self.actions.shape[1]}
        named |= {"actions": self.spec.actions.elements}
        numbered = {key: tuple(f"[{index}]" for index in range(size)) for key, size in sizes.items()}
        return {key: named[key] if len(named[key]) == size else numbered[key] for key, size in sizes.items()}

    @cached_property
    def row_starts(self) -> np.ndarray:
        """(episodes,): the row of each episode's first observation."""
        num_rows = self.lengths + self.has_final
        return np.cumsum(num_rows) - num_rows

    @cached_property
    def has_successor(self) -> np.ndarray:
        """(steps,) bool: the observation after the step is known."""
        known = np.ones(len(self), bool)
        known[self.last[~self.has_final]] = False
        return known

    @cached_property
    def is_still(self) -> np.ndarray:
        """(steps,) bool: there are numbers to be seen, and none changed in the step by more than a sensor's noise."""
        return self._all_rows(
            lambda rows: (np.abs(np.diff(rows, axis=0)) <= _STILL * np.std(rows, axis=0, dtype=np.float64)).all(axis=1)
        )

    @cached_property
    def repeats(self) -> np.ndarray:
        """(steps,) bool: there are numbers to be seen, and those after the step are those before it, bit by bit."""
        return self._all_rows(lambda rows: (rows[1:] == rows[:-1]).all(axis=1))

    @cached_property
    def is_at_rest(self) -> np.ndarray:
        """(steps,) bool: the action is zero, or that of the step before."""
        span = np.subtract(self.spec.actions.high, self.spec.actions.low, dtype=np.float64)
        slack = _STILL * np.where(np.isfinite(span), span, 1.0)
        actions = self.actions.astype(np.float64)
        unchanged = np.zeros(len(actions), bool)
        unchanged[1:] = (np.abs(np.diff(actions, axis=0)) <= slack).all(axis=1)
        unchanged[self.starts] = False
        return unchanged | (np.abs(actions) <= slack).all(axis=1)

    def _all_rows(self, is_same: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns (steps,) bool: `is_same`, a verdict on each row and its next, holds of all states across the step."""
        held = self.has_successor & bool(self.states)
        before = np.arange(len(self)) + np.repeat(self.row_starts - self.starts, self.lengths)
        for rows in self.states.values():
            held &= np.append(is_same(rows), False)[before]  # the very last row has no next
        return held

    def at_steps(self, is_bad: np.ndarray, key: str) -> Places | None:
        """Returns the steps where `is_bad` (steps,) holds, as places; None where it never does."""
        return self._at(is_bad, key, self.starts)

    def at_rows(self, is_bad: np.ndarray, key: str) -> Places | None:
        """Returns the observations where `is_bad` (rows,) holds, as places; None where it never does."""
        return self._at(is_bad, key, self.row_starts)

    def at_episodes(self, is_bad: np.ndarray) -> Places | None:
        """Returns the episodes where `is_bad` (episodes,) holds, as places; None where it never does."""
        names = [self.episodes[index].source for index in np.flatnonzero(is_bad).tolist()]
        return places_of(names) if names else None

    def _at(self, is_bad: np.ndarray, key: str, starts: np.ndarray) -> Places | None:
        found = np.flatnonzero(is_bad)
        if not len(found):
            return None
        owners = np.searchsorted(starts, found, side="right") - 1
        shown = zip(found[:5].tolist(), owners[:5].tolist(), strict=True)
        names = [f"{self.episodes[owner].source} {key} step {index - int(starts[owner])}" for index, owner in shown]
        return Places(places_of(names).first, len(found))


def sound_steps(dataset: EpisodeDataset) -> Steps:
    """Returns the steps of the episodes whose arrays fit together."""
    return Steps(dataset, [episode for episode in dataset.episodes if not episode.length_problems()])


def listed(names: tuple[str, ...], found: np.ndarray) -> str:
    """Returns the names at the indices `found`, the first few of them."""
    shown = ", ".join(names[index] for index in found[:_NAMED].tolist())
    return shown + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def _flat(episode: Episode, key: str) -> np.ndarray:
    rows = episode.observations[key]
    assert isinstance(rows, np.ndarray)
    return rows.reshape(len(rows), -1)


def _is_numeric(each: ObservationSpec, episode: Episode) -> bool:
    rows = episode.observations[each.name]
    return each.kind != "image" and isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf"
