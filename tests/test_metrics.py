"""The text that Prometheus reads, by hand."""

from __future__ import annotations

from qtransformer.serve.metrics import ERROR_KINDS, Histogram, Metrics


def test_histogram_by_hand():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(seconds)
    assert list(histogram.lines("x")) == [
        'x_bucket{le="0.1"} 2',  # at most: a bound belongs to its bucket
        'x_bucket{le="1.0"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 3.65",
        "x_count 4",
    ]


def test_text():
    metrics = Metrics()
    metrics.clients, metrics.requests = 2, 7
    metrics.errors["refused"] += 3
    metrics.request_seconds.observe(0.004)
    text = metrics.text()
    assert text.endswith("qtransformer_inference_seconds_count 0\n")
    lines = text.splitlines()
    assert "qtransformer_clients 2" in lines
    assert "qtransformer_requests_total 7" in lines
    assert 'qtransformer_errors_total{kind="refused"} 3' in lines
    assert [line for line in lines if line.startswith("qtransformer_errors_total")] == [
        f'qtransformer_errors_total{{kind="{kind}"}} {3 * (kind == "refused")}' for kind in ERROR_KINDS
    ]
    assert 'qtransformer_request_seconds_bucket{le="0.005"} 1' in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert names == [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(set(names)) == len(names) == 5
