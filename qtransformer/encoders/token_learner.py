"""A picture's grid of features to a few tokens, each of which learns where to look (TokenLearner, arXiv 2106.11297).

Map n is a distribution over the places of the grid, and token n the mean of the features under it (section 2, in the
form of RT-1: an MLP and a softmax). Ours also hands on the map's mean place, x and y in [-1, 1], since an arm must know
where a thing is and not only that it is there. It must not know what network made the grid.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TokenLearner(nn.Module):
    """Some tokens of `width` features from a grid."""

    places: Tensor

    def __init__(self, grid: tuple[int, int], num_channels: int, num_tokens: int, width: int) -> None:
        """For grids of so many rows and columns."""
        super().__init__()
        rows, columns = (torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in grid)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        self.register_buffer("places", places, persistent=False)
        self.norm = nn.LayerNorm(num_channels)
        hidden = nn.Linear(num_channels + 2, width)
        self.maps = nn.Sequential(hidden, nn.GELU(), nn.Linear(width, num_tokens))
        self.project = nn.Linear(num_channels + 2, width)

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch tokens width"]:
        """Returns the tokens."""
        features = self.norm(x.flatten(2).transpose(1, 2))
        features = torch.cat([features, self.places.expand(len(x), -1, -1)], dim=-1)
        return self.project(self.maps(features).softmax(dim=1).transpose(1, 2) @ features)
