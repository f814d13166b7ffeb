"""The scripted expert of the suite: the expert of whatever task the present episode is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qtransformer_envs.tabletop.env import TabletopEnv

__all__ = ["TabletopExpert"]


class TabletopExpert:
    """Acts in the environment that it was made from, whose true state it reads.

    `seed` is there because collectors seed every policy; this expert draws nothing.
    """

    def __init__(self, env: TabletopEnv, seed: int) -> None:
        self._env = env
        self.seed = seed

    def reset(self) -> None:
        """Starts an episode; nothing to forget."""

    def act(self) -> np.ndarray:
        """Returns the action for the present state, float32, in [-1, 1]; ends the episode once the task is done."""
        action = self._env.task.act()
        if self._env.action_space.shape == (7,):
            return action
        is_done = self._env.task.is_success()
        return np.append(action, np.float32(1.0 if is_done else -1.0))
