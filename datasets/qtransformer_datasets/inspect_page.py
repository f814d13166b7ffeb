"""One page about a dataset: findings, rules, returns and lengths, every element's histogram, tasks, frames.

The only images are those of the log, written into the page. Names and instructions come from strangers: each is
escaped, control characters are shown. The same dataset gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer import page

from .inspect import MAX_ELEMENTS
from .inspect_frames import episode_frames
from .inspect_plots import histogram
from .inspect_print import megabytes, number, share, visible
from .schema import DatasetError, EpisodeDataset
from .steps import Steps, sound_steps

_ENDINGS = {"success": "a success", "failure": "a failure", "other": "success not recorded"}
_SHOWN_EPISODES = 4  # with frames, evenly chosen


def write_page(dataset: EpisodeDataset, description: Mapping[str, Any], path: Path) -> None:
    """Writes the page to `path`, as a whole or not at all.

    Args:
        dataset: the log.
        description: what `inspect.describe` says of it.
        path: of the page.

    Raises:
        DatasetError: it cannot be written there.
    """
    html = render(dataset, description)
    try:
        page.write(html, path)
    except OSError as error:
        raise DatasetError(f"--html {path}: cannot be written ({error.strerror}); choose another file") from error


def render(dataset: EpisodeDataset, description: Mapping[str, Any]) -> str:
    """Returns the page as HTML."""
    steps, findings, behaviours = sound_steps(dataset), description["findings"], description["behaviours"]
    sections = [
        page.section("Findings", _findings(findings)),
        page.section("What this log is", [_overview(description)]),
        page.section("Returns and lengths of the episodes", _outcomes(dataset)),
        *(page.section(f"Text: {_text(name)}", _tasks(text)) for name, text in description["text"].items()),
        *([page.section("Behaviours", [_groups("what acted", behaviours)])] if behaviours else []),
        page.section("Actions", _elements(steps, "actions", description["actions"])),
        *(
            page.section(f"Observations: {_text(name)}", _elements(steps, name, rows))
            for name, rows in description["observations"].items()
        ),
        *(
            page.section(f"Images: {_text(name)}", _images(steps, name, image))
            for name, image in description["images"].items()
        ),
    ]
    counts = [sum(each["severity"] == severity for each in findings) for severity in ("error", "warning")]
    introduction = (
        f'<p class="notice"><b>Errors: {counts[0]}, warnings: {counts[1]}.</b> '
        "An error blocks training unless it is allowed by its code.</p>"
    )
    title = _text(f"Log {Path(description['path']).name}")
    return page.fill(title, introduction, sections, _STYLE, has_images=True)


def _findings(findings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    items = [
        f'<li class="card"><p class="head"><b class="{each["severity"]}">{each["severity"]}</b> '
        f"<b>{_text(each['code'])}</b></p><p>{_text(each['message'])}.</p>"
        f"<p><b>Why:</b> {_text(each['why'])}.</p><p><b>Do:</b> {_text(each['advice'])}.</p>{_places(each)}</li>"
        for each in findings
    ]
    yield '<ul class="list">\n' + "\n".join(items) + "\n</ul>" if items else "<p>No problems found.</p>"


def _places(finding: Mapping[str, Any]) -> str:
    if finding["count"] < 2:
        return ""  # the message names it
    places = "".join(f"<li>{_text(place)}</li>" for place in finding["places"])
    return f"<p>{len(finding['places'])} of {finding['count']:,} places:</p><ul>{places}</ul>"


def _overview(description: Mapping[str, Any]) -> str:
    environment = description["environment"]
    hz = f" at {environment['control_hz']:g} Hz" if environment["control_hz"] else ""
    facts = {
        "path": description["path"],
        "format": description["dialect"],
        "fingerprint": description["fingerprint"],
        "environment": f"{environment['id'] or 'unknown'}{hz}",
        "episodes": f"{description['episodes']:,}",
        "steps": f"{description['steps']:,}",
        "success rate": share(description["success_rate"]),
        **{f"rule: {name}": rule for name, rule in description["rules"].items()},
        **{f"note {index}": note for index, note in enumerate(description["notes"], 1)},
    }
    return page.facts((visible(name), visible(value)) for name, value in facts.items())


def _outcomes(dataset: EpisodeDataset) -> Iterator[str]:
    endings = np.array([{True: "success", False: "failure", None: "other"}[each.success] for each in dataset.episodes])
    yield page.legend(f'<i class="{name}"></i>{text}' for name, text in _ENDINGS.items())
    figures = {
        "return, not discounted": np.array([float(each.rewards.sum()) for each in dataset.episodes]),
        "length in steps": np.array([each.num_steps for each in dataset.episodes], np.float64),
    }
    cards = (
        page.figure(escape(name), histogram({kind: values[endings == kind] for kind in _ENDINGS}, name))
        for name, values in figures.items()
    )
    yield page.grid(cards)


def _tasks(text: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{text['different']:,} different; the most frequent at the first step of an episode:</p>"
    yield _groups("text", text["most_frequent"])


def _groups(head: str, groups: Iterable[Mapping[str, Any]]) -> str:
    rows = ((_text(each["text"]), f"{each['episodes']:,}", share(each["success_rate"])) for each in groups)
    return page.box(page.table((head, "episodes", "success rate"), rows))


def _elements(steps: Steps, key: str, rows: list[Mapping[str, Any]]) -> Iterator[str]:
    values = steps.actions if key == "actions" else steps.states[key]
    if any(row.get("low") is not None for row in rows):
        yield page.legend(['<i class="limit"></i>limit'])
    if len(rows) != values.shape[1]:
        yield f"<p>More than {MAX_ELEMENTS} elements: their values together.</p>"
        values = values.reshape(-1, 1)
    yield page.grid(_element(row, column) for row, column in zip(rows, values.T, strict=True))


def _element(row: Mapping[str, Any], values: np.ndarray) -> str:
    limits = [row[name] for name in ("low", "high") if row.get(name) is not None]
    unit = f" ({row['unit']})" if row["unit"] else ""
    told = f"mean {number(row['mean'])}, 98 % in {number(row['q01'])} to {number(row['q99'])}".replace("-", "−")
    chart = histogram({"bars": values}, f"Histogram of {visible(row['name'])}", limits)
    return page.figure(f"{_text(row['name'] + unit)}<small>{told}</small>", chart)


def _images(steps: Steps, key: str, image: Mapping[str, Any]) -> Iterator[str]:
    shape = " × ".join(map(str, image["shape"]))
    stored = "" if image["stored_bytes"] is None else f", about {megabytes(image['stored_bytes'])}"
    yield f"<p>{image['frames']:,} frames of {shape}, stored as {_text(image['encoding'])}{stored}; "
    yield f"{megabytes(image['decoded_bytes'])} when decoded.</p>"
    chosen = np.unique(np.linspace(0, len(steps.episodes) - 1, _SHOWN_EPISODES).round().astype(int))
    for episode in (steps.episodes[index] for index in chosen.tolist() if steps.episodes):
        ending = {True: "a success", False: "a failure", None: "success not recorded"}[episode.success]
        yield f"<h3>{_text(episode.source)}: {episode.num_steps} steps, {ending}</h3>"
        frames = episode_frames(episode.observations[key])
        yield page.grid(page.figure(f"row {row}", picture) for row, picture in frames)


def _text(text: str) -> str:
    return escape(visible(text))


_STYLE = """
$base
$h1
$h2
$h3
$p
small,figcaption,dt,.legend,.none{color:var(--muted)}
$card
$notice
.error{color:var(--series-4)}
.warning{color:var(--series-1)}
.grid,.list{display:grid;gap:16px}
$grid
.list{list-style:none;padding:0;margin:0}
.grid>*,.list>*{min-width:0}
.list p{margin:0 0 4px;font-size:.92rem}
.list ul{margin:0;font-size:.85rem}
$scroll
$svg
svg text{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}
img{display:block;width:100%;max-width:384px;height:auto;image-rendering:pixelated}
$rule
.limit{stroke:var(--series-1);stroke-width:1.6;stroke-dasharray:5 4;fill:none}
path.bars{fill:var(--series-0)}
path.success{fill:var(--series-2)}
path.failure{fill:var(--series-4)}
path.other{fill:var(--bars)}
$legend
.legend i{display:inline-block;vertical-align:middle;margin:-2px 8px 0 0;width:14px;height:14px}
i.success{background:var(--series-2)}
i.failure{background:var(--series-4)}
i.other{background:var(--bars)}
i.limit{width:0;border-left:2px dashed var(--series-1)}
$figcaption
$small
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}
$th
$rows
$facts
dd{margin:0}
$narrow
"""
