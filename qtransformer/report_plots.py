"""The figures of the report, drawn by matplotlib: inline SVG for the page, PNG for a README.

Every colour is drawn as its light value and replaced by a CSS variable in the SVG, so that the page's style sheet alone
decides between light and dark. A panel is about as wide as a telephone and holds little text: the page lays panels out
side by side and writes titles and legends itself. It must not know HTML beyond that, torch or any environment.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Integer

from qtransformer.config import RunError
from qtransformer.page import PALETTE

Metrics = Mapping[str, int | float]
"""One line of metrics.jsonl: `step`, `loss` and whatever else the learner logged."""
Curves = Mapping[str, Sequence[Metrics]]
"""The lines of metrics.jsonl of each run, by the run's name."""

_NUM_COLOURS = sum(name.startswith("series-") for name in PALETTE)
_LINES = ("solid", "dashed", "dotted")  # these names mean the same to matplotlib and to CSS borders
_PANEL = 250  # width in CSS pixels where the page does not scale it
_MAX_POINTS = 400  # of a line; more cannot be seen
_MAX_LABEL = 36  # characters of a label inside a figure


@dataclass(frozen=True)
class Row:
    """One policy of the comparison: how often it succeeded, with the 95 % interval as shares, and how long it took."""

    name: str
    label: str
    successes: int
    episodes: int
    interval: tuple[float, float]
    mean_length: float
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.episodes or self.episodes == 0:
            raise RunError(f"{self.name}: successes ({self.successes}) must be in [0, episodes ({self.episodes})]")

    @property
    def rate(self) -> float:
        """Share of successful episodes."""
        return self.successes / self.episodes


@dataclass(frozen=True)
class QPlot:
    """Q-values of every bin of every action token in one logged state; a dimension's name carries its unit."""

    dimensions: tuple[str, ...]
    centres: Sequence[Float[np.ndarray, " bins"]]
    q_values: Float[np.ndarray, "tokens bins"]
    density: Float[np.ndarray, "tokens bins"]
    greedy: Integer[np.ndarray, " tokens"]
    logged: Integer[np.ndarray, " tokens"] | None
    caption: str


@dataclass(frozen=True)
class Series:
    """How one thing is drawn wherever it appears: its label, a name of `page.PALETTE`, and a kind of line."""

    label: str
    colour: str
    line: str = "solid"


Q_SERIES = {
    "q_logged": Series("Q of the logged action", "series-0"),
    "q_greedy": Series("Q of the greedy action", "series-1"),
    "target": Series("target", "series-2", "dashed"),
    "monte_carlo": Series("Monte-Carlo return of the log", "muted", "dotted"),
}
LOSSES = ("loss", "squared_error", "cross_entropy", "conservative")


def all_series(rows: Sequence[Row], curves: Curves) -> dict[str, Series]:
    """Returns the series of every name; a row and a run of one name share it, and lines differ where colours repeat."""
    labels = {**{name: name for name in curves}, **{row.name: row.label for row in rows}}
    names = [row.name for row in rows] + [name for name in curves if name not in {row.name for row in rows}]
    look = {name: divmod(place, _NUM_COLOURS) for place, name in enumerate(dict.fromkeys(names))}
    return {
        name: Series(labels[name], f"series-{colour}", _LINES[round % len(_LINES)])
        for name, (round, colour) in look.items()
    }


def has_metric(lines: Sequence[Metrics], key: str) -> bool:
    """Returns whether a run logged `key` at least once."""
    return any(key in line for line in lines)


def interval_chart(rows: Sequence[Row], series: Mapping[str, Series]) -> str:
    """Returns an SVG: one dot with its interval a row, from 0 to 100 %."""
    alt = "; ".join(f"{row.label} {percent(row.rate)} ({spread(row)})" for row in rows)
    return _svg(lambda axes: _draw_intervals(axes, rows, series), (295, 30 + 44 * len(rows)), f"Success rates: {alt}")


def line_chart(lines: Sequence[tuple[Series, Sequence[Metrics], str]], alt: str, *, may_be_log: bool) -> str:
    """Returns an SVG: for each (series, run, key) that metric over the training steps."""
    points = [_points(run, key) for _, run, key in lines]
    values = np.concatenate([values for _, values in points])
    is_log = may_be_log and values.size > 0 and values.min() > 0 and values.max() > 50 * values.min()

    def draw(axes: Any) -> None:
        for (series, *_), (steps, values) in zip(lines, points, strict=True):
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, color=_light(series.colour), linestyle=series.line, linewidth=1.8, marker=marker)
        if is_log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        else:
            _place_ticks(axes.yaxis)
        _place_ticks(axes.xaxis)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}")
        axes.set_xlabel("step")

    return _svg(draw, (_PANEL, 155), alt)


def q_panels(plot: QPlot) -> Iterator[tuple[str, str]]:
    """Yields (dimension, SVG) for each token: Q over its bins, the density as bars, rings for the chosen bins."""
    finite = plot.q_values[np.isfinite(plot.q_values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    margin = 0.12 * (high - low) or 0.1
    for token, dimension in enumerate(plot.dimensions):

        def draw(axes: Any, token: int = token) -> None:
            axes.set_ylim(low - margin, high + margin)
            _draw_bins(axes, plot, token)

        yield dimension, _svg(draw, (_PANEL, 140), f"Q over the bins of {dimension}: {plot.caption}")


def comparison_png(
    rows: Sequence[Row], series: Mapping[str, Series], frames: Sequence[np.ndarray], captions: Sequence[str]
) -> bytes:
    """Returns a PNG: the success rates on the left, up to four captioned `frames` on the right."""
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.9) if frames else (5.6, 3.9), dpi=150, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
        chart, *strip = figure.subfigures(1, 2 if frames else 1, squeeze=False, width_ratios=None)[0]
        axes = chart.subplots()
        _draw_intervals(axes, rows, series)
        axes.set_title("Success rate, 95 % interval", loc="left", fontsize=12, color=_light("ink"), pad=12)
        if strip:
            for each, frame, caption in zip(strip[0].subplots(2, 2).flat, frames, captions, strict=False):
                each.imshow(frame)
                each.set_title(caption, fontsize=10, color=_light("muted"))
            for each in strip[0].axes:
                each.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def percent(share: float) -> str:
    """Returns a share as a percentage of three digits at most."""
    return f"{100 * share:.3g} %"


def spread(row: Row) -> str:
    """Returns the interval of a row in whole per cent."""
    low, high = row.interval
    return f"{100 * low:.0f}–{100 * high:.0f} %"


@contextmanager
def plotting() -> Iterator[None]:
    """Sets the report's style for what is drawn inside.

    Raises:
        RunError: matplotlib, or Pillow that comes with it, is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
        from matplotlib import rc_context
    except ImportError as error:
        raise RunError(f"a report needs {error.name}; install it with pip install 'qtransformer[plot]'") from error
    with rc_context(cast(Any, _style())):
        yield


def _style() -> dict[str, Any]:
    """Returns what differs from matplotlib's defaults. Labels of users may hold dollar signs: no math."""
    sizes = {f"{axis}tick.major.size": 0.0 for axis in "xy"} | {f"{axis}tick.minor.size": 0.0 for axis in "xy"}
    hidden = {f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}
    return (
        sizes
        | hidden
        | {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "text.parse_math": False,
            "font.family": "sans-serif",
            "font.size": 11.0,
            "text.color": _light("ink"),
            "axes.edgecolor": _light("muted"),
            "axes.labelcolor": _light("muted"),
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": _light("rule"),
            "xtick.color": _light("muted"),
            "ytick.color": _light("muted"),
        }
    )


def _light(name: str) -> str:
    return PALETTE[name][0]


def _svg(draw: Callable[[Any], None], size: tuple[int, int], alt: str) -> str:
    """Returns one panel as an SVG element to be put into a page; one unit of it is one pixel."""
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), alt)


def _inline(svg: str, alt: str) -> str:
    """Returns matplotlib's SVG file as an element: no namespaces, no ids that would repeat, colours as variables."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    for name, (light, _) in PALETTE.items():
        body = body.replace(light, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{body.strip()}'


def _points(run: Sequence[Metrics], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of the lines that hold a finite `key`, thinned to what can be seen."""
    pairs = [(line["step"], line[key]) for line in run if key in line and np.isfinite(line[key])]
    kept = pairs[:: max(1, -(-len(pairs) // _MAX_POINTS))]
    steps, values = np.array(kept, np.float64).reshape(-1, 2).T
    return steps, values


def _place_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _draw_intervals(axes: Any, rows: Sequence[Row], series: Mapping[str, Series]) -> None:
    """Draws a row as its label and figures above, its dot and interval below."""
    for place, row in enumerate(rows):
        colour, (low, high) = _light(series[row.name].colour), row.interval
        axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=7, alpha=0.3, solid_capstyle="round")
        axes.plot(100 * row.rate, place, "o", color=colour, markersize=9, markeredgecolor=_light("card"), clip_on=False)
        label = row.label if len(row.label) <= _MAX_LABEL else row.label[: _MAX_LABEL - 1] + "…"
        axes.text(0, place - 0.2, label, va="bottom")
        axes.text(100, place - 0.2, percent(row.rate), va="bottom", ha="right")
    axes.set(xlim=(-2, 102), ylim=(max(len(rows), 1) - 0.6, -0.9), yticks=[], xticks=range(0, 101, 25))
    axes.xaxis.set_major_formatter("{x:g} %")


def _draw_bins(axes: Any, plot: QPlot, token: int) -> None:
    """Draws one token; the bars show how the density is shaped and have no scale."""
    centres, q_values, density = plot.centres[token], plot.q_values[token], plot.density[token]
    bottom, top = axes.get_ylim()
    heights = 0.45 * (top - bottom) * density / max(float(density.max()), np.finfo(np.float32).tiny)
    width = 0.86 * np.gradient(centres) if len(centres) > 1 else 1.0
    axes.bar(centres, heights, width, bottom=bottom, color=_light("bars"))
    axes.plot(centres, np.where(np.isfinite(q_values), q_values, np.nan), color=_light("series-0"), linewidth=1.8)
    if plot.logged is not None:
        bin = plot.logged[token]
        axes.plot(centres[bin], q_values[bin], "o", markersize=12, fillstyle="none", color=_light("ink"), clip_on=False)
    bin = plot.greedy[token]
    axes.plot(centres[bin], q_values[bin], "o", markersize=7, color=_light("series-1"), clip_on=False)
    _place_ticks(axes.xaxis)
    _place_ticks(axes.yaxis)
