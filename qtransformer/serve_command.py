"""The command that puts a bundle behind a socket.

Special about this file: modules are imported inside the functions, so that `--help` answers without the extra `serve`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from qtransformer.config import RunError

if TYPE_CHECKING:
    from qtransformer.serve.server import PolicyServer

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Serve:
    """Let robots ask an exported bundle over openpi's websocket protocol; needs no torch."""

    bundle: tyro.conf.Positional[Path]
    """The --out folder of `export`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    max_clients: int = 32
    """Robots at the same time, each with a history of its own."""
    max_request_bytes: int | None = None
    """Of one request. Without it, what the observations of the bundle need as float64, and 64 KiB."""
    idle_timeout: float = 300.0
    """Seconds without a request after which a client is let go."""
    handshake_timeout: float = 10.0
    """Seconds that a client has to finish its handshake."""
    token_file: Path | None = None
    """File with the secret that clients must send as `Authorization: Api-Key SECRET`."""
    tls_cert: Path | None = None
    """PEM file with the chain of certificates, for wss://; needs --tls-key."""
    tls_key: Path | None = None
    """PEM file with its key, without a passphrase."""

    def run(self) -> None:
        """Serves until Ctrl-C or SIGTERM; says on stderr where, who comes and who goes."""
        for name in ("max_clients", "max_request_bytes", "idle_timeout", "handshake_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RunError(f"{name} ({value}) must be above 0; change --{name.replace('_', '-')}")
        if not 0 <= self.port <= 65_535:
            raise RunError(f"port ({self.port}) must be in 0 .. 65535; change --port")
        token, tls = self._token(), self._tls()
        from qtransformer.serve.server import Limits, PolicyServer

        limits = Limits(self.max_clients, self.max_request_bytes, self.idle_timeout, self.handshake_timeout)
        server = PolicyServer(self.bundle, limits, token=token, tls=tls)
        _say_everything()
        asyncio.run(self._serve(server))

    async def _serve(self, server: PolicyServer) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.run(self.host, self.port, self._greet)
        print("stopped", file=sys.stderr)

    def _greet(self, port: int) -> None:
        scheme = "ws" if self.tls_cert is None else "wss"
        host = f"[{self.host}]" if ":" in self.host else self.host
        print(f"serving {self.bundle} at {scheme}://{host}:{port}; Ctrl-C stops", file=sys.stderr, flush=True)
        if self.host not in _LOOPBACK and self.token_file is None:
            print("warning: whoever reaches this address may ask; --token-file asks back", file=sys.stderr, flush=True)

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"--token-file {self.token_file}: cannot be read as plain text ({error})") from error
        if not token or any(character.isspace() or not character.isprintable() for character in token):
            raise RunError(f"--token-file {self.token_file}: must hold one word, got none or more; write a new secret")
        return token

    def _tls(self) -> ssl.SSLContext | None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise RunError("--tls-cert and --tls-key need each other; give both, or neither")
        if self.tls_cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, password="")  # none: it must not ask the terminal
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or error
            raise RunError(
                f"--tls-cert {self.tls_cert}, --tls-key {self.tls_key}: cannot be used ({reason}); "
                "give PEM files of one certificate, the key without a passphrase"
            ) from error
        return context


def _say_everything() -> None:
    """Lets the server's own log, and no other, out on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("qtransformer.serve")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
