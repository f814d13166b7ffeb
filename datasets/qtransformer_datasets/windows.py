"""Cutting episodes into segments of consecutive steps: the training batches.

Special about this file: all numbers are copied once into contiguous arrays, and a batch is a few fancy-indexing
calls on them. Observation rows run ahead of step rows, since every episode has one observation more than steps:

    episode          0  0  0   1  1            (3 and 2 steps)
    step row         0  1  2   3  4
    observation row  0  1  2 3 4  5  6         observation row = step row + episode number
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from qtransformer.batch import Batch

from .returns import monte_carlo_returns
from .schema import DatasetError, Episode, EpisodeDataset


class SegmentSampler:
    """Draws segments that start uniformly at any step of any episode; what passes the episode's end is padding."""

    def __init__(
        self, dataset: EpisodeDataset, *, segment_length: int, batch_size: int, discount: float, seed: int
    ) -> None:
        """Copies the dataset into memory.

        Args:
            dataset: episodes; float64 observations are kept as float32.
            segment_length: T, steps in a segment.
            batch_size: B, segments in a batch of `sample`.
            discount: factor per step of the Monte-Carlo returns, in [0, 1].
            seed: of the generator behind `sample`.

        Raises:
            DatasetError: an episode's arrays differ in length, or there is no step at all.
            ValueError: a setting is out of its range.
        """
        for name, value in (("segment_length", segment_length), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1; give a positive number")
        if not 0 <= discount <= 1:
            raise ValueError(f"discount ({discount}) must be in [0, 1]; a usual value is 0.98")
        _check_lengths(dataset)
        self.segment_length = segment_length
        self.batch_size = batch_size
        self._fingerprint = dataset.fingerprint
        self._generator = np.random.default_rng(seed)
        self._copy(dataset.episodes, discount)

    @property
    def num_steps(self) -> int:
        """Number of places where a segment can start."""
        return len(self._actions)

    def sample(self) -> Batch:
        """Returns a batch of `batch_size` segments and moves the generator on."""
        return self.segments(self._generator.integers(self.num_steps, size=self.batch_size))

    def segments(self, starts: np.ndarray) -> Batch:
        """Returns the segments that start at the given steps, counted through all episodes in order.

        Args:
            starts: (B,) integers in [0, num_steps).
        """
        episodes = self._episode_of_step[starts]
        ends = self._ends[episodes][:, None]  # first step row that belongs to the next episode
        rows = starts[:, None] + np.arange(self.segment_length + 1)
        observation_rows = np.minimum(rows, ends) + episodes[:, None]
        is_valid = rows[:, :-1] < ends
        steps = np.where(is_valid, rows[:, :-1], 0)
        return Batch(
            observations={key: array[observation_rows] for key, array in self._observations.items()},
            actions=self._actions[steps] * is_valid[..., None],
            rewards=self._rewards[steps] * is_valid,
            terminations=self._terminations[steps] & is_valid,
            has_successor=self._has_successor[steps] & is_valid,
            monte_carlo_returns=self._returns[steps] * is_valid,
            is_success=self._successes[episodes],
            is_valid=is_valid,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the generator's state and the dataset's fingerprint; it fits into JSON."""
        return json.loads(
            json.dumps({"generator": self._generator.bit_generator.state, "fingerprint": self._fingerprint})
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the draws of the sampler that gave `state`.

        Raises:
            DatasetError: that sampler drew from other data.
        """
        if state["fingerprint"] != self._fingerprint:
            raise DatasetError(
                f"dataset fingerprint ({self._fingerprint[:12]}) must equal the saved {state['fingerprint'][:12]}; "
                "resume with the dataset that the run began with"
            )
        self._generator.bit_generator.state = dict(state["generator"])

    def _copy(self, episodes: tuple[Episode, ...], discount: float) -> None:
        lengths = np.array([episode.num_steps for episode in episodes])
        self._ends = np.cumsum(lengths)
        self._episode_of_step = np.repeat(np.arange(len(episodes)), lengths)
        keys = episodes[0].observations
        self._observations = {key: np.concatenate([_successors(episode, key) for episode in episodes]) for key in keys}
        self._actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float32)
        self._rewards = np.concatenate([episode.rewards for episode in episodes]).astype(np.float32)
        self._returns = np.concatenate(monte_carlo_returns(episodes, discount)).astype(np.float32)
        self._terminations = np.concatenate([episode.terminations for episode in episodes])
        self._has_successor = np.ones(len(self._actions), bool)
        lacks_final = [not episode.has_final_observation for episode in episodes]
        self._has_successor[self._ends[lacks_final] - 1] = False
        self._successes = np.array([bool(episode.success) for episode in episodes])


def _successors(episode: Episode, key: str) -> np.ndarray:
    """Returns T + 1 rows; where there is no final observation the last one stands in, and is marked as no successor."""
    array = episode.observations[key]
    array = array if episode.has_final_observation else np.concatenate([array, array[-1:]])
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _check_lengths(dataset: EpisodeDataset) -> None:
    for episode in dataset.episodes:
        problems = episode.length_problems()
        if not episode.num_steps:
            problems.append("actions must have at least one step, got none")
        if problems:
            raise DatasetError(f"{episode.source}: {'; '.join(problems)}; remove the episode or record it again")
    if not dataset.episodes:
        raise DatasetError(f"{dataset.path} must hold at least one episode, got none; collect some first")
