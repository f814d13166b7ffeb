"""The episode that is being recorded: every step is checked as it comes and held in RAM until the episode ends.

Special about this file: a robot that sends a wrong array is told so at that very step, by key, and a refused step
leaves the episode as it was. Observations come as an environment or a robot gives them, nested. It writes no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qtransformer.batch import DatasetSpec, ObservationSpec, flatten_observation

from .minari_writer import can_hold_text
from .schema import DatasetError, Episode


class EpisodeBuffer:
    """Collects one episode step by step; arrays are copied, so the caller may reuse its own."""

    def __init__(
        self,
        spec: DatasetSpec,
        observation: Any,
        *,
        seed: int | None = None,
        goal: str | None = None,
        source: str = "episode",
    ) -> None:
        """Starts with the first observation.

        Args:
            spec: what every step must look like.
            observation: as the environment gives it: nested dicts and tuples, or a bare array.
            seed: that the environment was reset with.
            goal: what is to be done, in words that are the same for all that mean the same.
            source: what messages and the episode call it.

        Raises:
            DatasetError: the observation does not match the spec.
        """
        self._spec, self._seed, self._goal, self._source = spec, seed, goal, source
        self._observations = [_check_observation(spec, observation, f"{source} observation 0")]
        self._actions: list[np.ndarray] = []
        self._steps: list[tuple[float, bool, bool]] = []

    @property
    def num_steps(self) -> int:
        """Steps so far."""
        return len(self._steps)

    @property
    def is_over(self) -> bool:
        """Whether the last step terminated or truncated the episode."""
        return bool(self._steps) and any(self._steps[-1][1:])

    def step(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        """Takes one step: the action, and what came of it. Where both flags are set the termination wins.

        Raises:
            DatasetError: the episode is over, or something does not match the spec; nothing was taken then.
        """
        where = f"{self._source} step {self.num_steps}"
        if self.is_over:
            raise DatasetError(f"{where}: the episode ended at the step before; end it and start the next one")
        checked = _check_observation(self._spec, observation, where)
        flags = _check_flag(terminated, f"{where}: terminated"), _check_flag(truncated, f"{where}: truncated")
        row = _check_action(action, self._spec.actions.num_dimensions, where)
        self._steps.append((_check_reward(reward, where), *flags))
        self._observations.append(checked)
        self._actions.append(row)

    def episode(self, success: bool | None = None) -> Episode:
        """Returns the steps so far as an episode, truncated where it was not terminated.

        Raises:
            DatasetError: there is no step, or `success` is neither True, False nor None.
        """
        if not self._steps:
            raise DatasetError(f"{self._source} must have at least one step, got none; take steps, or discard it")
        rewards, terminations, truncations = (np.array(column) for column in zip(*self._steps, strict=True))
        truncations[-1] = not terminations[-1]  # also where both flags are set: the termination wins
        return Episode(
            observations={
                each.name: np.stack([row[each.name] for row in self._observations]) for each in self._spec.observations
            },
            actions=np.stack(self._actions),
            rewards=rewards.astype(np.float64),
            terminations=terminations,
            truncations=truncations,
            success=None if success is None else _check_flag(success, f"{self._source}: success"),
            seed=self._seed,
            goal=self._goal,
            source=self._source,
        )


def _check_observation(spec: DatasetSpec, observation: Any, where: str) -> dict[str, np.ndarray]:
    leaves = flatten_observation(observation)
    expected, found = sorted(each.name for each in spec.observations), sorted(leaves)
    if expected != found:
        raise DatasetError(f"{where}: the observation must have the keys {expected}, got {found}")
    return {each.name: _check_row(each, leaves[each.name], f"{where}: {each.name}") for each in spec.observations}


def _check_row(spec: ObservationSpec, value: Any, where: str) -> np.ndarray:
    """Returns a copy of one row, as its spec wants it. Only what has no dtype yet (lists, numbers) is converted."""
    if spec.kind == "text":
        return _check_text(value, where)
    row = _as_array(value, where)
    if not hasattr(value, "dtype") and np.can_cast(row.dtype, spec.dtype, "same_kind"):
        row = _cast(value, spec.dtype, where)
    if row.shape == () and spec.shape == (1,):
        row = row.reshape(1)
    if row.shape != spec.shape or str(row.dtype) != spec.dtype:
        raise DatasetError(
            f"{where} must be {spec.dtype} of shape {spec.shape}, got {row.dtype} of shape {row.shape}; "
            "correct what sends it, or the spec"
        )
    return row


def _check_text(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, str):
        raise DatasetError(f"{where} must be a string, got {type(value).__name__}; correct what sends it, or the spec")
    if not can_hold_text(value):
        raise DatasetError(
            f"{where} must be text that UTF-8 can hold, without zero characters, got {value!r}; clean it"
        )
    return np.array(value)


def _check_action(action: Any, num_dimensions: int, where: str) -> np.ndarray:
    row = _as_array(action, f"{where}: action")
    if row.shape != (num_dimensions,) or row.dtype.kind not in "iuf":
        raise DatasetError(
            f"{where}: action must be numbers of shape ({num_dimensions},), got {row.dtype} of shape {row.shape}; "
            "log the action that was executed"
        )
    return row.astype(np.float32)


def _check_reward(reward: Any, where: str) -> float:
    value = _as_array(reward, f"{where}: reward")
    if value.shape != () or value.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: reward must be one number, got {value.dtype} of shape {value.shape}; correct it")
    return float(value)


def _check_flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise DatasetError(f"{what} must be True or False, got {value!r}; correct it")
    return bool(value)


def _as_array(value: Any, where: str) -> np.ndarray:
    try:
        return np.array(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DatasetError(f"{where} must be an array of numbers, got {type(value).__name__} ({error})") from error


def _cast(value: Any, dtype: str, where: str) -> np.ndarray:
    try:
        return np.array(value, dtype)
    except OverflowError as error:
        raise DatasetError(
            f"{where} must fit into {dtype}, got {value!r}; correct what sends it, or the spec"
        ) from error
