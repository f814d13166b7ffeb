"""The maze of the stitching log: walls, seeds, and that nobody shows the whole way from the south."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import sparse_maze  # pyright: ignore[reportMissingImports]
import sparse_tasks  # pyright: ignore[reportMissingImports]


def make() -> gymnasium.Env:
    return gymnasium.make("sparse/CrossMaze-v0")


def walk(seed: int) -> tuple[str, np.ndarray, bool]:
    """Start, path and success of the expert's episode without noise."""
    environment = make()
    observation, _ = environment.reset(seed=seed)
    maze: Any = environment.unwrapped
    expert = maze.make_expert(seed)
    expert.reset()
    path, is_over, success = [observation], False, False
    while not is_over:
        observation, reward, terminated, truncated, info = environment.step(expert.act().astype(np.float32))
        assert float(reward) == float(terminated) == float(info["success"])
        path.append(observation)
        is_over, success = terminated or truncated, bool(info["success"])
    return maze.start, np.array(path), success


@pytest.mark.parametrize(
    ("position", "action", "expected"),
    [
        ((0.0, 0.0), (1.0, -0.5), (0.08, -0.04)),  # free
        ((0.0, 0.0), (3.0, 0.0), (0.08, 0.0)),  # a faster command changes nothing
        ((0.5, 0.1), (1.0, 1.0), (0.58, 0.15)),  # along the wall of the east corridor
        ((0.14, 0.8), (1.0, 0.0), (0.15, 0.8)),  # the wall of the north corridor
        ((0.98, 0.0), (1.0, 0.0), (1.0, 0.0)),  # the east end
    ],
)
def test_walls_stop_by_hand(position, action, expected):
    maze = sparse_maze.CrossMaze()
    maze.reset(seed=0)
    maze.position = np.array(position)
    assert maze.step(np.array(action, np.float32))[0].tolist() == pytest.approx(expected)


def test_the_goal_is_the_north_end_alone():
    maze = sparse_maze.CrossMaze()
    for end, position in sparse_maze.ENDS.items():
        maze.reset(seed=0)
        maze.position = np.array(position)
        _, reward, terminated, truncated, info = maze.step(np.zeros(2, np.float32))
        assert (reward, terminated, truncated) == (float(end == "north"), end == "north", False)
        assert info == {"success": end == "north"}


def test_each_half_of_the_way_is_shown_and_never_the_whole():
    walks = [walk(seed) for seed in range(40)]
    assert {start for start, _, _ in walks} == set(sparse_maze.HABITS)
    for start, path, success in walks:
        assert np.abs(path[1:]).max(axis=1).min() < sparse_maze.HALF_WIDTH  # all pass the crossing
        assert not (success and start == "south")
        assert success == (path[-1, 1] > sparse_maze.SUCCESS_LINE)
    assert 0.2 < np.mean([success for _, _, success in walks]) < 0.5


def test_the_same_seed_gives_the_same_episode():
    assert np.array_equal(walk(3)[1], walk(3)[1])
    assert sparse_tasks.MAZE_STEPS == 40
