"""The table of runs and their curves say what the metrics say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from page_fixtures import Page
from report_fixtures import train_some

from qtransformer.report_course import course_parts
from qtransformer.report_plots import series_of
from qtransformer.run_records import Methods, read_run


@pytest.fixture(scope="module")
def methods(tmp_path_factory) -> Methods:
    runs = train_some(tmp_path_factory.mktemp("course"))
    return {"ours": [read_run(runs["ours0"]), read_run(runs["ours1"])], "cloning": [read_run(runs["bc"])]}


def render(methods: Methods) -> str:
    return "\n".join(course_parts(methods, series_of(list(methods))))


def test_curves_of_metrics_are_drawn(methods):
    html = render(methods)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions.count("Success in evaluations while training") == 1
    for each in ("Loss", "Squared error of Q", "Norm of the gradients, before clipping"):
        assert each in captions
    (loss,) = re.findall(r'aria-label="Loss over updates of ours, cloning">(.*?)</svg>', html, flags=re.DOTALL)
    assert loss.count('class="curve faint"') == 2  # two trainings of ours
    assert loss.count('class="curve"') == 2  # their mean, and cloning
    assert "Q, targets and returns over updates of ours" in html
    assert "Q, targets and returns over updates of cloning" not in html


def test_a_single_training_shows_its_evaluations_with_an_interval(methods):
    (run, _) = methods["ours"]
    html = render({"ours": [run]})
    assert html.count('class="band"') == 1
    text = Page(html).text
    assert f"{100 * run.evaluations()[-1]['success_rate']:.3g} %" in text
    assert "success while training: last" in text
    assert "update 12" in text
    assert "success while training" not in render({"cloning": methods["cloning"]})


def test_a_run_is_told_by_its_newest_figures(methods):
    (run,) = methods["cloning"]
    lines = ({"step": 6, "loss": 9.0, "data_share": 0.9}, {"step": 12, "loss": 0.25, "updates_per_second": 1234.0})
    text = Page(render({"cloning": [replace(run, lines=lines)]})).text
    for each in ("0.25", "90.0%", "1.23e+03", "seed 0, behaviour cloning"):
        assert each in text


def test_a_run_in_the_midst_says_how_far_it_is(methods):
    (run,) = methods["cloning"]
    slow = replace(run, config=replace(run.config, steps=7212), lines=({"step": 12, "updates_per_second": 0.5},))
    text = Page(render({"x": [slow]})).text
    assert "12 of 7,212" in text
    assert "4.0 h to go" in text
    fast = replace(run, config=replace(run.config, steps=132), lines=({"step": 12, "updates_per_second": 2.0},))
    assert "1 min to go" in Page(render({"x": [fast]})).text


def test_a_run_without_metrics_is_a_row(methods):
    html = render({"x": [replace(methods["cloning"][0], lines=())]})
    assert "<svg" not in html
    assert Page(html).text.count("–") == 5
