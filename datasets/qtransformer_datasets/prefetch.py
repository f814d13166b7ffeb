"""Batches made ahead of time by threads, while the learner computes.

Special about this file: a batch is a function of its number, so the threads share nothing, any number of them gives the
same batches in the same order, and the sampler's own state is always that of the batch that was given last.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from qtransformer.batch import Batch

from .windows import SegmentSampler


class Prefetcher:
    """Gives the batches of a sampler; a context manager whose exit ends the threads.

    It belongs to the process that made it: make one in each process, threads do not cross a fork.
    """

    def __init__(self, sampler: SegmentSampler, num_threads: int | None = None, depth: int = 2) -> None:
        """Starts with the batch that the sampler would give next.

        Args:
            sampler: what makes the batches.
            num_threads: that make batches; 0 for none, where each is made when asked for. None for one thread where
                images are read, else none: a batch of numbers is made sooner than a thread hands it over.
            depth: batches that are ready or being made, at most.

        Raises:
            ValueError: a number is out of its range.
        """
        num_threads = int(sampler.has_images) if num_threads is None else num_threads
        if num_threads < 0:
            raise ValueError(f"num_threads ({num_threads}) must be at least 0; a usual value is 1")
        if depth < max(1, num_threads):
            raise ValueError(f"depth ({depth}) must be at least 1 and num_threads ({num_threads}); raise it")
        self._sampler = sampler
        self._depth = depth
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="prefetch") if num_threads else None
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self.waited_s = 0.0  # seconds that `sample` kept its caller waiting, all calls together

    def sample(self) -> Batch:
        """Returns the next batch; waits for it where it is not ready.

        Raises:
            Exception: whatever stopped the making of this batch, here and at every further call.
        """
        started = time.perf_counter()
        try:
            return self._sampler.sample() if self._threads is None else self._next(self._threads)
        finally:
            self.waited_s += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """Returns where the batch given last leaves the sampler, whatever is being made ahead of it."""
        return self._sampler.state_dict()

    def close(self) -> None:
        """Ends the threads, and waits for the batches that they are at."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, threads: ThreadPoolExecutor) -> Batch:
        wanted = self._sampler.num_given
        if self._ahead and self._ahead[0][0] != wanted:
            self._ahead.clear()  # the sampler was moved, by itself or by load_state_dict
        self._submit(threads, wanted)
        batch = self._ahead[0][1].result()  # a batch that failed stays here, and fails again
        self._ahead.popleft()
        self._sampler.num_given = wanted + 1
        self._submit(threads, wanted + 1)
        return batch

    def _submit(self, threads: ThreadPoolExecutor, first: int) -> None:
        for number in range(first + len(self._ahead), first + self._depth):
            self._ahead.append((number, threads.submit(self._sampler.batch, number)))
