"""Every page that is written, looked at by a real browser: nothing said, fetched, sticking out or hard to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from browser_fixtures import FAINT_TEXT, STICKING_OUT, Browser, open_browser
from dataset_fixtures import make_dataset, make_episode
from report_fixtures import make_sources, train_some, write_outcomes

from qtransformer import explain_page, page, report_page
from qtransformer.alarms import Alarm
from qtransformer.report import gather_report
from qtransformer.run_records import Rung, RunRecord
from qtransformer_datasets import inspect_page
from qtransformer_datasets.check import check_dataset
from qtransformer_datasets.inspect import describe

LONG = "a_name_without_any_place_to_break_it_" * 6
TOO_WIDE = "return document.scrollingElement.scrollWidth - document.documentElement.clientWidth"
PAGES = ("report", "explain", "inspect")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory, browser) -> dict[str, Path]:
    """One of each kind, with all that it can hold, and with a long name and a long path."""
    folder = tmp_path_factory.mktemp("pages")
    runs, files = train_some(folder), {"ours": [1] * 9 + [0], "cloning": [0] * 9 + [1], LONG: [1] * 10}
    paths = {name: write_outcomes(folder / name[:9], each) for name, each in files.items()}
    evaluations = tuple(f"{name}={path}" for name, path in paths.items())
    words = [f"ours={runs['ours0']},{runs['ours1']}", f"cloning={runs['bc']}"]
    report = gather_report(words, make_sources(4, evaluations=evaluations))
    run = report.methods["cloning"][0]
    session = {**run.sessions[0], "command": LONG}
    troubled = replace(run, sessions=(session, session), refused=(LONG,), folder=folder / LONG, lines=run.lines[:2])
    report = replace(report, methods={**report.methods, "cloning": [troubled]}, notes=(LONG, "Something is missing."))
    rung = Rung(Alarm("a loss that grows", "ringing", 2.0, 1.0, f"It diverges: {LONG}"), 3, 9, is_over=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecord, "rung", lambda self: (rung,) if self.refused else ())
        report_page.write_page(report, folder / "report.html", f"Report {LONG}", "A paragraph.")
    explain_page.write_page(report.explanations["ours"], folder / "explain.html")
    dataset = make_dataset(folder / "log", [make_episode(seed=seed, success=seed % 2 == 0) for seed in range(6)])
    inspect_page.write_page(dataset, describe(dataset, check_dataset(dataset)), folder / "inspect.html")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read(browser: Browser, pages, name, width, scheme):
    browser.open(pages[name], width, scheme)
    assert browser.said() == []
    assert browser.requests() == [pages[name].resolve().as_uri()]
    assert browser.ask("return innerWidth") == width
    assert browser.ask(TOO_WIDE) == 0
    assert browser.ask(STICKING_OUT) == []
    browser.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    num, faint = browser.ask(FAINT_TEXT)
    assert num > 50
    assert faint == []
    background = browser.ask("return getComputedStyle(document.body).backgroundColor")
    expected = page.PALETTE["page"][scheme == "dark"]
    assert background == f"rgb({', '.join(str(int(expected[place : place + 2], 16)) for place in (1, 3, 5))})"


def test_clips_move_and_curves_have_their_colours(browser, pages):
    browser.open(pages["report"], 1600, "dark")
    sizes = browser.ask("return [...document.images].map(each => [each.complete, each.naturalWidth])")
    assert len(sizes) >= 2
    assert all(complete and width >= 64 for complete, width in sizes)
    colours = browser.ask("return [...document.querySelectorAll('.curve')].map(each => getComputedStyle(each).stroke)")
    assert "none" not in colours
    assert len(set(colours)) > 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ('<img src="http://localhost:9/x.png">', "said"),
        ("<script>1</script>", "said"),
        ('<p style="width:500px">wide</p>', "sticking"),
        ('<p style="color:#888;background:#777">faint</p>', "faint"),
        ('<svg viewBox="0 0 90 9"><text y="6" font-size="3" fill="#fefefe">faint</text></svg>', "faint"),
    ],
)
def test_the_checks_bite(browser, tmp_path, fault, said):
    path = tmp_path / "page.html"
    page.write(page.fill("A title", fault, [], "$base\n$card", has_images=True), path)
    browser.open(path, 400, "light")
    found = {"said": browser.said(), "sticking": browser.ask(STICKING_OUT), "faint": browser.ask(FAINT_TEXT)[1]}
    assert {name for name, each in found.items() if each} == {said}


def test_a_request_is_seen(browser, tmp_path):
    (tmp_path / "other.css").write_text("")
    path = tmp_path / "page.html"
    path.write_text('<link rel="stylesheet" href="other.css">')
    browser.open(path, 400, "light")
    assert [Path(each).name for each in browser.requests()] == ["page.html", "other.css"]


def test_a_box_that_scrolls_may_hold_what_is_wide(browser, tmp_path):
    path = tmp_path / "page.html"
    wide = '<div class="scroll"><p style="width:500px;max-width:none">wide</p></div>'
    page.write(page.fill("A title", wide, [], "$base\n$scroll", has_images=False), path)
    browser.open(path, 400, "light")
    assert browser.ask(STICKING_OUT) == []
    assert browser.ask(TOO_WIDE) == 0
