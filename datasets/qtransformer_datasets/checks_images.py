"""Checks of images, which are never decoded for it: equal bytes in the file are equal frames.

Special about this file: it walks through an episode's frames and keeps two of them at a time, so that a log larger than
the memory is checked as well. It must not know what an image shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from .finding import Finding, finding, places_of
from .frames import Frames, Rows
from .steps import Steps

FROZEN_STEPS = 10  # a second at 10 Hz: a camera sees an arm move sooner than that


def check_frozen(steps: Steps) -> Iterator[Finding]:
    """Finds runs of equal frames during which the actions keep moving."""
    moving = np.split(~steps.is_at_rest, steps.starts[1:])
    for each in steps.spec.observations:
        if each.kind != "image":
            continue
        key = f"observations/{each.name}"
        names = [
            f"{episode.source} {key} step {start}"
            for episode, moves in zip(steps.episodes, moving, strict=True)
            for start in _frozen_runs(_equal_next(episode.observations[each.name]), moves)
        ]
        if names:
            places = places_of(names)
            yield finding(
                "frozen-images",
                f"{places} begins a run of equal frames in which the action changes {FROZEN_STEPS} times or more",
                "the policy sees what was, not what is",
                "look for a camera that stopped or a driver that repeats its last frame; drop these episodes",
                places,
            )


def _equal_next(rows: Rows) -> np.ndarray:
    """Returns (rows - 1,) bool: the frame equals the next one."""
    pairs = pairwise(rows.stored_rows() if isinstance(rows, Frames) else rows)
    return np.array([bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b for a, b in pairs], bool)


def _frozen_runs(same: np.ndarray, moves: np.ndarray) -> list[int]:
    """Returns the first frame of each run of equal frames that holds `FROZEN_STEPS` steps that move."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    num_moves = np.append(0, np.cumsum(moves))
    return starts[num_moves[ends] - num_moves[starts] >= FROZEN_STEPS].tolist()
