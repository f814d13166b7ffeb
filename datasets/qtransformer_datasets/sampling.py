"""Which steps a batch begins at: a pure function of seed and batch number.

Special about this file: the random numbers come from a counter (Philox, keyed by seed and batch number) and not from a
generator that moves on, so a run is resumed at a sample, threads may make batches in any order, and processes that
share a batch agree on it without a word. An episode has a weight, and its steps are equally likely among themselves:

    steps                     0   1   2 | 3   4          episodes of 3 and 2 steps, weights 1 and 3
    weight up to there        1   2   3 | 6   9          a uniform number in [0, 9) finds episode and step
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtransformer.batch import Balance

from .schema import DatasetError, Episode, EpisodeDataset

_SEEDS = 2**64


class StartSampler:
    """Draws steps, counted through all episodes in order."""

    def __init__(self, lengths: np.ndarray, weights: np.ndarray, seed: int) -> None:
        """Takes (E,) steps of each episode, and (E,) the weight of each of its steps.

        Raises:
            ValueError: the seed is no unsigned number of 64 bits.
        """
        if not 0 <= seed < _SEEDS:
            raise ValueError(f"seed ({seed}) must be in [0, 2^64); choose another")
        self._seed = seed
        self._weights = weights
        self._num_steps = int(lengths.sum())
        self._are_alike = bool((weights == weights[0]).all())  # then a step is found without its episode
        self._firsts = np.cumsum(lengths) - lengths
        self._lasts = self._firsts + lengths - 1
        ends = np.cumsum(lengths * weights)
        self._total, self._inner_ends = float(ends[-1]), ends[:-1]
        self._begins = np.concatenate([[0.0], ends[:-1]])

    def draw(self, number: int, size: int) -> np.ndarray:
        """Returns (size,) int64 starts: those of batch `number`, the same at every call."""
        uniform = uniform_numbers(self._seed, number, size)
        if self._are_alike:
            return np.minimum((uniform * self._num_steps).astype(np.int64), self._num_steps - 1)
        return self.at(uniform * self._total)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Returns the steps at which positions in [0, sum of all weights) lie."""
        episodes = np.searchsorted(self._inner_ends, positions, side="right")
        steps = (positions - self._begins[episodes]) / self._weights[episodes]  # truncated, so rounding below 0 is 0
        return np.minimum(self._firsts[episodes] + steps.astype(np.int64), self._lasts[episodes])


def uniform_numbers(seed: int, number: int, size: int, stream: int = 0) -> np.ndarray:
    """Returns (size,) float64 in [0, 1) of batch `number`: the same at every call, others in each stream."""
    generator = np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, 0, 0, stream])
    return (generator.random_raw(size) >> np.uint64(11)) * 2.0**-53  # numpy's own, whose bits are stable by contract


def step_weights(dataset: EpisodeDataset, balance: Balance) -> np.ndarray:
    """Returns (E,) float64, positive: how likely a step of each episode is to be drawn, against the others.

    steps     all steps alike
    task      each task as often as any other; see `tasks`
    success   half of the starts from successful episodes, half from all others; all steps alike where only one kind is
    return    in proportion to the share of episodes that an episode's return beats (ties half): the best are drawn
              twice as often as the average, the worst almost never, whatever the unit of the reward

    Raises:
        DatasetError: the log does not say what the balance goes by.
    """
    episodes = dataset.episodes
    if balance == "task":
        return _equal_shares(episodes, tasks(dataset, "balance 'task'"))
    if balance == "success":
        if all(episode.success is None for episode in episodes):
            raise DatasetError(f"{dataset.path}: balance 'success' needs to know which episodes succeeded; use 'steps'")
        return _equal_shares(episodes, [bool(episode.success) for episode in episodes])
    if balance == "return":
        return _ranks(np.array([float(episode.rewards.sum()) for episode in episodes]))
    return np.ones(len(episodes))


def tasks(dataset: EpisodeDataset, asker: str) -> list[str]:
    """Returns the task of each episode: its goal, or else the instruction of its first step.

    Raises:
        DatasetError: one has neither; the message says that `asker` needs it.
    """
    found = [episode.goal or episode.instruction for episode in dataset.episodes]
    if None in found:
        source = dataset.episodes[found.index(None)].source
        raise DatasetError(f"{source}: {asker} needs an instruction, got none; add one, or leave that setting out")
    return [str(task) for task in found]


def _equal_shares(episodes: Sequence[Episode], groups: Sequence[str | bool]) -> np.ndarray:
    _, members = np.unique(np.array(groups), return_inverse=True)
    lengths = np.array([episode.num_steps for episode in episodes])
    totals = np.bincount(members, weights=lengths)
    return lengths.sum() / len(totals) / totals[members]


def _ranks(returns: np.ndarray) -> np.ndarray:
    ordered = np.sort(returns)
    below, up_to = (np.searchsorted(ordered, returns, side) for side in ("left", "right"))
    return (below + up_to) / len(returns)
