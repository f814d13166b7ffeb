"""What the report of runs shows: their records, success in the same episodes, clips, values on the log.

Special about this file: every part but the records themselves may be missing, and is then told in `notes` with its
reason; a report is asked for most where something went wrong. Drawn by `report_page`. It must not know HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtransformer import clips
from qtransformer.clips import Clip
from qtransformer.compare_sources import (
    Gathered,
    Outcomes,
    Play,
    in_one_table,
    outcomes_of,
    parse_methods,
    read_outcomes,
)
from qtransformer.comparison_pairs import Comparison, compare
from qtransformer.config import RunError, TrainConfig
from qtransformer.explain import Explanation, explain
from qtransformer.explain_log import open_log
from qtransformer.loading import open_policy
from qtransformer.run_records import Methods, RunRecord, read_run
from qtransformer.training_log import open_training_log
from qtransformer_datasets.schema import DatasetError, EpisodeDataset

_POINTS = 5.0  # difference in percentage points, for which `compare` says what would show it


@dataclass(frozen=True)
class Sources:
    """Where a report takes more than the runs from."""

    evaluations: tuple[str, ...]
    """NAME=FILE,FILE: files of `evaluate --json`, one a training."""
    play: Play
    """How runs are played, and how environments are made."""
    is_played: bool
    """Whether they are."""
    dataset: Path | None
    """Log to hold values against; None for each run's own."""
    max_steps: int
    """Logged steps that are looked at; 0 leaves the log unread."""


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    methods: Methods
    success: Gathered | None
    """What all did in the same episodes; None where nothing was evaluated."""
    comparison: Comparison | None
    """Of those, where they are two at least."""
    clips: Mapping[str, Sequence[Clip]]
    """By method, of its first training."""
    explanations: Mapping[str, Explanation]
    """By method, of its first training."""
    notes: tuple[str, ...] = ()
    """What is not shown, and why."""

    @property
    def names(self) -> list[str]:
        """Returns methods and whatever else was evaluated, in the order in which they were named."""
        evaluated = [each.name for each in self.success.methods] if self.success else []
        return list(dict.fromkeys([*self.methods, *evaluated]))


def gather_report(runs: Sequence[str], sources: Sources) -> Report:
    """Reads and plays what was asked for.

    Args:
        runs: RUN, or NAME=RUN,RUN for several trainings of one method.
        sources: what else to show.

    Raises:
        RunError, DatasetError: something that was asked for by name cannot be read or played.
    """
    methods = {name: [read_run(path) for path in paths] for name, paths in parse_methods(runs).items()}
    evaluated = {name: list(paths) for name, paths in parse_methods(sources.evaluations).items()}
    outcomes = {path: read_outcomes(path) for paths in evaluated.values() for path in paths}
    notes = [f"{each.folder}: {text}" for each in _records(methods) for text in each.missing]
    shown = {}
    if sources.is_played:
        played, shown = _play(methods, sources.play, notes)
        if not evaluated:
            evaluated = {
                name: [each.folder for each in runs if each.folder in played] for name, runs in methods.items()
            }
            evaluated, outcomes = {name: paths for name, paths in evaluated.items() if paths}, played
    else:
        shown = dict(_stills(methods, sources.play, notes))
    success = in_one_table(evaluated, outcomes) if evaluated else None
    comparison = None
    if success is not None and len(success.methods) > 1 and _can_compare(success):
        comparison = compare(success.methods, _POINTS)
    explanations = dict(_explanations(methods, sources, notes)) if sources.max_steps else {}
    return Report(methods, success, comparison, shown, explanations, tuple(notes))


def _records(methods: Methods) -> Iterator[RunRecord]:
    for runs in methods.values():
        yield from runs


def _can_compare(success: Gathered) -> bool:
    """Returns whether there are episodes enough: several trainings need two to be told from chance."""
    return len(success.seeds) > 1 or all(len(each.trainings) == 1 for each in success.methods)


def _play(methods: Methods, play: Play, notes: list[str]) -> tuple[dict[Path, Outcomes], dict[str, Sequence[Clip]]]:
    """Returns what came of the episodes of each run, and the clips of each method's first one."""
    most = clips.MOST_BYTES // (2 * len(methods))
    outcomes, shown = dict[Path, Outcomes](), dict[str, Sequence[Clip]]()
    for name, runs in methods.items():
        for record in runs:
            if record.loaded is None:
                continue  # said already
            played = clips.play_for_clips(open_policy(record.folder), play, most)
            outcomes[record.folder] = outcomes_of(played.document)
            if played.reason and played.reason not in notes:
                notes.append(f"No pictures: {played.reason}.")
            if name not in shown and played.clips:
                shown[name] = played.clips
    return outcomes, shown


def _stills(methods: Methods, play: Play, notes: list[str]) -> Iterator[tuple[str, Sequence[Clip]]]:
    """Yields a picture of each environment, beside the first method that learnt in it."""
    seen = set()
    for name, runs in methods.items():
        loaded = runs[0].loaded
        if loaded is None or loaded.spec.environment_id in (None, *seen):
            continue
        seen.add(loaded.spec.environment_id)
        try:
            yield name, [clips.still(open_policy(runs[0].folder), play)]
        except RunError as error:
            notes.append(f"No picture of the environment: {error}.")


def _explanations(methods: Methods, sources: Sources, notes: list[str]) -> Iterator[tuple[str, Explanation]]:
    """Yields what the first training of each method says of the log."""
    logs: dict[Any, EpisodeDataset] = {}
    for name, runs in methods.items():
        loaded = runs[0].loaded
        if loaded is None:
            continue
        config = TrainConfig.from_json(loaded.info["config"])
        key = (sources.dataset or config.dataset, config.data)
        try:
            if key not in logs:
                logs[key] = _own_log(config) if sources.dataset is None else open_log(loaded, sources.dataset)
            log = logs[key]
            if sources.dataset is None and log.fingerprint != loaded.info["dataset"]["fingerprint"]:
                raise RunError(f"{config.dataset} has changed since; name a log with --dataset")
            successes = (number for number, each in enumerate(log.episodes) if each.success)
            yield name, explain(loaded, log, next(successes, 0), sources.max_steps)
        except (RunError, DatasetError) as error:
            if sources.dataset is not None:
                raise
            notes.append(f"{runs[0].folder}: no values on its log: {error}.")


def _own_log(config: TrainConfig) -> EpisodeDataset:
    """Returns the episodes that a run was trained on.

    Raises:
        RunError, DatasetError: the log is not there any more, or cannot be read.
    """
    if not config.dataset.exists():
        raise RunError(f"{config.dataset} is not there any more; name a log with --dataset")
    return open_training_log(config)
