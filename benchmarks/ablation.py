"""The paper's ablations and ours on PickCube logs of two noise levels: one table, one picture.

Every row changes one thing in our default (`full`), but for the rows named `paper`, which change it in the paper's
recipe. All are trained for the same number of updates and play the same episodes.

    python benchmarks/ablation.py [--quick] [--work FOLDER] [--seeds 3] [--updates N] [--workers 2] [--picture PNG]

The last line printed is one JSON object: success rate with its 95 % interval, seeds and CPU seconds by log and variant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cells
from rich.console import Console
from rich.table import Table

from qtransformer_datasets.collect import CollectConfig, collect

LOGS = {  # noise in half action ranges; `mild` succeeds about twice as often as `noisy`
    "noisy": CollectConfig(num_workers=1),
    "mild": CollectConfig(noise_std=0.4, random_action_probability=0.08, num_workers=1),
}
PAPER = ("--preset", "paper", "--window", "2")
MAXIMUM = ("--support-temperature", "0", "--target-temperature", "0")
VARIANTS: dict[str, tuple[str, ...]] = {
    "full": (),
    "no conservatism": ("--conservative-weight", "0"),
    "softmax conservatism": ("--regularizer", "softmax"),
    "no Monte-Carlo bound": ("--no-monte-carlo-bound",),
    "n-step over dimensions": ("--backup", "n_step"),
    "1 environment step": ("--environment-steps", "1"),
    "no support (maximum of Q)": MAXIMUM,
    "hard support mask": (*MAXIMUM, "--support-threshold", "0.1"),
    "targets act as the policy does": ("--target-temperature", "0.03"),
    "one-hot labels": ("--label-width", "0"),
    "64 bins": ("--num-bins", "64"),
    "256 bins": ("--num-bins", "256"),
    "16 x 16 coarse to fine": ("--num-bins", "16", "--num-levels", "2"),
    "paper, 32 bins": (*PAPER, "--num-bins", "32"),
    "paper, 256 bins": PAPER,
}
QUICK = ("full", "one-hot labels")


def main(arguments: list[str] | None = None) -> int:
    """Runs what is missing of the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two variants, one log, one seed, few updates")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="logs, runs and results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args(arguments)
    if options.quick:
        options.work, options.seeds, options.updates, options.episodes = options.work / "quick", 1, 60, 4
    results = cells.run_cells(table_cells(options), options.work, options.workers)
    table = tabulate(results, options)
    show(table)
    if options.picture:
        draw(table, options.picture)
    print(json.dumps({"updates": options.updates, "episodes": options.episodes, "success": table}))
    return 0


def table_cells(options: argparse.Namespace) -> list[cells.Cell]:
    """Returns the cells of the table, all variants of one seed before the next."""
    python, evaluate = sys.executable, cells.evaluate_command(sys.executable, options.episodes, "qtransformer_envs")
    logs = {name: make_log(name, options) for name in list(LOGS)[: 1 if options.quick else None]}
    found = []
    for seed in range(options.seeds):
        for name, log in logs.items():
            for variant in QUICK if options.quick else VARIANTS:
                flags = ("--steps", str(options.updates), *VARIANTS[variant])
                train = cells.train_command(python, log, seed, *flags)
                found.append(cells.Cell(name, variant, seed, train, evaluate))
    return found


def make_log(name: str, options: argparse.Namespace) -> Path:
    """Returns the log, recorded first where it is missing."""
    path = options.work / f"log-{name}"
    if not (path / "data" / "main_data.hdf5").exists():
        collect(replace(LOGS[name], episodes=20) if options.quick else LOGS[name], path)
    return path


def tabulate(results: Mapping[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the pooled results by log and variant."""
    table: dict[str, dict[str, Any]] = {}
    for name in LOGS:
        for variant in VARIANTS:
            keys = [f"{name}/{variant}/{seed}" for seed in range(options.seeds)]
            if found := [results[key] for key in keys if key in results]:
                table.setdefault(name, {})[variant] = cells.pooled(found)
    return table


def show(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Prints the table for people."""
    for name, rows in table.items():
        shown = Table("variant", "success", "95 % interval", "seeds", "training, CPU s", title=f"{name} log")
        for variant, each in rows.items():
            low, high = (f"{100 * end:.0f}" for end in each["interval"])
            seeds = " / ".join(f"{100 * rate:.0f}" for rate in each["seeds"])
            shown.add_row(
                variant, f"{100 * each['success_rate']:.0f} %", f"{low}-{high}", seeds, f"{each['training_cpu_s']:.0f}"
            )
        Console(stderr=True).print(shown)


def draw(table: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Draws success with its interval, one panel a log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    variants = list(next(iter(table.values())))
    figure, axes = pyplot.subplots(1, len(table), figsize=(5 * len(table) + 2, 0.32 * len(variants) + 1.2), sharey=True)
    for axis, (name, rows) in zip([axes] if len(table) == 1 else axes, table.items(), strict=True):
        for place, variant in enumerate(variants):
            each = rows[variant]
            low, high = (100 * end for end in each["interval"])
            colour = "#c2410c" if variant == "full" else "#334155"
            axis.hlines(place, low, high, color=colour, linewidth=2)
            axis.plot(100 * each["success_rate"], place, "o", color=colour)
        axis.set(title=f"{name} log", xlabel="success, % (95 % interval)", xlim=(-2, 102))
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(variants)), variants)
    figure.axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
