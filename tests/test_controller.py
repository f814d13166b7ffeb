"""The controller around a graph of four nodes, whose outputs are known by hand; the real graph is in test_export."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_fixtures import WINDOW, change_card, observation, with_int8, write_bundle, write_sums

from qtransformer.deploy import controller as module
from qtransformer.deploy.bundle_policy import BundlePolicy
from qtransformer.deploy.controller import Controller, ControllerError, WordEncoder

INSTRUCTIONS = ("put the red can near the blue cube", "pick up the cup")


def signs(part: str) -> np.ndarray:
    bits = np.frombuffer(hashlib.shake_128(part.encode()).digest(WordEncoder.SIZE // 8), np.uint8)
    return 2.0 * np.unpackbits(bits) - 1.0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("red", ["red", "red/1"]),
        ("red can", ["red", "can", "red can", "red/1", "can/2"]),
        ("the red can", ["the", "red", "can", "the red", "red can", "the/1", "red/1", "can/2"]),
        ("!?", []),
    ],
)
def test_words_and_their_neighbours_and_those_of_each_half_add_up(text: str, parts: list[str]):
    total = sum((signs(part) for part in parts), np.zeros(WordEncoder.SIZE))
    np.testing.assert_allclose(WordEncoder(INSTRUCTIONS).encode(text), total / max(1, len(parts)) ** 0.5, atol=1e-6)


def test_order_tells_and_case_and_marks_do_not():
    encoder = WordEncoder(INSTRUCTIONS)
    told = encoder.encode(INSTRUCTIONS[0])
    assert np.array_equal(told, encoder.encode("Put the RED can, near the blue cube."))
    swapped = encoder.encode("put the blue can near the red cube")
    assert 0.5 < np.corrcoef(told, swapped)[0, 1] < 0.95
    assert np.corrcoef(told, encoder.encode(INSTRUCTIONS[1]))[0, 1] < 0.5
    one = encoder.encode("put the red can near the blue can")  # the other has the same words and neighbours
    assert np.corrcoef(one, encoder.encode("put the blue can near the red can"))[0, 1] < 0.95


def test_words_that_the_log_never_had_are_refused():
    with pytest.raises(ControllerError, match=r"never had: \['mug'\]; the nearest that it had: \['pick up the cup', "):
        WordEncoder(INSTRUCTIONS).encode("pick up the mug")
    with pytest.raises(ControllerError, match="an instruction must be text, got list; give a str"):
        WordEncoder(INSTRUCTIONS).encode(["red"])


def test_the_memory_of_encoded_instructions_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_NUM_KEPT", 3)
    encoder = WordEncoder(INSTRUCTIONS)
    for word in ("put", "the", "red", "can", "near", "blue"):
        assert encoder.encode(word) is encoder.encode(word)
        assert len(encoder._vectors) <= 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


@pytest.fixture
def controller(folder: Path) -> Controller:
    controller = Controller(folder, raises=True)
    controller.reset()
    return controller


def act(controller: Controller, newest: dict[str, np.ndarray]) -> np.ndarray:
    action = controller.step(newest)
    assert action is not None
    return action


# --- steps ------------------------------------------------------------------------------------------------------------


def test_short_history_is_padded_with_the_newest_observation(controller: Controller):
    np.testing.assert_allclose(act(controller, observation(0.03, 0.0)), [0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(act(controller, observation(0.06, 0.0)), [0.5, 0.0], rtol=1e-6)  # 0.03, 0.06, 0.06
    np.testing.assert_allclose(act(controller, observation(0.0, 0.0)), [0.3, 0.0], rtol=1e-6)  # 0.03, 0.06, 0.0
    np.testing.assert_allclose(act(controller, observation(0.0, 0.0)), [0.2, 0.0], rtol=1e-6)  # 0.06, 0.0, 0.0
    assert controller.last_outputs is not None
    assert controller.last_outputs.tokens.tolist() == [3, 3]
    assert controller.last_outputs.q_max.tolist() == [0.5, 0.25]
    assert controller.card["actions"]["high"] == [1.0, 2.0]
    assert controller.window == WINDOW


def test_actions_are_clipped_to_the_limits(controller: Controller):
    np.testing.assert_array_equal(controller.step(observation(9.0, -9.0)), [1.0, -2.0])
    assert controller.counters["bounds"] == 1


def test_reset_forgets(controller: Controller):
    controller.step(observation(0.05, 0.05))
    controller.reset()
    assert controller.last_outputs is None
    np.testing.assert_allclose(act(controller, observation(0.01, 0.01)), [0.1, 0.1], rtol=1e-6)


def test_the_caller_may_fill_the_same_array_again(controller: Controller):
    buffer = {"state": np.array([0.03, 0.0], np.float32), "goal": np.zeros(1, np.float32)}
    controller.step(buffer)
    buffer["state"][:] = 0.0
    np.testing.assert_allclose(act(controller, buffer), [0.1, 0.0], rtol=1e-6)


def test_forks_have_their_own_history_on_one_session(controller: Controller):
    controller.step(observation(0.09, 0.0))
    twin = controller.fork()
    with pytest.raises(ControllerError, match=r"must follow reset\(\)"):
        twin.step(observation(0.0, 0.0))
    twin.reset()
    np.testing.assert_allclose(act(twin, observation(0.0, 0.0)), [0.0, 0.0])
    np.testing.assert_allclose(act(controller, observation(0.0, 0.0)), [0.3, 0.0], rtol=1e-6)
    assert twin._session is controller._session


def test_a_given_session_is_used(folder: Path):
    class Session:
        def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((1, 2), 0.5), *[np.zeros((1, 2))] * 3, np.array([True]), *map(np.zeros, (1, 1))]

    controller = Controller(folder, session=Session())
    controller.reset()
    np.testing.assert_array_equal(controller.step(observation(0.0, 0.0)), [0.5, 0.5])


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
    ("bad", "reason", "match"),
    [
        ({"state": np.zeros(2)}, "keys", r"keys \(\['state'\]\) must be \['goal', 'state'\]"),
        ({**observation(0, 0), "more": 1}, "keys", r"keys \(\['goal', 'more', 'state'\]\) must be \['goal', 'state'\]"),
        ({**observation(0, 0), "state": np.zeros(3)}, "shape", r"'state': shape \(3,\) must be \(2,\)"),
        ({**observation(0, 0), "state": [[1], [2, 3]]}, "shape", r"'state': must be an array"),
        ({**observation(0, 0), "state": np.zeros(2, complex)}, "dtype", r"'state': dtype complex128 must be float32"),
        ({**observation(0, 0), "state": np.array(["a", "b"])}, "dtype", r"'state': dtype <U1 must be float32"),
        ({**observation(0, 0), "state": np.array([None, 1])}, "dtype", r"'state': dtype object must be float32"),
        (observation(0, np.nan), "not_finite", r"'state': must be finite, got NaN or infinity at element\(s\) \[1\]"),
        (observation(-np.inf, 0), "not_finite", r"'state': must be finite, .* \[0\]"),
        (observation(1e300, 0), "not_finite", r"'state': must be finite, .* \[0\]"),
        (observation(0, 0, goal=101), "network", r"outputs of the policy must be finite, got ok = False"),
    ],
)
def test_a_refused_step_leaves_no_trace(controller: Controller, bad: Any, reason: str, match: str):
    twin = controller.fork()
    twin.reset()
    for each in (controller, twin):
        each.step(observation(0.03, 0.03))
    before = controller.last_outputs
    with pytest.raises(ControllerError, match=match):
        controller.step(bad)
    assert controller.last_outputs is before
    assert (controller.counters["accepted"], controller.counters[reason]) == (1, 1)
    good = observation(0.06, 0.01)
    np.testing.assert_array_equal(controller.step(good), twin.step(good))


def test_an_action_that_is_no_number_is_refused_though_ok(folder: Path):
    class Session:
        def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((1, 2), np.nan), *[np.zeros((1, 2))] * 3, np.array([True]), *map(np.zeros, (1, 1))]

    controller = Controller(folder, session=Session(), raises=True)
    controller.reset()
    with pytest.raises(ControllerError, match="must be finite"):
        controller.step(observation(0.0, 0.0))


# --- loading ----------------------------------------------------------------------------------------------------------


def test_no_bundle(tmp_path: Path):
    with pytest.raises(ControllerError, match=r"SHA256SUMS: is missing or damaged"):
        Controller(tmp_path)
    (tmp_path / "SHA256SUMS").write_text("what")
    with pytest.raises(ControllerError, match=r"SHA256SUMS: is missing or damaged"):
        Controller(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_card(folder: Path, text: str):
    (folder / "policy.json").write_text(text)
    with pytest.raises(ControllerError, match=r"policy.json: sha256 \(\w{12}\) must be \w{12} as in SHA256SUMS"):
        Controller(folder)
    write_sums(folder)
    with pytest.raises(ControllerError, match=r"policy.json: is damaged"):
        Controller(folder)


def test_other_schema_version(folder: Path):
    change_card(folder, schema_version=1)
    with pytest.raises(
        ControllerError, match=rf"version \(1\) must be {module.SCHEMA_VERSION}; use the controller.py of that bundle"
    ):
        Controller(folder)


def test_incomplete_card(folder: Path):
    change_card(folder, actions=None)
    with pytest.raises(ControllerError, match=r"must have the keys \['actions'\]"):
        Controller(folder)


def test_missing_model(folder: Path):
    (folder / "policy.onnx").unlink()
    with pytest.raises(ControllerError, match=r"policy.onnx: cannot be read"):
        Controller(folder)


def test_another_model_of_the_bundle(folder: Path):
    with_int8(folder, "0.5, 0.125")
    controller = Controller(folder, model="policy.int8.onnx")
    controller.reset()
    assert controller.step(observation(0.01, 0.02)) is not None
    assert controller.last_outputs is not None
    assert controller.last_outputs.q_max.tolist() == [0.5, 0.125]


@pytest.mark.parametrize("model", ["policy.int8.onnx", "policy_flat.onnx", "../policy.onnx"])
def test_a_model_that_the_bundle_does_not_hold(folder: Path, model: str):
    with pytest.raises(ControllerError, match=r"model \(.*\) must be one of \['policy.onnx'\], which .* holds"):
        Controller(folder, model=model)


def test_a_model_that_onnxruntime_refuses(folder: Path):
    (folder / "policy.onnx").write_bytes(b"no graph")
    write_sums(folder)
    with pytest.raises(ControllerError, match=r"onnxruntime \S+ cannot load the graph \(.*use another version"):
        Controller(folder)


@pytest.mark.parametrize("name", ["policy.onnx", "policy_flat.onnx", "golden.npz"])
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
