"""A bundle behind a socket: openpi's policy-server protocol, so that a robot which speaks it needs no change.

The packages of the extra `serve` are asked for here, once for all modules.
"""

from __future__ import annotations

from qtransformer.config import RunError

try:
    import msgpack  # noqa: F401
    import websockets  # noqa: F401
except ImportError as error:
    raise RunError(f"serving needs {error.name}; pip install 'qtransformer[serve]'") from error
