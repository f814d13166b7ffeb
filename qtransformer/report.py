"""One page about a comparison: success rates, learning curves, Q-values of one state, a rollout, and how it was made.

Pure functions of plain data. Figures are inline SVG, the rollout is a WebP inside the page. It must not know torch or
any environment.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from qtransformer import page
from qtransformer import report_plots as plots
from qtransformer.config import RunError
from qtransformer.files import write_durably
from qtransformer.report_plots import LOSSES, Q_SERIES, Curves, QPlot, Row, Series

__all__ = ["Animation", "Curves", "QPlot", "Report", "Row", "render", "save_picture", "write_report"]

NO_ANIMATION = (
    "No animation: nothing could be drawn on this machine. Install the packages libegl1 libgl1 libgl1-mesa-dri "
    "libegl-mesa0, set MUJOCO_GL=egl, and run the command again."
)
_MAX_ANIMATION_BYTES = 1_100_000  # 1.5 MB as base64
_MAX_FRAMES = 120
# Width in pixels and WebP quality, tried in this order until the animation is small enough.
_ENCODINGS = ((480, 80), (320, 50), (160, 20))


@dataclass(frozen=True)
class Animation:
    """A rollout: uint8 frames, (height, width, 3), played `fps` a second."""

    frames: Sequence[np.ndarray]
    fps: int | float
    caption: str

    def __post_init__(self) -> None:
        shapes = {frame.shape for frame in self.frames}
        is_rgb = len(shapes) == 1 and len(next(iter(shapes))) == 3 and next(iter(shapes))[2] == 3
        if not is_rgb or any(frame.dtype != np.uint8 for frame in self.frames):
            raise RunError(
                f"frames must be uint8 of one shape (height, width, 3), got {sorted(shapes)}; pass RGB renders"
            )
        if self.fps <= 0:
            raise RunError(f"fps ({self.fps}) must be above 0; pass the control rate of the environment in Hz")


@dataclass(frozen=True)
class Report:
    """All that the page shows. Without `q_plot` its section is left out; without `animation` the page says why."""

    title: str
    introduction: str
    rows: Sequence[Row]
    curves: Curves
    q_plot: QPlot | None
    animation: Animation | None
    facts: Mapping[str, str]


def write_report(report: Report, path: Path) -> None:
    """Writes the page to `path` as a whole or not at all."""
    page.write(render(report), path)


def save_picture(report: Report, path: Path) -> None:
    """Writes a PNG: the success rates, and beside them four frames of the rollout if there is one."""
    frames, captions = [], []
    if report.animation is not None:
        count = len(report.animation.frames)
        for index in dict.fromkeys(np.linspace(0, count - 1, 4).round().astype(int).tolist()):
            frames.append(report.animation.frames[index])
            captions.append(f"{index / report.animation.fps:.1f} s")
    picture = plots.comparison_png(report.rows, plots.all_series(report.rows, report.curves), frames, captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, lambda temporary: temporary.write_bytes(picture))


def render(report: Report) -> str:
    """Returns the page as HTML.

    Raises:
        RunError: matplotlib is not installed.
    """
    series = plots.all_series(report.rows, report.curves)
    sections = [
        page.section("Success rate", _success(report.rows, series)),
        page.section("Training", _training(report.curves, series)),
        page.section("Q-values of one logged state", _q_values(report.q_plot) if report.q_plot else ()),
        page.section("A rollout", _rollout(report.animation)),
        page.section("How this was made", [page.facts(report.facts.items())] if report.facts else ()),
    ]
    introduction = f'<p class="introduction">{escape(report.introduction)}</p>'
    return page.fill(escape(report.title), introduction, sections, _STYLE, has_images=True)


def _success(rows: Sequence[Row], series: Mapping[str, Series]) -> Iterator[str]:
    if not rows:
        yield '<p class="muted">Nothing was evaluated.</p>'
        return
    heads = ("Policy", "Success", "95 % interval", "Episodes", "Mean length")
    table = page.table(heads, (_cells(row, series[row.name]) for row in rows))
    yield f'<div class="pair"><div class="scroll card" tabindex="0">{table}</div>'
    yield page.figure("Success rate with its 95 % interval", plots.interval_chart(rows, series)) + "</div>"


def _cells(row: Row, series: Series) -> tuple[str, ...]:
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return (
        f'<i class="dot" style="background:var(--{series.colour})"></i>{escape(row.label)}{note}',
        f"<b>{plots.percent(row.rate)}</b>",
        plots.spread(row),
        f"{row.successes} of {row.episodes}",
        f"{row.mean_length:.0f} steps",
    )


def _training(curves: Curves, series: Mapping[str, Series]) -> Iterator[str]:
    losses = [key for key in LOSSES if any(plots.has_metric(run, key) for run in curves.values())]
    if losses:
        yield _legend(series[name] for name in curves)
        yield _panels((key.replace("_", " "), _loss_chart(curves, series, key)) for key in losses)
    with_q = [name for name, run in curves.items() if any(plots.has_metric(run, key) for key in Q_SERIES)]
    if with_q:
        yield _legend(Q_SERIES.values())
        yield _panels((series[name].label, _q_chart(curves[name], series[name].label)) for name in with_q)
    if not losses and not with_q:
        yield '<p class="muted">No metrics were recorded.</p>'


def _loss_chart(curves: Curves, series: Mapping[str, Series], key: str) -> str:
    lines = [(series[name], run, key) for name, run in curves.items() if plots.has_metric(run, key)]
    labels = ", ".join(each.label for each, *_ in lines)
    return plots.line_chart(lines, f"{key} over training steps of {labels}", may_be_log=True)


def _q_chart(run: Sequence[plots.Metrics], label: str) -> str:
    lines = [(series, run, key) for key, series in Q_SERIES.items()]
    return plots.line_chart(lines, f"Q-values, targets and returns over training steps of {label}", may_be_log=False)


def _q_values(plot: QPlot) -> Iterator[str]:
    yield f"<p>{escape(plot.caption)}</p>"
    keys = {"line": "Q", "bar": "density of the log", "greedy": "greedy bin", "logged": "logged bin"}
    if plot.logged is None:
        del keys["logged"]
    yield page.legend(f'<i class="{kind}"></i>{text}' for kind, text in keys.items())
    yield _panels(plots.q_panels(plot))


def _rollout(animation: Animation | None) -> Iterator[str]:
    if animation is None:
        yield f'<p class="muted">{NO_ANIMATION}</p>'
        return
    data = base64.b64encode(_encoded(animation)).decode()
    image = f'<img src="data:image/webp;base64,{data}" alt="{escape(animation.caption)}">'
    yield f'<figure class="card rollout">{image}<figcaption>{escape(animation.caption)}</figcaption></figure>'


def _encoded(animation: Animation) -> bytes:
    """Returns an animated WebP that plays in real time, in the best encoding that is small enough."""
    with plots.plotting():
        from PIL import Image

        stride = -(-len(animation.frames) // _MAX_FRAMES)
        frames = [Image.fromarray(np.ascontiguousarray(frame)) for frame in animation.frames[::stride]]
    options = {"save_all": True, "duration": round(1000 * stride / animation.fps), "loop": 0, "method": 3}
    data = b""
    for width, quality in _ENCODINGS:
        scale = min(1.0, width / frames[0].width)
        size = (max(1, round(frames[0].width * scale)), max(1, round(frames[0].height * scale)))
        first, *rest = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
        buffer = io.BytesIO()
        first.save(buffer, "WEBP", append_images=rest, quality=quality, **options)
        data = buffer.getvalue()
        if len(data) <= _MAX_ANIMATION_BYTES:
            break
    return data


def _panels(panels: Iterable[tuple[str, str]]) -> str:
    return page.grid(page.figure(escape(title), svg) for title, svg in panels)


def _legend(series: Iterable[Series]) -> str:
    return page.legend(
        f'<i class="line" style="border-top:3px {each.line} var(--{each.colour})"></i>{escape(each.label)}'
        for each in series
    )


_STYLE = """
$base
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.2;margin:0 0 12px;letter-spacing:-.01em}
$h2
$p
.introduction{font-size:1.05rem}
.muted,small,figcaption,dt{color:var(--muted)}
$card
.pair,.grid{display:grid;gap:16px}
$grid
@media (min-width:1000px){.pair{grid-template-columns:minmax(0,8fr) minmax(0,5fr)}}
.pair>*,.grid>*{min-width:0}
.scroll{overflow-x:auto;padding:4px 0}
$table
th,td{padding:10px 16px;text-align:right;white-space:nowrap;vertical-align:top}
$th
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:11rem;padding-left:34px}
$rows
small{display:block}
$figcaption
$svg
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit!important;font-variant-numeric:tabular-nums}
$legend
.grid+.legend{margin-top:24px}
.legend i,.dot{display:inline-block;vertical-align:middle;margin:-2px 8px 0 0}
.dot{width:10px;height:10px;border-radius:50%;margin-left:-18px}
.line{width:24px;border-top:3px solid var(--series-0)}
.bar{width:14px;height:14px;background:var(--bars)}
.greedy{width:10px;height:10px;border-radius:50%;background:var(--series-1)}
.logged{width:14px;height:14px;border-radius:50%;border:1.5px solid var(--ink)}
.rollout{max-width:514px}
.rollout img{display:block;width:100%;height:auto;border-radius:6px;margin-bottom:8px}
$facts
dd{margin:0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88rem;white-space:pre-wrap}
@media (max-width:600px){th,td{padding:10px 8px}dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:10px}}
"""
