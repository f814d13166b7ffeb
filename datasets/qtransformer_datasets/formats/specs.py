"""Specs for what a file does not describe: names of elements, limits of actions.

Special about this file: every reader without metadata of its own uses it, so that the same guess is made everywhere
and told in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from qtransformer.batch import ActionSpec, ObservationSpec

from ..frames import Rows, is_image
from ..schema import DatasetError, Episode

_MAX_NAMED = 1024  # a depth image has no names for its elements


def derive_observations(observations: Mapping[str, Rows]) -> tuple[ObservationSpec, ...]:
    """Returns the specs of an episode's observations, in the order of their keys."""
    return tuple(derive_observation(key, observations[key]) for key in sorted(observations))


def derive_observation(key: str, rows: Rows) -> ObservationSpec:
    """Returns the spec of rows that nobody described; the elements of a vector are named `key[0]`, `key[1]`, ..."""
    if is_image(rows):
        return ObservationSpec(key, tuple(rows.shape[1:]), "uint8", "image")
    if rows.dtype.kind == "U":
        return ObservationSpec(key, (), "str", "text")
    return describe_state(key, rows.shape[1:], str(rows.dtype))


def describe_state(key: str, shape: tuple[int, ...], dtype: str) -> ObservationSpec:
    """Returns the spec of a state of a shape and numpy dtype."""
    size = int(np.prod(shape))
    names = tuple(f"{key}[{index}]" for index in range(size)) if size <= _MAX_NAMED else ()
    return ObservationSpec(key, tuple(shape), dtype, "state", names, ("",) * len(names))


def derive_actions(actions: np.ndarray, names: tuple[str, ...] = ()) -> tuple[ActionSpec, str]:
    """Returns limits for actions whose file names none, and the rule that was used, in words.

    [-1, 1] by convention where all actions lie in it, else the range of the data, dimension by dimension.

    Args:
        actions: (N, A) all actions of the log; numbers that are not finite are left to the check.
        names: of the dimensions; `action[k]` without.
    """
    A = actions.shape[1]
    names = names or tuple(f"action[{index}]" for index in range(A))
    finite = np.where(np.isfinite(actions), actions, 0.0).astype(np.float64)
    low, high = (finite.min(axis=0), finite.max(axis=0)) if len(finite) else (np.zeros(A), np.zeros(A))
    if (low >= -1).all() and (high <= 1).all():
        return ActionSpec((-1.0,) * A, (1.0,) * A, names, ("",) * A), "[-1, 1] by convention; all actions lie in it"
    limits = ActionSpec(tuple(low.tolist()), tuple(high.tolist()), names, ("",) * A)
    return limits, "the range of the data, since the file names no limits and some actions lie outside [-1, 1]"


def natural_order(name: str) -> list[tuple[str, int]]:
    """Returns a key for sorting names as people do, `_index_2` before `_index_10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def check_agreement(episodes: Sequence[Episode]) -> None:
    """Makes sure that all episodes have the observation keys and the row shapes of the first.

    Raises:
        DatasetError: one differs.
    """
    first = episodes[0]
    for episode in episodes[1:]:
        for name, expected, found in (
            ("observations", _shapes(first), _shapes(episode)),
            ("actions", first.actions.shape[1:], episode.actions.shape[1:]),
        ):
            if expected != found:
                raise DatasetError(
                    f"{episode.source}: {name} must match {first.source}, {expected}, got {found}; "
                    "keep episodes of one robot and task in a file"
                )


def _shapes(episode: Episode) -> dict[str, tuple[int, ...]]:
    return {key: tuple(rows.shape[1:]) for key, rows in episode.observations.items()}
