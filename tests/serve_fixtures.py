"""A policy server in a thread or in a process of its own, and a raw websocket that may send what no client would."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from qtransformer.serve.server import PolicyServer

ROOT = Path(__file__).resolve().parents[1]
TEXT, BINARY, CLOSE = 1, 2, 8
_UPGRADE = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


@contextmanager
def running(folder: Path, *arguments: Any, **options: Any) -> Iterator[tuple[PolicyServer, int]]:
    """Yields a server on a free port of this machine, and the port; stops it afterwards."""
    server = PolicyServer(folder, *arguments, **options)
    ready: Future[int] = Future()

    def main() -> None:
        try:
            asyncio.run(server.run("127.0.0.1", 0, ready.set_result))
        except BaseException as error:
            ready.set_exception(error)

    thread = Thread(target=main)
    thread.start()
    try:
        yield server, ready.result(30)
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def serving(folder: Path, *options: str, before: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yields a process that runs `qtransformer serve` and its port; `before` is Python that it runs first."""
    arguments = ["serve", str(folder), "--port", "0", *options]
    code = f"{before}\nimport sys\nfrom qtransformer.cli import main\nsys.exit(main({arguments}))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), str(ROOT / "datasets")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        greeting = process.stderr.readline()
        assert greeting.startswith(f"serving {folder} at ws"), greeting + process.stderr.read()
        yield process, int(greeting.partition(";")[0].rpartition(":")[2])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


class RawSocket:
    """A websocket by hand (RFC 6455): what is sent is what the test says, byte by byte."""

    def __init__(self, port: int, headers: str = "") -> None:
        self.socket = socket.socket()
        self.socket.settimeout(30)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what it does not read is soon felt
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(_UPGRADE.format(more=headers).encode())
        self._file = self.socket.makefile("rb")
        self.status = self._file.readline().decode().strip()
        self.headers = b"".join(iter(self._file.readline, b"\r\n")).decode()

    def send(self, payload: bytes, opcode: int = BINARY, *, is_final: bool = True) -> None:
        """Sends one frame; the mask is zero, so that the payload stands on the wire as it is."""
        size = len(payload)
        short = bytes([0x80 | size]) if size < 126 else b""
        length = short or (struct.pack("!BH", 0xFE, size) if size < 2**16 else struct.pack("!BQ", 0xFF, size))
        self.socket.sendall(bytes([0x80 * is_final | opcode]) + length + bytes(4) + payload)

    def receive(self) -> tuple[int, bytes]:
        """Returns opcode and payload of the next frame; it must come whole and unmasked."""
        first, second = self._file.read(2)
        assert first & 0xF0 == 0x80
        assert second < 0x80
        format, size = {126: ("!H", 2), 127: ("!Q", 8)}.get(second, ("", 0))
        length = struct.unpack(format, self._file.read(size))[0] if size else second
        return first & 0x0F, self._file.read(length)

    def receive_close(self) -> tuple[int, str]:
        """Returns code and reason of the close frame that must come next, answers it, and sees the end."""
        opcode, payload = self.receive()
        assert opcode == CLOSE
        self.send(payload[:2], CLOSE)
        assert self._file.read() == b""
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()


def http(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    """Returns status, content type and text of a plain GET."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def errors(server: PolicyServer) -> dict[str, int]:
    """Returns what the server counted, without the zeros."""
    return {kind: count for kind, count in server.metrics.errors.items() if count}


def wait_for(is_true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for what another thread or process does."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
