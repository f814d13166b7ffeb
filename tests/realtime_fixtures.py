"""An environment for the hand-made bundle of controller_fixtures; importing it registers it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class CoastEnv(gymnasium.Env):
    """The state follows the action; four steps are a success. From `bad_from` on it shows readings out of any range."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, bad_from: int = 99, on_step: Any = None):
        self.bad_from, self.on_step = bad_from, on_step
        box = gymnasium.spaces.Box
        spaces: dict[str, gymnasium.Space] = {
            "state": box(-1e9, 1e9, (2,), np.float32),
            "goal": box(-1, 1, (1,), np.float32),
        }
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.state = 0, np.array([0.01, 0.02], np.float32)
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        if self.on_step is not None:
            self.on_step()
        self.state = np.float32(0.1) * np.asarray(action, np.float32)
        return self._observe(), 1.0, self.steps == 4, False, {"success": self.steps == 4}

    def _observe(self):
        state = self.state if self.steps < self.bad_from else np.array([1e8, 1e8], np.float32)
        return {"state": state.copy(), "goal": np.zeros(1, np.float32)}


if "test/Coast-v0" not in gymnasium.registry:
    gymnasium.register("test/Coast-v0", "realtime_fixtures:CoastEnv", max_episode_steps=20)
