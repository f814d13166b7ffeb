"""Bellman targets of the autoregressive decision process: pure functions of tensors and floats.

Values are in whatever unit the rewards are in. Shapes: B segments, T steps, N action tokens, K bins.

One environment step is a chain of N decisions (arXiv 2309.10150, eq. 1); reward and discount enter once, at the last:

    token     a^1 ──max──▶ a^2 ──max──▶ ... ──max──▶ a^N ──R + gamma max──▶ a^1 of step t+1

It must not know networks, configs or losses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def policy_probabilities(
    q_values: Float[Tensor, "*batch bins"],
    density_logits: Float[Tensor, "*batch bins"],
    threshold: float,
    temperature: float,
) -> Float[Tensor, "*batch bins"]:
    """Returns the policy that Q and the log's density make together: pi ~ density * exp(Q / temperature).

    It is the best policy under a penalty of `temperature` on its Kullback-Leibler divergence from the density (REPS;
    AWAC, arXiv 2006.09359). Temperature 0 is the maximum of Q, eq. 1 as it stands (the lowest bin of equal ones), and
    infinity the density alone. Bins with less than `threshold` times the density of the likeliest are never chosen
    (BCQ, arXiv 1910.01708).
    """
    if threshold > 0:
        least = density_logits.amax(dim=-1, keepdim=True) + math.log(threshold)
        unsupported = density_logits < least
        q_values = q_values.masked_fill(unsupported, -torch.inf)
        density_logits = density_logits.masked_fill(unsupported, -torch.inf)
    if temperature == 0:
        return F.one_hot(q_values.argmax(dim=-1), q_values.shape[-1]).to(q_values)
    return (density_logits + q_values / temperature if temperature < math.inf else density_logits).softmax(dim=-1)


def action_spread(
    q_values: Float[Tensor, "*batch tokens bins"], density_logits: Float[Tensor, "*batch tokens bins"]
) -> Float[Tensor, "*batch"]:
    """Returns the standard deviation of an action's value where the density chooses it: how far actions differ.

    Each token moves the value by its Q less the mean Q of its bins. These steps are a martingale's, so their variances
    add up: what is true of the differences is true of the errors, and more tokens make more of both.
    """
    density = density_logits.softmax(dim=-1)
    deviations = q_values - (density * q_values).sum(dim=-1, keepdim=True)
    return (density * deviations**2).sum(dim=(-2, -1)).sqrt()


def median_bins(probabilities: Float[Tensor, "*batch bins"]) -> Int[Tensor, "*batch"]:
    """Returns the first bin up to which half of the probability lies: the policy's action.

    Where noise was cut off at the limits of the range it piles up there, and the mode is drawn to it; the median is
    not, and it uses what all bins say. Of two separate modes it takes the likelier one.
    """
    is_below = probabilities.cumsum(dim=-1) < 0.5
    return is_below.sum(dim=-1).clamp_max(probabilities.shape[-1] - 1)  # rounding may leave the sum short of a half


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


def environment_steps_targets(
    rewards: Float[Tensor, "batch time"],
    terminations: Bool[Tensor, "batch time"],
    next_values: Float[Tensor, "batch time"],
    is_known: Bool[Tensor, "batch time"],
    discount: float,
    num_steps: int,
) -> Float[Tensor, "batch time"]:
    """Returns R_t + gamma R_{t+1} + ... + gamma^n V(s_{t+n}) along the log, n = `num_steps` or as many as there are.

    `is_known` says where one step has a target (a termination, or a successor that was logged); there the result is
    known, too. For n = 3 the target of each step t, with V_k for `next_values[k]`, the value of the state after step k:

        t   0           1           2           3        4
            R R R V_2   R R R V_3   R R R V_4   R R V_4  R V_4   the segment ends after 4
            R R R V_2   R R V_2     R V_2       -        -       the episode is cut off after 2, its successor logged
            R R V_1     R V_1       unknown     -        -       ... its successor not logged
            R R R       R R         R           -        -       it terminates at 2: no bootstrap

    The steps in between are the log's, not the greedy policy's: the longer the return, the more it says of the log.
    """
    one_step = environment_step_targets(rewards, terminations, next_values, discount)
    goes_on = _goes_on(terminations, is_known)
    targets = one_step
    for _ in range(num_steps - 1):
        longer = rewards[:, :-1] + discount * targets[:, 1:]
        targets = torch.cat([torch.where(goes_on, longer, one_step[:, :-1]), one_step[:, -1:]], dim=1)
    return targets


def _goes_on(
    terminations: Bool[Tensor, "batch time"], is_known: Bool[Tensor, "batch time"]
) -> Bool[Tensor, "batch time-1"]:
    """Returns where the step after is one of the same episode and has a target itself."""
    return ~terminations[:, :-1] & is_known[:, 1:]


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
