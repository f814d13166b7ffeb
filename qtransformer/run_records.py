"""What a run folder says of itself, for a page: settings, metrics, sessions, refused batches, the newest checkpoint.

Special about this file: nothing but missing settings stops it. A run that was cut short, is still training or lost a
file is told as far as it goes, and what is missing is said in words. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from qtransformer.alarms import Alarm, training_alarms
from qtransformer.bad_batches import load_bad_batch
from qtransformer.checkpoint import CheckpointError
from qtransformer.config import RunError, TrainConfig
from qtransformer.loading import LoadedRun, load_run
from qtransformer.normalization import ReturnScale
from qtransformer.provenance import sessions
from qtransformer.run_folder import read_metrics, read_settings

Line = Mapping[str, int | float]
_MANY = "and {num} more"
_FEW = 5  # refused batches that are told one by one


@dataclass(frozen=True)
class Rung:
    """An alarm on the course of a training that rang at some of its lines of metrics."""

    alarm: Alarm
    """As it rang last."""
    first: int
    """Update at which it first rang."""
    last: int
    is_over: bool
    """Whether it was silent at the newest line."""


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as its files can be read."""

    folder: Path
    config: TrainConfig
    lines: tuple[Line, ...]
    """Of metrics.jsonl, oldest first: numbers alone."""
    sessions: tuple[Mapping[str, Any], ...]
    loaded: LoadedRun | None
    """The newest sound checkpoint; None where there is none."""
    refused: tuple[str, ...]
    """Of each batch that was kept from the weights and saved, which update and why."""
    missing: tuple[str, ...]
    """What cannot be told, and why."""

    @property
    def step(self) -> int:
        """The newest update that is known of."""
        found = [int(line["step"]) for line in self.lines]
        return max([*found, self.loaded.info["step"] if self.loaded else 0])

    def last(self, name: str) -> float | None:
        """Returns the newest value of a metric; None where it was never written."""
        return next((float(line[name]) for line in reversed(self.lines) if name in line), None)

    def evaluations(self) -> list[Line]:
        """Returns the lines of evaluations while training."""
        return [line for line in self.lines if "success_rate" in line]

    def rung(self) -> tuple[Rung, ...]:
        """Returns the alarms on its course that rang, asked again at every line."""
        if self.loaded is None:
            return ()
        scale, found = ReturnScale(**self.loaded.info["return_scale"]), dict[str, list[tuple[int, Alarm]]]()
        lines = [line for line in self.lines if "loss" in line]
        for count, line in enumerate(lines, start=1):
            for alarm in training_alarms(lines[:count], scale):
                if alarm.state == "ringing":
                    found.setdefault(alarm.name, []).append((int(line["step"]), alarm))
        newest = int(lines[-1]["step"]) if lines else 0
        return tuple(Rung(each[-1][1], each[0][0], each[-1][0], each[-1][0] < newest) for each in found.values())


Methods = Mapping[str, Sequence[RunRecord]]
"""The trainings of each method, by its name."""


def read_run(folder: Path) -> RunRecord:
    """Returns what the folder of a run holds.

    Raises:
        RunError: it is no folder of a run, or its settings are damaged.
    """
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder}: must be the --out folder of `train`, got one without config.json; check the path")
    missing: list[str] = []
    lines, num_damaged = read_metrics(folder)
    if num_damaged:
        missing.append(f"metrics.jsonl is damaged: {num_damaged} of its lines cannot be read and are left out.")
    if not lines:
        missing.append("metrics.jsonl is missing or empty, so there is no course of training to show.")
    try:
        loaded = load_run(folder)
    except CheckpointError as error:
        missing.append(f"No policy: {error}.")
        loaded = None
    found = tuple(sessions(folder))
    if not found:
        missing.append("run.json is missing or damaged, so what made this run is not known.")
    numbers = ({name: value for name, value in line.items() if _is_number(value)} for line in lines)
    refused = tuple(_refused(folder / "bad_batches"))
    return RunRecord(folder, read_settings(folder), tuple(numbers), found, loaded, refused, tuple(missing))


def _refused(folder: Path) -> list[str]:
    """Returns of each saved batch what training said of it."""
    paths, told = sorted(folder.glob("batch_*.npz")), []
    for path in paths[:_FEW]:
        try:
            document = load_bad_batch(path).document
            told.append(f"{path.name}, for update {document['step']}: {document['reason']}")
        except (RunError, KeyError) as error:
            told.append(f"{path.name} cannot be read ({error})")
    return told + ([_MANY.format(num=len(paths) - _FEW)] if len(paths) > _FEW else [])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
