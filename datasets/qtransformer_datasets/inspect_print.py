"""The description of a dataset as tables for a terminal of 80 columns.

Special about this file: names and instructions come from strangers, so control characters are shown and never sent to
the terminal, and square brackets are text. It must not compute anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_HEADS = {"min": "min", "q01": "1 %", "mean": "mean", "q99": "99 %", "max": "max"}


def print_description(description: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `describe` returned as tables."""
    console = console or Console()
    for part in _parts(description):
        console.print(part)


def _parts(description: dict[str, Any]) -> Iterator[Any]:
    yield _overview(description)
    for name, rows in {**description["observations"], "actions": description["actions"]}.items():
        yield _element_table(name, rows)
    if description["images"]:
        yield _image_table(description["images"])
    for name, text in description["text"].items():
        title = f"{name}: {text['different']:,} different, most frequent first"
        yield _group_table(title, "at the first step", text["most_frequent"])
    if description["behaviours"]:
        yield _group_table("behaviours", "what acted", description["behaviours"])
    if not description["findings"]:
        yield "[green]No problems found.[/]"
    for finding in description["findings"]:
        yield from _finding(finding)


def _finding(finding: dict[str, Any]) -> Iterator[Any]:
    style = "bold red" if finding["severity"] == "error" else "bold yellow"
    yield Text.assemble((f"{finding['severity']} {finding['code']}: ", style), visible(finding["message"]))
    for head, text in (("why", finding["why"]), ("do", finding["advice"])):
        yield Padding(Text.assemble((f"{head}: ", "bold"), visible(text)), (0, 0, 0, 2), expand=False)


def _overview(description: dict[str, Any]) -> Table:
    table = _table("Dataset")
    table.show_header = False
    environment, rate = description["environment"], description["success_rate"]
    hz = f" at {environment['control_hz']:g} Hz" if environment["control_hz"] else ""
    rows = {
        "path": description["path"],
        "format": description["dialect"],
        "fingerprint": description["fingerprint"][:16],
        "environment": f"{environment['id'] or 'unknown'}{hz}",
        "episodes": f"{description['episodes']:,}",
        "steps": f"{description['steps']:,}",
        "success rate": share(rate),
        "length": _spread(description["lengths"]),
        "return": _spread(description["returns"]),
    }
    rules = [(f"rule: {name}", rule) for name, rule in description["rules"].items()]
    for name, value in [*rows.items(), *rules, *(("note", note) for note in description["notes"])]:
        table.add_row(_shown(name), _shown(value))
    return table


def _element_table(name: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(name)
    has_limits = any("low" in row for row in rows)
    table.add_column("element", overflow="fold")
    for head in _HEADS.values():
        table.add_column(head, justify="right", no_wrap=True)
    if has_limits:
        table.add_column("limits", justify="right", overflow="fold")
    for row in rows:
        unit = f" ({row['unit']})" if row["unit"] else ""
        limits = [f"{number(row['low'])} to {number(row['high'])}"] if has_limits else []
        table.add_row(_shown(row["name"] + unit), *(number(row[key]) for key in _HEADS), *limits)
    return table


def _image_table(images: dict[str, dict[str, Any]]) -> Table:
    table = _table("images")
    for head in ("key", "height x width x channels", "frames", "stored as", "stored", "decoded"):
        table.add_column(head, overflow="fold", justify="left" if head == "key" else "right")
    for name, image in images.items():
        shape = " x ".join(map(str, image["shape"]))
        stored = "unknown" if image["stored_bytes"] is None else f"about {megabytes(image['stored_bytes'])}"
        decoded = megabytes(image["decoded_bytes"])
        table.add_row(_shown(name), shape, f"{image['frames']:,}", _shown(image["encoding"]), stored, decoded)
    return table


def _group_table(title: str, head: str, groups: list[dict[str, Any]]) -> Table:
    table = _table(title)
    table.add_column(head, overflow="fold")
    table.add_column("episodes", justify="right", no_wrap=True)
    table.add_column("success rate", justify="right", no_wrap=True)
    for row in groups:
        table.add_row(_shown(row["text"]), f"{row['episodes']:,}", share(row["success_rate"]))
    return table


def _table(title: str) -> Table:
    return Table(title=_shown(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _spread(summary: dict[str, float | None]) -> str:
    return f"{number(summary['min'])} to {number(summary['max'])}, median {number(summary['median'])}"


def number(value: float | None) -> str:
    """Returns a number of three digits; a dash where it is not known."""
    return "–" if value is None else f"{value:.3g}"


def share(rate: float | None) -> str:
    """Returns a share in percent."""
    return "unknown" if rate is None else f"{rate:.1%}"


def megabytes(num_bytes: int) -> str:
    """Returns a size in the unit that suits it."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def visible(text: str) -> str:
    """Returns the text with control characters written as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _shown(text: str) -> str:
    return escape(visible(text))
