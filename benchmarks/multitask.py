"""One policy for all tabletop skills, told in words which: ours against the log it learns from, and against cloning.

The log is `qtransformer collect --mix` on qtransformer/Tabletop-v0, as it comes: the paper's simulated setting, 8 %
demonstrations, the rest replays with noise and other mistakes. Every method sees the arm, the objects in rows of random
order, and the instruction:

    ours                   `qtransformer train` with a wider network and --balance success, since most episodes fail
    cloning                --algorithm behaviour_cloning, as many updates, which is less CPU time; every step alike
    cloning of successes   ... --only-successful, a third of the updates
    ours, without words    the same as ours, but --observations objects state: what the instruction is worth

Each plays the same episodes of all skills. Then ours plays scenes twice, told to take one object and another
(told_apart.py). Finished cells are kept in --work: run the same command again to go on.

    .venv/bin/python benchmarks/multitask.py [--quick] [--work FOLDER] [--updates N] [--seeds 1] [--picture PNG]

The last line printed is one JSON object. `ratio`: mean success over the skills of ours / of cloning, null where cloning
never succeeds; `ratio_to_log` the same against the log.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cells
import gymnasium
import harness
from rich.console import Console
from rich.table import Table
from told_apart import told_apart

from qtransformer.outcomes import wilson_interval
from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.formats import open_dataset

ENVIRONMENT = "qtransformer/Tabletop-v0"
OURS, CLONING, SUCCESSES, WORDLESS = "ours", "cloning", "cloning of successes", "ours, without words"
METHODS = (OURS, CLONING, SUCCESSES, WORDLESS)
NETWORK = ("--width", "128")
BALANCE = ("--balance", "success")
Rates = dict[str, dict[str, Any]]  # by skill


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the table."""
    options = read_arguments(arguments)
    log = make_log(options)
    found = cells.run_cells(list(table_cells(log, options)), options.work, options.workers)
    table = {"log": log_rates(log), **tabulate(found, options)}
    apart = told_apart(options.work / "runs" / "tabletop" / OURS / "0", options.scenes)
    harness.say(f"the named object is approached in {apart['share']:.0%} of {apart['episodes']} episodes")
    result = {"benchmark": "multitask", "quick": options.quick, **summary(table), "told_apart": apart}
    show(table, result["mean_success"])
    if options.picture:
        draw(table, options.picture)
    settings = {name: getattr(options, name) for name in ("log_episodes", "updates", "episodes", "seeds")}
    harness.print_result({**result, **settings, "machine": harness.machine()})
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods, small log, few updates")
    parser.add_argument("--work", type=Path, default=Path("runs/multitask"), help="log, runs and results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--log-episodes", type=int, default=7000)
    parser.add_argument("--updates", type=int, default=8000, help="of ours")
    parser.add_argument("--episodes", type=int, default=400, help="of each evaluation, of all skills together")
    parser.add_argument("--scenes", type=int, default=50, help="that are told to take one object, then another")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args(arguments)
    if options.quick:
        options.work, options.methods, options.seeds = options.work / "quick", (OURS, CLONING), 1
        options.log_episodes, options.updates, options.episodes, options.scenes = 160, 40, 4, 2
    return options


def make_log(options: argparse.Namespace) -> Path:
    """Returns the log, recorded first where it is missing."""
    path = options.work / f"log-{options.log_episodes}"
    if not (path / "data" / "main_data.hdf5").exists():
        harness.say(f"recording {path}")
        collect(CollectConfig(ENVIRONMENT, episodes=options.log_episodes, mix=()), path)
    return path


def table_cells(log: Path, options: argparse.Namespace) -> Sequence[cells.Cell]:
    """Returns the cells, all methods of one seed before the next."""
    evaluate = cells.evaluate_command(sys.executable, options.episodes, "qtransformer_envs")

    def cell(method: str, seed: int) -> cells.Cell:
        train = cells.train_command(sys.executable, log, seed, *flags(method, options.updates), "--device", "cpu")
        return cells.Cell("tabletop", method, seed, train, evaluate)

    return [cell(method, seed) for seed in range(options.seeds) for method in METHODS if method in options.methods]


def flags(method: str, updates: int) -> tuple[str, ...]:
    """Returns the flags of `qtransformer train` that make a method."""
    cloning = ("--algorithm", "behaviour_cloning", *NETWORK)
    return {
        OURS: (*NETWORK, *BALANCE, "--steps", str(updates)),
        CLONING: (*cloning, "--steps", str(updates)),
        SUCCESSES: (*cloning, "--only-successful", "--steps", str(max(1, updates // 3))),
        WORDLESS: (*NETWORK, *BALANCE, "--steps", str(updates), "--observations", "objects", "state"),
    }[method]


def log_rates(log: Path) -> Rates:
    """Returns the success of the logged episodes by skill: the environment says which skill the seed of each drew."""
    import qtransformer_envs  # noqa: F401 - registers the environment

    dataset = open_dataset(log)
    environment = gymnasium.make(ENVIRONMENT, **dataset.spec.environment_kwargs)
    counts: dict[str, list[int]] = {}
    for episode in dataset.episodes:
        _, info = environment.reset(seed=episode.seed)
        counts.setdefault(info["task"], []).append(int(bool(episode.success)))
    environment.close()
    return {skill: rate(sum(each), len(each)) for skill, each in sorted(counts.items())}


def tabulate(found: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> dict[str, Rates]:
    """Returns success by method and skill, all seeds together."""
    table: dict[str, Rates] = {}
    for method in METHODS:
        results = [found[key] for seed in range(options.seeds) if (key := f"tabletop/{method}/{seed}") in found]
        skills = sorted({skill for each in results for skill in each["tasks"]})
        sums = {skill: [sum(each["tasks"][skill][place] for each in results) for place in (0, 1)] for skill in skills}
        if results:
            table[method] = {skill: rate(*sums[skill]) for skill in skills}
    return table


def rate(successes: int, episodes: int) -> dict[str, Any]:
    """Returns a rate, its 95 % Wilson interval and what it was counted from."""
    low, high = wilson_interval(successes, episodes)
    return {
        "success_rate": round(successes / episodes, 4),
        "interval": [round(low, 4), round(high, 4)],
        "episodes": episodes,
    }


def summary(table: Mapping[str, Rates]) -> dict[str, Any]:
    """Returns the means over the skills, the ratios, and the table itself."""
    means = {name: statistics.mean(each["success_rate"] for each in rates.values()) for name, rates in table.items()}

    def ratio(other: str) -> float | None:
        return harness.rounded(means[OURS] / means[other]) if OURS in means and means.get(other) else None

    return {
        "ratio": ratio(CLONING),
        "ratio_to_log": ratio("log"),
        "mean_success": {name: round(each, 4) for name, each in means.items()},
        "success": table,
    }


def show(table: Mapping[str, Rates], means: Mapping[str, float]) -> None:
    """Prints the table for people."""
    shown = Table("skill", *table, title="success, % (95 % interval)")
    for skill in table["log"]:
        shown.add_row(skill, *(told(rates.get(skill)) for rates in table.values()))
    shown.add_row("mean", *(f"{100 * means[name]:.0f}" for name in table))
    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(shown)


def told(each: Mapping[str, Any] | None) -> str:
    """Returns one cell of the table for people."""
    if each is None:
        return "-"
    low, high = (f"{100 * end:.0f}" for end in each["interval"])
    return f"{100 * each['success_rate']:.0f} ({low}-{high})"


def draw(table: Mapping[str, Rates], path: Path) -> None:
    """Draws success with its interval, one panel a skill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    skills, names = list(table["log"]), list(table)
    figure, grid = pyplot.subplots(
        2, -(-len(skills) // 2), figsize=(13, 0.7 * len(names) + 1.6), sharex=True, sharey=True
    )
    for axis, skill in zip(grid.flat, skills, strict=False):
        for place, name in enumerate(names):
            if each := table[name].get(skill):
                colour = "#c2410c" if name == OURS else "#334155"
                axis.hlines(place, *(100 * end for end in each["interval"]), color=colour, linewidth=2)
                axis.plot(100 * each["success_rate"], place, "o", color=colour)
        axis.set(title=skill.replace("_", " "), xlim=(-2, 102))
        axis.set_yticks(range(len(names)), names)
        axis.grid(axis="x", alpha=0.3)
    for axis in grid.flat[len(skills) :]:
        axis.axis("off")
    grid.flat[0].invert_yaxis()
    figure.supxlabel("success, % (95 % interval)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
