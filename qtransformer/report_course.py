"""The part of the report's page that shows the course of training: a table of the runs, and curves over their updates.

It must not know torch or any file layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from qtransformer import page
from qtransformer.outcomes import wilson_interval
from qtransformer.report_plots import Curve, Series, curve_chart, curves_of, named_html, percent, spread
from qtransformer.run_records import Line, Methods, RunRecord

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


def course_parts(methods: Methods, series: Mapping[str, Series]) -> Iterator[str]:
    """Yields a table of the runs, and their metrics over the updates; `series` says how each method is drawn."""
    named = [(name, run) for name, runs in methods.items() for run in runs]
    rows = [_run_cells(run, series[name]) for name, run in named]
    heads = ["run", "updates", "loss", "Q logged", "returned", "updates/s", "waits for data"]
    if any(run.evaluations() for _, run in named):
        heads += ["success while training: last", "best"]
        rows = [(*cells, *_evaluated_cells(run)) for cells, (_, run) in zip(rows, named, strict=True)]
    yield page.box(page.table(heads, rows))
    lines = {name: [run.lines for run in runs] for name, runs in methods.items()}
    figures = list(_metric_figures(methods, series, lines))
    if figures:
        if len(methods) > 1:
            yield page.legend(_mark(series[name]) for name in methods)
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
    name = (
        f"{named_html(series)}<small>seed {run.config.seed}, {escape(run.config.algorithm.replace('_', ' '))}</small>"
    )
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
    methods: Methods, series: Mapping[str, Series], lines: Mapping[str, Sequence[Sequence[Line]]]
) -> Iterator[str]:
    evaluated = [curve for name, runs in methods.items() for curve in _evaluated_curves(series[name], runs)]
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


def _mark(series: Series) -> str:
    line = f'<path class="curve" {series.stroke} d="M0 4H28"/>'
    return f'<svg viewBox="0 0 28 8" aria-hidden="true">{line}</svg>{escape(series.label)}'


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
