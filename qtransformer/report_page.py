"""The page of the report: runs side by side, from what they reached down to how each of them was made.

It shows what `report` gathered and computes nothing but means over trainings. What is wide scrolls in a box of its own.
It must not know torch or any file layout.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from qtransformer import page
from qtransformer.compare_report import judgement, verdict
from qtransformer.comparison_pairs import Comparison
from qtransformer.config import writing
from qtransformer.explain import NO_VALUES, Explanation, Moment
from qtransformer.explain_page import bins_figures, bins_legend, check_parts
from qtransformer.explain_plots import STYLE as FIGURES
from qtransformer.outcomes import wilson_interval
from qtransformer.report import Report
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
from qtransformer.report_runs import provenance_parts, settings_parts, trouble_parts
from qtransformer.run_records import Line, RunRecord

_METRICS = {  # name in metrics.jsonl -> caption; those that no run has are left out
    "loss": "Loss",
    "squared_error": "Squared error of Q",
    "cross_entropy": "Cross-entropy of the density",
    "conservative": "Conservative term",
    "gradient_norm": "Norm of the gradients, before clipping",
    "greedy_entropy": "Entropy of the chosen bins, bits a token",
}
_MAY_BE_LOG = ("loss", "squared_error", "conservative", "gradient_norm")
_VALUES = {
    "q_logged": Series("Q of the logged action", "series-0"),
    "q_greedy": Series("Q of the policy's action", "series-1"),
    "target": Series("target", "series-2", "7 4"),
    "monte_carlo": Series("Monte-Carlo return of the log", "muted", "2 3"),
}
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
        page.section("The course of training", _course(report, series)),
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
        cells = [_named(series[method.name]), f"<b>{percent(method.rate)}</b>", spread((low, high))]
        cells.append(f"{method.outcomes.sum():.0f} of {method.outcomes.size}")
        rows.append([*cells, *([", ".join(map(percent, trainings))] if several else [])])
        rates.append(Rate(series[method.name], method.rate, (low, min(1.0, high)), trainings))
    told = "; ".join(f"{each.series.label} {percent(each.rate)} ({spread(each.interval)})" for each in rates)
    chart = page.figure("Success rate with its 95 % interval", rate_chart(rates, f"Success rates: {told}"))
    yield f'<div class="pair">{_box(page.table(heads, rows))}{chart}</div>'
    if report.comparison:
        yield from _pairs(report.comparison)


def _pairs(comparison: Comparison) -> Iterator[str]:
    yield f"<h3>Which is better</h3><p>Verdicts from the same episodes: {escape(judgement(comparison))}</p>"
    rows = []
    for pair in comparison.pairs:
        low, high = pair.interval
        said = escape(verdict(pair))
        points = f"{100 * pair.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")
        more = "more trainings" if pair.episodes_needed is None else f"{pair.episodes_needed:,}"
        p = pair.adjusted_p_value
        cells = (f"{escape(pair.a)} less {escape(pair.b)}", points, f"{p:.2g}" if p >= 0.001 else "&lt; 0.001", more)
        rows.append((*cells, f"<b>{said}</b>" if pair.better else said))
    needed = f"episodes for {comparison.points:g} points"
    yield _box(page.table(("pair", "points (95 % interval)", "p", needed, "verdict"), rows), "words")


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


# --- training ---------------------------------------------------------------------------------------------------------


def _course(report: Report, series: Mapping[str, Series]) -> Iterator[str]:
    named = [(name, run) for name, runs in report.methods.items() for run in runs]
    rows = [_run_cells(run, series[name]) for name, run in named]
    heads = ["run", "updates", "loss", "Q logged", "returned", "updates/s", "waits for data"]
    if any(run.evaluations() for _, run in named):
        heads += ["success while training: last", "best"]
        rows = [(*cells, *_evaluated_cells(run)) for cells, (_, run) in zip(rows, named, strict=True)]
    yield _box(page.table(heads, rows))
    lines = {name: [run.lines for run in runs] for name, runs in report.methods.items()}
    figures = list(_metric_figures(report, series, lines))
    if figures:
        if len(report.methods) > 1:
            yield page.legend(_mark(series[name]) for name in report.methods)
        yield page.grid(figures)
    with_values = [name for name, runs in lines.items() if any(curves_of(_VALUES["q_logged"], runs, "q_logged"))]
    if with_values:
        yield "<h3>Q against Monte-Carlo returns</h3>"
        yield page.legend(map(_mark, _VALUES.values()))
        yield page.grid(_value_figure(name, lines[name]) for name in with_values)


def _run_cells(run: RunRecord, series: Series) -> tuple[str, ...]:
    steps, rate, waits = run.config.steps, run.last("updates_per_second"), run.last("data_share")
    done = f"{run.step:,}" if run.step >= steps else f"{run.step:,} of {steps:,}"
    left = f"<small>{_duration((steps - run.step) / rate)} to go</small>" if rate and run.step < steps else ""
    name = f"{_named(series)}<small>seed {run.config.seed}, {escape(run.config.algorithm.replace('_', ' '))}</small>"
    figures = (_figure(run.last(each)) for each in ("loss", "q_logged", "monte_carlo", "updates_per_second"))
    return name, done + left, *figures, "–" if waits is None else f"{waits:.1%}"


def _evaluated_cells(run: RunRecord) -> tuple[str, str]:
    """Returns the last evaluation while training, and the best one, the first of several."""
    played = run.evaluations()
    if not played:
        return "–", "–"
    return _evaluated(played[-1], run), _evaluated(max(played, key=lambda line: line["success_rate"]), run)


def _evaluated(line: Line, run: RunRecord) -> str:
    """Returns the success rate of an evaluation while training, with its interval and the update it was made at."""
    interval = _interval(line, run)
    return f"{percent(float(line['success_rate']))}<small>{spread(interval)}, update {line['step']:,}</small>"


def _interval(line: Line, run: RunRecord) -> tuple[float, float]:
    episodes = int(line.get("evaluated_episodes", run.config.following.evaluate_episodes))
    return wilson_interval(round(line["success_rate"] * episodes), episodes)


def _metric_figures(
    report: Report, series: Mapping[str, Series], lines: Mapping[str, Sequence[Sequence[Line]]]
) -> Iterator[str]:
    evaluated = [curve for name, runs in report.methods.items() for curve in _evaluated_curves(series[name], runs)]
    if evaluated:
        yield page.figure("Success in evaluations while training", curve_chart(evaluated, "Success over updates"))
    for metric, caption in _METRICS.items():
        curves = [curve for name, runs in lines.items() for curve in curves_of(series[name], runs, metric)]
        if curves:
            labels = ", ".join(lines)
            chart = curve_chart(curves, f"{caption} over updates of {labels}", may_be_log=metric in _MAY_BE_LOG)
            yield page.figure(caption, chart)


def _evaluated_curves(series: Series, runs: Sequence[RunRecord]) -> list[Curve]:
    """Returns success over updates; of a single training with its interval."""
    curves = curves_of(series, [run.evaluations() for run in runs], "success_rate")
    if len(runs) > 1 or not curves:
        return curves
    ends = np.array([_interval(line, runs[0]) for line in runs[0].evaluations()])
    (curve,) = curves
    if len(ends) != len(curve.steps):  # thinned
        return curves
    return [Curve(series, curve.steps, curve.values, band=(ends[:, 0], ends[:, 1]))]


def _value_figure(name: str, runs: Sequence[Sequence[Line]]) -> str:
    curves = [curves_of(series, runs, metric)[-1:] for metric, series in _VALUES.items()]
    chart = curve_chart([curve for each in curves for curve in each], f"Q, targets and returns over updates of {name}")
    return page.figure(escape(name), chart)


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


# --- small parts ------------------------------------------------------------------------------------------------------


def _named(series: Series) -> str:
    return f'<i class="blob" style="background:var(--{series.colour})"></i>{escape(series.label)}'


def _mark(series: Series) -> str:
    line = f'<path class="curve" {series.stroke} d="M0 4H28"/>'
    return f'<svg viewBox="0 0 28 8" aria-hidden="true">{line}</svg>{escape(series.label)}'


def _box(table: str, kind: str = "") -> str:
    return f'<div class="card scroll {kind}" tabindex="0">{table}</div>'


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"


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
th:first-child,td:first-child,.words td:last-child,.words th:last-child,.differs td,.differs th{text-align:left}
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
