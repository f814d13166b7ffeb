"""A small network for pictures of 64 to 128 pixels that words can direct: convolutions with FiLM.

FiLM (Perez et al. 2018, eq. 2) scales and shifts every channel by what was asked for: (1 + gamma) * x + beta. Its maps
start at zero, so that it starts as the identity (RT-1, arXiv 2212.06817, section 5.1) and learns to direct where that
pays. It must not know observations or time.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_CHANNELS_IN_A_GROUP = 8


class Film(nn.Module):
    """Scales and shifts channels by a context; the identity where the context is empty, and before training."""

    def __init__(self, num_context: int, num_channels: int) -> None:
        super().__init__()
        self.to_scale_and_shift = nn.Linear(num_context, 2 * num_channels) if num_context else None
        if self.to_scale_and_shift is not None:
            nn.init.zeros_(self.to_scale_and_shift.weight)
            nn.init.zeros_(self.to_scale_and_shift.bias)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], context: Float[Tensor, "batch context"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns (1 + gamma) * x + beta."""
        if self.to_scale_and_shift is None:
            return x
        gamma, beta = self.to_scale_and_shift(context)[..., None, None].chunk(2, dim=1)
        return (1 + gamma) * x + beta


class FilmCNN(nn.Module):
    """Four 3 x 3 convolutions, of which three halve the picture; each with group norm and FiLM."""

    stride = 8  # pixels between two places of the grid that comes out

    def __init__(self, num_colours: int, num_context: int, width: int) -> None:
        """For pictures of `num_colours` channels; the grid has `width` channels."""
        super().__init__()
        sizes = [-(-width // part // _CHANNELS_IN_A_GROUP) * _CHANNELS_IN_A_GROUP for part in (4, 2, 1, 1)]
        self.num_channels = sizes[-1]
        inputs, strides = [num_colours, *sizes[:-1]], (2, 2, 2, 1)
        shapes = list(zip(inputs, sizes, strides, strict=True))
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, step, padding=1, bias=False) for i, o, step in shapes)
        self.norms = nn.ModuleList(nn.GroupNorm(size // _CHANNELS_IN_A_GROUP, size) for size in sizes)
        self.films = nn.ModuleList(Film(num_context, size) for size in sizes)

    def forward(
        self, x: Float[Tensor, "batch colours height width"], context: Float[Tensor, "batch context"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Returns the grid of features."""
        for convolve, norm, film in zip(self.convolutions, self.norms, self.films, strict=True):
            x = F.relu(film(norm(convolve(x)), context))
        return x
