"""Losses: pure functions of tensors and floats, one value a token, so that the learner alone decides on the mean.

Shapes: N action tokens, K bins; `*batch` stands for (B, T) or anything else. It must not know networks or configs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def soft_labels(tokens: Int[Tensor, "*batch"], num_bins: int, width: float) -> Float[Tensor, "*batch bins"]:
    """Returns a normal distribution around the logged bin, `width` bins wide, cut off at the ends and normalised.

    Neighbouring bins are neighbouring actions: sharing the label lets them share evidence. Width 0 is one-hot.
    """
    if width == 0:
        return F.one_hot(tokens, num_bins).float()
    bins = torch.arange(num_bins, device=tokens.device)
    distances = (bins - tokens.unsqueeze(-1)) / width
    return torch.softmax(-0.5 * distances.square(), dim=-1)


def temporal_difference(
    q_values: Float[Tensor, "*batch bins"], labels: Float[Tensor, "*batch bins"], targets: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Returns 1/2 (Q - target)^2, weighted by `labels`: one-hot labels give the first term of eq. 2 (2309.10150)."""
    return (labels * 0.5 * (q_values - targets.unsqueeze(-1)).square()).sum(dim=-1)


def conservative(
    q_values: Float[Tensor, "*batch bins"], labels: Float[Tensor, "*batch bins"], floor: float
) -> Float[Tensor, "*batch"]:
    """Returns the mean of 1/2 (Q - floor)^2 over the bins that were not logged: the second term of eq. 2.

    With soft labels a bin counts the less, the nearer it lies to the logged one.
    """
    is_other = 1 - labels / labels.amax(dim=-1, keepdim=True)
    return (is_other * 0.5 * (q_values - floor).square()).sum(dim=-1) / is_other.sum(dim=-1)


def density(
    density_logits: Float[Tensor, "*batch bins"], labels: Float[Tensor, "*batch bins"]
) -> Float[Tensor, "*batch"]:
    """Returns the cross-entropy of the density against `labels`."""
    return -(labels * F.log_softmax(density_logits, dim=-1)).sum(dim=-1)


def advantage_weights(
    advantages: Float[Tensor, "*batch"], is_known: Bool[Tensor, "*batch"], sharpness: float
) -> Float[Tensor, "*batch"]:
    """Returns exp(sharpness * A / std(A)), at most a factor e^2 above and e^3 below the average step; its mean is one.

    Actions that turned out better than the policy's own weigh more in the density (MARWIL, Wang et al. 2018; AWAC,
    arXiv 2006.09359). Advantages are counted in standard deviations of the batch, so that one sharpness serves every
    scale of return. Where the advantage is not known the weight is one.
    """
    known = advantages[is_known]
    if sharpness == 0 or known.numel() < 2:
        return torch.ones_like(advantages)
    standardised = (advantages - known.mean()) / known.std().clamp_min(1e-6)
    weights = (sharpness * standardised).clamp(-3.0, 2.0).exp()
    return torch.where(is_known, weights / weights[is_known].mean(), 1.0)
