"""What tokens make of a log's actions, told before training: quantisation error, unused bins, clipped actions.

A policy can never act more finely than its bins. This is the place where that shows, as numbers and, where they look
wrong, as words. It encodes and decodes the whole log, so it holds for every kind of bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qtransformer.batch import ActionSpec
from qtransformer.tokens import ActionTokenizer

_MOST_ROWS = 8
_MOST_NAMES = 4
_LIMIT_TOLERANCE = 1e-5  # of a range: float32 rounding, no more
_MOST_CLIPPED = 0.01
_LEAST_USED = 0.1  # of the range between the limits


class TokenSlot(NamedTuple):
    """What one token of an action says: a dimension, or one level of it, 0 being the coarsest."""

    dimension: int
    level: int


@dataclass(frozen=True)
class DimensionReport:
    """One action dimension of a log, as its tokens see it; values in the environment's units."""

    name: str
    limits: tuple[float, float]
    used: tuple[float, float]
    """Least and largest logged action."""
    error: float
    """Root mean square of decode(encode(action)) - action."""
    num_cells: int
    """Values that the tokens of this dimension can name."""
    num_unused: int
    """Of these, how many no logged action falls into."""
    clipped: float
    """Share of the actions that lie beyond the limits: tokens cannot name them."""
    at_limit: float
    """Share of the actions on a limit: what was meant may have been more."""

    @property
    def range(self) -> float:
        """Width between the limits."""
        return self.limits[1] - self.limits[0]

    @property
    def relative_error(self) -> float:
        """The error as a share of the range; 0 where there is no range."""
        return self.error / self.range if self.range > 0 else 0.0

    @property
    def relative_use(self) -> float:
        """Share of the range that the log's actions span."""
        return (self.used[1] - self.used[0]) / self.range if self.range > 0 else 0.0


def token_report(
    tokenizer: ActionTokenizer, spec: ActionSpec, actions: Float[np.ndarray, "steps dims"]
) -> tuple[DimensionReport, ...]:
    """Returns one report a dimension of what `tokenizer` makes of `actions`."""
    tokens = tokenizer.encode(torch.from_numpy(actions).to(tokenizer.low.device))
    decoded, digits = tokenizer.decode(tokens).cpu().numpy(), tokens.cpu().numpy()
    dimensions = np.array([slot.dimension for slot in token_slots(tokenizer)])
    return tuple(
        _describe(
            name=spec.elements[index] if spec.elements else f"[{index}]",
            limits=(tokenizer.low[index].item(), tokenizer.high[index].item()),
            actions=actions[:, index].astype(np.float64),
            decoded=decoded[:, index].astype(np.float64),
            num_cells=tokenizer.num_cells,
            num_used=len(np.unique(digits[:, dimensions == index], axis=0)),
        )
        for index in range(spec.num_dimensions)
    )


def token_slots(tokenizer: ActionTokenizer) -> tuple[TokenSlot, ...]:
    """Returns what each token of an action stands for."""
    D, L = tokenizer.num_dimensions, tokenizer.num_levels
    if tokenizer.order == "dimension_major":
        return tuple(TokenSlot(dimension, level) for dimension in range(D) for level in range(L))
    return tuple(TokenSlot(dimension, level) for level in range(L) for dimension in range(D))


def warnings(reports: Sequence[DimensionReport]) -> list[str]:
    """Returns one sentence for each kind of trouble, naming the dimensions; empty where there is none."""
    constant = [each for each in reports if each.used[0] == each.used[1]]
    varying = [each for each in reports if each.used[0] < each.used[1]]
    wasted = [each for each in varying if each.relative_use < _LEAST_USED and each.num_unused > each.num_cells / 2]
    clipped = [each for each in reports if each.clipped > _MOST_CLIPPED]
    found = []
    if constant:
        found.append(f"{_names(constant)}: never changes in the log, so nothing can be learnt about it")
    if wasted:
        share = max(each.relative_use for each in wasted)
        advice = "few bins carry all actions: narrow the limits, or take quantile bins"
        found.append(f"{_names(wasted)}: the log uses at most {share:.1%} of the range between the limits, so {advice}")
    if clipped:
        share = max(each.clipped for each in clipped)
        advice = "the policy can never act so far out: widen the limits, or clip the log where the robot clips"
        found.append(f"{_names(clipped)}: up to {share:.1%} of the actions lie beyond the outermost bins; {advice}")
    return found


def print_token_report(reports: Sequence[DimensionReport], console: Console | None = None) -> None:
    """Prints on stderr, as a table, the dimensions with the largest errors; then the warnings, one a line."""
    console = console or Console(stderr=True)
    worst = sorted(reports, key=lambda each: -each.relative_error)[:_MOST_ROWS]
    title = "Actions as tokens"
    if len(worst) < len(reports):
        title += f": the {len(worst)} of {len(reports)} dimensions with the largest errors"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("dimension", no_wrap=True, min_width=12)
    for column in ("limits", "in the log", "error", "of range", "unused", "on limit", "clipped"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in (report for report in reports if report in worst):
        table.add_row(
            escape(each.name),
            f"{each.limits[0]:.3g} to {each.limits[1]:.3g}",
            f"{each.used[0]:.3g} to {each.used[1]:.3g}",
            f"{each.error:.2g}",
            f"{each.relative_error:.1%}",
            f"{each.num_unused}/{each.num_cells}",
            f"{each.at_limit:.1%}",
            f"{each.clipped:.1%}",
        )
    console.print(table)
    for sentence in warnings(reports):
        console.print(f"warning tokens: {sentence}", markup=False, highlight=False, style="yellow", soft_wrap=True)


def _describe(
    name: str,
    limits: tuple[float, float],
    actions: Float[np.ndarray, " steps"],
    decoded: Float[np.ndarray, " steps"],
    num_cells: int,
    num_used: int,
) -> DimensionReport:
    slack = _LIMIT_TOLERANCE * (limits[1] - limits[0])
    beyond = np.maximum(limits[0] - actions, actions - limits[1])
    return DimensionReport(
        name=name,
        limits=limits,
        used=(float(actions.min()), float(actions.max())),
        error=float(np.sqrt(np.mean((decoded - actions) ** 2))),
        num_cells=num_cells,
        num_unused=num_cells - num_used,
        clipped=float(np.mean(beyond > slack)),
        at_limit=float(np.mean(np.abs(beyond) <= slack)),
    )


def _names(reports: Sequence[DimensionReport]) -> str:
    names = ", ".join(each.name for each in reports[:_MOST_NAMES])
    return names + (f" and {len(reports) - _MOST_NAMES} more" if len(reports) > _MOST_NAMES else "")
