"""Actions as tokens: continuous action vectors to bin indices and back.

Each dimension's range is cut into `num_bins ** num_levels` equal cells. With one level a dimension is one token; with
several it is written coarse to fine, `num_levels` tokens of `num_bins` each (CQN, arXiv 2407.07787), in level-major
order: the coarse tokens of all dimensions come first. It must not know observations, values or networks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qtransformer.batch import ActionSpec
from qtransformer.config import TokenConfig


class ActionTokenizer(nn.Module):
    """Maps actions in the environment's units to `num_action_tokens` tokens and back to the centre of their cell."""

    low: Tensor
    high: Tensor

    def __init__(self, spec: ActionSpec, config: TokenConfig) -> None:
        super().__init__()
        self.num_bins, self.num_levels = config.num_bins, config.num_levels
        self.num_dimensions = spec.num_dimensions
        self.num_action_tokens = self.num_dimensions * self.num_levels
        self.num_cells = self.num_bins**self.num_levels
        self.register_buffer("low", torch.tensor(spec.low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(spec.high, dtype=torch.float32))

    def encode(self, actions: Float[Tensor, "*batch dims"]) -> Int[Tensor, "*batch tokens"]:
        """Returns the tokens of `actions`; an action on or beyond a limit falls into the outermost cell."""
        unit = (actions - self.low) / (self.high - self.low)
        cells = (unit * self.num_cells).floor().long().clamp(0, self.num_cells - 1)
        levels = [cells // self.num_bins**power % self.num_bins for power in reversed(range(self.num_levels))]
        return torch.cat(levels, dim=-1)

    def decode(self, tokens: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch dims"]:
        """Returns the action at the centre of the cell that `tokens` name."""
        cells = torch.zeros_like(tokens[..., : self.num_dimensions])
        for level in range(self.num_levels):
            first = level * self.num_dimensions
            cells = cells * self.num_bins + tokens[..., first : first + self.num_dimensions]
        return self.low + (self.high - self.low) * (cells.float() + 0.5) / self.num_cells
