"""The figures of the report, written as SVG by hand: metrics over updates, success rates with intervals.

They stand on the frames of `explain_plots`. A method has one colour in all of them; of several trainings each is a
faint line and their mean a strong one. It must not know HTML beyond that, torch or any dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from qtransformer.explain_plots import Frame, number, padded, svg, ticks
from qtransformer.page import PALETTE
from qtransformer.run_records import Line

_NUM_COLOURS = sum(name.startswith("series-") for name in PALETTE)
_DASHES = ("", "7 4", "2 3")  # where colours repeat
_MAX_POINTS = 400  # of a curve; more cannot be seen
_MAX_LABEL = 34  # characters of a label inside a figure
_WIDTH = 340
_LOG_FROM = 50  # largest over smallest value, from which a scale is logarithmic


@dataclass(frozen=True)
class Series:
    """How one thing is drawn wherever it appears: its label, a name of `page.PALETTE`, and the dashes of its lines."""

    label: str
    colour: str
    dashes: str = ""

    @property
    def stroke(self) -> str:
        """Its attributes as a line."""
        return f'stroke="var(--{self.colour})"' + (f' stroke-dasharray="{self.dashes}"' if self.dashes else "")


@dataclass(frozen=True)
class Curve:
    """A metric over the updates."""

    series: Series
    steps: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]
    is_faint: bool = False
    band: tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]] | None = None
    """Interval around each value."""


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % interval, as shares; `trainings` are the rates of each, where there are several."""

    series: Series
    rate: float
    interval: tuple[float, float]
    trainings: tuple[float, ...] = ()


def series_of(names: Sequence[str]) -> dict[str, Series]:
    """Returns how each name is drawn."""
    return {
        name: Series(name, f"series-{place % _NUM_COLOURS}", _DASHES[place // _NUM_COLOURS % len(_DASHES)])
        for place, name in enumerate(dict.fromkeys(names))
    }


def curves_of(series: Series, trainings: Sequence[Sequence[Line]], name: str) -> list[Curve]:
    """Returns the curve of a metric; of several trainings one each, and their mean where all of them were."""
    found = [{line["step"]: float(line[name]) for line in lines if name in line} for lines in trainings]
    found = [each for each in found if each]
    if len(found) < 2:
        return [_curve(series, each) for each in found]
    common = set.intersection(*(set(each) for each in found))
    mean = {step: float(np.mean([each[step] for each in found])) for step in sorted(common)}
    return [*(_curve(series, each, is_faint=True) for each in found), *([_curve(series, mean)] if mean else [])]


def _curve(series: Series, points: dict[int | float, float], is_faint: bool = False) -> Curve:
    kept = list(points.items())
    kept = kept[:: max(1, -(-len(kept) // _MAX_POINTS))]
    steps, values = np.array(kept, np.float64).reshape(-1, 2).T
    return Curve(series, steps, values, is_faint)


def curve_chart(curves: Sequence[Curve], label: str, *, may_be_log: bool = False) -> str:
    """Returns metrics over the updates; logarithmic, if it may be, where values differ by much."""
    values = np.concatenate([array for each in curves for array in (each.values, *(each.band or ()))])
    is_log = may_be_log and bool(values.min() > 0 and values.max() > _LOG_FROM * values.min())
    scaled = np.log10 if is_log else np.asarray
    steps = np.concatenate([each.steps for each in curves])
    x = (min(0.0, float(steps.min())), max(1.0, float(steps.max())))
    frame = Frame(50, _WIDTH - 12, 10, 158, x, padded(scaled(values)))
    parts = list(_axes(frame, is_log))
    for curve in curves:
        if curve.band is not None:
            low, high = (scaled(each) for each in curve.band)
            parts.append(_band(frame, curve, low, high))
        parts.append(_line(frame, curve, scaled(curve.values)))
    parts.append(f'<text x="{frame.right}" y="194" text-anchor="end">update</text>')
    return svg(_WIDTH, 200, parts, label)


def _axes(frame: Frame, is_log: bool) -> Iterator[str]:
    """Yields tick labels along both axes, and a line across at each of y."""
    for at, label in _log_ticks(*frame.y) if is_log else [(value, number(value)) for value in ticks(*frame.y, 6)]:
        y = frame.up(at)
        yield f'<path class="rule" d="M{frame.left} {y:.1f}H{frame.right}"/>'
        yield f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for step in ticks(*frame.x, 5):
        label = f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
        yield f'<text x="{frame.across(step):.1f}" y="{frame.bottom + 17}" text-anchor="middle">{label}</text>'


def _log_ticks(low: int | float, high: int | float) -> list[tuple[float, str]]:
    """Returns powers of ten, or also twice and five times them where there are few, between two logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [(math.log10(each), number(each)) for each in values if low <= math.log10(each) <= high]
        if len(inside) <= 6:
            return inside
    return inside[:: -(-len(inside) // 6)]


def _line(frame: Frame, curve: Curve, values: Float[np.ndarray, " points"]) -> str:
    xs = [frame.across(float(step)) for step in curve.steps]
    ys = [frame.up(float(value)) for value in values]
    if len(xs) == 1:
        return f'<circle fill="var(--{curve.series.colour})" cx="{xs[0]:.1f}" cy="{ys[0]:.1f}" r="3.5"/>'
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<path class="curve{" faint" * curve.is_faint}" {curve.series.stroke} d="M{path}"/>'


def _band(frame: Frame, curve: Curve, low: Float[np.ndarray, " points"], high: Float[np.ndarray, " points"]) -> str:
    steps = curve.steps
    there = [(frame.across(float(x)), frame.up(float(y))) for x, y in zip(steps, high, strict=True)]
    back = [(frame.across(float(x)), frame.up(float(y))) for x, y in zip(steps, low, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (*there, *reversed(back)))
    return f'<path class="band" fill="var(--{curve.series.colour})" d="M{path}Z"/>'


def rate_chart(rates: Sequence[Rate], label: str) -> str:
    """Returns one dot with its interval a row, from 0 to 100 %; a tick a training."""
    height = 14 + 46 * len(rates)
    frame = Frame(10, _WIDTH - 10, 0, height, (0, 100), (0, 1))
    parts = []
    for value in (0, 25, 50, 75, 100):
        x = frame.across(value)
        parts.append(f'<path class="rule" d="M{x:.1f} 0V{height}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height + 17}" text-anchor="{_anchor(value)}">{value} %</text>')
    for place, rate in enumerate(rates):
        y, name, colour = 36 + 46 * place, rate.series.label, rate.series.colour
        low, high = (frame.across(100 * each) for each in rate.interval)
        text = name if len(name) <= _MAX_LABEL else "…" + name[1 - _MAX_LABEL :]
        parts.append(f'<text class="name" x="10" y="{y - 13}">{escape(text)}</text>')
        parts.append(f'<text class="name" x="{frame.right}" y="{y - 13}" text-anchor="end">{percent(rate.rate)}</text>')
        parts.append(f'<path class="wide" stroke="var(--{colour})" d="M{low:.1f} {y}H{high:.1f}"/>')
        for each in rate.trainings:
            parts.append(
                f'<path class="mark" stroke="var(--{colour})" d="M{frame.across(100 * each):.1f} {y - 7}v14"/>'
            )
        parts.append(f'<circle fill="var(--{colour})" cx="{frame.across(100 * rate.rate):.1f}" cy="{y}" r="5.5"/>')
    return svg(_WIDTH, height + 24, parts, label)


def named_html(series: Series) -> str:
    """Returns a label with a dot of its colour, for a table."""
    return f'<i class="blob" style="background:var(--{series.colour})"></i>{escape(series.label)}'


def percent(share: float) -> str:
    """Returns a share as a percentage of three digits at most."""
    return f"{100 * share:.3g} %"


def spread(interval: tuple[float, float]) -> str:
    """Returns an interval of shares in whole per cent."""
    low, high = interval
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def _anchor(value: int) -> str:
    return {0: "start", 100: "end"}.get(value, "middle")
