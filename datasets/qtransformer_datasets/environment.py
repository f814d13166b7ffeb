"""What a Gymnasium environment gives and takes, as a dataset's spec.

Special about this file: names and units come from the environment where it states them (`observation_elements`,
`action_elements`, `control_hz`), and only as long as no wrapper changes the spaces that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np

from qtransformer.batch import FLAT_KEY, ActionSpec, DatasetSpec, ObservationSpec

from .formats.specs import describe_state
from .schema import DatasetError


def describe_environment(environment: gymnasium.Env) -> DatasetSpec:
    """Returns the spec of what the environment gives and takes, with names and units where it states them.

    A uint8 Box of three axes is an image (height, width, channels); the parts of a Tuple are `_index_0`, `_index_1`.

    Raises:
        DatasetError: an observation is neither a Box, a Text, nor a Dict or Tuple of these, or the action space is no
            bounded vector.
    """
    base, space = environment.unwrapped, environment.action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise DatasetError(f"action_space must be a bounded Box of shape (A,), got {space}; wrap the environment")
    action_elements = getattr(base, "action_elements", None) if space == base.action_space else None
    names, units = _elements(action_elements, [f"action[{k}]" for k in range(space.shape[0])])
    low, high = (tuple(np.asarray(limit, np.float64).tolist()) for limit in (space.low, space.high))
    is_unchanged = environment.observation_space == base.observation_space
    described = getattr(base, "observation_elements", {}) if is_unchanged else {}
    observations = [_describe(key, leaf, described.get(key)) for key, leaf in _leaves(environment.observation_space)]
    return DatasetSpec(
        observations=tuple(sorted(observations, key=lambda each: each.name)),
        actions=ActionSpec(low, high, names, units),
        control_hz=_control_hz(base),
        environment_id=environment.spec.id if environment.spec else None,
        environment_kwargs=dict(environment.spec.kwargs) if environment.spec else {},
    )


def environment_attributes(environment: gymnasium.Env) -> dict[str, Any]:
    """Returns Minari's `env_spec`, empty where the environment has none that JSON can hold."""
    try:
        return {"env_spec": environment.spec.to_json()} if environment.spec else {}
    except ValueError:  # registered with a class instead of a string: our own spec has the id
        return {}


def _leaves(space: gymnasium.Space, key: str = "") -> Iterator[tuple[str, gymnasium.Space]]:
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        for name, subspace in _parts(space).items():
            yield from _leaves(subspace, f"{key}/{name}" if key else name)
    else:
        yield key or FLAT_KEY, space


def _parts(space: gymnasium.spaces.Dict | gymnasium.spaces.Tuple) -> Mapping[str, gymnasium.Space]:
    if isinstance(space, gymnasium.spaces.Dict):
        return {str(name): subspace for name, subspace in space.spaces.items()}
    return {f"_index_{index}": subspace for index, subspace in enumerate(space.spaces)}


def _describe(key: str, space: gymnasium.Space, elements: Any) -> ObservationSpec:
    if isinstance(space, gymnasium.spaces.Text):
        return ObservationSpec(key, (), "str", "text")
    if not isinstance(space, gymnasium.spaces.Box):
        raise DatasetError(f"observation {key} must be a Box or a Text, got {space}; leave it out, or wrap it")
    if space.dtype == np.uint8 and len(space.shape) == 3:
        return ObservationSpec(key, space.shape, "uint8", "image")
    shape = space.shape or (1,)
    names, units = _elements(elements, list(describe_state(key, shape, str(space.dtype)).elements))
    return ObservationSpec(key, shape, str(space.dtype), "state", names, units)


def _elements(elements: Any, fallback: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if elements is None:
        return tuple(fallback), ("",) * len(fallback)
    if len(elements) != len(fallback):
        raise DatasetError(
            f"elements ({elements}) must name {len(fallback)} values, got {len(elements)}; correct the environment"
        )
    return tuple(name for name, _ in elements), tuple(unit for _, unit in elements)


def _control_hz(base: gymnasium.Env) -> float | None:
    rate = getattr(base, "control_hz", None) or base.metadata.get("render_fps")
    return None if rate is None else float(rate)
