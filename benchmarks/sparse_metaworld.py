"""MetaWorld's tasks with goal and object drawn anew from the seed at every reset, and the goal in the observation.

The observation is MetaWorld's own 39 numbers: hand, gripper and objects now, the same one step earlier, the goal.
"""

# metaworld lives in the environment `robots` of peers.py.
# pyright: reportMissingImports=false

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from sparse_tasks import Expert, SparseTask


class SparseMetaWorld(SparseTask):
    """One MetaWorld task; 4 actions (hand displacement x, y, z and gripper effort) in [-1, 1]."""

    def __init__(self, task: str) -> None:
        """Builds the simulator of `task`, such as "push-v3"."""
        self._task = task
        self._simulator: Any = ALL_V3_ENVIRONMENTS[task]()
        self._simulator._set_task_called = True  # instead of MetaWorld's list of 50 fixed goals:
        self._simulator._freeze_rand_vec = False  # ... draw object and goal at every reset
        self._simulator.seeded_rand_vec = True  # ... from the simulator's own, seeded generator
        self._simulator._partially_observable = False
        self._simulator.__dict__.pop("sawyer_observation_space", None)  # cached before the goal was visible
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        self.action_space = self._simulator.action_space
        self.metadata = {"render_modes": [], "render_fps": round(1 / self._simulator.dt)}

    def make_expert(self, seed: int) -> Expert:
        """Returns the policy of `metaworld.policies` for this task."""
        return _ScriptedPolicy(self, ENV_POLICY_MAP[self._task]())

    def _start(self, seed: int) -> np.ndarray:
        self._simulator.seed(seed)
        self.observation, _ = self._simulator.reset()
        return self.observation

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.observation, _, _, _, info = self._simulator.step(action)
        return self.observation, bool(info["success"])


class _ScriptedPolicy:
    """MetaWorld's policy, clipped to the action space as its simulator would."""

    def __init__(self, environment: SparseMetaWorld, policy: Any) -> None:
        self._environment, self._policy = environment, policy
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # of the clipping

    def reset(self) -> None:
        """The policy keeps no memory."""

    def act(self) -> np.ndarray:
        """Returns the clipped action for the newest observation."""
        return np.clip(self._policy.get_action(self._environment.observation), -1, 1).astype(np.float32)
