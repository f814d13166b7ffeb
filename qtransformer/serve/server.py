"""A policy for several robots at once, over openpi's websocket protocol.

Special about this file: the event loop moves frames, one worker thread decodes them and runs the policy, in order of
arrival. Of each client at most one request waits; the rest of what it sends stays in its socket. A bad frame costs its
sender the connection and nobody else anything.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.serve.metrics import CONTENT_TYPE, Metrics
from qtransformer.serve.protocol import ProtocolError, one_line, pack
from qtransformer.serve.session import Session, describe, room_for

_log = logging.getLogger("qtransformer.serve")
_CLOSE_TIMEOUT = 2.0  # seconds that a client has to say goodbye
_GRACE = 5.0  # seconds that a stop waits for the answers under way


@dataclass(frozen=True)
class Limits:
    """What one server lets its clients do."""

    max_clients: int = 32
    """Connected at the same time."""
    max_request_bytes: int | None = None
    """Of one request. None: what the observations of the bundle need."""
    idle_timeout: float = 300.0
    """Seconds without a whole request, or without taking a reply, after which a client is let go."""
    handshake_timeout: float = 10.0
    """Seconds from connecting to the end of the handshake."""


class PolicyServer:
    """Serves one bundle; each connection has a history of its own."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Loads the bundle.

        Args:
            folder: what `qtransformer export` wrote.
            limits: what clients may do.
            token: what clients must send as `Authorization: Api-Key TOKEN`.
            tls: certificate and key, for wss://.

        Raises:
            ControllerError: the bundle is missing or damaged.
            RunError: it has an observation with a reserved name.
        """
        self.metrics = Metrics()
        self._limits = limits or Limits()
        self._token, self._tls = token, tls
        asked_at_will = {"safety": {"max_gap_s": None}}  # a client may act on one answer for as long as it likes
        self._controller = Controller(folder, raises=True, limits=asked_at_will)
        card = self._controller.card
        self._max_bytes = self._limits.max_request_bytes or room_for(card)
        self._greeting = pack(describe(card, self._max_bytes))
        self._worker = ThreadPoolExecutor(1, "policy")
        self._stop: Future[None] = Future()
        self._stopping: asyncio.Future[None]  # the same, for the event loop of `run`

    async def run(self, host: str, port: int, on_ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until `stop`; then answers what is under way and says goodbye to every client.

        Args:
            host: the address to listen on.
            port: the port; 0 takes a free one.
            on_ready: is told the port.

        Raises:
            RunError: the address is taken or not ours.
        """
        self._stopping = asyncio.wrap_future(self._stop)
        with self._worker:
            server = await self._listen(host, port)
            on_ready(next(iter(server.sockets)).getsockname()[1])
            await self._stopping
            server.close(close_connections=False)  # they close themselves, each after its answer
            try:
                await asyncio.wait_for(server.wait_closed(), _GRACE)
            except TimeoutError:
                _log.warning("some clients did not close in time and are cut off")

    def stop(self) -> None:
        """Lets `run` end; may be called from any thread, and more than once."""
        with suppress(InvalidStateError):
            self._stop.set_result(None)

    async def _listen(self, host: str, port: int) -> Server:
        try:
            return await serve(
                self._converse,
                host,
                port,
                process_request=self._answer_http,
                origins=[None],  # robots name none; a web page that a browser on this machine shows does
                compression=None,
                max_size=self._max_bytes,
                max_queue=1,
                open_timeout=self._limits.handshake_timeout,
                close_timeout=_CLOSE_TIMEOUT,
                ssl=self._tls,
                server_header=None,
            )
        except OSError as error:
            reason = one_line(error.strerror or error)
            raise RunError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from error

    def _answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Returns the answer to a plain HTTP request, or None where a conversation may begin."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._is_authorized(request):
            self.metrics.errors["unauthorized"] += 1
            return connection.respond(HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key TOKEN'\n")
        if request.path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        return None

    def _is_authorized(self, request: Request) -> bool:
        if self._token is None:
            return True
        expected = f"Api-Key {self._token}".encode()
        given = request.headers.get_all("Authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode(errors="surrogateescape"), expected)

    async def _converse(self, connection: ServerConnection) -> None:
        """Greets one client and answers it until it leaves, errs, sleeps or the server stops."""
        if self.metrics.clients >= self._limits.max_clients:
            self.metrics.errors["busy"] += 1
            await connection.close(CloseCode.TRY_AGAIN_LATER, f"all {self._limits.max_clients} places are taken")
            return
        self.metrics.clients += 1
        _log.info("%s: connected, %d now", _address(connection), self.metrics.clients)
        try:
            await self._answer_all(connection)
        except ProtocolError as error:
            await self._fail(connection, "malformed", one_line(error))
        except ConnectionClosed as error:
            self.metrics.errors["too_large"] += bool(error.sent and error.sent.code == CloseCode.MESSAGE_TOO_BIG)
        except Exception:
            _log.exception("%s: a request failed in the server", _address(connection))
            await self._fail(connection, "internal", "the server failed on this request; its log says why")
        finally:
            self.metrics.clients -= 1
            _log.info("%s: left, %d now", _address(connection), self.metrics.clients)

    async def _answer_all(self, connection: ServerConnection) -> None:
        session = Session(self._controller)
        await self._send(connection, self._greeting)
        while (request := await self._receive(connection)) is not None:
            received = time.perf_counter()
            self.metrics.requests += 1
            await self._send(connection, await self._answer(session, request))
            session.previous_seconds = time.perf_counter() - received
            self.metrics.request_seconds.observe(session.previous_seconds)

    async def _answer(self, session: Session, request: bytes | str) -> bytes | str:
        """Returns the reply; where the policy refuses the observation, why, as the text that openpi's clients raise.

        openpi's server would close the connection, too. This one keeps it, and with it the history: a robot rides out
        one bad reading. A client that takes every text for the end connects again, as with openpi.
        """
        if isinstance(request, str):
            raise ProtocolError("request must be a binary frame with a msgpack map, got text")
        try:
            reply = await asyncio.get_running_loop().run_in_executor(self._worker, session.answer, request)
        except ControllerError as error:
            self.metrics.errors["refused"] += 1
            return one_line(error)
        self.metrics.inference_seconds.observe(session.infer_seconds)
        return reply

    async def _receive(self, connection: ServerConnection) -> bytes | str | None:
        """Returns the next frame; None, after a goodbye, where none came in time or the server stops."""
        receiving = asyncio.ensure_future(connection.recv())
        timeout = self._limits.idle_timeout
        await asyncio.wait({receiving, self._stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            return receiving.result()
        receiving.cancel()
        if self._stopping.done():
            await connection.close(CloseCode.GOING_AWAY, "the server stops")
        else:
            self.metrics.errors["idle"] += 1
            await connection.close(CloseCode.GOING_AWAY, f"no request for {timeout:g} s")
        return None

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        """Sends one frame; a client that does not take it in time is cut off."""
        try:
            await asyncio.wait_for(connection.send(frame), self._limits.idle_timeout)
        except TimeoutError:
            self.metrics.errors["idle"] += 1
            connection.transport.abort()
            await connection.wait_closed()

    async def _fail(self, connection: ServerConnection, kind: str, message: str) -> None:
        """Ends a conversation as openpi does: the error as text, then close 1011."""
        self.metrics.errors[kind] += 1
        _log.warning("%s: %s request: %s", _address(connection), kind, message)
        with suppress(ConnectionClosed):  # it may not wait to hear it
            await self._send(connection, message)
            await connection.close(CloseCode.INTERNAL_ERROR, kind)


def _address(connection: ServerConnection) -> str:
    return ":".join(str(part) for part in (connection.remote_address or ("a client that is gone",))[:2])
