"""The whole path on one small log: collect, train, evaluate, compare with cloning, export, report.

Special about this file: each stage is the command a user would type, run as a process of its own, two at a time where
they do not wait for each other; so what the demo shows is what a user gets.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qtransformer.config import RunError
from qtransformer.outcomes import WORD_RULE, wilson_interval
from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.schema import EpisodeDataset

_LABELS = {
    "behaviour": "behaviour that made the log",
    "cloning": "cloning, all episodes",
    "filtered_cloning": "cloning, successful episodes",
    "ours": "Q-Transformer (ours)",
    "exported": "ours, exported file",
}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_RUNS = ("ours", "cloning", "filtered_cloning")
_CLIPS = 3  # episodes that are played once more, with pictures
_TITLE = "Q-Transformer demo: picking up a cube from noisy logs"
_TEXT = (
    "A 7-joint arm with a parallel gripper has to grasp a cube and lift it by 10 cm. The log was made by a scripted "
    "expert whose actions were disturbed: each episode drew its own Gaussian noise and its own rate of random actions "
    "held for several steps. Nothing else was used for training. All policies were played on the same seeds."
)
_EVALUATION_SEED = 100_000  # far from the seeds of the log


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    episodes: int = 300
    steps: int = 3000
    evaluation_episodes: int = 100


_QUICK = Scale(episodes=20, steps=60, evaluation_episodes=6)


def demo(out: Path, quick: bool = False) -> dict[str, Any]:
    """Runs everything into the new folder `out`; returns what its summary.json holds.

    Raises:
        RunError: `out` holds something already, a package is missing, or a stage failed; its log says why.
    """
    if (out / "summary.json").exists():
        summary = json.loads((out / "summary.json").read_text())
        _print(out, summary)
        print(f"{out} holds a finished demo; remove the folder to run it again")
        return summary
    if out.exists() and any(out.iterdir()):
        raise RunError(f"--out {out}: holds an unfinished demo or something else; remove it or choose another folder")
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise RunError(f"the demo needs {', '.join(missing)}; pip install 'qtransformer[export]'")
    started, scale = time.perf_counter(), _QUICK if quick else Scale()
    out.mkdir(parents=True, exist_ok=True)
    _say("1/5 collecting a log of a noisy scripted expert")
    collect(CollectConfig(episodes=scale.episodes), out / "log")
    _say("2/5 training: ours on one core, the two clonings on the other (progress in the .log files)")
    _train_all(out, scale)
    _say("3/5 exporting")
    _run(out / "export.log", "export", out / "ours", "--out", out / "policy")
    _say(f"4/5 evaluating all on the same {scale.evaluation_episodes} seeds")
    results = _evaluate_all(out, scale)
    summary = {**results, "seconds": time.perf_counter() - started, "peak_memory_mb": _peak_memory_mb()}
    _say("5/5 writing the report")
    _report(out, summary)
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    _print(out, summary)
    return summary


def _train_all(out: Path, scale: Scale) -> None:
    common = ("train", "--dataset", out / "log")
    cloning = (*common, "--algorithm", "behaviour_cloning")
    # A third of the updates: the successful episodes are a sixth of the steps, and with all it overfits (docs/LOG.md).
    filtered = (*cloning, "--only-successful", "--steps", scale.steps // 3)
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(_run, None, *common, "--steps", scale.steps, "--out", out / "ours")
        _run(out / "cloning.log", *cloning, "--steps", scale.steps, "--out", out / "cloning")
        _run(out / "filtered_cloning.log", *filtered, "--out", out / "filtered_cloning")
        ours.result()


def _evaluate_all(out: Path, scale: Scale) -> dict[str, dict[str, Any]]:
    """Returns the result of the behaviour, the three runs and the bundle, all on the same seeds."""
    folders = {"ours": "ours", "exported": "policy", "cloning": "cloning", "filtered_cloning": "filtered_cloning"}

    def evaluate(folder: str) -> dict[str, Any]:
        seeds = ("--episodes", scale.evaluation_episodes, "--seed", _EVALUATION_SEED)
        return json.loads(_run(out / f"evaluate_{folder}.log", "evaluate", out / folder, *seeds, "--json"))

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(folders, pool.map(evaluate, folders.values()), strict=True))
    plan = CollectConfig(episodes=scale.evaluation_episodes, seed=_EVALUATION_SEED)
    results["behaviour"] = _behaviour(collect(plan, out / "behaviour"))
    return {name: results[name] for name in _LABELS}


def _report(out: Path, results: Mapping[str, Any]) -> None:
    """Writes what was played into files, and the page about it and the runs."""
    folder = out / "evaluations"
    folder.mkdir(exist_ok=True)
    for name in _LABELS:
        (folder / f"{name}.json").write_text(json.dumps(results[name], indent=1))
    runs = (f"{_LABELS[name]}={out / name}" for name in _RUNS)
    files = (f"{label}={folder / name}.json" for name, label in _LABELS.items())
    clips = ("--episodes", _CLIPS, "--seed", _EVALUATION_SEED)
    words = ("--title", _TITLE, "--text", _TEXT, "--out", out / "report.html")
    _run(out / "report.log", "report", *runs, "--evaluations", *files, *clips, *words)


def _behaviour(played: EpisodeDataset) -> dict[str, Any]:
    """Returns the result of the policy that made the log, played on the seeds of the evaluation."""
    successes, episodes = sum(bool(each.success) for each in played.episodes), played.num_episodes
    outcomes = enumerate(played.episodes, start=_EVALUATION_SEED)
    return {
        "environment_id": played.spec.environment_id,
        "success_rule": WORD_RULE,
        "outcomes": [{"seed": seed, "success": bool(each.success)} for seed, each in outcomes],
        "successes": successes,
        "episodes": episodes,
        "success_rate": successes / episodes,
        "interval": list(wilson_interval(successes, episodes)),
        "mean_length": float(np.mean([each.num_steps for each in played.episodes])),
    }


def _run(log: Path | None, *arguments: object) -> str:
    """Runs `qtransformer` with one thread; returns its standard output. Progress goes to `log`, or to the terminal.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", "qtransformer.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (log or Path(os.devnull)).open("w") as errors:
        stderr = errors if log else None
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    if done.returncode != 0:
        reason = log.read_text().strip().splitlines()[-1:] if log else ["see above"]
        raise RunError(f"{' '.join(command[2:])} failed: {' '.join(reason) or 'no message'}")
    return done.stdout


def _peak_memory_mb() -> float:
    """Returns an upper bound: this process at its largest, and twice the largest child, since two run at a time."""
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + 2 * child) / 1024


def _print(out: Path, summary: Mapping[str, Any]) -> None:
    table = Table("policy", "success", "95 % interval", "mean length", title="Demo", title_justify="left")
    for name, label in _LABELS.items():
        result = summary[name]
        low, high = result["interval"]
        table.add_row(
            label,
            f"{result['successes']}/{result['episodes']}",
            f"{low:.0%} to {high:.0%}",
            f"{result['mean_length']:.1f} steps",
        )
    console = Console()
    console.print(table)
    console.print(f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']:.0f} MB", highlight=False)
    console.print(f"report: {out / 'report.html'}   bundle: {out / 'policy'}", highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    Console(stderr=True).print(f"[bold]{text}[/]", highlight=False)
