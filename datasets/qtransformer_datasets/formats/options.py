"""What a user can say about a file that does not say it itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dones = Literal["infer", "success", "last-step", "both"]


@dataclass(frozen=True)
class ReadOptions:
    """How to read what the file leaves open."""

    dones: Dones = "infer"
    """What robomimic's `dones` and LeRobot's `next.done` mark: the state of success, the last step of each episode, or
    both. `infer` decides from the data and says so."""
    instruction: str | None = None
    """Instruction in words for every episode of a log that has none: it becomes the observation `instruction`."""
