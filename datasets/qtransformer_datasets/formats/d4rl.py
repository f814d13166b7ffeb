"""D4RL's flat HDF5 layout: the steps of all episodes one after another, cut where `terminals` or `timeouts` are set.

Special about this file: the row after a timeout belongs to the next episode, so it is never taken for a successor. An
array is read whole, once, from start to end: its chunks of thousands of rows are costly to read by rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from qtransformer.batch import ReadOptions

from ..schema import DatasetError, Episode, EpisodeDataset
from .flat import FlatLog, are_binary, as_flags, check_lengths, environment_id, make_dataset, spans
from .hdf5 import children, is_text, leaves, member, open_hdf5, place, read_array, read_text, root_names
from .hdf5_episode import read_actions, read_observations, read_vector
from .rows import are_equal_rows

LAYOUT = "D4RL: arrays observations, actions, rewards, terminals (and timeouts) of one length at the root"
_NAMES = frozenset({"observations", "actions", "rewards"})
_ENVIRONMENT_NAMES = ("env_id", "env_name", "environment_id", "env")
_ADD_TIMEOUTS = "add an array timeouts (N,), true where an episode was cut off"


def matches(path: Path) -> bool:
    """Returns whether there is a file of this layout."""
    return not path.is_dir() and set(root_names(path)) >= _NAMES


def read(path: Path, options: ReadOptions) -> EpisodeDataset:
    """Returns the dataset at `path`, episodes in the order of the rows; the layout leaves no option open.

    Raises:
        DatasetError: an array is missing, has a wrong shape or kind, or the lengths differ.
    """
    del options
    with open_hdf5(path) as file:
        log = _read_log(file)
        terminals = _read_flags(member(file, "terminals"))
        timeouts = _read_flags(member(file, "timeouts")) if "timeouts" in children(file) else None
        metadata = _read_metadata(file)
    lengths = {"actions": len(log.actions), "rewards": len(log.rewards), "terminals": len(terminals)}
    lengths |= {"timeouts": len(timeouts)} if timeouts is not None else {}
    lengths |= {f"observations/{key}": len(rows) for key, rows in log.observations.items()}
    lengths |= {f"next_observations/{key}": len(rows) for key, rows in (log.next_observations or {}).items()}
    check_lengths(lengths, path.name)
    ends = terminals if timeouts is None else terminals | timeouts
    is_rewarded_success = are_binary(log.rewards)
    episodes = [_episode(log, span, terminals, is_rewarded_success) for span in spans(ends)]
    return make_dataset(
        path,
        "d4rl",
        episodes,
        _rules(log, episodes, timeouts, is_rewarded_success),
        notes=_notes(terminals, timeouts, episodes),
        metadata=metadata,
    )


def _read_log(file: h5py.File) -> FlatLog:
    observations = read_observations(member(file, "observations"))
    successors = children(file).get("next_observations")
    next_observations = None if successors is None else read_observations(successors)
    if next_observations is not None and set(next_observations) != set(observations):
        raise DatasetError(
            f"{place(file)}next_observations must have the keys {sorted(observations)} of observations, got "
            f"{sorted(next_observations)}; remove it, or write it again"
        )
    actions, _ = read_actions(member(file, "actions"))
    rewards = read_vector(member(file, "rewards"), np.float64)
    return FlatLog(Path(file.filename).name, observations, actions, rewards, next_observations)


def _episode(log: FlatLog, span: tuple[int, int], terminals: np.ndarray, is_rewarded_success: bool) -> Episode:
    start, stop = span
    return log.episode(
        span,
        terminates=bool(terminals[stop - 1]),
        success=bool((log.rewards[start:stop] > 0).any()) if is_rewarded_success else None,
        final=_final(log, stop),
    )


def _final(log: FlatLog, stop: int) -> Literal["none", "next_observations"]:
    """Returns where the final observation is.

    Converters that shift `observations` by one row write the next episode's first observation as the successor of the
    last step; such a row is not used.
    """
    following = log.next_observations
    if following is None:
        return "none"
    is_shifted = stop < len(log.actions) and all(
        are_equal_rows(following[key], stop - 1, rows, stop) for key, rows in log.observations.items()
    )
    return "none" if is_shifted else "next_observations"


def _rules(
    log: FlatLog, episodes: list[Episode], timeouts: np.ndarray | None, is_rewarded_success: bool
) -> dict[str, str]:
    lacking = [episode.has_final_observation for episode in episodes].count(False)
    final = "none: the file has no next_observations, so the last step of an episode has no successor"
    if log.next_observations is not None:
        equal = f"; not in {lacking} of {len(episodes)} episodes, where it is the next episode's first"
        final = "next_observations of the last step" + (equal if lacking else "")
    return {
        "terminated": "terminals",
        "truncated": "the file's end alone: it has no timeouts" if timeouts is None else "timeouts without terminals",
        "success": "a reward above zero in the episode, since rewards are zero or one number"
        if is_rewarded_success
        else "unknown: the file does not mark it, and in some environments a termination is a fall",
        "final observation": final,
    }


def _notes(terminals: np.ndarray, timeouts: np.ndarray | None, episodes: list[Episode]) -> list[str]:
    notes = []
    ends = terminals if timeouts is None else terminals | timeouts
    if timeouts is None and not terminals.any():
        notes.append(
            f"no timeouts and no terminal: all {len(ends):,} steps are read as one episode, and its successors are "
            f"wrong wherever one really ended; {_ADD_TIMEOUTS}"
        )
    elif timeouts is None:
        notes.append(
            "no timeouts: where a time limit cut an episode off, it is read as one with the episode after it, and the "
            f"successor there is wrong; {_ADD_TIMEOUTS}"
        )
    elif timeouts.any() and not terminals.any():
        notes.append(
            "timeouts but no terminal anywhere: nothing stops the bootstrap; in maze2d timeouts mark only a change of "
            "goal, while the point moves on"
        )
    if not ends[-1] and ends.any():
        notes.append(
            f"the last {episodes[-1].num_steps} steps end with neither terminal nor timeout: read as an episode that "
            "was cut off"
        )
    return notes


def _read_flags(member: h5py.Group | h5py.Dataset) -> np.ndarray:
    return as_flags(read_vector(member, np.float64), place(member))


def _read_metadata(file: h5py.File) -> dict[str, Any]:
    """Returns the single values below `metadata`; arrays, such as a policy's weights, stay where they are."""
    group = children(file).get("metadata")
    if not isinstance(group, h5py.Group):
        return {}
    found = {name: _single(each) for name, each in leaves(group).items() if each.shape == () and _is_plain(each)}
    names = [environment_id(found[name]) for name in _ENVIRONMENT_NAMES if name in found]
    return {**found, "environment_id": names[0]} if names else found


def _is_plain(dataset: h5py.Dataset) -> bool:
    return is_text(dataset) or dataset.dtype.kind in "biuf"


def _single(dataset: h5py.Dataset) -> Any:
    return (read_text(dataset) if is_text(dataset) else read_array(dataset)).item()
