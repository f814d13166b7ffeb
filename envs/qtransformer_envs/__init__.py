"""MuJoCo manipulation tasks for Gymnasium, with scripted experts.

Importing this package registers its tasks with Gymnasium and does nothing else; MuJoCo is loaded when a task is made.
It must not know torch, h5py or the learner: a task is used through `gymnasium.make` alone.
"""

from __future__ import annotations

from typing import Any

import gymnasium

__all__ = ["ENVIRONMENTS"]

# Gymnasium id -> what `gymnasium.register` is given.
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "qtransformer/PickCube-v0": {"entry_point": "qtransformer_envs.pick_cube:PickCube", "max_episode_steps": 80},
}

for _id, _kwargs in ENVIRONMENTS.items():
    gymnasium.register(id=_id, **_kwargs)
