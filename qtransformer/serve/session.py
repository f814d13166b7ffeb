"""One robot's conversation with a policy: request frame in, reply frame out. No sockets, no threads.

Special about this file: a connection is an episode or several. It starts with an empty history; the reserved key
`reset` in a request empties it again, alone or beside the first observation of the next episode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from qtransformer.batch import flatten_observation
from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller
from qtransformer.serve.protocol import REQUEST_LIMITS, RESET, ProtocolError, pack, unpack

# What the other side of a connection needs; of training, folders and data it learns nothing.
_TOLD = ("schema_version", "observations", "actions", "control_hz", "history_length", "instructions", "sha256")
_OVERHEAD = 65_536  # bytes of a request beside its numbers: names, text, lists


class Session:
    """The history of one client on a policy that it shares with others."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller.fork()
        self._controller.reset()
        self.infer_seconds = 0.0
        """What the last answer took in the policy."""
        self.previous_seconds: float | None = None
        """What the last answer took altogether; the server sets it, the next reply tells it."""

    def answer(self, request: bytes) -> bytes:
        """Returns the frame with the action for the observation in `request`.

        Raises:
            ProtocolError: the request is no observation.
            ControllerError: the policy refuses the observation; the history is as before.
        """
        observation = unpack(request)
        is_reset = observation.pop(RESET, False)
        if not isinstance(is_reset, bool | np.bool_):
            raise ProtocolError(f"key 'reset' must be true or false, got {type(is_reset).__name__}")
        started = time.perf_counter()
        if is_reset:
            self._controller.reset()
        reply = self._act(observation) if observation or not is_reset else {}
        self.infer_seconds = time.perf_counter() - started
        timing = {"infer_ms": 1000 * self.infer_seconds}
        if self.previous_seconds is not None:
            timing["prev_total_ms"] = 1000 * self.previous_seconds
        return pack({**reply, "server_timing": timing})

    def _act(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the action as a chunk of one step; what explains it as lists, since brokers slice all arrays."""
        action = self._controller.step(flatten_observation(observation))
        outputs = self._controller.last_outputs
        assert outputs is not None
        extras = {name: np.asarray(values).tolist() for name, values in outputs._asdict().items()}
        return {"actions": np.asarray(action, np.float32)[None], **extras}


def describe(card: Mapping[str, Any], max_request_bytes: int) -> dict[str, Any]:
    """Returns the metadata that greets every client.

    Raises:
        RunError: an observation has the reserved name.
    """
    if any(each["name"] == RESET for each in card["observations"]):
        raise RunError(f"observation {RESET!r} of the bundle has a name that the server reserves; train with another")
    told = {key: card[key] for key in _TOLD if key in card}
    return {**told, "action_horizon": 1, "reset_key": RESET, "max_request_bytes": max_request_bytes}


def room_for(card: Mapping[str, Any]) -> int:
    """Returns the bytes that a request needs: every number of an observation as float64, and a good deal of text."""
    observations = card["observations"]
    num_texts = sum(each.get("kind") == "text" for each in observations)
    num_numbers = sum(math.prod(each["shape"]) for each in observations if each.get("kind") != "text")
    return 8 * num_numbers + REQUEST_LIMITS.max_text * num_texts + _OVERHEAD
