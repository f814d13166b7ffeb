"""What a skill is: words, a start, a rule of success and an expert, all about one scene.

Special about this file: a task is made anew for every episode from a fresh scene, and has no other memory. Its expert
is a function of the present state. A skill's file holds, in this order: words, start, success, expert.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from qtransformer_envs.tabletop.objects import KINDS
from qtransformer_envs.tabletop.placing import place_apart
from qtransformer_envs.tabletop.scene import DRAWER_TRAVEL, Item, Scene

__all__ = ["Task"]

CABINET_SHIFT = 0.02  # m


class Task(ABC):
    """One episode of a skill in `scene`, with a `target` and an `other` object, which not every skill names."""

    name: ClassVar[str]
    """The skill, as in `info["task"]` and in the table of held-out combinations."""
    templates: ClassVar[tuple[str, ...]]
    """What it is told, with {target} and {other} for the objects, {side} for the side."""
    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)
    """The kinds that the target may be of."""
    num_named: ClassVar[int] = 1
    """How many objects the words name."""

    openings: ClassVar[tuple[float, float]] = (0.0, DRAWER_TRAVEL)
    """m between which the drawer is open at the start."""
    side: str = ""
    """Which way, of a skill whose words say it; drawn by `arrange`."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.target, self.other = scene.items[:2]

    def aimed_at(self, item: Item) -> Task:
        """Returns this task with another target in the same scene; if that was the other object, the two change."""
        task = copy.copy(self)
        task.target = item
        task.other = self.target if item is self.other else self.other
        return task

    def say(self, template: str) -> str:
        """Returns the words of one of the templates."""
        return template.format(target=self.target.name, other=self.other.name, side=self.side)

    def arrange(self, rng: np.random.Generator) -> None:
        """Puts cabinet, drawer and objects where the episode starts: all objects on the table, well apart."""
        self.scene.move_cabinet(rng.uniform(-CABINET_SHIFT, CABINET_SHIFT, 2))
        self.scene.open_drawer(rng.uniform(*self.openings))
        place_apart(self.scene, self.scene.items, rng)

    @abstractmethod
    def is_success(self) -> bool:
        """Returns whether the present state fulfils the instruction."""

    @abstractmethod
    def act(self) -> np.ndarray:
        """Returns the expert's action for the present state, shape (7,), float32, in [-1, 1]."""
