"""Observations and the return still to come, added to every token of its step: what a Decision Transformer sees.

A log says how each episode went on; a policy is told the best return that training saw, at every step. It must not know
rewards or discounts: returns to go arrive in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qtransformer.batch import ObservationSpec
from qtransformer.config import ModelConfig, RunError
from qtransformer.encoders.observations import ObservationEncoder
from qtransformer.encoders.state import Statistics

RETURN_TO_GO = "return_to_go"


class ReturnConditionedEncoder(ObservationEncoder):
    """Takes the return to go beside the observations: (batch, time) in [0, 1], or the best one if absent."""

    best_return: Tensor
    """The greatest return to go that `see` was shown."""

    def __init__(self, specs: tuple[ObservationSpec, ...], statistics: Statistics, config: ModelConfig) -> None:
        super().__init__(specs, statistics, config)
        if RETURN_TO_GO in self.keys:
            raise RunError(
                f"observation keys {sorted(self.keys)} must not hold {RETURN_TO_GO!r}, which the algorithm adds; "
                "rename it in the log"
            )
        self.embed_return = nn.Linear(1, config.width)
        self.register_buffer("best_return", torch.zeros(()))

    def forward(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time slots width"]:
        """Returns the observation tokens of each step."""
        x = super().forward(observations)
        returns = observations.get(RETURN_TO_GO)
        returns = self.best_return.expand(x.shape[:2]) if returns is None else returns
        return x + self.embed_return(returns[..., None, None])

    def see(self, returns: Float[Tensor, " steps"]) -> None:
        """Raises the best return to that of `returns`."""
        self.best_return.copy_(torch.cat([returns, self.best_return.unsqueeze(0)]).max())
