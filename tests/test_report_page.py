"""The page must hold what was gathered, escaped, alone and without scripts; and say what there is not."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import pytest
from page_fixtures import EVIL, Page, assert_colours_follow_the_reader, assert_fetches_and_runs_nothing
from report_fixtures import make_sources, train_some, write_outcomes

from qtransformer.clips import Clip
from qtransformer.config import RunError
from qtransformer.report import Report, gather_report
from qtransformer.report_page import render, write_page


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    """Ours, trained twice, succeeds in 9 of 10 episodes and in all; cloning in 1; an expert in all."""
    folder = tmp_path_factory.mktemp("page")
    runs, successes = train_some(folder), {"o0": 9, "o1": 10, "bc": 1, "expert": 10}
    files = {
        name: write_outcomes(folder / f"{name}.json", [True] * num + [False] * (10 - num))
        for name, num in successes.items()
    }
    evaluations = (f"ours={files['o0']},{files['o1']}", f"cloning={files['bc']}", f"expert={files['expert']}")
    words = [f"ours={runs['ours0']},{runs['ours1']}", f"cloning={runs['bc']}"]
    return gather_report(words, make_sources(evaluations=evaluations))


@pytest.fixture(scope="module")
def html(report):
    return render(report, "A title", "A paragraph.")


def test_the_page_fetches_and_runs_nothing(html):
    assert "; img-src data:; style-src" in html
    assert_fetches_and_runs_nothing(html, "data:image/webp;base64,")
    assert_colours_follow_the_reader(html)


def test_the_page_holds_every_section(html):
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Success",
        "Acting",
        "Which is better",
        "The course of training",
        "Alarms and interventions",
        "Values against what the log returned",
        "Every bin at one logged step",
        "Settings",
        "How the runs were made",
    ]
    text = Page(html).text
    assert "A paragraph." in text
    for each in ("q transformer", "behaviour cloning", "seed 1", "left (m/s)", "0.1.0"):
        assert each in text


def test_success_is_told_with_intervals_and_verdicts(html):
    text = " ".join(Page(html).text.split())
    assert "10 episodes in test/Passing-v0. Success: a rule." in text
    for each in ("95 %", "19 of 20", "90 %, 100 %", "10 %", "1 of 10", "72–100 %"):
        assert each in text
    (verdict,) = re.findall(r"<tr><td>cloning less expert</td>(.*?)</tr>", html)
    assert "−90.0 (" in verdict
    assert "<b>expert</b>" in verdict
    (verdict,) = re.findall(r"<tr><td>ours less expert</td>(.*?)</tr>", html)
    assert "<td>cannot be told</td>" in verdict
    assert "Verdicts from the same episodes: a false one has a probability of at most 5%" in text


def test_tasks_are_told_apart_where_the_environment_names_some(report):
    """Ours fails at the last seed of one training: seeds 0 to 4 are of one task, 5 to 9 of another."""
    told = replace(report, success=replace(report.success, tasks=(EVIL,) * 5 + ("push",) * 5))
    text = Page(render(told, "", "")).text
    assert "push590 % (19–100 %)0 % (0–43 %)100 % (57–100 %)" in text  # Wilson: 1.96² / (5 + 1.96²) = 0.43
    assert f"{EVIL}5100 % (38–100 %)20 % (4–62 %)" in text
    assert "taskepisodes" not in Page(render(report, "", "")).text


def test_a_task_of_one_episode_has_a_rate_and_no_interval(report):
    told = replace(report, success=replace(report.success, tasks=("pull",) * 9 + ("push",)))
    assert "push150 %0 %100 %" in Page(render(told, "", "")).text  # one episode, and no brackets


def test_clips_are_inside_the_page(report):
    html = render(replace(report, clips={"ours": [Clip("seed 3: a success", b"picture")]}), "")
    (image,) = Page(html).found("img")
    assert image == {
        "src": "data:image/webp;base64," + base64.b64encode(b"picture").decode(),
        "alt": "ours, seed 3: a success",
    }


def test_what_there_is_not_is_said(report):
    bare = Report({"ours": report.methods["ours"][:1]}, None, None, {}, {}, ("No policy.",))
    page = Page(render(bare, ""))
    assert "No policy." in page.text
    assert "Nothing was evaluated after training: --episodes plays each run" in page.text
    assert not page.found("img")


def test_names_of_users_are_escaped(report):
    methods = {EVIL: report.methods["ours"], "other": report.methods["cloning"]}
    explanation = replace(report.explanations["ours"], token_names=(EVIL, EVIL))
    clips = {EVIL: [Clip(EVIL, b"x")]}
    html = render(Report(methods, None, None, clips, {EVIL: explanation}, (EVIL,)), EVIL, EVIL)
    assert_fetches_and_runs_nothing(html, "data:image/webp;base64,")
    assert EVIL in Page(html).text


def test_many_methods_stay_far_below_ten_megabytes(report):
    names = [f"method {index}" for index in range(12)]
    methods = {name: report.methods["ours"] for name in names}  # noqa: C420 - pyright takes the values of fromkeys for None
    explanations = {name: report.explanations["ours"] for name in names}  # noqa: C420
    assert len(render(Report(methods, None, None, {}, explanations), "")) < 2_000_000


def test_a_page_that_cannot_be_written(report, tmp_path):
    with pytest.raises(RunError, match=r"--out .*: cannot be written .*; choose another path"):
        write_page(report, tmp_path, "", "")
