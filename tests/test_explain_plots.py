"""Figures by hand: pixels worked out, ticks that are round, marks that sit on their bins."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from qtransformer.calibration import calibrate
from qtransformer.explain import Bins, EpisodeView, Moment
from qtransformer.explain_plots import Frame, bins_chart, calibration_chart, number, padded, ticks, value_chart
from qtransformer.predictions import Predictions


def make_bins(q_values=(0.1, 0.4, 0.2, 0.3), density=(0.1, 0.2, 0.6, 0.1), logged=1, greedy=2):
    arrays = [None if each is None else np.array(each, np.float64) for each in (q_values, density)]
    num_bins = len(next(each for each in arrays if each is not None))
    return Bins(np.linspace(-1, 1, num_bins), arrays[0], arrays[1], logged, greedy)


def make_view(num_steps=5, has_values=True):
    returns = np.linspace(0.2, 1.0, num_steps)
    columns = (returns + 0.1, returns - 0.1, returns, returns, returns, np.zeros(num_steps, bool))
    predictions = Predictions(*columns) if has_values else None
    moments = (Moment(0, (make_bins(),)), Moment(num_steps - 1, (make_bins(),)))
    return EpisodeView(3, "file:episode_3", True, "held out", returns, predictions, moments)


def attribute(svg, element, name):
    """The values of an attribute over all elements of a kind."""
    return re.findall(rf"<{element}[^>]*\s{name}=\"([^\"]*)\"", svg)


def bars(svg, kind):
    """(left, right, bottom, top) of each bar of a path."""
    (path,) = re.findall(rf'<path (?:class|fill)="{re.escape(kind)}" d="([^"]*)"', svg)
    found = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)V", path)
    return [(float(left), float(right), float(bottom), float(top)) for left, bottom, top, right in found]


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 5, [0.0, 0.5, 1.0]),
        (0.0, 1.0, 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.03, 0.11, 5, [0.0, 0.05, 0.1]),
        (-70.0, 12.0, 5, [-60.0, -40.0, -20.0, 0.0]),
        (1000.0, 1000.2, 3, [1000.0, 1000.1, 1000.2]),
        (0.0, 1.0, 0, []),
    ],
)
def test_ticks_are_round_and_few(low, high, most, expected):
    assert ticks(low, high, most) == pytest.approx(expected)
    assert len(expected) <= most


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.37), (-3.1, 17.0), (1e-6, 3e-6), (-1e5, 2e6)])
@pytest.mark.parametrize("most", [3, 5, 10])
def test_every_axis_has_ticks(low, high, most):
    found = ticks(low, high, most)
    assert 2 <= len(found) <= most
    assert all(low - 1e-9 <= each <= high * (1 + 1e-9) for each in found)


def test_a_range_is_never_empty():
    assert padded(np.array([0.0, 1.0])) == pytest.approx((-0.05, 1.05))
    assert padded(np.array([2.0, np.nan])) == pytest.approx((1.9, 2.1))
    assert padded(np.array([0.0])) == pytest.approx((-1e-3, 1e-3))
    assert padded(np.array([np.nan])) == pytest.approx((-0.05, 1.05))


def test_numbers_have_three_digits_and_a_true_minus():
    assert [number(each) for each in (-0.12345, 1e-15, 12.0, math.nan)] == ["−0.123", "0", "12", "–"]


def test_a_frame_maps_data_to_pixels():
    frame = Frame(10, 110, 20, 220, (0, 10), (-1, 1))
    assert (frame.across(0), frame.across(5), frame.across(10)) == (10, 60, 110)
    assert (frame.up(-1), frame.up(0), frame.up(1)) == (220, 120, 20)


def test_a_line_breaks_where_a_value_is_missing():
    frame = Frame(0, 40, 0, 10, (0, 4), (0, 1))
    values = np.array([0, 1, np.nan, 1, 0.5])
    assert frame.line(values) == "M0.0 10.0L10.0 0.0M30.0 0.0L40.0 5.0"


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_episode_has_a_line_each_and_a_mark_for_every_moment():
    svg = value_chart(make_view())
    assert re.findall(r'class="curve (\w+)"', svg) == ["return", "logged", "greedy"]
    assert re.findall(r'class="at at-(\d+)" d="M([\d.]+)', svg) == [("0", "52.0"), ("4", "870.0")]
    assert "episode 3" in svg


def test_without_values_the_return_stands_alone():
    assert re.findall(r'class="curve (\w+)"', value_chart(make_view(has_values=False))) == ["return"]


@pytest.mark.parametrize("num_steps", [1, 2, 300])
def test_episodes_of_any_length_can_be_drawn(num_steps):
    assert "nan" not in value_chart(make_view(num_steps))


def test_bars_rise_with_q_and_hang_with_the_density():
    """Four bins over 202 pixels from 44 on, gaps of 8 % of a bin; Q of 0 .. 0.5 over 88 pixels above 100."""
    svg = bins_chart(make_bins(), (0.0, 0.5), "a token")
    up, down = bars(svg, "others"), bars(svg, "density")
    assert up[0] == pytest.approx((44 + 0.08 * 50.5, 44 + 0.92 * 50.5, 100, 100 - 0.2 * 88), abs=0.06)
    assert [top for *_, top in up] == pytest.approx([100 - q / 0.5 * 88 for q in (0.1, 0.4, 0.2, 0.3)], abs=0.06)
    assert [end for *_, end in down] == pytest.approx([102 + d / 0.6 * 30 for d in (0.1, 0.2, 0.6, 0.1)], abs=0.06)


def test_marks_sit_on_the_logged_and_the_greedy_bin():
    svg = bins_chart(make_bins(logged=1, greedy=2), (0.0, 0.5), "a token")
    ring, dot = zip(attribute(svg, "circle", "cx"), attribute(svg, "circle", "cy"), strict=True)
    assert [float(each) for each in ring] == pytest.approx([44 + 1.5 * 50.5, 100 - 0.8 * 88], abs=0.06)
    assert [float(each) for each in dot] == pytest.approx([44 + 2.5 * 50.5, 100 - 0.4 * 88], abs=0.06)
    assert bars(svg, "var(--series-0)") == [bars(svg, "others")[1]]
    assert bars(svg, "var(--series-1)") == [bars(svg, "others")[2]]


def test_the_axis_names_the_actions_of_bins():
    labels = re.findall(r">([^<>]+)</text>", bins_chart(make_bins(), (0.0, 0.5), "a token"))
    assert labels[-3:] == ["−1", "0.333", "1"]


def test_a_token_without_values_shows_its_density_upwards():
    svg = bins_chart(make_bins(q_values=None), (0.0, 0.5), "a token")
    assert [top for *_, top in bars(svg, "density")] == pytest.approx(
        [132 - d / (0.6 * 1.12) * 120 for d in (0.1, 0.2, 0.6, 0.1)], abs=0.06
    )
    assert "others" not in svg


def test_a_token_without_density_has_no_bars_below():
    svg = bins_chart(make_bins(density=None), (0.0, 0.5), "a token")
    assert "density" not in svg
    assert bars(svg, "others")[0][2] == 132


def test_labels_are_escaped():
    assert 'aria-label="a &lt;b&gt; &quot;c&quot;"' in bins_chart(make_bins(), (0.0, 0.5), 'a <b> "c"')


def test_calibration_has_a_dot_a_group_on_equal_axes():
    """Predictions equal to returns lie on the diagonal: as far across as up."""
    values = np.linspace(0, 1, 40)
    svg = calibration_chart(calibrate(values, values, np.arange(40)), "label")
    across, up = ([float(each) for each in attribute(svg, "circle", name)] for name in ("cx", "cy"))
    assert len(across) == 10
    assert [(x - 52) / 338 for x in across] == pytest.approx([(300 - y) / 290 for y in up], abs=1e-3)
    assert svg.count('class="interval"') == 10


def test_one_episode_has_dots_without_intervals():
    values = np.linspace(0, 1, 40)
    svg = calibration_chart(calibrate(values, values, np.zeros(40, int)), "label")
    assert svg.count("<circle") == 10
    assert "interval" not in svg
    assert "nan" not in svg
