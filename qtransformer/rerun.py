"""Doing a run again from what its folder says, and telling whether the result is the same, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qtransformer.checkpoint import Checkpoint, load_checkpoint
from qtransformer.config import RunError, TrainConfig
from qtransformer.console import say
from qtransformer.provenance import git_revision, sessions, versions
from qtransformer.training import load_dataset, train_on


@dataclass(frozen=True)
class Rerun:
    """Two runs of the same settings and data."""

    out: Path
    step: int
    differences: Mapping[str, float]
    """By name of a tensor, how far it differs at most; infinite where its shape does, or where only one run has it."""

    @property
    def sentence(self) -> str:
        """What came out."""
        if not self.differences:
            return f"bit-equal: every tensor of update {self.step}, those of the optimizer included"
        name, most = max(self.differences.items(), key=lambda item: item[1])
        return (
            f"not bit-equal: {len(self.differences)} tensors of update {self.step} differ, most {name}, by {most:.3g}"
        )


def rerun(run: Path, out: Path, dataset_path: Path | None = None) -> Rerun:
    """Trains again in `out` as `run` was trained, on the same data, and compares the newest checkpoints.

    Args:
        run: the folder of a finished run.
        out: the folder to make.
        dataset_path: where the log is now; None for where it was.

    Raises:
        RunError, DatasetError: the run was not finished, no one command repeats it, or the log is not what it was.
    """
    before = load_checkpoint(run)
    config = TrainConfig.from_json(before.info["config"])
    _require_one_go(run, before, config)
    config = replace(config, out=out, resume=False, dataset=dataset_path or config.dataset)
    dataset, findings = load_dataset(config)
    then, now = before.info["dataset"]["fingerprint"], dataset.fingerprint
    if now != then:
        raise RunError(
            f"{dataset.path}: fingerprint ({now[:12]}) must be that of the run's log, {then[:12]}; give the log that "
            f"{run} was trained on with --dataset"
        )
    _say_what_changed(run)
    train_on(config, dataset, findings)
    return Rerun(out, config.steps, compare(before, load_checkpoint(out)))


def compare(left: Checkpoint, right: Checkpoint) -> dict[str, float]:
    """Returns the tensors that differ in any bit, and how far at most."""
    ours, theirs = ({**each.weights, **each.training_tensors()} for each in (left, right))
    found = {name: _difference(ours.get(name), theirs.get(name)) for name in sorted(ours | theirs)}
    return {name: difference for name, difference in found.items() if difference is not None}


def _difference(left: Tensor | None, right: Tensor | None) -> float | None:
    """Returns None where all bits are equal."""
    if left is None or right is None or left.shape != right.shape or left.dtype != right.dtype:
        return torch.inf
    bits = (each.reshape(-1).contiguous().view(torch.uint8) for each in (left, right))
    return None if torch.equal(*bits) else (left.double() - right.double()).abs().max().item()


def _require_one_go(run: Path, checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Makes sure that one command from beginning to end repeats the run."""
    step = checkpoint.info["step"]
    if step != config.steps:
        raise RunError(f"{run}: must be finished, got {step} of {config.steps} updates; --resume it first")
    lengths = sorted({each["steps"] for each in sessions(run)})
    if len(lengths) > 1:
        raise RunError(
            f"{run}: was trained with --steps {' and then '.join(map(str, lengths))}, and the learning rate follows "
            "--steps, so no one command repeats it; train again"
        )


def _say_what_changed(run: Path) -> None:
    """Prints what is not as it was when the run was trained: bits may differ for it."""
    now = {**versions(), "git revision": git_revision(), "number of processes": 1}
    changed = {}
    for session in sessions(run):
        then = {**session["versions"], "git revision": session["git_revision"]}
        then["number of processes"] = session["num_processes"]
        changed |= {name: f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]}
        if session["changes"]:
            changed["changes"] = f"the code had the changes in {run / session['changes']}"
    for each in changed.values():
        say(f"not as it was: {each}")
