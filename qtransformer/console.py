"""What a person watches: a progress bar, or plain lines where there is no terminal; and the table of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Advance = Callable[..., None]

_LINES = 10  # how often progress is said without a terminal
_BAR = 20  # characters of a bar


def say(text: str) -> None:
    """Prints one line on standard error that a person should not overlook."""
    Console(stderr=True).print(text, markup=False, highlight=False, style="yellow", soft_wrap=True)


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yields `advance(**figures)`: one unit of work is done; the newest figures stand beside the bar, on stderr."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    status, is_plain = TextColumn("{task.fields[status]}"), not console.is_terminal
    with Progress(*columns, status, console=console, disable=is_plain) as bar:
        task = bar.add_task(name, total=total, completed=done, status="")
        every = max(1, total // _LINES)

        def advance(**figures: int | float) -> None:
            if figures:
                bar.update(task, status="  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
            bar.advance(task)
            state = bar.tasks[task]
            completed = int(state.completed)
            if is_plain and (completed % every == 0 or completed == total):
                line = f"{name}: {completed}/{total}  {state.fields['status']}"
                console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)

        yield advance


def print_json(data: Any) -> None:
    """Prints one document for programs on stdout."""
    print(json.dumps(data, indent=1))


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """Prints names and what there is to say of them."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    Console().print(table)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Prints what `Evaluation.summary` returned."""
    latency = summary["latency_ms"]
    table = Table(title=f"Evaluation in {summary['environment_id']}", show_header=False, title_justify="left")
    table.add_row("success", f"{summary['successes']} of {summary['episodes']} episodes: {summary['success_rule']}")
    table.add_row("success rate", _rate(summary))
    table.add_row("... at any step", _rate(summary["success_once"]))
    if summary["crashed"]:
        table.add_row("crashed", f"{summary['crashed']} episodes, counted in no rate")
    if summary["stopped"]:
        table.add_row("stopped", summary["stopped"])
    table.add_row("mean return", f"{summary['mean_return']:.4g}")
    table.add_row("mean length", f"{summary['mean_length']:.1f} steps")
    table.add_row("policy call", f"{latency['median']:.1f} ms median, {latency['p99']:.1f} ms p99")
    console = Console()
    console.print(table)
    if summary["tasks"]:
        console.print(_task_table(summary["tasks"]))


def _task_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("task", "success", "rate (95 % interval)", "at any step", title="Tasks", title_justify="left")
    has_crashes = any(task["crashed"] for task in tasks.values())
    if has_crashes:
        table.add_column("crashed")
    for name, task in tasks.items():
        counts = [
            f"{task['successes']} of {task['episodes']}",
            _rate(task, short=True),
            _rate(task["success_once"], True),
        ]
        table.add_row(Text(name), *counts, *([str(task["crashed"])] if has_crashes else []))
    return table


def _rate(tally: Mapping[str, Any], short: bool = False) -> str:
    """Returns the success rate in words; a task whose episodes all crashed has none."""
    if tally["success_rate"] is None:
        return "–"
    low, high = tally["interval"]
    if short:
        return f"{tally['success_rate']:.0%} ({low:.0%} to {high:.0%})"
    return f"{tally['success_rate']:.1%} (95 % interval {low:.1%} to {high:.1%})"


def print_scores(title: str, scores: Mapping[str, float], low: float, high: float) -> None:
    """Prints values with bars over the range from `low` to `high`, in the order given."""
    table = Table("instruction", "value", f"{low:.4g} to {high:.4g}", title=title, title_justify="left")
    for name, value in scores.items():
        share = (value - low) / (high - low)
        table.add_row(Text(name), f"{value:.4g}", Text("█" * round(_BAR * share), style="cyan"))
    Console().print(table)


def print_verdicts(verdicts: Iterable[tuple[str, str, str]]) -> None:
    """Prints (word, name, sentence) one below the other; a ringing alarm stands out."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for word, name, sentence in verdicts:
        style = "bold red" if word == "rings" else "bold"
        table.add_row(Text(word, style=style), Text.assemble((name, "bold"), "\n", sentence))
    Console().print(table)
