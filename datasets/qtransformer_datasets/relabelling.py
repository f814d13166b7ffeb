"""Hindsight relabelling: segments that are told what their episode did not do, and paid as its failures.

A log of successes never shows that an instruction can fail. Each episode is one for every other task, though:

    of the log     "open the drawer"    rewards  0  0  1     return 0.96  0.98  1
    relabelled     "pick up the can"    rewards  0  0  0     return 0     0     0

Which segments these are is a function of seed and batch number. It must not know networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qtransformer.batch import Batch

from .returns import least_future, least_reward
from .sampling import tasks, uniform_numbers
from .schema import DatasetError, EpisodeDataset

_STREAM = 1  # of random numbers; the starts of segments have stream 0


class Relabelling:
    """Chooses segments and what they are told."""

    def __init__(self, dataset: EpisodeDataset, share: float, discount: float, seed: int) -> None:
        """Takes the share of segments that are told another task's instruction.

        Raises:
            DatasetError: the log tells no two tasks in words.
        """
        found, groups = np.unique(np.array(tasks(dataset, "--relabel")), return_inverse=True)
        if len(found) < 2 or not any(each.kind == "text" for each in dataset.spec.observations):
            raise DatasetError(
                f"{dataset.path}: --relabel must have two tasks or more, told in an observation, got "
                f"{found[:10].tolist()}; leave it out"
            )
        self._share, self._seed, self._groups = share, seed, groups
        self._order = np.argsort(groups, kind="stable")  # episodes, task by task
        self._sizes = np.bincount(groups)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._reward = np.float32(least_reward(dataset.episodes))
        self._return = np.float32(least_future(dataset.episodes, discount))

    def donors(self, number: int, size: int, first: int, episodes: np.ndarray) -> np.ndarray:
        """Returns whose instruction each segment is told: that of an episode of another task, as likely as any; or -1.

        Args:
            number: of the batch.
            size: segments of the whole batch.
            first: the first segment of these, counted in the whole batch.
            episodes: (B,) episodes that these segments were cut from.
        """
        uniform = uniform_numbers(self._seed, number, 2 * size, _STREAM).reshape(2, size)
        is_chosen, position = uniform[:, first : first + len(episodes)]
        groups = self._groups[episodes]
        places = (position * (len(self._order) - self._sizes[groups])).astype(np.int64)
        places += np.where(places >= self._begins[groups], self._sizes[groups], 0)  # past those of the own task
        return np.where(is_chosen < self._share, self._order[places], -1)

    def relabelled(self, batch: Batch, told: Mapping[str, np.ndarray], is_relabelled: np.ndarray) -> Batch:
        """Returns the batch with failures of what is `told`, each (B, ...), where `is_relabelled`, (B,), says so.

        Every step pays the least, and what ends the episode as much as paying the least for ever: nothing good follows
        a failure, also where a step costs and the end would be a relief.
        """
        rows = is_relabelled[:, None] & batch.is_valid
        changed = {key: _where(is_relabelled, value[:, None], batch.observations[key]) for key, value in told.items()}
        return replace(
            batch,
            observations={**batch.observations, **changed},
            rewards=np.where(rows, np.where(batch.terminations, self._return, self._reward), batch.rewards),
            monte_carlo_returns=np.where(rows, self._return, batch.monte_carlo_returns),
            is_success=batch.is_success & ~is_relabelled,
            is_relabelled=is_relabelled,
        )


def _where(is_chosen: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(is_chosen.reshape(-1, *[1] * (other.ndim - 1)), one, other)
