"""Speed of the tabletop suite: control steps per CPU second of each task, with and without images, and evaluation.

Images are 64, 128 and 256 pixels, under OSMesa and EGL, one process a backend, against the renderer alone at the same
size: `ratio` is the share of its pictures per second that an environment with one camera reaches. Evaluation is
`evaluate` with environments side by side against a plain loop over one, wall time, with the same untrained policy.

    .venv/bin/python benchmarks/simulation.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import Worker, WorkerError, interleave, machine, print_result, ratios, rounded, say

SCRIPT = Path(__file__).resolve().with_name("simulation_worker.py")
BACKENDS = ("osmesa", "egl")
SIZES = (64, 128, 256)  # pixels
NEEDED_RATE = 600  # control steps a CPU second, for every task
NEEDED_SHARE = 0.7  # of the renderer's pictures, at NEEDED_SIZE
NEEDED_SIZE = 128
ROUNDS, QUICK_ROUNDS = 5, 1
STATE_STEPS, IMAGE_STEPS, EPISODES = 300, 60, 24
QUICK_STATE_STEPS, QUICK_IMAGE_STEPS, QUICK_EPISODES = 40, 15, 3

Figures = Mapping[str, Sequence[float]]


def measure_state(worker: Worker, task_ids: Sequence[str], num_steps: int, rounds: int) -> dict[str, list[float]]:
    """Returns control steps per CPU second of each task, round by round."""
    contestants = {
        name: partial(worker.call, "steps_per_second", environment_id=name, num_steps=num_steps) for name in task_ids
    }
    return interleave(contestants, rounds, say)


def measure_images(worker: Worker, task_ids: Sequence[str], num_steps: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Returns what `share` does, for each size."""
    found = {}
    for size in SIZES:
        contestants = {}
        for name in task_ids:
            arguments = {"environment_id": name, "num_steps": num_steps, "size": size}
            contestants[name] = partial(worker.call, "steps_per_second", **arguments)
            contestants[f"{name} alone"] = partial(worker.call, "frames_per_second", **arguments)
        found[size] = share(interleave(contestants, rounds, say), task_ids)
    return found


def share(figures: Figures, task_ids: Sequence[str]) -> dict[str, Any]:
    """Returns rates of steps with an image and of pictures alone, and the one as a share of the other."""
    shares = {name: ratios(figures[name], figures[f"{name} alone"])["median"] for name in task_ids}
    return {
        "steps_per_cpu_second": medians({name: figures[name] for name in task_ids}),
        "pictures_per_cpu_second": medians({name: figures[f"{name} alone"] for name in task_ids}),
        "share": shares,
        "median_share": rounded(statistics.median(shares.values())),
    }


def medians(figures: Figures) -> dict[str, float]:
    """Returns the median of each."""
    return {name: rounded(statistics.median(each)) for name, each in figures.items()}


def measure_backend(backend: str, task_ids: Sequence[str], num_steps: int, rounds: int) -> dict[int, Any] | None:
    """Returns `measure_images` under a backend; None, with the reason on stderr, where it cannot draw here."""
    try:
        with Worker(sys.executable, SCRIPT, backend) as worker:
            reason = worker.call("why_unavailable")
            if reason is None:
                return measure_images(worker, task_ids, num_steps, rounds)
    except WorkerError as error:
        reason = str(error)
    say(f"{backend}: cannot draw here: {reason}")
    return None


def measure_evaluation(worker: Worker, num_episodes: int, rounds: int) -> dict[str, Any]:
    """Returns wall seconds, how many times the plain loop's speed, and whether all played the same episodes."""
    num_envs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    calls = {"serial": partial(worker.call, "serial", num_episodes=num_episodes)}
    for name in ("sync", "async"):
        arguments = {"num_episodes": num_episodes, "vectorization": name, "num_envs": max(2, num_envs)}
        calls[name] = partial(worker.call, "evaluated", **arguments)
    calls["serial"]()  # makes the policy and compiles the models
    lengths = []

    def play(name: str) -> float:
        answer = calls[name]()
        lengths.append(answer["lengths"])
        return answer["seconds"]

    figures = interleave({name: partial(play, name) for name in calls}, rounds, say)
    return {
        "episodes": num_episodes,
        "num_envs": max(2, num_envs),
        "wall_seconds": medians(figures),
        "ratio": {name: ratios(figures["serial"], figures[name])["median"] for name in ("sync", "async")},
        "same_episodes": all(each == lengths[0] for each in lengths),
    }


def verdicts(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which of the promises the figures keep; a backend that is not here keeps and breaks none."""
    rates = result["state_steps_per_cpu_second"].values()
    kept = {f"state alone: at least {NEEDED_RATE} steps a second for every task": min(rates) >= NEEDED_RATE}
    for backend in BACKENDS:
        if result["images"][backend] is not None:
            worst = min(result["images"][backend][NEEDED_SIZE]["share"].values())
            kept[f"{backend}: at least {NEEDED_SHARE} of the renderer at {NEEDED_SIZE} px"] = worst >= NEEDED_SHARE
    return {**kept, "evaluate plays the same episodes as a plain loop": result["evaluation"]["same_episodes"]}


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, episodes and rounds, images of some tasks")
    is_quick = parser.parse_args().quick
    rounds = QUICK_ROUNDS if is_quick else ROUNDS
    with Worker(sys.executable, SCRIPT, "disable") as worker:
        task_ids = worker.call("task_ids")
        state = measure_state(worker, task_ids, QUICK_STATE_STEPS if is_quick else STATE_STEPS, rounds)
        evaluation = measure_evaluation(worker, QUICK_EPISODES if is_quick else EPISODES, rounds)
    num_steps, drawn = (QUICK_IMAGE_STEPS, task_ids[::3]) if is_quick else (IMAGE_STEPS, task_ids)
    images = {backend: measure_backend(backend, drawn, num_steps, rounds) for backend in BACKENDS}
    result = {
        "ratio": {
            **{f"{name} {NEEDED_SIZE} px": each and each[NEEDED_SIZE]["median_share"] for name, each in images.items()},
            **{f"evaluate {name}": each for name, each in evaluation["ratio"].items()},
        },
        "state_steps_per_cpu_second": medians(state),
        "images": images,
        "evaluation": evaluation,
    }
    head = {"benchmark": "simulation", "quick": is_quick, "machine": machine()}
    print_result({**head, **result, "kept": verdicts(result)})


if __name__ == "__main__":
    main()
