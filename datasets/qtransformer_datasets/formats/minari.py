"""Minari's HDF5 layout, read with h5py: one group an episode, and metadata.json beside the file.

Special about this file: it is also our own layout, so it reads recordings that were killed half-way (their finished
episodes lie in `unmerged/`, one file each). Images stay in the file until they are asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from qtransformer.batch import ReadOptions
from qtransformer.files import leftovers

from ..schema import DatasetError, Episode, EpisodeDataset
from .hdf5 import children, member, open_hdf5, place, read_array, read_attribute, root_names
from .hdf5_episode import read_actions, read_observations, read_vector
from .minari_metadata import SPEC_KEY, read_metadata, read_spec
from .specs import check_agreement

MAIN_NAME = "main_data.hdf5"
UNMERGED_NAME = "unmerged"
LAYOUT = "Minari: groups episode_0, episode_1, ... holding observations, actions, rewards, terminations, truncations"
_EPISODE = re.compile(r"episode_(\d+)(\.hdf5)?")
_SUCCESS_FLAG = "infos/success true at any step"
_SUCCESS_GUESS = "a termination in an episode whose rewards sum to more than zero"


@dataclass(frozen=True)
class _Read:
    """An episode, and what was learnt on the way."""

    episode: Episode
    has_success_flag: bool
    action_names: tuple[str, ...]  # empty where the actions are one vector


def locate(path: Path) -> list[Path]:
    """Returns the HDF5 files of a dataset: `path` itself, or the main file in it and the finished unmerged episodes.

    A recorder that is killed while it cleans up leaves episodes behind that are merged already: these do not count.
    """
    if not path.is_dir():
        return [path]
    for folder in (path / "data", path):
        main = [folder / MAIN_NAME] if (folder / MAIN_NAME).exists() else []
        unmerged = [file for file in (folder / UNMERGED_NAME).glob("*.hdf5") if _EPISODE.fullmatch(file.name)]
        merged = set(root_names(main[0])) if main and unmerged else set()
        files = main + sorted(
            (file for file in unmerged if file.stem not in merged), key=lambda file: _index(file.name)
        )
        if files:
            return files
    return []


def matches(path: Path) -> bool:
    """Returns whether there is a file of this layout."""
    if path.is_dir():
        return bool(locate(path))
    return any(_EPISODE.fullmatch(name) for name in root_names(path))


def read(path: Path, options: ReadOptions) -> EpisodeDataset:
    """Returns the dataset at `path`, episodes in the order of their integers; the layout leaves no option open.

    Raises:
        DatasetError: an array is missing, has a wrong shape or kind, or keys differ between episodes.
    """
    del options
    files = locate(path)
    is_interrupted = files[-1].parent.name == UNMERGED_NAME
    folder = files[-1].parent.parent if is_interrupted else files[-1].parent
    metadata = read_metadata(folder)
    is_ours = SPEC_KEY in metadata
    found = [each for file in files for each in _read_file(file)]
    if not found:
        raise DatasetError(
            f"{files[0]} must hold groups episode_0, episode_1, ..., found none; record or copy it again"
        )
    episodes = [each.episode if each.has_success_flag or is_ours else _guess_success(each.episode) for each in found]
    check_agreement(episodes)
    spec, limits_rule = read_spec(metadata, episodes, found[0].action_names)
    return EpisodeDataset(
        path=path,
        spec=spec,
        episodes=tuple(episodes),
        dialect="minari",
        rules={**_rules(found, is_ours), "action limits": limits_rule},
        notes=_interruption(folder / UNMERGED_NAME) if is_interrupted else (),
        metadata=metadata,
    )


def _rules(found: list[_Read], is_ours: bool) -> dict[str, str]:
    finals = [each.episode.has_final_observation for each in found]
    lacking = f"{finals.count(False)} of {len(finals)} episodes have T observations for T actions: no successor there"
    return {
        "terminated": "terminations",
        "truncated": "truncations, where terminations says nothing",
        "success": _success_rule([each.has_success_flag for each in found], is_ours),
        "final observation": "T + 1 observations for T actions" if all(finals) else lacking,
    }


def _interruption(folder: Path) -> tuple[str, ...]:
    torn = len(leftovers(folder, "episode_*"))
    tail = f"; {torn} that was being written is torn and left out" if torn else ""
    return (f"the recording was interrupted: these are its finished episodes{tail}",)


def _read_file(path: Path) -> list[_Read]:
    with open_hdf5(path) as file:
        groups = {name: each for name, each in children(file).items() if _EPISODE.fullmatch(name)}
        return [_read_episode(groups[name]) for name in sorted(groups, key=_index)]


def _read_episode(group: h5py.Group | h5py.Dataset) -> _Read:
    if not isinstance(group, h5py.Group):
        raise DatasetError(f"{place(group)} must be a group, got a dataset; remove or rename it")
    actions, names = read_actions(member(group, "actions"))
    rewards, terminations, truncations = (
        read_vector(member(group, name), dtype)
        for name, dtype in (("rewards", np.float64), ("terminations", bool), ("truncations", bool))
    )
    if len(terminations) == len(truncations):
        truncations = truncations & ~terminations  # both at one step: the termination wins
    observations = read_observations(member(group, "observations"))
    flag = _read_success_flag(group)
    episode = Episode(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        success=flag,
        seed=_read_seed(group),
        source=place(group),
        goal=_read_text(group, "goal"),
        behaviour=_read_text(group, "behaviour"),
        has_final_observation=any(len(rows) != len(actions) for rows in observations.values()),
    )
    return _Read(episode, flag is not None, names)


def _read_success_flag(group: h5py.Group) -> bool | None:
    infos = children(group).get("infos")
    flag = children(infos).get("success") if isinstance(infos, h5py.Group) else None
    return bool(read_array(flag).any()) if isinstance(flag, h5py.Dataset) else None


def _read_seed(group: h5py.Group) -> int | None:
    seed = read_attribute(group, "seed")
    return int(seed) if isinstance(seed, int | np.integer) else None


def _read_text(group: h5py.Group, name: str) -> str | None:
    text = read_attribute(group, name)
    return text if isinstance(text, str) else None


def _guess_success(episode: Episode) -> Episode:
    return replace(episode, success=bool(episode.terminations.any() and episode.rewards.sum() > 0))


def _success_rule(has_flag: list[bool], is_ours: bool) -> str:
    if all(has_flag):
        return _SUCCESS_FLAG
    if is_ours:  # our recorder leaves the flag out where nobody said
        return f"{_SUCCESS_FLAG}; unknown without that flag"
    return f"{_SUCCESS_FLAG}; without that flag, {_SUCCESS_GUESS}" if any(has_flag) else _SUCCESS_GUESS


def _index(name: str) -> int:
    match = _EPISODE.fullmatch(name)
    assert match is not None
    return int(match.group(1))
