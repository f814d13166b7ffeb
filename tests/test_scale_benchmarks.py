"""The benchmarks of devices, ranks and checkpoints: their arithmetic by hand, and each run at a tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qtransformer.plan import Sizes

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import checkpoints  # noqa: E402  # pyright: ignore[reportMissingImports]
import gpu  # noqa: E402  # pyright: ignore[reportMissingImports]
import two_ranks  # noqa: E402  # pyright: ignore[reportMissingImports]
import two_ranks_worker  # noqa: E402  # pyright: ignore[reportMissingImports]

TINY = {"dimensions": 2, "bins": 4, "window": 2, "width": 16, "layers": 1, "action_layers": 1, "heads": 2}
TINY |= {"state_size": 3, "transitions": 8}


def test_a_device_trains_and_every_image_is_encoded_once(monkeypatch, capsys, tmp_path):
    load = gpu.Load(("30k",), 4, 2, 2, seconds=0.01, product=32, compiles=False)
    monkeypatch.setattr(gpu, "LOADS", {("cpu", True): load})
    monkeypatch.setattr(gpu, "SIZES", Sizes(64, 1, 1, 6, dimensions=2, num_bins=4, state_size=3))
    monkeypatch.setattr(gpu, "SIDE", 16)
    gpu.main(["--quick", "--device", "cpu", "--profile", str(tmp_path / "profile.txt")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["quick"], result["device"][:5]) == ("gpu", True, "cpu: ")
    figures = result["configurations"]
    assert list(figures) == [f"30k {kind} {each} eager" for kind in ("state", "images") for each in gpu.PRECISIONS]
    for name, each in figures.items():
        seen = {"policy": 6, "target": 11} if "images" in name else {"policy": 0, "target": 0}
        assert each["frames_encoded"] == seen
        assert 0 < each["transitions_per_second"] <= each["updates_per_second"] * each["segments"] * 6 * 1.01
        expected = each["updates_per_second"] * each["flops_an_update"] / result["matrix_gflops"] / 1e9
        assert each["matrix_share"] == pytest.approx(expected, rel=1e-2)
        assert each["planned_over_counted_flops"] == pytest.approx(1, abs=0.1 if "images" in name else 1e-3)
        assert each["memory_peak_bytes"] is None
    assert set(result["ratio"]) == {f"30k {kind} bfloat16 eager / float32" for kind in ("state", "images")}
    assert "aten::" in (tmp_path / "profile.txt").read_text()


def test_configurations_and_their_ratios():
    load = gpu.LOADS["cuda", False]
    names = [each.name for each in gpu.cases(load)]
    assert len(names) == len(set(names)) == 3 * 2 * 2 * 2
    figures = {"1M state float32 eager": 2.0, "1M state float32 compiled": 3.0, "1M state bfloat16 eager": 8.0}
    found = gpu.ratio({name: {"transitions_per_second": rate} for name, rate in figures.items()})
    assert found == {"1M state float32 compiled / eager": 1.5, "1M state bfloat16 eager / float32": 4.0}


def test_two_ranks_by_hand():
    seconds = {"one": [2.0, 4.0, 6.0], "two": [1.0, 2.0, 4.0], "apart": [1.0, 1.0, 2.0], "exchange": [0.1, 0.2, 0.3]}
    found = two_ranks.summary({f"small: {name}": each for name, each in seconds.items()}, "small")
    assert found["ratio"] == {"median": 2.0, "min": 1.5, "max": 2.0}
    assert found["without_exchange"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["milliseconds"] == {"one": 4000, "two": 2000, "apart": 1000, "exchange": 200}


def test_a_worker_updates_on_its_half_or_on_all():
    halves, sizes = two_ranks_worker.Halves(1), []
    halves.make_learner("tiny", TINY)
    learner, whole, half = halves._made["tiny"]
    assert halves.parameters("tiny") == sum(each.numel() for each in learner.policy.parameters())
    assert (half.actions == whole.actions[2:]).all()
    learner.update = lambda batch: sizes.append(len(batch.is_valid))
    assert halves.update("tiny", repeats=2) > 0
    assert halves.update("tiny", repeats=1, is_whole=True) > 0
    assert sizes == [2, 2, 4]
    assert halves.exchange("tiny", repeats=1) >= 0


def test_checkpoints_are_written_in_both_ways(tmp_path):
    parameters, figures = checkpoints.measure(tmp_path, TINY, rounds=1)
    assert {name: len(each) for name, each in figures.items()} == dict.fromkeys(figures, 1)
    for name in ("at once", "beside"):
        assert len(list((tmp_path / name / "checkpoints").iterdir())) == 2
    found = checkpoints.summary(parameters, {**figures, "at once": [6.0], "beside": [2.0]})
    assert (found["ratio"], found["parameters"]) == (3.0, parameters)


@pytest.mark.parametrize("script", [gpu, two_ranks, checkpoints])
def test_each_has_a_quick_form(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert "--quick" in capsys.readouterr().out
