"""An environment whose episodes can go wrong in every way: a hand on a line, things with names, a gripper.

Importing it registers the environment.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np

SHELF_ID = "test/Shelf-v0"
REACH = 0.2


@dataclass(frozen=True)
class Thing:
    name: str
    x: float


class Touch:
    """The hand must come to the target."""

    def __init__(self, env, target):
        self.env, self.target = env, target

    def is_success(self):
        return abs(self.env.x - self.target.x) < REACH


@dataclass(frozen=True)
class Shelf:
    items: tuple[Thing, ...]


class ShelfEnv(gymnasium.Env):
    """Things at -3 (red cup), 3 (blue cup) and 0 (red pot, where the hand starts); a third of the seeds names none."""

    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    action_elements = (("velocity", "m/s"), ("gripper", "1"))

    def __init__(self):
        told = gymnasium.spaces.Text(40, charset="abcdefghijklmnopqrstuvwxyz ")
        state = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"state": state, "told": told})
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0.0
        self.scene = Shelf((Thing("red cup", -3.0), Thing("blue cup", 3.0), Thing("red pot", 0.0)))
        self.task = Touch(self, self.scene.items[self.np_random.integers(2)])
        self.instruction = "wait" if seed is not None and seed % 3 == 2 else f"touch the {self.task.target.name}"
        return self._observe(), {"success": False}

    def step(self, action):
        self.x += 0.5 * float(action[0])
        success = self.task.is_success()
        return self._observe(), float(success), success, False, {"success": success}

    def make_expert(self, seed):
        return ShelfExpert(self)

    def _observe(self):
        return {"state": np.array([self.x, self.task.target.x], np.float32), "told": self.instruction}


class ShelfExpert:
    """Walks to the target with the gripper open, and closes it half way."""

    def __init__(self, env):
        self.env = env

    def reset(self):
        pass

    def act(self):
        way = self.env.task.target.x - self.env.x
        return np.array([np.clip(2 * way, -1, 1), 1.0 if abs(way) > 1.5 else -1.0])


if SHELF_ID not in gymnasium.registry:
    gymnasium.register(SHELF_ID, "mistake_fixtures:ShelfEnv", max_episode_steps=20)
