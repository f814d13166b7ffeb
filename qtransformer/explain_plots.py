"""The figures of `explain_page`, written as SVG by hand: an episode's values, the bins of a token, calibration.

No drawing library: the figures are a few paths, and thousands of bars in one path keep the page small. Colours are the
CSS variables of `page.PALETTE`, and mean the same in every figure: blue is what was logged, orange what the policy
would do, dashed what was realised. It must not know HTML beyond that, torch or any dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from qtransformer.calibration import Calibration
from qtransformer.explain import Bins, EpisodeView

LOGGED, GREEDY = "var(--series-0)", "var(--series-1)"
STYLE = """svg text{font-size:12px;fill:var(--muted);font-variant-numeric:tabular-nums}
path.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.diagonal{stroke:var(--muted);stroke-dasharray:5 4;fill:none}
.interval{stroke:var(--series-0);stroke-width:2.5;stroke-opacity:.45;fill:none}
.others{fill:var(--bars)}
.density{fill:var(--muted);fill-opacity:.55}
svg .ring{fill:var(--card);stroke:var(--series-0);stroke-width:2}
svg .dot{fill:var(--series-1);stroke:var(--card);stroke-width:.8}
i.ring{width:14px;height:14px;border:2px solid var(--series-0);border-radius:50%}
i.dot{width:9px;height:9px;background:var(--series-1);border-radius:50%}
i.up,i.down{width:14px;height:14px;background:var(--bars)}
i.down{background:var(--muted);opacity:.55}"""
_STEPS = (1, 2, 5, 10)  # between two ticks, times a power of ten


@dataclass(frozen=True)
class Frame:
    """The inner rectangle of a figure in pixels, and the data that its edges stand for."""

    left: int | float
    right: int | float
    top: int | float
    bottom: int | float
    x: tuple[int | float, int | float]
    y: tuple[int | float, int | float]

    def across(self, value: int | float) -> float:
        """Returns the pixel of an x value."""
        return self.left + (self.right - self.left) * (value - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, value: int | float) -> float:
        """Returns the pixel of a y value."""
        return self.bottom - (self.bottom - self.top) * (value - self.y[0]) / (self.y[1] - self.y[0])

    def grid(self, num_x: int, num_y: int) -> Iterator[str]:
        """Yields tick labels along both axes, and a line across at each of y."""
        for value in ticks(*self.y, num_y):
            y = self.up(value)
            yield f'<path class="rule" d="M{self.left} {y:.1f}H{self.right}"/>'
            yield f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
        for value in ticks(*self.x, num_x):
            x, y = self.across(value), self.bottom + 17
            yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{number(value)}</text>'

    def line(self, values: Float[np.ndarray, " points"]) -> str:
        """Returns the path through values at x = 0, 1, 2, ...; it is broken where one is not finite."""
        path, is_down = [], False
        for step, value in enumerate(values):
            if np.isfinite(value):
                path.append(f"{'L' if is_down else 'M'}{self.across(step):.1f} {self.up(float(value)):.1f}")
            is_down = bool(np.isfinite(value))
        return "".join(path)


def value_chart(view: EpisodeView) -> str:
    """Returns V, Q of the logged action and the return along an episode; `at-K` marks step K of each moment."""
    lines = [("return", view.returns)]
    if view.predictions is not None:
        lines += [("logged", view.predictions.q_logged), ("greedy", view.predictions.values)]
    low, high = padded(np.concatenate([values for _, values in lines]))
    frame = Frame(52, 870, 10, 250, (0, max(1, len(view.returns) - 1)), (low, high))
    parts = list(frame.grid(10, 5))
    for moment in view.moments:
        x = frame.across(moment.step)
        parts.append(f'<path class="tick" d="M{x:.1f} {frame.bottom}v-6"/>')
        parts.append(f'<path class="at at-{moment.step}" d="M{x:.1f} {frame.bottom}V{frame.top}"/>')
    parts += [f'<path class="curve {name}" d="{frame.line(values)}"/>' for name, values in lines]
    parts.append(f'<text x="{frame.right}" y="292" text-anchor="end">step of the episode</text>')
    return svg(890, 300, parts, f"Values and returns along episode {view.number}")


def bins_chart(bins: Bins, q_range: tuple[float, float] | None, label: str) -> str:
    """Returns the bins of one token: bars of Q upwards and of the density downwards, or of the density alone.

    A ring marks the logged bin, a dot the greedy one. Bins are drawn equally wide, whatever they stand for.
    """
    K = len(bins.actions)
    has_both = bins.q_values is not None and bins.density is not None
    heights = bins.density if bins.q_values is None else bins.q_values
    assert heights is not None, "a policy chooses by a value or by a density"
    span = (0.0, 1.12 * float(heights.max())) if bins.q_values is None or q_range is None else q_range
    frame = Frame(44, 246, 12, 100 if has_both else 132, (0, K), span)
    kind = "density" if bins.q_values is None else "others"
    parts = [*frame.grid(0, 3), f'<path class="{kind}" d="{_bars(frame, heights)}"/>']
    if has_both and bins.density is not None:
        below = Frame(frame.left, frame.right, 132, 102, frame.x, (0, float(bins.density.max())))
        parts.append(f'<path class="density" d="{_bars(below, bins.density)}"/>')
    for bin, colour in ((bins.logged, LOGGED), (bins.greedy, GREEDY)):
        parts.append(f'<path fill="{colour}" d="{_bars(frame, heights, [bin])}"/>')
    x, y = (lambda bin: frame.across(bin + 0.5)), (lambda bin: frame.up(float(heights[bin])))
    parts.append(f'<circle class="ring" cx="{x(bins.logged):.1f}" cy="{y(bins.logged):.1f}" r="6"/>')
    parts.append(f'<circle class="dot" cx="{x(bins.greedy):.1f}" cy="{y(bins.greedy):.1f}" r="3.5"/>')
    for place, anchor in ((0, "start"), (K // 2, "middle"), (K - 1, "end")):
        at = {"start": frame.left, "middle": frame.across(place + 0.5), "end": frame.right}[anchor]
        parts.append(f'<text x="{at:.1f}" y="148" text-anchor="{anchor}">{number(float(bins.actions[place]))}</text>')
    return svg(250, 154, parts, label)


def calibration_chart(calibration: Calibration, label: str) -> str:
    """Returns mean return against mean prediction for each group, with intervals; the diagonal is what is hoped for."""
    groups = calibration.groups
    realised = [edge for each in groups for edge in (each.realised.low, each.realised.mean, each.realised.high)]
    low, high = padded(np.array([*realised, *(each.prediction for each in groups)]))
    frame = Frame(52, 390, 10, 300, (low, high), (low, high))
    parts = [*frame.grid(6, 6), f'<path class="diagonal" d="M{frame.left} {frame.bottom}L{frame.right} {frame.top}"/>']
    for group in groups:
        x, mean = frame.across(group.prediction), group.realised
        if math.isfinite(mean.low):
            ends = frame.up(mean.low), frame.up(mean.high)
            parts.append(f'<path class="interval" d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>')
        parts.append(f'<circle fill="{LOGGED}" cx="{x:.1f}" cy="{frame.up(mean.mean):.1f}" r="4.5"/>')
    parts.append(f'<text x="{frame.right}" y="340" text-anchor="end">predicted: Q of the logged action</text>')
    parts.append(f'<text transform="translate(13 {frame.top}) rotate(-90)" text-anchor="end">realised return</text>')
    return svg(400, 348, parts, label)


def ticks(low: int | float, high: int | float, most: int) -> list[float]:
    """Returns at most `most` round numbers in [low, high], evenly spaced; none for `most` of 0."""
    if most < 1:
        return []
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (each * scale for scale in (power, 10 * power) for each in _STEPS):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [place * step for place in range(first, last + 1)]
    return []


def padded(values: Float[np.ndarray, " values"]) -> tuple[float, float]:
    """Returns the range of the finite values, a twentieth wider on both sides; never empty."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or max(0.05 * abs(high), 1e-3)
    return low - margin, high + margin


def number(value: int | float) -> str:
    """Returns a number of three digits with a true minus sign; a dash where it is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}".replace("-", "−")


def _bars(frame: Frame, heights: Float[np.ndarray, " bins"], which: Sequence[int] | None = None) -> str:
    """Returns one path with a bar a bin."""
    gap = 0.08 if len(heights) <= 64 else 0.0
    path = []
    for bin in range(len(heights)) if which is None else which:
        left, right = frame.across(bin + gap), frame.across(bin + 1 - gap)
        path.append(f"M{left:.1f} {frame.bottom}V{frame.up(float(heights[bin])):.1f}H{right:.1f}V{frame.bottom}Z")
    return "".join(path)


def svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    """Returns a figure; `label` says to those who cannot see it what it shows."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
