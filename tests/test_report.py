"""The page must hold what it was given, escaped, and nothing that a browser would fetch."""

from __future__ import annotations

import base64
import builtins
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_fixtures import EVIL, Page, assert_colours_follow_the_reader, assert_fetches_and_runs_nothing

from qtransformer.config import RunError
from qtransformer.report import NO_ANIMATION, Animation, QPlot, Report, Row, render, save_picture, write_report
from qtransformer.report_plots import all_series, percent, spread

pytest.importorskip("matplotlib")
from PIL import Image

BARE = Report("Nothing", "", (), {}, None, None, {})


def metrics(num_lines=20, **extra):
    return [
        {"step": 10 * i, "loss": 1.0 / (1 + i), **{key: value + i for key, value in extra.items()}}
        for i in range(num_lines)
    ]


def frames(count=80, height=240, width=320):
    ramp = np.broadcast_to(np.linspace(0, 200, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    moving = [ramp.copy() for _ in range(count)]
    for index, frame in enumerate(moving):
        frame[height // 2 : height // 2 + 20, 2 * index : 2 * index + 20] = 255
    return moving


def q_plot(tokens=3, bins=8):
    rng = np.random.default_rng(0)
    return QPlot(
        dimensions=tuple(f"joint {i} (rad)" for i in range(tokens)),
        centres=[np.linspace(-1, 1, bins)] * tokens,
        q_values=rng.uniform(size=(tokens, bins)),
        density=rng.uniform(size=(tokens, bins)),
        greedy=np.zeros(tokens, np.int64),
        logged=np.ones(tokens, np.int64),
        caption="episode 3, step 14",
    )


@pytest.fixture(scope="module")
def report() -> Report:
    rows = (
        Row("cloning", "Behaviour cloning", 9, 40, (0.1234, 0.3751), 99.6, "all episodes"),
        Row("ours", "Q-Transformer", 35, 40, (0.7389, 0.9454), 61.2),
    )
    curves = {"cloning": metrics(cross_entropy=1.0), "ours": metrics(squared_error=0.1, q_logged=0.2, target=0.3)}
    animation = Animation(frames(6, 48, 64), 10.0, "seed 1003")
    return Report("A title", "An introduction.", rows, curves, q_plot(), animation, {"command": "qtransformer demo"})


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render(report)


def test_page_holds_what_it_was_given(html: str):
    page = Page(html)
    for text in ("A title", "An introduction.", "Behaviour cloning", "all episodes", "22.5 %", "12–38 %", "9 of 40"):
        assert text in page.text
    for text in (
        "100 steps",
        "87.5 %",
        "74–95 %",
        "joint 2 (rad)",
        "episode 3, step 14",
        "seed 1003",
        "qtransformer demo",
    ):
        assert text in page.text
    # 1 success rates + 3 losses + 1 Q over training + 3 tokens
    assert len(page.found("svg")) == 8
    assert len(page.found("title")) == 1


def test_page_fetches_nothing(html: str):
    assert Page(html).links
    assert "; img-src data:; style-src" in html
    assert_fetches_and_runs_nothing(html, "#", "data:image/webp;base64,")


def test_every_reference_inside_a_figure_has_its_target(html: str):
    targets = {link[1:] for link in Page(html).links if link.startswith("#")} | set(
        re.findall(r"url\(#([^)]*)\)", html)
    )
    assert targets
    assert targets <= set(Page(html).ids)


def test_what_users_write_is_escaped(report: Report):
    rows = [Row(EVIL, EVIL, 1, 2, (0.1, 0.9), 3.0, EVIL)]
    plot = replace(q_plot(), dimensions=(EVIL,) * 3, caption=EVIL)
    animation = Animation(frames(1, 48, 64), 10, EVIL)
    page = Page(render(Report(EVIL, EVIL, rows, {EVIL: report.curves["ours"]}, plot, animation, {EVIL: EVIL})))
    assert not page.found("script")
    assert page.text.count(EVIL) > 10


def test_colours_are_variables_in_figures_and_defined_for_light_and_dark(html: str):
    assert_colours_follow_the_reader(html)


def test_same_report_same_page(report: Report, html: str):
    assert render(report) == html


def test_without_animation_the_page_says_how_to_get_one(report: Report):
    page = Page(render(replace(report, animation=None)))
    assert NO_ANIMATION in page.text
    assert "MUJOCO_GL=egl" in NO_ANIMATION
    assert not page.found("img")


def test_empty_report_says_so():
    page = Page(render(BARE))
    assert "Nothing was evaluated." in page.text
    assert "No metrics were recorded." in page.text
    assert len(page.found("section")) == 3


def test_animation_plays_in_real_time_and_is_small(tmp_path: Path):
    write_report(replace(BARE, animation=Animation(frames(80), 20, "")), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert len(html.encode()) < 1_000_000
    (link,) = [link for link in Page(html).links if link.startswith("data:")]
    image = Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))
    assert image.size == (320, 240)
    durations = []
    for index in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(index)
        image.load()
        durations.append(image.info["duration"])
    assert sum(durations) == 80 * 50


def test_animation_that_does_not_compress_is_made_smaller(monkeypatch):
    monkeypatch.setattr("qtransformer.report._MAX_ANIMATION_BYTES", 20_000)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(3)]
    html = render(replace(BARE, animation=Animation(noise, 10, "")))
    data = base64.b64decode(html.partition("base64,")[2].partition('"')[0])
    assert Image.open(io.BytesIO(data)).width == 160
    assert len(data) < 20_000


def test_long_animation_is_thinned_and_keeps_its_time(monkeypatch):
    monkeypatch.setattr("qtransformer.report._MAX_FRAMES", 4)
    html = render(replace(BARE, animation=Animation(frames(10, 24, 32), 10, "")))
    image = Image.open(io.BytesIO(base64.b64decode(html.partition("base64,")[2].partition('"')[0])))
    image.load()
    assert image.n_frames == 4  # type: ignore[attr-defined]
    assert image.info["duration"] == 300


@pytest.mark.parametrize(
    ("bad", "fps", "match"),
    [
        ([], 10, "frames must be uint8 of one shape"),
        ([np.zeros((4, 4, 3))], 10, "frames must be uint8"),
        ([np.zeros((4, 4), np.uint8)], 10, r"got \[\(4, 4\)\]"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], 10, r"\(4, 4, 3\), \(4, 5, 3\)"),
        ([np.zeros((4, 4, 3), np.uint8)], 0, r"fps \(0\) must be above 0"),
    ],
)
def test_animation_refuses(bad, fps, match):
    with pytest.raises(RunError, match=match):
        Animation(bad, fps, "")


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 2)])
def test_row_refuses_impossible_counts(successes, episodes):
    with pytest.raises(RunError, match=rf"ours: successes \({successes}\) must be in"):
        Row("ours", "Ours", successes, episodes, (0.0, 1.0), 1.0)


def test_figures_in_words():
    assert [percent(share) for share in (0.0, 1 / 3, 0.625, 0.85, 1.0)] == ["0 %", "33.3 %", "62.5 %", "85 %", "100 %"]
    assert spread(Row("a", "a", 1, 2, (0.0, 0.996), 1.0)) == "0–100 %"


def test_row_and_run_of_one_name_look_alike_and_no_two_names_do(report: Report):
    series = all_series(report.rows, {f"run {i}": [] for i in range(20)} | {"ours": []})
    assert (series["ours"].label, series["ours"].colour) == ("Q-Transformer", "series-1")
    assert len({(each.colour, each.line) for each in series.values()}) == len(series) == 22


@pytest.mark.parametrize("num_runs", [1, 30])
def test_any_number_of_runs(num_runs: int):
    page = Page(render(replace(BARE, curves={f"run {i}": metrics() for i in range(num_runs)})))
    assert page.text.count("run ") >= num_runs
    assert len(page.found("svg")) == 1


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "loss": 0.5}],
        [{"step": 1, "loss": float("nan"), "q_logged": float("inf")}, {"step": 2, "loss": 1.0}],
        [{"step": 1}, {"step": 2, "loss": -1e9}, {"step": 3, "loss": 1e9}],
        [{"step": i, "loss": 1e-6 * (i + 1)} for i in range(20_000)],
    ],
    ids=["none", "one", "not finite", "huge", "long"],
)
def test_any_metrics(lines):
    html = render(replace(BARE, curves={"run": lines}))
    assert ("No metrics were recorded." in html) == (not lines)
    assert len(html) < 100_000


def test_q_plot_draws_one_bin_no_log_and_what_is_not_admitted():
    one_bin = replace(q_plot(bins=1), logged=None, greedy=np.zeros(3, np.int64))
    assert "logged bin" not in Page(render(replace(BARE, q_plot=one_bin))).text
    masked = q_plot()
    masked.q_values[:, 2:5] = -np.inf
    masked.density[:] = 0.0
    assert "logged bin" in Page(render(replace(BARE, q_plot=masked))).text


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_missing_matplotlib_says_what_to_install(report: Report, tmp_path: Path, monkeypatch, missing):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {name}", name=name)
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RunError, match=re.escape(f"{missing}") + r".*pip install 'qtransformer\[plot\]'"):
        write_report(report, tmp_path / "report.html")
    with pytest.raises(RunError, match=r"pip install 'qtransformer\[plot\]'"):
        save_picture(report, tmp_path / "report.png")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(BARE, path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("count", [0, 1, 2, 80])
def test_picture(report: Report, tmp_path: Path, count: int):
    animation = Animation(frames(count, 48, 64), 20, "") if count else None
    save_picture(replace(report, animation=animation), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.format == "PNG"
        assert image.width == (1500 if count else 840)
