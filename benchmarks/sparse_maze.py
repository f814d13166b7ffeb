"""A point in a cross of corridors: a log in which nobody ever goes from the south end to the goal in the north.

Start at the south, east or west end; the goal is the north end. Whoever starts in the south turns off at the crossing,
to the east or west, and stays there; from the east and west one in two goes north. Each half of the way from the south
is in the log, in different episodes: the whole must be put together at the crossing.

    . . N . .      observation (2,): position, corridors of half width 0.15 along both axes, from -1 to 1
    W - + - E      action (2,): displacement of this step, 0.08 at most along each axis; walls stop it
    . . S . .      success: y above 0.9

At most 40 steps: the way takes 26 of them, a detour through a wrong end more than 50.
"""

from __future__ import annotations

import gymnasium
import numpy as np
from sparse_tasks import Expert, SparseTask

HALF_WIDTH = 0.15
STEP = 0.08
SUCCESS_LINE = 0.9
ENDS = {"north": (0.0, 0.95), "south": (0.0, -0.95), "east": (0.95, 0.0), "west": (-0.95, 0.0)}
HABITS = {"south": ("east", "west"), "east": ("north", "west"), "west": ("north", "east")}  # start -> where they go


class CrossMaze(SparseTask):
    """The maze; `start` is the end where the running episode began."""

    def __init__(self) -> None:
        """Declares the spaces; there is no simulator."""
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.metadata = {"render_modes": [], "render_fps": 10}

    def make_expert(self, seed: int) -> Expert:
        """Returns a walker who has one of the habits of this start, by the seed."""
        return _Walker(self, seed)

    def _start(self, seed: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        self.start = str(generator.choice(list(HABITS)))
        self.position = np.array(ENDS[self.start]) + generator.uniform(-0.05, 0.05, 2)
        return self.position.copy()

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        moved = self.position + STEP * np.clip(action, -1.0, 1.0)
        self.position = min(_in_corridor(moved, 0), _in_corridor(moved, 1), key=lambda p: np.abs(p - moved).sum())
        return self.position.copy(), bool(self.position[1] > SUCCESS_LINE)


class _Walker:
    """Walks to the crossing, then to an end, slower near each."""

    def __init__(self, maze: CrossMaze, seed: int) -> None:
        self._maze = maze
        self._goal = np.array(ENDS[HABITS[maze.start][np.random.default_rng([seed, 1]).integers(2)]])

    def reset(self) -> None:
        """Heads for the crossing."""
        self._is_past_crossing = False

    def act(self) -> np.ndarray:
        """Returns the action, (2,)."""
        position = self._maze.position
        self._is_past_crossing |= bool(np.abs(position).max() < 0.5 * HALF_WIDTH)
        goal = self._goal if self._is_past_crossing else np.zeros(2)
        return np.clip(0.5 * (goal - position) / STEP, -1.0, 1.0)


def _in_corridor(position: np.ndarray, axis: int) -> np.ndarray:
    """Returns the nearest place in the corridor along `axis`."""
    bounds = np.full(2, HALF_WIDTH)
    bounds[axis] = 1.0
    return np.clip(position, -bounds, bounds)
