"""The worker of two_ranks.py: a rank, or a process alone, with its half of a batch or all of it.

Its arguments are the number of its half, how many ranks there are, and the port of 127.0.0.1 where they meet.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from operator import itemgetter

import torch
from harness import cpu_seconds, serve
from qtransformer_worker import Sizes, make_batch, make_learner, num_parameters

from qtransformer import ranks
from qtransformer.batch import Batch
from qtransformer.q_learning import QTransformerLearner


class Halves:
    """Learners by name, each with a batch and this process's half of it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._made: dict[str, tuple[QTransformerLearner, Batch, Batch]] = {}

    def make_learner(self, name: str, sizes: Sizes) -> float:
        """Makes a learner and its batch."""
        batch = make_batch(sizes)
        size = len(batch.is_valid) // 2
        half = batch.map(itemgetter(slice(self._number * size, (self._number + 1) * size)))
        self._made[name] = make_learner(sizes), batch, half
        return 0.0

    def parameters(self, name: str) -> int:
        """Returns how many numbers are learned."""
        return num_parameters(self._made[name][0].policy)

    def update(self, name: str, repeats: int, is_whole: bool = False) -> float:
        """Returns the seconds of an update, the mean of `repeats`."""
        learner, whole, half = self._made[name]
        return seconds(lambda: learner.update(whole if is_whole else half), repeats)

    def exchange(self, name: str, repeats: int) -> float:
        """Returns the CPU seconds of the exchange of all gradients, which are there after an update."""
        gradients = [each.grad for each in self._made[name][0].policy.parameters() if each.grad is not None]
        ranks.wait()
        return cpu_seconds(lambda: ranks.add(gradients), repeats)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Returns the seconds of one call of `work`, the mean of `repeats`; ranks begin together."""
    ranks.wait()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Joins the other rank, if there is one, and answers calls."""
    number, world_size, port = sys.argv[1:]
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update(names, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    halves, answers = Halves(int(number)), sys.stdout  # rank 1 prints nothing but these
    with ranks.joined("cpu"):
        names = ("make_learner", "parameters", "update", "exchange")
        serve({name: getattr(halves, name) for name in names}, answers=answers)


if __name__ == "__main__":
    main()
