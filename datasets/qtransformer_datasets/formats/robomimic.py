"""robomimic's HDF5 layout, as robomimic, MimicGen, RoboCasa, LIBERO and Isaac Lab write it: /data/demo_0, demo_1, ...

Special about this file: observations are those before each action, so the successor of the last step is only in
`next_obs`, where it is there at all. There is no truncation flag: `robomimic_dones` finds out where an episode
terminated, and the others count as truncated. `states` are for resetting a simulator and no observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qtransformer.batch import ReadOptions

from ..frames import Frames, Rows
from ..schema import DatasetError, Episode, EpisodeDataset
from .flat import as_flags, check_lengths, environment_id, last_only, make_dataset
from .hdf5 import children, member, open_hdf5, place, read_attribute, root_names
from .hdf5_episode import read_actions, read_observations, read_vector
from .robomimic_dones import Marks, Meaning, find_meaning
from .rows import Part, are_equal_rows, join_rows
from .text import INSTRUCTION_KEY

LAYOUT = "robomimic: groups data/demo_0, data/demo_1, ... holding obs, actions, and rewards or dones"
_DEMO = re.compile(r"demo_(\d+)")


@dataclass(frozen=True)
class _Demo:
    """One demonstration as the file holds it."""

    observations: dict[str, Rows]  # each (T, ...)
    finals: dict[str, Part] | None  # the row after the last step, None where the file has none
    actions: np.ndarray
    marks: Marks
    instruction: str | None


def matches(path: Path) -> bool:
    """Returns whether there is a file of this layout."""
    return not path.is_dir() and "data" in root_names(path)


def read(path: Path, options: ReadOptions) -> EpisodeDataset:
    """Returns the dataset at `path`, demonstrations in the order of their integers.

    Raises:
        DatasetError: an array is missing, has a wrong shape or kind, keys differ between demonstrations, or nothing
            tells what `dones` mark.
    """
    with open_hdf5(path) as file:
        data = _group(file, "data")
        groups = {name: _group(data, name) for name in children(data) if _DEMO.fullmatch(name)}
        demos = [
            _read_demo(groups[name], data) for name in sorted(groups, key=lambda name: int(name.partition("_")[2]))
        ]
        metadata = _read_metadata(file, data)
        strangers = sorted(set(children(data)) - set(groups))
    if not demos:
        raise DatasetError(
            f"{path}:data must hold groups demo_0, demo_1, ..., found {strangers[:10]}; convert it again"
        )
    _check_keys(demos)
    meaning = find_meaning([each.marks for each in demos], options.dones, path.name)
    episodes = [_episode(each, meaning) for each in demos]
    return make_dataset(
        path,
        "robomimic",
        episodes,
        _rules(demos, episodes, meaning),
        notes=[f"left out of data, since it is no demonstration: {', '.join(strangers)}"] if strangers else [],
        metadata=metadata,
    )


def _read_demo(group: h5py.Group, data: h5py.Group) -> _Demo:
    actions, _ = read_actions(member(group, "actions"))
    T = len(actions)
    if "obs" not in children(group):
        raise DatasetError(
            f"{place(group)} must hold obs, found {sorted(children(group))}; where a simulator recorded states alone, "
            "run robomimic's dataset_states_to_obs.py on the file first"
        )
    observations = read_observations(member(group, "obs"))
    vectors = {name: children(group).get(name) for name in ("rewards", "dones")}
    values = {name: read_vector(each, np.float64) for name, each in vectors.items() if each is not None}
    lengths = {"actions": T} | {f"obs/{key}": len(rows) for key, rows in observations.items()}
    check_lengths(lengths | {name: len(each) for name, each in values.items()}, place(group))
    success = _attribute(group, "success")
    marks = Marks(
        num_steps=T,
        rewards=values.get("rewards"),
        dones=as_flags(values["dones"], f"{place(group)}/dones") if "dones" in values else None,
        success=bool(success) if isinstance(success, bool | int | np.bool_ | np.integer) else None,
        source=place(group),
    )
    has_text = any(rows.dtype.kind == "U" for rows in observations.values())
    instruction = None if has_text else _instruction(group, data)
    return _Demo(observations, _finals(group, observations, T), actions, marks, instruction)


def _finals(group: h5py.Group, observations: Mapping[str, Rows], num_steps: int) -> dict[str, Part] | None:
    """Returns the last rows of `next_obs` where they are the successor of the last step.

    Some writers repeat the last observation instead, and some leave out keys: then there is no successor.
    """
    if "next_obs" not in children(group):
        return None
    found = read_observations(_group(group, "next_obs"))
    if not set(observations) <= set(found):
        return None
    check_lengths({"actions": num_steps} | {f"next_obs/{key}": len(found[key]) for key in observations}, place(group))
    last = num_steps - 1
    in_reading_order = sorted(observations, key=lambda key: isinstance(found[key], Frames))
    if all(are_equal_rows(found[key], last, observations[key], last) for key in in_reading_order):
        return None
    return {key: _final(found[key], last) for key in observations}


def _final(rows: Rows, last: int) -> Part:
    """Returns the last row, as a copy that does not keep the others in memory; images stay in the file."""
    return (rows, last, last + 1) if isinstance(rows, Frames) else (rows[last:].copy(), 0, 1)


def _episode(demo: _Demo, meaning: Meaning) -> Episode:
    """Returns the demonstration up to its first success; without one, up to its last step, which is truncated."""
    successes = meaning.success_steps(demo.marks)
    terminates = bool(successes.any())
    T = int(successes.argmax()) + 1 if terminates else demo.marks.num_steps
    is_cut = demo.marks.num_steps > T
    observations = {key: _rows(demo, key, T) for key in demo.observations}
    has_final = is_cut or demo.finals is not None
    if demo.instruction is not None:
        observations[INSTRUCTION_KEY] = np.array([demo.instruction] * (T + has_final), dtype=str)
    rewards = successes.astype(np.float64) if demo.marks.rewards is None else demo.marks.rewards
    return Episode(
        observations=observations,
        actions=demo.actions[:T],
        rewards=rewards[:T],
        terminations=last_only(T) & terminates,
        truncations=last_only(T) & (not terminates),
        success=meaning.success(demo.marks),
        source=demo.marks.source,
        has_final_observation=has_final,
    )


def _rows(demo: _Demo, key: str, num_steps: int) -> Rows:
    """Returns one observation of the first `num_steps` steps, and its successor where the file has it."""
    rows = demo.observations[key]
    parts = [(rows, 0, min(num_steps + 1, len(rows)))]
    if num_steps == len(rows) and demo.finals is not None:
        parts.append(demo.finals[key])
    return join_rows(parts, f"{demo.marks.source}/next_obs/{key}")


def _rules(demos: Sequence[_Demo], episodes: Sequence[Episode], meaning: Meaning) -> dict[str, str]:
    left_out = sum(demo.marks.num_steps for demo in demos) - sum(episode.num_steps for episode in episodes)
    cut = f"; {left_out} steps after it are left out" if left_out else ""
    lacking = [episode.has_final_observation for episode in episodes].count(False)
    final = "next_obs of the last step" + ("; the next obs where the episode was cut at success" if left_out else "")
    absent = f"; none in {lacking} of {len(episodes)} episodes, which have no next_obs or only obs again"
    rules = {
        "dones": meaning.dones_rule,
        "terminated": f"the first step of success, where the episode ends{cut}"
        if meaning.basis != "nothing"
        else "never",
        "truncated": "the last step of an episode without success",
        "success": meaning.success_rule,
        "final observation": final + (absent if lacking else ""),
    }
    return rules | ({"rewards": "1 at success, else 0: the file has none"} if demos[0].marks.rewards is None else {})


def _check_keys(demos: Sequence[_Demo]) -> None:
    """Makes sure that no demonstration lacks a key; `make_dataset` compares the shapes."""
    for demo in demos[1:]:
        expected, found = (sorted(each.observations) for each in (demos[0], demo))
        if expected != found:
            raise DatasetError(
                f"{demo.marks.source}: obs must have the keys {expected} of {demos[0].marks.source}, got {found}; "
                "write the missing ones, or remove the others from every demonstration"
            )
        if (demo.instruction is None) != (demos[0].instruction is None):
            raise DatasetError(
                f"{demo.marks.source} and {demos[0].marks.source}: only one of them has an instruction (ep_meta, "
                "lang); write one for every demonstration, or for none"
            )


def _instruction(group: h5py.Group, data: h5py.Group) -> str | None:
    """Returns what RoboCasa writes into an episode's `ep_meta`, or LIBERO into `problem_info` of data; else None."""
    texts = {"lang": _attribute(group, "ep_meta"), "language_instruction": _attribute(data, "problem_info")}
    for name, value in texts.items():
        content = _json(value)
        text = content.get(name) if isinstance(content, dict) else None
        if isinstance(text, str) and text:
            return text
    return None


def _read_metadata(file: h5py.File, data: h5py.Group) -> dict[str, Any]:
    """Returns `env_args` as written, the environment in it, and how many demonstrations each filter of /mask names."""
    metadata: dict[str, Any] = {}
    arguments, mask = _json(_attribute(data, "env_args")), children(file).get("mask")
    if arguments is not None:
        metadata["env_args"] = arguments
    if isinstance(arguments, dict) and environment_id(arguments.get("env_name")):
        kwargs = arguments.get("env_kwargs")
        metadata["environment_id"] = arguments["env_name"]
        metadata["environment_kwargs"] = kwargs if isinstance(kwargs, dict) else {}
    if isinstance(mask, h5py.Group):
        filters = {name: each for name, each in children(mask).items() if isinstance(each, h5py.Dataset)}
        metadata["masks"] = {name: int(each.size or 0) for name, each in filters.items()}
    return metadata


def _attribute(group: h5py.Group, name: str) -> Any:
    value = read_attribute(group, name)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _json(value: object) -> Any:
    """Returns the content of a JSON text, the text itself where it is no JSON, None where it is no text."""
    if not isinstance(value, str):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _group(group: h5py.Group, name: str) -> h5py.Group:
    found = member(group, name)
    if not isinstance(found, h5py.Group):
        raise DatasetError(f"{place(found)} must be a group, got a dataset; rename it, or convert the file again")
    return found
