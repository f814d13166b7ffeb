"""What wrong marks at the ends of episodes do to the values: three foreign files, each read wrongly and rightly.

PickCube's log, with a reward of -1 a step until success (--sparse: 0, and 1 at success), is written as others write it,
and a policy is trained on each reading:

    robomimic    time limits marked as `dones`, all taken for success / `dones` that mark success alone
    D4RL         a file without `timeouts`: a failure runs on into the next episode / the file with them
    Minari       T observations for T actions: the last one repeated as its own successor / no successor there

Shown is the value of the steps of the episodes that ran into the time limit, in the unit of the reward, over the steps
that are left. Where a time limit is taken for the end of the task, being near it looks like being almost done.

    .venv/bin/python benchmarks/marks.py [--quick] [--sparse] [--log FOLDER] [--work FOLDER] [--seeds 2] [--picture PNG]

The last line printed is one JSON object. `ratio`: value of the last steps, read wrongly / rightly, by file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import harness
import logs
import numpy as np
import torch

from qtransformer.config import DataConfig, TrainConfig
from qtransformer.evaluation import Plan, evaluate, make_environment
from qtransformer.explain_log import RunLog
from qtransformer.loading import load_run
from qtransformer.policy import CheckpointPolicy
from qtransformer.training import train
from qtransformer_datasets.convert import convert_dataset
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import Episode, EpisodeDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from dialect_fixtures import write_d4rl, write_robomimic

MOST = 50  # episodes whose values are looked at
LAST = 10  # steps before the time limit that `ratio` looks at
EVALUATION_SEED = 500_000
Writer = Callable[[Path, EpisodeDataset], Path]


def write_minari(path: Path, dataset: EpisodeDataset, has_successor: bool) -> Path:
    """Writes the log without its final observations; with `has_successor`, the last one again in their place."""
    episodes = [_without_final(each, has_successor) for each in dataset.episodes]
    convert_dataset(dataset.with_episodes(episodes), path)
    return path


def _without_final(episode: Episode, is_repeated: bool) -> Episode:
    rows = {key: np.asarray(each)[:-1] for key, each in episode.observations.items()}
    if is_repeated:
        rows = {key: np.concatenate([each, each[-1:]]) for key, each in rows.items()}
    return replace(episode, observations=rows, has_final_observation=is_repeated)


def write_dones(path: Path, dataset: EpisodeDataset, dones: str) -> Path:
    """Writes the log as robomimic does."""
    return write_robomimic(path, dataset.episodes, dones=dones)


def penalised(episode: Episode) -> Episode:
    """Returns the episode with -1 a step until the one that succeeds."""
    return replace(episode, rewards=episode.rewards - 1.0)


FILES: dict[str, dict[str, tuple[str, Writer, DataConfig]]] = {
    "robomimic": {
        "wrong": ("both.hdf5", partial(write_dones, dones="both"), DataConfig("success")),
        "right": ("success.hdf5", partial(write_dones, dones="success"), DataConfig("success")),
    },
    "D4RL": {
        "wrong": ("old.hdf5", lambda path, log: write_d4rl(path, log.episodes, timeouts=False), DataConfig()),
        "right": ("new.hdf5", lambda path, log: write_d4rl(path, log.episodes), DataConfig()),
    },
    "Minari": {
        "wrong": ("repeated", lambda path, log: write_minari(path, log, True), DataConfig()),
        "right": ("short", lambda path, log: write_minari(path, log, False), DataConfig()),
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains on each reading, measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few updates and episodes")
    parser.add_argument("--sparse", action="store_true", help="rewards as logged, 0 and 1")
    parser.add_argument("--log", type=Path, help="PickCube's log, made in --work where missing")
    parser.add_argument("--work", type=Path, default=Path("runs/marks"), help="files and runs; emptied first")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.updates, options.episodes = 1, 20, 1
    torch.set_num_threads(1)
    log = open_dataset(options.log or logs.ensure("pick-cube", options.work / "logs"))
    if not options.sparse:
        log = log.with_episodes(map(penalised, log.episodes))
    shutil.rmtree(options.work / "runs", ignore_errors=True)
    measured = {
        name: {mark: measure(options, log, name, mark) for mark in readings} for name, readings in FILES.items()
    }
    if options.picture:
        draw(measured, options.picture)
    ratio = {name: harness.rounded(each["wrong"]["last"] / each["right"]["last"]) for name, each in measured.items()}
    result = {"benchmark": "marks", "quick": options.quick, "ratio": ratio, "values": measured}
    settings = {name: getattr(options, name) for name in ("sparse", "seeds", "updates", "episodes")}
    harness.print_result({**result, **settings, "machine": harness.machine()})
    return 0


def measure(options: argparse.Namespace, log: EpisodeDataset, name: str, mark: str) -> dict[str, Any]:
    """Returns what policies trained on one reading of a file make of the log as it was, over all seeds."""
    file, write, data = FILES[name][mark]
    folder = options.work / "runs" / name / mark
    folder.mkdir(parents=True)
    path = write(folder / file, log)
    curves, successes = [], 0
    for seed in range(options.seeds):
        config = TrainConfig(path, folder / f"seed-{seed}", steps=options.updates, seed=seed, device="cpu", data=data)
        run = load_run(train(config))
        curves.append(values_before_the_limit(RunLog(run, log)))
        plan = Plan(options.episodes, 4, EVALUATION_SEED)
        outcome = evaluate(CheckpointPolicy(run.policy), partial(make, log), plan)
        successes += sum(each.success for each in outcome.outcomes)
    curve = np.mean(curves, axis=0)
    rules = open_dataset(path, data).rules
    return {
        "terminated": rules["terminated"],
        "final observation": rules["final observation"],
        "last": harness.rounded(float(curve[-LAST:].mean())),
        "curve": [harness.rounded(float(value)) for value in curve],
        "success_rate": harness.rounded(successes / (options.seeds * options.episodes)),
    }


def make(log: EpisodeDataset) -> gymnasium.Env:
    """Returns the environment that the log came from."""
    return make_environment(log.spec.environment_id or "", dict(log.spec.environment_kwargs), ("qtransformer_envs",))


def values_before_the_limit(log: RunLog) -> np.ndarray:
    """Returns the mean value at each step of the episodes that were cut off by the time limit."""
    limit = max(each.num_steps for each in log.episodes)
    cut = [index for index, each in enumerate(log.episodes) if each.truncations[-1] and each.num_steps == limit]
    cut = cut[:MOST]
    return log.predict(log.rows(cut)).values.reshape(len(cut), limit).mean(axis=0)


def draw(measured: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Draws the values over the steps that are left, one panel a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(measured), figsize=(4 * len(measured), 3.2), sharey=True)
    for axis, (name, readings) in zip(axes, measured.items(), strict=True):
        for mark, colour in (("wrong", "#334155"), ("right", "#c2410c")):
            curve = readings[mark]["curve"]
            label = f"{mark} ({100 * readings[mark]['success_rate']:.0f} % success)"
            axis.plot(np.arange(-len(curve), 0), curve, color=colour, label=label)
        axis.set(title=name, xlabel="steps to the time limit")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("mean value of failed episodes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
