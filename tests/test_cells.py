"""Tables of success rates: what is kept of a cell, what is not run again, and what a failing command says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import cells  # noqa: E402  # pyright: ignore[reportMissingImports]

TRAIN = """
import pathlib, sys
run = pathlib.Path(sys.argv[1])
run.mkdir()
(run / "config.json").write_text('{"steps": 7}')
"""
COUNTS = {"successes": 3, "episodes": 4, "mean_length": 9.5}


def python(source: str) -> Callable[[Path], Sequence[str]]:
    return lambda run: [sys.executable, "-c", source, str(run)]


def cell_of(seed: int, train: str = TRAIN, **found: object) -> cells.Cell:
    told = json.dumps({**COUNTS, "tasks": {}, "outcomes": [1, 0], **found})
    return cells.Cell("push", "ours", seed, python(train), python(f"print({told!r})"))


def test_a_finished_cell_is_a_line_that_needs_no_run_folder(tmp_path: Path):
    done = cells.run_cells([cell_of(0), cell_of(1)], tmp_path, workers=2)
    assert done == cells.read_results(tmp_path / "results.jsonl")
    kept = done["push/ours/1"]
    assert kept | COUNTS == kept
    assert (kept["updates"], set(kept) - set(COUNTS)) == (7, {"updates", "training_cpu_s", "evaluation_cpu_s"})


def test_a_finished_cell_is_not_run_again(tmp_path: Path):
    cells.run_cells([cell_of(0)], tmp_path, workers=1)
    again = cells.run_cells([cell_of(0, train="raise SystemExit(1)")], tmp_path, workers=1)
    assert again["push/ours/0"]["successes"] == 3


def test_what_an_interrupted_cell_left_is_removed(tmp_path: Path):
    (tmp_path / "runs" / "push" / "ours" / "0").mkdir(parents=True)
    assert cells.run_cells([cell_of(0)], tmp_path, workers=1)["push/ours/0"]["updates"] == 7


def test_counts_of_several_tasks_are_kept(tmp_path: Path):
    tasks = {"pick": {"successes": 2, "episodes": 3}, "push": {"successes": 1, "episodes": 1}}
    done = cells.run_cells([cell_of(0, tasks=tasks)], tmp_path, workers=1)
    assert done["push/ours/0"]["tasks"] == {"pick": [2, 3], "push": [1, 1]}


def test_a_failing_command_tells_its_last_words(tmp_path: Path):
    with pytest.raises(cells.CellError, match="ended with 3: no such log"):
        cells.run_cells(
            [cell_of(0, train="import sys; print('no such log', file=sys.stderr); sys.exit(3)")], tmp_path, 1
        )
    assert cells.read_results(tmp_path / "results.jsonl") == {}


def test_updates_that_a_peer_counted(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"updates": 12}')
    assert cells.num_updates(tmp_path) == 12


def test_trainings_are_pooled():
    results = [
        {**COUNTS, "updates": 10, "training_cpu_s": 1.0},
        {**COUNTS, "successes": 1, "updates": 20, "training_cpu_s": 2.0},
    ]
    assert cells.pooled(results) == {
        "success_rate": 0.5,
        "interval": [0.2152, 0.7848],
        "seeds": [0.75, 0.25],
        "updates": 15,
        "training_cpu_s": 1.5,
    }
