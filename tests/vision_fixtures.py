"""A point that a camera sees and words send one way or the other: an environment, policies and batches with images."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import torch
from learner_fixtures import make_batch, make_config

from qtransformer.batch import ActionSpec, Batch, DatasetSpec, ObservationSpec
from qtransformer.normalization import ReturnScale
from qtransformer.policy import build_policy
from qtransformer.q_learning import QTransformerLearner

SIGHT_ID = "test/Sight-v0"
SIZE = 16
CAMERA, STATE, TOLD = "image/front", "state", "told"
SPEC = DatasetSpec(
    (
        ObservationSpec(CAMERA, (SIZE, SIZE, 3), "uint8", "image"),
        ObservationSpec(STATE, (2,), "float32"),
    ),
    ActionSpec((-1.0,) * 3, (1.0,) * 3),
)
STATISTICS = {
    CAMERA: {"mean": [128.0] * 3, "std": [64.0] * 3},
    STATE: {"mean": [0.0] * 2, "std": [1.0] * 2},
}


class SightEnv(gymnasium.Env):
    """Only the camera shows where the point is, and only the words where it must go: to the left or the right end."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        self.observation_space = gymnasium.spaces.Dict(
            {
                CAMERA: gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                STATE: gymnasium.spaces.Box(-1, 1, (1,), np.float32),
                TOLD: gymnasium.spaces.Text(20, charset="abcdefghijklmnopqrstuvwxyz "),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.4, 0.4)
        self.side = int(self.np_random.choice([-1, 1]))
        return self._observe(), {}

    def step(self, action):
        self.x = float(np.clip(self.x + 0.3 * float(action[0]), -1, 1))
        success = self.side * self.x > 0.8
        return self._observe(), float(success), success, False, {"success": success}

    def make_expert(self, seed):
        return SightExpert(self)

    def _observe(self):
        picture = np.full((SIZE, SIZE, 3), 30, np.uint8)
        column = round((self.x + 1) / 2 * (SIZE - 4))
        picture[6:10, column : column + 4] = (220, 60, 60)
        told = "go left" if self.side < 0 else "go right"
        return {CAMERA: picture, STATE: np.zeros(1, np.float32), TOLD: told}


class SightExpert:
    def __init__(self, environment):
        self.environment = environment

    def reset(self):
        pass

    def act(self):
        return np.array([0.8 * self.environment.side, 0.0])


if SIGHT_ID not in gymnasium.registry:
    gymnasium.register(SIGHT_ID, "vision_fixtures:SightEnv", max_episode_steps=10)


def make_image_learner(learning=None, seed=0, **changes) -> QTransformerLearner:
    """A learner of a camera and two numbers."""
    config = make_config(learning, **{"image_tokens": 2, **changes})
    torch.manual_seed(seed)
    policy = build_policy(config, SPEC, STATISTICS)
    return QTransformerLearner(policy, config, ReturnScale(0.0, 1.0), [0.1] * 3)


def make_image_batch(num_segments=4, *, num_steps=3, seed=0, **changes) -> Batch:
    """Random segments with a picture for each observation."""
    batch = make_batch(num_segments, num_steps=num_steps, seed=seed, **changes)
    shape = (num_segments, num_steps + 1, SIZE, SIZE, 3)
    pictures = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    return replace(batch, observations={CAMERA: pictures, **batch.observations})
