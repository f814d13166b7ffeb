"""One conversation without a socket: the frames of a session against a controller that runs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_fixtures import CARD, observation
from test_controller import folder  # noqa: F401

from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.serve.protocol import REPLY_LIMITS, ProtocolError, pack, unpack
from qtransformer.serve.session import Session, describe, room_for


@pytest.fixture
def controller(folder: Path) -> Controller:  # noqa: F811
    return Controller(folder, raises=True)


@pytest.fixture
def session(controller: Controller) -> Session:
    return Session(controller)


def ask(session: Session, message: dict[str, Any]) -> dict[str, Any]:
    return unpack(session.answer(pack(message)), REPLY_LIMITS)


def test_an_action_by_hand(session: Session):
    reply = ask(session, observation(0.03, 0.0))
    assert set(reply) == {"actions", "tokens", "q_max", "q_gap", "server_timing"}
    assert reply["actions"].dtype == np.float32
    np.testing.assert_allclose(reply["actions"], [[0.3, 0.0]], rtol=1e-6)  # a chunk of one step
    assert reply["q_max"] == [0.5, 0.25]  # a list: brokers slice every array by step
    assert reply["tokens"] == [1, 1]
    np.testing.assert_allclose(ask(session, observation(0.06, 0.0))["actions"], [[0.5, 0.0]], rtol=1e-6)


def test_reset_alone_and_beside_an_observation(session: Session):
    ask(session, observation(0.09, 0.0))
    assert set(ask(session, {"reset": True})) == {"server_timing"}
    np.testing.assert_allclose(ask(session, observation(0.01, 0.0))["actions"], [[0.1, 0.0]], rtol=1e-6)
    reply = ask(session, {**observation(0.02, 0.0), "reset": True})
    np.testing.assert_allclose(reply["actions"], [[0.2, 0.0]], rtol=1e-6)
    reply = ask(session, {**observation(0.05, 0.0), "reset": np.bool_(False)})
    np.testing.assert_allclose(reply["actions"], [[0.4, 0.0]], rtol=1e-6)  # 0.02, 0.05, 0.05


@pytest.mark.parametrize("value", [1, "yes", None, np.ones(1, bool)])
def test_reset_must_be_said_clearly(session: Session, value: Any):
    with pytest.raises(ProtocolError, match="key 'reset' must be true or false, got"):
        ask(session, {"reset": value})


def test_timing(session: Session):
    assert set(ask(session, observation(0.0, 0.0))["server_timing"]) == {"infer_ms"}
    session.previous_seconds = 0.25
    timing = ask(session, observation(0.0, 0.0))["server_timing"]
    assert timing == {"infer_ms": 1000 * session.infer_seconds, "prev_total_ms": 250.0}
    assert 0 < timing["infer_ms"] < 10_000


def test_sessions_do_not_share_a_history(controller: Controller):
    first, second = Session(controller), Session(controller)
    ask(first, observation(0.09, 0.0))
    np.testing.assert_allclose(ask(second, observation(0.0, 0.0))["actions"], [[0.0, 0.0]])
    np.testing.assert_allclose(ask(first, observation(0.0, 0.0))["actions"], [[0.3, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({}, r"keys \(\[\]\) must be"),
        ({"reset": False}, r"keys \(\[\]\) must be"),
        ({"state": np.zeros(2)}, r"keys \(\['state'\]\) must be"),
        ({"state": {"x": np.zeros(2)}, "goal": [0.0]}, r"keys \(\['goal', 'state/x'\]\) must be"),
        ({"state": np.array([0.0, np.nan]), "goal": [0.0]}, "must be finite"),
        ({"state": None, "goal": [0.0]}, "'state'"),
        ({"state": "text", "goal": [0.0]}, "'state'"),
        ({"state": b"bytes", "goal": [0.0]}, "'state'"),
        ({"state": [[0.0], {}], "goal": [0.0]}, "'state'"),
    ],
)
def test_a_refused_observation_leaves_no_trace(session: Session, message: dict[str, Any], match: str):
    ask(session, observation(0.03, 0.0))
    with pytest.raises(ControllerError, match=match):
        ask(session, message)
    np.testing.assert_allclose(ask(session, observation(0.06, 0.0))["actions"], [[0.5, 0.0]], rtol=1e-6)


def test_plain_lists_will_do(session: Session):
    np.testing.assert_allclose(ask(session, {"state": [0.03, 0], "goal": [0]})["actions"], [[0.3, 0.0]], rtol=1e-6)


def test_nested_observations_are_named_as_in_a_log(session: Session):
    with pytest.raises(ControllerError, match=r"keys \(\['goal', 'robot/arm/state'\]\) must be"):
        ask(session, {"robot": {"arm": {"state": [0.0, 0.0]}}, "goal": [0.0]})


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_tell_what_a_robot_needs_and_no_more():
    card = {**CARD, "sha256": {"policy.onnx": "ab"}, "config": {"dataset": "/home/me/log"}, "instructions": ["lift"]}
    assert unpack(pack(describe(card, 1000)), REPLY_LIMITS) == {
        "schema_version": CARD["schema_version"],
        "observations": CARD["observations"],
        "actions": CARD["actions"],
        "control_hz": CARD["control_hz"],
        "history_length": CARD["history_length"],
        "instructions": ["lift"],
        "sha256": {"policy.onnx": "ab"},
        "action_horizon": 1,
        "reset_key": "reset",
        "max_request_bytes": 1000,
    }


def test_a_reserved_name_is_refused():
    card = {**CARD, "observations": [{"name": "reset", "shape": [1], "dtype": "float32"}]}
    with pytest.raises(RunError, match="observation 'reset' of the bundle has a name that the server reserves"):
        describe(card, 1000)


def test_room_for_a_request():
    text = {"name": "instruction", "shape": [], "dtype": "text", "kind": "text"}
    image = {"name": "image", "shape": [96, 96, 3], "dtype": "uint8", "kind": "image"}
    assert room_for({"observations": [text, image]}) == 8 * 96 * 96 * 3 + 1024 + 65_536
