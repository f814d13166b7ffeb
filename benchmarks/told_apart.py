"""Does a policy do what it is told? The same tabletop scene, told once to take one object and once another.

Nothing but the words differs between the two episodes. An object counts as approached if the gripper came nearer to it
than to any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from qtransformer.evaluation import Policy
from qtransformer.loading import open_policy
from qtransformer.outcomes import wilson_interval

ENVIRONMENT = "qtransformer/Pick-v0"
FIRST_SEED = 500_000


def told_apart(run: Path, num_scenes: int) -> dict[str, Any]:
    """Returns the share of episodes, two a scene, in which the named object is approached, and its 95 % interval.

    `by_chance` is the share if objects were approached at random.
    """
    import qtransformer_envs  # noqa: F401 - registers the environment

    environment, policy = gymnasium.make(ENVIRONMENT), open_policy(run).policy
    hits, chances = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + num_scenes):
        observation, info = environment.reset(seed=seed)
        rows = object_rows(environment, observation)
        other = next(row for row in rows if row != info["target"])
        for target in (info["target"], other):
            try:
                observation, info = environment.reset(seed=seed, options={"target": target})
            except ValueError:  # a combination that is held out
                continue
            hits.append(approached(environment, policy, observation) == target)
            chances.append(1 / len(rows))
    environment.close()
    low, high = wilson_interval(sum(hits), len(hits))
    return {
        "share": round(float(np.mean(hits)), 4),
        "interval": [round(low, 4), round(high, 4)],
        "episodes": len(hits),
        "by_chance": round(float(np.mean(chances)), 4),
    }


def approached(environment: gymnasium.Env, policy: Policy, observation: Any) -> int:
    """Plays the episode to its end; returns the row of the object that the gripper came nearest to."""
    rows = object_rows(environment, observation)
    gripper = columns(environment, "state", "gripper_position")
    nearest, is_over = dict.fromkeys(rows, np.inf), False
    policy.reset(0)
    while not is_over:
        for row in rows:
            place = observation["objects"].ravel()[columns(environment, "objects", f"row{row}_position")]
            nearest[row] = min(nearest[row], float(np.linalg.norm(place - observation["state"][gripper])))
        observation, _, terminated, truncated, _ = environment.step(policy.act([0], [observation])[0])
        is_over = terminated or truncated
    return min(nearest, key=lambda row: nearest[row])


def object_rows(environment: gymnasium.Env, observation: Any) -> list[int]:
    """Returns the rows of `objects` that hold an object: neither empty nor the drawer."""
    table = observation["objects"].ravel()
    names = [name for name, _ in elements(environment, "objects")]
    kinds = {}
    for place, name in enumerate(names):
        row, _, column = name.partition("_")
        if column.startswith("is_") and table[place] == 1:
            kinds[int(row.removeprefix("row"))] = column
    return sorted(row for row, kind in kinds.items() if kind != "is_drawer")


def columns(environment: gymnasium.Env, key: str, name: str) -> list[int]:
    """Returns where an observation holds the x, y and z of a position."""
    names = [each for each, _ in elements(environment, key)]
    return [names.index(f"{name}_{axis}") for axis in "xyz"]


def elements(environment: gymnasium.Env, key: str) -> tuple[tuple[str, str], ...]:
    """Returns name and unit of every number of an observation."""
    base: Any = environment.unwrapped
    return base.observation_elements[key]
