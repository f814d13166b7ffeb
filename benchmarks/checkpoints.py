"""What a checkpoint costs training: the time for which updates stand still, written at once or beside them.

A learner of 22M parameters, whose checkpoint of 360 MB goes to a temporary folder (TMPDIR), is saved between
updates in both ways, turn by turn. `ratio` is how many times longer updates wait where the loop writes itself. Also
told: an update alone, and one while a checkpoint is written beside it. Wall time.

    .venv/bin/python benchmarks/checkpoints.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import interleave, machine, print_result, ratios, rounded, say
from qtransformer_worker import make_batch, make_learner, num_parameters

from qtransformer.checkpoint import save_checkpoint
from qtransformer.checkpoint_writer import CheckpointWriter

SIZES = {"dimensions": 8, "bins": 256, "window": 6, "heads": 8, "state_size": 32, "transitions": 48}
LARGE = {**SIZES, "width": 512, "layers": 5, "action_layers": 1}
SMALL = {**SIZES, "width": 256, "layers": 2, "action_layers": 1}


def milliseconds(work: Callable[[], object]) -> float:
    """Returns how long it takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def measure(folder: Path, sizes: Mapping[str, int], rounds: int) -> tuple[int, dict[str, list[float]]]:
    """Returns the number of parameters, and the milliseconds of each contestant, round by round."""
    learner, batch, steps = make_learner(dict(sizes)), make_batch(dict(sizes)), iter(range(1, 10**9))

    with CheckpointWriter() as writer:

        def update() -> float:
            return milliseconds(lambda: learner.update(batch))

        def update_alone() -> float:
            writer.wait()
            return update()

        def save_at_once() -> float:
            update_alone()
            return milliseconds(lambda: save_checkpoint(folder / "at once", {"step": next(steps)}, *learner.state()))

        def save_beside() -> float:
            update_alone()
            info = {"step": next(steps)}
            return milliseconds(lambda: writer.save(folder / "beside", info, *learner.state(), {}))

        def update_while_written() -> float:
            save_beside()
            return update()

        asked = {"at once": save_at_once, "beside": save_beside}
        asked |= {"update alone": update_alone, "update while written": update_while_written}
        interleave(asked, 1)  # warm up
        return num_parameters(learner.policy), interleave(asked, rounds, say)


def summary(parameters: int, figures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Returns what the milliseconds say."""
    stalls = ratios(figures["at once"], figures["beside"])
    medians = {name: rounded(statistics.median(each)) for name, each in figures.items()}
    return {"ratio": stalls["median"], "ratio_range": stalls, "parameters": parameters, "milliseconds": medians}


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer rounds")
    is_quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), SMALL if is_quick else LARGE, rounds=2 if is_quick else 7)
    print_result({"benchmark": "checkpoints", "quick": is_quick, "machine": machine(), **summary(*found)})


if __name__ == "__main__":
    main()
