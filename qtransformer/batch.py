"""The data contract: what a dataset says of itself (specs) and what one training batch holds.

Special about this file: it is the one module that datasets and the learner share, so it is numpy only
and holds data without behaviour. Shapes are written once, here. It must not know torch, h5py or any environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ObservationKind = Literal["state", "image", "text", "embedding"]
Dones = Literal["infer", "success", "last-step", "both"]
Balance = Literal["steps", "task", "success", "return"]
FLAT_KEY = "state"  # what a bare observation is called


def flatten_observation(observation: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a (nested) observation by "/"-joined key; a bare one is named "state".

    The parts of a tuple are named `_index_0`, `_index_1`, ..., as Minari does.
    """
    if isinstance(observation, tuple):
        observation = {f"_index_{index}": part for index, part in enumerate(observation)}
    if not isinstance(observation, Mapping):
        return {prefix or FLAT_KEY: observation}
    parts = [flatten_observation(part, f"{prefix}/{key}" if prefix else str(key)) for key, part in observation.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}


def episode_goal(info: Mapping[str, Any]) -> str | None:
    """Returns what is to be done, in words that are the same for all that mean the same: `info["goal"]` of a reset.

    None where it is not in words; in some environments it is a place to reach.
    """
    goal = info.get("goal")
    return goal if isinstance(goal, str) else None


@dataclass(frozen=True)
class ReadOptions:
    """How to read what a file leaves open."""

    dones: Dones = "infer"
    """What robomimic's `dones` and LeRobot's `next.done` mark: the state of success, the last step of each episode, or
    both. `infer` decides from the data and says so."""
    instruction: str | None = None
    """Instruction in words for every episode of a log that has none: it becomes the observation `instruction`."""


@dataclass(frozen=True)
class ObservationSpec:
    """One observation key: `name`, `shape` of one frame, numpy `dtype`, `kind`, a name and a unit for each element."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: ObservationKind = "state"
    elements: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActionSpec:
    """The action vector: its limits in the environment's units, and a name and unit for each dimension."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    elements: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def num_dimensions(self) -> int:
        """Number of action dimensions."""
        return len(self.low)


@dataclass(frozen=True)
class DatasetSpec:
    """All that a model and a controller must know of a dataset, apart from its numbers."""

    observations: tuple[ObservationSpec, ...]
    actions: ActionSpec
    control_hz: float | None = None
    environment_id: str | None = None
    environment_kwargs: Mapping[str, Any] = field(default_factory=dict)
    ignored_observations: tuple[str, ...] = ()
    """Keys that the environment gives and that were left out of the log on purpose."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain lists, dicts, strings and numbers; `ignored_observations` only where there are any."""
        data = asdict(self)
        return data if self.ignored_observations else {k: v for k, v in data.items() if k != "ignored_observations"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetSpec:
        """Inverse of `to_json` (also after a round trip through a JSON file, where tuples became lists)."""
        observations = tuple(ObservationSpec(**tuples(each)) for each in data["observations"])
        rest = {key: data[key] for key in ("control_hz", "environment_id", "environment_kwargs")}
        ignored = tuple(data.get("ignored_observations", ()))
        return cls(observations, ActionSpec(**tuples(data["actions"])), **rest, ignored_observations=ignored)


def tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a JSON object, lists as tuples again."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


@dataclass(frozen=True)
class Batch:
    """Segments of consecutive steps: B segments, T steps, A action dimensions; all arrays numpy, or all torch.

        step           k = 0      1      2   ...  T-1
        observations      o0     o1     o2   ...  oT-1   oT      (one more than steps: the successor of the last step)
        actions, rewards  a0 r0  a1 r1  a2 r2 ... aT-1 rT-1

    Where an episode ends inside a segment the rest is padding: `is_valid` is False, the last observation is repeated,
    everything else is zero. Images are those of the `frames` alone, since no other is looked at.
    """

    observations: Mapping[str, Any]  # each (B, T + 1, *shape); images (B, F, *shape)
    actions: Any  # (B, T, A) float32, in the environment's units
    rewards: Any  # (B, T) float32
    terminations: Any  # (B, T) bool: the task ended here, no bootstrap
    has_successor: Any  # (B, T) bool: observations[:, k + 1] is the real successor of step k
    monte_carlo_returns: Any  # (B, T) float32: discounted return from step k on, at the least where the end was cut off
    is_success: Any  # (B,) bool: the episode that the segment was cut from succeeded, at what the segment is told
    is_relabelled: Any  # (B,) bool: told another task's instruction than its episode was, as a failure of that task
    is_valid: Any  # (B, T) bool: False on padding
    frames: Any  # (B, F) int64, increasing: which of the T + 1 observations the images show

    def map(self, function: Callable[[Any], Any]) -> Batch:
        """Returns a batch with `function` applied to every array (to move it to torch, a device, a type)."""
        values = {name: function(getattr(self, name)) for name in self.__dataclass_fields__ if name != "observations"}
        return Batch(observations={key: function(value) for key, value in self.observations.items()}, **values)
