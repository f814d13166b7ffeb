"""One training step: batch in, weights changed, figures out.

`Learner` holds what every algorithm shares: the policy, the optimizer and its schedule. An algorithm is a subclass that
says what the loss of a batch is. It must not know files, environments or the command line.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qtransformer import backup, losses
from qtransformer.batch import Batch
from qtransformer.config import TrainConfig
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy

Figures = dict[str, Tensor]


class Targets(NamedTuple):
    """What the target network says of the logged tokens; values in [0, 1]."""

    values: Float[Tensor, "batch time tokens"]
    is_known: Bool[Tensor, "batch time tokens"]
    """False on padding, and for the last token of a step that was cut off without its successor."""
    advantages: Float[Tensor, "batch time"]
    """R + gamma V(s') - V(s) of the logged action; known where the last token's target is."""


_WARM_UP = 100  # updates
_FINAL_RATE = 0.05  # of the peak learning rate


class Learner(ABC):
    """A policy under training."""

    def __init__(self, policy: GreedyPolicy, config: TrainConfig, scale: ReturnScale) -> None:
        self.policy, self.config, self.scale = policy, config.learning, scale
        self.num_updates, self._num_steps = 0, config.steps
        decayed = [each for each in policy.parameters() if each.ndim > 1]
        others = [each for each in policy.parameters() if each.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.99), fused=True)

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Returns the loss of a batch of tensors, and detached scalars worth following."""

    def update(self, batch: Batch) -> Figures:
        """Takes one optimizer step on a batch of numpy arrays; returns its figures, values in the log's own unit."""
        device = self.policy.tokenizer.low.device
        loss, figures = self.loss(batch.map(lambda array: torch.from_numpy(np.asarray(array)).to(device)))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule()
        self.optimizer.step()
        self.num_updates += 1
        return {"loss": loss.detach(), **figures, "gradient_norm": norm.detach()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the policy's tensors, and those that only a resumed training needs."""
        moments = self.optimizer.state_dict()["state"]
        training = {
            f"optimizer.{index}.{name}": value for index, each in moments.items() for name, value in each.items()
        }
        return dict(self.policy.state_dict()), {**training, "num_updates": torch.tensor(self.num_updates)}

    def load_state(self, weights: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        self.policy.load_state_dict(dict(weights))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in training.items():
            if name.startswith("optimizer."):
                _, index, moment = name.split(".")
                state.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.num_updates = int(training["num_updates"])

    def labels(self, tokens: Tensor) -> Float[Tensor, "batch time tokens bins"]:
        """Returns what the logged tokens say of every bin."""
        num_bins = self.policy.tokenizer.num_bins
        return losses.soft_labels(tokens, num_bins, self.config.label_width * num_bins)

    def _schedule(self) -> float:
        warm = min(1.0, (self.num_updates + 1) / _WARM_UP)
        return warm * max(_FINAL_RATE, 1 - (1 - _FINAL_RATE) * self.num_updates / self._num_steps)


class QTransformerLearner(Learner):
    """Autoregressive Q-learning: eq. 1 and eq. 2 of arXiv 2309.10150, maxima held to the support of the log."""

    def __init__(self, policy: GreedyPolicy, config: TrainConfig, scale: ReturnScale) -> None:
        super().__init__(policy, config, scale)
        self.target = copy.deepcopy(policy).requires_grad_(False)
        self._floor = 0.0  # the least return, in [0, 1]

    def update(self, batch: Batch) -> Figures:
        """Takes one optimizer step and moves the target network after the policy."""
        figures = super().update(batch)
        with torch.no_grad():
            for target, source in zip(self.target.parameters(), self.policy.parameters(), strict=True):
                target.lerp_(source, 1 - self.config.polyak)
        return figures

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Returns squared error + alpha * conservative + density weight * cross-entropy, averaged over real tokens."""
        tokens = self.policy.tokenizer.encode(batch.actions)
        outputs = self.policy.model({key: value[:, :-1] for key, value in batch.observations.items()}, tokens)
        targets = self.targets(batch)
        labels = self.labels(tokens)
        is_valid = batch.is_valid.unsqueeze(-1).expand_as(tokens)
        error = masked_mean(losses.temporal_difference(outputs.q_values, labels, targets.values), targets.is_known)
        conservative = masked_mean(losses.conservative(outputs.q_values, labels, self._floor), is_valid)
        to_imitate = losses.advantage_weights(
            targets.advantages, targets.is_known[..., -1], self.config.advantage_sharpness
        )
        cross_entropy = masked_mean(to_imitate.unsqueeze(-1) * losses.density(outputs.density_logits, labels), is_valid)
        weights = self.config.conservative_weight, self.config.density_weight
        with torch.no_grad():
            figures = {
                "squared_error": error.detach(),
                "conservative": conservative.detach(),
                "cross_entropy": cross_entropy.detach(),
                "q_logged": self._shown(backup.values_at(outputs.q_values, tokens), is_valid),
                "q_greedy": self._shown(self.policy.values(outputs), is_valid),
                "target": self._shown(targets.values, targets.is_known),
                "monte_carlo": masked_mean(batch.monte_carlo_returns, batch.is_valid),
            }
        return error + weights[0] * conservative + weights[1] * cross_entropy, figures

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Returns the target of every logged token.

        All tokens of a step come from one pass of the target network; the value of the next step from a further pass
        over observations alone, the segment shifted by one:

            observations   o0  o1  ...  oT-1  oT
            this pass      └───────────────┘
            next pass          └───────────────┘
        """
        tokens = self.target.tokenizer.encode(batch.actions)
        observations = {key: value[:, :-1] for key, value in batch.observations.items()}
        token_values = self.target.values(self.target.model(observations, tokens))
        next_values = self._next_values({key: value[:, 1:] for key, value in batch.observations.items()})
        returns = backup.environment_step_targets(batch.rewards, batch.terminations, next_values, self.config.discount)
        last = self.scale.to_unit(returns)
        has_last = batch.is_valid & (batch.terminations | batch.has_successor)
        if self.config.backup == "n_step":
            targets = backup.shared_targets(last, tokens.shape[-1])
            has_target = has_last.unsqueeze(-1).expand_as(targets)
        else:
            targets = backup.one_step_targets(token_values, last)
            has_target = batch.is_valid.unsqueeze(-1).repeat(1, 1, tokens.shape[-1])
            has_target[..., -1] = has_last
        if self.config.monte_carlo_bound:
            targets = backup.monte_carlo_bound(targets, self.scale.to_unit(batch.monte_carlo_returns))
        return Targets(targets, has_target, advantages=last - token_values[..., 0])

    def _next_values(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time"]:
        """Returns, in the log's unit, the value of each step's greedy bin: of its first token, or of its last.

        The last token needs the greedy action before it, so n-step decodes every step: step k with frames 0 to k.
        """
        model = self.target.model
        if self.config.backup == "one_step":
            return self.scale.from_unit(self.target.values(model.first_token_outputs(observations)))
        B, T = next(iter(observations.values())).shape[:2]
        windows = {key: value.repeat_interleave(T, dim=0) for key, value in observations.items()}
        num_frames = torch.arange(1, T + 1, device=self.target.tokenizer.low.device).repeat(B)
        tokens, outputs = model.greedy(windows, num_frames, self.target.choose)
        return self.scale.from_unit(backup.values_at(outputs.q_values, tokens)[:, -1].view(B, T))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the policy's tensors, and those of the target network and the optimizer."""
        weights, training = super().state()
        return weights, {**training, **{f"target.{name}": value for name, value in self.target.state_dict().items()}}

    def load_state(self, weights: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        super().load_state(weights, training)
        prefix = "target."
        self.target.load_state_dict(
            {name.removeprefix(prefix): value for name, value in training.items() if name.startswith(prefix)}
        )

    def _shown(self, values: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(self.scale.from_unit(values), mask)


def masked_mean(values: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Returns the mean over True; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp_min(1)
