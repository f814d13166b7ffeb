"""Fixed affine maps: observations to zero mean and unit variance, returns to [0, 1].

The statistics are those of the training log. They are buffers, so that they travel in the checkpoint and inside the
exported graph. It must not know where the statistics come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CLIP = 10.0  # standard deviations; a reading further out carries no more information, but would swamp the network


class Standardizer(nn.Module):
    """Maps an array to zero mean and unit variance, element by element; an element that never varied maps to 0."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        spread = torch.tensor(std, dtype=torch.float64)
        inverse = torch.where(spread > 1e-6, 1 / spread.clamp_min(1e-6), torch.zeros_like(spread))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("inverse_std", inverse.float())

    def forward(self, values: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Returns the standardised values, clipped to ten standard deviations."""
        return ((values.float() - self.mean) * self.inverse_std).clamp(-_CLIP, _CLIP)


@dataclass(frozen=True)
class ReturnScale:
    """The affine map from the range of returns that a log can produce, `[low, high]`, onto [0, 1]."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """The range of returns, in the log's own unit."""
        return self.high - self.low

    def to_unit(self, returns: Tensor) -> Tensor:
        """Maps returns in the log's own unit to [0, 1]; what lies outside the range goes to its end."""
        return ((returns - self.low) / self.width).clamp(0.0, 1.0)

    def from_unit(self, values: Tensor) -> Tensor:
        """Maps values in [0, 1] back to returns."""
        return self.low + self.width * values
