"""The page of the report: runs side by side, from what they reached down to how each of them was made.

It shows what `report` gathered and computes nothing but means over trainings. What is wide scrolls in a box of its own.
It must not know torch or any file layout.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path

from qtransformer import page
from qtransformer.compare_report import judgement
from qtransformer.compare_sources import Gathered
from qtransformer.comparison_pairs import Comparison
from qtransformer.config import writing
from qtransformer.explain import NO_VALUES, Explanation, Moment
from qtransformer.explain_page import bins_figures, bins_legend, check_parts
from qtransformer.explain_plots import STYLE as FIGURES
from qtransformer.report import Report
from qtransformer.report_course import course_parts
from qtransformer.report_plots import Rate, Series, named_html, percent, rate_chart, series_of, spread
from qtransformer.report_runs import provenance_parts, settings_parts, trouble_parts

_NOT_EVALUATED = (
    "Nothing was evaluated after training: --episodes plays each run, --evaluations reads what was played before."
)
_FIRST_ALONE = "Of several trainings of a method, the first is shown."


def write_page(report: Report, path: Path, title: str, text: str) -> None:
    """Writes the page to `path`, as a whole or not at all.

    Raises:
        RunError: it cannot be written there.
    """
    html = render(report, title, text)
    with writing("--out", path):
        page.write(html, path)


def render(report: Report, title: str, text: str = "") -> str:
    """Returns the page as HTML; `text` is a paragraph below its title."""
    series = series_of(report.names)
    introduction = [f'<p class="lead">{escape(text)}</p>'] if text else []
    introduction += [f'<p class="notice">{escape(note)}</p>' for note in report.notes]
    sections = [
        page.section("Success", _success(report, series)),
        page.section("Acting", _acting(report)),
        page.section("Which is better", _pairs(report.comparison) if report.comparison else ()),
        page.section("The course of training", course_parts(report.methods, series)),
        page.section("Alarms and interventions", trouble_parts(report.methods)),
        page.section("Values against what the log returned", _values(report)),
        page.section("Every bin at one logged step", _bins(report)),
        page.section("Settings", settings_parts(report.methods)),
        page.section("How the runs were made", provenance_parts(report.methods)),
    ]
    return page.fill(escape(title), "\n".join(introduction), sections, _STYLE, has_images=True)


# --- success ----------------------------------------------------------------------------------------------------------


def _success(report: Report, series: Mapping[str, Series]) -> Iterator[str]:
    gathered = report.success
    if gathered is None:
        yield f"<p>{_NOT_EVALUATED}</p>"
        return
    yield f"<p>{escape(gathered.title())}. Success: {escape(gathered.success_rule)}.</p>"
    several = any(len(each.trainings) > 1 for each in gathered.methods)
    heads = ["method", "success", "95 % interval", "episodes", *(["each training"] if several else [])]
    rows, rates = [], []
    for method in gathered.methods:
        trainings = tuple(float(row.mean()) for row in method.outcomes) if len(method.trainings) > 1 else ()
        low, high = method.interval()
        cells = [named_html(series[method.name]), f"<b>{percent(method.rate)}</b>", spread((low, high))]
        cells.append(f"{method.outcomes.sum():.0f} of {method.outcomes.size}")
        rows.append([*cells, *([", ".join(map(percent, trainings))] if several else [])])
        rates.append(Rate(series[method.name], method.rate, (low, min(1.0, high)), trainings))
    told = "; ".join(f"{each.series.label} {percent(each.rate)} ({spread(each.interval)})" for each in rates)
    chart = page.figure("Success rate with its 95 % interval", rate_chart(rates, f"Success rates: {told}"))
    yield f'<div class="pair">{page.box(page.table(heads, rows))}{chart}</div>'
    if len({*gathered.tasks}) > 1:
        heads = ["task", "episodes", *(named_html(series[each.name]) for each in gathered.methods)]
        yield page.box(page.table(heads, _by_task(gathered)))


def _by_task(gathered: Gathered) -> Iterator[list[str]]:
    """Yields of each task its episodes, and success with its interval of each method."""
    for task in sorted({each for each in gathered.tasks if each is not None}):
        places = [place for place, each in enumerate(gathered.tasks) if each == task]
        methods = [replace(each, outcomes=each.outcomes[:, places]) for each in gathered.methods]
        cells = [f"<b>{percent(each.rate)}</b>" for each in methods]
        if len(places) > 1:  # of one episode, several trainings have no interval
            cells = [f"{cell} ({spread(each.interval())})" for cell, each in zip(cells, methods, strict=True)]
        yield [escape(task), str(len(places)), *cells]


def _pairs(comparison: Comparison) -> Iterator[str]:
    yield f"<p>Verdicts from the same episodes: {escape(judgement(comparison))}</p>"
    rows = []
    for pair in comparison.pairs:
        low, high = pair.interval
        points = f"{100 * pair.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")
        more = "more trainings" if pair.episodes_needed is None else f"{pair.episodes_needed:,}"
        better = f"<b>{escape(pair.better)}</b>" if pair.better else "cannot be told"
        chance = f"{pair.adjusted_p_value:.2g}" if pair.adjusted_p_value >= 0.001 else "&lt; 0.001"
        rows.append((f"{escape(pair.a)} less {escape(pair.b)}", points, chance, better, more))
    needed = f"episodes that would show {comparison.points:g} points"
    yield page.box(page.table(("pair", "points (95 % interval)", "p", "better", needed), rows), "words")


# --- clips ------------------------------------------------------------------------------------------------------------


def _acting(report: Report) -> Iterator[str]:
    figures = []
    for name, clips in report.clips.items():
        for clip in clips:
            data, words = base64.b64encode(clip.data).decode(), escape(f"{name}, {clip.caption}")
            image = f'<img src="data:image/webp;base64,{data}" alt="{words}">'
            figures.append(page.figure(f"<b>{escape(name)}</b><small>{escape(clip.caption)}</small>", image))
    if figures:
        yield page.grid(figures)


# --- values on the log ------------------------------------------------------------------------------------------------


def _values(report: Report) -> Iterator[str]:
    if any(len(runs) > 1 for runs in report.methods.values()) and report.explanations:
        yield f"<p>{_FIRST_ALONE}</p>"
    for name, explanation in report.explanations.items():
        yield f"<h3>{escape(name)}</h3>"
        if not explanation.checks:
            yield f"<p>{NO_VALUES}</p>"
        for check in explanation.checks:
            ringing = [alarm for alarm in check.alarms if alarm.state == "ringing"]
            asked = sum(alarm.state != "not asked" for alarm in check.alarms)
            yield f"<p><b>{len(ringing)} of {asked} over-estimation alarms ring</b> on the episodes {check.origin}.</p>"
            yield from check_parts(check)


def _bins(report: Report) -> Iterator[str]:
    for name, explanation in report.explanations.items():
        moment = _middle(explanation)
        where = f"{explanation.episode.source}, step {moment.step} of {len(explanation.episode.returns)}"
        yield f"<h3>{escape(name)}</h3><p>{escape(where)}; the axis names the actions that bins stand for.</p>"
        yield bins_legend(moment.tokens)
        yield f'<div class="bins">{page.grid(bins_figures(moment, explanation.token_names))}</div>'


def _middle(explanation: Explanation) -> Moment:
    moments = explanation.episode.moments
    return moments[len(moments) // 2]


_STYLE = (
    """
$base
$h1
$h2
$h3
$p
.lead{font-size:1.05rem}
small,figcaption,dt,.legend{color:var(--muted)}
$card
$notice
.notice+h2{margin-top:32px}
.grid,.pair,.alarms{display:grid;gap:16px}
.grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));margin:0 0 16px}
@media (min-width:1000px){.pair{grid-template-columns:minmax(0,7fr) minmax(0,5fr)}}
.bins .grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,235px),1fr))}
.grid>*,.pair>*,.alarms>*{min-width:0}
.pair{align-items:start;margin-bottom:16px}
$alarms
.alarms{margin-bottom:12px}
.told{margin:0 0 12px;padding-left:20px}
$scroll
.scroll{margin-bottom:16px}
$svg
"""
    + FIGURES
    + """
svg .name{font-size:13px;fill:var(--ink)}
.faint{stroke-opacity:.35;stroke-width:1.3!important}
.band{fill-opacity:.18}
.wide{stroke-width:8;stroke-opacity:.35;stroke-linecap:round;fill:none}
.mark{stroke-width:2;fill:none}
$rule
img{display:block;width:100%;max-width:400px;height:auto;border-radius:6px}
$legend
.legend i{display:inline-block;vertical-align:middle;margin:-2px 8px 0 0}
.legend svg{display:inline-block;vertical-align:middle;width:28px;margin-right:8px}
.blob{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:8px}
$figcaption
$small
$table
th,td{padding:7px 10px;text-align:right;white-space:nowrap;vertical-align:top}
th:first-child,td:first-child,.differs td,.differs th{text-align:left}
.words td:first-child,.words th:last-child{white-space:normal;min-width:9rem}
$th
$rows
.differs td+td{font-weight:600;white-space:normal;min-width:9rem}
details{margin-bottom:12px}
summary{cursor:pointer;margin-bottom:8px}
$facts
dl.card{margin-bottom:16px}
dd{margin:0;white-space:pre-wrap}
$narrow
"""
)
