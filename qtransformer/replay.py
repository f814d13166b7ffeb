"""A bad batch computed again, with the weights that it met: what is not finite, from its numbers to the gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qtransformer.bad_batches import BadNumber, bad_numbers, load_bad_batch, probe
from qtransformer.config import RunError
from qtransformer.training import build_learner, usable_device

_NAMED = 10  # numbers and parameters
_ROUNDING = 1e-4  # of a figure, between devices, or between ranks that shared the batch and one process


@dataclass(frozen=True)
class Replay:
    """What came out."""

    reason: str
    """Why the batch was refused, in the words of the training."""
    recorded: Mapping[str, float]
    """Each figure as training found it."""
    replayed: Mapping[str, float]
    """... and as it is now."""
    numbers: tuple[str, ...]
    """The first numbers of the batch that are not finite, with their place in the log."""
    parameters: tuple[str, ...]
    """The first parameters whose gradient is not finite."""

    @property
    def is_reproduced(self) -> bool:
        """Every figure is the same number, but for rounding, or the same kind of no number."""
        return self.recorded.keys() == self.replayed.keys() and all(
            _same(self.recorded[name], self.replayed[name]) for name in self.recorded
        )


def replay(path: Path, device: str = "cpu") -> Replay:
    """Returns what the batch in `path` does to the weights that are there, without changing them.

    Raises:
        RunError: the file is no bad batch, or the device is not usable.
    """
    bad = load_bad_batch(path)
    try:
        learner = build_learner(bad.document["info"], usable_device(device))
        learner.load_state(bad.weights, bad.training)
        reason, recorded, sources = (bad.document[key] for key in ("reason", "figures", "sources"))
        figures = {name: value.item() for name, value in probe(learner, bad.batch).items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path}: must fit this version of qtransformer, got another one's ({error!r})") from error
    numbers = [_described(each, sources[each.row]) for each in islice(bad_numbers(bad.batch), _NAMED)]
    gradients = {name: value.grad for name, value in learner.policy.named_parameters() if value.grad is not None}
    parameters = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return Replay(reason, recorded, figures, tuple(numbers), tuple(parameters[:_NAMED]))


def print_replay(replay: Replay) -> None:
    """Prints all of it."""
    console = Console()
    table = Table("figure", "in training", "now", "", title="Update that was not taken", title_justify="left")
    for name in replay.replayed:
        value = replay.replayed[name]
        found = replay.recorded.get(name, math.nan)
        table.add_row(name, f"{found:.6g}", f"{value:.6g}", "" if math.isfinite(value) else "not finite")
    console.print(table)
    lines = [f"reason: {replay.reason}", "reproduced" if replay.is_reproduced else "not reproduced"]
    lines += [f"not finite in the batch: {each}" for each in replay.numbers]
    lines += [f"not finite: the gradient of {each}" for each in replay.parameters]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _described(bad: BadNumber, source: Sequence[Any]) -> str:
    element = f"[{', '.join(map(str, bad.element))}]" if bad.element else ""
    return f"{bad.key}{element} is {bad.value:g}, {bad.frame} steps after step {source[1]} of {source[0]}"


def _same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_ROUNDING) or (math.isnan(left) and math.isnan(right))
