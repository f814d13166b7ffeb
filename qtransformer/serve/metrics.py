"""What a server counts, as the text that Prometheus reads.

Special about this file: it is plain arithmetic on one thread, the server's event loop, so it needs no lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ERROR_KINDS = ("busy", "idle", "internal", "malformed", "refused", "too_large", "unauthorized")
_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # seconds


class Histogram:
    """How many durations were at most so long, for each of a few bounds."""

    def __init__(self, bounds: tuple[float, ...] = _BOUNDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Adds one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Yields the lines of the histogram `name`."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.9g}"
        yield f"{name}_count {total}"


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.clients = 0
        """Connected now."""
        self.requests = 0
        """Frames that came, good or bad."""
        self.errors: Counter[str] = Counter()
        """By kind, of ERROR_KINDS."""
        self.request_seconds, self.inference_seconds = Histogram(), Histogram()

    def text(self) -> str:
        """Returns the page of /metrics."""
        errors = (f'qtransformer_errors_total{{kind="{kind}"}} {self.errors[kind]}' for kind in ERROR_KINDS)
        lines = [
            *_described("qtransformer_clients", "gauge", "Clients connected now."),
            f"qtransformer_clients {self.clients}",
            *_described("qtransformer_requests_total", "counter", "Requests that came, good or bad."),
            f"qtransformer_requests_total {self.requests}",
            *_described("qtransformer_errors_total", "counter", "Requests and connections turned down, by kind."),
            *errors,
            *_described("qtransformer_request_seconds", "histogram", "From a request to its action, waiting included."),
            *self.request_seconds.lines("qtransformer_request_seconds"),
            *_described("qtransformer_inference_seconds", "histogram", "In the policy alone."),
            *self.inference_seconds.lines("qtransformer_inference_seconds"),
        ]
        return "\n".join(lines) + "\n"


def _described(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
