"""The speed benchmarks without the peer's package: a stand-in answers for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qtransformer.blocks import Block, TokenHead
from qtransformer.config import LearningConfig

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import harness  # noqa: E402  # pyright: ignore[reportMissingImports]
import latency  # noqa: E402  # pyright: ignore[reportMissingImports]
import qtransformer_worker  # noqa: E402  # pyright: ignore[reportMissingImports]
import throughput  # noqa: E402  # pyright: ignore[reportMissingImports]

SIZES = {"dimensions": 3, "bins": 4, "window": 2, "width": 8, "layers": 2, "action_layers": 1, "heads": 2}
SIZES |= {"state_size": 5, "transitions": 5}
FAKE_PEER = """
import sys
sys.path.append({folder!r})
from harness import serve
print("noise that ends without a new line", end="")
serve({{
    "describe": lambda: {{"parameters": 10}},
    "update": lambda repeats: 3.0,
    "act": lambda repeats: [30.0] * repeats,
}})
"""


def start(tmp_path: Path, source: str) -> harness.Worker:
    script = tmp_path / "worker.py"
    script.write_text(source)
    return harness.Worker(sys.executable, script)


# --- harness ----------------------------------------------------------------------------------------------------------


def test_a_worker_answers_calls_whatever_it_prints(tmp_path: Path):
    with start(tmp_path, FAKE_PEER.format(folder=str(FOLDER))) as worker:
        assert worker.call("describe") == {"parameters": 10}
        assert worker.call("act", repeats=2) == [30.0, 30.0]


def test_a_worker_runs_on_one_thread_apart_from_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    source = f"import os, sys\nsys.path.append({str(FOLDER)!r})\nfrom harness import serve\n"
    with start(tmp_path, source + "serve({'environment': lambda: dict(os.environ)})") as worker:
        environment = worker.call("environment")
    assert "PYTHONPATH" not in environment
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("source", ["raise SystemExit(3)", "input(); raise SystemExit(3)"])
def test_a_worker_that_ends_is_an_error(tmp_path: Path, source: str):
    with (
        start(tmp_path, source) as worker,
        pytest.raises(harness.WorkerError, match=r"worker.py: ended at call 'describe' with status 3"),
    ):
        worker.call("describe")


def test_serve_passes_arguments_and_returns_json():
    answers = io.StringIO()
    harness.serve(
        {"add": lambda a, b: a + b}, io.StringIO('["add", {"a": 1, "b": 2}]\n["add", {"a": 0, "b": 5}]\n'), answers
    )
    assert answers.getvalue() == "\nanswer: 3\n\nanswer: 5\n"


def test_rounds_alternate_and_turn_around():
    asked: list[str] = []
    contestants = {name: (lambda name=name: asked.append(name) or float(len(asked))) for name in "abc"}
    figures = harness.interleave(contestants, 3)
    assert "".join(asked) == "abccbaabc"
    assert figures == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_ratios_are_those_of_each_round():
    assert harness.ratios([6.0, 1.0, 9.0], [2.0, 1.0, 1.0]) == {"median": 3.0, "min": 1.0, "max": 9.0}


def test_percentile_is_the_nearest_rank():
    values = [float(each) for each in range(200, 0, -1)]
    assert harness.percentile(values, 0.99) == 198
    assert harness.percentile(values, 0.5) == 100
    assert harness.percentile([5.0], 0.99) == 5


def test_rounded_keeps_significant_digits():
    assert harness.rounded(123456.0) == 123500
    assert harness.rounded(0.00123456, 2) == 0.0012


def test_cpu_seconds_are_the_mean_of_the_repeats(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "process_time", lambda: clock[0])

    def work() -> None:
        clock[0] += 0.25

    assert harness.cpu_seconds(work, 4) == 0.25
    assert harness.cpu_milliseconds_each(work, 3) == [250, 250, 250]


def test_matrix_rate_counts_two_operations_a_multiplication(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "cpu_seconds", lambda work, repeats: 0.5)
    assert harness.matrix_rate(size=10) == 2 * 10**3 / 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrix_rate_measures(dtype: str):
    assert 1e6 < harness.matrix_rate(dtype, size=64, seconds=0.01) < 1e15


def test_read_seconds_grow_with_the_order():
    once = harness.read_seconds([40_000_000], [0], repeats=3)
    assert harness.read_seconds([40_000_000, 4], [0, 1, 0, 0, 0], repeats=3) > 2 * once > 0


def test_cpu_name_tells_what_matters(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16\n\n")
    assert harness.cpu_name(cpuinfo) == "Some CPU avx2 avx512_bf16"
    assert harness.cpu_name(tmp_path / "missing")


def test_the_result_is_one_line_of_strict_json(capsys: pytest.CaptureFixture[str]):
    harness.print_result({"ratio": 2.5})
    assert capsys.readouterr().out == '{"ratio": 2.5}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.print_result({"ratio": float("nan")})


# --- our worker -------------------------------------------------------------------------------------------------------


def test_flops_of_a_block_are_those_counted_by_hand():
    B, L, W = 2, 3, 8
    block = Block(W, num_heads=2)
    x = torch.randn(B, L, W)
    mask = torch.ones(L, L, dtype=torch.bool).tril()
    linear = 2 * B * L * (3 * W * W + W * W + 4 * W * W + 4 * W * W)  # q k v, projection, MLP up, MLP down
    attention = 2 * (2 * B * L * L * W)  # scores, mix
    with torch.no_grad():
        assert qtransformer_worker.count_flops(lambda: block(x, mask)) == linear + attention
    # Back: two products for each linear map, less the first one's for its input; attention has five in place of two.
    x.requires_grad_()
    assert (
        qtransformer_worker.count_flops(lambda: block(x, mask)[0].sum().backward()) == 3 * linear + 7 * attention // 2
    )


def test_flops_of_heads_are_those_counted_by_hand():
    head = TokenHead(num_slots=3, width=4, num_outputs=5)
    x = torch.randn(2, 7, 3, 4)
    with torch.no_grad():
        assert qtransformer_worker.count_flops(lambda: head(x)) == 3 * 2 * (2 * 7) * 4 * 5


def test_the_batch_holds_as_many_real_steps_as_asked():
    batch = qtransformer_worker.make_batch(SIZES)
    ahead = LearningConfig().environment_steps - 1
    assert batch.is_valid.tolist() == [[True] * (2 + ahead), [True] * (2 + ahead), [True, False] + [False] * ahead]
    assert batch.observations["state"].shape == (3, 3 + ahead, 5)
    assert batch.actions.shape == (3, 2 + ahead, 3)
    for array in (batch.rewards, batch.terminations, batch.has_successor, batch.monte_carlo_returns, batch.actions):
        assert not np.any(array[2, 1:]), "padding"


def test_our_updates_are_real_and_have_the_default_losses():
    ours = qtransformer_worker.Ours()
    made = ours.make_learner("x", SIZES)
    learner, batch = ours._learners["x"]
    assert made["parameters"] == sum(each.numel() for each in learner.policy.parameters())
    assert made["flops"] > 2 * made["parameters"]
    assert learner.config == LearningConfig()
    before = [each.clone() for each in learner.policy.parameters()]
    num_updates = learner.num_updates
    assert ours.update("x", repeats=2) > 0
    assert learner.num_updates == num_updates + 2
    moved = [not torch.equal(old, new) for old, new in zip(before, learner.policy.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert torch.isfinite(learner.update(batch)["loss"])


def test_the_weights_that_an_action_reads():
    policy = qtransformer_worker.make_policy(SIZES)
    regions, order = qtransformer_worker.weights_read(policy)
    W, K = SIZES["width"], SIZES["bins"]
    block = 12 * W * W + 13 * W  # with biases and two norms
    encoder = (5 * 2 * W + 2 * W) + (2 * W * W + W)
    heads = 2 * (W * K + K)
    assert regions == [4 * (encoder + 2 * block), 4 * (block + 2 * W), 4 * heads, 4 * heads, 4 * heads]
    assert order == [0, 1, 2, 1, 3, 1, 4]


# --- throughput -------------------------------------------------------------------------------------------------------


def test_throughput_figures_by_hand():
    figures = {"matrix": [100.0, 200.0, 400.0], "ours": [1.0, 2.0, 4.0], "ours larger": [2.0, 2.0, 2.0]}
    figures |= {"lean": [3.0, 4.0, 40.0], "default": [20.0, 22.0, 24.0]}
    made = {"ours": {"parameters": 7, "flops": 80}, "ours larger": {"parameters": 9, "flops": 40}}
    made |= {"lean": {"parameters": 5}, "default": {"parameters": 8}}
    found = throughput.summary(figures, made, transitions=10)
    assert found["rivals"] == {"lean": "ours", "default": "ours larger"}
    assert found["ratio"] == {"lean": 3.0, "default": 11.0}
    assert found["ratio_range"] == {"lean": [2.0, 10.0], "default": [10.0, 12.0]}
    assert found["transitions_per_cpu_second"] == {"ours": 5.0, "ours larger": 5.0, "lean": 2.5, "default": 0.4545}
    assert found["matrix_share"]["ours"] == {"median": 0.2, "min": 0.05, "max": 0.8}
    assert found["matrix_share"]["ours larger"]["median"] == 0.1
    assert found["parameters"] == {"ours": 7, "ours larger": 9, "lean": 5, "default": 8}
    assert found["matrix_gflops"] == {"matrix": 2e-7}


def test_bfloat16_is_compared_with_bfloat16():
    figures = {"matrix": [100.0], "matrix bfloat16": [400.0], "ours": [2.0], "ours bfloat16": [1.0]}
    figures |= {"lean": [6.0], "lean bfloat16": [5.0]}
    made = {name: {"parameters": 1, "flops": 100} for name in figures}
    found = throughput.summary(figures, made, transitions=1)
    assert found["rivals"] == {"lean": "ours", "lean bfloat16": "ours bfloat16"}
    assert found["ratio"] == {"lean": 3.0, "lean bfloat16": 5.0}
    shares = {name: each["median"] for name, each in found["matrix_share"].items()}
    assert shares == {"ours": 0.5, "ours bfloat16": 0.25}


def test_growth_by_hand():
    costs = {4: [1.0, 1.0, 2.0], 8: [2.0, 2.0, 2.0], 16: [8.0, 8.0, 8.0], 32: [8.0, 8.0, 8.0]}
    figures = {f"{dimensions} dimensions": each for dimensions, each in costs.items()}
    found = throughput.growth({**figures, "64 bins": [1.0, 1.0, 1.0], "256 bins": [1.1, 1.1, 9.0]})
    assert found["dimensions_cost_ratio"] == {"4 to 8": 2, "8 to 16": 4, "16 to 32": 1, "4 to 32": 8}
    assert found["dimensions_worst_exponent"] == 2
    assert found["bins_cost_ratio"] == 1.1
    assert found["cpu_milliseconds"]["4 dimensions"] == 1000


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"ratio": {"lean": 2.4, "default": 8.0}}, ["lean: at least 2.5x"]),
        ({"ratio": {"lean": 2.5, "default": 7.9}}, ["default: at least 8.0x"]),
        (
            {"parameters": {"ours": 8, "lean": 9, "ours larger": 9, "default": 9}},
            ["parameters: not fewer than the peer's"],
        ),
        (
            {"parameters": {"ours": 9, "lean": 9, "ours larger": 9, "default": 10}},
            ["parameters: not fewer than the peer's"],
        ),
        ({"matrix_share": {"ours": {"median": 0.49}}}, ["matrix share: at least 0.5"]),
        ({"scaling": {"dimensions_worst_exponent": 1.01, "bins_cost_ratio": 1}}, ["dimensions: cost at most linear"]),
        ({"scaling": {"dimensions_worst_exponent": 1, "bins_cost_ratio": 1.2}}, ["bins: cost ratio under 1.2"]),
    ],
)
def test_throughput_says_which_promises_it_keeps(changes: dict, broken: list[str]):
    kept = {
        "ratio": {"lean": 2.5, "default": 8.0},
        "parameters": {"ours": 9, "lean": 9, "ours larger": 10, "default": 10},
        "matrix_share": {"ours": {"median": 0.5}},
        "scaling": {"dimensions_worst_exponent": 1.0, "bins_cost_ratio": 1.19},
    }
    assert [name for name, is_kept in throughput.verdicts({**kept, **changes}).items() if not is_kept] == broken


def test_sizes_are_options_of_the_peers_worker():
    assert throughput.peer_arguments({"bins": 4, "state_size": 5}) == ["--bins", "4", "--state-size", "5"]


# --- latency ----------------------------------------------------------------------------------------------------------


def test_latency_figures_by_hand():
    calls = {"eager": [[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]], "exported": [[1.0], [1.0]], "session": [[0.8], [0.8]]}
    calls["peer"] = [[8.0], [12.0]]
    found = latency.summary(calls, floors=[0.0005], num_bytes=2_000_000)
    assert found["ratio"] == {"eager": 3.5, "session": 12.5, "exported": 10.0}
    assert found["ratio_range"] == {"eager": [3.0, 4.0], "session": [10.0, 15.0], "exported": [8.0, 12.0]}
    assert found["cpu_milliseconds"]["eager"] == {"median": 3.5, "p99": 4.0, "p99_over_median": 1.143}
    assert found["floor"] == {
        "cpu_milliseconds": 0.5,
        "megabytes": 2.0,
        "gigabytes_per_second": 4.0,
        "times_the_floor": {"eager": 7.0, "exported": 2.0, "session": 1.6},
    }
    assert found["ratio_to_rule"] == {"eager": 1.75, "exported": 0.5, "session": 0.4}  # the rule says 1.5 + 0.5 ms


@pytest.mark.parametrize(
    ("ratio", "tails", "rule", "broken"),
    [
        ((8.0, 3.0), (1.9, 1.9), 1.3, []),
        ((7.9, 3.0), (1.9, 1.9), 1.3, ["session: at least 8.0x"]),
        ((8.0, 2.9), (1.9, 1.9), 1.3, ["eager: at least 3.0x"]),
        ((8.0, 3.0), (2.0, 1.9), 1.3, ["session: p99 under 2.0x the median"]),
        ((8.0, 3.0), (1.9, 2.0), 1.3, ["eager: p99 under 2.0x the median"]),
        ((8.0, 3.0), (1.9, 1.9), 1.31, ["small: exported within 1.3x the rule"]),
    ],
)
def test_latency_says_which_promises_it_keeps(ratio: tuple, tails: tuple, rule: float, broken: list[str]):
    names = ("session", "eager", "exported")
    result = {
        "ratio": dict(zip(names, (*ratio, 1.0), strict=True)),
        "cpu_milliseconds": {name: {"p99_over_median": tail} for name, tail in zip(names, (*tails, 1.0), strict=True)},
        "bundles": {"small": {"ratio_to_rule": {"exported": rule, "session": 9.0}}},
    }
    assert [name for name, is_kept in latency.verdicts(result).items() if not is_kept] == broken


# --- the commands, with a stand-in for the peer -----------------------------------------------------------------------


def run_main(
    module: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> dict:
    peer = tmp_path / "peer.py"
    peer.write_text(FAKE_PEER.format(folder=str(FOLDER)))
    sizes = {name: value for name, value in SIZES.items() if "layers" not in name}
    monkeypatch.setattr(module, "SIZES", sizes)
    monkeypatch.setattr(module, "PEER_SCRIPT", peer)
    monkeypatch.setattr("peers.ensure", lambda name: Path(sys.executable))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick"])
    module.main()  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_throughput_prints_its_result_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = run_main(throughput, monkeypatch, tmp_path, capsys)
    assert result["benchmark"] == "throughput"
    assert result["quick"] is True
    assert set(result["ratio"]) == {"lean", "default"}
    assert result["transitions_per_cpu_second"]["lean"] == throughput.QUICK_TRANSITIONS / 3
    assert all(result["scaling"]["dimensions_cost_ratio"].values())
    assert set(result["kept"].values()) <= {True, False}


@pytest.mark.slow
def test_latency_prints_its_result_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(latency, "BUNDLES", {"small": {"dimensions": 2}, "left out by --quick": {}})
    result = run_main(latency, monkeypatch, tmp_path, capsys)
    assert result["benchmark"] == "latency"
    assert list(result["bundles"]) == ["small"]
    assert all(each > 0 for each in result["bundles"]["small"]["ratio_to_rule"].values())
    assert result["cpu_milliseconds"]["peer"] == {"median": 30, "p99": 30, "p99_over_median": 1}
    for name, ratio in result["ratio"].items():
        low, high = result["ratio_range"][name]
        assert low <= ratio <= high
    assert result["floor"]["cpu_milliseconds"] > 0


@pytest.mark.parametrize("script", ["throughput", "latency"])
def test_every_benchmark_has_a_quick_form(script: str):
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--help"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "--quick" in shown
