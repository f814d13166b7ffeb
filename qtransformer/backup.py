"""Bellman targets of the autoregressive decision process: pure functions of tensors and floats.

Values are in whatever unit the rewards are in. Shapes: B segments, T steps, N action tokens, K bins.

One environment step is a chain of N decisions (arXiv 2309.10150, eq. 1); reward and discount enter once, at the last:

    token     a^1 ──max──▶ a^2 ──max──▶ ... ──max──▶ a^N ──R + gamma max──▶ a^1 of step t+1

It must not know networks, configs or losses.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def greedy_bins(
    q_values: Float[Tensor, "*batch bins"],
    density_logits: Float[Tensor, "*batch bins"],
    threshold: float,
    temperature: float,
) -> Int[Tensor, "*batch"]:
    """Returns the arg-max of Q among the actions that the log supports; the lowest bin of equal ones.

    Two rules hold Q to the support, and both at 0 leave the plain maximum of eq. 1:

    - a bin must have at least `threshold` times the density of the most likely bin (BCQ, arXiv 1910.01708);
    - the score is Q + temperature * log density: the mode of the best policy under a penalty of `temperature` on its
      Kullback-Leibler divergence from the density, pi ~ density * exp(Q / temperature) (REPS; AWAC, arXiv 2006.09359).
    """
    log_density = density_logits.log_softmax(dim=-1)
    log_ratio = log_density - log_density.amax(dim=-1, keepdim=True)
    is_supported = log_ratio.exp() >= threshold
    return (q_values + temperature * log_ratio).masked_fill(~is_supported, -torch.inf).argmax(dim=-1)


def values_at(q_values: Float[Tensor, "*batch bins"], bins: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Returns Q of one bin a token."""
    return q_values.gather(-1, bins.unsqueeze(-1)).squeeze(-1)


def environment_step_targets(
    rewards: Float[Tensor, "*batch"],
    terminations: Bool[Tensor, "*batch"],
    next_values: Float[Tensor, "*batch"],
    discount: float,
) -> Float[Tensor, "*batch"]:
    """Returns R_t + gamma * V(s_{t+1}), without the bootstrap where the episode terminated (eq. 1, i = d_A)."""
    return rewards + discount * next_values.masked_fill(terminations, 0.0)


def one_step_targets(
    token_values: Float[Tensor, "batch time tokens"], last_targets: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time tokens"]:
    """Returns the target of every token: the value of the next token, and `last_targets` for the last (eq. 1).

    `token_values[..., i]` is the value of the greedy bin of token i given the logged tokens before it:

        target of   a^1             a^2             ...   a^N
        is          values[.., 1]   values[.., 2]   ...   last_targets
    """
    return torch.cat([token_values[..., 1:], last_targets.unsqueeze(-1)], dim=-1)


def shared_targets(last_targets: Float[Tensor, "batch time"], num_tokens: int) -> Float[Tensor, "batch time tokens"]:
    """Returns the same target for all tokens of a step: the n-step return over action dimensions (section 4.3)."""
    return last_targets.unsqueeze(-1).expand(*last_targets.shape, num_tokens)


def monte_carlo_bound(
    targets: Float[Tensor, "batch time tokens"], monte_carlo_returns: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time tokens"]:
    """Returns max(MC_{t:T}, target) for every token: the return that was seen can be had again (section 4.3)."""
    return torch.maximum(targets, monte_carlo_returns.unsqueeze(-1))
