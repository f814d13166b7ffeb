"""Choosing from a dataset and joining datasets: by success, return, task, observation key; split by episode.

Special about this file: each function returns a new dataset, and refuses to return an
empty one. Nothing is copied: the episodes are the same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .schema import DatasetError, Episode, EpisodeDataset


def only_successful(dataset: EpisodeDataset) -> EpisodeDataset:
    """Returns the successful episodes.

    Raises:
        DatasetError: no episode succeeded.
    """
    return _only(dataset, lambda episode: bool(episode.success), "succeeded; use the unfiltered dataset")


def with_min_return(dataset: EpisodeDataset, min_return: float) -> EpisodeDataset:
    """Returns the episodes whose undiscounted return is at least `min_return`, in the log's unit.

    Raises:
        DatasetError: none is that good.
    """
    best = max((float(episode.rewards.sum()) for episode in dataset.episodes), default=float("nan"))
    advice = f"has a return of {min_return:g} or more (the best has {best:g}); ask for less"
    return _only(dataset, lambda episode: float(episode.rewards.sum()) >= min_return, advice)


def with_task(dataset: EpisodeDataset, task: str) -> EpisodeDataset:
    """Returns the episodes whose instruction is `task`, word for word.

    Raises:
        DatasetError: there is none; the message lists the instructions that there are.
    """
    known = sorted({str(episode.instruction) for episode in dataset.episodes if episode.instruction is not None})
    advice = f"has the task {task!r}; known are {known[:10] or 'none, since the log has no text'}"
    return _only(dataset, lambda episode: episode.instruction == task, advice)


def texts(dataset: EpisodeDataset) -> dict[str, list[str]]:
    """Returns the different texts of each observation that is text, sorted."""
    found: dict[str, set[str]] = {}
    for episode in dataset.episodes:
        for key, rows in episode.observations.items():
            if rows.dtype.kind == "U":
                found.setdefault(key, set()).update(np.unique(np.asarray(rows)).tolist())
    return {key: sorted(each) for key, each in found.items()}


def select_observations(dataset: EpisodeDataset, keys: Sequence[str]) -> EpisodeDataset:
    """Returns the dataset with these observation keys alone, in the order of its spec, which names the others.

    Raises:
        DatasetError: a key is not there, or none is asked for.
    """
    known = [each.name for each in dataset.spec.observations]
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        raise DatasetError(f"{dataset.path}: observations {missing or 'none'} asked for, but the log has {known}")
    chosen = tuple(each for each in dataset.spec.observations if each.name in keys)
    ignored = (*dataset.spec.ignored_observations, *(key for key in known if key not in keys))
    spec = replace(dataset.spec, observations=chosen, ignored_observations=ignored)
    episodes = tuple(
        replace(
            episode,
            observations={each.name: episode.observations[each.name] for each in spec.observations},
            task=episode.instruction,
        )
        for episode in dataset.episodes
    )
    return replace(dataset, spec=spec, episodes=episodes)


def split(dataset: EpisodeDataset, held_out: float, seed: int = 0) -> tuple[EpisodeDataset, EpisodeDataset]:
    """Returns the training episodes and the held-out ones; whole episodes, each set in the log's order.

    Args:
        dataset: what to split.
        held_out: share of the episodes to hold out, in (0, 1); at least one goes to each side.
        seed: of the choice.

    Raises:
        DatasetError: there are fewer than two episodes, or the share is out of its range.
    """
    if not 0 < held_out < 1:
        raise DatasetError(f"held_out ({held_out}) must be between 0 and 1; a usual share is 0.1")
    if dataset.num_episodes < 2:
        raise DatasetError(f"{dataset.path} must hold two episodes or more to be split, got {dataset.num_episodes}")
    num = min(max(1, round(held_out * dataset.num_episodes)), dataset.num_episodes - 1)
    order = np.random.default_rng(seed).permutation(dataset.num_episodes)
    chosen = set(order[:num].tolist())
    parts = ([e for i, e in enumerate(dataset.episodes) if (i in chosen) == side] for side in (False, True))
    training, held = (dataset.with_episodes(part) for part in parts)
    return training, held


def merge(datasets: Sequence[EpisodeDataset], path: Path) -> EpisodeDataset:
    """Returns the episodes of all datasets as one, in the order given; `path` is what messages call it.

    Each episode's source is led by the name of its dataset: "shard_1/main_data.hdf5:episode_0".

    Raises:
        DatasetError: two datasets differ in observations, actions, rate or environment.
    """
    first = datasets[0]
    for other in datasets[1:]:
        for name in ("observations", "actions", "control_hz", "environment_id"):
            expected, found = getattr(first.spec, name), getattr(other.spec, name)
            if expected != found:
                raise DatasetError(
                    f"{other.path}: {name} must be those of {first.path} to be read as one set, {expected}, got "
                    f"{found}; convert one of them, or use them apart"
                )
    episodes = (
        replace(episode, source=f"{each.path.name}/{episode.source}") for each in datasets for episode in each.episodes
    )
    notes = tuple(dict.fromkeys(note for each in datasets for note in each.notes))
    rules: dict[str, str] = {}
    for each in datasets:
        for name, rule in each.rules.items():
            rules[name] = rule if rules.get(name, rule) == rule else f"{rules[name]}; elsewhere: {rule}"
    whole = replace(first, path=path, rules=rules, notes=notes)
    return whole.with_episodes(episodes)


def _only(dataset: EpisodeDataset, is_wanted: Callable[[Episode], bool], advice: str) -> EpisodeDataset:
    episodes = [episode for episode in dataset.episodes if is_wanted(episode)]
    if not episodes:
        raise DatasetError(f"{dataset.path}: none of {dataset.num_episodes} episodes {advice}")
    return dataset.with_episodes(episodes)
