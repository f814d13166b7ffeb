"""The logs that policies are compared on: scripted experts with noise, sparse 0/1 reward; eight logs, seven tasks.

Each episode draws how noisy it is, from clean up to the bounds in LOGS: Gaussian noise on every action, and random
actions (gripper and fingers too) held for some steps; see `qtransformer_datasets.collect`. The log holds the actions as
executed. The bounds of the first six were chosen for one thing only, that 25 to 45 % of the episodes succeed.

The last two hold habits rather than noise, and something to put together: see sparse_maze.py and sparse_habits.py.

python benchmarks/peers.py robots benchmarks/logs.py OUT [NAME ...]   makes OUT/NAME, and prints JSON as its last line
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.formats import open_dataset

TASKS = ("sparse_tasks",)
LOGS = {
    "pick-cube": CollectConfig(),
    "pick-place": CollectConfig("sparse/pick-place-v3", imports=TASKS, noise_std=1.0, random_action_probability=0.1),
    "push": CollectConfig("sparse/push-v3", episodes=600, imports=TASKS, noise_std=0.8, random_action_probability=0.08),
    "drawer-open": CollectConfig(
        "sparse/drawer-open-v3",
        episodes=100,
        imports=TASKS,
        noise_std=1.6,
        random_action_probability=0.1,
        random_action_hold=15,
    ),
    "button-press": CollectConfig(
        "sparse/button-press-v3", imports=TASKS, noise_std=1.8, random_action_probability=0.1, random_action_hold=18
    ),
    "hand-reach": CollectConfig(
        "sparse/HandReach-v3", imports=TASKS, noise_std=0.2, random_action_probability=0.1, random_action_hold=5
    ),
    "cross-maze": CollectConfig(
        "sparse/CrossMaze-v0", imports=TASKS, noise_std=0.5, random_action_probability=0.05, random_action_hold=3
    ),
    "pick-cube-habits": CollectConfig(
        "sparse/PickCubeHabits-v0", imports=TASKS, noise_std=0.4, random_action_probability=0.03
    ),
}


def ensure(name: str, folder: Path) -> Path:
    """Returns the path of the log `name` below `folder`, recorded first where it is not there.

    Raises:
        KeyError: no log has that name.
    """
    path = folder / name
    if not (path / "data" / "main_data.hdf5").exists():
        collect(replace(LOGS[name], num_workers=1), path)
    return path


def describe(path: Path) -> dict[str, Any]:
    """Returns counts, success rate and lengths of a log."""
    dataset = open_dataset(path)
    lengths = [episode.num_steps for episode in dataset.episodes]
    return {
        "environment_id": dataset.spec.environment_id,
        "episodes": dataset.num_episodes,
        "steps": dataset.num_steps,
        "success_rate": round(dataset.success_rate or 0.0, 3),
        "mean_length": round(float(np.mean(lengths)), 1),
        "longest": max(lengths),
        "observations": [[each.name, *each.shape] for each in dataset.spec.observations],
        "actions": dataset.spec.actions.num_dimensions,
    }


def main(arguments: Sequence[str]) -> int:
    """Makes the logs that are named, or all."""
    if not arguments or not set(arguments[1:]) <= set(LOGS):
        print(f"usage: logs.py OUT [NAME ...], names: {', '.join(LOGS)}; got {list(arguments)}", file=sys.stderr)
        return 2
    made = {name: describe(ensure(name, Path(arguments[0]))) for name in arguments[1:] or LOGS}
    print(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
