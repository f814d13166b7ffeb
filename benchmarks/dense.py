"""Rewards beyond 0 and 1 without a flag: HalfCheetah's own dense reward, logged as it is and with 5 less a step.

Recorded is a scripted gait with the noise of `qtransformer collect`'s defaults, in episodes that are cut off after 200
steps and never terminate (dense_cheetah.py). On it are trained, and evaluated on the same episodes by their return (not
discounted):

    ours            `qtransformer train` as it comes
    ours, shifted   the same on a copy of the log whose every reward is 5 less: the returns lie 5 / (1 - gamma) lower
    cloning         --algorithm behaviour_cloning, as many updates, which is less CPU time
    paper           --preset paper, a third of the updates, which is about the CPU time of ours

Then Q of logged actions is held against the returns of the log, discounted and in the log's own unit, in the first 50
steps of its episodes and in the last 10. What would have followed the cut is not known: `return` lets the episode go on
with its mean reward, `bound` counts the worst that the log's rewards permit, as the Monte-Carlo bound in training does.

    .venv/bin/python benchmarks/dense.py [--quick] [--work FOLDER] [--seeds 2]

Finished cells are kept in --work, apart for every choice of the other options: the same command again goes on. The last
line printed is one JSON object. `ratio`: mean return of ours / of cloning, null where that of cloning is not above 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cells
import harness
import numpy as np
import torch
from dense_cheetah import ENVIRONMENT

from qtransformer.calibration import rank_correlation
from qtransformer.explain_log import RunLog
from qtransformer.loading import load_run
from qtransformer_datasets.convert import convert_dataset
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.returns import discounted_returns
from qtransformer_datasets.schema import Episode

OURS, SHIFTED, CLONING, PAPER = "ours", "ours, shifted", "cloning", "paper"
FLAGS = {OURS: (), SHIFTED: (), CLONING: ("--algorithm", "behaviour_cloning"), PAPER: ("--preset", "paper")}
PENALTY = 5.0  # a step, in the shifted log
FIRST, LAST = 50, 10  # steps of an episode whose values are told
MOST = 50  # episodes whose values are looked at
MODULE = "dense_cheetah"
CLI = (sys.executable, "-m", "qtransformer.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells that are missing and prints what all of them say."""
    options = read_arguments(arguments)
    torch.set_num_threads(1)
    folder = options.work / f"{options.log_episodes}-{options.updates}-{options.episodes}"
    make_logs(folder, options.log_episodes)
    found: dict[str, list[Mapping[str, Any]]] = {method: [] for method in options.methods}
    for seed in range(options.seeds):
        for method, results in found.items():
            results.append(ensure(options, method, seed, folder))
    logged = [float(episode.rewards.sum()) for episode in open_dataset(folder / "log").episodes]
    settings = {name: getattr(options, name) for name in ("seeds", "updates", "episodes", "log_episodes")}
    result = {"benchmark": "dense", "quick": options.quick, **summary(found), "behaviour": behaviour(logged)}
    harness.print_result({**result, **settings, "machine": harness.machine()})
    return 0


def ensure(options: argparse.Namespace, method: str, seed: int, folder: Path) -> Mapping[str, Any]:
    """Returns the cell of a method and a seed, run and written down first where it is missing."""
    key, path = f"{method}/{seed}", folder / "results.jsonl"
    found = cells.read_results(path)
    if key not in found:
        found[key] = run_cell(options, method, seed, folder)
        with path.open("a") as file:
            file.write(json.dumps({"key": key, **found[key]}) + "\n")
    harness.say(f"{key}: mean return {statistics.mean(found[key]['returns']):.1f}")
    return found[key]


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; the folder as an absolute path, since commands run inside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the paper's recipe; one seed, few of everything")
    parser.add_argument("--work", type=Path, default=Path("runs/dense"), help="logs, runs and results")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=1500, help="of each but the paper's recipe")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation")
    parser.add_argument("--log-episodes", type=int, default=200)
    options = parser.parse_args(arguments)
    options.work, options.methods = options.work.resolve(), tuple(FLAGS)
    if options.quick:
        options.seeds, options.updates, options.episodes, options.log_episodes = 1, 20, 2, 6
        options.methods = (OURS, SHIFTED, CLONING)
    if options.seeds * options.episodes < 2:
        parser.error(
            f"--seeds ({options.seeds}) times --episodes ({options.episodes}) must be at least 2; raise either"
        )
    return options


# --- running ----------------------------------------------------------------------------------------------------------


def make_logs(folder: Path, num_episodes: int) -> tuple[Path, Path]:
    """Returns the log and its shifted copy, made where they are missing."""
    log, copy, unfinished = folder / "log", folder / "shifted", folder / "shifted.unfinished"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        size = ("--episodes", str(num_episodes), "--num-workers", "1")
        cells.call(
            (*CLI, "collect", "--env-id", ENVIRONMENT, "--import", MODULE, *size, "--out", log, "--append"), folder
        )
        shutil.rmtree(unfinished, ignore_errors=True)
        dataset = open_dataset(log)
        convert_dataset(dataset.with_episodes(map(shifted, dataset.episodes)), unfinished)
        unfinished.rename(copy)
    return log, copy


def shifted(episode: Episode) -> Episode:
    """Returns the episode with less reward at each step."""
    return replace(episode, rewards=episode.rewards - PENALTY)


def run_cell(options: argparse.Namespace, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains and evaluates by the real commands; returns the returns, what Q says of the log, and CPU seconds."""
    run, log = folder / "runs" / method / str(seed), folder / ("shifted" if method == SHIFTED else "log")
    shutil.rmtree(run, ignore_errors=True)  # what an interrupted cell left
    steps = str(max(1, options.updates // 3) if method == PAPER else options.updates)
    _, cpu_s = cells.call(cells.train_command(sys.executable, log, seed, *FLAGS[method], "--steps", steps)(run), folder)
    told, _ = cells.call(cells.evaluate_command(sys.executable, options.episodes, MODULE)(run), folder)
    returns = [each["episode_return"] for each in json.loads(told)["outcomes"]]
    values = {} if method == CLONING else {"values": values_of(run, log)}
    return {"returns": returns, "training_cpu_s": round(cpu_s, 1), **values}


# --- values -----------------------------------------------------------------------------------------------------------


def values_of(run: Path, log: Path) -> dict[str, Any]:
    """Returns the range of returns of a run, and the means of Q and of the log's returns at both ends of episodes."""
    loaded, dataset = load_run(run), open_dataset(log)
    seen, chosen = RunLog(loaded, dataset), dataset.episodes[:MOST]
    predicted = seen.predict(seen.rows(range(len(chosen))))
    discount = seen.config.return_discount
    columns = {
        "q": predicted.q_logged.reshape(len(chosen), -1),  # all episodes have the same length
        "return": np.stack([going_on(each.rewards, discount) for each in chosen]),
        "bound": predicted.returns.reshape(len(chosen), -1),
    }
    first = {name: each[:, :FIRST] for name, each in columns.items()}
    last = {name: each[:, -LAST:] for name, each in columns.items()}
    return {
        "range": [harness.rounded(each) for each in (seen.scale.low, seen.scale.high)],
        "first": {name: harness.rounded(float(each.mean())) for name, each in first.items()},
        "last": {name: harness.rounded(float(each.mean())) for name, each in last.items()},
        "rank_correlation": harness.rounded(rank_correlation(first["q"].ravel(), first["return"].ravel())),
    }


def going_on(rewards: np.ndarray, discount: float) -> np.ndarray:
    """Returns the return from each step on, had the episode gone on with its mean reward for ever."""
    return discounted_returns(rewards, discount, float(rewards.mean()) / (1 - discount))


# --- telling ----------------------------------------------------------------------------------------------------------


def behaviour(returns: Sequence[float]) -> dict[str, float]:
    """Returns the mean return of the log's episodes, and of the best tenth of them."""
    best = sorted(returns)[-max(1, len(returns) // 10) :]
    return {"mean": harness.rounded(statistics.mean(returns)), "best_tenth": harness.rounded(statistics.mean(best))}


def summary(cells_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns ratio, returns, the effect of the shift, and values, from the cells of each method, one a seed."""
    means = {method: interval(pooled(found)) for method, found in cells_of.items()}
    ours, cloning = means[OURS]["mean"], means[CLONING]["mean"]
    values = {method: [each["values"] for each in found] for method, found in cells_of.items() if method != CLONING}
    differences = np.subtract(pooled(cells_of[SHIFTED]), pooled(cells_of[OURS])).tolist()
    return {
        "ratio": harness.rounded(ours / cloning) if cloning > 0 else None,
        "returns": {
            method: {**means[method], "seeds": [harness.rounded(statistics.mean(each["returns"])) for each in found]}
            for method, found in cells_of.items()
        },
        "training_cpu_s": {method: [each["training_cpu_s"] for each in found] for method, found in cells_of.items()},
        "shift": {
            "of_return": interval(differences),
            "of_q": [q_shift(*pair) for pair in zip(values[SHIFTED], values[OURS], strict=True)],
        },
        "values": values,
    }


def pooled(found: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the returns of all seeds."""
    return [each for cell in found for each in cell["returns"]]


def q_shift(changed: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, float]:
    """Returns how much lower Q lies on the shifted log, at both ends of episodes."""
    return {end: harness.rounded(changed[end]["q"] - plain[end]["q"]) for end in ("first", "last")}


def interval(numbers: Sequence[float]) -> dict[str, Any]:
    """Returns the mean with its 95 % interval, by the normal distribution."""
    mean = statistics.mean(numbers)
    half = 1.96 * statistics.stdev(numbers) / len(numbers) ** 0.5
    return {"mean": harness.rounded(mean), "interval": [harness.rounded(end) for end in (mean - half, mean + half)]}


if __name__ == "__main__":
    sys.exit(main())
