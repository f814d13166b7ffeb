"""Minari's metadata.json: what it says of spaces, environment and limits, in both directions.

Special about this file: reader and recorder share it, so what is written is what is read. Minari keeps spaces as
JSON strings; the extra key `qtransformer_spec` holds our full spec (names, units, rate), which Minari ignores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec

from ..schema import DatasetError, Episode

METADATA_NAME = "metadata.json"
SPEC_KEY = "qtransformer_spec"
FLAT_KEY = "state"


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


def read_spec(metadata: Mapping[str, Any], episodes: list[Episode]) -> DatasetSpec:
    """Returns our own spec where metadata has one, else one derived from the arrays, `action_space` and `env_spec`.

    Raises:
        DatasetError: the metadata contradicts the arrays, or the action space is no Box.
    """
    arrays = episodes[0].observations
    if SPEC_KEY in metadata:
        try:
            spec = DatasetSpec.from_json(metadata[SPEC_KEY])
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{METADATA_NAME}: {SPEC_KEY} is damaged ({error!r}); repair or remove this key"
            ) from error
    else:
        observations = tuple(
            derive_observation(key, array.shape[1:], str(array.dtype)) for key, array in arrays.items()
        )
        environment = _json_value(metadata, "env_spec")
        environment_kwargs = environment.get("kwargs") or {}
        actions = _derive_actions(metadata, episodes)
        spec = DatasetSpec(observations, actions, None, environment.get("id"), environment_kwargs)
    _compare(spec, episodes[0])
    return spec


def derive_observation(key: str, shape: tuple[int, ...], dtype: str) -> ObservationSpec:
    """Returns the spec of a state whose elements nobody named: `key[0]`, `key[1]` ..., without units."""
    names = tuple(f"{key}[{index}]" for index in range(int(np.prod(shape))))
    return ObservationSpec(key, tuple(shape), dtype, "state", names, ("",) * len(names))


def spaces(spec: DatasetSpec) -> dict[str, str]:
    """Returns Minari's `observation_space` and `action_space` strings."""
    boxes = {
        each.name: _box(each.dtype, np.full(each.shape, -np.inf), np.full(each.shape, np.inf))
        for each in spec.observations
    }
    observations = boxes[FLAT_KEY] if set(boxes) == {FLAT_KEY} else _nested(boxes)
    actions = _box("float32", np.asarray(spec.actions.low), np.asarray(spec.actions.high))
    return {"observation_space": json.dumps(observations), "action_space": json.dumps(actions)}


def _box(dtype: str, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    if np.dtype(dtype).kind in "iu" and not np.isfinite(low).all():
        limits = np.iinfo(dtype)
        low, high = np.full(low.shape, limits.min), np.full(high.shape, limits.max)
    return {"type": "Box", "dtype": dtype, "shape": list(low.shape), "low": low.tolist(), "high": high.tolist()}


def _nested(boxes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    root: dict[str, Any] = {"type": "Dict", "subspaces": {}}
    for key, box in boxes.items():
        *groups, name = key.split("/")
        node = root
        for group in groups:
            node = node["subspaces"].setdefault(group, {"type": "Dict", "subspaces": {}})
        node["subspaces"][name] = box
    return root


def _derive_actions(metadata: Mapping[str, Any], episodes: list[Episode]) -> ActionSpec:
    space = _json_value(metadata, "action_space")
    if space.get("type", "Box") != "Box":
        raise DatasetError(
            f"{METADATA_NAME}: action_space must be a Box, got {space['type']}; only continuous actions work"
        )
    num_dimensions = episodes[0].actions.shape[1]
    low, high = (np.ravel(np.asarray(space.get(name, []), np.float64)) for name in ("low", "high"))
    if low.size != num_dimensions or not np.isfinite([low, high]).all():
        actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
        low, high = actions.min(axis=0), actions.max(axis=0)
    names = tuple(f"action[{index}]" for index in range(num_dimensions))
    return ActionSpec(tuple(low.tolist()), tuple(high.tolist()), names, ("",) * num_dimensions)


def _json_value(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    text = metadata.get(key)
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise DatasetError(f"{METADATA_NAME}: {key} is not valid JSON ({error}); repair or remove this key") from error
    return value if isinstance(value, dict) else {}


def _compare(spec: DatasetSpec, episode: Episode) -> None:
    expected = {each.name: each.shape for each in spec.observations}
    found = {key: array.shape[1:] for key, array in episode.observations.items()}
    if expected != found:
        raise DatasetError(
            f"{episode.source}: observations must be {expected} after {METADATA_NAME}, got {found}; repair it"
        )
    if spec.actions.num_dimensions != episode.actions.shape[1]:
        raise DatasetError(
            f"{episode.source}: actions must have {spec.actions.num_dimensions} dimensions after {METADATA_NAME}, "
            f"got {episode.actions.shape[1]}; repair it"
        )
