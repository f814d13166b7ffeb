"""Minari's metadata.json: what it says of spaces, environment and limits, in both directions.

Special about this file: reader and recorder share it, so what is written is what is read. Minari keeps spaces as
JSON strings; the extra key `qtransformer_spec` holds our full spec (names, units, rate), which Minari ignores.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.batch import FLAT_KEY, ActionSpec, DatasetSpec, ObservationSpec

from ..schema import DatasetError, Episode
from .specs import derive_actions, derive_observations, natural_order

METADATA_NAME = "metadata.json"
SPEC_KEY = "qtransformer_spec"
_MIN_JPEG_SIDE = 32  # Minari takes smaller uint8 arrays for grids
_MAX_TEXT = 4096
_CHARACTERS = string.printable


def read_metadata(folder: Path) -> dict[str, Any]:
    """Returns the content of metadata.json; empty where there is none (a bare HDF5 file).

    Raises:
        DatasetError: the file is not a JSON object.
    """
    path = folder / METADATA_NAME
    if not path.exists():
        return {}
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(
            f"{path} is not valid JSON ({error}); repair it, or remove it to do without names"
        ) from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{path} must hold a JSON object, got {type(metadata).__name__}; repair or remove it")
    return metadata


def read_spec(
    metadata: Mapping[str, Any], episodes: Sequence[Episode], action_names: tuple[str, ...] = ()
) -> tuple[DatasetSpec, str]:
    """Returns the spec of a dataset, and the rule by which its action limits were found.

    Our own spec where metadata has one, else one derived from the arrays, `action_space` and `env_spec`.

    Args:
        metadata: the content of metadata.json.
        episodes: all episodes; the first stands for their shapes.
        action_names: of the dimensions, where the file keeps actions in groups.

    Raises:
        DatasetError: the metadata contradicts the arrays, or the action space is not continuous.
    """
    if SPEC_KEY in metadata:
        try:
            spec, rule = DatasetSpec.from_json(metadata[SPEC_KEY]), f"{SPEC_KEY} in {METADATA_NAME}"
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{METADATA_NAME}: {SPEC_KEY} is damaged ({error!r}); repair or remove this key"
            ) from error
    else:
        environment = _json_value(metadata, "env_spec")
        actions, rule = _derive_actions(metadata, episodes, action_names)
        observations = derive_observations(episodes[0].observations)
        spec = DatasetSpec(observations, actions, None, environment.get("id"), environment.get("kwargs") or {})
    _compare(spec, episodes[0])
    return spec, rule


def is_jpeg_shape(shape: Sequence[int]) -> bool:
    """Returns whether Minari takes rows (height, width, ...) for a JPEG file each, where `jpeg_encoding` is set."""
    return min(shape[:2]) >= _MIN_JPEG_SIDE


def spaces(spec: DatasetSpec, is_jpeg: bool) -> dict[str, str]:
    """Returns Minari's `observation_space` and `action_space` strings; `is_jpeg` is its `jpeg_encoding`."""
    leaves = {each.name: _space(each, is_jpeg) for each in spec.observations}
    observations = leaves[FLAT_KEY] if set(leaves) == {FLAT_KEY} else _nested(leaves)
    actions = _box("float32", np.asarray(spec.actions.low), np.asarray(spec.actions.high))
    return {"observation_space": json.dumps(observations), "action_space": json.dumps(actions)}


def _space(spec: ObservationSpec, is_jpeg: bool) -> dict[str, Any]:
    if spec.kind == "text":
        return {"type": "Text", "max_length": _MAX_TEXT, "min_length": 0, "charset": _CHARACTERS}
    if spec.kind == "image":
        is_grey = is_jpeg and is_jpeg_shape(spec.shape) and spec.shape[2] == 1
        shape = spec.shape[:2] if is_grey else spec.shape  # as Minari decodes a grey JPEG: without channels axis
        return _box("uint8", np.zeros(shape, int), np.full(shape, 255))
    return _box(spec.dtype, np.full(spec.shape, -np.inf), np.full(spec.shape, np.inf))


def _box(dtype: str, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    if np.dtype(dtype).kind in "iub" and not np.isfinite(low).all():
        smallest, largest = (0, 1) if np.dtype(dtype).kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        low, high = np.full(low.shape, smallest), np.full(high.shape, largest)
    return {"type": "Box", "dtype": dtype, "shape": list(low.shape), "low": low.tolist(), "high": high.tolist()}


def _nested(leaves: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    root: dict[str, Any] = {"type": "Dict", "subspaces": {}}
    for key, leaf in leaves.items():
        *groups, name = key.split("/")
        node = root
        for group in groups:
            node = node["subspaces"].setdefault(group, {"type": "Dict", "subspaces": {}})
        node["subspaces"][name] = leaf
    return _with_tuples(root)


def _with_tuples(space: dict[str, Any]) -> dict[str, Any]:
    """Returns the space with every Dict of `_index_0`, `_index_1`, ... as the Tuple that Minari writes so."""
    if space["type"] != "Dict":
        return space
    subspaces = {name: _with_tuples(each) for name, each in space["subspaces"].items()}
    indices = [f"_index_{index}" for index in range(len(subspaces))]
    if set(subspaces) == set(indices):
        return {"type": "Tuple", "subspaces": [subspaces[name] for name in indices]}
    return {"type": "Dict", "subspaces": subspaces}


def _derive_actions(
    metadata: Mapping[str, Any], episodes: Sequence[Episode], names: tuple[str, ...]
) -> tuple[ActionSpec, str]:
    space = _json_value(metadata, "action_space")
    low, high = (_limits(space, name) for name in ("low", "high"))
    num_dimensions = episodes[0].actions.shape[1]
    if low.size != num_dimensions or not np.isfinite([low, high]).all():
        return derive_actions(np.concatenate([episode.actions for episode in episodes]), names)
    names = names or tuple(f"action[{index}]" for index in range(num_dimensions))
    actions = ActionSpec(tuple(low.tolist()), tuple(high.tolist()), names, ("",) * num_dimensions)
    return actions, f"action_space in {METADATA_NAME}"


def _limits(space: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns one side of the limits of a Box, or of the Boxes of a Dict or Tuple one after another."""
    kind, parts = space.get("type", "Box"), space.get("subspaces", {})
    if kind in ("Dict", "Tuple"):
        values = [parts[key] for key in sorted(parts, key=natural_order)] if isinstance(parts, dict) else list(parts)
        return np.concatenate([_limits(each, name) for each in values]) if values else np.zeros(0)
    if kind != "Box":
        raise DatasetError(f"{METADATA_NAME}: action_space must be of Boxes, got {kind}; only continuous actions work")
    limits = np.asarray(space.get(name, []), np.float64)
    shape = tuple(space.get("shape", limits.shape))
    return np.ravel(np.broadcast_to(limits, shape) if limits.ndim == 0 else limits)


def _json_value(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    text = metadata.get(key)
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise DatasetError(f"{METADATA_NAME}: {key} is not valid JSON ({error}); repair or remove this key") from error
    return value if isinstance(value, dict) else {}


def _compare(spec: DatasetSpec, episode: Episode) -> None:
    expected = {each.name: each.shape for each in spec.observations}
    found = {key: tuple(rows.shape[1:]) for key, rows in episode.observations.items()}
    if expected != found:
        raise DatasetError(
            f"{episode.source}: observations must be {expected} after {METADATA_NAME}, got {found}; repair it"
        )
    if spec.actions.num_dimensions != episode.actions.shape[1]:
        raise DatasetError(
            f"{episode.source}: actions must have {spec.actions.num_dimensions} dimensions after {METADATA_NAME}, "
            f"got {episode.actions.shape[1]}; repair it"
        )
