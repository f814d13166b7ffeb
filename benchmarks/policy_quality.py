"""Ours against cloning and against d3rlpy's TD3+BC, IQL and CQL on eight sparse-reward logs: one default for all rows.

Every method sees the same log and plays the same episodes in the same simulator, and has the CPU seconds of ours:

    ours                   `qtransformer train` as it comes, --updates updates (default: as many as it makes unasked)
    paper                  --preset paper, with as many updates as the same CPU seconds buy; measured first, on each log
    cloning                --algorithm behaviour_cloning, as many updates as ours, which is less CPU time
    cloning of successes   ... --only-successful, a third of the updates, since more overfit (docs/LOG.md)
    d3rlpy ...             until the CPU seconds of ours, same log and seed, are spent; see d3rlpy_runner.py. Ours pays
                           for its imports out of them, d3rlpy does not

The logs are made by logs.py, and all cells run in the environment `robots`, see peers.py. Finished cells are kept in
--work: run the same command again to go on, and with --show to see what is there.

    python benchmarks/policy_quality.py [--quick] [--work FOLDER] [--logs FOLDER] [--seeds 5] [--picture PNG]

The last line printed is one JSON object. `ratio`: mean success over the logs of ours / of the best other method, null
where no other method ever succeeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cells
import harness
import peers
from logs import LOGS
from rich.console import Console
from rich.table import Table

from qtransformer.config import Preset, TrainConfig
from qtransformer.presets import PRESETS

ROWS = tuple(LOGS)
OURS, PAPER, CLONING, SUCCESSES = "ours", "paper", "cloning", "cloning of successes"
D3RLPY = {"d3rlpy TD3+BC": "td3_plus_bc", "d3rlpy IQL": "iql", "d3rlpy CQL": "cql"}
METHODS = (OURS, PAPER, CLONING, SUCCESSES, *D3RLPY)
RUNNER = peers.FOLDER / "d3rlpy_runner.py"
FIXED = ("updates", "episodes")  # what all cells of one folder must share

Cells = Mapping[str, Mapping[str, Any]]  # results by key
Rows = dict[str, dict[str, dict[str, Any]]]  # pooled results by log and method


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing of the table and prints it."""
    options = read_arguments(arguments)
    if not options.show:
        run(options)
    table = tabulate(cells.read_results(options.work / "results.jsonl"), options)
    if not table:
        fail(f"--work {options.work} must hold finished cells of the rows and methods, got none; run without --show")
    result = {"benchmark": "policy_quality", "quick": options.quick, **summary(table)}
    show(table, result)
    if options.picture:
        draw(table, result, options.picture)
    settings = {name: getattr(options, name) for name in (*FIXED, "seeds")}
    calibration = read_json(options.work / "calibration.json")
    harness.print_result({**result, "calibration": calibration, **settings, "machine": harness.machine()})
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; ours is always among the methods, since the others are measured by it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one log, three methods, one seed, few updates")
    parser.add_argument("--show", action="store_true", help="run nothing, print what is finished")
    parser.add_argument("--work", type=Path, default=Path("runs/policy_quality"), help="runs and results")
    parser.add_argument("--logs", type=Path, help="folder of the logs, made where missing (default: WORK/logs)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=TrainConfig.steps, help="of ours")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args(arguments)
    options.logs = options.logs or options.work / "logs"
    if options.quick:
        options.work, options.seeds, options.updates, options.episodes = options.work / "quick", 1, 100, 4
        options.rows, options.methods = ROWS[:1], (SUCCESSES, "d3rlpy IQL")
    options.methods = [each for each in METHODS if each == OURS or each in options.methods]
    return options


# --- running ----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Runs the cells that are missing.

    The first run of ours must be finished before the others begin, since it sets their CPU seconds. From then on ours
    of the next seed runs with the others of this one, so that no worker waits.
    """
    claim(options)
    python = peers.ensure("robots")
    logs = {row: make_log(row, options.logs) for row in options.rows}
    calibrations = calibrate(logs, options) if PAPER in options.methods else {}

    def cell(row: str, method: str, seed: int) -> cells.Cell:
        budget = options.updates
        if method == PAPER:
            budget = calibrations[row]["updates"]
        elif method in D3RLPY:
            budget = results[f"{row}/{OURS}/{seed}"]["training_cpu_s"]
        return make_cell((row, method, seed), python, logs[row], options.episodes, budget)

    results: Cells = {}
    results = cells.run_cells([cell(row, OURS, 0) for row in logs], options.work, options.workers)
    for seed in range(options.seeds):
        batch = [cell(row, method, seed) for method in options.methods if method != OURS for row in logs]
        if seed + 1 < options.seeds:
            batch += [cell(row, OURS, seed + 1) for row in logs]
        results = cells.run_cells(batch, options.work, options.workers)


def claim(options: argparse.Namespace) -> None:
    """Writes what the cells of the folder share, or leaves the program where they were made with something else."""
    path, asked = options.work / "settings.json", {name: getattr(options, name) for name in FIXED}
    options.work.mkdir(parents=True, exist_ok=True)
    if (found := read_json(path) or asked) != asked:
        fail(f"--work {options.work} must hold cells of {asked}, got cells of {found}; choose another folder")
    path.write_text(json.dumps(asked))


def make_log(row: str, folder: Path) -> Path:
    """Returns the log, recorded first where it is missing."""
    path = folder / row
    if not (path / "data" / "main_data.hdf5").exists():
        peers.run("robots", peers.FOLDER / "logs.py", (str(folder), row), check=True, stdout=sys.stderr)
    return path


def make_cell(key: tuple[str, str, int], python: Path, log: Path, episodes: int, budget: float) -> cells.Cell:
    """Returns the cell of a log, a method and a seed; `budget` is CPU seconds for d3rlpy, updates for the others."""
    row, method, seed = key
    imports = "sparse_tasks" if LOGS[row].env_id.startswith("sparse/") else "qtransformer_envs"
    if method not in D3RLPY:
        flags = (*own_flags(method, int(budget)), "--device", "cpu")
        evaluate = cells.evaluate_command(python, episodes, imports)
        return cells.Cell(row, method, seed, cells.train_command(python, log, seed, *flags), evaluate)
    runner = [str(python), str(RUNNER)]
    data = ["--log", str(log), "--algorithm", D3RLPY[method], "--seed", str(seed), "--cpu-seconds", str(budget)]
    plan = ["--episodes", str(episodes), "--seed", str(cells.EVALUATION_SEED), "--import", imports, "--json"]
    return cells.Cell(
        row,
        method,
        seed,
        lambda run: [*runner, "train", *data, "--out", str(run)],
        lambda run: [*runner, "evaluate", str(run), *plan],
    )


def own_flags(method: str, updates: int) -> tuple[str, ...]:
    """Returns the flags of `qtransformer train` that make one of our own methods."""
    cloning = ("--algorithm", "behaviour_cloning")
    return {
        OURS: ("--steps", str(updates)),
        PAPER: ("--preset", "paper", "--steps", str(updates)),
        CLONING: (*cloning, "--steps", str(updates)),
        SUCCESSES: (*cloning, "--only-successful", "--steps", str(max(1, updates // 3))),
    }[method]


def calibrate(logs: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Returns for each log the CPU milliseconds of an update and the updates of the paper's recipe; measured once."""
    path = options.work / "calibration.json"
    found = read_json(path)
    for row, log in logs.items():
        if row not in found:
            costs = update_costs(log)
            harness.say(f"{row}: an update takes {costs} CPU s")
            found[row] = paper_updates(costs, options.updates)
            path.write_text(json.dumps(found, indent=1))
    return {row: found[row] for row in logs}


def paper_updates(costs: Mapping[str, Sequence[float]], updates: int) -> dict[str, float | int]:
    """Returns how many updates of the paper's recipe cost as much as `updates` of ours, and the costs in CPU ms."""
    ratio = harness.ratios(costs[OURS], costs[PAPER])["median"]
    milliseconds = {f"{name}_cpu_ms": harness.rounded(1000 * statistics.median(costs[name])) for name in (OURS, PAPER)}
    return {"updates": max(1, round(updates * ratio)), **milliseconds}


def update_costs(log: Path, rounds: int = 5, repeats: int = 4) -> dict[str, list[float]]:
    """Returns the CPU seconds of an update of ours and of the paper's recipe with its batch, measured in turns."""
    import torch

    from qtransformer.training import build
    from qtransformer_datasets.formats import open_dataset

    torch.set_num_threads(1)
    dataset, contestants = open_dataset(log), {}
    presets: dict[str, Preset] = {OURS: "default", PAPER: "paper"}
    for name, preset in presets.items():
        config = TrainConfig(log, Path("unused"), preset=preset, device="cpu", **PRESETS[preset])
        learner, sampler, _ = build(config, dataset)

        def update(learner: Any = learner, sampler: Any = sampler) -> object:
            return learner.update(sampler.sample())

        update()  # the first one allocates
        contestants[name] = lambda update=update: harness.cpu_seconds(update, repeats)
    return harness.interleave(contestants, rounds)


# --- telling ----------------------------------------------------------------------------------------------------------


def tabulate(results: Cells, options: argparse.Namespace) -> Rows:
    """Returns the pooled results of the finished cells, by log and method."""
    table: Rows = {}
    for row in options.rows:
        for method in options.methods:
            keys = [key for seed in range(options.seeds) if (key := f"{row}/{method}/{seed}") in results]
            if keys:
                table.setdefault(row, {})[method] = cells.pooled([dict(results[key]) for key in keys])
    return table


def summary(table: Rows) -> dict[str, Any]:
    """Returns the means over the logs, the ratio, the verdicts and the table itself."""
    means = over_rows(table)
    best = max((rate for method, rate in means.items() if method != OURS), default=0.0)
    verdicts = {row: each for row, methods in table.items() if (each := verdict(methods))}
    return {
        "ratio": harness.rounded(means[OURS] / best) if best > 0 and OURS in means else None,
        "mean_success": {method: round(rate, 4) for method, rate in means.items()},
        "kept": {
            "ours has the highest mean": OURS in means and means[OURS] > best,
            "ours nowhere below cloning of successes": all(each["kept"] for each in verdicts.values())
            if verdicts
            else None,
        },
        "verdicts": verdicts,
        "success": table,
    }


def over_rows(table: Rows) -> dict[str, float]:
    """Returns the mean success rate of each method that has all rows of the table."""
    methods = [method for method in METHODS if all(method in each for each in table.values())]
    return {method: statistics.mean(each[method]["success_rate"] for each in table.values()) for method in methods}


def verdict(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns how far ours lies above cloning of successes on one log; None where either is missing.

    The interval of the difference is made of both Wilson intervals (Newcombe 1998, Stat. Med. 17:873, method 10); the
    promise is kept unless it lies below 0.
    """
    if OURS not in methods or SUCCESSES not in methods:
        return None
    ours, other = methods[OURS], methods[SUCCESSES]
    difference = ours["success_rate"] - other["success_rate"]
    down = math.hypot(ours["success_rate"] - ours["interval"][0], other["interval"][1] - other["success_rate"])
    up = math.hypot(ours["interval"][1] - ours["success_rate"], other["success_rate"] - other["interval"][0])
    interval = [round(difference - down, 4), round(difference + up, 4)]
    return {"difference": round(difference, 4), "interval": interval, "kept": interval[1] >= 0}


def show(table: Rows, result: Mapping[str, Any]) -> None:
    """Prints the table for people; ours holds unless it is below cloning of successes by more than their interval."""
    methods = [method for method in METHODS if any(method in each for each in table.values())]
    shown = Table("log", *methods, "ours holds", title="success, % (95 % interval)", show_lines=True)
    for row, found in table.items():
        verdict = result["verdicts"].get(row)
        word = f"{'yes' if verdict['kept'] else 'NO'} ({100 * verdict['difference']:+.0f})" if verdict else "-"
        shown.add_row(row, *(told(found[method]) if method in found else "-" for method in methods), word)
    means = [f"{100 * result['mean_success'][each]:.1f}" if each in result["mean_success"] else "-" for each in methods]
    shown.add_row("mean", *means, "")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 110)
    console.print(shown)
    for promise, is_kept in result["kept"].items():
        console.print(f"{promise}: {'not asked' if is_kept is None else 'yes' if is_kept else 'NO'}")


def told(each: Mapping[str, Any]) -> str:
    """Returns one cell of the table for people: the rate, and its interval below."""
    low, high = (f"{100 * end:.0f}" for end in each["interval"])
    return f"{100 * each['success_rate']:.0f}\n{low}-{high}"


def draw(table: Rows, result: Mapping[str, Any], path: Path) -> None:
    """Draws success with its interval and each seed, one panel a log, and the means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [method for method in METHODS if any(method in each for each in table.values())]
    columns = min(4, len(table) + 1)
    lines = -(-(len(table) + 1) // columns)
    size = 3 * columns + 1.5, (0.32 * len(methods) + 1) * lines
    figure, grid = pyplot.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, row in zip(grid.flat, table, strict=False):
        for place, method in enumerate(methods):
            if found := table[row].get(method):
                axis.hlines(place, *(100 * end for end in found["interval"]), color=colour(method), linewidth=2)
                axis.plot([100 * rate for rate in found["seeds"]], [place] * len(found["seeds"]), "|", color="#94a3b8")
                axis.plot(100 * found["success_rate"], place, "o", color=colour(method))
        axis.set_title(row)
    means = grid.flat[len(table)]
    for method, rate in result["mean_success"].items():
        means.barh(methods.index(method), 100 * rate, color=colour(method))
    means.set_title("mean over the logs")
    for axis in grid.flat[len(table) + 1 :]:
        axis.axis("off")
    for axis in grid.flat[: len(table) + 1]:
        axis.set(xlim=(-2, 102), yticks=range(len(methods)), yticklabels=methods)
        axis.tick_params(labelbottom=True)
        axis.grid(axis="x", alpha=0.3)
    grid[0, 0].invert_yaxis()
    figure.supxlabel("success, % (95 % interval; small lines: seeds)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a file holds; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def fail(message: str) -> NoReturn:
    """Leaves the program because of a user's mistake."""
    print(f"policy_quality: error: {message}", file=sys.stderr)
    sys.exit(2)


def colour(method: str) -> str:
    """Returns the colour of a method's marks."""
    return "#c2410c" if method == OURS else "#334155"


if __name__ == "__main__":
    sys.exit(main())
