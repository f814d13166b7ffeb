"""Time to one greedy action, batch 1, one thread: eager and exported, against PyPI's `q-transformer` 0.5.0 (lean).

CPU time of the process, interleaved. Beside it the floor: the time that this machine takes, in the same run, only to
read the weights that an action needs, in the same order, once for each token that they are needed for. At four more
sizes the bundle alone is held to a rule: 1.5 ms for all else, and the floor.

The file is measured as the network and the peer's are, by what turns an observation into an action: its onnxruntime
session. `Controller.step`, which checks the observation, limits the action and keeps the log as well, stands beside it.

    .venv/bin/python benchmarks/latency.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peers
from harness import OUR_SCRIPT, PEER_SCRIPT, Worker, interleave, machine, percentile, print_result, ratios, rounded, say
from throughput import OURS, RIVALS, SIZES, peer_arguments

NEEDED = {"session": 8.0, "eager": 3.0}  # times faster than the peer
NEEDED_TAIL = 2.0  # p99 over median
NEEDED_RULE = 1.3  # times the rule, at most
RULE_MS = 1.5  # of a step, beside reading weights
OURS_ACTS = ("eager", "session", "exported")  # the network, the file's onnxruntime session, `Controller.step`
CALLS = {**dict.fromkeys(OURS_ACTS, 50), "peer": 20}  # a round
PEER = "lean"
BUNDLES = {
    f"{millions}M parameters, {dimensions} dimensions": {"width": width, "bins": bins, "dimensions": dimensions}
    for millions, width, bins in ((1, 128, 64), (4, 256, 128))
    for dimensions in (7, 14)
}

Calls = dict[str, list[list[float]]]  # milliseconds of each call, by contestant and round


def measure(
    ours: Worker, peer: Worker, weights: Mapping[str, Mapping[str, list[int]]], rounds: int
) -> tuple[dict[str, Calls], dict[str, list[float]]]:
    """Returns, by size, what was measured of its contestants, and the seconds of reading the weights."""
    calls: dict[str, Calls] = {size: {} for size in weights}

    def act(worker: Worker, size: str, contestant: str, **arguments: Any) -> float:
        found = worker.call("act", repeats=CALLS[contestant], **arguments)
        calls[size].setdefault(contestant, []).append(found)
        return statistics.median(found)

    contestants: dict[str, Callable[[], float]] = {}
    for size, regions in weights.items():
        contestants[f"{size}: floor"] = partial(ours.call, "read_seconds", **regions)
        for name in OURS_ACTS:
            contestants[f"{size}: {name}"] = partial(act, ours, size, name, name=f"{size}: {name}")
    contestants["peer"] = partial(act, peer, PEER, "peer")
    interleave(contestants, 1)
    for each in calls.values():  # that was the warm-up
        each.clear()
    figures = interleave(contestants, rounds, say)
    return calls, {size: figures[f"{size}: floor"] for size in weights}


def summary(calls: Mapping[str, Sequence[Sequence[float]]], floors: Sequence[float], num_bytes: int) -> dict[str, Any]:
    """Returns medians, tails, ratios and the floor; `floors` are seconds, the rest milliseconds."""
    medians = {name: [statistics.median(each) for each in rounds] for name, rounds in calls.items()}
    against = {name: ratios(medians["peer"], medians[name]) for name in OURS_ACTS}
    return {
        "ratio": {name: each["median"] for name, each in against.items()},
        "ratio_range": {name: [each["min"], each["max"]] for name, each in against.items()},
        **against_the_rule(calls, floors, num_bytes),
    }


def against_the_rule(
    calls: Mapping[str, Sequence[Sequence[float]]], floors: Sequence[float], num_bytes: int
) -> dict[str, Any]:
    """Returns medians, tails, and how they compare with the floor and the rule."""
    pooled = {name: [value for each in rounds for value in each] for name, rounds in calls.items()}
    medians = {name: statistics.median(pooled[name]) for name in OURS_ACTS}
    floor = 1000 * statistics.median(floors)
    return {
        "cpu_milliseconds": {name: spread(each) for name, each in pooled.items()},
        "floor": {
            "cpu_milliseconds": rounded(floor),
            "megabytes": rounded(num_bytes / 1e6),
            "gigabytes_per_second": rounded(num_bytes / floor / 1e6),
            "times_the_floor": {name: rounded(median / floor) for name, median in medians.items()},
        },
        "ratio_to_rule": {name: rounded(median / (RULE_MS + floor)) for name, median in medians.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median and 99th percentile, and how far they lie apart."""
    median, tail = statistics.median(values), percentile(values, 0.99)
    return {"median": rounded(median), "p99": rounded(tail), "p99_over_median": rounded(tail / median)}


def verdicts(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which of the promises the figures keep."""
    tails = {name: result["cpu_milliseconds"][name]["p99_over_median"] for name in OURS_ACTS}
    return {
        **{f"{name}: at least {needed}x": result["ratio"][name] >= needed for name, needed in NEEDED.items()},
        **{f"{name}: p99 under {NEEDED_TAIL}x the median": tail < NEEDED_TAIL for name, tail in tails.items()},
        **{
            f"{name}: exported within {NEEDED_RULE}x the rule": each["ratio_to_rule"]["exported"] <= NEEDED_RULE
            for name, each in result["bundles"].items()
        },
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    is_quick = parser.parse_args().quick
    python, script = peers.ensure("q-transformer"), PEER_SCRIPT
    own = {**SIZES, **OURS[RIVALS[PEER]]}
    bundles = dict(list(BUNDLES.items())[: 1 if is_quick else None])
    sizes = {PEER: own, **{name: {**own, **changes} for name, changes in bundles.items()}}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(Worker(sys.executable, OUR_SCRIPT))
        made = {
            name: ours.call("make_actors", name=name, sizes=each, bundle=str(folder / f"bundle{number}"))
            for number, (name, each) in enumerate(sizes.items())
        }
        peer = stack.enter_context(Worker(python, script, PEER, *peer_arguments({**SIZES, "transitions": 1})))
        parameters = {name: each["parameters"] for name, each in made.items()}
        parameters["peer"] = peer.call("describe")["parameters"]
        weights = {name: {key: each[key] for key in ("regions", "order")} for name, each in made.items()}
        calls, floors = measure(ours, peer, weights, rounds=3 if is_quick else 10)
    num_bytes = {name: sum(each["regions"][region] for region in each["order"]) for name, each in weights.items()}
    result = summary(calls[PEER], floors[PEER], num_bytes[PEER])
    result["bundles"] = {name: against_the_rule(calls[name], floors[name], num_bytes[name]) for name in bundles}
    head = {"benchmark": "latency", "quick": is_quick, "machine": machine(), "sizes": sizes, "parameters": parameters}
    print_result({**head, **result, "kept": verdicts(result)})


if __name__ == "__main__":
    main()
