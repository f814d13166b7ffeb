"""The replay of recorded steps, on graphs whose outputs are known by hand; and that a bundle needs nothing of ours."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from controller_fixtures import CARD, TIMES, golden, with_int8, write_bundle

from qtransformer.deploy import controller as module
from qtransformer.deploy.controller import Controller
from qtransformer.deploy.self_test import flat_row

TOKENS = np.array([[1, 1], [2, 2], [1, 1], [2, 3]])  # the second token of the last step differs


def with_value(name: str, place: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    array = golden()[name].copy()
    array[place] = value
    return {name: array}


def test_self_test_passes(tmp_path: Path):
    report = Controller(write_bundle(tmp_path)).self_test()
    assert report["failures"] == []
    assert report["passed"]
    assert (report["steps"], report["episodes"]) == (TIMES, 2)
    assert report["tokens"] == {"equal": 8, "total": 8}
    assert report["largest_action_difference"] < 1e-7
    assert report["largest_q_difference"] == 0
    assert 0 < report["latency_ms"]["median"] <= report["latency_ms"]["p99"]


def test_a_row_holds_the_newest_frame_last():
    """State, then goal, then how many frames are real; before the first frame of an episode stand copies of it."""
    assert flat_row(golden(), CARD, 0).tolist() == [np.array([*[0.03, 0.06] * 3, 0, 0, 0, 1], np.float32).tolist()]
    expected = [[-0.05, 0.0, -0.05, 0.0, 0.04, 0.0, 0, 0, 0, 2]]
    assert flat_row(golden(), CARD, 3).tolist() == np.array(expected, np.float32).tolist()
    longer = {**golden(), "is_reset": np.array([True, False, False, False])}
    expected = [[0.0, 0.03, -0.05, 0.0, 0.04, 0.0, 0, 0, 0, 3]]
    assert flat_row(longer, CARD, 3).tolist() == np.array(expected, np.float32).tolist()


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"outputs.tokens": TOKENS}, "step 3, token 1: bin 3 expected, got 2"),
        (with_value("outputs.actions", (2, 0), -0.4999), "step 2: action off by 1.0"),
        (with_value("outputs.q_max", (1, 0), 0.6), "step 1, token 0: Q off by 1.00e-01"),
        (with_value("outputs.q_max", (1, 0), np.nan), "step 1, token 0: Q off by nan"),
        (with_value("outputs.ok", (1,), False), "step 1: ok is False"),
        (with_value("is_reset", (2,), False), "step 2, token 0: bin 1 expected, got 3"),
        ({"outputs.tokens": TOKENS, "is_tied": np.arange(8) == np.full((4, 2, 1), 5)}, "step 3, token 1: bin 3"),
    ],
)
def test_self_test_fails(tmp_path: Path, changes: Mapping[str, np.ndarray], failure: str):
    report = Controller(write_bundle(tmp_path, changes)).self_test()
    assert not report["passed"]
    assert report["failures"][0].startswith(failure)
    assert report["num_failures"] == len(report["failures"])


def test_the_flat_graph_is_compared_too(tmp_path: Path):
    folder = write_bundle(tmp_path)
    controller = Controller(folder)
    card = controller.card["flat"]
    card["parts"][0], card["parts"][1] = card["parts"][1], card["parts"][0]  # as if it were laid the other way round
    failures = controller.self_test()["failures"]
    assert failures
    assert all("flat action off by" in failure for failure in failures)


def test_self_test_names_and_forgives_a_near_tie(tmp_path: Path):
    is_tied = np.arange(8) == np.full((TIMES, 2, 1), 2)
    report = Controller(write_bundle(tmp_path, {"outputs.tokens": TOKENS, "is_tied": is_tied})).self_test()
    assert report["passed"]
    assert report["tokens"] == {"equal": 7, "total": 8}
    assert report["num_near_ties"] == 1
    assert report["near_ties"][0].startswith("step 3, token 1: bin 3 expected, got 2")


# Of the last step's two tokens the second is another than recorded: 7 of 8 are equal.
@pytest.mark.parametrize(
    ("num_equal", "q_max", "failures"),
    [
        (7, "0.5, 0.25", []),
        (8, "0.5, 0.25", ["7 of 8 tokens are the network's, at least 95.0% were"]),
        (7, "0.59, 0.25", []),
        (7, "0.5, 0.4", ["step 0: Q off by 1.50e-01"]),
        (7, "nan, 0.4", ["step 0: Q off by nan"]),
    ],
)
def test_a_graph_with_rounded_weights_is_held_to_what_it_was(
    tmp_path: Path, num_equal: int, q_max: str, failures: list[str]
):
    folder = with_int8(write_bundle(tmp_path, {"outputs.tokens": TOKENS}), q_max, num_equal)
    report = Controller(folder, model="policy.int8.onnx").self_test()
    assert (report["failures"], report["passed"]) == (failures, not failures)
    assert report["tokens"] == {"equal": 7, "total": 8}
    assert report["latency_ms"]["median"] > 0


def test_a_graph_with_rounded_weights_that_is_not_ok(tmp_path: Path):
    goal = golden()["inputs.goal"].copy()
    goal[2] = 100.0
    folder = with_int8(write_bundle(tmp_path, {"inputs.goal": goal}))
    report = Controller(folder, model="policy.int8.onnx").self_test()
    assert report["failures"] == ["step 2: ok is False"]


def test_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_bundle(tmp_path)
    assert module.main(["--self-test", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    write_bundle(folder, {"outputs.tokens": TOKENS})
    assert module.main(["--self-test", str(folder)]) == 1
    assert not json.loads(capsys.readouterr().out)["passed"]
    (folder / "policy.onnx").unlink()
    assert module.main(["--self-test", str(folder)]) == 1
    assert "policy.onnx: cannot be read" in capsys.readouterr().err


def test_main_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    folder = write_bundle(tmp_path)
    monkeypatch.setattr(sys, "argv", ["controller.py", "--self-test"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(folder / "controller.py"), run_name="__main__")
    assert json.loads(capsys.readouterr().out)["steps"] == TIMES


def test_a_bundle_loads_numpy_and_onnxruntime_alone(tmp_path: Path):
    """Run in the bundle, where nothing of ours is on the path; what onnxruntime itself loads does not count."""
    code = (
        "import sys, numpy, onnxruntime; before = {name.partition('.')[0] for name in sys.modules}\n"
        "from controller import Controller\n"
        "controller = Controller('.'); controller.reset()\n"
        "assert controller.step({'state': numpy.zeros(2), 'goal': numpy.zeros(1)}) is not None\n"
        "assert controller.self_test()['passed']\n"
        "after = {name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)\n"
        "assert after == {'controller'}, after"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    folder = write_bundle(tmp_path)
    environment["OMP_NUM_THREADS"] = "1"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_neither_the_bundle_nor_its_evaluation_needs_torch(tmp_path: Path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, qtransformer.evaluation\n"
        "from qtransformer.deploy.bundle_policy import BundlePolicy\n"
        f"policy = BundlePolicy({str(write_bundle(tmp_path))!r}); policy.reset(0)\n"
        "policy.act([0], [{'state': np.zeros(2), 'goal': np.zeros(1)}])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=60)
