"""What the speed benchmarks share: worker processes of one thread, rounds between them, and the machine's own limits.

A driver talks to its workers in JSON lines and lets one of them work at a time, in short rounds, so that whatever else
the machine does falls on all of them alike. Time is the CPU time of the worker's process. It is imported by workers in
other environments, too: it must not know ours, and torch only inside functions.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OUR_SCRIPT = Path(__file__).resolve().with_name("qtransformer_worker.py")
PEER_SCRIPT = OUR_SCRIPT.with_name("q_transformer_peer.py")
Handler = Callable[..., Any]
_ANSWER = "answer: "  # begins the lines of a worker that are no noise


class WorkerError(Exception):
    """A worker stopped or could not do what it was asked; its own message stands above, on stderr."""


class Worker:
    """A Python script in a process of its own that answers calls; a context manager."""

    def __init__(self, python: Path | str, script: Path, *arguments: str) -> None:
        """Starts `script` under `python`, one thread, no network."""
        environment = {**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)  # the packages of another environment
        self._name = script.name
        self._process = subprocess.Popen(
            [str(python), str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def call(self, handler: str, **arguments: Any) -> Any:
        """Returns what the worker's handler of that name returns for `arguments`; waits for it.

        Raises:
            WorkerError: the worker ended.
        """
        sink, source = self._process.stdin, self._process.stdout
        assert sink is not None
        assert source is not None
        with contextlib.suppress(BrokenPipeError):
            sink.write(json.dumps([handler, arguments]) + "\n")
            sink.flush()
        for line in source:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        raise WorkerError(f"{self._name}: ended at call {handler!r} with status {self._process.wait()}")

    def close(self) -> None:
        """Lets the worker end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(handlers: Mapping[str, Handler], calls: TextIO | None = None, answers: TextIO | None = None) -> None:
    """Answers the calls of a `Worker` until it closes; what handlers and libraries print is passed over there."""
    source, sink = calls or sys.stdin, answers or sys.stdout
    for line in source:
        name, arguments = json.loads(line)
        sink.write(f"\n{_ANSWER}{json.dumps(handlers[name](**arguments))}\n")
        sink.flush()


def cpu_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Returns the CPU time of this process for one call of `work`, the mean of `repeats`."""
    started = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - started) / repeats


def cpu_milliseconds_each(work: Callable[[], object], repeats: int) -> list[float]:
    """Returns the CPU time of this process for each of `repeats` calls of `work`."""
    return [1000 * cpu_seconds(work) for _ in range(repeats)]


def interleave(
    contestants: Mapping[str, Callable[[], float]], rounds: int, progress: Callable[[str], None] | None = None
) -> dict[str, list[float]]:
    """Returns `rounds` figures of each contestant; each round asks all of them, one after the other.

    Every second round runs backwards, so that no one always follows the same other.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
            figures[name].append(contestants[name]())
        if progress is not None:
            progress(f"round {number + 1} of {rounds}: { ({name: round(f[-1], 4) for name, f in figures.items()}) }")
    return figures


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Returns median, least and greatest of the ratios round by round."""
    each = [above / below for above, below in zip(numerators, denominators, strict=True)]
    return {"median": rounded(statistics.median(each)), "min": rounded(min(each)), "max": rounded(max(each))}


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the least of the values that at least `share` of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def rounded(value: float, digits: int = 4) -> float:
    """Returns `value` to so many significant digits."""
    return float(f"{value:.{digits}g}")


def matrix_rate(dtype: str = "float32", size: int = 512, seconds: float = 0.2) -> float:
    """Returns the FLOP/s of CPU time of square matrix products by torch, over about `seconds`."""
    import torch

    left, right = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(left)

    def product() -> object:
        return torch.mm(left, right, out=out)

    once = cpu_seconds(product, 3)
    return 2 * size**3 / cpu_seconds(product, max(1, round(seconds / once)))


def read_seconds(regions: Sequence[int], order: Sequence[int], repeats: int = 20) -> float:
    """Returns the CPU seconds that it takes to read float32 numbers from memory: the mean of `repeats`.

    Args:
        regions: bytes of each of several regions.
        order: the regions in the order in which they are read, each as often as it is named.
        repeats: how often all of it is read.
    """
    import torch

    memory = [torch.ones(max(1, size // 4)) for size in regions]

    def read() -> object:
        return [memory[region].sum() for region in order]  # nothing that torch does reads faster

    read()
    return cpu_seconds(read, repeats)


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on, and when."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name and whether it multiplies bfloat16 matrices in hardware, as Linux tells them."""
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in lines}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return " ".join([fields.get("model name", platform.machine()), *flags])


def say(text: str) -> None:
    """Prints progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_result(result: Mapping[str, Any]) -> None:
    """Prints `result` as one JSON object: the last line of a benchmark."""
    print(json.dumps(result, allow_nan=False), flush=True)
