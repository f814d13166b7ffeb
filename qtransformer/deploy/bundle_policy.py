"""A bundle in simulation: several episodes side by side on one graph. It must not load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.deploy.controller import Controller, ControllerError


class BundlePolicy:
    """A bundle that plays several episodes side by side (what `qtransformer.evaluation` calls a policy).

    It plays the network as it was trained: there are no actuators to protect, and simulated time has no deadlines, so
    that hard ranges, rates, the workspace and the watchdog are off. An observation that is unusable raises.
    """

    def __init__(self, folder: str | Path) -> None:
        controller = Controller(folder, raises=True)
        self._controller = controller.fork(limits=_no_limits(controller.card))
        self._running: dict[int, Controller] = {}

    @property
    def card(self) -> dict[str, Any]:
        """All of policy.json."""
        return self._controller.card

    def reset(self, slot: int) -> None:
        """Forgets the history of `slot`."""
        self._running.setdefault(slot, self._controller.fork()).reset()

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns one action a slot, (len(slots), action_dim)."""
        pairs = zip(slots, observations, strict=True)
        actions = [self._running[slot].step(observation) for slot, observation in pairs]
        return np.stack([action for action in actions if action is not None])

    def q_value(self, slot: int) -> float:
        """Returns Q in (0, 1) of the last action of `slot`: that of its last token, which knows all the others."""
        outputs = self._running[slot].last_outputs
        if outputs is None:
            raise ControllerError(f"q_value({slot}) must follow act(), got no act() yet; let the policy act first")
        return float(outputs.q_max[-1])


def _no_limits(card: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer = card["tokenizer"]
    return {
        "observations": {spec["name"]: {"hard_low": None, "hard_high": None} for spec in card["observations"]},
        "actions": {"low": tokenizer["low"], "high": tokenizer["high"], "rate_limit": None},
        "safety": {"max_gap_s": None, "workspace": {}},
    }
