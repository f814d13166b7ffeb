"""Tables of success rates: each cell is one training and one evaluation by the real commands, in a process of its own.

A finished cell is a line of a results file, so that hours of work survive an interrupt and a table can be told again
from its file. Each process has one thread; several run side by side. It must not know what the cells compare.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import FOLDER, ONE_THREAD

from qtransformer.outcomes import wilson_interval

EVALUATION_SEED = 500_000  # of the first episode; development never looked at these


@dataclass(frozen=True)
class Cell:
    """One training run and its evaluation."""

    row: str
    """Name of the log."""
    method: str
    seed: int
    train: Callable[[Path], Sequence[str]]
    """From the run's folder to the command that makes it."""
    evaluate: Callable[[Path], Sequence[str]]
    """From the run's folder to the command whose last line or whole output is the JSON of an evaluation."""

    @property
    def key(self) -> str:
        """What the results file knows the cell by."""
        return f"{self.row}/{self.method}/{self.seed}"


class CellError(Exception):
    """A command of a cell failed; the message holds its last words."""


def run_cells(cells: Iterable[Cell], work: Path, workers: int) -> dict[str, dict[str, Any]]:
    """Runs the cells that `work/results.jsonl` lacks, in order, `workers` at a time; returns all results by key."""
    results = work / "results.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    done = read_results(results)
    lock = threading.Lock()

    def run(cell: Cell) -> None:
        result = run_cell(cell, work / "runs" / cell.key)
        with lock:
            with results.open("a") as file:
                file.write(json.dumps({"key": cell.key, **result}) + "\n")
            done[cell.key] = result
            print(f"{cell.key}: {result['successes']}/{result['episodes']}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(run, cell) for cell in cells if cell.key not in done]:
            future.result()
    return done


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the results that were written so far, by key."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {each.pop("key"): each for each in map(json.loads, lines)}


def run_cell(cell: Cell, run: Path) -> dict[str, Any]:
    """Trains and evaluates; returns counts, those of each task where there are several, updates and CPU seconds.

    Raises:
        CellError: a command failed.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    if run.exists():
        subprocess.run(["rm", "-r", str(run)], check=True)  # what an interrupted cell left
    _, training_s = call(cell.train(run))
    output, evaluation_s = call(cell.evaluate(run))
    found = json.loads(output)
    kept = {key: found[key] for key in ("successes", "episodes", "mean_length")}
    tasks = {name: [each["successes"], each["episodes"]] for name, each in found.get("tasks", {}).items()}
    kept |= {"tasks": tasks} if len(tasks) > 1 else {}
    seconds = {"training_cpu_s": round(training_s, 1), "evaluation_cpu_s": round(evaluation_s, 1)}
    return {**kept, "updates": num_updates(run), **seconds}


def num_updates(run: Path) -> int:
    """Returns how many updates a run made: `train` has them as a setting, others count them in run.json."""
    settings = run / "config.json"
    if settings.exists():
        return json.loads(settings.read_text())["steps"]
    return json.loads((run / "run.json").read_text())["updates"]


def call(command: Sequence[str | Path], folder: Path | None = None) -> tuple[str, float]:
    """Returns what a command printed, and its CPU seconds; run in `folder`, where MuJoCo leaves its warnings.

    Raises:
        CellError: the command failed.
    """
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(FOLDER)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(command, stdout=output, stderr=words, cwd=folder, env=environment)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this one child: others run beside it
        process.returncode = os.waitstatus_to_exitcode(status)
        told, last_words = (file.seek(0) or file.read() for file in (output, words))
    if process.returncode != 0:
        reason = " ".join(last_words.splitlines()[-3:])
        raise CellError(f"{' '.join(map(str, command))}: ended with {process.returncode}: {reason}")
    return told, usage.ru_utime + usage.ru_stime


def train_command(python: Path | str, log: Path, seed: int, *flags: str) -> Callable[[Path], Sequence[str]]:
    """Returns how `qtransformer train` is called for a cell."""
    command = [str(python), "-m", "qtransformer.cli", "train", "--dataset", str(log), "--seed", str(seed), *flags]
    return lambda run: [*command, "--out", str(run)]


def evaluate_command(python: Path | str, episodes: int, imports: str) -> Callable[[Path], Sequence[str]]:
    """Returns how `qtransformer evaluate` is called for a cell."""
    plan = ["--episodes", str(episodes), "--seed", str(EVALUATION_SEED), "--import", imports, "--json"]
    return lambda run: [str(python), "-m", "qtransformer.cli", "evaluate", str(run), *plan]


def pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the success rate over all seeds with its 95 % Wilson interval over all episodes, and each seed's.

    Beside it the mean updates and CPU seconds of a training.
    """
    successes, episodes = (sum(each[name] for each in results) for name in ("successes", "episodes"))
    low, high = wilson_interval(successes, episodes)
    return {
        "success_rate": round(successes / episodes, 4),
        "interval": [round(low, 4), round(high, 4)],
        "seeds": [round(each["successes"] / each["episodes"], 3) for each in results],
        "updates": round(statistics.mean(each["updates"] for each in results)),
        "training_cpu_s": round(statistics.mean(each["training_cpu_s"] for each in results), 1),
    }
