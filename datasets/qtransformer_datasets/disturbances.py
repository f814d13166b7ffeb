"""What comes between an intended action and the executed one: noise, pauses, a dropped object, giving up.

Special about this file: a disturbance belongs to one episode and draws from that episode's own generator alone. It is
called with the action that was intended at each step, and returns the one that is executed, or None: the episode ends.
It must not know an environment beyond the limits of its actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

Disturb = Callable[[np.ndarray], np.ndarray | None]

PAUSE_PROBABILITY = 0.04  # per step that a pause starts
PAUSE_STEPS = (3, 15)
PAUSE_STD = 0.02  # half action ranges: hands are never quite still
DROP_DELAY = (3, 12)  # steps between the first command to close the gripper and the slip
DROP_STEPS = (2, 5)


class Limits(Protocol):
    """What a disturbance knows of the actions: a bounded vector; Gymnasium's `Box` is one."""

    low: np.ndarray
    high: np.ndarray


class Noise:
    """What a person of this episode's skill does: Gaussian noise on each action, and random actions that are held."""

    def __init__(
        self, limits: Limits, generator: np.random.Generator, *, std: float, probability: float, hold: int
    ) -> None:
        """Draws the skill of the episode.

        Args:
            limits: of the actions.
            generator: of the episode.
            std: largest standard deviation, in half action ranges.
            probability: largest probability per step that a random action starts.
            hold: most steps for which it is held.
        """
        self._limits, self._generator, self._hold = limits, generator, hold
        self._std = generator.uniform(0, std) * (limits.high - limits.low) / 2
        self._probability = generator.uniform(0, probability)
        self._steps_left = 0
        self._random_action = limits.low

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Returns the action with noise, or the random one that is held, within the limits."""
        limits, generator = self._limits, self._generator
        if not self._steps_left and generator.random() < self._probability:
            self._steps_left = generator.integers(1, self._hold + 1)
            self._random_action = generator.uniform(limits.low, limits.high)
        if self._steps_left:
            self._steps_left -= 1
            action = self._random_action
        else:
            action = action + self._std * generator.standard_normal(limits.low.shape)
        return np.clip(action, limits.low, limits.high).astype(np.float32)


class Pauses:
    """At random moments nothing is done for a while: the actions are near zero, and the gripper stays as it was."""

    def __init__(self, limits: Limits, generator: np.random.Generator, gripper: int | None) -> None:
        """Starts an episode; `gripper` is the index of that element of the action, None where there is none."""
        self._limits, self._generator, self._gripper = limits, generator, gripper
        self._steps_left = 0
        self._kept = 0.0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Returns the action, or that of a pause."""
        limits, generator, gripper = self._limits, self._generator, self._gripper
        if not self._steps_left and generator.random() < PAUSE_PROBABILITY:
            self._steps_left = generator.integers(*PAUSE_STEPS, endpoint=True)
            self._kept = 0.0 if gripper is None else float(action[gripper])
        if not self._steps_left:
            return action
        self._steps_left -= 1
        idle = PAUSE_STD * (limits.high - limits.low) / 2 * generator.standard_normal(limits.low.shape)
        if gripper is not None:
            idle[gripper] = self._kept
        return np.clip(idle, limits.low, limits.high).astype(np.float32)


class Drop:
    """Once, some steps after the gripper was first told to close, it opens for a moment."""

    def __init__(self, limits: Limits, generator: np.random.Generator, gripper: int) -> None:
        """Draws the moment; `gripper` is the index of that element of the action, whose upper limit opens it."""
        self._open, self._gripper = limits.high[gripper], gripper
        self._closed_below = (limits.low[gripper] + limits.high[gripper]) / 2
        self._steps_before = int(generator.integers(*DROP_DELAY, endpoint=True))
        self._steps_left = int(generator.integers(*DROP_STEPS, endpoint=True))
        self._has_closed = False

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Returns the action, with the gripper open while the object slips."""
        self._has_closed |= bool(action[self._gripper] < self._closed_below)
        if not self._has_closed:
            return action
        if self._steps_before:
            self._steps_before -= 1
            return action
        if not self._steps_left:
            return action
        self._steps_left -= 1
        slipping = action.copy()
        slipping[self._gripper] = self._open
        return slipping


class EarlyStop:
    """Gives up at a random step."""

    def __init__(self, generator: np.random.Generator, num_steps: int) -> None:
        """Draws the number of steps that are done, 1 to `num_steps`."""
        self._steps_left = int(generator.integers(1, num_steps, endpoint=True))

    def __call__(self, action: np.ndarray) -> np.ndarray | None:
        """Returns the action, or None: the episode ends before it."""
        if not self._steps_left:
            return None
        self._steps_left -= 1
        return action
