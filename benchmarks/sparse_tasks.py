"""Manipulation tasks of other packages with a sparse reward: 1 at the first success, which ends the episode, else 0.

Importing it registers `sparse/pick-place-v3`, `sparse/push-v3`, `sparse/drawer-open-v3`, `sparse/button-press-v3` (of
MetaWorld, at most 200 steps) and `sparse/HandReach-v3` (of Gymnasium-Robotics, at most 50 steps, its own limit), so
that `qtransformer collect` and `evaluate` take them with `--import sparse_tasks`. What counts as a success is the
simulator's own rule; `info["success"]` says so. Same seed, same episode. Each offers `make_expert(seed)`.

Beside them two tasks of our own, whose experts have habits: `sparse/CrossMaze-v0` and `sparse/PickCubeHabits-v0`.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np

METAWORLD_TASKS = ("pick-place-v3", "push-v3", "drawer-open-v3", "button-press-v3")
METAWORLD_STEPS = 200
HAND_STEPS = 50
MAZE_STEPS = 40
PICK_CUBE_STEPS = 80


class Expert(Protocol):
    """A scripted policy that sees its environment from inside."""

    def reset(self) -> None:
        """Forgets the last episode."""
        ...

    def act(self) -> np.ndarray:
        """Returns the action for the present state, within the action space."""
        ...


class SparseTask(gymnasium.Env):
    """A simulator whose reward is replaced by its success; a subclass says how to read both."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts the episode that `seed` determines; without one, the next of this environment's own generator."""
        super().reset(seed=seed)
        return self._start(int(self.np_random.integers(2**31))), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advances the simulator by one control step."""
        observation, is_success = self._advance(action)
        return observation, float(is_success), is_success, False, {"success": is_success}

    def make_expert(self, seed: int) -> Expert:
        """Returns the scripted expert; none of them draws random numbers, so `seed` changes nothing."""
        raise NotImplementedError

    def _start(self, seed: int) -> np.ndarray:
        """Returns the first observation of the episode of `seed`."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns the next observation and whether the task is done."""
        raise NotImplementedError


for _task in METAWORLD_TASKS:
    gymnasium.register(
        f"sparse/{_task}",
        "sparse_metaworld:SparseMetaWorld",
        max_episode_steps=METAWORLD_STEPS,
        kwargs={"task": _task},
        disable_env_checker=True,  # observations may leave the space that MetaWorld declares by a rounding error
    )
gymnasium.register(
    "sparse/HandReach-v3", "sparse_hand:SparseHandReach", max_episode_steps=HAND_STEPS, disable_env_checker=True
)
gymnasium.register("sparse/CrossMaze-v0", "sparse_maze:CrossMaze", max_episode_steps=MAZE_STEPS)
gymnasium.register("sparse/PickCubeHabits-v0", "sparse_habits:PickCubeHabits", max_episode_steps=PICK_CUBE_STEPS)
