"""Time to one greedy action, batch 1, one thread: eager and exported, against PyPI's `q-transformer` 0.5.0 (lean).

CPU time of the process, interleaved. Beside it the floor: the time that this machine takes, in the same run, only to
read the weights that an action needs, in the same order, once for each token that they are needed for.

    .venv/bin/python benchmarks/latency.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peers
from harness import OUR_SCRIPT, PEER_SCRIPT, Worker, interleave, machine, percentile, print_result, ratios, rounded, say
from throughput import OURS, RIVALS, SIZES, peer_arguments

NEEDED = {"exported": 8.0, "eager": 3.0}  # times faster than the peer
NEEDED_TAIL = 2.0  # p99 over median
CALLS = {"eager": 50, "exported": 50, "peer": 20}  # a round
PEER = "lean"


def measure(
    ours: Worker, peer: Worker, weights: Mapping[str, list[int]], rounds: int
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Returns the milliseconds of each call, by contestant and round, and the seconds of reading the weights."""
    calls: dict[str, list[list[float]]] = {name: [] for name in CALLS}

    def act(worker: Worker, contestant: str, **arguments: Any) -> float:
        calls[contestant].append(worker.call("act", repeats=CALLS[contestant], **arguments))
        return statistics.median(calls[contestant][-1])

    contestants = {
        "floor": partial(ours.call, "read_seconds", **weights),
        **{name: partial(act, ours, name, name=name) for name in NEEDED},
        "peer": partial(act, peer, "peer"),
    }
    interleave(contestants, 1)
    for each in calls.values():  # that was the warm-up
        each.clear()
    return calls, interleave(contestants, rounds, say)["floor"]


def summary(calls: Mapping[str, Sequence[Sequence[float]]], floors: Sequence[float], num_bytes: int) -> dict[str, Any]:
    """Returns medians, tails, ratios and the floor; `floors` are seconds, the rest milliseconds."""
    pooled = {name: [value for each in rounds for value in each] for name, rounds in calls.items()}
    medians = {name: [statistics.median(each) for each in rounds] for name, rounds in calls.items()}
    against = {name: ratios(medians["peer"], medians[name]) for name in NEEDED}
    floor = 1000 * statistics.median(floors)
    return {
        "ratio": {name: each["median"] for name, each in against.items()},
        "ratio_range": {name: [each["min"], each["max"]] for name, each in against.items()},
        "cpu_milliseconds": {name: spread(each) for name, each in pooled.items()},
        "floor": {
            "cpu_milliseconds": rounded(floor),
            "megabytes": rounded(num_bytes / 1e6),
            "gigabytes_per_second": rounded(num_bytes / floor / 1e6),
            "times_the_floor": {name: rounded(statistics.median(pooled[name]) / floor) for name in NEEDED},
        },
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median and 99th percentile, and how far they lie apart."""
    median, tail = statistics.median(values), percentile(values, 0.99)
    return {"median": rounded(median), "p99": rounded(tail), "p99_over_median": rounded(tail / median)}


def verdicts(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which of the promises the figures keep."""
    tails = {name: result["cpu_milliseconds"][name]["p99_over_median"] for name in NEEDED}
    return {
        **{f"{name}: at least {needed}x": result["ratio"][name] >= needed for name, needed in NEEDED.items()},
        **{f"{name}: p99 under {NEEDED_TAIL}x the median": tail < NEEDED_TAIL for name, tail in tails.items()},
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    is_quick = parser.parse_args().quick
    python, script = peers.ensure("q-transformer"), PEER_SCRIPT
    own = {**SIZES, **OURS[RIVALS[PEER]]}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ours = stack.enter_context(Worker(sys.executable, OUR_SCRIPT))
        made = ours.call("make_actors", sizes=own, bundle=str(Path(folder) / "bundle"))
        peer = stack.enter_context(Worker(python, script, PEER, *peer_arguments({**SIZES, "transitions": 1})))
        parameters = {"ours": made["parameters"], "peer": peer.call("describe")["parameters"]}
        weights = {"regions": made["regions"], "order": made["order"]}
        calls, floors = measure(ours, peer, weights, rounds=3 if is_quick else 20)
    result = summary(calls, floors, sum(made["regions"][region] for region in made["order"]))
    head = {"benchmark": "latency", "quick": is_quick, "machine": machine(), "sizes": own, "parameters": parameters}
    print_result({**head, **result, "kept": verdicts(result)})


if __name__ == "__main__":
    main()
