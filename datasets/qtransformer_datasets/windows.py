"""Cutting episodes into segments of consecutive steps: the training batches.

Special about this file: all numbers are copied once into contiguous arrays, and a batch is a few gathers on them.
Observation rows run apart from step rows, since an episode may have one observation more than steps:

    episode          0  0  0   1  1            (3 and 2 steps, both with a final observation)
    step row         0  1  2   3  4
    observation row  0  1  2 3 4  5  6
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qtransformer.batch import Balance, Batch

from .frames import Rows, is_image
from .image_rows import EncodedRows, MemoryRows, RowSource
from .relabelling import Relabelling
from .returns import monte_carlo_returns
from .sampling import StartSampler, step_weights
from .schema import DatasetError, Episode, EpisodeDataset
from .selection import texts
from .storage import Storage, check_memory, open_images


@dataclass(frozen=True)
class LoadingOptions:
    """How a log is fed to the learner."""

    balance: Balance = "steps"
    """Which steps are drawn more often: all alike, each task, success and failure, or better returns; see
    `sampling.step_weights`."""
    storage: Storage = "auto"
    """Where images are kept: `memory`, `mapped` (a cache beside the log, written once), `file` (decoded each time)."""
    memory_limit: int | None = None
    """Bytes that the log may take in memory; without, half of what is free."""
    rank: int = 0
    """Which of the processes that share each batch this is."""
    world_size: int = 1
    """How many processes share each batch."""
    window: int | None = None
    """Images of the first `window` observations alone are loaded, and those of the last window; without, all."""
    has_last_window: bool = True
    """Whether the values of the states in which the segment's returns end are asked for; see `looked_at`."""
    encode_text: Callable[[str], np.ndarray] | None = None
    """Turns a text into a vector of numbers; without, texts come as numbers of `SegmentSampler.texts`."""
    relabel: float = 0.0
    """Share of the segments of a batch that are told another task's instruction, as its failures."""


class SegmentSampler:
    """Draws segments that start at any step of any episode; what passes the episode's end is padding.

    A batch is a function of the data, the seed and the batch's number, and of nothing else.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        *,
        segment_length: int,
        batch_size: int,
        discount: float,
        seed: int,
        options: LoadingOptions = LoadingOptions(),
    ) -> None:
        """Copies the numbers into memory, and puts images where `options` say.

        Args:
            dataset: episodes; float64 observations are kept as float32, texts as numbers of `texts` or
                as vectors.
            segment_length: T, steps in a segment.
            batch_size: B, segments in a batch, all ranks together.
            discount: factor per step of the Monte-Carlo returns, in [0, 1].
            seed: of the draws, in [0, 2^64).
            options: what is drawn more often, where images are kept, and who shares the batch.

        Raises:
            DatasetError: an episode's arrays differ in length, there is no step at all, the log is too large for the
                memory limit, does not say what the balance goes by, or has no other task to tell.
            ValueError: a setting is out of its range.
        """
        _check_settings(segment_length, batch_size, discount, options)
        _check_lengths(dataset)
        self.segment_length = segment_length
        self.batch_size = batch_size
        self.num_given = 0  # batches that `sample` gave: the number of the next one
        self.texts = texts(dataset)  # the strings that numbers stand for, sorted, by observation key
        self._options = options
        self._fingerprint = dataset.fingerprint
        lengths = np.array([episode.num_steps for episode in dataset.episodes])
        self._starts = StartSampler(lengths, step_weights(dataset, options.balance), seed)
        self._ends = np.cumsum(lengths)
        self._episode_of_step = np.repeat(np.arange(len(lengths)), lengths)
        num_rows = lengths + [episode.has_final_observation for episode in dataset.episodes]
        self._last_rows = np.cumsum(num_rows) - 1  # of each episode: the observation that is repeated after its end
        self._first_rows = np.cumsum(num_rows) - num_rows
        self._shifts = self._first_rows - (self._ends - lengths)  # from step rows to observation rows
        share = options.relabel
        self._relabelling = Relabelling(dataset, share, discount, seed) if share else None
        self._copy(dataset, discount)

    @property
    def num_steps(self) -> int:
        """Number of places where a segment can start."""
        return len(self._episode_of_step)

    @property
    def has_images(self) -> bool:
        """Whether a batch holds images."""
        return bool(self._images)

    def sample(self) -> Batch:
        """Returns the next batch: this rank's share of `batch_size` segments."""
        batch = self.batch(self.num_given)
        self.num_given += 1
        return batch

    def batch(self, number: int) -> Batch:
        """Returns batch `number`, counted from 0: the same at every call, in every process and thread."""
        starts = self._draw(number)
        batch = self.segments(starts)
        if self._relabelling is None:
            return batch
        episodes = self._episode_of_step[starts]
        donors = self._relabelling.donors(number, self.batch_size, self._first, episodes)
        told = {key: self._observations[key].take(self._first_rows[donors]) for key in self.texts}
        return self._relabelling.relabelled(batch, told, donors >= 0)

    def undivided(self) -> SegmentSampler:
        """Returns a sampler on the same memory that gives the shares of all ranks together."""
        alone = copy.copy(self)
        alone._options = replace(self._options, rank=0, world_size=1)
        return alone

    def places(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns of each segment of batch `number` the episode, and the step of the episode that it begins at."""
        starts = self._draw(number)
        episodes = self._episode_of_step[starts]
        return episodes, starts - np.searchsorted(self._episode_of_step, episodes)

    def segments(self, starts: np.ndarray) -> Batch:
        """Returns the segments that start at the given steps, counted through all episodes in order.

        Args:
            starts: (B,) integers in [0, num_steps).
        """
        episodes = self._episode_of_step[starts]
        rows = starts[:, None] + np.arange(self.segment_length + 1)
        observation_rows = np.minimum(rows + self._shifts[episodes][:, None], self._last_rows[episodes][:, None])
        is_valid = rows[:, :-1] < self._ends[episodes][:, None]
        steps = self._steps.take(np.where(is_valid, rows[:, :-1], self.num_steps))  # zeros stand behind the last step
        is_known = steps["terminations"] | steps["has_successor"]
        frames = looked_at(is_known, self._options.window, self._options.has_last_window)
        image_rows = np.take_along_axis(observation_rows, frames, axis=1)
        return Batch(
            observations={
                key: source.take(image_rows if key in self._images else observation_rows)
                for key, source in self._observations.items()
            },
            **{name: np.ascontiguousarray(steps[name]) for name in self._steps.dtype.fields or ()},
            is_success=self._successes[episodes],
            is_relabelled=np.zeros(len(starts), bool),
            is_valid=is_valid,
            frames=frames,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of the next batch and the dataset's fingerprint; it fits into JSON."""
        return {"step": self.num_given, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the draws of a sampler of the same settings that gave `state`.

        Raises:
            DatasetError: that sampler drew from other data, or by the rule of an older version.
        """
        if state["fingerprint"] != self._fingerprint:
            raise DatasetError(
                f"dataset fingerprint ({self._fingerprint[:12]}) must equal the saved {state['fingerprint'][:12]}; "
                "resume with the dataset that the run began with"
            )
        if "generator" in state:
            raise DatasetError(
                "the saved state of the draws must be a step, got a generator of an older version, whose batches "
                "this one cannot continue; begin a new run"
            )
        self.num_given = int(state["step"])

    def _draw(self, number: int) -> np.ndarray:
        """Returns the steps at which this rank's segments of batch `number` begin."""
        share = self.batch_size // self._options.world_size
        return self._starts.draw(number, self.batch_size)[self._first : self._first + share]

    @property
    def _first(self) -> int:
        """Number of this rank's first segment in the whole batch."""
        return self._options.rank * (self.batch_size // self._options.world_size)

    def _copy(self, dataset: EpisodeDataset, discount: float) -> None:
        episodes = dataset.episodes
        first = episodes[0].observations
        images = [key for key, rows in first.items() if is_image(rows)]
        numbers = [key for key in first if key not in images]
        spare = check_memory(dataset, self._copied_bytes(episodes, numbers), self._options.memory_limit)
        self._images = open_images(dataset, images, self._options.storage, spare)
        arrays = {key: self._encoded(key, self._copy_rows(episodes, key)) for key in numbers}
        self._observations: dict[str, RowSource] = {key: (arrays | self._images)[key] for key in first}
        lacks_final = [not episode.has_final_observation for episode in episodes]
        self._steps = np.zeros(self.num_steps + 1, _step_dtype(episodes[0].actions.shape[1]))
        steps = self._steps[:-1]
        for name in ("actions", "rewards", "terminations"):
            np.concatenate([getattr(episode, name) for episode in episodes], out=steps[name], casting="same_kind")
        np.concatenate(monte_carlo_returns(episodes, discount), out=steps["monte_carlo_returns"], casting="same_kind")
        steps["has_successor"] = True
        steps["has_successor"][self._ends[lacks_final] - 1] = False
        self._successes = np.array([bool(episode.success) for episode in episodes])

    def _encoded(self, key: str, rows: np.ndarray) -> RowSource:
        """Returns the rows as they go into a batch: texts through their table, if there is an encoder."""
        encode = self._options.encode_text
        if key not in self.texts or encode is None:
            return MemoryRows(rows)
        return EncodedRows(rows, np.stack([encode(text) for text in self.texts[key]]))

    def _copied_bytes(self, episodes: Sequence[Episode], keys: Sequence[str]) -> int:
        rows = int(self._last_rows[-1]) + 1
        columns = {key: [episode.observations[key] for episode in episodes] for key in keys}
        wide = sum(int(np.prod(parts[0].shape[1:])) * _kept_dtype(parts).itemsize for parts in columns.values())
        bytes_a_step = _step_dtype(episodes[0].actions.shape[1]).itemsize + self._episode_of_step.itemsize
        return rows * wide + self.num_steps * bytes_a_step

    def _copy_rows(self, episodes: Sequence[Episode], key: str) -> np.ndarray:
        parts = [np.asarray(episode.observations[key]) for episode in episodes]
        rows = np.empty((int(self._last_rows[-1]) + 1, *parts[0].shape[1:]), _kept_dtype(parts))
        if parts[0].dtype.kind == "U":
            parts = [np.searchsorted(np.array(self.texts[key]), part) for part in parts]
        return np.concatenate(parts, out=rows, casting="same_kind")


def looked_at(is_known: np.ndarray, window: int | None, has_last_window: bool) -> np.ndarray:
    """Returns (B, F) which observations of each segment the learner looks at, increasing.

    It judges the first window, by returns that end in the last one, or earlier where the episode was cut off before:

        observations    o0  o1  o2  o3  o4  o5  o6      (window 2, 5 environment steps, 6 in a segment)
        looked at       └────┘              └────┘
        cut off at o3   └────┘  └────┘

    Args:
        is_known: (B, T) bool: what the step leads to is known.
        window: observations that the learner sees at once; None: it looks at all.
        has_last_window: whether it looks at the last one.
    """
    num_segments, num_steps = is_known.shape
    if window is None or not has_last_window:
        return np.tile(np.arange(num_steps + 1 if window is None else window), (num_segments, 1))
    most = num_steps + 1 - window  # where the last window can begin
    begins = (is_known.sum(axis=1) + 1 - window).clip(1, most)
    last = np.maximum(begins, window)[:, None] + np.arange(min(window, most))  # what the first one does not hold
    return np.concatenate([np.tile(np.arange(window), (num_segments, 1)), last], axis=1)


def _kept_dtype(parts: Sequence[Rows]) -> np.dtype:
    dtype = np.result_type(*{part.dtype for part in parts})
    if dtype.kind == "U":
        return np.dtype(np.int64)
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _step_dtype(num_dimensions: int) -> np.dtype:
    """Returns what is kept of a step, side by side: all of it comes with one reach into memory."""
    fields = [("actions", np.float32, (num_dimensions,)), ("rewards", np.float32), ("monte_carlo_returns", np.float32)]
    return np.dtype([*fields, ("terminations", bool), ("has_successor", bool)])


def _check_settings(segment_length: int, batch_size: int, discount: float, options: LoadingOptions) -> None:
    sizes = {"segment_length": segment_length, "batch_size": batch_size, "world_size": options.world_size}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1; give a positive number")
    if options.window is not None and not 1 <= options.window <= segment_length:
        raise ValueError(f"window ({options.window}) must be in [1, {segment_length}], the segment's steps; correct it")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount ({discount}) must be in [0, 1]; a usual value is 0.98")
    if not 0 <= options.rank < options.world_size:
        raise ValueError(f"rank ({options.rank}) must be in [0, {options.world_size}), the world size; correct it")
    if batch_size % options.world_size:
        raise ValueError(
            f"batch_size ({batch_size}) must be a multiple of the world size {options.world_size}; choose another"
        )


def _check_lengths(dataset: EpisodeDataset) -> None:
    for episode in dataset.episodes:
        problems = episode.length_problems()
        if not episode.num_steps:
            problems.append("actions must have at least one step, got none")
        if problems:
            raise DatasetError(f"{episode.source}: {'; '.join(problems)}; remove the episode or record it again")
    if not dataset.episodes:
        raise DatasetError(f"{dataset.path} must hold at least one episode, got none; collect some first")
