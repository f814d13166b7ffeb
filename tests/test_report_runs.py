"""What went wrong, which settings differ, and how runs were made, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from learner_fixtures import make_config
from page_fixtures import EVIL, Page

from qtransformer.alarms import Alarm
from qtransformer.report_runs import flat, labels, provenance_parts, settings_parts, trouble_parts
from qtransformer.run_records import Rung, RunRecord

SESSION = {
    "command": "qtransformer train",
    "first_step": 0,
    "steps": 50,
    "device": "cpu",
    "processor": "abacus",
    "versions": {"torch": "2.0"},
    "git_revision": "abc",
    "changes": None,
}


@pytest.fixture
def run() -> RunRecord:
    return RunRecord(Path("runs/a"), make_config(), ({"step": 50},), (SESSION,), None, (), ())


def text(parts):
    return " ".join(Page("".join(parts)).text.split())


def test_runs_are_numbered_where_a_method_has_several(run):
    assert [label for label, _ in labels({"a": [run], "b": [run, run]})] == ["a", "b 1", "b 2"]


def test_quiet_runs_are_named_together(run):
    said = "Nothing rang in the course{}; nothing was left out, interrupted or refused."
    assert text(trouble_parts({"a": [run]})) == said.format("")
    assert text(trouble_parts({"a": [run], "b": [run, run]})) == said.format(" of a, b 1, b 2")


def test_interventions_are_told(run):
    line = {"step": 20, "skipped_batches": 3, "gradient_spikes": 1200}
    sessions = (SESSION, {**SESSION, "first_step": 10}, {})
    troubled = replace(run, lines=(line,), sessions=sessions, refused=("batch_1: <NaN>",))
    said = text(trouble_parts({"a": [troubled], "b": [run]}))
    for each in (
        "gone on with at update 10, ?.",
        "stands at update 20 of 50.",
        "3 batches whose numbers, loss or gradients were not finite were left out.",
        "Refused: batch_1: <NaN>.",
        "1,200 gradients had a norm over 10 times the usual",
        "Nothing rang in the course of b;",
    ):
        assert each in said


@pytest.mark.parametrize(
    ("first", "last", "is_over", "when"),
    [
        (1000, 3000, False, "It rang from update 1,000 to 3,000, and still does."),
        (1000, 1000, True, "It rang at update 1,000, silent since."),
    ],
)
def test_alarms_say_when_they_rang(run, monkeypatch, first, last, is_over, when):
    rung = Rung(Alarm("a loss that grows", "ringing", 2.0, 1.0, "It diverges."), first, last, is_over)
    monkeypatch.setattr(RunRecord, "rung", lambda self: (rung,))
    said = text(trouble_parts({"a": [run]}))
    assert "ringsA loss that grows" in said
    assert "It diverges." in said
    assert when in said


def test_settings_that_differ_stand_side_by_side(run):
    other = replace(run, config=make_config(seed=3, out=Path("elsewhere"), num_bins=8))
    html = "".join(settings_parts({"a": [run], "b": [other]}))
    table, _, rest = html.partition("</table>")
    assert [each for each in ("--seed", "--num-bins", "--out", "--steps") if each in table] == ["--seed", "--num-bins"]
    assert "<td>--num-bins</td><td>4</td><td>8</td>" in table
    assert "tokens.num_bins" in rest
    assert html.count("<details>") == 2
    same = text(settings_parts({"a": [run, replace(run, folder=Path("c"))]}))
    assert same.startswith("The runs have the same settings.")
    assert "same" not in text(settings_parts({"a": [run]}))


def test_nested_settings_are_one_table():
    assert flat({"a": 1, "b": {"c": [2, 3], "d": []}, "e": None}) == {
        "a": "1",
        "b.c": "2, 3",
        "b.d": "all",
        "e": "None",
    }


def test_each_session_is_told(run):
    second = {**SESSION, "first_step": 10, "changes": "changes-1.diff"}
    said = text(provenance_parts({"a": [replace(run, sessions=(SESSION, second))]}))
    for each in (
        "2 sessions",
        "session 1: command",
        "from 10 to 50 at most",
        "torch 2.0",
        "abc, changed: changes-1.diff",
    ):
        assert each in said
    alone = "".join(provenance_parts({"a": [run]}))
    assert "<details open>" in alone
    assert "session 1" not in alone
    assert "<details open>" not in "".join(provenance_parts({"a": [run, run]}))
    assert "0 sessions" in text(provenance_parts({"a": [replace(run, sessions=())]}))


def test_words_of_others_are_escaped(run):
    evil = replace(run, sessions=({**SESSION, "command": EVIL},), refused=(EVIL,), folder=Path(EVIL))
    for parts in (provenance_parts, settings_parts, trouble_parts):
        html = "".join(parts({EVIL: [evil]}))
        assert "<script" not in html
        assert EVIL in Page(html).text or parts is settings_parts
