"""The server and clients that mean ill, sleep, do not listen or do not belong; and how it starts and stops."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from controller_fixtures import observation
from serve_fixtures import BINARY, TEXT, RawSocket, errors, http, running, wait_for
from test_controller import folder  # noqa: F401
from test_protocol import MALFORMED, framed

from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.serve import server as module
from qtransformer.serve.client import PolicyClient
from qtransformer.serve.protocol import pack
from qtransformer.serve.server import Limits, PolicyServer

REQUEST = pack(observation(0.03, 0.0))


# --- frames -----------------------------------------------------------------------------------------------------------


def test_malformed_frames_close_that_connection_only(folder: Path):  # noqa: F811
    with running(folder, Limits(max_request_bytes=2**20)) as (server, port):
        with PolicyClient(f"ws://127.0.0.1:{port}") as bystander:
            bystander.infer(observation(0.03, 0.0))
            for message, _ in MALFORMED:
                with RawSocket(port) as raw:
                    raw.receive()
                    raw.send(framed(message))
                    opcode, text = raw.receive()
                    assert opcode == TEXT
                    assert b"\n" not in text
                    assert b"Traceback" not in text
                    assert b".py" not in text
                    assert raw.receive_close() == (1011, "malformed")
            np.testing.assert_allclose(bystander.infer(observation(0.06, 0.0))["actions"], [[0.5, 0.0]], rtol=1e-6)
        assert errors(server) == {"malformed": len(MALFORMED)}


def test_a_text_frame_is_malformed(folder: Path):  # noqa: F811
    with running(folder) as (_, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(b"{}", TEXT)
        assert raw.receive() == (TEXT, b"request must be a binary frame with a msgpack map, got text")
        assert raw.receive_close() == (1011, "malformed")


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_frame_that_is_too_large_is_not_read(folder: Path, is_declared: bool):  # noqa: F811
    with running(folder, Limits(max_request_bytes=1000)) as (server, port), RawSocket(port) as raw:
        raw.receive()
        if is_declared:  # the length alone is enough
            raw.socket.sendall(b"\x82\xff" + (2**40).to_bytes(8, "big") + bytes(4))
        else:
            raw.send(bytes(600), is_final=False)
            raw.send(bytes(600), 0)
        assert raw.receive_close()[0] == 1009
        raw.socket.shutdown(socket.SHUT_WR)
        wait_for(lambda: errors(server) == {"too_large": 1})


def test_empty_fragments_without_end_are_cut_off(folder: Path):  # noqa: F811
    with running(folder) as (server, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(b"\x80", is_final=False)
        raw.socket.sendall(bytes.fromhex("008000000000") * 5000)
        assert raw.receive_close()[0] == 1009
        wait_for(lambda: errors(server) == {"too_large": 1})


def test_what_is_sent_ahead_stays_in_the_socket(folder: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    step, goes_on, num_sent = Controller.step, Event(), 0

    def stuck(self: Controller, given: Any) -> np.ndarray | None:
        goes_on.wait(30)
        return step(self, given)

    monkeypatch.setattr(Controller, "step", stuck)
    with running(folder) as (_, port), RawSocket(port) as raw:
        raw.receive()
        raw.socket.settimeout(1)
        frame = REQUEST + bytes(60_000)
        with suppress(TimeoutError):
            raw.send(REQUEST)
            while num_sent < 4000:
                raw.send(frame)
                num_sent += 1
        goes_on.set()
    assert 60_000 * num_sent < 100e6  # what the buffers of the system hold, and no more


def test_an_error_of_ours_tells_the_client_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):  # noqa: F811
    def broken(self: Controller, given: Any) -> np.ndarray | None:
        raise KeyError("/home/me/secret.py")

    monkeypatch.setattr(Controller, "step", broken)
    caplog.set_level(logging.ERROR)
    with running(folder) as (server, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(REQUEST)
        assert raw.receive() == (TEXT, b"the server failed on this request; its log says why")
        assert raw.receive_close() == (1011, "internal")
        assert errors(server) == {"internal": 1}
    assert "/home/me/secret.py" in caplog.text


def test_web_pages_may_not_ask(folder: Path):  # noqa: F811
    with running(folder) as (_, port), RawSocket(port, "Origin: http://example.com\r\n") as raw:
        assert raw.status.startswith("HTTP/1.1 403")


# --- time -------------------------------------------------------------------------------------------------------------


def test_an_idle_client_is_let_go(folder: Path):  # noqa: F811
    with running(folder, Limits(idle_timeout=1.0)) as (server, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(REQUEST)
        raw.receive()
        raw.send(REQUEST[:5], is_final=False)  # a request that never ends is none
        assert raw.receive_close() == (1001, "no request for 1 s")
        assert errors(server) == {"idle": 1}


def send_without_end(raw: RawSocket, request: bytes) -> None:
    while True:
        raw.send(request)


@pytest.mark.slow
def test_a_client_that_takes_no_replies_is_cut_off(folder: Path):  # noqa: F811
    with running(folder, Limits(idle_timeout=0.3)) as (server, port):
        with RawSocket(port) as raw:
            raw.receive()
            request = pack({400 * "x": 0})  # the reply says it again
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                send_without_end(raw, request)
        wait_for(lambda: server.metrics.clients == 0)
        assert server.metrics.errors["idle"] == 1


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: "])
def test_a_handshake_must_end(folder: Path, start: bytes):  # noqa: F811
    with running(folder, Limits(handshake_timeout=0.3)) as (_, port), socket.socket() as slow:
        slow.settimeout(30)
        slow.connect(("127.0.0.1", port))
        slow.sendall(start)
        assert slow.recv(100) == b""


def test_a_stop_ends_with_the_answer_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    step, is_busy, goes_on = Controller.step, Event(), Event()

    def slow(self: Controller, given: Any) -> np.ndarray | None:
        is_busy.set()
        goes_on.wait(30)
        return step(self, given)

    monkeypatch.setattr(Controller, "step", slow)
    with running(folder) as (server, port), RawSocket(port) as busy, RawSocket(port) as waiting:
        for raw in (busy, waiting):
            raw.receive()
        busy.send(REQUEST)
        assert is_busy.wait(30)
        server.stop()
        assert waiting.receive_close() == (1001, "the server stops")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)
        server.stop()
        goes_on.set()
        assert busy.receive()[0] == BINARY
        assert busy.receive_close() == (1001, "the server stops")


def test_a_stop_does_not_wait_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):  # noqa: F811
    is_busy, goes_on = Event(), Event()

    def stuck(self: Controller, given: Any) -> np.ndarray | None:
        is_busy.set()
        goes_on.wait(30)
        raise ControllerError("too late")

    monkeypatch.setattr(Controller, "step", stuck)
    monkeypatch.setattr(module, "_GRACE", 0.2)
    with running(folder) as (server, port), RawSocket(port) as raw:
        raw.receive()
        raw.send(REQUEST)
        assert is_busy.wait(30)
        server.stop()
        wait_for(lambda: "did not close in time and are cut off" in caplog.text)
        goes_on.set()


def test_a_stop_before_the_start(folder: Path):  # noqa: F811
    server = PolicyServer(folder)
    server.stop()
    server.stop()
    asyncio.run(server.run("127.0.0.1", 0))


# --- whom it lets in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [[], ["Api-Key wrong"], ["s3cret"], ["Bearer s3cret"], ["Api-Key s3cret\xe9"], ["Api-Key s3cret"] * 2],
)
def test_without_the_token_nothing_but_health(folder: Path, headers: list[str]):  # noqa: F811
    with running(folder, token="s3cret") as (server, port):
        with RawSocket(port, "".join(f"Authorization: {each}\r\n" for each in headers)) as raw:
            assert raw.status == "HTTP/1.1 401 Unauthorized"
        assert errors(server) == {"unauthorized": 1}
        assert http(port, "/metrics")[0] == 401
        assert http(port, "/healthz")[0] == 200


def test_with_the_token(folder: Path):  # noqa: F811
    with running(folder, token="s3cret") as (server, port):
        with RawSocket(port, "Authorization: Api-Key s3cret\r\n") as raw:
            assert raw.status == "HTTP/1.1 101 Switching Protocols"
        assert http(port, "/metrics", Authorization="Api-Key s3cret")[0] == 200
        assert errors(server) == {}


# --- starting ---------------------------------------------------------------------------------------------------------


def test_no_bundle(tmp_path: Path):
    with pytest.raises(ControllerError, match=r"SHA256SUMS: is missing or damaged"):
        PolicyServer(tmp_path)


def test_a_port_that_is_taken(folder: Path):  # noqa: F811
    with running(folder) as (_, port), pytest.raises(RunError, match=rf"cannot listen on 127.0.0.1:{port} \(.*in use"):
        asyncio.run(PolicyServer(folder).run("127.0.0.1", port))


def test_an_address_that_is_not_ours(folder: Path):  # noqa: F811
    with pytest.raises(RunError, match=r"cannot listen on 192.0.2.1:0 \(.*choose another --host or --port"):
        asyncio.run(PolicyServer(folder).run("192.0.2.1", 0))
