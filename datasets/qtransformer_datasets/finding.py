"""What a check says: one kind of problem, where it is, why it matters and what to do.

Special about this file: every code stands in one table with its severity, so that no check can invent one and
`--allow` can name those that there are. It must not know any single check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

CODES: dict[str, Severity] = {  # an error makes training senseless or wrong; a warning is for the user to judge
    "empty-episode": "error",
    "wrong-length": "error",
    "not-finite": "error",
    "action-limits": "error",
    "environment-limits": "error",
    "no-reward": "error",
    "early-end": "error",
    "wider-limits": "warning",
    "constant-observation": "warning",
    "constant-action": "warning",
    "idle": "warning",
    "unterminated-tail": "warning",
    "time-limit-terminals": "warning",
    "reward-shift": "warning",
    "repeated-final": "warning",
    "no-final-observation": "warning",
    "duplicate-episode": "warning",
    "split-overlap": "warning",
    "shard-drift": "warning",
    "unit-change": "warning",
    "frozen-images": "warning",
}
BLOCKING = tuple(code for code, severity in CODES.items() if severity == "error")
_KEPT_PLACES = 5  # enough to look the problem up in the file; `count` says how many there are


@dataclass(frozen=True)
class Finding:
    """One kind of problem. `message` says what was found and names the first place, as `places` name the first few."""

    severity: Severity
    code: str
    message: str
    why: str
    advice: str
    places: tuple[str, ...] = ()  # "file:episode key step k"; empty where it concerns the whole dataset
    count: int = 0  # of all places

    @property
    def sentence(self) -> str:
        """What was found, why it matters and what to do, in one line."""
        return f"{self.message}: {self.why}; {self.advice}"


@dataclass(frozen=True)
class Places:
    """The first few places of a problem, and how many there are."""

    first: tuple[str, ...]
    count: int

    def __str__(self) -> str:
        more = self.count - 1
        return self.first[0] + (f" (and {more:,} more place{'s' if more > 1 else ''})" if more else "")


def places_of(names: Sequence[str]) -> Places:
    """Returns the places of these names."""
    return Places(tuple(names[:_KEPT_PLACES]), len(names))


def finding(code: str, message: str, why: str, advice: str, places: Places | None = None) -> Finding:
    """Returns a finding with the severity that its code has."""
    first, count = (places.first, places.count) if places else ((), 0)
    return Finding(CODES[code], code, message, why, advice, first, count)
