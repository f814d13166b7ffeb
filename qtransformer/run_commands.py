"""The commands about runs that were trained: doing one again."""

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
