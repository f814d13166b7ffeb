"""The guard between a batch and the weights: what is not finite is named, saved, and changes nothing.

    batch ─▶ all numbers finite? ─▶ loss, gradients ─▶ all figures finite? ─▶ optimizer step
                  │ no                                       │ no
                  └────────────▶ named, saved; training stops, or the batch is left out and counted

A gradient far beyond the usual norm is no error, since it is scaled down: it is counted. Knows log and learner, so
nothing else may import it but training.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qtransformer import ranks
from qtransformer.bad_batches import (
    BadNumber,
    StepWithheld,
    arrays_of,
    bad_numbers,
    probe,
    raise_on_not_finite,
    save_bad_batch,
)
from qtransformer.batch import Batch
from qtransformer.config import RunError
from qtransformer.console import say
from qtransformer.learner import Figures, Learner
from qtransformer.run_folder import keeping
from qtransformer_datasets.schema import EpisodeDataset
from qtransformer_datasets.windows import SegmentSampler

SPIKE = 10  # times the median of the last norms: a gradient that is counted
_REMEMBERED = 200  # norms
_FEWEST = 20  # of them, before one can stand out
_MOST_IN_A_ROW = 20  # bad batches: leaving out more would hide a broken run
_MOST_SAVED = 5  # bad batches of a run, since each file holds the weights, too


class BadBatchError(RunError):
    """A batch, or what was computed from it, is not finite; the message names the place and the file to replay."""


@dataclass(frozen=True)
class LogPlaces:
    """Where in the log the numbers of a batch came from, the shares of all ranks together."""

    dataset: EpisodeDataset
    sampler: SegmentSampler

    @property
    def number(self) -> int:
        """The number of the batch that was given last."""
        return self.sampler.num_given - 1

    def batch(self, number: int) -> Batch:
        """Returns batch `number`, which all ranks share."""
        return self.sampler.undivided().batch(number)

    def sources(self, number: int) -> list[tuple[str, int]]:
        """Returns of each row of batch `number` the episode, and the step that it begins at."""
        episodes, firsts = self.sampler.undivided().places(number)
        names = [self.dataset.episodes[episode].source for episode in episodes]
        return list(zip(names, firsts.tolist(), strict=True))

    def name(self, number: int, bad: BadNumber) -> str:
        """Returns log, file, episode, key, element and step of a number of batch `number`."""
        episodes, firsts = self.sampler.undivided().places(number)
        episode, key, step = self.dataset.episodes[episodes[bad.row]], bad.key, int(firsts[bad.row]) + bad.frame
        if key.startswith("observations/"):
            step = min(step, episode.num_steps - 1 + episode.has_final_observation)  # the last one is repeated
        if key == "monte_carlo_returns":  # the sum of the rewards from here on, one of which is the cause
            later = np.flatnonzero(~np.isfinite(episode.rewards[step:]))
            key, step = ("rewards", step + int(later[0])) if len(later) else (key, step)
        where = f"[{', '.join(map(str, bad.element))}]" if bad.element else ""
        return f"{self.dataset.path}: {episode.source} {key}{where}{self._called(bad)} step {step} is {bad.value:g}"

    def _called(self, bad: BadNumber) -> str:
        specs = {f"observations/{each.name}": each.elements for each in self.dataset.spec.observations}
        names = (specs | {"actions": self.dataset.spec.actions.elements}).get(bad.key, ())
        return f" ({names[bad.element[0]]})" if len(bad.element) == 1 and bad.element[0] < len(names) else ""


class Guard:
    """Lets a learner take its steps, but for those that would spoil the weights."""

    def __init__(self, learner: Learner, places: LogPlaces, run: Path, info: Mapping[str, Any]) -> None:
        """Stands before every step of `learner` from now on; `info`, the run's description, goes into saved files."""
        self._learner, self._places, self._run, self._info = learner, places, run, info
        self._num_in_a_row = 0
        self._norms: deque[float] = deque()
        self._sorted: list[float] = []
        self._num_spikes = 0
        learner.before_step = raise_on_not_finite

    def update(self, batch: Batch) -> Figures | None:
        """Takes a step on the batch that the sampler gave last; returns its figures, or None where it was left out.

        All ranks refuse a batch together, and look at all of it: each knows what the others were given.

        Raises:
            BadBatchError: it is not finite and such batches stop training, or too many came in a row.
            RunError: the batch cannot be saved.
        """
        is_bad = ranks.largest(any(True for _ in bad_numbers(batch))) > 0
        try:
            figures = probe(self._learner, batch) if is_bad else self._learner.update(batch)
        except StepWithheld as withheld:
            is_bad, figures = True, withheld.figures
        if is_bad:
            self._refuse(batch if ranks.world_size() == 1 else self._places.batch(self._places.number), figures)
            return None
        self._num_in_a_row = 0
        self._remember(float(figures["gradient_norm"]))
        return figures

    def counts(self, step: int) -> dict[str, int]:
        """Returns how often something was strange since the run began, for the metrics of update `step`."""
        return {"gradient_spikes": self._num_spikes, "skipped_batches": self._places.sampler.num_given - step}

    def state(self) -> dict[str, Tensor]:
        """Returns what a resumed run must know of earlier updates."""
        return {
            "norms": torch.tensor(list(self._norms), dtype=torch.float64),
            "num_spikes": torch.tensor(self._num_spikes),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        self._norms = deque(state["norms"].tolist())
        self._sorted = sorted(self._norms)
        self._num_spikes = int(state["num_spikes"])

    def _remember(self, norm: float) -> None:
        """Counts the norm of a gradient if it stands far out, and keeps it among the last ones, in order."""
        size = len(self._sorted)
        self._num_spikes += size >= _FEWEST and norm > SPIKE * self._sorted[size // 2]
        self._norms.append(norm)
        insort(self._sorted, norm)
        if size == _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._norms.popleft())]

    def _blame_network(self, batch: Batch, figures: Figures) -> str:
        """Returns what is not finite though the batch is, and the largest number of it, which may be the cause."""
        names = ", ".join(name for name, value in figures.items() if not value.isfinite())
        floats = {key: np.abs(array) for key, array in arrays_of(batch).items() if array.dtype.kind == "f"}
        key = max(floats, key=lambda each: floats[each].max())
        row, frame, *element = np.unravel_index(floats[key].argmax(), floats[key].shape)
        value = float(arrays_of(batch)[key][row, frame, *element])
        largest = BadNumber(key, int(row), int(frame), tuple(map(int, element)), value)
        return (
            f"{names} of the update is not finite, though every number of the batch is; the largest: "
            f"{self._places.name(self._places.number, largest)}; if that is a usual one, lower --learning-rate"
        )

    def _refuse(self, batch: Batch, figures: Figures) -> None:
        """Lets rank 0 save the whole batch, and stops training or says that it goes on without."""
        number, folder = self._places.number, self._run / "bad_batches"
        bad = next(bad_numbers(batch), None)
        reason = self._places.name(number, bad) if bad else self._blame_network(batch, figures)
        path = folder / f"batch_{number:09d}.npz"
        is_skipping = self._info["config"]["on_bad_batch"] == "skip"
        document = {
            "info": dict(self._info),
            "number": number,
            "step": self._learner.num_updates + 1,
            "figures": {name: value.item() for name, value in figures.items()},
            "sources": self._places.sources(number),
            "reason": reason,
        }
        is_saved = not is_skipping or len(list(folder.glob("batch_*.npz"))) < _MOST_SAVED
        if is_saved and not ranks.rank():
            with keeping(path):
                save_bad_batch(path, batch, self._learner, document)
        ranks.wait()  # a rank that ended before it was saved would end rank 0
        saved = f"; look at it with: qtransformer replay-batch {path}" if is_saved else ""
        said = f"batch {number}, for update {document['step']}: {reason}; it changed no weight{saved}"
        self._num_in_a_row += 1
        if not is_skipping:
            raise BadBatchError(f"{said}; repair the log, or leave such batches out with --on-bad-batch skip")
        if self._num_in_a_row >= _MOST_IN_A_ROW:
            raise BadBatchError(f"{said}; {_MOST_IN_A_ROW} in a row were bad, so leaving them out does not help")
        say(f"left out: {said}")
