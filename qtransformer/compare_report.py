"""A comparison for people: one table of methods, one sentence a pair, and a picture of both.

It must not know how figures are computed: all come from `comparison_pairs`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qtransformer.comparison import ERROR_RATE, POWER
from qtransformer.comparison_pairs import CROSSED, Comparison, Method, Pair
from qtransformer.config import RunError, writing
from qtransformer.files import write_durably
from qtransformer.page import PALETTE

_NUM_COLOURS = sum(name.startswith("series-") for name in PALETTE)
_MAX_LABEL = 44  # characters of a label in the picture


def print_comparison(comparison: Comparison, title: str) -> None:
    """Prints the success of each method, the verdict on each pair, and by which error rate it was found."""
    console = Console()
    table = Table("policy", "success", "95 % interval", "each training", title=title, title_justify="left")
    for method in comparison.methods:
        low, high = method.interval()
        rates = ", ".join(f"{100 * row.mean():.4g} %" for row in method.outcomes) if len(method.trainings) > 1 else ""
        table.add_row(Text(method.name), f"{method.rate:.1%}", f"{low:.1%} to {high:.1%}", rates)
    console.print(table)
    for pair in comparison.pairs:
        lines = "\n  ".join([evidence(pair), *outlook(pair, comparison)])
        console.print(Text.assemble((verdict(pair), "bold"), "\n  ", lines))
    console.print(Text(f"Verdicts: {judgement(comparison)}"))


def verdict(pair: Pair) -> str:
    """Returns which of two is better, in words."""
    if pair.better is None:
        return f"{pair.a} and {pair.b}: no difference can be told."
    return f"{pair.better} is better than {pair.b if pair.better == pair.a else pair.a}."


def evidence(pair: Pair) -> str:
    """Returns the difference, its interval and its test."""
    low, high = pair.interval
    counts = ""
    if pair.only_a is not None:
        counts = f": {pair.only_a} episodes where {pair.a} alone succeeds, {pair.only_b} where {pair.b} alone does"
    return (
        f"{pair.a} less {pair.b}: {100 * pair.difference:+.1f} points (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}); p = {pair.adjusted_p_value:.2g}, {pair.test}{counts}."
    )


def outlook(pair: Pair, comparison: Comparison) -> list[str]:
    """Returns what more episodes would show, and the probability of improvement where there is one."""
    wanted, lines = f"{comparison.points:g} points with a power of {POWER:.0%}", []
    wanted += ", if trainings vary as these do" if pair.test == CROSSED else ""
    if pair.episodes_needed is None:
        lines.append(f"No number of episodes shows {wanted}: train more often.")
    elif pair.episodes_needed > comparison.episodes:
        more = pair.episodes_needed - comparison.episodes
        lines.append(f"{more} more episodes are needed to see {wanted}; {pair.episodes_needed} in all.")
    else:
        lines.append(f"No more episodes are needed to see {wanted}; {pair.episodes_needed} do.")
    if pair.probability_of_improvement:
        share, (low, high) = pair.probability_of_improvement
        lines.append(
            f"A training of {pair.a} beats one of {pair.b} with probability {share:.2f} "
            f"(95 % bootstrap interval {low:.2f} to {high:.2f})."
        )
    return lines


def judgement(comparison: Comparison) -> str:
    """Returns by which error rate the verdicts hold."""
    pairs = len(comparison.pairs)
    correction = f" for all {pairs} pairs together (p-values by Holm)" if pairs > 1 else ""
    return f"a false one has a probability of at most {ERROR_RATE:.0%}{correction}."


# --- the picture ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A dot with its interval, in per cent; `dots` are the trainings."""

    label: str
    value: float
    interval: tuple[float, float]
    text: str
    colour: str
    dots: Sequence[float] = ()


def save_picture(comparison: Comparison, path: Path, title: str) -> None:
    """Writes a PNG: the success of each method, and below it the difference of each pair, both with intervals.

    Raises:
        RunError: matplotlib is not installed, or the file cannot be written.
    """
    methods = [_method_row(place, method) for place, method in enumerate(comparison.methods)]
    pairs = [_pair_row(pair) for pair in comparison.pairs]
    with plotting():
        from matplotlib.figure import Figure

        heights = [len(methods) + 1.0, len(pairs) + 1.0]
        figure = Figure(figsize=(7, 0.6 * sum(heights) + 0.6), dpi=150, facecolor="white", layout="constrained")
        success, difference = figure.subplots(2, 1, height_ratios=heights)
        _draw(success, methods, (0.0, 100.0), f"Success with its 95 % interval, {title}")
        reach = max(10.0, *(abs(100 * end) for pair in comparison.pairs for end in pair.interval))
        _draw(difference, pairs, (-reach, reach), "Difference in points, grey: none can be told")
        difference.axvline(0, color=PALETTE["muted"][0], linewidth=1)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    with writing("--picture", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def _method_row(place: int, method: Method) -> _Row:
    low, high = method.interval()
    dots = [100 * float(row.mean()) for row in method.outcomes] if len(method.trainings) > 1 else []
    colour = f"series-{place % _NUM_COLOURS}"
    return _Row(method.name, 100 * method.rate, (100 * low, 100 * high), f"{100 * method.rate:.3g} %", colour, dots)


def _pair_row(pair: Pair) -> _Row:
    (low, high), colour = pair.interval, "muted" if pair.better is None else "series-0"
    value = 100 * pair.difference
    return _Row(f"{pair.a} less {pair.b}", value, (100 * low, 100 * high), f"{value:+.3g}", colour)


def _draw(axes: Any, rows: Sequence[_Row], limits: tuple[float, float], title: str) -> None:
    """Draws a row as its label and figure above, its dot and interval below."""
    for place, row in enumerate(rows):
        colour = PALETTE[row.colour][0]
        axes.plot(row.interval, [place, place], color=colour, linewidth=7, alpha=0.3, solid_capstyle="round")
        axes.plot(row.dots, [place] * len(row.dots), "|", color=colour, markersize=11, markeredgewidth=1.5)
        axes.plot(row.value, place, "o", color=colour, markersize=9, markeredgecolor="white", clip_on=False)
        label = row.label if len(row.label) <= _MAX_LABEL else "…" + row.label[1 - _MAX_LABEL :]
        axes.text(limits[0], place - 0.2, label, va="bottom")
        axes.text(limits[1], place - 0.2, row.text, va="bottom", ha="right")
    margin = 0.02 * (limits[1] - limits[0])
    axes.set(xlim=(limits[0] - margin, limits[1] + margin), ylim=(len(rows) - 0.5, -0.8), yticks=[])
    axes.set_title(title, loc="left", fontsize=11, color=PALETTE["ink"][0])


@contextmanager
def plotting() -> Iterator[None]:
    """Sets the picture's style for what is drawn inside.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise RunError(f"a picture needs {error.name}; install it with pip install 'qtransformer[plot]'") from error
    with rc_context(cast(Any, _style())):
        yield


def _style() -> dict[str, Any]:
    """Returns what differs from matplotlib's defaults. Labels of users may hold dollar signs: no math."""
    sizes = {f"{axis}tick.major.size": 0.0 for axis in "xy"}
    hidden = {f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}
    return {
        **sizes,
        **hidden,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 11.0,
        "text.color": PALETTE["ink"][0],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": PALETTE["rule"][0],
        "xtick.color": PALETTE["muted"][0],
    }
