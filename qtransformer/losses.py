"""Losses: pure functions of tensors and floats, one value a token, so that the learner alone decides on the mean.

Shapes: N action tokens, K bins, Z atoms; `*batch` stands for (B, T) or anything else. Every weight over the bins is a
row of a table that is made once, since (B, T, N, K) is the largest thing in a training step after the network itself.
It must not know networks or configs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qtransformer.hl_gauss import hl_gauss_labels


def soft_labels(
    cells: Int[Tensor, "*batch"], num_bins: int, width: int | float, cells_per_bin: int = 1
) -> Float[Tensor, "*batch bins"]:
    """Returns how much of a normal distribution around the logged cell, `width` cells wide, each bin holds.

    It is cut off at the ends and normalised. Neighbouring bins are neighbouring actions: sharing the label lets them
    share evidence. Width 0 is one-hot.
    """
    if width == 0:
        return F.one_hot(cells // cells_per_bin, num_bins).float()
    edges = torch.arange(num_bins + 1, device=cells.device, dtype=torch.float64) * cells_per_bin
    return hl_gauss_labels(cells.double() + 0.5, edges, width).float()


def label_table(num_bins: int, num_levels: int, width: float) -> Float[Tensor, "rows bins"]:
    """Returns the soft labels of all tokens that can be logged; `ActionTokenizer.label_rows` finds a token's row.

    `width` is a share of the range on every level. A coarse label holds what falls into each coarse bin, the label of
    a fine token what falls into each fine bin of the logged coarse one: beyond its border are other tokens' bins.

        the range        |    .    .    .    |    .  x .    .    |    .    .    .    |      x: the logged cell
        coarse label              0.2                  0.7                0.1
        fine label                             .3   .4   .2   .1

    By the chain rule their product along the logged path is the same normal over all cells, whatever the levels.
    """
    num_cells = num_bins**num_levels
    blocks = []
    for per_bin in (num_bins**power for power in reversed(range(num_levels))):
        blocks.append(soft_labels(torch.arange(num_bins * per_bin), num_bins, width * num_cells, per_bin))
    return torch.cat(blocks)


def other_weights(labels: Float[Tensor, "*batch bins"]) -> Float[Tensor, "*batch bins"]:
    """Returns the weight of each bin in the mean over the bins that were not logged.

    With one-hot labels it is 1 / (K - 1) for all but the logged one. With soft labels a bin counts the less, the
    nearer it comes to the likeliest label.
    """
    return (1 - labels / labels.amax(dim=-1, keepdim=True)) / (labels.shape[-1] - 1)


class _WeightedSquaredError(torch.autograd.Function):
    """1/2 sum over bins of weight * (Q - goal)^2, with the gradient weight * (Q - goal) for Q alone.

    Keeps the one product that both directions need: half the time and a third of the memory of composed operations.
    """

    @staticmethod
    def forward(ctx: Any, q_values: Tensor, weights: Tensor, goals: Tensor) -> Tensor:
        errors = q_values - goals
        gradient = weights * errors
        ctx.save_for_backward(gradient)
        return 0.5 * errors.mul_(gradient).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(-1), None, None


def squared_error(
    q_values: Float[Tensor, "*batch bins"], weights: Float[Tensor, "*batch bins"], targets: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Returns 1/2 (Q - target)^2, summed over the bins by `weights`: both terms of eq. 2 (arXiv 2309.10150).

    One-hot labels as weights and the Bellman targets give the first term; `other_weights` and the floor the second.
    Its gradient is that of Q: weights and targets are constants.
    """
    return _WeightedSquaredError.apply(q_values, weights, targets.unsqueeze(-1))  # pyright: ignore[reportReturnType]


def softmax_regularizer(
    q_values: Float[Tensor, "*batch bins"], labels: Float[Tensor, "*batch bins"], temperature: float
) -> Float[Tensor, "*batch"]:
    """Returns temperature * log sum exp(Q / temperature) - Q of the logged bin: CQL(H), arXiv 2006.04779, eq. 4.

    The alternative of the paper's ablation. Its gradient is softmax(Q / temperature) - labels: unlike the floor it
    lifts what was logged, without end, whatever its return. CQL itself has temperature 1, in the unit of Q.
    """
    return temperature * (q_values / temperature).logsumexp(dim=-1) - (labels * q_values).sum(dim=-1)


def density(
    density_logits: Float[Tensor, "*batch bins"], labels: Float[Tensor, "*batch bins"]
) -> Float[Tensor, "*batch"]:
    """Returns the cross-entropy of the density against `labels`."""
    return -(labels * F.log_softmax(density_logits, dim=-1)).sum(dim=-1)


def expectile(
    values: Float[Tensor, "*batch"], targets: Float[Tensor, "*batch"], level: float
) -> Float[Tensor, "*batch"]:
    """Returns |level - 1(target < value)| (target - value)^2: IQL, arXiv 2110.06169, eq. 5.

    The minimiser is the mean of the targets at level 1/2 and their largest at 1: a maximum over logged actions alone.
    """
    errors = targets - values
    return torch.where(errors < 0, 1 - level, level) * errors.square()


def temporal_cross_entropy(
    q_logits: Float[Tensor, "*batch bins atoms"],
    labels: Float[Tensor, "*batch bins"],
    targets: Float[Tensor, "*batch atoms"],
) -> Float[Tensor, "*batch"]:
    """Returns the cross-entropy of each bin's atoms against `targets`, weighted by `labels` over the bins.

    It takes the place of `squared_error` where Q is a distribution (arXiv 2403.03950).
    """
    cross_entropies = -(F.log_softmax(q_logits, dim=-1) @ targets.unsqueeze(-1)).squeeze(-1)
    return (labels * cross_entropies).sum(dim=-1)


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
