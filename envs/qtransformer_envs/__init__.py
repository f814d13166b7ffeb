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

# The tabletop suite: Gymnasium id -> its tasks. The drawer alone is moved within 20 control steps: in 80, an arm that
# flails pushes it shut now and then.
_TABLETOP: dict[str, tuple[str, ...]] = {
    "qtransformer/Pick-v0": ("pick",),
    "qtransformer/MoveNear-v0": ("move_near",),
    "qtransformer/KnockOver-v0": ("knock_over",),
    "qtransformer/PlaceUpright-v0": ("place_upright",),
    "qtransformer/OpenDrawer-v0": ("open_drawer",),
    "qtransformer/CloseDrawer-v0": ("close_drawer",),
    "qtransformer/PutIntoDrawer-v0": ("put_into_drawer",),
    "qtransformer/TakeOutOfDrawer-v0": ("take_out_of_drawer",),
}
_TABLETOP["qtransformer/Tabletop-v0"] = tuple(name for names in _TABLETOP.values() for name in names)
_SHORT = ("qtransformer/OpenDrawer-v0", "qtransformer/CloseDrawer-v0")
for _id, _tasks in _TABLETOP.items():
    ENVIRONMENTS[_id] = {
        "entry_point": "qtransformer_envs.tabletop.env:TabletopEnv",
        "max_episode_steps": 50 if _id in _SHORT else 80,
        "kwargs": {"tasks": _tasks},
    }

for _id, _kwargs in ENVIRONMENTS.items():
    gymnasium.register(id=_id, **_kwargs)
