"""The other end of the wire: a policy that is somewhere else. Needs numpy and the extra `serve`.

Special about this file: the connection is the history. What is lost with it cannot be resumed, so nothing here
connects again by itself.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import connect

from qtransformer.serve.protocol import REPLY_LIMITS, RESET, ProtocolError, one_line, pack, unpack

_MAX_REPLY_BYTES = 2**24


class PolicyServerError(Exception):
    """The server cannot be reached, refused an observation or closed the connection; the message says which."""


class PolicyClient:
    """One robot's connection to a policy server: openpi's or `qtransformer serve`."""

    def __init__(
        self, uri: str, *, token: str | None = None, tls: ssl.SSLContext | None = None, timeout: float = 10.0
    ) -> None:
        """Connects and reads the metadata.

        Args:
            uri: like ws://127.0.0.1:8000, or wss:// with TLS.
            token: what the server asks for.
            tls: whom to believe, for a certificate that this machine does not know.
            timeout: seconds to wait, for the connection and for every reply.

        Raises:
            PolicyServerError: there is no such server, or it refuses.
        """
        self._uri, self._timeout, self._stack = uri, timeout, ExitStack()
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        options = {"compression": None, "max_size": _MAX_REPLY_BYTES, "open_timeout": timeout}
        try:
            connecting = connect(uri, additional_headers=headers, ssl=tls, proxy=None, **options)
            self._connection = self._stack.enter_context(connecting)
        except (OSError, InvalidHandshake, InvalidURI) as error:
            raise PolicyServerError(f"{uri}: cannot connect ({one_line(error)}); check the address") from error
        self.metadata = self._receive()
        """What the server tells of its policy: observations, actions, rate."""

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the reply to one observation: `actions` (horizon, dim), `server_timing` and what else it tells.

        Raises:
            PolicyServerError: the policy refused the observation (the next one may be sent), or the connection is lost.
            ProtocolError: the observation cannot be sent.
        """
        frame = pack(observation)
        try:
            self._connection.send(frame)
        except ConnectionClosed as error:
            raise self._lost(error) from error
        return self._receive()

    def reset(self) -> None:
        """Empties the history on the server: call it at the start of every episode but the first."""
        self.infer({RESET: True})

    def close(self) -> None:
        """Says goodbye."""
        self._stack.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        try:
            frame = self._connection.recv(self._timeout)
        except ConnectionClosed as error:
            raise self._lost(error) from error
        except TimeoutError as error:
            self.close()  # a late reply would be taken for that to the next request
            raise PolicyServerError(f"{self._uri}: no reply for {self._timeout:g} s; connect again") from error
        if isinstance(frame, str):
            raise PolicyServerError(f"{self._uri}: {one_line(frame)}")
        try:
            return unpack(frame, REPLY_LIMITS)
        except ProtocolError as error:
            self.close()
            raise PolicyServerError(f"{self._uri}: is no policy server ({error})") from error

    def _lost(self, error: ConnectionClosed) -> PolicyServerError:
        return PolicyServerError(f"{self._uri}: the connection is closed ({one_line(error)}); connect again")
