"""What the readers of layouts without specs share: flags, the cutting of long arrays, the finished dataset.

Special about this file: the same rule is worded the same way, whatever file it is used for. It must not know any
file layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qtransformer.batch import DatasetSpec

from ..frames import Rows
from ..schema import DatasetError, Episode, EpisodeDataset
from .rows import join_rows
from .specs import check_agreement, derive_actions, derive_observations

_GYMNASIUM_ID = re.compile(r"(?:[\w:.-]+/)?[\w:.-]+-v\d+")


@dataclass(frozen=True)
class FlatLog:
    """Arrays that hold the steps of all episodes, one after another, all of N rows."""

    name: str  # of the file, for the source of an episode
    observations: Mapping[str, Rows]
    actions: np.ndarray  # (N, A)
    rewards: np.ndarray  # (N,)
    next_observations: Mapping[str, Rows] | None = None

    def episode(
        self,
        span: tuple[int, int],
        *,
        terminates: bool,
        success: bool | None,
        final: Literal["none", "next row", "next_observations"],
    ) -> Episode:
        """Returns the episode of the steps [start, stop), which ends in a termination or else in a truncation.

        Args:
            span: start and stop.
            terminates: whether its last step is a termination.
            success: of the episode, None where it is not known.
            final: where its final observation is: nowhere, in row `stop` of `observations`, or in row `stop - 1` of
                `next_observations`.
        """
        start, stop = span
        last = last_only(stop - start)
        observations = {}
        for key, rows in self.observations.items():
            parts = [(rows, start, stop + (final == "next row"))]
            if final == "next_observations" and self.next_observations is not None:
                parts.append((self.next_observations[key], stop - 1, stop))
            observations[key] = join_rows(parts, f"{self.name}: {key}")
        return Episode(
            observations=observations,
            actions=self.actions[start:stop],
            rewards=self.rewards[start:stop],
            terminations=last & terminates,
            truncations=last & (not terminates),
            success=success,
            source=f"{self.name}:rows {start} to {stop - 1}",
            has_final_observation=final != "none",
        )


def as_flags(values: np.ndarray, where: str) -> np.ndarray:
    """Returns (T,) bool.

    Raises:
        DatasetError: a value is neither 0 nor 1.
    """
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if wrong.size:
        raise DatasetError(
            f"{where} step {wrong[0]} must be 0 or 1, got {values[wrong[0]]:g} (and {wrong.size - 1} more places); "
            "write flags, or remove it"
        )
    return values != 0


def check_lengths(lengths: Mapping[str, int], where: str) -> None:
    """Makes sure that all arrays have the rows of the first, and at least one.

    Raises:
        DatasetError: they have not.
    """
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"{where} must hold arrays of one length, got {dict(lengths)}; write the file again")
    if not next(iter(lengths.values())):
        raise DatasetError(f"{where} holds no steps; remove it or record it again")


def are_binary(rewards: np.ndarray) -> bool:
    """Returns whether rewards are zero or one positive number, as success is marked; a reward at every step is none."""
    others = np.unique(rewards[rewards != 0])
    return len(others) == 1 and bool(others[0] > 0) and not rewards.all()


def spans(ends: np.ndarray) -> list[tuple[int, int]]:
    """Returns [start, stop) of each run of rows that a flag ends; the rows after the last flag are one more."""
    stops = (np.flatnonzero(ends) + 1).tolist()
    if not stops or stops[-1] < len(ends):
        stops.append(len(ends))
    return list(zip([0, *stops[:-1]], stops, strict=True))


def last_only(num_steps: int) -> np.ndarray:
    """Returns (T,) bool, True at the last step alone."""
    return np.arange(num_steps) == num_steps - 1


def environment_id(name: object) -> str | None:
    """Returns a name that looks like one of Gymnasium's ids ("Hopper-v4", "robots/Lift-v0"); None otherwise."""
    return name if isinstance(name, str) and _GYMNASIUM_ID.fullmatch(name) else None


def make_dataset(
    path: Path,
    dialect: str,
    episodes: Sequence[Episode],
    rules: Mapping[str, str],
    *,
    notes: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> EpisodeDataset:
    """Returns the dataset of episodes that no one described: the spec comes from the arrays.

    Args:
        path: of the file.
        dialect: its name.
        episodes: one or more.
        rules: all but the action limits.
        notes: for the user.
        metadata: what the file says of itself; `environment_id` and `environment_kwargs` go into the spec.

    Raises:
        DatasetError: observation keys or shapes differ between episodes.
    """
    check_agreement(episodes)
    actions, limits_rule = derive_actions(np.concatenate([episode.actions for episode in episodes]))
    metadata = metadata or {}
    environment = metadata.get("environment_id"), metadata.get("environment_kwargs", {})
    spec = DatasetSpec(derive_observations(episodes[0].observations), actions, None, *environment)
    return EpisodeDataset(
        path=path,
        spec=spec,
        episodes=tuple(episodes),
        dialect=dialect,
        rules={**rules, "action limits": limits_rule},
        notes=tuple(notes),
        metadata=metadata,
    )
