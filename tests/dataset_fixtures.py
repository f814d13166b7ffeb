"""Small environments and datasets that the dataset tests share; importing it registers the environments."""

from __future__ import annotations

import multiprocessing
import os
import signal

import gymnasium
import numpy as np

from qtransformer.batch import ActionSpec, DatasetSpec
from qtransformer_datasets.formats.specs import describe_state
from qtransformer_datasets.schema import Episode, EpisodeDataset

POINT_ID = "test/Point-v0"
SILENT_ID = "test/Silent-v0"
KILLED_ID = "test/Killed-v0"
KILLED_SEED = 30


class PointEnv(gymnasium.Env):
    """A point on a line that should reach zero; the expert walks straight there."""

    metadata = {"render_modes": [], "render_fps": 25}  # noqa: RUF012
    observation_elements = {"state": (("x", "m"), ("x_start", "m"))}  # noqa: RUF012
    action_elements = (("velocity", "m/s"), ("unused", ""))

    def __init__(self):
        self.observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-9, 9, (2,), np.float32)})
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start = self.x = self.np_random.uniform(1, 3)
        return self._observe(), {"success": False}

    def step(self, action):
        self.x += 0.5 * float(action[0])
        success = bool(abs(self.x) < 0.2)
        return self._observe(), float(success), success, False, {"success": success}

    def make_expert(self, seed):
        return Expert(self)

    def _observe(self):
        return {"state": np.array([self.x, self.start], np.float32)}


class KilledEnv(PointEnv):
    """Kills its process, as the system does when memory runs out, in the episode of a seed; never the first process."""

    def reset(self, *, seed=None, options=None):
        if seed == KILLED_SEED and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(seed=seed)


class TwoKeysEnv(PointEnv):
    """Shows a second key beside the state."""

    observation_elements = {"goal": (("x_goal", "m"),), **PointEnv.observation_elements}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        goal = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
        state = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"state": state, "goal": goal})

    def _observe(self):
        return {**super()._observe(), "goal": np.zeros(1, np.float32)}


class NarrowEnv(PointEnv):
    """Takes half of the actions."""

    def __init__(self):
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-0.5, 0.5, (2,), np.float32)


class Expert:
    def __init__(self, environment):
        self.environment = environment

    def reset(self):
        pass

    def act(self):
        return np.array([np.clip(-2 * self.environment.x, -1, 1), 0.0])


class SilentEnv(gymnasium.Env):
    """Has no expert."""

    observation_space = PointEnv().observation_space
    action_space = PointEnv().action_space


ENVIRONMENTS = {
    POINT_ID: "PointEnv",
    SILENT_ID: "SilentEnv",
    KILLED_ID: "KilledEnv",
    "test/TwoKeys-v0": "TwoKeysEnv",
    "test/Narrow-v0": "NarrowEnv",
}
for env_id, env_class in ENVIRONMENTS.items():
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, f"dataset_fixtures:{env_class}", max_episode_steps=12)


def make_spec(keys=("state",), size=2):
    observations = tuple(describe_state(key, (size,), "float32") for key in keys)
    actions = ActionSpec((-1.0, -1.0), (1.0, 1.0), ("left", "right"), ("m/s", "m/s"))
    return DatasetSpec(observations, actions, 10.0, "test/Point-v0", {})


def make_episode(num_steps=3, *, keys=("state",), seed=0, success=True, final=True):
    generator = np.random.default_rng(seed)
    ends = np.arange(num_steps) == num_steps - 1
    return Episode(
        observations={key: generator.normal(size=(num_steps + final, 2)).astype(np.float32) for key in keys},
        actions=generator.uniform(-1, 1, (num_steps, 2)).astype(np.float32),
        rewards=ends * float(success),
        terminations=ends & success,
        truncations=ends & (not success),
        success=success,
        seed=seed,
        source=f"main_data.hdf5:episode_{seed}",
        has_final_observation=final,
    )


def make_dataset(tmp_path, episodes, keys=("state",)):
    spec, episodes = make_spec(keys), tuple(episodes)
    return EpisodeDataset(tmp_path, spec, episodes, "minari")
