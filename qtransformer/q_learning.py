"""The Q-Transformer's learner: the targets and the loss of a batch, and the target network that moves after the policy.

It must not know files, environments or the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qtransformer import backup, losses, ranks
from qtransformer.batch import Batch
from qtransformer.config import TrainConfig
from qtransformer.hl_gauss import SPREAD, hl_gauss_edges, hl_gauss_labels
from qtransformer.learner import (
    Figures,
    Goals,
    Learner,
    counted,
    first_frames,
    masked_mean,
    observations_looked_at,
    under,
)
from qtransformer.model import TokenOutputs
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy

_SPREAD_SHARE = 0.01  # of a batch in the running mean of how far actions differ


class Targets(NamedTuple):
    """What the target network says of the logged tokens; values in [0, 1]."""

    values: Float[Tensor, "batch time tokens"]
    is_known: Bool[Tensor, "batch time tokens"]
    """False on padding, and for the last token of a step that was cut off without its successor."""
    advantages: Float[Tensor, "batch time"]
    """R + gamma V(s') - V(s) of the logged action, over as many steps as the return; known where that is."""


class QTransformerLearner(Learner):
    """Autoregressive Q-learning: eq. 1 and eq. 2 of arXiv 2309.10150, maxima held to the support of the log."""

    def __init__(
        self, policy: GreedyPolicy, config: TrainConfig, scale: ReturnScale, action_noise: Sequence[float] = ()
    ) -> None:
        super().__init__(policy, config, scale, action_noise)
        self.target = copy.deepcopy(policy).requires_grad_(False)
        self.target.support_temperature = self.config.target_temperature  # its q_spread stays 1, the range of returns
        self._parameters: list[Tensor] = [*policy.parameters()]
        self._target_parameters: list[Tensor] = [*self.target.parameters()]
        self._others = losses.other_weights(self._labels)
        self._targets = self.compiled(self.targets)

    def update(self, batch: Batch) -> Figures:
        """Takes one optimizer step and moves the target network after the policy."""
        figures = super().update(batch)
        with torch.no_grad():
            share = 1 - self.config.polyak
            torch._foreach_lerp_(self._target_parameters, self._parameters, share)  # pyright: ignore
            if "q_spread" in figures:  # not where the density alone acts
                newest = max(_SPREAD_SHARE, 1 / self.num_updates)  # the plain mean at first
                self.policy.q_spread.lerp_(figures["q_spread"] / self.scale.width, newest)
        return figures

    @torch.no_grad()
    def goals(self, parts: Sequence[Batch]) -> list[Goals]:
        """Returns the targets of each part, and how much each of its steps is imitated beside the whole batch's."""
        targets = [self._targets(part) for part in parts]
        T = self.policy.model.window
        rows = torch.cat([self._row(part, each) for part, each in zip(parts, targets, strict=True)])
        whole = ranks.gathered(rows)
        advantages, is_known, counts = whole.split([T, T, 3], dim=1)
        weights = losses.advantage_weights(advantages, is_known.bool(), self.config.advantage_sharpness)
        first = ranks.rank() * len(rows)
        own = weights[first : first + len(rows)].split([len(each.advantages) for each in targets])
        return [Goals(each, weight, *counted(counts)) for each, weight in zip(targets, own, strict=True)]

    def _row(self, part: Batch, targets: Targets) -> Float[Tensor, "batch columns"]:
        """Returns what the other ranks must know of each segment.

        That is its advantages, whether they are known and of what it is told to do, and the counts of `Goals`.
        """
        is_told = self._told(part)
        counts = [self._real(part).sum(dim=1), is_told.sum(dim=1), targets.is_known.sum(dim=(1, 2))]
        return torch.cat([targets.advantages, targets.is_known[..., -1] & is_told, torch.stack(counts, dim=1)], dim=1)

    def _told(self, part: Batch) -> Bool[Tensor, "batch time"]:
        """Returns which of the real steps are told what they do, not another task in hindsight."""
        return self._real(part) & ~part.is_relabelled.unsqueeze(-1)

    def loss(self, batch: Batch, goals: Goals) -> tuple[Tensor, Figures]:
        """Returns squared error + alpha * regulariser + density weight * cross-entropy, averaged over real tokens.

        Relabelled segments are no example of what to do: the cross-entropy leaves them out, and the figures of values.
        They fail, whatever is done: the error says so of what was logged, and the floor of all else. The softmax
        regulariser would lift what was logged.
        """
        T, targets = self.policy.model.window, goals.targets
        tokens = self.policy.tokenizer.encode(batch.actions[:, :T])
        outputs = self.policy.model(first_frames(batch, T), tokens)
        labels = self.labels(tokens)
        is_valid, is_told = (each.unsqueeze(-1).expand_as(tokens) for each in (self._real(batch), self._told(batch)))
        num_valid, num_told = goals.num_valid * tokens.shape[-1], goals.num_told * tokens.shape[-1]
        lowered = (is_told, num_told) if self.config.regularizer == "softmax" else (is_valid, num_valid)
        assert goals.imitation is not None
        cross_entropies = goals.imitation.unsqueeze(-1) * losses.density(outputs.density_logits, labels)
        error = masked_mean(self._fit(outputs, labels, targets.values), targets.is_known, goals.num_known)
        conservative = masked_mean(self._regularizer(outputs, tokens, labels), *lowered)
        cross_entropy = masked_mean(cross_entropies, is_told, num_told)
        weights = self.config.conservative_weight, self.config.density_weight
        with torch.no_grad():
            spreads = backup.action_spread(outputs.q_values, outputs.density_logits)
            figures = {
                "squared_error": error.detach(),
                "conservative": conservative.detach(),
                "cross_entropy": cross_entropy.detach(),
                "q_logged": self._shown(backup.values_at(outputs.q_values, tokens), is_told, num_told),
                "q_greedy": self._shown(self.policy.values(outputs), is_told, num_told),
                "target": self._shown(targets.values, targets.is_known, goals.num_known),
                "q_spread": self.scale.width * masked_mean(spreads, is_told[..., 0], goals.num_told),
                "monte_carlo": masked_mean(batch.monte_carlo_returns[:, :T], is_told[..., 0], goals.num_told),
            }
        return error + weights[0] * conservative + weights[1] * cross_entropy, figures

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Returns the target of every logged token of the first `window` steps.

        Each observation is encoded once. All tokens of a step come from one pass of the target network, and the values
        of the states that their returns end in from one pass over observations alone, the same window shifted by the
        steps of the return:

            observations   o0  o1  ...  oT-1  oT  oT+1      (T = window, 2 environment steps)
            this pass      └───────────────┘
            next values            └───────────────┘        less far where the episode was cut off before
        """
        T = self.target.model.window
        tokens = self.target.tokenizer.encode(batch.actions[:, :T])
        encoded = self.target.model.encoder(observations_looked_at(batch, self.target.model.encoder.image_keys))
        token_values = self.target.values(self.target.model(encoded[:, :T], tokens))
        is_known = batch.is_valid & (batch.terminations | batch.has_successor)
        returns = backup.environment_steps_targets(
            batch.rewards,
            batch.terminations,
            self._next_values(batch, is_known, encoded),
            is_known,
            self.config.discount,
            self.config.environment_steps,
        )
        last, has_last = self.scale.to_unit(returns[:, :T]), is_known[:, :T]
        if self.config.backup == "n_step":
            targets = backup.shared_targets(last, tokens.shape[-1])
            has_target = has_last.unsqueeze(-1).expand_as(targets)
        else:
            targets = backup.one_step_targets(token_values, last)
            has_target = batch.is_valid[:, :T].unsqueeze(-1).repeat(1, 1, tokens.shape[-1])
            has_target[..., -1] = has_last
        if self.config.monte_carlo_bound:
            targets = backup.monte_carlo_bound(targets, self.scale.to_unit(batch.monte_carlo_returns[:, :T]))
        return Targets(targets, has_target, advantages=last - token_values[..., 0])

    def _next_values(
        self, batch: Batch, is_known: Bool[Tensor, "batch steps"], encoded: Float[Tensor, "batch frames slots width"]
    ) -> Float[Tensor, "batch steps"]:
        """Returns, in the log's unit, the value of the state after each step that a return ends in; 0 elsewhere.

        One window a segment holds them all: that after `environment_steps` steps, or the last that is known. `encoded`
        is what the encoder made of the batch's `frames`.
        """
        T, num_steps = self.target.model.window, self.config.environment_steps
        first = (is_known.sum(dim=1) + 1 - T).clamp(1, num_steps)
        rows = first.unsqueeze(-1) + torch.arange(T, device=first.device)
        segments = torch.arange(len(rows), device=first.device).unsqueeze(-1)
        values = self._state_values(encoded[segments, torch.searchsorted(batch.frames, rows)])
        return torch.zeros_like(batch.rewards).scatter(1, rows - 1, self.scale.from_unit(values))

    def _state_values(self, windows: Float[Tensor, "batch time slots width"]) -> Float[Tensor, "batch time"]:
        """Returns the policy's value of each step of encoded windows: of its first token, or, for n-step, of its last.

        The last token's needs the greedy action before it: every step is decoded.
        """
        model = self.target.model
        if self.config.backup == "one_step":
            return self.target.values(model.first_token_outputs(windows))
        features = model.features(windows)
        outputs = model.greedy_from(features.flatten(0, 1), self.target.choose).outputs
        return self.target.values(outputs)[:, -1].view(features.shape[:2])

    def _regularizer(self, outputs: TokenOutputs, tokens: Tensor, labels: Tensor) -> Float[Tensor, "batch time tokens"]:
        """Returns how far bins that were not logged stand above the least return, or above the logged one."""
        if self.config.regularizer == "softmax":
            return losses.softmax_regularizer(outputs.q_values, labels, 1.0)
        least = torch.zeros(tokens.shape, device=tokens.device)
        return self._fit(outputs, self._rows_of(self._others, tokens), least)

    def _fit(self, outputs: TokenOutputs, weights: Tensor, targets: Tensor) -> Float[Tensor, "batch time tokens"]:
        """Returns the error of Q against `targets`, the bins weighted: squared, or a cross-entropy over atoms."""
        if self.policy.model.num_atoms == 1:
            return losses.squared_error(outputs.q_values, weights, targets)
        edges = hl_gauss_edges(self.policy.model.num_atoms).to(targets)
        atoms = hl_gauss_labels(targets, edges, SPREAD * (edges[1] - edges[0]).item())
        return losses.temporal_cross_entropy(outputs.q_logits, weights, atoms)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the policy's tensors, and those of the target network and the optimizer."""
        weights, training = super().state()
        return weights, {**training, **{f"target.{name}": value for name, value in self.target.state_dict().items()}}

    def load_state(self, weights: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        super().load_state(weights, training)
        self.target.load_state_dict(under("target.", training))

    def target_parameters(self) -> list[Tensor]:
        """Returns the parameters of the target network, in the order of the policy's."""
        return self._target_parameters

    def _shown(self, values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
        return masked_mean(self.scale.from_unit(values), mask, count)
