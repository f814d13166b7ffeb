"""The commands about runs that were trained: doing one again, and one of its bad batches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


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
