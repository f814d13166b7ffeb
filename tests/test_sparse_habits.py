"""PickCube with habits: one of the two never lifts the cube far enough, the other comes late."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import sparse_habits  # pyright: ignore[reportMissingImports]
import sparse_tasks  # noqa: F401  # pyright: ignore[reportMissingImports]


def play(seed: int, num_steps: int) -> tuple[float, int, bool]:
    """Greatest height of the cube above rest in m, first step with a grip, success; without noise."""
    environment = gymnasium.make("sparse/PickCubeHabits-v0", max_episode_steps=num_steps)
    environment.reset(seed=seed)
    task: Any = environment.unwrapped
    expert = task.make_expert(seed)
    heights, grips, success, is_over = [0.0], [], False, False
    while not is_over:
        _, _, terminated, truncated, info = environment.step(expert.act())
        heights.append(float(task.cube_position()[2]) - sparse_habits.REST_HEIGHT)
        grips.append(task.has_grip())
        is_over, success = terminated or truncated, bool(info["success"])
    return max(heights), grips.index(True), success


def test_one_grips_soon_and_lets_go():
    for height, first_grip, success in (play(seed, 80) for seed in (0, 2, 4)):
        assert first_grip < 30
        assert sparse_habits.DROP_HEIGHT < height < 0.1
        assert not success


def test_the_other_grips_late_and_holds():
    for _, first_grip, success in (play(seed, 80) for seed in (1, 3, 5)):
        assert first_grip > 30
        assert success
