"""Describing a dataset: first as plain data for programs, then as tables for people.

Special about this file: `describe` computes and `print_description` only lays out, so what is printed and what
`--json` gives can never differ. Tables fit into 80 columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .check import Finding
from .schema import EpisodeDataset
from .statistics import statistics


def describe(dataset: EpisodeDataset, findings: Iterable[Finding]) -> dict[str, Any]:
    """Returns everything worth knowing of a dataset, fit for JSON: origin, counts, ranges, limits, findings."""
    spec = dataset.spec
    return {
        "path": str(dataset.path),
        "dialect": dataset.dialect,
        "fingerprint": dataset.fingerprint,
        "environment": {
            "id": spec.environment_id,
            "kwargs": dict(spec.environment_kwargs),
            "control_hz": spec.control_hz,
        },
        "notes": list(dataset.notes),
        "rules": dict(dataset.rules),
        "episodes": dataset.num_episodes,
        "steps": dataset.num_steps,
        "success_rate": dataset.success_rate,
        "lengths": _summary([episode.num_steps for episode in dataset.episodes]),
        "returns": _summary([float(episode.rewards.sum()) for episode in dataset.episodes]),
        "observations": _observations(dataset),
        "actions": _actions(dataset),
        "findings": [asdict(finding) for finding in findings],
    }


def print_description(description: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `describe` returned as tables."""
    console = console or Console()
    console.print(_overview(description))
    for name, rows in {**description["observations"], "actions": description["actions"]}.items():
        console.print(_element_table(name, rows))
    if not description["findings"]:
        console.print("[green]No problems found.[/]")
    for finding in description["findings"]:
        style = "bold red" if finding["severity"] == "error" else "bold yellow"
        console.print(Text.assemble((f"{finding['severity']} {finding['code']}: ", style), finding["message"]))


def _summary(values: list[float]) -> dict[str, float]:
    return {"min": float(np.min(values)), "median": float(np.median(values)), "max": float(np.max(values))}


def _observations(dataset: EpisodeDataset) -> dict[str, list[dict[str, Any]]]:
    moments = statistics(dataset)
    return {
        each.name: _rows(each.elements, each.units, {name: moments[each.name][name] for name in ("min", "mean", "max")})
        for each in dataset.spec.observations
    }


def _actions(dataset: EpisodeDataset) -> list[dict[str, Any]]:
    actions = np.concatenate([episode.actions for episode in dataset.episodes]).astype(np.float64)
    spec = dataset.spec.actions
    columns = {"min": actions.min(axis=0), "mean": actions.mean(axis=0), "max": actions.max(axis=0)}
    return _rows(spec.elements, spec.units, columns | {"low": np.array(spec.low), "high": np.array(spec.high)})


def _rows(names: tuple[str, ...], units: tuple[str, ...], columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    flat = {name: np.ravel(values).tolist() for name, values in columns.items()}
    count = len(flat["min"])
    names, units = names or tuple(f"[{index}]" for index in range(count)), units or ("",) * count
    return [
        {"name": names[index], "unit": units[index]} | {name: values[index] for name, values in flat.items()}
        for index in range(count)
    ]


def _overview(description: dict[str, Any]) -> Table:
    table = Table(title="Dataset", show_header=False, title_justify="left")
    environment, rate = description["environment"], description["success_rate"]
    hz = f" at {environment['control_hz']:g} Hz" if environment["control_hz"] else ""
    rows = {
        "path": description["path"],
        "format": description["dialect"],
        "fingerprint": description["fingerprint"][:16],
        "environment": f"{environment['id'] or 'unknown'}{hz}",
        "episodes": f"{description['episodes']:,}",
        "steps": f"{description['steps']:,}",
        "success rate": "unknown" if rate is None else f"{rate:.1%} ",
        "length": _spread(description["lengths"]),
        "return": _spread(description["returns"]),
        **description["rules"],
        "note": "; ".join(description["notes"]) or None,
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, escape(value))
    return table


def _spread(summary: dict[str, float]) -> str:
    return f"{summary['min']:.4g} to {summary['max']:.4g}, median {summary['median']:.4g}"


def _element_table(name: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=escape(name), title_justify="left")
    for column in rows[0]:
        is_text = column in ("name", "unit")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(escape(value) if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    return table
