"""The Shadow hand of Gymnasium-Robotics: bring the thumb and one finger together, keep the other fingertips in place.

The observation is the simulator's own 63 numbers (joint angles, joint speeds, fingertips) and the 15 of the goal; the
20 actions are absolute targets of the actuated joints, scaled to [-1, 1]. Success: the norm of all five fingertip
errors together is below 0.01 m. One goal in ten is the pose at the start, so that it is reached in the first step.
"""

# gymnasium_robotics lives in the environment `robots` of peers.py; mujoco ships no types.
# pyright: reportMissingImports=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import gymnasium
import gymnasium_robotics
import mujoco
import numpy as np
from sparse_tasks import Expert, SparseTask

_FINGERTIPS = ("fftip", "mftip", "rftip", "lftip", "thtip")
_GAIN = 0.4  # of the remaining error that one control step removes
_DAMPING = 0.02  # m per rad, of the inverse
_COUPLING = 0.5  # rad that a finger's outermost joint follows per rad of the next one: it has no motor


class SparseHandReach(SparseTask):
    """`HandReach-v3` with the goal in a flat observation."""

    def __init__(self) -> None:
        """Builds the simulator."""
        gymnasium.register_envs(gymnasium_robotics)
        self.simulator: Any = gymnasium.make("HandReach-v3").unwrapped
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (78,), np.float64)
        self.action_space = self.simulator.action_space
        self.metadata = {"render_modes": [], "render_fps": self.simulator.metadata["render_fps"]}

    def make_expert(self, seed: int) -> Expert:
        """Returns inverse kinematics on the fingertips."""
        return _InverseKinematics(self)

    def _start(self, seed: int) -> np.ndarray:
        observation, _ = self.simulator.reset(seed=seed)
        return self._flat(observation)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        observation, _, _, _, info = self.simulator.step(action)
        return self._flat(observation), bool(info["is_success"])

    def _flat(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        self.error = observation["desired_goal"] - observation["achieved_goal"]  # (15,) m, of all fingertips
        return np.concatenate([observation["observation"], observation["desired_goal"]])


class _InverseKinematics:
    """Adds up damped least-squares steps of the joint targets, within their limits; the sum overcomes weak motors."""

    def __init__(self, environment: SparseHandReach) -> None:
        self._environment = environment
        self._model, self._data = environment.simulator.model, environment.simulator.data
        self._low, self._high = self._model.actuator_ctrlrange.T
        self._motion = _joint_motion(self._model)
        self._sites = [self._model.site(f"robot0:S_{name}").id for name in _FINGERTIPS]

    def reset(self) -> None:
        """Starts from the present joint angles."""
        self._targets = self._data.actuator_length.copy()

    def act(self) -> np.ndarray:
        """Returns the next joint targets, scaled to [-1, 1]."""
        room = self._low - self._targets, self._high - self._targets
        self._targets += _bounded_least_squares(self._jacobian(), _GAIN * self._environment.error, *room)
        centre, half_range = (self._high + self._low) / 2, (self._high - self._low) / 2
        return ((self._targets - centre) / half_range).astype(np.float32)

    def _jacobian(self) -> np.ndarray:
        """Returns the motion of the fingertips per motion of the actuators, (15, 20) m / rad."""
        rows = np.zeros((len(self._sites), 3, self._model.nv))
        for row, site in zip(rows, self._sites, strict=True):
            mujoco.mj_jacSite(self._model, self._data, row, None, site)
        return rows.reshape(-1, self._model.nv) @ self._motion


def _joint_motion(model: Any) -> np.ndarray:
    """Returns the motion of every joint per motion of every actuator, (nv, nu)."""
    motion = np.zeros((model.nv, model.nu))
    for index in range(model.nu):
        name = model.actuator(index).name.replace(":A_", ":")
        motion[model.joint(name).dofadr[0], index] = 1
        if name.endswith("FJ1"):
            motion[model.joint(f"{name[:-1]}0").dofadr[0], index] = _COUPLING
    return motion


def _bounded_least_squares(jacobian: np.ndarray, error: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns x in [low, high] that nearly minimises |jacobian x - error|^2 + damping^2 |x|^2.

    Elements that leave their limits are fixed there, and the others are solved for again, at most three times.
    """
    x, is_free = np.zeros(len(low)), np.ones(len(low), bool)
    for _ in range(4):
        A = jacobian[:, is_free]
        rest = error - jacobian[:, ~is_free] @ x[~is_free]
        x[is_free] = A.T @ np.linalg.solve(A @ A.T + _DAMPING**2 * np.eye(len(error)), rest)
        is_out = is_free & ((x < low) | (x > high))
        x = np.clip(x, low, high)
        if not is_out.any():
            break
        is_free &= ~is_out
    return x
