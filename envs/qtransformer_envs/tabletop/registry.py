"""The tasks of the suite by name, in the order in which they are listed everywhere. It must not know Gymnasium."""

from __future__ import annotations

from qtransformer_envs.tabletop.close_drawer import CloseDrawer
from qtransformer_envs.tabletop.knock_over import KnockOver
from qtransformer_envs.tabletop.move_near import MoveNear
from qtransformer_envs.tabletop.open_drawer import OpenDrawer
from qtransformer_envs.tabletop.pick import Pick
from qtransformer_envs.tabletop.place_upright import PlaceUpright
from qtransformer_envs.tabletop.put_into_drawer import PutIntoDrawer
from qtransformer_envs.tabletop.take_out_of_drawer import TakeOutOfDrawer
from qtransformer_envs.tabletop.task import Task

__all__ = ["TASKS"]

_ORDER = (Pick, MoveNear, KnockOver, PlaceUpright, OpenDrawer, CloseDrawer, PutIntoDrawer, TakeOutOfDrawer)
TASKS: dict[str, type[Task]] = {task.name: task for task in _ORDER}
