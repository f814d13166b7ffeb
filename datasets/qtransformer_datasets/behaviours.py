"""Who acts in a recorded episode: the expert, a replay of what it did, or the expert aimed at the wrong object.

Special about this file: a behaviour is asked for the action of each step, and answers None when it is finished, which
ends the episode. What it needs of an environment beyond `make_expert(seed)` it looks for (`aims_at_objects`). It must
not know any noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

Behave = Callable[[], np.ndarray | None]


def expert(environment: gymnasium.Env, seed: int) -> Behave:
    """Returns the environment's expert for the present episode."""
    made: Any = getattr(environment.unwrapped, "make_expert")(seed)  # noqa: B009 (Env does not declare it)
    made.reset()
    return lambda: np.asarray(made.act(), np.float32)


def rehearse(environment: gymnasium.Env, seed: int) -> list[np.ndarray]:
    """Returns all actions of the undisturbed expert in the episode of `seed`, which is played to its end."""
    environment.reset(seed=seed)
    act, actions, is_over = expert(environment, seed), [], False
    while not is_over:
        actions.append(act())
        *_, terminated, truncated, _ = environment.step(actions[-1])
        is_over = terminated or truncated
    return actions


def replay(actions: Sequence[np.ndarray]) -> Behave:
    """Returns what repeats these actions, whatever happens, and is finished after the last one."""
    left = iter(actions)
    return lambda: next(left, None)


def aims_at_objects(environment: gymnasium.Env) -> bool:
    """Returns whether `WrongObject` can be made here, once the environment was reset.

    It needs, unwrapped: `instruction`, in words; `scene.items`, each with its `name` as the words have it; `task` with
    the item `target` and `is_success()`; and an expert that does whatever `task` is.
    """
    base: Any = environment.unwrapped
    has_words = isinstance(getattr(base, "instruction", None), str)
    task, items = getattr(base, "task", None), getattr(getattr(base, "scene", None), "items", None)
    return has_words and bool(items) and all(hasattr(task, name) for name in ("target", "is_success"))


class WrongObject:
    """The expert of the same task with another object, of those that the instruction does not name.

    It is finished one step after it has done that, so that an expert that says so itself can.
    """

    def __init__(self, environment: gymnasium.Env, seed: int, task: Any) -> None:
        """Starts in the present episode with `task`, one of `wrong_tasks`."""
        self._base: Any = environment.unwrapped
        self._task, self._act, self._is_done = task, expert(environment, seed), False

    def __call__(self) -> np.ndarray | None:
        """Returns the action for the wrong task; the environment judges by its own."""
        if self._is_done:
            return None
        right = self._base.task
        self._base.task = self._task
        try:
            self._is_done = self._task.is_success()
            return self._act()
        finally:
            self._base.task = right


def wrong_tasks(environment: gymnasium.Env) -> list[Any]:
    """Returns the present task with each other object that the words do not name, where it is still to be done.

    Empty where the words name no object, or where there is nothing to do with the others.
    """
    base: Any = environment.unwrapped
    if base.task.target.name not in base.instruction:
        return []
    tasks = [_aimed(base.task, item) for item in base.scene.items if item.name not in base.instruction]
    return [task for task in tasks if not task.is_success()]


def _aimed(task: Any, item: Any) -> Any:
    aimed = copy.copy(task)
    aimed.target = item
    return aimed
