"""What a trained policy says of every logged step: its value, the logged action's, the greedy action's, and the backup.

Each step is seen as the policy sees it when it acts: with the `window` newest observations of its episode, or with all
of them near the beginning. Values come back in the log's own unit. It must not know files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qtransformer.backup import environment_step_targets, values_at
from qtransformer.batch import Batch
from qtransformer.config import RunError
from qtransformer.model import Observations
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy


class Steps(NamedTuple):
    """Logged steps with their history: row i asks for step `positions[i]` of segment i of `batch` (torch).

    A segment holds `window` steps, and begins where the policy's history of that step begins:

        step of the episode   0  1  2  3  4        window 3
        history of step 1     [0  1] 2             position 1
        history of step 4           [2  3  4]      position 2
    """

    batch: Batch
    positions: Int[Tensor, " steps"]


@dataclass(frozen=True)
class Predictions:
    """One row a logged step; values and returns in the log's own unit."""

    values: Float[np.ndarray, " steps"]
    """V(s_t): the policy's value at the first token, what stands for the maximum in eq. 1; or that of a value head."""
    q_logged: Float[np.ndarray, " steps"]
    """Q(s_t, a_t) of the logged action: read at its last token."""
    q_greedy: Float[np.ndarray, " steps"]
    """The policy's value at the last token of its own action: `values`, by eq. 1. NaN where V has a head of its own,
    which no equation ties to this."""
    backups: Float[np.ndarray, " steps"]
    """R_t + gamma V(s_{t+1}), R_t alone where the episode terminated; NaN where the successor was not logged."""
    returns: Float[np.ndarray, " steps"]
    """Monte-Carlo return from the step on, as far as the episode was logged."""
    terminations: Bool[np.ndarray, " steps"]
    """The task ended with this step."""


def predict(policy: GreedyPolicy, steps: Steps, scale: ReturnScale, discount: float) -> Predictions:
    """Returns what `policy` says of `steps`.

    Raises:
        RunError: a value is not finite.
    """
    batch, positions = steps
    rows = torch.arange(len(positions), device=positions.device)
    with torch.inference_mode():
        encoded = policy.model.encoder(batch.observations)  # each observation once
        observations = encoded[:, :-1]
        tokens = policy.tokenizer.encode(batch.actions)
        q_values = policy.model(observations, tokens).q_values[rows, positions, -1]
        values = scale.from_unit(_state_values(policy, observations)[rows, positions])
        logged = scale.from_unit(values_at(q_values, tokens[rows, positions, -1]))
        following = scale.from_unit(_successor_values(policy, encoded, positions))
        acting = policy.model.greedy(observations, positions + 1, policy.choose)
        greedy = scale.from_unit(policy.values(acting.outputs)[:, -1])
        rewards, terminations = batch.rewards[rows, positions], batch.terminations[rows, positions]
        backups = environment_step_targets(rewards, terminations, following, discount)
        is_known = terminations | batch.has_successor[rows, positions]
    if not torch.stack([values, logged, greedy, following]).isfinite().all():
        raise RunError("the network's values must be finite, got NaN or infinity; the run diverged: train again")
    greedy = greedy if policy.model.value_head is None else torch.full_like(greedy, torch.nan)
    columns = (values, logged, greedy, backups.masked_fill(~is_known, torch.nan))
    columns = (*columns, batch.monte_carlo_returns[rows, positions], terminations)
    return Predictions(*(each.cpu().numpy() for each in columns))


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Returns all rows in one."""
    columns = [field.name for field in fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(each, name) for each in parts]) for name in columns})


def _successor_values(
    policy: GreedyPolicy, encoded: Float[Tensor, "steps time slots width"], positions: Int[Tensor, " steps"]
) -> Float[Tensor, " steps"]:
    """Returns V(s_{t+1}) in [0, 1], with the history that the policy has at t + 1.

    A segment holds one observation more than steps. Where the history is full it moves on by one, else it grows:

        history of step 1   [o0 o1] o2 o3      of its successor   [o0 o1 o2] o3
        history of step 2   [o0 o1 o2] o3      of its successor   o0 [o1 o2 o3]
    """
    window = policy.model.window
    is_full = positions == window - 1
    frames = torch.arange(window, device=is_full.device) + is_full.long().unsqueeze(-1)
    rows = torch.arange(len(is_full), device=is_full.device)
    values = _state_values(policy, encoded[rows.unsqueeze(-1), frames])
    return values[rows, torch.where(is_full, window - 1, positions + 1)]


def _state_values(policy: GreedyPolicy, observations: Observations) -> Float[Tensor, "batch time"]:
    """Returns V in [0, 1] of every frame with those before it."""
    if policy.model.value_head is not None:
        return policy.model.state_values(observations)
    return policy.values(policy.model.first_token_outputs(observations))
