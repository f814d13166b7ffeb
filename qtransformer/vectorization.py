"""Environments that are stepped side by side, in this process or each in a process of its own, and survive crashes.

Special about this file: Gymnasium's vector environments are not used. One exception in one of theirs ends all of them,
a dead process cannot be made anew, and resetting one environment alone to a seed of its own is not in every version
that we allow. Here an environment answers commands one by one; an exception or the death of its process is an answer,
too, and the next command finds a fresh environment. It must not know policies or what counts as success.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from qtransformer.batch import episode_goal, flatten_observation
from qtransformer.config import RunError

Vectorization = Literal["sync", "async"]
Make = Callable[[], gymnasium.Env]

_CLOSING_S = 3.0  # what a process may take to close its environment before it is killed
_NO_PICTURES = (
    "rendering is unavailable ({error}); without a screen install libegl1 libgl1 libgl1-mesa-dri libegl-mesa0 and set "
    "MUJOCO_GL=egl, or install libosmesa6 and set MUJOCO_GL=osmesa"
)


@dataclass(frozen=True)
class Reset:
    """The command to start the episode of `seed`; an action (an array) is the other command."""

    seed: int
    is_drawn: bool = False
    """Whether every step of the episode comes with a picture."""


@dataclass(frozen=True)
class Step:
    """What an environment said to a reset or an action."""

    observation: Mapping[str, Any]
    """By key as in a log: nested keys joined by "/", a plain array is `state`."""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None
    """`info["success"]`, None where the environment does not say."""
    task: str | None = None
    """`info["task"]`, or else the observation `instruction`."""
    goal: str | None = None
    """`episode_goal` of a reset."""
    frame: np.ndarray | None = None
    """(height, width, 3) uint8, where the episode is drawn."""


@dataclass(frozen=True)
class Crash:
    """The environment failed; the next command finds one that was made anew."""

    error: str


@dataclass(frozen=True)
class EnvironmentFacts:
    """What is the same for all environments of an evaluation."""

    environment_id: str
    render_fps: float


@contextmanager
def open_environments(
    vectorization: Vectorization, make: Make, num_envs: int
) -> Iterator[SyncEnvironments | AsyncEnvironments]:
    """Yields `num_envs` environments, by slot 0, 1, ..., and closes them.

    Args:
        vectorization: `sync` steps them one after the other here, `async` each in a spawned process of its own.
        make: returns a new environment; for `async` it must be something that pickle can send.
        num_envs: how many.

    Raises:
        RunError: an environment cannot be made; later on, from `answer`: it cannot be made anew, or cannot be drawn.
    """
    environments = (SyncEnvironments if vectorization == "sync" else AsyncEnvironments)(make, num_envs)
    try:
        yield environments
    finally:
        environments.close()


def made(make: Make) -> gymnasium.Env:
    """Returns a new environment.

    Raises:
        RunError: it cannot be made.
    """
    try:
        return make()
    except RunError:
        raise
    except Exception as error:  # the constructors of environments raise whatever they like
        raise RunError(f"the environment cannot be made: {_sentence(error)}; correct its id or its settings") from error


class SyncEnvironments:
    """Environments in this process; what kills the process, a crash of a simulator in C, ends the evaluation."""

    def __init__(self, make: Make, num_envs: int) -> None:
        self._hosts = [Host(make) for _ in range(num_envs)]
        self.facts = self._hosts[0].facts

    def answer(self, commands: Mapping[int, Reset | np.ndarray]) -> dict[int, Step | Crash]:
        """Passes each slot its command, one after the other, and returns the answers."""
        return {slot: self._hosts[slot].answer(command) for slot, command in commands.items()}

    def close(self) -> None:
        """Closes the environments."""
        for host in self._hosts:
            host.close()


class AsyncEnvironments:
    """Environments that step at the same time, each in a process of its own."""

    def __init__(self, make: Make, num_envs: int) -> None:
        self._remotes = [_Remote(make) for _ in range(num_envs)]
        try:
            self.facts, *_ = [remote.wait_until_ready() for remote in self._remotes]
        except BaseException:
            self.close()
            raise

    def answer(self, commands: Mapping[int, Reset | np.ndarray]) -> dict[int, Step | Crash]:
        """Sends all commands, then waits for all answers, which it returns."""
        for slot, command in commands.items():
            self._remotes[slot].send(command)
        return {slot: self._remotes[slot].receive() for slot in commands}

    def close(self) -> None:
        """Ends the processes."""
        for remote in self._remotes:
            remote.send(None)
        for remote in self._remotes:
            remote.close()


class Host:
    """One environment, made anew after each of its exceptions."""

    def __init__(self, make: Make) -> None:
        self._make, self._environment, self._is_drawn = make, made(make), False

    @property
    def facts(self) -> EnvironmentFacts:
        """The environment's id and its pictures a second."""
        spec, rate = self._environment.spec, self._environment.metadata.get("render_fps")
        return EnvironmentFacts(spec.id if spec else "unregistered", float(rate or 10))

    def answer(self, command: Reset | np.ndarray) -> Step | Crash:
        """Carries out a command.

        Raises:
            RunError: the environment cannot be made anew, or cannot be drawn.
        """
        try:
            step = self._reset(command) if isinstance(command, Reset) else self._step(command)
        except Exception as error:  # whatever the environment raises is a crash of its episode
            self.close()
            self._environment = made(self._make)
            return Crash(_sentence(error))
        return replace(step, frame=self._draw()) if self._is_drawn else step

    def close(self) -> None:
        """Closes the environment, even one that is broken."""
        with suppress(Exception):
            self._environment.close()

    def _reset(self, command: Reset) -> Step:
        self._is_drawn = command.is_drawn
        observation, info = self._environment.reset(seed=command.seed)
        leaves = _leaves(observation)
        return Step(leaves, task=_task(leaves, info), goal=episode_goal(info))

    def _step(self, action: np.ndarray) -> Step:
        observation, reward, terminated, truncated, info = self._environment.step(action)
        success = bool(info["success"]) if "success" in info else None
        leaves = _leaves(observation)
        return Step(leaves, float(reward), bool(terminated), bool(truncated), success, _task(leaves, info))

    def _draw(self) -> np.ndarray:
        try:
            frame: Any = self._environment.render()
        except Exception as error:  # each renderer fails in its own way
            raise RunError(_NO_PICTURES.format(error=error) if "MUJOCO_GL" not in str(error) else str(error)) from error
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise RunError(
                f"render() must return uint8 pictures (height, width, 3), got {type(frame).__name__}; "
                "give the environment render_mode='rgb_array', or evaluate without pictures"
            )
        return frame.copy()


class _Remote:
    """A `Host` in a process of its own. Spawned: a fork would share threads, locks and graphics contexts."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._start()

    def send(self, command: Reset | np.ndarray | None) -> None:
        with suppress(OSError):  # a dead process is noticed when its answer is missing
            self._connection.send(command)

    def receive(self) -> Step | Crash:
        reply = self._reply()
        if reply is not None:
            return reply
        crash = Crash(self._cause_of_death())
        self.close()
        self._start()
        self.wait_until_ready()
        return crash

    def wait_until_ready(self) -> EnvironmentFacts:
        """Returns what the environment says of itself, once it is made.

        Raises:
            RunError: it cannot be made.
        """
        facts = self._reply()
        if facts is None:
            raise RunError(
                f"{self._cause_of_death()} while it made its environment; try --vectorization sync to see why"
            )
        return facts

    def _reply(self) -> Any:
        """Returns what the process says, None if it is dead; raises the RunError that it sends."""
        try:
            reply = self._connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(reply, RunError):
            raise reply
        return reply

    def close(self) -> None:
        self._process.join(_CLOSING_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process ends the connection

    def _cause_of_death(self) -> str:
        self._process.join(_CLOSING_S)
        code = self._process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"the environment's process ended with {cause}"


def _serve(connection: Connection, make: Make) -> None:
    """Answers commands until None comes, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    with suppress(EOFError, OSError):
        try:
            host = Host(make)
            connection.send(host.facts)
            while (command := connection.recv()) is not None:
                connection.send(host.answer(command))
            host.close()
        except RunError as error:
            connection.send(error)


def _sentence(error: Exception) -> str:
    """Returns the exception in one line, with the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"


def _leaves(observation: Any) -> dict[str, Any]:
    """Returns the observation by key, in arrays that the environment does not write into again."""
    leaves = flatten_observation(observation)
    return {key: leaf.copy() if isinstance(leaf, np.ndarray) else leaf for key, leaf in leaves.items()}


def _task(leaves: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
    task = info.get("task", leaves.get("instruction"))
    return task if isinstance(task, str) else None
