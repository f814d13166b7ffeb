"""Training speed: transitions per CPU-second of one thread, against PyPI's `q-transformer` 0.5.0.

A transition is one environment step with its window of observations. Ours are the real steps of a batch of segments,
theirs the samples of a batch; both sides take as many in an update, drawn and in memory already. Each configuration of
the peer meets one of ours with at least as many parameters. Also measured, in the same rounds: the machine's own rate
of 512x512 matrix products, bfloat16 where the processor has it, and how the cost grows with dimensions and bins.

    .venv/bin/python benchmarks/throughput.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import peers
from harness import OUR_SCRIPT, PEER_SCRIPT, Worker, interleave, machine, print_result, ratios, rounded, say

SIZES = {"dimensions": 8, "bins": 256, "window": 6, "width": 256, "heads": 8, "state_size": 32, "transitions": 256}
OURS = {  # of the peer's 4 blocks, 2 are over observations and 2 over action tokens
    "ours": {"layers": 3, "action_layers": 1},
    "ours larger": {"layers": 4, "action_layers": 1},
}
RIVALS = {"lean": "ours", "default": "ours larger"}  # the least of ours with as many parameters as the peer's
BFLOAT16 = " bfloat16"
QUICK_TRANSITIONS = 48
NEEDED = {"lean": 2.5, "default": 8.0}  # times the peer's rate
NEEDED_SHARE = 0.5  # of the matrix rate
DIMENSIONS, BINS = (4, 8, 16, 32), (64, 256)
NEEDED_BINS_GROWTH = 1.2

Figures = Mapping[str, list[float]]


def peer_arguments(sizes: Mapping[str, int]) -> list[str]:
    """Returns the sizes as the peer's worker reads them."""
    return [part for name, value in sizes.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def compare(
    ours: Worker, lent: Mapping[str, Worker], sizes: Mapping[str, int], rounds: int, has_bfloat16: bool
) -> dict[str, Any]:
    """Returns rates and their ratios, ours and the peer's, and the share of the matrix rate."""
    variants = {name: ("float32", OURS[name]) for name in OURS}
    if has_bfloat16:
        variants["ours" + BFLOAT16] = "bfloat16", OURS["ours"]
    contestants: dict[str, Callable[[], float]] = {"matrix": partial(ours.call, "matrix_rate")}
    if has_bfloat16:
        contestants["matrix" + BFLOAT16] = partial(ours.call, "matrix_rate", dtype="bfloat16")
    made = {}
    for name, (dtype, layers) in variants.items():
        made[name] = ours.call("make_learner", name=name, sizes={**sizes, **layers}, dtype=dtype)
        contestants[name] = partial(ours.call, "update", name=name, repeats=3)
    for name, worker in lent.items():
        made[name] = worker.call("describe")
        contestants[name] = partial(worker.call, "update", repeats=1)
    interleave(contestants, 1)  # warm up
    return summary(interleave(contestants, rounds, say), made, sizes["transitions"])


def summary(figures: Figures, made: Mapping[str, Mapping[str, Any]], transitions: int) -> dict[str, Any]:
    """Returns what the CPU seconds of updates and the rates of matrix products say."""
    seconds = {name: each for name, each in figures.items() if not name.startswith("matrix")}
    against = {name: ratios(seconds[name], seconds[rival(name)]) for name in seconds if not name.startswith("ours")}
    rates = {name: transitions / statistics.median(each) for name, each in seconds.items()}
    return {
        "ratio": {name: each["median"] for name, each in against.items()},
        "ratio_range": {name: [each["min"], each["max"]] for name, each in against.items()},
        "rivals": {name: rival(name) for name in against},
        "parameters": {name: made[name]["parameters"] for name in seconds},
        "transitions_per_cpu_second": {name: rounded(rate) for name, rate in rates.items()},
        "matrix_gflops": {
            name: rounded(statistics.median(figures[name]) / 1e9) for name in figures if name.startswith("matrix")
        },
        "matrix_share": {
            name: matrix_share(made[name]["flops"], seconds[name], figures["matrix" + _precision(name)])
            for name in seconds
            if name.startswith("ours")
        },
    }


def rival(peer: str) -> str:
    """Returns which of ours a configuration of the peer is compared with."""
    return RIVALS[peer.removesuffix(BFLOAT16)] + _precision(peer)


def matrix_share(flops: int, seconds: Sequence[float], rates: Sequence[float]) -> dict[str, float]:
    """Returns the FLOP/s of updates as a share of the rate of matrix products, round by round."""
    return ratios([flops / each for each in seconds], rates)


def _precision(name: str) -> str:
    return BFLOAT16 if name.endswith(BFLOAT16) else ""


def scaling(ours: Worker, sizes: Mapping[str, int], rounds: int) -> dict[str, Any]:
    """Returns how the CPU time of an update grows with dimensions and with bins."""
    changes = {f"{each} dimensions": {"dimensions": each} for each in DIMENSIONS}
    changes |= {f"{each} bins": {"bins": each} for each in BINS}
    for name, change in changes.items():
        ours.call("make_learner", name=name, sizes={**sizes, **change})
    contestants = {name: partial(ours.call, "update", name=name, repeats=2) for name in changes}
    interleave(contestants, 1)
    return growth(interleave(contestants, rounds, say))


def growth(figures: Figures) -> dict[str, Any]:
    """Returns the costs of an update, and the ratios between the sizes; linear growth is the exponent 1."""
    steps = {
        f"{low} to {high}": ratios(figures[f"{high} dimensions"], figures[f"{low} dimensions"])["median"]
        for low, high in [*itertools.pairwise(DIMENSIONS), (DIMENSIONS[0], DIMENSIONS[-1])]
    }
    exponents = [math.log2(ratio) for ratio in list(steps.values())[:-1]]
    return {
        "cpu_milliseconds": {name: rounded(1000 * statistics.median(each)) for name, each in figures.items()},
        "dimensions_cost_ratio": steps,
        "dimensions_worst_exponent": rounded(max(exponents)),
        "bins_cost_ratio": ratios(figures[f"{BINS[1]} bins"], figures[f"{BINS[0]} bins"])["median"],
    }


def verdicts(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which of the promises the figures keep."""
    parameters, ratio = result["parameters"], result["ratio"]
    return {
        **{f"{name}: at least {needed}x": ratio[name] >= needed for name, needed in NEEDED.items()},
        "parameters: not fewer than the peer's": all(parameters[rival(name)] >= parameters[name] for name in NEEDED),
        f"matrix share: at least {NEEDED_SHARE}": result["matrix_share"]["ours"]["median"] >= NEEDED_SHARE,
        "dimensions: cost at most linear": result["scaling"]["dimensions_worst_exponent"] <= 1,
        f"bins: cost ratio under {NEEDED_BINS_GROWTH}": result["scaling"]["bins_cost_ratio"] < NEEDED_BINS_GROWTH,
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller, without bfloat16, under a minute")
    is_quick = parser.parse_args().quick
    sizes = {**SIZES, "transitions": QUICK_TRANSITIONS if is_quick else SIZES["transitions"]}
    rounds, described = (3 if is_quick else 7), machine()
    has_bfloat16 = "bf16" in described["cpu"] and not is_quick
    python, script = peers.ensure("q-transformer"), PEER_SCRIPT
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Worker(sys.executable, OUR_SCRIPT))
        started = {name: [name] for name in NEEDED}
        if has_bfloat16:
            started["lean" + BFLOAT16] = ["lean", "--dtype", "bfloat16"]
        lent = {
            name: stack.enter_context(Worker(python, script, *arguments, *peer_arguments(sizes)))
            for name, arguments in started.items()
        }
        result = compare(ours, lent, sizes, rounds, has_bfloat16)
        result["scaling"] = scaling(ours, {**sizes, **OURS["ours"]}, rounds)
    head = {"benchmark": "throughput", "quick": is_quick, "machine": described, "sizes": sizes, "layers": OURS}
    print_result({**head, **result, "kept": verdicts(result)})


if __name__ == "__main__":
    main()
