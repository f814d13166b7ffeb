"""The worker of `simulation.py`: the tabletop suite under one of MuJoCo's graphics backends, named on its command line.

Environments are made as users make them, with Gymnasium's wrappers; making and resetting them is not timed.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from harness import cpu_seconds, serve

from qtransformer.evaluation import Plan, Policy, evaluate, make_environment
from qtransformer_datasets.behaviours import rehearse
from qtransformer_envs import ENVIRONMENTS

MIXED_ID = "qtransformer/Tabletop-v0"
CAMERA = "image/front"


def task_ids() -> list[str]:
    """Returns the ids of the suite that hold one task each."""
    return [name for name, each in ENVIRONMENTS.items() if len(each.get("kwargs", {}).get("tasks", ())) == 1]


def why_unavailable() -> str | None:
    """Returns why this backend cannot draw here, None where it can."""
    try:
        environment = gymnasium.make(MIXED_ID, observations=("state", CAMERA))
        environment.reset(seed=0)
        environment.close()
    except Exception as error:  # each backend fails in its own way
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def steps_per_second(environment_id: str, num_steps: int, size: int | None = None) -> float:
    """Returns control steps per CPU second.

    Args:
        environment_id: of a task.
        num_steps: how many are timed.
        size: of an image that is observed beside all that usually is, pixels; None: without.
    """
    settings: dict[str, Any] = {}
    if size is not None:
        usual = gymnasium.make(environment_id).observation_space
        assert isinstance(usual, gymnasium.spaces.Dict)
        settings = {"observations": (*usual, CAMERA), "image_size": size}
    environment = gymnasium.make(environment_id, **settings)
    actions = _actions(environment, environment_id, num_steps)
    seconds = sum(cpu_seconds(partial(environment.step, action)) for action in actions)
    environment.close()
    return num_steps / seconds


def frames_per_second(environment_id: str, num_steps: int, size: int) -> float:
    """Returns pictures per CPU second of the same camera in the same states: the renderer alone."""
    environment = gymnasium.make(environment_id, image_size=size, render_mode="rgb_array")
    environment.reset(seed=0)
    environment.render()  # makes the renderer
    seconds = 0.0
    for action in _actions(environment, environment_id, num_steps):
        environment.step(action)
        seconds += cpu_seconds(environment.render)
    environment.close()
    return num_steps / seconds


def _actions(environment: gymnasium.Env, environment_id: str, num_steps: int) -> Iterator[np.ndarray]:
    """Yields actions to take in the environment, which is reset to each episode: what the expert does there."""
    for seed in itertools.count():
        actions = _rehearsed(environment_id, seed)[:num_steps]
        environment.reset(seed=seed)
        yield from actions
        num_steps -= len(actions)
        if not num_steps:
            return


@cache
def _rehearsed(environment_id: str, seed: int) -> list[np.ndarray]:
    return rehearse(gymnasium.make(environment_id), seed)


class Contest:
    """The same episodes with the same untrained policy, of the default size: in a plain loop, and by `evaluate`."""

    def __init__(self) -> None:
        self._make = partial(make_environment, MIXED_ID, {"observations": ("state",)}, ("qtransformer_envs",))
        self._policy: Policy | None = None

    def serial(self, num_episodes: int) -> dict[str, Any]:
        """Returns wall seconds and the lengths of the episodes of one loop over one environment."""
        policy, started = self._made_policy(), time.perf_counter()
        environment = self._make()
        lengths = [_play(environment, policy, seed) for seed in range(num_episodes)]
        environment.close()
        return {"seconds": time.perf_counter() - started, "lengths": lengths}

    def evaluated(self, num_episodes: int, vectorization: Literal["sync", "async"], num_envs: int) -> dict[str, Any]:
        """Returns the same of `evaluate`, the start of its processes included."""
        policy, started = self._made_policy(), time.perf_counter()
        plan = Plan(num_episodes, num_envs, seed=0, vectorization=vectorization)
        outcomes = evaluate(policy, self._make, plan).outcomes
        return {"seconds": time.perf_counter() - started, "lengths": [each.length for each in outcomes]}

    def _made_policy(self) -> Policy:
        if self._policy is None:
            self._policy = _untrained_policy(self._make())
        return self._policy


def _play(environment: gymnasium.Env, policy: Policy, seed: int) -> int:
    observation, _ = environment.reset(seed=seed)
    policy.reset(0)
    length, is_over = 0, False
    while not is_over:
        action = policy.act([0], [observation])[0]
        observation, _, terminated, truncated, _ = environment.step(action)
        length, is_over = length + 1, terminated or truncated
    return length


def _untrained_policy(environment: gymnasium.Env) -> Policy:
    import torch

    from qtransformer.config import TrainConfig
    from qtransformer.policy import CheckpointPolicy, build_policy
    from qtransformer_datasets.environment import describe_environment

    torch.manual_seed(0)
    torch.set_num_threads(1)
    spec = describe_environment(environment)
    (size,) = spec.observations[0].shape
    statistics = {"state": {"mean": np.zeros(size).tolist(), "std": np.ones(size).tolist()}}
    return CheckpointPolicy(build_policy(TrainConfig(Path("log"), Path("run")), spec, statistics).eval())


def main() -> None:
    """Answers calls, drawing with the backend that the command line names."""
    os.environ |= {"MUJOCO_GL": sys.argv[1], "LP_NUM_THREADS": "1"}
    contest = Contest()
    serve(
        {
            "task_ids": task_ids,
            "why_unavailable": why_unavailable,
            "steps_per_second": steps_per_second,
            "frames_per_second": frames_per_second,
            "serial": contest.serial,
            "evaluated": contest.evaluated,
        }
    )


if __name__ == "__main__":
    main()
