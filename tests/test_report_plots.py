"""Curves and intervals stand where their numbers say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qtransformer.page import PALETTE
from qtransformer.report_plots import (
    Curve,
    Rate,
    Series,
    curve_chart,
    curves_of,
    percent,
    rate_chart,
    series_of,
    spread,
)

BLUE = Series("ours", "series-0")


def make_curve(values, steps=None, **changes):
    values = np.array(values, np.float64)
    return Curve(
        BLUE, np.arange(len(values), dtype=np.float64) if steps is None else np.array(steps), values, **changes
    )


def lines(**metrics):
    return [
        {"step": 10 * (place + 1), **dict(zip(metrics, row, strict=True))}
        for place, row in enumerate(zip(*metrics.values(), strict=True))
    ]


def labels(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def points(svg, kind="curve"):
    """The corners of the paths of this class."""
    paths = re.findall(rf'<path class="{kind}" [^>]*d="M([^"Z]*)', svg)
    return [[tuple(map(float, each.split())) for each in path.split("L")] for path in paths]


def test_names_differ_in_colour_and_then_in_dashes():
    names = [f"method {index}" for index in range(10)]
    series = series_of([*names, "method 0"])
    assert list(series) == names
    num_colours = sum(name.startswith("series-") for name in PALETTE)
    assert len({each.colour for each in series.values()}) == num_colours
    assert len({(each.colour, each.dashes) for each in series.values()}) == 10
    assert series["method 8"].stroke == 'stroke="var(--series-0)" stroke-dasharray="7 4"'


def test_several_trainings_are_faint_and_their_mean_is_strong():
    one, other = lines(loss=[1.0, 2.0, 3.0]), lines(loss=[3.0, 6.0])
    (single,) = curves_of(BLUE, [one], "loss")
    assert (single.steps.tolist(), single.values.tolist(), single.is_faint) == ([10, 20, 30], [1, 2, 3], False)
    first, second, mean = curves_of(BLUE, [one, other, lines(q=[1.0])], "loss")
    assert (first.is_faint, second.is_faint, mean.is_faint) == (True, True, False)
    assert (mean.steps.tolist(), mean.values.tolist()) == ([10, 20], [2, 4])
    assert curves_of(BLUE, [one], "q") == []
    apart = curves_of(BLUE, [[{"step": 1, "q": 1.0}], [{"step": 2, "q": 1.0}]], "q")
    assert [each.is_faint for each in apart] == [True, True]


def test_long_runs_are_thinned():
    (curve,) = curves_of(BLUE, [[{"step": step, "loss": 1.0} for step in range(1001)]], "loss")
    assert 300 < len(curve.steps) <= 400


def test_a_curve_goes_from_edge_to_edge():
    """The range of 0 to 1 is a twentieth wider on both sides: 0 stands 1/22 of the height of 148 above the bottom."""
    svg = curve_chart([make_curve([0, 1, 0.5])], "a label")
    assert points(svg) == [[(50.0, 151.3), (189.0, 16.7), (328.0, 84.0)]]
    assert 'aria-label="a label"' in svg
    assert labels(svg)[-1] == "update"
    assert labels(svg)[:2] == ["0", "0.2"]


def test_scales_of_steps_and_values():
    assert {"1k", "2k", "0"} <= set(labels(curve_chart([make_curve([1, 2], [0.0, 2000.0])], "")))
    wide = make_curve([0.001, 0.1, 10])
    assert {"0.001", "0.01", "0.1", "1", "10"} <= set(labels(curve_chart([wide], "", may_be_log=True)))
    assert "0.001" not in labels(curve_chart([wide], ""))
    assert {"1", "2", "5"} <= set(labels(curve_chart([make_curve([0.9, 60])], "", may_be_log=True)))
    far = labels(curve_chart([make_curve([1e-12, 1e12])], "", may_be_log=True))
    assert 3 <= len([each for each in far if "e" in each]) <= 7
    assert points(curve_chart([make_curve([0, 100])], "", may_be_log=True))  # no logarithm of 0


def test_one_point_is_a_dot_and_a_band_surrounds_its_curve():
    assert '<circle fill="var(--series-0)"' in curve_chart([make_curve([1.0])], "")
    band = (np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    (corners,) = points(curve_chart([make_curve([0.5, 0.5], band=band)], ""), "band")
    assert corners == [(50.0, 16.7), (328.0, 16.7), (328.0, 151.3), (50.0, 151.3)]


def test_faint_curves_and_constant_ones_can_be_drawn():
    svg = curve_chart([make_curve([2.0, 2.0], is_faint=True)], "")
    assert 'class="curve faint"' in svg
    assert "nan" not in svg


def test_a_rate_stands_between_0_and_100():
    """Pixels 10 to 330 stand for 0 to 100 %."""
    svg = rate_chart([Rate(BLUE, 0.5, (0.25, 1.0), (0.25, 0.75))], "rates")
    assert 'd="M90.0 36H330.0"' in svg
    assert 'cx="170.0"' in svg
    assert re.findall(r'class="mark"[^>]*d="M([\d.]+)', svg) == ["90.0", "250.0"]
    assert {"ours", "50 %", "0 %", "100 %"} <= set(labels(svg))


def test_labels_are_escaped_and_cut():
    svg = rate_chart([Rate(Series('<b>&"' + "x" * 50, "series-0"), 1.0, (0.5, 1.0))], '<"')
    assert "<b>" not in svg
    assert 'aria-label="&lt;&quot;"' in svg
    (name,) = (each for each in labels(svg) if each.startswith("…"))
    assert len(name) == 34


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.125, "12.5 %"), (1 / 3, "33.3 %")])
def test_percentages(share, text):
    assert percent(share) == text


def test_intervals():
    assert spread((0.1234, 0.3751)) == "12–38 %"
