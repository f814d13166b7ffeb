"""Environments that crash, name tasks, or lose a success again; importing it registers them."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np
from dataset_fixtures import PointEnv


class PassingEnv(PointEnv):
    """Goes on when zero is reached, so that a success can be lost; two tasks take turns. It can be drawn.

    The reward is different at every place: two returns agree to the last bit only where all steps did.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.seed, self.steps = seed or 0, 0
        task = ("even", "odd")[self.seed % 2]
        return observation, {**info, "task": task, "goal": f"be {task}"}

    def step(self, action):
        self.steps += 1
        observation, _, _, truncated, info = super().step(action)
        return observation, 1 / (1 + abs(self.x)), False, truncated, info

    def render(self) -> Any:
        """A grey field as bright as there were steps, with the seed in its corner."""
        frame = np.full((48, 64, 3), 10 * self.steps, np.uint8)
        frame[0, 0] = self.seed
        return frame


class RaisingEnv(PassingEnv):
    """Raises at the third step of each seed that leaves 2 by 5, and at the reset of each that leaves 4."""

    def reset(self, *, seed=None, options=None):
        if (seed or 0) % 5 == 4:
            raise OSError(f"no such cube,\nseed {seed}")
        return super().reset(seed=seed)

    def step(self, action):
        if self.seed % 5 == 2 and self.steps == 2:
            raise ValueError(f"the solver gave up on seed {self.seed}")
        return super().step(action)


class DyingEnv(PassingEnv):
    """Ends its process at the third step of seed 2, and kills it at the reset of seed 4."""

    def reset(self, *, seed=None, options=None):
        if seed == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(seed=seed)

    def step(self, action):
        if self.seed == 2 and self.steps == 2:
            os._exit(3)
        return super().step(action)


class DivergingEnv(PassingEnv):
    """Shows NaN after the second step of odd seeds."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.seed % 2 and self.steps == 2:
            observation["state"][0] = np.nan
        return observation, reward, terminated, truncated, info


class HopelessEnv(PassingEnv):
    """Raises at every reset."""

    def reset(self, *, seed=None, options=None):
        raise RuntimeError("nothing works")


class UnreachableEnv(PassingEnv):
    """Never calls anything a success."""

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"success": False}


class UnmakeableEnv(PassingEnv):
    """Cannot be made."""

    def __init__(self, render_mode=None):
        raise FileNotFoundError("arm.xml is missing")


class StillbornEnv(PassingEnv):
    """Ends its process while it is made."""

    def __init__(self, render_mode=None):
        os._exit(5)


class UnseenEnv(PassingEnv):
    """Its renderer finds no screen."""

    def render(self):
        raise OSError("no display")


class EmptyPictureEnv(PassingEnv):
    """Draws nothing."""

    def render(self):
        return None


NAMES = (
    "Passing",
    "Unreachable",
    "Raising",
    "Dying",
    "Diverging",
    "Hopeless",
    "Unmakeable",
    "Stillborn",
    "Unseen",
    "EmptyPicture",
)
for _name in NAMES:
    if f"test/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"test/{_name}-v0", f"evaluation_fixtures:{_name}Env", max_episode_steps=12)
