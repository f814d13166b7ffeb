"""The commands that make, describe and convert logs; `cli` puts them beside those of the learner.

Special about this file: modules are imported inside the functions, so that `--help` answers at once. It must not know
torch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from qtransformer.batch import ReadOptions
from qtransformer.config import DataConfig
from qtransformer.console import print_json
from qtransformer_datasets.collect import CollectConfig, collect

if TYPE_CHECKING:
    from qtransformer_datasets.check import Finding
    from qtransformer_datasets.schema import EpisodeDataset


@dataclass(frozen=True)
class Collect:
    """Record a scripted expert with realistic mistakes: a log to train on."""

    out: Path
    """Folder to make."""
    log: tyro.conf.OmitArgPrefixes[CollectConfig] = field(default_factory=CollectConfig)
    """What to record."""

    def run(self) -> None:
        """Records, then prints what was recorded."""
        collect(self.log, self.out)
        Inspect((self.out,)).run()


@dataclass(frozen=True)
class Inspect:
    """Say what a log is: format, counts, success rate, elements with units and ranges, problems."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """A dataset of any known layout, a folder of several, or the id of a Minari dataset; several are read as one."""
    json: bool = False
    """Print JSON for programs."""
    html: Path | None = None
    """Page to write: histograms, returns, tasks, findings, frames."""
    env_id: str | None = None
    """Environment whose action limits the log is held against; without, the one that the log names, if it is here."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    read: tyro.conf.OmitArgPrefixes[ReadOptions] = field(default_factory=ReadOptions)
    """What the file leaves open."""

    def run(self) -> None:
        """Prints the description."""
        from qtransformer_datasets.check import check_dataset
        from qtransformer_datasets.formats import open_datasets
        from qtransformer_datasets.inspect import describe, print_description
        from qtransformer_datasets.inspect_page import write_page

        dataset = open_datasets(self.paths, self.read)
        description = describe(dataset, [*check_dataset(dataset), *self._check_environment(dataset)])
        print_json(description) if self.json else print_description(description)
        if self.html:
            write_page(dataset, description, self.html)
            print(f"inspected: {self.html}", file=sys.stderr)

    def _check_environment(self, dataset: EpisodeDataset) -> list[Finding]:
        """Returns what the environment's own limits say against the log; nothing where it is not here to be asked."""
        from qtransformer.evaluation import EvaluationError, make_environment
        from qtransformer_datasets.check import check_environment

        environment_id = self.env_id or dataset.spec.environment_id
        if environment_id is None:
            return []
        kwargs = {} if self.env_id else dict(dataset.spec.environment_kwargs)
        try:
            environment = make_environment(environment_id, kwargs, self.imports)
        except EvaluationError:
            if self.env_id:
                raise
            return []
        limits = (getattr(environment.action_space, name, None) for name in ("low", "high"))
        environment.close()
        low, high = limits
        return [] if low is None or high is None else check_environment(dataset, low, high)


@dataclass(frozen=True)
class Convert:
    """Write datasets of any known layout as one in ours (Minari's), or a part of them."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Datasets of any known layout; several become one."""
    out: Path
    """Folder to make."""
    success: bool = False
    """Keep the successful episodes alone."""
    task: str | None = None
    """Keep the episodes with this instruction alone."""
    min_return: float | None = None
    """Keep the episodes with this return or more, not discounted."""
    observations: tuple[str, ...] = ()
    """Keep these observation keys alone."""
    held_out: float | None = None
    """Share of the episodes to hold out: writes OUT/train and OUT/held-out instead of OUT."""
    seed: int = 0
    """Of the choice of held-out episodes."""
    images: Literal["keep", "raw", "jpeg"] = "keep"
    """How images are stored; keep copies JPEG as it is, bit for bit."""
    read: tyro.conf.OmitArgPrefixes[ReadOptions] = field(default_factory=ReadOptions)
    """What the file leaves open."""

    def run(self) -> None:
        """Converts, then prints where to."""
        from qtransformer.training_log import print_findings, select
        from qtransformer_datasets.check import check_split
        from qtransformer_datasets.convert import convert_dataset
        from qtransformer_datasets.formats import open_datasets
        from qtransformer_datasets.selection import split

        wanted = DataConfig(
            task=self.task,
            min_return=self.min_return,
            only_successful=self.success,
            observations=self.observations,
        )
        dataset = select(open_datasets(self.paths, self.read), wanted)
        parts = {self.out: dataset}
        if self.held_out is not None:
            training, held_out = split(dataset, self.held_out, self.seed)
            print_findings(check_split(training, held_out))
            parts = {self.out / "train": training, self.out / "held-out": held_out}
        for rule, text in dataset.rules.items():
            print(f"{rule}: {text}", file=sys.stderr)
        for path, part in parts.items():
            convert_dataset(part, path, images=self.images)
            print(f"converted: {path}: {part.num_episodes} episodes, {part.num_steps} steps")
