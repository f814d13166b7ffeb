"""The client against our server, and against servers that answer late, wrongly or not at all."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from controller_fixtures import observation
from serve_fixtures import running
from test_controller import folder  # noqa: F401
from websockets.sync.server import ServerConnection, serve

from qtransformer.serve.client import PolicyClient, PolicyServerError
from qtransformer.serve.protocol import ProtocolError, pack


@contextmanager
def other_server(handler: Callable[[ServerConnection], Any]) -> Iterator[str]:
    """Yields the address of a server that does what `handler` does."""
    with serve(handler, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def test_infer_and_reset(folder: Path):  # noqa: F811
    with running(folder) as (_, port), PolicyClient(f"ws://127.0.0.1:{port}/") as client:
        assert client.metadata["history_length"] == 3
        assert [each["name"] for each in client.metadata["observations"]] == ["state", "goal"]
        np.testing.assert_allclose(client.infer(observation(0.03, 0.0))["actions"], [[0.3, 0.0]], rtol=1e-6)
        np.testing.assert_allclose(client.infer(observation(0.06, 0.0))["actions"], [[0.5, 0.0]], rtol=1e-6)
        client.reset()
        reply = client.infer(observation(0.01, 0.0))
        np.testing.assert_allclose(reply["actions"], [[0.1, 0.0]], rtol=1e-6)
        assert set(reply["server_timing"]) == {"infer_ms", "prev_total_ms"}


def test_a_refused_observation_can_be_survived(folder: Path):  # noqa: F811
    with running(folder) as (_, port), PolicyClient(f"ws://127.0.0.1:{port}") as client:
        client.infer(observation(0.03, 0.0))
        with pytest.raises(PolicyServerError, match=rf"ws://127.0.0.1:{port}: observation 'state': must be finite"):
            client.infer(observation(np.inf, 0.0))
        np.testing.assert_allclose(client.infer(observation(0.06, 0.0))["actions"], [[0.5, 0.0]], rtol=1e-6)


def test_what_cannot_be_sent_does_not_harm(folder: Path):  # noqa: F811
    with running(folder) as (_, port), PolicyClient(f"ws://127.0.0.1:{port}") as client:
        with pytest.raises(ProtocolError, match=r"message cannot be sent \(dtype object is not allowed\)"):
            client.infer({"state": np.array([None])})
        client.infer(observation(0.0, 0.0))


def test_a_closed_connection(folder: Path):  # noqa: F811
    with running(folder) as (server, port), PolicyClient(f"ws://127.0.0.1:{port}") as client:
        with pytest.raises(PolicyServerError, match=r"closed \(.*1009.*; connect again"):
            client.infer({"state": np.zeros(100_000)})
        with pytest.raises(PolicyServerError, match=r"the connection is closed \(.*\); connect again"):
            client.infer(observation(0.0, 0.0))
        server.stop()
    with pytest.raises(PolicyServerError, match=r"cannot connect \(.*refused.*\); check the address"):
        PolicyClient(f"ws://127.0.0.1:{port}")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "127.0.0.1:8000", "ws://"])
def test_no_address_of_a_policy_server(uri: str):
    with pytest.raises(PolicyServerError, match="cannot connect"):
        PolicyClient(uri)


def test_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(PolicyServerError, match=r"cannot connect \(.*timed out"):
            PolicyClient(f"ws://127.0.0.1:{port}", timeout=0.2)


def test_the_token(folder: Path):  # noqa: F811
    with running(folder, token="s3cret") as (_, port):
        with pytest.raises(PolicyServerError, match=r"cannot connect \(.*401"):
            PolicyClient(f"ws://127.0.0.1:{port}")
        with PolicyClient(f"ws://127.0.0.1:{port}", token="s3cret") as client:
            client.infer(observation(0.0, 0.0))


@pytest.mark.parametrize("greeting", [b"\xc1", b"\x93", pack({})[:0], b"\x01"])
def test_another_kind_of_server(greeting: bytes):
    def handler(connection: ServerConnection) -> None:
        connection.send(greeting)

    with other_server(handler) as uri, pytest.raises(PolicyServerError, match=r"is no policy server \(frame must be"):
        PolicyClient(uri)


def test_a_late_reply_is_not_taken_for_the_next():
    def handler(connection: ServerConnection) -> None:
        connection.send(pack({"name": "slow"}))
        for _ in connection:
            pass

    with other_server(handler) as uri, PolicyClient(uri, timeout=1.5) as client:
        with pytest.raises(PolicyServerError, match=r"no reply for 1.5 s; connect again"):
            client.infer({"x": 1})
        with pytest.raises(PolicyServerError, match="the connection is closed"):
            client.infer({"x": 2})
