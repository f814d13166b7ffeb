"""Feeding speed: segments of 6 steps per CPU second, against Minari's reads, d3rlpy's sampling and robomimic's way.

Numbers: one log of 1M steps (states of 20, actions of 8, episodes of 200), in Minari's layout. Minari reads an episode
for each segment; d3rlpy holds all in memory, as we do, and draws segments, or transitions, which are one step each.
Images: one robomimic file of 84x84x3 frames, raw and contiguous. A robomimic-style reader reads it sample by sample; we
read the cache, which is written before the clock starts. Batches of 256, whole batches on both sides.
Both logs are in the page cache of the system.

    .venv/bin/python benchmarks/loading.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import peers
from harness import Worker, interleave, machine, percentile, print_result, ratios, rounded, say

SCRIPT = Path(__file__).resolve().with_name("loading_worker.py")
SEGMENT, BATCH = 6, 256
NUMBERS = {"episodes": 5000, "steps": 200, "states": 20, "actions": 8}
IMAGES = {"episodes": 100, "steps": 200, "side": 84, "channels": 3, "states": 20, "actions": 8}
QUICK = {"numbers": {**NUMBERS, "episodes": 200}, "images": {**IMAGES, "episodes": 10}}
NEEDED_RATE = 100_000  # segments a second
NEEDED_RATIOS = (("numbers", "minari", 20), ("numbers", "d3rlpy segments", 20), ("images", "robomimic style", 5))
MAY_GROW_MB = 20  # of a process's own memory while it draws, beside that of the first batch: allocators keep some
TARGET_SECONDS = 0.5  # of each contestant's turn


def write_numbers(folder: Path, sizes: Mapping[str, int]) -> Path:
    """Writes the log of numbers as Minari does and returns its folder."""
    generator, T = np.random.default_rng(0), sizes["steps"]
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index in range(sizes["episodes"]):
            group = file.create_group(f"episode_{index}")
            group.attrs.update({"id": index, "total_steps": T})
            group["observations"] = generator.normal(size=(T + 1, sizes["states"])).astype(np.float32)
            group["actions"] = generator.uniform(-1, 1, (T, sizes["actions"])).astype(np.float32)
            group["rewards"] = generator.uniform(size=T)
            group["terminations"] = np.arange(T) == T - 1
            group["truncations"] = np.zeros(T, bool)
    metadata = {
        "total_episodes": sizes["episodes"],
        "total_steps": sizes["episodes"] * T,
        "data_format": "hdf5",
        "observation_space": box(sizes["states"], -1e6, 1e6),
        "action_space": box(sizes["actions"], -1.0, 1.0),
        "dataset_id": "loading-v0",
        "minari_version": "0.5.3",
    }
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def box(size: int, low: float, high: float) -> str:
    """Returns a space as Minari writes it."""
    space = {"type": "Box", "dtype": "float32", "shape": [size], "low": [low] * size, "high": [high] * size}
    return json.dumps(space)


def write_images(path: Path, sizes: Mapping[str, int]) -> Path:
    """Writes the log of images as robomimic does and returns its file."""
    generator, T = np.random.default_rng(0), sizes["steps"]
    with h5py.File(path, "w") as file:
        for index in range(sizes["episodes"]):
            group = file.create_group(f"data/demo_{index}")
            group.attrs["num_samples"] = T
            frames = (T, sizes["side"], sizes["side"], sizes["channels"])
            group["obs/camera"] = generator.integers(256, size=frames, dtype=np.uint8)
            group["obs/state"] = generator.normal(size=(T, sizes["states"])).astype(np.float32)
            group["actions"] = generator.uniform(-1, 1, (T, sizes["actions"])).astype(np.float32)
            group["rewards"] = (np.arange(T) == T - 1).astype(np.float64)
            group["dones"] = np.arange(T) == T - 1
    return path


def race(workers: Mapping[str, Worker], rounds: int) -> dict[str, Any]:
    """Returns segments a CPU second of each, their ratios to ours, and the memory before and after."""
    repeats = {name: max(1, round(TARGET_SECONDS / each.call("seconds", repeats=2))) for name, each in workers.items()}
    before = {name: each.call("memory") for name, each in workers.items()}
    turns = {name: partial(each.call, "seconds", repeats=repeats[name]) for name, each in workers.items()}
    seconds = interleave(turns, rounds, say)
    after = {name: each.call("memory") for name, each in workers.items()}
    return {
        "segments_per_second": {name: rounded(BATCH / percentile(each, 0.5)) for name, each in seconds.items()},
        "ratio_to": {name: ratios(each, seconds["ours"]) for name, each in seconds.items() if name != "ours"},
        "megabytes": {name: {"before": plain(before[name]), "after": plain(after[name])} for name in workers},
    }


def plain(megabytes: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures in a readable length."""
    return {name: rounded(value) for name, value in megabytes.items()}


def race_numbers(folder: Path, sizes: Mapping[str, int], rounds: int) -> dict[str, Any]:
    """Returns what `race` says of the log of numbers."""
    log, robots = write_numbers(folder / "numbers", sizes), peers.ensure("robots")
    pythons = {"ours": sys.executable, "minari": sys.executable, "d3rlpy segments": robots}
    return run({**pythons, "d3rlpy transitions": robots}, log, rounds)


def race_images(folder: Path, sizes: Mapping[str, int], rounds: int) -> dict[str, Any]:
    """Returns what `race` says of the log of images."""
    log = write_images(folder / "images.hdf5", sizes)
    return run({"ours": sys.executable, "robomimic style": sys.executable}, log, rounds)


def run(pythons: Mapping[str, Path | str], log: Path, rounds: int) -> dict[str, Any]:
    """Returns what `race` says of contestants by the Python that each needs."""
    sizes = ("--batch", str(BATCH), "--segment", str(SEGMENT))
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, python in pythons.items():
            say(f"loading: {name} reads {log.name}")
            workers[name] = stack.enter_context(Worker(python, SCRIPT, name, str(log), *sizes))
            workers[name].call("memory")  # one after the other: reading takes both cores
        return race(workers, rounds)


def verdicts(numbers: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which of the promises the figures keep; d3rlpy's transitions are shown beside, being other work."""
    parts = {"numbers": numbers, "images": images}
    kept = {f"numbers: at least {NEEDED_RATE} segments/s": numbers["segments_per_second"]["ours"] >= NEEDED_RATE}
    for part, name, needed in NEEDED_RATIOS:
        kept[f"{part}: at least {needed}x {name}"] = parts[part]["ratio_to"][name]["median"] >= needed
    for part, found in parts.items():
        is_flat = growth(found["megabytes"]["ours"]) < MAY_GROW_MB
        kept[f"{part}: own memory grows less than {MAY_GROW_MB} MB"] = is_flat
    return kept


def growth(megabytes: Mapping[str, Mapping[str, float]]) -> float:
    """Returns how much of its own memory a process took while it drew."""
    return megabytes["after"]["own"] - megabytes["before"]["own"]


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of the data, under a minute")
    is_quick = parser.parse_args().quick
    sizes = QUICK if is_quick else {"numbers": NUMBERS, "images": IMAGES}
    rounds = 3 if is_quick else 7
    with tempfile.TemporaryDirectory() as place:
        numbers = race_numbers(Path(place), sizes["numbers"], rounds)
        images = race_images(Path(place), sizes["images"], rounds)
    head = {"benchmark": "loading", "quick": is_quick, "machine": machine(), "batch": BATCH, "segment": SEGMENT}
    ratio = {name: each["median"] for part in (numbers, images) for name, each in part["ratio_to"].items()}
    kept = verdicts(numbers, images)
    print_result({**head, "sizes": sizes, "ratio": ratio, "numbers": numbers, "images": images, "kept": kept})


if __name__ == "__main__":
    main()
