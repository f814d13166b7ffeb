"""Histograms count every finite value once, stack their groups, and hold whatever numbers a log may have."""

import re

import numpy as np
import pytest

from qtransformer_datasets.inspect_plots import histogram, tick


def heights(svg, name="bars"):
    """The height of each bar in pixels, by its left edge."""
    (path,) = re.findall(rf'class="{name}" d="([^"]*)"', svg)
    bars = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)H", path)
    return {float(left): round(float(base) - float(top), 1) for left, base, top in bars}


def test_bars_are_as_high_as_values_are_frequent():
    svg = histogram({"bars": np.array([0.0, 0.0, 0.0, 0.0, 1.0])}, "h")
    assert heights(svg) == {8.4: 88.0, 246.3: 22.0}  # the highest fills the figure from 16 to 104
    assert "most in a bar: 4<" in svg
    assert re.findall(r">([^<>]+)</text>", svg)[1:] == ["0", "1"]


def test_groups_are_stacked():
    svg = histogram({"success": np.array([1.0, 1.0]), "failure": np.array([1.0, 0.0]), "other": np.zeros(0)}, "h")
    assert heights(svg, "success") == {246.3: pytest.approx(58.7)}
    assert heights(svg, "failure") == {8.4: pytest.approx(29.3), 246.3: pytest.approx(29.3)}
    assert 'class="failure" d="M8.4 104.0V74.7H13.7V104.0ZM246.3 45.3V16.0' in svg
    assert heights(svg, "other") == {}


def test_limits_lie_inside_the_figure():
    svg = histogram({"bars": np.array([0.0, 0.5])}, "h", (-1.0, 1.0))
    assert re.findall(r'class="limit" d="M([\d.]+) ', svg) == ["8.0", "252.0"]
    assert re.findall(r">([^<>]+)</text>", svg)[1:] == ["−1", "1"]


def test_a_rare_value_is_seen():
    svg = histogram({"bars": np.append(np.zeros(10**6), 1.0)}, "h")
    assert heights(svg)[246.3] == 0.6


@pytest.mark.parametrize("value", [0.0, 5.0, -3e8, 1e-300, 1e300])
def test_values_that_are_all_one_fill_a_bar(value):
    assert list(heights(histogram({"bars": np.full(3, value)}, "h")).values()) == [88.0]


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [-1.7e308, 1.7e308]])
def test_nothing_to_draw(values):
    assert histogram({"bars": np.array(values)}, "h") == '<p class="none">nothing to draw</p>'


def test_values_that_are_not_finite_are_left_out():
    svg = histogram({"bars": np.array([np.nan, 0.0, 1.0, -np.inf])}, "h", (np.inf,))
    assert heights(svg) == {8.4: 88.0, 246.3: 88.0}
    assert "limit" not in svg


def test_labels_are_escaped():
    assert 'aria-label="&lt;b&gt; &quot;x&quot;"' in histogram({"bars": np.zeros(1)}, '<b> "x"')


def test_ticks_have_a_true_minus():
    assert (tick(-1.23456), tick(12345.6)) == ("−1.235", "1.235e+04")
