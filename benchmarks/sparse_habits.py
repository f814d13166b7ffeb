"""PickCube as two people do it who each get one half wrong.

By the seed of the episode, one in two

- *drops*: reaches and grips as the expert does, and lets go of the cube once it is in the air, again and again;
- *dawdles*: lifts as the expert does, but reaches so slowly that, with noise, the time limit often comes first.

The quick half of one and the sound half of the other make the expert; success alone says which half is which.
"""

from __future__ import annotations

import numpy as np

from qtransformer_envs.pick_cube import REST_HEIGHT, PickCube
from qtransformer_envs.pick_cube_expert import PickCubeExpert

DROP_HEIGHT = 0.04  # m above the rest height: where the first one lets go
SLOW = 0.25  # share of the expert's speed that the second one reaches with


class PickCubeHabits(PickCube):
    """The same task; only who shows it differs."""

    def make_expert(self, seed: int) -> PickCubeExpert:
        """Returns one of the two, by the seed."""
        return (_Drops, _Dawdles)[seed % 2](self, seed)


class _Drops(PickCubeExpert):
    def act(self) -> np.ndarray:
        action = super().act()
        if self._env.cube_position()[2] - REST_HEIGHT > DROP_HEIGHT:
            action[-1] = 1.0
        return action


class _Dawdles(PickCubeExpert):
    def act(self) -> np.ndarray:
        action = super().act()
        if not self._env.has_grip():
            action[:-1] *= SLOW
        return action
