"""OGBench's npz layout: the states of all trajectories one after another, cut where `terminals` is set.

    row            a      a+1    ...  b-1      b         terminals is set at b, the next trajectory starts at b+1
    observations   o0     o1          oT-1     oT        T + 1 states
    actions        a0     a1          aT-1     (dummy)   the last action was never taken

Special about this file: `terminals` marks the end of a trajectory, never a termination; only `masks` == 0 (success)
is one, and the trajectory often goes on after it. Files that were saved with `next_observations` have no dummy row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qtransformer.batch import FLAT_KEY, ReadOptions

from ..schema import DatasetError, Episode, EpisodeDataset
from .flat import FlatLog, as_flags, check_lengths, make_dataset, spans
from .npz import npz_names, read_npz

LAYOUT = "OGBench: an npz file with arrays observations, actions, terminals (and rewards, masks) of one length"
_NAMES = frozenset({"observations", "actions", "terminals"})
_ALL_NAMES = ("observations", "actions", "terminals", "next_observations", "rewards", "masks")
_LABEL = (
    "rewards are zero: the log is unlabelled, since OGBench computes them for a task when it loads; add arrays rewards "
    "(N,) and masks (N,), 0 where a step reaches the goal, and save the file again with numpy.savez_compressed"
)


def matches(path: Path) -> bool:
    """Returns whether there is a file of this layout, or a npz file too damaged to tell, which `read` explains."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    names = npz_names(path)
    return names is None or set(names) >= _NAMES


def read(path: Path, options: ReadOptions) -> EpisodeDataset:
    """Returns the dataset at `path`, episodes in the order of the rows; the layout leaves no option open.

    Raises:
        DatasetError: the file is damaged, or an array has a wrong shape or kind.
    """
    del options
    arrays = read_npz(path, _ALL_NAMES)
    single = [name for name, array in arrays.items() if array.ndim == 0]
    if single:
        raise DatasetError(f"{path.name}: {single} must hold one row a step, got a single value; save it again")
    check_lengths({name: len(array) for name, array in arrays.items()}, path.name)
    terminals = as_flags(_vector(arrays, "terminals", path), f"{path.name}:terminals")
    masks = _vector(arrays, "masks", path) if "masks" in arrays else None
    successes = None if masks is None else ~as_flags(masks, f"{path.name}:masks")
    log = FlatLog(
        path.name,
        {FLAT_KEY: _column(arrays["observations"])},
        _actions(arrays["actions"], path),
        _rewards(arrays, successes, path),
        {FLAT_KEY: _column(arrays["next_observations"])} if "next_observations" in arrays else None,
    )
    trajectories = spans(terminals)
    episodes = [each for span in trajectories for each in _episodes(log, span, successes)]
    return make_dataset(
        path,
        "ogbench",
        episodes,
        _rules(log, episodes, successes, "rewards" in arrays),
        notes=_notes(log, terminals, trajectories, has_labels="rewards" in arrays or successes is not None),
    )


def _episodes(log: FlatLog, trajectory: tuple[int, int], successes: np.ndarray | None) -> list[Episode]:
    """Returns the episodes of one trajectory: one, or one to each success and one from there on."""
    start, stop = trajectory
    if log.next_observations is None:
        stop -= 1  # the last row holds a state and a dummy action
    if stop <= start:
        raise DatasetError(
            f"{log.name}:rows {start} to {trajectory[1] - 1}: a trajectory must have two states or more, got one; "
            "remove it"
        )
    final = "next row" if log.next_observations is None else "next_observations"
    pieces = [((start, stop), False)] if successes is None else _split(successes, start, stop)
    return [
        log.episode(span, terminates=terminates, success=None if successes is None else terminates, final=final)
        for span, terminates in pieces
    ]


def _split(successes: np.ndarray, start: int, stop: int) -> list[tuple[tuple[int, int], bool]]:
    """Returns the spans of episodes in the steps [start, stop), and whether each ends in a success.

    step       0  1  2  3  4  5  6
    success    0  0  1  1  1  0  0
    episode    A  A  A        B  B       steps 3 and 4 start in a state of success, where an episode is over
    """
    pieces, begin = [], start
    for step in (start + np.flatnonzero(successes[start:stop])).tolist():
        if step == start or not successes[step - 1]:
            pieces.append(((begin, step + 1), True))
        begin = step + 1
    return [*pieces, ((begin, stop), False)] if begin < stop else pieces


def _rewards(arrays: Mapping[str, np.ndarray], successes: np.ndarray | None, path: Path) -> np.ndarray:
    if "rewards" in arrays:
        return _vector(arrays, "rewards", path)
    return np.zeros(len(arrays["terminals"])) if successes is None else successes.astype(np.float64)


def _rules(log: FlatLog, episodes: list[Episode], successes: np.ndarray | None, has_rewards: bool) -> dict[str, str]:
    final = "the row after the last step" if log.next_observations is None else "next_observations of the last step"
    rules = {
        "terminated": "never: the file has no masks",
        "truncated": "terminals, the end of a trajectory",
        "success": "unknown: the file has no masks",
        "final observation": final,
    }
    if successes is not None:
        left_out = int(successes.sum()) - sum(bool(each.success) for each in episodes)
        rules["terminated"] = (
            "masks == 0; the rest of the trajectory is an episode of its own"
            f" ({left_out} rows that start in a state of success, or are dummies, are left out)"
        )
        rules["success"] = "masks == 0"
    if not has_rewards:
        rules["rewards"] = "zero: the file has none" if successes is None else "1 where masks == 0: the file has none"
    return rules


def _notes(log: FlatLog, terminals: np.ndarray, trajectories: list[tuple[int, int]], *, has_labels: bool) -> list[str]:
    notes = [] if has_labels else [_LABEL]
    if not terminals[-1]:
        start, stop = trajectories[-1]
        last = "" if log.next_observations is not None else "; its last action is left out, as it has no successor"
        notes.append(f"no terminal ends rows {start} to {stop - 1}: read as a trajectory that was cut off{last}")
    return notes


def _vector(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    values = arrays[name]
    if values.ndim not in (1, 2) or values.size != len(values):
        raise DatasetError(
            f"{path.name}:{name} must have shape (N,), one value a row, got {values.shape}; save it again"
        )
    return values.astype(np.float64).reshape(-1)


def _actions(actions: np.ndarray, path: Path) -> np.ndarray:
    if actions.ndim not in (1, 2) or 0 in actions.shape[1:] or actions.dtype.kind != "f":
        raise DatasetError(
            f"{path.name}:actions must have shape (N, A) and hold real numbers, got {actions.shape} {actions.dtype}; "
            "only continuous actions work"
        )
    return _column(actions.astype(np.float32))


def _column(rows: np.ndarray) -> np.ndarray:
    """Returns (N,) as (N, 1), else the rows as they are."""
    return rows[:, None] if rows.ndim == 1 else rows
