"""Recording a scripted expert with realistic mistakes, on several processes.

Special about this file: an episode depends on `seed + i` and its own generator alone, so the dataset is the same for
any number of workers, and a recording that was killed goes on to the same dataset. Workers only simulate; the parent
writes, in order; Ctrl-C and SIGTERM close the log with what is finished.
Skill varies between episodes, as it does between people: each draws how shaky and how absent-minded it is. With `mix`
each draws, before that, what kind of episode it is.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from qtransformer.batch import episode_goal
from qtransformer.signals import Stopped, StopWish, stop_wish

from .disturbances import Noise
from .environment import describe_environment, environment_attributes
from .episode_buffer import EpisodeBuffer
from .formats import open_dataset
from .minari_writer import ImageStorage
from .mix import Play, draw_kind, fit_shares, read_shares
from .recorder import Recorder
from .schema import DatasetError, Episode, EpisodeDataset

_WAIT_SECONDS = 0.5  # for an episode, before the parent looks whether it shall stop
_AHEAD = 8  # episodes a process that may wait for being written


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class CollectConfig:
    """What to record: the environment, how much of it, and how imperfect the expert is."""

    env_id: str = "qtransformer/PickCube-v0"
    """Gymnasium id; the environment must offer `make_expert(seed)`."""
    env_kwargs: str = "{}"
    """Settings of the environment, as JSON: '{"observations": ["image/front", "state"], "image_size": 64}'. The log
    keeps them, and `evaluate` plays with them."""
    episodes: int = 300
    """Number of episodes."""
    seed: int = 0
    """Episode i is reset with seed + i."""
    num_workers: int = field(default_factory=usable_cores)
    """Processes that simulate; the dataset does not depend on it."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules to import first, so that their environments are registered."""
    noise_std: float = 0.8
    """Largest Gaussian noise on the actions, in half action ranges; each episode draws its own up to this."""
    random_action_probability: float = 0.12
    """Largest probability per step that a random action starts; each episode draws its own up to this."""
    random_action_hold: int = 10
    """Most steps for which one random action is held."""
    mix: tuple[str, ...] | None = None
    """Record kinds of episodes in these shares, as in demonstrations=0.08,noisy_replay=0.92; also noisy_expert,
    wrong_object, dropped_object, early_stop and pauses. Alone: 8 % demonstrations, else replays and other mistakes.
    Without it all are of the noisy expert."""
    images: ImageStorage = "raw"
    """How images are stored: raw is read fastest, jpeg is small and lossy."""
    append: bool = False
    """Go on with a recording of the same settings that was killed, or is to become longer."""

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
        if self.mix is not None:
            read_shares(self.mix)
        self.settings()

    def settings(self) -> dict[str, Any]:
        """Returns `env_kwargs` as a dict.

        Raises:
            DatasetError: it is no JSON object.
        """
        try:
            settings = json.loads(self.env_kwargs)
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise DatasetError(f"env_kwargs ({self.env_kwargs}) must be a JSON object, as in '{{\"image_size\": 64}}'")
        return settings


def collect(config: CollectConfig, path: str | Path) -> EpisodeDataset:
    """Records `config.episodes` episodes into the new directory `path` and returns them as read back from it.

    Raises:
        DatasetError: the environment is unknown, has no expert or unsuitable spaces, or `path` holds something (with
            `append`: something else than the beginning of this recording); or one of several processes was killed.
        Stopped: Ctrl-C or SIGTERM before the last episode; those that were finished are in the log.
    """
    environment = make_environment(config)
    config, notes = _fit_mix(config, environment)
    spec, attributes = describe_environment(environment), _attributes(config, environment)
    environment.close()
    recorder = Recorder(path, spec, images=config.images, append=config.append, attributes=attributes)
    with stop_wish() as wish, recorder:
        indices = range(recorder.num_episodes, config.episodes)
        with _episodes(config, indices, wish) as episodes:
            for episode in _show_progress(episodes, indices, notes + recorder.notes):
                recorder.record(episode)
    if wish.is_there and recorder.num_episodes < config.episodes:
        where = f"{recorder.num_episodes} of {config.episodes} episodes are saved in {path}"
        raise Stopped(wish, f"{where}; go on with the same command and --append")
    return open_dataset(path)


def make_environment(config: CollectConfig) -> gymnasium.Env:
    """Returns the environment of `config`, after importing the modules that register it.

    Raises:
        DatasetError: a module is missing, the id or a setting is unknown, or the environment has no `make_expert`.
    """
    for module in config.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DatasetError(
                f"--import ({module}) must be an importable module ({error}); install it or correct the name"
            ) from error
    try:
        environment = gymnasium.make(config.env_id, **config.settings())
    except (TypeError, ValueError) as error:  # of its own constructor
        raise DatasetError(
            f"env_kwargs ({config.env_kwargs}) must be settings of {config.env_id}: {error}; correct them"
        ) from error
    except gymnasium.error.Error as error:
        raise DatasetError(
            f"env_id ({config.env_id}) must be a registered environment ({error}); "
            "correct the id, or name the module that registers it with --import"
        ) from error
    if not hasattr(environment.unwrapped, "make_expert"):
        raise DatasetError(
            f"env_id ({config.env_id}) must have make_expert(seed) -> object with reset() and act() -> action, "
            "got none; add this method to the environment, or record episodes with Recorder yourself"
        )
    return environment


def run_episode(environment: gymnasium.Env, config: CollectConfig, index: int) -> Episode:
    """Returns episode `index`: its own, drawn kind and skill; actions as executed, its end a truncation where it stops.

    `config.mix`, if there is one, must be possible in the environment.
    """
    generator = np.random.default_rng([config.seed, index])
    seed = config.seed + index
    kind = "noisy_expert" if config.mix is None else draw_kind(read_shares(config.mix), generator)
    play = Play(kind, environment, seed)
    observation, info = environment.reset(seed=seed)
    buffer = EpisodeBuffer(
        describe_environment(environment),
        observation,
        seed=seed,
        goal=episode_goal(info),
        source=f"{config.env_id}:seed_{seed}",
    )
    act, success = play.start(_noise(config, environment, generator), generator), None
    while not buffer.is_over and (action := act()) is not None:
        observation, reward, terminated, truncated, info = environment.step(action)
        buffer.step(action, observation, float(reward), terminated, truncated)
        success = info.get("success")
    episode = buffer.episode(None if success is None else bool(success))
    return episode if config.mix is None else replace(episode, behaviour=play.kind)


def _noise(config: CollectConfig, environment: gymnasium.Env, generator: np.random.Generator) -> Noise:
    space: Any = environment.action_space
    return Noise(
        space,
        generator,
        std=config.noise_std,
        probability=config.random_action_probability,
        hold=config.random_action_hold,
    )


def _fit_mix(config: CollectConfig, environment: gymnasium.Env) -> tuple[CollectConfig, tuple[str, ...]]:
    """Returns the configuration with shares that the environment can do, and sentences on what it cannot."""
    if config.mix is None:
        return config, ()
    shares, notes = fit_shares(config.mix, environment, config.seed)
    return replace(config, mix=tuple(f"{kind}={share!r}" for kind, share in shares.items())), notes


_worker_environment: gymnasium.Env | None = None  # one to a worker process


def _start_worker(config: CollectConfig) -> None:
    global _worker_environment
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    _worker_environment = make_environment(config)


def _run_in_worker(config: CollectConfig, index: int) -> Episode:
    assert _worker_environment is not None
    return run_episode(_worker_environment, config, index)


@contextmanager
def _episodes(config: CollectConfig, indices: range, wish: StopWish) -> Iterator[Iterator[Episode]]:
    """Gives the episodes of these indices in order, until somebody asks to stop.

    Processes are spawned: a fork would share files and threads.
    """
    num_workers = min(config.num_workers, len(indices))
    if num_workers <= 1:
        environment = make_environment(config)
        yield (run_episode(environment, config, index) for index in indices if not wish.is_there)
        environment.close()
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (config,))
    try:
        yield _received(pool, config, indices, wish)
    finally:
        pool.shutdown(cancel_futures=True)


def _received(pool: Executor, config: CollectConfig, indices: range, wish: StopWish) -> Iterator[Episode]:
    """Yields the episodes in order, a few made ahead, and asks now and then whether to stop.

    Raises:
        DatasetError: a process was ended from outside.
    """
    rest = iter(indices)
    ahead = deque(pool.submit(_run_in_worker, config, index) for index in islice(rest, _AHEAD * config.num_workers))
    while ahead and not wish.is_there:
        if not wait([ahead[0]], _WAIT_SECONDS).done:
            continue
        try:
            episode = ahead.popleft().result()
            ahead.extend(pool.submit(_run_in_worker, config, index) for index in islice(rest, 1))
        except BrokenProcessPool as error:
            if wish.is_there:  # the signal ended the workers, too
                return
            raise DatasetError(
                f"num_workers ({config.num_workers}) must leave memory for each; one of the processes was ended from "
                "outside; the finished episodes are kept: lower --num-workers, and go on with --append"
            ) from error
        yield episode


def _show_progress(episodes: Iterator[Episode], indices: range, notes: tuple[str, ...]) -> Iterator[Episode]:
    """Passes episodes on, with a progress bar on a terminal and ten plain lines elsewhere."""
    console, num_successes, total = Console(), 0, indices.stop
    for note in notes:
        console.print(note, highlight=False)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("recording", total=total, completed=indices.start)
        for index, episode in zip(indices, episodes, strict=False):  # fewer where somebody asks to stop
            yield episode
            num_successes += bool(episode.success)
            count, share = index + 1, num_successes / (index + 1 - indices.start)
            text = f"recorded {count}/{total} episodes, success rate {share:.0%}"
            progress.update(task, advance=1, description=text)
            if progress.disable and count * 10 // total > index * 10 // total:
                console.print(text, highlight=False)


def _attributes(config: CollectConfig, environment: gymnasium.Env) -> dict[str, Any]:
    noise = {name: getattr(config, name) for name in ("noise_std", "random_action_probability", "random_action_hold")}
    mix = {} if config.mix is None else {"mix": read_shares(config.mix)}
    name = "scripted expert with noise" if config.mix is None else "scripted expert with mistakes"
    attributes = {"algorithm_name": name, "collect": {"seed": config.seed, **noise, **mix}}
    return attributes | environment_attributes(environment)
