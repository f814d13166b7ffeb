"""The recorded steps of a bundle: logged observations as episodes with resets, and what the network makes of them.

Training keeps windows of the log. Played one after the other they are episodes: every frame is a logged one, the first
steps after a reset have a short history, and later ones push the oldest frame out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qtransformer.backup import values_at
from qtransformer.model import TokenOutputs
from qtransformer.policy import GreedyPolicy, PolicyOutputs

MAX_STEPS = 2048
_WINDOWS = 8  # in an episode
_ROWS = 256  # that the network decides on at a time
_ROUNDING = 1e-5  # relative and absolute: how far two correct runs of the network may lie apart in a logit


@dataclass(frozen=True)
class Samples:
    """Logged observation windows: n of them, oldest frame first, the first `num_frames` real."""

    observations: Mapping[str, np.ndarray]
    """Each (n, window, *shape)."""
    num_frames: np.ndarray
    """(n,) int64, in 1..window."""


def golden_steps(policy: GreedyPolicy, samples: Samples) -> dict[str, np.ndarray]:
    """Returns the arrays of golden.npz, one row a step.

    `inputs.*` are single frames; `is_reset` says before which of them the history is forgotten; `outputs.*` is what the
    network decided, and `is_tied` (steps, tokens, bins) what rounding could choose as well.
    """
    frames, is_reset = _episodes(samples)
    indices, num_frames = windows(is_reset, policy.model.window)
    rows = [slice(first, first + _ROWS) for first in range(0, len(is_reset), _ROWS)]
    decided = [
        _decide(policy, {name: array[indices[each]] for name, array in frames.items()}, num_frames[each])
        for each in rows
    ]
    return {
        **{f"inputs.{name}": array for name, array in frames.items()},
        "is_reset": is_reset,
        **{name: np.concatenate([each[name] for each in decided]) for name in decided[0]},
    }


@torch.no_grad()
def action_values(policy: GreedyPolicy, golden: Mapping[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Returns Q in [0, 1], (steps,), of the actions `tokens` (steps, tokens) at the recorded steps.

    That is Q of the last token, which knows all the others.
    """
    indices, num_frames = windows(golden["is_reset"], policy.model.window)
    prefix, values = "inputs.", []
    for first in range(0, len(tokens), _ROWS):
        rows = slice(first, first + _ROWS)
        observations = {
            name.removeprefix(prefix): torch.from_numpy(array[indices[rows]])
            for name, array in golden.items()
            if name.startswith(prefix)
        }
        chosen = torch.from_numpy(tokens[rows])
        outputs = policy.model(observations, chosen.unsqueeze(1).expand(-1, policy.model.window, -1))
        frames = torch.arange(len(chosen)), torch.from_numpy(num_frames[rows]) - 1
        values.append(values_at(outputs.q_values[frames][:, -1], chosen[:, -1]))
    return torch.cat(values).numpy()


def windows(is_reset: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which frames each step sees, (steps, window), oldest first, then copies of the newest; and how many."""
    steps = np.arange(len(is_reset))
    first = np.maximum.accumulate(np.where(is_reset, steps, 0))
    num_frames = np.minimum(steps - first + 1, window)
    return np.minimum((steps - num_frames + 1)[:, None] + np.arange(window), steps[:, None]), num_frames


def _episodes(samples: Samples) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the real frames of all windows, one after the other, and where an episode starts."""
    window = next(iter(samples.observations.values())).shape[1]
    is_real = np.arange(window) < samples.num_frames[:, None]
    is_first = np.zeros_like(is_real)
    is_first[::_WINDOWS, 0] = True
    frames = {name: array[is_real][:MAX_STEPS] for name, array in samples.observations.items()}
    return frames, is_first[is_real][:MAX_STEPS]


@torch.no_grad()
def _decide(
    policy: GreedyPolicy, observations: Mapping[str, np.ndarray], num_frames: np.ndarray
) -> dict[str, np.ndarray]:
    tensors = {name: torch.from_numpy(array) for name, array in observations.items()}
    counts = torch.from_numpy(num_frames)
    outputs: PolicyOutputs = policy(tensors, counts)
    tokens, logits = policy.model.greedy(tensors, counts, policy.choose)
    assert tokens.equal(outputs.tokens)
    return {
        **{f"outputs.{name}": array.numpy() for name, array in outputs._asdict().items()},
        "is_tied": tied_bins(policy, tokens, logits).numpy(),
    }


def tied_bins(policy: GreedyPolicy, tokens: Tensor, outputs: TokenOutputs) -> Tensor:
    """Returns which bins (n, tokens, bins) the policy chooses once their logits rise, and the chosen one's fall, a bit.

    This asks the policy itself, so that it holds for any rule by which it weighs values and support.
    """
    num_bins = outputs.density_logits.shape[-1]
    chosen = F.one_hot(tokens, num_bins).float()
    is_tied = []
    for each in torch.eye(num_bins):
        nudged = TokenOutputs(_nudged(outputs.q_logits, each - chosen), _nudged(outputs.density_logits, each - chosen))
        is_tied.append(policy.choose(nudged) == each.argmax())
    return torch.stack(is_tied, dim=-1)


def _nudged(logits: Tensor, direction: Tensor) -> Tensor:
    """Returns logits after a rounding that speaks for the bins where `direction` (n, tokens, bins) is positive.

    Of a distribution over atoms (n, tokens, bins, atoms) the upper half rises and the lower falls.
    """
    if logits.ndim > direction.ndim:
        direction = direction.unsqueeze(-1) * torch.linspace(-1.0, 1.0, logits.shape[-1])
    return logits + direction * _ROUNDING * (1 + logits.abs())
