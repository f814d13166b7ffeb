"""The controller around a graph of four nodes, whose outputs are known by hand; the real graph is in test_export."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtransformer.deploy import controller as module
from qtransformer.deploy.controller import BundlePolicy, Controller, ControllerError

WINDOW = 3
# action = 10 * (mean over the window of the first two elements); tokens = (num_frames, num_frames); not ok above 100
GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
policy (float[1,3,2] state, float[1,3,1] goal, int64[1] num_frames)
    => (float[1,2] actions, int64[1,2] tokens, float[1,2] q_max, float[1,2] q_gap, bool[1] ok)
{
    axes = Constant<value_ints = [1]>()
    ten = Constant<value_float = 10.0>()
    hundred = Constant<value_float = 100.0>()
    rows = Constant<value_ints = [0, 0]>()
    q_max = Constant<value = float[1,2] {0.5, 0.25}>()
    q_gap = Constant<value = float[1,2] {0.1, 0.2}>()
    mean = ReduceMean<keepdims = 0>(state, axes)
    actions = Mul(mean, ten)
    twice = Gather(num_frames, rows)
    first = Constant<value_ints = [0]>()
    tokens = Unsqueeze(twice, first)
    largest = ReduceMax<keepdims = 0>(goal)
    is_small = Less(largest, hundred)
    ok = Unsqueeze(is_small, first)
}
"""
CARD: dict[str, Any] = {
    "schema_version": 1,
    "observations": [
        {"name": "state", "shape": [2], "dtype": "float32"},
        {"name": "goal", "shape": [1], "dtype": "float32"},
    ],
    "actions": {"low": [-1.0, -2.0], "high": [1.0, 2.0]},
    "history_length": WINDOW,
    "outputs": [{"name": name} for name in ("actions", "tokens", "q_max", "q_gap", "ok")],
}


def observation(*state: float, goal: float = 0.0) -> dict[str, np.ndarray]:
    return {"state": np.array(state), "goal": np.array([goal])}


def golden() -> dict[str, np.ndarray]:
    """Two recorded steps of the graph above."""
    state = np.array([[[0.1, 0.2]] * 3, [[-0.05, 0.0]] * 3], np.float32)
    return {
        "inputs.state": state,
        "inputs.goal": np.zeros((2, 3, 1), np.float32),
        "inputs.num_frames": np.array([1, 3]),
        "outputs.actions": 10 * state[:, 0],
        "outputs.tokens": np.array([[1, 1], [3, 3]]),
        "outputs.q_max": np.array([[0.5, 0.25]] * 2, np.float32),
        "outputs.q_gap": np.array([[0.1, 0.2]] * 2, np.float32),
        "outputs.ok": np.array([True, True]),
        "is_tied": np.zeros((2, 2, 8), bool),
    }


Write = Callable[..., Path]


@pytest.fixture
def write_bundle(tmp_path: Path) -> Write:
    """Writes a bundle folder; keywords replace entries of golden.npz."""
    import onnx.parser

    def write(changes: Mapping[str, np.ndarray] | None = None) -> Path:
        (tmp_path / "policy.onnx").write_bytes(onnx.parser.parse_model(GRAPH).SerializeToString())
        np.savez(tmp_path / "golden.npz", allow_pickle=False, **{**golden(), **(changes or {})})
        names = ("policy.onnx", "golden.npz")
        hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
        (tmp_path / "policy.json").write_text(json.dumps({**CARD, "sha256": hashes}))
        (tmp_path / "controller.py").write_bytes(Path(module.__file__).read_bytes())
        return tmp_path

    return write


@pytest.fixture
def folder(write_bundle: Write) -> Path:
    return write_bundle()


@pytest.fixture
def controller(folder: Path) -> Controller:
    controller = Controller(folder)
    controller.reset()
    return controller


# --- steps ------------------------------------------------------------------------------------------------------------


def test_short_history_is_padded_with_the_newest_observation(controller: Controller):
    np.testing.assert_allclose(controller.step(observation(0.03, 0.0)), [0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(controller.step(observation(0.06, 0.0)), [0.5, 0.0], rtol=1e-6)  # 0.03, 0.06, 0.06
    np.testing.assert_allclose(controller.step(observation(0.0, 0.0)), [0.3, 0.0], rtol=1e-6)  # 0.03, 0.06, 0.0
    np.testing.assert_allclose(controller.step(observation(0.0, 0.0)), [0.2, 0.0], rtol=1e-6)  # 0.06, 0.0, 0.0
    assert controller.last_outputs is not None
    assert controller.last_outputs.tokens.tolist() == [3, 3]
    assert controller.last_outputs.q_max.tolist() == [0.5, 0.25]
    assert controller.card["actions"]["high"] == [1.0, 2.0]
    assert controller.window == WINDOW


def test_actions_are_clipped_to_the_limits(controller: Controller):
    assert controller.step(observation(9.0, -9.0)).tolist() == [1.0, -2.0]


def test_reset_forgets(controller: Controller):
    controller.step(observation(0.05, 0.05))
    controller.reset()
    assert controller.last_outputs is None
    np.testing.assert_allclose(controller.step(observation(0.01, 0.01)), [0.1, 0.1], rtol=1e-6)


def test_the_caller_may_fill_the_same_array_again(controller: Controller):
    buffer = {"state": np.array([0.03, 0.0], np.float32), "goal": np.zeros(1, np.float32)}
    controller.step(buffer)
    buffer["state"][:] = 0.0
    np.testing.assert_allclose(controller.step(buffer), [0.1, 0.0], rtol=1e-6)


def test_forks_have_their_own_history_on_one_session(controller: Controller):
    controller.step(observation(0.09, 0.0))
    twin = controller.fork()
    with pytest.raises(ControllerError, match=r"must follow reset\(\)"):
        twin.step(observation(0.0, 0.0))
    twin.reset()
    np.testing.assert_allclose(twin.step(observation(0.0, 0.0)), [0.0, 0.0])
    np.testing.assert_allclose(controller.step(observation(0.0, 0.0)), [0.3, 0.0], rtol=1e-6)
    assert twin._session is controller._session


def test_a_given_session_is_used(folder: Path):
    class Session:
        def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((1, 2), 0.5), *[np.zeros((1, 2))] * 3, np.array([True])]

    controller = Controller(folder, session=Session())
    controller.reset()
    assert controller.step(observation(0.0, 0.0)).tolist() == [0.5, 0.5]


def test_bundle_policy_keeps_the_slots_apart(folder: Path):
    policy = BundlePolicy(folder)
    for slot in (0, 5):
        policy.reset(slot)
    actions = policy.act([5, 0], [observation(0.03, 0.0), observation(0.06, 0.0)])
    np.testing.assert_allclose(actions, [[0.3, 0.0], [0.6, 0.0]], rtol=1e-6)
    policy.reset(0)
    actions = policy.act([0, 5], [observation(0.0, 0.0)] * 2)
    np.testing.assert_allclose(actions, [[0.0, 0.0], [0.1, 0.0]], rtol=1e-6)
    assert policy.card["history_length"] == WINDOW


def test_bundle_policy_tells_the_value_of_the_last_token(folder: Path):
    policy = BundlePolicy(folder)
    policy.reset(5)
    with pytest.raises(ControllerError, match=r"q_value\(5\) must follow act\(\), got no act\(\) yet"):
        policy.q_value(5)
    policy.act([5], [observation(0.03, 0.0)])
    assert policy.q_value(5) == 0.25


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"state": np.zeros(2)}, r"keys \(\['state'\]\) must be \['goal', 'state'\]"),
        (
            {**observation(0, 0), "more": np.zeros(1)},
            r"keys \(\['goal', 'more', 'state'\]\) must be \['goal', 'state'\]",
        ),
        ({**observation(0, 0), "state": np.zeros(3)}, r"'state': shape \(3,\) must be \(2,\)"),
        ({**observation(0, 0), "state": [[1], [2, 3]]}, r"'state': must be an array"),
        ({**observation(0, 0), "state": np.zeros(2, complex)}, r"'state': dtype complex128 must be float32"),
        ({**observation(0, 0), "state": np.array(["a", "b"])}, r"'state': dtype <U1 must be float32"),
        (observation(0, np.nan), r"'state': must be finite, got NaN or infinity at element\(s\) \[1\]"),
        (observation(-np.inf, 0), r"'state': must be finite, .* \[0\]"),
        (observation(1e300, 0), r"'state': must be finite, .* \[0\]"),
        (observation(0, 0, goal=101), r"outputs of the policy must be finite, got ok = False"),
    ],
)
def test_a_refused_step_leaves_no_trace(controller: Controller, bad: Any, match: str):
    twin = controller.fork()
    twin.reset()
    for each in (controller, twin):
        each.step(observation(0.03, 0.03))
    before = controller.last_outputs
    with pytest.raises(ControllerError, match=match):
        controller.step(bad)
    assert controller.last_outputs is before
    good = observation(0.06, 0.01)
    np.testing.assert_array_equal(controller.step(good), twin.step(good))


def test_an_action_that_is_no_number_is_refused_though_ok(folder: Path):
    class Session:
        def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((1, 2), np.nan), *[np.zeros((1, 2))] * 3, np.array([True])]

    controller = Controller(folder, session=Session())
    controller.reset()
    with pytest.raises(ControllerError, match="must be finite"):
        controller.step(observation(0.0, 0.0))


# --- loading ----------------------------------------------------------------------------------------------------------


def change_card(folder: Path, **changes: Any) -> None:
    path = folder / "policy.json"
    card = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in card.items() if value is not None}))


def test_no_bundle(tmp_path: Path):
    with pytest.raises(ControllerError, match=r"policy.json: is missing or damaged"):
        Controller(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_card(folder: Path, text: str):
    (folder / "policy.json").write_text(text)
    with pytest.raises(ControllerError, match=r"policy.json: is missing or damaged"):
        Controller(folder)


def test_other_schema_version(folder: Path):
    change_card(folder, schema_version=2)
    with pytest.raises(ControllerError, match=r"schema_version \(2\) must be 1"):
        Controller(folder)


def test_incomplete_card(folder: Path):
    change_card(folder, actions=None)
    with pytest.raises(ControllerError, match=r"must have the keys \['actions'\]"):
        Controller(folder)


def test_missing_model(folder: Path):
    (folder / "policy.onnx").unlink()
    with pytest.raises(ControllerError, match=r"policy.onnx: cannot be read"):
        Controller(folder)


@pytest.mark.parametrize("name", ["policy.onnx", "golden.npz"])
def test_damaged_file(folder: Path, name: str):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ControllerError, match=rf"{name}: sha256 \(\w{{12}}\) must be \w{{12}}"):
        Controller(folder).self_test()


def test_missing_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ControllerError, match="pip install onnxruntime"):
        Controller(folder)


# --- self-test --------------------------------------------------------------------------------------------------------


def test_self_test_passes(folder: Path):
    report = Controller(folder).self_test()
    assert report["passed"]
    assert report["samples"] == 2
    assert report["tokens"] == {"equal": 4, "total": 4}
    assert report["largest_q_difference"] == 0
    assert 0 < report["latency_ms"]["median"] <= report["latency_ms"]["p99"]


TOKENS = np.array([[1, 1], [3, 4]])  # the second token of the second sample differs


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"outputs.tokens": TOKENS}, "sample 1, token 1: bin 4 expected, got 3"),
        ({"outputs.actions": golden()["outputs.actions"] + np.float32(1e-4)}, "sample 0: action off by 1.0"),
        ({"outputs.q_max": np.array([[0.5, 0.25], [0.6, 0.25]])}, "sample 1, token 0: Q off by 1.00e-01"),
        ({"outputs.q_max": np.array([[0.5, 0.25], [np.nan, 0.25]])}, "sample 1, token 0: Q off by nan"),
        ({"outputs.ok": np.array([True, False])}, "sample 1: ok is False"),
        ({"outputs.tokens": TOKENS, "is_tied": np.arange(8) == np.full((2, 2, 1), 2)}, "sample 1, token 1: bin 4"),
    ],
)
def test_self_test_fails(write_bundle: Write, changes: Mapping[str, np.ndarray], failure: str):
    report = Controller(write_bundle(changes)).self_test()
    assert not report["passed"]
    assert report["failures"][0].startswith(failure)
    assert report["num_failures"] == len(report["failures"])


def test_self_test_names_and_forgives_a_near_tie(write_bundle: Write):
    is_tied = np.arange(8) == np.full((2, 2, 1), 3)
    report = Controller(write_bundle({"outputs.tokens": TOKENS, "is_tied": is_tied})).self_test()
    assert report["passed"]
    assert report["tokens"] == {"equal": 3, "total": 4}
    assert report["num_near_ties"] == 1
    assert report["near_ties"][0].startswith("sample 1, token 1: bin 4 expected, got 3")


def test_main(write_bundle: Write, capsys: pytest.CaptureFixture[str]):
    folder = write_bundle()
    assert module.main(["--self-test", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    write_bundle({"outputs.tokens": TOKENS})
    assert module.main(["--self-test", str(folder)]) == 1
    assert not json.loads(capsys.readouterr().out)["passed"]
    (folder / "policy.onnx").unlink()
    assert module.main(["--self-test", str(folder)]) == 1
    assert "policy.onnx: cannot be read" in capsys.readouterr().err


def test_main_beside_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["controller.py", "--self-test"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(folder / "controller.py"), run_name="__main__")
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_neither_the_bundle_nor_its_evaluation_needs_torch(folder: Path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, qtransformer.evaluation\n"
        "from qtransformer.deploy.controller import BundlePolicy\n"
        f"policy = BundlePolicy({str(folder)!r}); policy.reset(0)\n"
        "policy.act([0], [{'state': np.zeros(2), 'goal': np.zeros(1)}])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=60)
