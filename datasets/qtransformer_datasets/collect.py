"""Recording a scripted expert with realistic mistakes, on several processes.

Special about this file: an episode depends on `seed + i` and its own generator alone, so the dataset is the same for
any number of workers. Workers only simulate; the parent writes, in order, and an interrupt keeps what is finished.
Skill varies between episodes, as it does between people: each draws how shaky and how absent-minded it is.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.progress import Progress

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec

from .formats import open_dataset
from .formats.specs import FLAT_KEY, describe_state
from .recorder import Recorder
from .schema import DatasetError, Episode, EpisodeDataset


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class CollectConfig:
    """What to record: the environment, how much of it, and how imperfect the expert is."""

    env_id: str = "qtransformer/PickCube-v0"
    """Gymnasium id; the environment must offer `make_expert(seed)`."""
    episodes: int = 300
    """Number of episodes."""
    seed: int = 0
    """Episode i is reset with seed + i."""
    num_workers: int = field(default_factory=usable_cores)
    """Processes that simulate; the dataset does not depend on it."""
    imports: tuple[str, ...] = ("qtransformer_envs",)
    """Modules to import first, so that their environments are registered."""
    noise_std: float = 0.8
    """Largest Gaussian noise on the actions, in half action ranges; each episode draws its own up to this."""
    random_action_probability: float = 0.12
    """Largest probability per step that a random action starts; each episode draws its own up to this."""
    random_action_hold: int = 10
    """Most steps for which one random action is held."""

    def __post_init__(self) -> None:
        for name, is_sound, rule in (
            ("episodes", self.episodes >= 1, "be at least 1"),
            ("num_workers", self.num_workers >= 1, "be at least 1"),
            ("noise_std", self.noise_std >= 0, "be at least 0"),
            ("random_action_probability", 0 <= self.random_action_probability <= 1, "be in [0, 1]"),
            ("random_action_hold", self.random_action_hold >= 1, "be at least 1"),
        ):
            if not is_sound:
                raise DatasetError(f"{name} ({getattr(self, name)}) must {rule}; change this setting")


def collect(config: CollectConfig, path: str | Path) -> EpisodeDataset:
    """Records `config.episodes` episodes into the new directory `path` and returns them as read back from it.

    Raises:
        DatasetError: the environment is unknown, has no expert or unsuitable spaces, or `path` holds something.
    """
    environment = make_environment(config)
    spec, attributes = describe_environment(environment), _attributes(config, environment)
    environment.close()
    with Recorder(path, spec, attributes=attributes) as recorder, _episodes(config) as episodes:
        for episode in _show_progress(episodes, config.episodes):
            recorder.record(episode)
    return open_dataset(path)


def make_environment(config: CollectConfig) -> gymnasium.Env:
    """Returns the environment of `config`, after importing the modules that register it.

    Raises:
        DatasetError: a module is missing, the id is unknown, or the environment has no `make_expert`.
    """
    for module in config.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DatasetError(
                f"imports ({module}) must be an importable module ({error}); install it or correct the name"
            ) from error
    try:
        environment = gymnasium.make(config.env_id)
    except gymnasium.error.Error as error:
        raise DatasetError(
            f"env_id ({config.env_id}) must be a registered environment ({error}); "
            "correct the id, or name the module that registers it in imports"
        ) from error
    if not hasattr(environment.unwrapped, "make_expert"):
        raise DatasetError(
            f"env_id ({config.env_id}) must have make_expert(seed) -> object with reset() and act() -> action, "
            "got none; add this method to the environment, or record episodes with Recorder yourself"
        )
    return environment


def describe_environment(environment: gymnasium.Env) -> DatasetSpec:
    """Returns the spec of what the environment gives and takes, with names and units where it states them.

    Raises:
        DatasetError: an observation is no Box of numbers, or the action space no bounded vector.
    """
    base, space = environment.unwrapped, environment.action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise DatasetError(f"action_space must be a bounded Box of shape (A,), got {space}; wrap the environment")
    names, units = _elements(getattr(base, "action_elements", None), [f"action[{k}]" for k in range(space.shape[0])])
    low, high = (tuple(np.asarray(limit, np.float64).tolist()) for limit in (space.low, space.high))
    described = getattr(base, "observation_elements", {})
    observations = [_describe_box(key, box, described.get(key)) for key, box in _boxes(environment.observation_space)]
    return DatasetSpec(
        observations=tuple(sorted(observations, key=lambda each: each.name)),
        actions=ActionSpec(low, high, names, units),
        control_hz=_control_hz(base),
        environment_id=environment.spec.id if environment.spec else None,
        environment_kwargs=dict(environment.spec.kwargs) if environment.spec else {},
    )


def run_episode(environment: gymnasium.Env, config: CollectConfig, index: int) -> Episode:
    """Returns episode `index`: the expert with noise of this episode's own, drawn skill; actions as executed."""
    generator = np.random.default_rng([config.seed, index])
    seed = config.seed + index
    observation, _ = environment.reset(seed=seed)
    expert: Any = getattr(environment.unwrapped, "make_expert")(seed)  # noqa: B009 (Env does not declare it)
    expert.reset()
    disturb = _Disturbance(config, environment.action_space, generator)
    observations, actions, steps, success = [flatten(observation)], [], [], False
    is_over = False
    while not is_over:
        action = disturb(np.asarray(expert.act(), np.float32))
        observation, reward, terminated, truncated, info = environment.step(action)
        observations.append(flatten(observation))
        actions.append(action)
        steps.append((reward, terminated, truncated and not terminated))
        success, is_over = info.get("success"), terminated or truncated
    rewards, terminations, truncations = zip(*steps, strict=True)
    return Episode(
        observations={key: np.stack([each[key] for each in observations]) for key in sorted(observations[0])},
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float64),
        terminations=np.array(terminations, bool),
        truncations=np.array(truncations, bool),
        success=None if success is None else bool(success),
        seed=seed,
        source=f"{config.env_id}:seed_{seed}",
    )


def flatten(observation: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of a (nested) dict observation by "/"-joined key; a bare array is named "state"."""
    if not isinstance(observation, dict):
        return {prefix or FLAT_KEY: np.atleast_1d(observation)}
    parts = [flatten(value, f"{prefix}/{key}" if prefix else key) for key, value in observation.items()]
    return {key: array for part in parts for key, array in part.items()}


class _Disturbance:
    """Turns the expert's action into what a person of this episode's skill does; keeps the held random action."""

    def __init__(self, config: CollectConfig, space: Any, generator: np.random.Generator) -> None:
        self._space, self._generator, self._hold = space, generator, config.random_action_hold
        self._std = generator.uniform(0, config.noise_std) * (space.high - space.low) / 2
        self._probability = generator.uniform(0, config.random_action_probability)
        self._steps_left = 0
        self._random_action = space.low

    def __call__(self, action: np.ndarray) -> np.ndarray:
        if not self._steps_left and self._generator.random() < self._probability:
            self._steps_left = self._generator.integers(1, self._hold + 1)
            self._random_action = self._generator.uniform(self._space.low, self._space.high)
        if self._steps_left:
            self._steps_left -= 1
            action = self._random_action
        else:
            action = action + self._std * self._generator.standard_normal(self._space.shape)
        return np.clip(action, self._space.low, self._space.high).astype(np.float32)


_worker_environment: gymnasium.Env | None = None  # one to a worker process


def _start_worker(config: CollectConfig) -> None:
    global _worker_environment
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    _worker_environment = make_environment(config)


def _run_in_worker(config: CollectConfig, index: int) -> Episode:
    assert _worker_environment is not None
    return run_episode(_worker_environment, config, index)


@contextmanager
def _episodes(config: CollectConfig) -> Iterator[Iterator[Episode]]:
    """Gives the episodes in order. Processes are spawned: a fork would share open files and threads."""
    num_workers = min(config.num_workers, config.episodes)
    if num_workers == 1:
        environment = make_environment(config)
        yield (run_episode(environment, config, index) for index in range(config.episodes))
        environment.close()
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, _start_worker, (config,)) as pool:
        yield pool.imap(partial(_run_in_worker, config), range(config.episodes))


def _show_progress(episodes: Iterator[Episode], total: int) -> Iterator[Episode]:
    """Passes episodes on, with a progress bar on a terminal and ten plain lines elsewhere."""
    console, num_successes = Console(), 0
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("recording", total=total)
        for count, episode in enumerate(episodes, start=1):
            yield episode
            num_successes += bool(episode.success)
            text = f"recorded {count}/{total} episodes, success rate {num_successes / count:.0%}"
            progress.update(task, advance=1, description=text)
            if progress.disable and count * 10 // total > (count - 1) * 10 // total:
                console.print(text, highlight=False)


def _attributes(config: CollectConfig, environment: gymnasium.Env) -> dict[str, Any]:
    noise = {name: getattr(config, name) for name in ("noise_std", "random_action_probability", "random_action_hold")}
    attributes = {"algorithm_name": "scripted expert with noise", "collect": {"seed": config.seed, **noise}}
    try:
        return attributes | ({"env_spec": environment.spec.to_json()} if environment.spec else {})
    except ValueError:  # registered with a class instead of a string: JSON cannot hold it, our own spec has the id
        return attributes


def _boxes(space: gymnasium.Space, key: str = "") -> Iterator[tuple[str, gymnasium.spaces.Box]]:
    if isinstance(space, gymnasium.spaces.Dict):
        for name, subspace in space.spaces.items():
            yield from _boxes(subspace, f"{key}/{name}" if key else name)
    elif not isinstance(space, gymnasium.spaces.Box) or space.dtype == np.uint8:
        raise DatasetError(
            f"observation {key or FLAT_KEY} must be a Box of numbers, got {space}; not supported yet, leave it out"
        )
    else:
        yield key or FLAT_KEY, space


def _describe_box(key: str, box: gymnasium.spaces.Box, elements: Any) -> ObservationSpec:
    shape = box.shape or (1,)
    names, units = _elements(elements, list(describe_state(key, shape, str(box.dtype)).elements))
    return ObservationSpec(key, shape, str(box.dtype), "state", names, units)


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
