"""Two ranks against one process with the doubled batch: updates a second of wall time, one thread each.

Beside them, in the same rounds: two processes with half the batch each that exchange nothing, which is what cores and
memory of the machine allow, and the CPU time of the exchange of the gradients alone. `ratio` is one / two. It needs two
free cores.

    .venv/bin/python benchmarks/two_ranks.py [--quick] [--segments N]
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from harness import Worker, interleave, machine, print_result, ratios, rounded, say

SCRIPT = Path(__file__).resolve().with_name("two_ranks_worker.py")
SIZES = {"dimensions": 8, "bins": 256, "window": 6, "heads": 8, "state_size": 32}
MODELS = {  # the demo's of 0.24M parameters, 1M, 5M
    "small": {"dimensions": 7, "bins": 32, "window": 2, "width": 64, "layers": 2, "action_layers": 1, "heads": 4},
    "medium": {"width": 128, "layers": 4, "action_layers": 1},
    "large": {"width": 256, "layers": 4, "action_layers": 1},
}
NEEDED = 1.7

Figures = Mapping[str, Sequence[float]]


def together(workers: Sequence[Worker], threads: ThreadPoolExecutor, handler: str, **arguments: Any) -> float:
    """Returns the longest of what the workers answer, asked at the same time."""
    return max(threads.map(lambda worker: worker.call(handler, **arguments), workers))


def summary(figures: Figures, name: str) -> dict[str, Any]:
    """Returns what the seconds of the contestants of one model say."""
    one, two, apart, exchange = (figures[f"{name}: {each}"] for each in ("one", "two", "apart", "exchange"))
    seconds = {"one": one, "two": two, "apart": apart, "exchange": exchange}
    return {
        "ratio": ratios(one, two),
        "without_exchange": ratios(one, apart),
        "milliseconds": {each: rounded(1000 * statistics.median(values)) for each, values in seconds.items()},
    }


def contestants(
    name: str, one: Worker, two: Sequence[Worker], apart: Sequence[Worker], threads: ThreadPoolExecutor
) -> dict[str, Callable[[], float]]:
    """Returns who is measured with one model, by name."""
    repeats = {"name": name, "repeats": 4}
    return {
        f"{name}: one": partial(together, [one], threads, "update", **repeats, is_whole=True),
        f"{name}: two": partial(together, two, threads, "update", **repeats),
        f"{name}: apart": partial(together, apart, threads, "update", **repeats),
        f"{name}: exchange": partial(together, two, threads, "exchange", **repeats),
    }


def free_port() -> int:
    """Returns a port of this machine that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def measure(models: Mapping[str, Mapping[str, int]], segments: int, rounds: int) -> dict[str, Any]:
    """Returns the figures of each model, with so many segments a rank."""
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2))
        port = str(free_port())
        two, apart = (
            [stack.enter_context(Worker(sys.executable, SCRIPT, number, size, port)) for number in "01"]
            for size in "21"
        )
        asked: dict[str, Callable[[], float]] = {}
        parameters = {}
        for name, model in models.items():
            sizes = {**SIZES, **model}
            sizes["transitions"] = 2 * segments * sizes["window"]
            for workers in (two, apart):
                together(workers, threads, "make_learner", name=name, sizes=sizes)
            parameters[name] = apart[0].call("parameters", name=name)
            asked |= contestants(name, apart[0], two, apart, threads)
        interleave(asked, 1)  # warm up
        figures = interleave(asked, rounds, say)
    return {name: {"parameters": parameters[name], **summary(figures, name)} for name in models}


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without the largest model")
    parser.add_argument("--segments", type=int, default=96, help="of a rank's batch, as of `train` without being told")
    options = parser.parse_args()
    is_quick = options.quick
    models = dict(list(MODELS.items())[:2]) if is_quick else MODELS
    found = measure(models, options.segments, rounds=3 if is_quick else 9)
    ratio = {name: each["ratio"]["median"] for name, each in found.items()}
    kept = {f"{name}: at least {NEEDED}x": value >= NEEDED for name, value in ratio.items()}
    head = {"benchmark": "two_ranks", "quick": is_quick, "segments": options.segments, "machine": machine()}
    print_result({**head, "ratio": ratio, "models": found, "kept": kept})


if __name__ == "__main__":
    main()
