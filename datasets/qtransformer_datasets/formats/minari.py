"""Minari's HDF5 layout, read with h5py: one group an episode, and metadata.json beside the file.

Special about this file: it is also our own layout, so it reads recordings that were killed half-way (their finished
episodes lie in `unmerged/`, one file each). Low-dimensional observations only; images and text are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..schema import DatasetError, Episode, EpisodeDataset, fingerprint
from .hdf5 import children, leaves, open_hdf5, place, read_array
from .minari_metadata import FLAT_KEY, read_metadata, read_spec

MAIN_NAME = "main_data.hdf5"
UNMERGED_NAME = "unmerged"
LAYOUT = "Minari: groups episode_0, episode_1, ... holding observations, actions, rewards, terminations, truncations"
_EPISODE = re.compile(r"episode_(\d+)(\.hdf5)?")
_SUCCESS_FLAG = "infos/success true at any step"
_SUCCESS_GUESS = "a termination in an episode whose rewards sum to more than zero"
_UNMERGED_NOTE = "the recording was interrupted: these are its finished episodes"


def locate(path: Path) -> list[Path]:
    """Returns the HDF5 files of a dataset: `path` itself, the main file in it, or the finished unmerged episodes."""
    if not path.is_dir():
        return [path]
    for folder in (path / "data", path):
        if (folder / MAIN_NAME).exists():
            return [folder / MAIN_NAME]
        unmerged = [file for file in (folder / UNMERGED_NAME).glob("*.hdf5") if _EPISODE.fullmatch(file.name)]
        if unmerged:
            return sorted(unmerged, key=lambda file: _index(file.name))
    return []


def matches(file: h5py.File) -> bool:
    """Returns whether the file has this layout."""
    return any(_EPISODE.fullmatch(str(name)) for name in file)


def read(path: Path, files: list[Path]) -> EpisodeDataset:
    """Returns the dataset in `files` (what `locate(path)` gave), episodes in the order of their integers.

    Raises:
        DatasetError: an array is missing, has a wrong shape or kind, or keys differ between episodes.
    """
    is_unmerged = files[0].parent.name == UNMERGED_NAME
    metadata = read_metadata(files[0].parent.parent if is_unmerged else files[0].parent)
    groups = [each for file in files for each in _read_file(file)]
    episodes = [episode for episode, _ in groups]
    _check_agreement(episodes)
    spec = read_spec(metadata, episodes)
    metadata["success_rule"] = _success_rule([has_flag for _, has_flag in groups])
    if is_unmerged:
        metadata["note"] = _UNMERGED_NOTE
    return EpisodeDataset(path, spec, tuple(episodes), "minari", fingerprint(spec, tuple(episodes)), metadata)


def _read_file(path: Path) -> list[tuple[Episode, bool]]:
    with open_hdf5(path) as file:
        groups = {name: each for name, each in children(file).items() if _EPISODE.fullmatch(name)}
        return [_read_episode(groups[name]) for name in sorted(groups, key=_index)]


def _read_episode(group: h5py.Group | h5py.Dataset) -> tuple[Episode, bool]:
    if not isinstance(group, h5py.Group):
        raise DatasetError(f"{place(group)} must be a group, got a dataset; remove or rename it")
    members = children(group)
    actions = _read_actions(group, members)
    rewards, terminations, truncations = (
        _read_vector(group, members, name, dtype)
        for name, dtype in (("rewards", np.float64), ("terminations", bool), ("truncations", bool))
    )
    if len(terminations) == len(truncations):
        truncations = truncations & ~terminations  # both at one step: the termination wins
    observations = _read_observations(_member(group, members, "observations"))
    flag = _read_success_flag(members)
    episode = Episode(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        success=bool(terminations.any() and rewards.sum() > 0) if flag is None else flag,
        seed=_read_seed(group),
        source=place(group),
        has_final_observation=any(len(array) != len(actions) for array in observations.values()),
    )
    return episode, flag is not None


def _member(group: h5py.Group, members: dict[str, Any], name: str) -> h5py.Group | h5py.Dataset:
    if name not in members:
        raise DatasetError(f"{place(group)} must hold {name}, found {sorted(members)}; record or convert it again")
    return members[name]


def _read_actions(group: h5py.Group, members: dict[str, Any]) -> np.ndarray:
    dataset = _member(group, members, "actions")
    if isinstance(dataset, h5py.Group) or dataset.ndim != 2 or dataset.shape[1] == 0:
        shape = "a group" if isinstance(dataset, h5py.Group) else str(dataset.shape)
        raise DatasetError(
            f"{place(dataset)} must have shape (T, A), got {shape}; only one continuous action vector works"
        )
    return read_array(dataset).astype(np.float32)


def _read_vector(group: h5py.Group, members: dict[str, Any], name: str, dtype: type) -> np.ndarray:
    dataset = _member(group, members, name)
    if isinstance(dataset, h5py.Group) or dataset.ndim != 1:
        raise DatasetError(f"{place(dataset)} must have shape (T,), one value a step; convert the file again")
    return read_array(dataset).astype(dtype)


def _read_observations(member: h5py.Group | h5py.Dataset) -> dict[str, np.ndarray]:
    datasets = leaves(member) if isinstance(member, h5py.Group) else {FLAT_KEY: member}
    if not datasets:
        raise DatasetError(f"{place(member)} must hold at least one observation, got an empty group; record it again")
    return {key: _read_state(datasets[key]) for key in sorted(datasets)}


def _read_state(dataset: h5py.Dataset) -> np.ndarray:
    array = read_array(dataset)
    if array.ndim == 0:
        raise DatasetError(f"{place(dataset)} must hold one row a step, got a single number; record it again")
    is_jpeg = array.dtype == np.uint8 and array.ndim == 2 and bytes(array[:1, :2].tobytes()) == b"\xff\xd8"
    if is_jpeg or (array.dtype == np.uint8 and array.ndim >= 3):
        raise DatasetError(f"{place(dataset)} holds images, which are not supported yet; leave this key out")
    return array[:, None] if array.ndim == 1 else array


def _read_success_flag(members: dict[str, Any]) -> bool | None:
    infos = members.get("infos")
    flag = children(infos).get("success") if isinstance(infos, h5py.Group) else None
    return bool(read_array(flag).any()) if isinstance(flag, h5py.Dataset) else None


def _read_seed(group: h5py.Group) -> int | None:
    seed = group.attrs.get("seed")
    return int(seed) if isinstance(seed, int | np.integer) else None


def _check_agreement(episodes: list[Episode]) -> None:
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
    return {key: array.shape[1:] for key, array in episode.observations.items()}


def _success_rule(has_flag: list[bool]) -> str:
    if all(has_flag):
        return _SUCCESS_FLAG
    return f"{_SUCCESS_FLAG}; without that flag, {_SUCCESS_GUESS}" if any(has_flag) else _SUCCESS_GUESS


def _index(name: str) -> int:
    match = _EPISODE.fullmatch(name)
    assert match is not None
    return int(match.group(1))
