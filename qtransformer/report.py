"""One page about a comparison: success rates, learning curves, Q-values of one state, a rollout, and how it was made.

Pure functions of plain data. The page is a single file that fetches nothing: figures are inline SVG, the rollout is a
WebP inside the page, and its content policy forbids everything else. It must not know torch or any environment.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from qtransformer import report_plots as plots
from qtransformer.config import RunError
from qtransformer.report_plots import LOSSES, PALETTE, Q_SERIES, Curves, QPlot, Row, Series

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
    _write_atomically(path, render(report).encode())


def save_picture(report: Report, path: Path) -> None:
    """Writes a PNG: the success rates, and beside them four frames of the rollout if there is one."""
    frames, captions = [], []
    if report.animation is not None:
        count = len(report.animation.frames)
        for index in dict.fromkeys(np.linspace(0, count - 1, 4).round().astype(int).tolist()):
            frames.append(report.animation.frames[index])
            captions.append(f"{index / report.animation.fps:.1f} s")
    _write_atomically(
        path, plots.comparison_png(report.rows, plots.all_series(report.rows, report.curves), frames, captions)
    )


def render(report: Report) -> str:
    """Returns the page as HTML.

    Raises:
        RunError: matplotlib is not installed.
    """
    series = plots.all_series(report.rows, report.curves)
    sections = [
        _section("Success rate", _success(report.rows, series)),
        _section("Training", _training(report.curves, series)),
        _section("Q-values of one logged state", _q_values(report.q_plot) if report.q_plot else ()),
        _section("A rollout", _rollout(report.animation)),
        _section("How this was made", _facts(report.facts)),
    ]
    return _PAGE.format(
        title=escape(report.title),
        introduction=escape(report.introduction),
        style=_variables() + _STYLE,
        sections="\n".join(filter(None, sections)),
    )


def _section(title: str, parts: Iterable[str]) -> str:
    """Returns a section with its heading; nothing if it has no content."""
    content = "\n".join(parts)
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _success(rows: Sequence[Row], series: Mapping[str, Series]) -> Iterator[str]:
    if not rows:
        yield '<p class="muted">Nothing was evaluated.</p>'
        return
    head = "".join(f"<th>{name}</th>" for name in ("Policy", "Success", "95 % interval", "Episodes", "Mean length"))
    body = "\n".join(_table_row(row, series[row.name]) for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    yield f'<div class="pair"><div class="scroll card" tabindex="0">{table}</div>'
    yield _figure("Success rate with its 95 % interval", plots.interval_chart(rows, series)) + "</div>"


def _table_row(row: Row, series: Series) -> str:
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    cells = (
        f'<i class="dot" style="background:var(--{series.colour})"></i>{escape(row.label)}{note}',
        f"<b>{plots.percent(row.rate)}</b>",
        plots.spread(row),
        f"{row.successes} of {row.episodes}",
        f"{row.mean_length:.0f} steps",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _training(curves: Curves, series: Mapping[str, Series]) -> Iterator[str]:
    losses = [key for key in LOSSES if any(plots.has_metric(run, key) for run in curves.values())]
    if losses:
        yield _legend(series[name] for name in curves)
        yield _grid((key.replace("_", " "), _loss_chart(curves, series, key)) for key in losses)
    with_q = [name for name, run in curves.items() if any(plots.has_metric(run, key) for key in Q_SERIES)]
    if with_q:
        yield _legend(Q_SERIES.values())
        yield _grid((series[name].label, _q_chart(curves[name], series[name].label)) for name in with_q)
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
    yield _legend_of(f'<i class="{kind}"></i>{text}' for kind, text in keys.items())
    yield _grid(plots.q_panels(plot))


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


def _facts(facts: Mapping[str, str]) -> Iterator[str]:
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    if rows:
        yield f'<dl class="card">\n{rows}\n</dl>'


def _figure(title: str, svg: str) -> str:
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def _grid(panels: Iterable[tuple[str, str]]) -> str:
    return '<div class="grid">\n' + "\n".join(_figure(title, svg) for title, svg in panels) + "\n</div>"


def _legend(series: Iterable[Series]) -> str:
    return _legend_of(
        f'<i class="line" style="border-top:3px {each.line} var(--{each.colour})"></i>{escape(each.label)}'
        for each in series
    )


def _legend_of(items: Iterable[str]) -> str:
    return '<p class="legend">' + " ".join(f"<span>{item}</span>" for item in items) + "</p>"


def _variables() -> str:
    """Returns the palette as CSS variables, light by default and dark where the reader's system is."""
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in PALETTE.items()) for index in (0, 1))
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="introduction">{introduction}</p>
{sections}
</main>
</body>
</html>
"""

_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
 overflow-wrap:anywhere}
main{max-width:1200px;margin:0 auto;padding:40px 16px 64px}
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.2;margin:0 0 12px;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:48px 0 12px}
p{margin:0 0 12px;max-width:75ch}
.introduction{font-size:1.05rem}
.muted,small,figcaption,dt{color:var(--muted)}
.card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 16px;margin:0}
.pair,.grid{display:grid;gap:16px}
.grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,265px),1fr))}
@media (min-width:1000px){.pair{grid-template-columns:minmax(0,8fr) minmax(0,5fr)}}
.pair>*,.grid>*{min-width:0}
.scroll{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;overflow-wrap:normal;font-variant-numeric:tabular-nums}
th,td{padding:10px 16px;text-align:right;white-space:nowrap;vertical-align:top}
th{font-size:.85rem;font-weight:500;color:var(--muted)}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:11rem;padding-left:34px}
tbody tr{border-top:1px solid var(--rule)}
small{display:block}
figcaption{font-size:.9rem;margin-bottom:6px}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit!important;font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.9rem;max-width:none}
.grid+.legend{margin-top:24px}
.legend i,.dot{display:inline-block;vertical-align:middle;margin:-2px 8px 0 0}
.dot{width:10px;height:10px;border-radius:50%;margin-left:-18px}
.line{width:24px;border-top:3px solid var(--series-0)}
.bar{width:14px;height:14px;background:var(--bars)}
.greedy{width:10px;height:10px;border-radius:50%;background:var(--series-1)}
.logged{width:14px;height:14px;border-radius:50%;border:1.5px solid var(--ink)}
.rollout{max-width:514px}
.rollout img{display:block;width:100%;height:auto;border-radius:6px;margin-bottom:8px}
dl{display:grid;grid-template-columns:minmax(0,max-content) minmax(0,1fr);gap:8px 24px}
dd{margin:0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88rem;white-space:pre-wrap}
@media (max-width:600px){th,td{padding:10px 8px}dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:10px}}
"""
