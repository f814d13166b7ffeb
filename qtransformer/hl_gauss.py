"""Values as distributions over atoms: a number spread over its neighbourhood, and read back.

HL-Gauss, "Stop Regressing" (arXiv 2403.03950). It must not know networks, losses or what the numbers mean.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

SPREAD = 0.75  # standard deviation in atoms, the paper's


def hl_gauss_edges(num_atoms: int, spread: float = SPREAD) -> Float[Tensor, " edges"]:
    """Returns the borders of `num_atoms` equal atoms over [0, 1] and three standard deviations beyond on either side.

    The standard deviation is `spread` atoms, 3/4 in arXiv 2403.03950. Without the margin a value at an end, such as the
    return 0 of a failure, would be cut in half and read back as another.

    Raises:
        ValueError: the margins alone take all atoms.
    """
    margin = 3 * spread
    if num_atoms <= 2 * margin:
        raise ValueError(f"num_atoms ({num_atoms}) must be above {2 * margin}, six deviations; use more atoms")
    return (torch.arange(num_atoms + 1) - margin) / (num_atoms - 2 * margin)


def hl_gauss_labels(
    targets: Float[Tensor, "*batch"], edges: Float[Tensor, " edges"], width: int | float
) -> Float[Tensor, "*batch atoms"]:
    """Returns what each atom holds of a normal around the target, cut off at the outer edges: HL-Gauss, 2403.03950.

    `width` is the standard deviation, in the unit of `edges`; a target beyond the edges counts as on them.
    """
    centres = targets.clamp(edges[0], edges[-1]).unsqueeze(-1)
    below = torch.erf((edges - centres) / (width * math.sqrt(2)))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def hl_gauss_values(logits: Float[Tensor, "*batch atoms"], edges: Float[Tensor, " edges"]) -> Float[Tensor, "*batch"]:
    """Returns the mean of the distribution over atoms: inverse of `hl_gauss_labels` where logits are its logarithm."""
    return logits.softmax(dim=-1) @ ((edges[1:] + edges[:-1]) / 2)
