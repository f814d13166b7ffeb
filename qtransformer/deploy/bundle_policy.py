"""A bundle in simulation: several episodes side by side on one graph. It must not load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.deploy.controller import Controller, ControllerError


class BundlePolicy:
    """A bundle that plays several episodes side by side (what `qtransformer.evaluation` calls a policy)."""

    def __init__(self, folder: str | Path) -> None:
        self._controller = Controller(folder)
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
        return np.stack([self._running[slot].step(observation) for slot, observation in pairs])

    def q_value(self, slot: int) -> float:
        """Returns Q in (0, 1) of the last action of `slot`: that of its last token, which knows all the others."""
        outputs = self._running[slot].last_outputs
        if outputs is None:
            raise ControllerError(f"q_value({slot}) must follow act(), got no act() yet; let the policy act first")
        return float(outputs.q_max[-1])
