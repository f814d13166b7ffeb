"""All that a run must find again after an interruption, so that it ends bit by bit as if there had been none.

That is the learner, the number of the next batch, the random generators, what guard and watch compare with, and the
figures since the last line of metrics.jsonl: a line after an interruption is the mean over the same updates as without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qtransformer import ranks
from qtransformer.checkpoint import load_checkpoint, save_checkpoint, set_aside_newer
from qtransformer.checkpoint_writer import CheckpointWriter
from qtransformer.config import RunError, TrainConfig
from qtransformer.guard import Guard
from qtransformer.learner import Figures, Learner, under
from qtransformer.watch import Watch
from qtransformer_datasets.windows import SegmentSampler

_FIGURES, _GENERATOR, _GUARD, _WATCH = "figures.", "generator.", "guard.", "watch."


class RecentFigures:
    """The figures of the updates since the last line of metrics.jsonl."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, figures: Figures) -> None:
        """Takes the figures of one update."""
        for name, value in figures.items():
            self._columns.setdefault(name, []).append(value)

    def take_means(self) -> dict[str, float]:
        """Returns the mean of each figure and forgets them."""
        means = {name: torch.stack(values).mean().item() for name, values in self._columns.items()}
        self._columns = {}
        return means

    def state(self) -> dict[str, Tensor]:
        """Returns all of them."""
        return {name: torch.stack(values) for name, values in self._columns.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        self._columns = {name: list(values) for name, values in state.items()}


class TrainingState:
    """A run in memory."""

    def __init__(
        self, learner: Learner, sampler: SegmentSampler, info: dict[str, Any], guard: Guard, watch: Watch
    ) -> None:
        """Begins a run; `info` is the description that goes into every checkpoint."""
        self.learner, self.sampler, self.info, self.guard, self.watch = learner, sampler, info, guard, watch
        self.config = TrainConfig.from_json(info["config"])
        self.recent = RecentFigures()
        self.writer = CheckpointWriter()

    def save(self, step: int) -> None:
        """Begins to write a checkpoint after update `step`, all ranks together; `writer` ends it.

        Raises:
            CheckpointError: the one before could not be written.
        """
        own = {_FIGURES + name: values for name, values in self.recent.state().items()}
        own |= {_GUARD + name: values for name, values in self.guard.state().items()}
        own |= {_WATCH + name: values for name, values in self.watch.state().items()}
        own |= _generators(self._device)
        self.writer.save(self.config.out, self._described(step, None), *self.learner.state(), own)

    def save_policy(self, folder: Path, step: int, evaluation: Mapping[str, float]) -> None:
        """Writes the policy after update `step` alone, with what its evaluation gave, from this rank.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        save_checkpoint(folder, self._described(step, evaluation), self.learner.state()[0])

    def restore(self, run: Path) -> int:
        """Loads the newest sound checkpoint, sets newer ones aside, and returns its step.

        Raises:
            RunError: no checkpoint can be read, or the run began with other data.
        """
        checkpoint = load_checkpoint(run)
        if checkpoint.info["dataset"]["fingerprint"] != self.info["dataset"]["fingerprint"]:
            raise RunError(f"--resume {run}: --dataset holds other data than the run began with; give the same dataset")
        then, now = ((each.get("language") or {}).get("fingerprint") for each in (checkpoint.info, self.info))
        if then != now:
            raise RunError(
                f"--resume {run}: --language holds another model than the run began with; bring that one back"
            )
        training, step = checkpoint.training_tensors(), checkpoint.info["step"]
        self.learner.load_state(checkpoint.weights, training)
        self.sampler.load_state_dict(checkpoint.info["sampler"])
        self.recent.load_state(under(_FIGURES, training))
        self.guard.load_state(under(_GUARD, training))
        self.watch.load_state(under(_WATCH, training))
        _set_generators(under(_GENERATOR, training), self._device)
        if not ranks.rank():
            set_aside_newer(run, step)
        return step

    def _described(self, step: int, evaluation: Mapping[str, float] | None) -> dict[str, Any]:
        return {"step": step, "evaluation": evaluation, **self.info, "sampler": self.sampler.state_dict()}

    @property
    def _device(self) -> torch.device:
        return self.learner.policy.tokenizer.low.device


def _generators(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of torch's generators: that of the CPU, and of the GPU that computes.

    They are those of all ranks, which begin alike and draw as many numbers.
    """
    states = {f"{_GENERATOR}cpu": torch.get_rng_state()}
    return states | {f"{_GENERATOR}cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
