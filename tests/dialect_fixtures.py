"""Writes the same episodes in each dialect, from the layout in words alone; each switch sets one trap of the layout.

Nothing here imports a reader: what the readers believe of a layout and what is written here must meet by themselves.
"""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from qtransformer_datasets.schema import Episode

SIDE = 16  # pixels of a test camera


def make_log(lengths=(3, 5, 4), successes=(True, False, True), *, keys=("state",), cameras=(), seed=0):
    """Returns episodes with a final observation and a reward of 1 at success, which terminates; others truncate."""
    generator = np.random.default_rng(seed)
    return [_episode(generator, T, success, keys, cameras) for T, success in zip(lengths, successes, strict=True)]


def _episode(generator, T, success, keys, cameras):
    ends = np.arange(T) == T - 1
    vectors = {key: generator.normal(size=(T + 1, 2)).astype(np.float32) for key in keys}
    images = {key: generator.integers(0, 256, (T + 1, SIDE, SIDE, 3)).astype(np.uint8) for key in cameras}
    return Episode(
        observations=vectors | images,
        actions=generator.uniform(-1, 1, (T, 2)).astype(np.float32),
        rewards=ends * float(success),
        terminations=ends & success,
        truncations=ends & (not success),
        success=success,
    )


# --- robomimic --------------------------------------------------------------------------------------------------------


def write_robomimic(
    path,
    episodes,
    *,
    dones: str | None = "success",
    rewards=True,
    next_obs: str | None = "next",
    numbers=None,
    linger=0,
    env_args=None,
    masks=(),
):
    """Writes /data/demo_<k>.

    Args:
        path: of the file.
        episodes: with final observations.
        dones: what they mark: "success", "last-step", "both", or None for a file without.
        rewards: False for a file without.
        next_obs: "next" for true successors, "repeat" for obs again at the last step, None for a file without.
        numbers: k of each demonstration, 0, 1, ... without.
        linger: steps that a successful demonstration goes on after its success, rewarded, at its last observation.
        env_args: a dict, or a text that is written as it is.
        masks: names of filters; each holds all demonstrations.
    """
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(each.num_steps for each in episodes)
        if env_args is not None:
            data.attrs["env_args"] = env_args if isinstance(env_args, str) else json.dumps(env_args)
        names = [f"demo_{number}" for number in numbers or range(len(episodes))]
        for name, episode in zip(names, episodes, strict=True):
            _write_demo(data.create_group(name), _lingering(episode, linger), dones, rewards, next_obs)
        for mask in masks:
            file[f"mask/{mask}"] = np.array(names, dtype="S")
    return path


def _lingering(episode, steps):
    """Returns the arrays of a demonstration: (observations, actions, rewards, successes)."""
    steps = steps * bool(episode.success)
    observations = {key: np.concatenate([rows, *[rows[-1:]] * steps]) for key, rows in episode.observations.items()}
    actions = np.concatenate([episode.actions, np.zeros((steps, episode.actions.shape[1]), np.float32)])
    rewards = np.concatenate([episode.rewards, np.ones(steps)])
    return observations, actions, rewards, np.concatenate([episode.terminations, np.ones(steps, bool)])


def _write_demo(group, arrays, dones, rewards, next_obs):
    observations, actions, values, successes = arrays
    last = np.arange(len(actions)) == len(actions) - 1
    group.attrs["num_samples"] = len(actions)
    group.attrs["model_file"] = "<mujoco/>"
    group["actions"] = actions.astype(np.float64)
    group["states"] = np.full((len(actions), 7), 5.0)
    if rewards:
        group["rewards"] = values
    if dones is not None:
        group["dones"] = {"success": successes, "last-step": last, "both": successes | last}[dones].astype(np.int64)
    for key, rows in observations.items():
        group[f"obs/{key}"] = rows[:-1]
        if next_obs == "next":
            group[f"next_obs/{key}"] = rows[1:]
        elif next_obs == "repeat":
            group[f"next_obs/{key}"] = np.concatenate([rows[1:-1], rows[-2:-1]])


# --- D4RL -------------------------------------------------------------------------------------------------------------


def write_d4rl(path, episodes, *, timeouts=True, next_observations=None, tail=False, key="state", extras=False):
    """Writes the flat arrays.

    Args:
        path: of the file.
        episodes: with final observations.
        timeouts: False for an old file, which has none.
        next_observations: "next" for true successors, "shifted" where the row after an episode's end is the next
            episode's first, None for a file without.
        tail: whether the last episode ends with neither flag.
        key: of the observation that is written.
        extras: whether infos and metadata are there.
    """
    rows = [each.observations[key] for each in episodes]
    observations = np.concatenate([each[:-1] for each in rows])
    terminals, limits = (np.concatenate([getattr(e, n) for e in episodes]) for n in ("terminations", "truncations"))
    if tail:
        terminals[-1] = limits[-1] = False
    arrays = {
        "observations": observations,
        "actions": np.concatenate([each.actions for each in episodes]),
        "rewards": np.concatenate([each.rewards for each in episodes]).astype(np.float32),
        "terminals": terminals,
    }
    if timeouts:
        arrays["timeouts"] = limits
    if next_observations == "next":
        arrays["next_observations"] = np.concatenate([each[1:] for each in rows])
    if next_observations == "shifted":
        arrays["next_observations"] = np.concatenate([observations[1:], rows[-1][-1:]])
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")
        if extras:
            file["infos/qpos"] = np.zeros((len(terminals), 3))
            file["metadata/algorithm"] = "SAC"
            file["metadata/env_name"] = "hopper-medium-v2"
            file["metadata/iteration"] = 7
            file["metadata/policy/fc0/weight"] = np.zeros((2, 2))
    return path


# --- OGBench ----------------------------------------------------------------------------------------------------------


def write_ogbench(path, episodes, *, labels=("rewards", "masks"), next_observations=False, tail=False, **changes):
    """Writes the npz file: T + 1 states an episode and a dummy last action.

    Args:
        path: of the file.
        episodes: with final observations.
        labels: which of rewards and masks are there.
        next_observations: whether rows are steps with successors, so that there is no dummy row.
        tail: whether the last trajectory ends without a flag.
        changes: arrays that replace these; None removes one.
    """
    padding = 0 if next_observations else 1
    pads = ((0, padding),)
    arrays = {
        "observations": [each.observations["state"][: each.num_steps + padding] for each in episodes],
        "actions": [np.pad(each.actions, (*pads, (0, 0)), constant_values=9.0) for each in episodes],
        "terminals": [np.arange(each.num_steps + padding) == each.num_steps - 1 + padding for each in episodes],
        "qpos": [np.zeros((each.num_steps + padding, 3)) for each in episodes],
        "rewards": [np.pad(each.rewards, pads, constant_values=9.0) for each in episodes],
        "masks": [np.pad(1.0 - each.terminations, pads, constant_values=1.0) for each in episodes],
        "next_observations": [each.observations["state"][1:] for each in episodes],
    }
    dropped = {"rewards", "masks"} - set(labels) | ({"next_observations"} if not next_observations else set())
    flat = {name: np.concatenate(parts) for name, parts in arrays.items() if name not in dropped}
    flat["terminals"][-1] = not tail
    arrays: dict[str, Any] = {name: each for name, each in (flat | changes).items() if each is not None}
    np.savez_compressed(path, **arrays)
    return path


def assert_same(found, expected):
    """Compares an episode read with the one written: numbers, boundaries, success."""
    assert set(found.observations) == set(expected.observations)
    for key, rows in expected.observations.items():
        np.testing.assert_array_equal(found.observations[key][:], rows[: len(found.observations[key])])
        assert len(found.observations[key]) == expected.num_steps + found.has_final_observation
    np.testing.assert_array_equal(found.actions, expected.actions)
    for name in ("rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
