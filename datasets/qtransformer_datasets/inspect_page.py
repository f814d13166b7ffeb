"""One page about a dataset: findings, rules, returns and lengths, every element's histogram, tasks, frames.

A single file that fetches nothing and runs no script; the only images are those of the log, written into it. Names and
instructions come from strangers: each is escaped, control characters are shown. The same dataset gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .inspect import MAX_ELEMENTS
from .inspect_frames import episode_frames
from .inspect_plots import histogram
from .inspect_print import megabytes, number, share, visible
from .inspect_style import fill_page
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
    page, temporary = render(dataset, description), path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(page, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"--html {path}: cannot be written ({error.strerror}); choose another file") from error


def render(dataset: EpisodeDataset, description: Mapping[str, Any]) -> str:
    """Returns the page as HTML."""
    steps, findings = sound_steps(dataset), description["findings"]
    sections = [
        _section("Findings", _findings(findings)),
        _section("What this log is", [_facts(_overview(description))]),
        _section("Returns and lengths of the episodes", _outcomes(dataset)),
        *(_section(f"Text: {_text(name)}", _tasks(text)) for name, text in description["text"].items()),
        _section("Actions", _elements(steps, "actions", description["actions"])),
        *(
            _section(f"Observations: {_text(name)}", _elements(steps, name, rows))
            for name, rows in description["observations"].items()
        ),
        *(
            _section(f"Images: {_text(name)}", _images(steps, name, image))
            for name, image in description["images"].items()
        ),
    ]
    counts = [sum(each["severity"] == severity for each in findings) for severity in ("error", "warning")]
    return fill_page(
        title=_text(f"Log {Path(description['path']).name}"),
        introduction=f'<p class="notice"><b>Errors: {counts[0]}, warnings: {counts[1]}.</b> '
        "An error blocks training unless it is allowed by its code.</p>",
        sections="\n".join(sections),
    )


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


def _overview(description: Mapping[str, Any]) -> dict[str, str]:
    environment = description["environment"]
    hz = f" at {environment['control_hz']:g} Hz" if environment["control_hz"] else ""
    return {
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


def _outcomes(dataset: EpisodeDataset) -> Iterator[str]:
    endings = np.array([{True: "success", False: "failure", None: "other"}[each.success] for each in dataset.episodes])
    legend = " ".join(f'<span><i class="{name}"></i>{text}</span>' for name, text in _ENDINGS.items())
    yield f'<p class="legend">{legend}</p>'
    figures = {
        "return, not discounted": np.array([float(each.rewards.sum()) for each in dataset.episodes]),
        "length in steps": np.array([each.num_steps for each in dataset.episodes], np.float64),
    }
    cards = (
        _figure(escape(name), histogram({kind: values[endings == kind] for kind in _ENDINGS}, name))
        for name, values in figures.items()
    )
    yield _grid(cards)


def _tasks(text: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{text['different']:,} different; the most frequent at the first step of an episode:</p>"
    rows = "\n".join(
        f"<tr><td>{_text(each['text'])}</td><td>{each['episodes']:,}</td><td>{share(each['success_rate'])}</td></tr>"
        for each in text["most_frequent"]
    )
    head = "<tr><th>text</th><th>episodes</th><th>success rate</th></tr>"
    table = f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    yield f'<div class="card scroll" tabindex="0">{table}</div>'


def _elements(steps: Steps, key: str, rows: list[Mapping[str, Any]]) -> Iterator[str]:
    values = steps.actions if key == "actions" else steps.states[key]
    if any(row.get("low") is not None for row in rows):
        yield '<p class="legend"><span><i class="limit"></i>limit</span></p>'
    if len(rows) != values.shape[1]:
        yield f"<p>More than {MAX_ELEMENTS} elements: their values together.</p>"
        values = values.reshape(-1, 1)
    yield _grid(_element(row, column) for row, column in zip(rows, values.T, strict=True))


def _element(row: Mapping[str, Any], values: np.ndarray) -> str:
    limits = [row[name] for name in ("low", "high") if row.get(name) is not None]
    unit = f" ({row['unit']})" if row["unit"] else ""
    told = f"mean {number(row['mean'])}, 98 % in {number(row['q01'])} to {number(row['q99'])}".replace("-", "−")
    chart = histogram({"bars": values}, f"Histogram of {visible(row['name'])}", limits)
    return _figure(f"{_text(row['name'] + unit)}<small>{told}</small>", chart)


def _images(steps: Steps, key: str, image: Mapping[str, Any]) -> Iterator[str]:
    shape = " × ".join(map(str, image["shape"]))
    stored = "" if image["stored_bytes"] is None else f", about {megabytes(image['stored_bytes'])}"
    yield f"<p>{image['frames']:,} frames of {shape}, stored as {_text(image['encoding'])}{stored}; "
    yield f"{megabytes(image['decoded_bytes'])} when decoded.</p>"
    chosen = np.unique(np.linspace(0, len(steps.episodes) - 1, _SHOWN_EPISODES).round().astype(int))
    for episode in (steps.episodes[index] for index in chosen.tolist() if steps.episodes):
        ending = {True: "a success", False: "a failure", None: "success not recorded"}[episode.success]
        yield f"<h3>{_text(episode.source)}: {episode.num_steps} steps, {ending}</h3>"
        yield _grid(_figure(f"row {row}", picture) for row, picture in episode_frames(episode.observations[key]))


def _facts(facts: Mapping[str, str]) -> str:
    rows = "\n".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return f'<dl class="card">\n{rows}\n</dl>'


def _section(title: str, parts: Iterable[str]) -> str:
    content = "\n".join(parts)
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _grid(figures: Iterable[str]) -> str:
    content = "\n".join(figures)
    return f'<div class="grid">\n{content}\n</div>'


def _figure(caption: str, content: str) -> str:
    return f'<figure class="card"><figcaption>{caption}</figcaption>{content}</figure>'


def _text(text: str) -> str:
    return escape(visible(text))
