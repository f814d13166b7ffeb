"""The server over real sockets: openpi's protocol byte by byte, and many clients at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Any

import msgpack
import numpy as np
import pytest
from controller_fixtures import observation
from serve_fixtures import BINARY, TEXT, RawSocket, errors, http, running, wait_for
from test_controller import folder  # noqa: F401

from qtransformer.deploy.controller import Controller
from qtransformer.serve.client import PolicyClient, PolicyServerError
from qtransformer.serve.protocol import REPLY_LIMITS, pack, unpack
from qtransformer.serve.server import Limits

# {"state": float32 [0.25, -0.125], "goal": float64 [0.0]}, as numpy arrays
REQUEST = bytes.fromhex(
    "82"
    "a5 7374617465 84"
    "c40b 5f5f6e6461727261795f5f c3 c404 64617461 c408 0000803e000000be"
    "c405 6474797065 a3 3c6634 c405 7368617065 91 02"
    "a4 676f616c 84"
    "c40b 5f5f6e6461727261795f5f c3 c404 64617461 c408 0000000000000000"
    "c405 6474797065 a3 3c6638 c405 7368617065 91 01"
)
# "actions": float32 [[1.0, -1.25]]: ten times the mean over the window, the first within its limit
ACTIONS = bytes.fromhex(
    "a7 616374696f6e73 84"
    "c40b 5f5f6e6461727261795f5f c3 c404 64617461 c408 0000803f0000a0bf"
    "c405 6474797065 a3 3c6634 c405 7368617065 92 01 02"
)


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_the_protocol_byte_by_byte(folder: Path):  # noqa: F811
    with running(folder) as (_, port), RawSocket(port) as raw:
        assert raw.status == "HTTP/1.1 101 Switching Protocols"
        assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in raw.headers  # the example of RFC 6455
        assert "Sec-WebSocket-Extensions" not in raw.headers  # no compression
        opcode, metadata = raw.receive()  # before anything was asked
        assert opcode == BINARY
        assert msgpack.unpackb(metadata)["history_length"] == 3
        raw.send(REQUEST)
        opcode, reply = raw.receive()
        assert opcode == BINARY
        assert reply.count(ACTIONS) == 1
        assert set(msgpack.unpackb(reply, strict_map_key=False)["server_timing"]) == {"infer_ms"}
        raw.send(REQUEST)
        timing = msgpack.unpackb(raw.receive()[1], strict_map_key=False)["server_timing"]
        assert set(timing) == {"infer_ms", "prev_total_ms"}
        assert all(type(value) is float and value > 0 for value in timing.values())


def test_health_and_metrics(folder: Path):  # noqa: F811
    with running(folder) as (_, port):
        assert http(port, "/healthz") == (200, "text/plain; charset=utf-8", "OK\n")
        assert http(port, "/")[0] == 426
        with PolicyClient(f"ws://127.0.0.1:{port}") as client:
            client.infer(observation(0.0, 0.0))
            with pytest.raises(PolicyServerError):
                client.infer({})
            status, content_type, text = http(port, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = text.splitlines()
    assert "qtransformer_clients 1" in lines
    assert "qtransformer_requests_total 2" in lines
    assert 'qtransformer_errors_total{kind="refused"} 1' in lines
    assert "qtransformer_request_seconds_count 2" in lines
    assert "qtransformer_inference_seconds_count 1" in lines


def test_a_refused_observation_keeps_connection_and_history(folder: Path):  # noqa: F811
    with running(folder) as (server, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(pack(observation(0.03, 0.0)))
        raw.receive()
        raw.send(pack(observation(np.nan, 0.0)))
        opcode, text = raw.receive()
        assert opcode == TEXT
        assert text == b"observation 'state': must be finite, got NaN or infinity at element(s) [0]"
        raw.send(pack(observation(0.06, 0.0)))
        actions = unpack(raw.receive()[1], REPLY_LIMITS)["actions"]
        np.testing.assert_allclose(actions, [[0.5, 0.0]], rtol=1e-6)
        assert errors(server) == {"refused": 1}


def test_connecting_again_forgets(folder: Path):  # noqa: F811
    with running(folder) as (_, port):
        for _ in range(2):
            with PolicyClient(f"ws://127.0.0.1:{port}") as client:
                np.testing.assert_allclose(client.infer(observation(0.03, 0.0))["actions"], [[0.3, 0.0]], rtol=1e-6)
                client.infer(observation(0.09, 0.0))


def test_a_request_in_fragments_is_one_request(folder: Path):  # noqa: F811
    with running(folder) as (_, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(REQUEST[:20], is_final=False)
        raw.send(b"", 0, is_final=False)
        raw.send(REQUEST[20:], 0)
        assert ACTIONS in raw.receive()[1]


def test_requests_sent_ahead_are_answered_in_order(folder: Path):  # noqa: F811
    with running(folder) as (_, port), RawSocket(port) as raw:
        raw.receive()
        for number in range(200):
            raw.send(pack({**observation(number / 10_000, 0.0), "reset": True}))
        for number in range(200):
            actions = unpack(raw.receive()[1], REPLY_LIMITS)["actions"]
            np.testing.assert_allclose(actions, [[number / 1000, 0.0]], rtol=1e-5)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_32_clients_at_once_keep_separate_histories(folder: Path):  # noqa: F811
    num_clients, num_steps = 32, 12
    rng = np.random.default_rng(0)
    observations = [
        [{"state": rng.uniform(-0.1, 0.1, 2), "goal": rng.normal(size=1)} for _ in range(num_steps)]
        for _ in range(num_clients)
    ]
    alone = Controller(folder)
    expected = []
    for episode in observations:
        twin = alone.fork()
        twin.reset()
        expected.append([twin.step(each) for each in episode])

    def play(number: int, port: int) -> list[np.ndarray]:
        with PolicyClient(f"ws://127.0.0.1:{port}", timeout=60.0) as client:
            are_all_here.append(number)
            wait_for(lambda: len(are_all_here) == num_clients, 60)
            return [client.infer(each)["actions"][0] for each in observations[number]]

    are_all_here: list[int] = []
    with running(folder, Limits(max_clients=num_clients)) as (server, port), ThreadPoolExecutor(num_clients) as pool:
        got = list(pool.map(play, range(num_clients), [port] * num_clients))
        np.testing.assert_array_equal(got, expected)
        assert server.metrics.requests == num_clients * num_steps
        assert errors(server) == {}


def test_of_each_client_one_request_waits_and_they_take_turns(folder: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """While the policy is busy, the first client's ten further requests do not go before the second's only one."""
    step, goes_on, is_deciding, order = Controller.step, Event(), Lock(), []

    def slow(self: Controller, given: Any) -> np.ndarray | None:
        assert is_deciding.acquire(blocking=False), "two decisions at the same time"
        goes_on.wait(30)
        order.append(float(given["goal"][0]))
        is_deciding.release()
        return step(self, given)

    monkeypatch.setattr(Controller, "step", slow)
    with running(folder) as (server, port), RawSocket(port) as eager, RawSocket(port) as modest:
        for raw in (eager, modest):
            raw.receive()
        for _ in range(11):
            eager.send(pack(observation(0.0, 0.0, goal=1.0)))
        wait_for(lambda: server.metrics.requests == 1)
        modest.send(pack(observation(0.0, 0.0, goal=2.0)))
        wait_for(lambda: server.metrics.requests == 2)
        time.sleep(0.1)
        assert server.metrics.requests == 2  # the eager one's others still wait in its socket
        goes_on.set()
        for raw, number in ((modest, 1), (eager, 11)):
            for _ in range(number):
                raw.receive()
    assert order == [1.0, 2.0, *[1.0] * 10]


def test_the_number_of_clients_is_limited(folder: Path):  # noqa: F811
    with running(folder, Limits(max_clients=1)) as (server, port):
        uri = f"ws://127.0.0.1:{port}"
        with PolicyClient(uri) as first:
            with pytest.raises(PolicyServerError, match=r"closed \(.*1013 .*all 1 places are taken"):
                PolicyClient(uri)
            first.infer(observation(0.0, 0.0))
            assert http(port, "/healthz")[0] == 200
        assert errors(server) == {"busy": 1}
        wait_for(lambda: server.metrics.clients == 0)
        with PolicyClient(uri) as second:
            second.infer(observation(0.0, 0.0))
