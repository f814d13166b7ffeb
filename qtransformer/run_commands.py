"""The commands about runs that were trained: a report of them, doing one again, and one of its bad batches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from qtransformer.config import RunError


@dataclass(frozen=True)
class ReportCommand:
    """Write one HTML page about runs: success, clips, curves, alarms, values, settings; several are compared."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|NAME=RUN,RUN")]
    """The --out folders of `train`, one at least. Several trainings of one method are one group: ours=RUN0,RUN1."""
    out: Path = Path("report.html")
    """Page to write; one that is there is replaced."""
    evaluations: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE,FILE")] = ()
    """What `evaluate --json` printed, a file a training. A name that is no run's is a row of its own."""
    episodes: int = 0
    """Play so many episodes with each run, for clips; and for the success rates, where no --evaluations are given."""
    num_envs: int = 4
    """Environments side by side; the result does not depend on it."""
    seed: int = 0
    """Of the first episode; the next has seed + 1."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    env_id: str | None = None
    """Another environment than the one that the logs came from."""
    dataset: Path | None = None
    """Log to hold values against: best one that training did not see. Without it, each run's own, unless it changed."""
    max_steps: int = 5000
    """Logged steps that are looked at, in whole, evenly chosen episodes; 0 leaves the log unread."""
    title: str | None = None
    """Of the page. Without it, the names of the runs."""
    text: str = ""
    """A paragraph below the title."""

    def run(self) -> None:
        """Writes the page, and says what it lacks."""
        from qtransformer.pictures import choose_renderer

        choose_renderer()
        from qtransformer.compare_sources import Play
        from qtransformer.evaluation import Plan
        from qtransformer.report import Sources, gather_report
        from qtransformer.report_page import write_page

        if self.episodes < 0 or self.max_steps < 0:
            name, value = ("episodes", self.episodes) if self.episodes < 0 else ("max_steps", self.max_steps)
            raise RunError(f"{name} ({value}) must be at least 0; change --{name.replace('_', '-')}")
        plan = Plan(max(1, self.episodes), self.num_envs, self.seed)
        play = Play(plan, self.imports, self.env_id)
        sources = Sources(self.evaluations, play, self.episodes > 0, self.dataset, self.max_steps)
        report = gather_report(self.runs, sources)
        write_page(report, self.out, self.title or f"Report: {', '.join(report.methods)}", self.text)
        for note in report.notes:
            print(note, file=sys.stderr)
        print(f"reported: {self.out}")


@dataclass(frozen=True)
class RerunCommand:
    """Train again as a run was trained, on the same data, and tell whether the result is the same, bit by bit."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run")]
    """The --out folder of `train`."""
    out: Path | None = None
    """Folder to make. Without it, beside the run's: NAME_again."""
    dataset: Path | None = None
    """Where the run's log is now. Without it, where it was."""

    def run(self) -> None:
        """Prints whether all bits are equal; the process ends with status 1 where they are not."""
        from qtransformer.rerun import rerun

        out = self.out or self.run_folder.with_name(self.run_folder.name + "_again")
        done = rerun(self.run_folder, out, self.dataset)
        print(f"{done.out}: {done.sentence}")
        if done.differences:
            sys.exit(1)


@dataclass(frozen=True)
class ReplayBatch:
    """Compute a batch again that stopped training: which of its numbers, figures and gradients are not finite."""

    path: tyro.conf.Positional[Path]
    """A file of RUN/bad_batches."""
    device: str = "cpu"
    """Where to compute; bits are the same only where the run computed."""

    def run(self) -> None:
        """Prints each figure as training found it and as it is now, then everything that is not finite."""
        from qtransformer.replay import print_replay, replay

        print_replay(replay(self.path, self.device))
