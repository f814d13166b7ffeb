"""The figures of `inspect_page`, written as SVG by hand: histograms, split by how the episodes ended.

No drawing library: a histogram is one path a group, so a page of hundreds stays small. Colours are CSS classes of the
page. It must not know HTML beyond that or any dataset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 260, 130, 8, 252, 16, 104  # pixels
_NUM_BINS = 40


def histogram(groups: Mapping[str, np.ndarray], label: str, limits: Sequence[float] = ()) -> str:
    """Returns how often values occur: bars stacked in the order of the groups, each in the colour of its CSS class.

    Args:
        groups: values by CSS class; those that are not finite are left out.
        label: said to those who cannot see the figure.
        limits: values that get a dashed line; they lie inside the figure.
    """
    finite = {name: values[np.isfinite(values)].astype(np.float64) for name, values in groups.items()}
    edges = _edges(np.concatenate([*finite.values(), [limit for limit in limits if math.isfinite(limit)]]))
    if edges is None:
        return '<p class="none">nothing to draw</p>'
    counts = {name: np.histogram(values, edges)[0] for name, values in finite.items()}
    most = max(1, int(np.sum(list(counts.values()), axis=0).max()))
    parts, below = [f'<path class="rule" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>'], np.zeros(_NUM_BINS)
    for name, heights in counts.items():
        parts.append(f'<path class="{name}" d="{_bars(below / most, heights / most)}"/>')
        below = below + heights
    for limit in limits:
        if math.isfinite(limit):
            x = _LEFT + (_RIGHT - _LEFT) * (limit - edges[0]) / (edges[-1] - edges[0])
            parts.append(f'<path class="limit" d="M{x:.1f} {_BOTTOM}V{_TOP}"/>')
    parts.append(f'<text x="{_LEFT}" y="11">most in a bar: {most:,}</text>')
    for x, anchor, value in ((_LEFT, "start", edges[0]), (_RIGHT, "end", edges[-1])):
        parts.append(f'<text x="{x}" y="122" text-anchor="{anchor}">{tick(float(value))}</text>')
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def tick(value: float) -> str:
    """Returns a number of four digits with a true minus sign."""
    return f"{value:.4g}".replace("-", "−")


def _edges(values: np.ndarray) -> np.ndarray | None:
    """Returns the edges of equal bins over the values, a little wider where they are all one; None without any."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        return None  # wider than a float: such a log has greater problems
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = max(0.05 * abs(low), 1e-3)
        low, high = low - margin, high + margin
    return np.linspace(low, high, _NUM_BINS + 1)


def _bars(below: np.ndarray, heights: np.ndarray) -> str:
    """Returns one path with a bar for each bin that is not empty; heights are shares of the highest stack."""
    path, width = [], (_RIGHT - _LEFT) / _NUM_BINS
    for index in np.flatnonzero(heights).tolist():
        left, right = _LEFT + index * width + 0.4, _LEFT + (index + 1) * width - 0.4
        base = _BOTTOM - (_BOTTOM - _TOP) * float(below[index])
        tall = max(0.6, (_BOTTOM - _TOP) * float(heights[index]))  # a single value among millions is seen, too
        path.append(f"M{left:.1f} {base:.1f}V{base - tall:.1f}H{right:.1f}V{base:.1f}Z")
    return "".join(path)
