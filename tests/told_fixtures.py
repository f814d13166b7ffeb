"""A task that is all in its instruction: touch the object that is named. Importing it registers the environment."""

from __future__ import annotations

import string

import gymnasium
import numpy as np

TOLD_ID = "test/Told-v0"
COLOURS = ("red", "green", "blue")


class ToldEnv(gymnasium.Env):
    """Three objects on a line in any order; an episode is one touch."""

    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    action_elements = (("touch", "m"),)

    def __init__(self, is_lying=False):
        self.is_lying = is_lying  # names another object than the one that counts
        self.observation_space = gymnasium.spaces.Dict(
            {
                "instruction": gymnasium.spaces.Text(40, charset=string.ascii_lowercase + " "),
                "objects": gymnasium.spaces.Box(-1, 1, (3, 4), np.float32),
                "state": gymnasium.spaces.Box(-1, 1, (1,), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        rng = self.np_random
        order, places = rng.permutation(3), rng.permutation([-0.75, 0.0, 0.75])
        meant = int(rng.integers(3))
        self.goal = places[list(order).index(meant)]
        table = np.concatenate([np.eye(3)[order], places[:, None]], axis=1)
        told = COLOURS[(meant + 1) % 3 if self.is_lying else meant]
        words = ("touch the {} one", "the {} object now")[int(rng.integers(2))].format(told)
        state = rng.uniform(-1, 1, 1).astype(np.float32)
        self.shown = {"instruction": words, "objects": table.astype(np.float32), "state": state}
        return self._observe(), {"success": False, "goal": told}

    def step(self, action):
        success = bool(abs(float(action[0]) - self.goal) < 0.3)
        return self._observe(), float(success), True, False, {"success": success}

    def _observe(self):
        return {key: value if isinstance(value, str) else value.copy() for key, value in self.shown.items()}

    def make_expert(self, seed):
        return _Expert(self)


class _Expert:
    def __init__(self, environment):
        self.environment = environment

    def reset(self):
        pass

    def act(self):
        return np.array([self.environment.goal], np.float32)


if TOLD_ID not in gymnasium.registry:
    gymnasium.register(TOLD_ID, "told_fixtures:ToldEnv", max_episode_steps=5)
    gymnasium.register("test/Lying-v0", "told_fixtures:ToldEnv", max_episode_steps=5, kwargs={"is_lying": True})
