"""One training step: batch in, weights changed, figures out.

`Learner` holds what every algorithm shares: the policy, the optimizer and its schedule. An algorithm is a subclass that
says what the loss of a batch is. It must not know files, environments or the command line.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qtransformer import backup, losses
from qtransformer.batch import Batch
from qtransformer.config import TrainConfig
from qtransformer.hl_gauss import SPREAD, hl_gauss_edges, hl_gauss_labels
from qtransformer.model import TokenOutputs
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy
from qtransformer.tokens import ActionTokenizer

Figures = dict[str, Tensor]


class Targets(NamedTuple):
    """What the target network says of the logged tokens; values in [0, 1]."""

    values: Float[Tensor, "batch time tokens"]
    is_known: Bool[Tensor, "batch time tokens"]
    """False on padding, and for the last token of a step that was cut off without its successor."""
    advantages: Float[Tensor, "batch time"]
    """R + gamma V(s') - V(s) of the logged action, over as many steps as the return; known where that is."""


_WARM_UP = 100  # updates
_FINAL_RATE = 0.05  # of the peak learning rate
_SPREAD_SHARE = 0.01  # of a batch in the running mean of how far actions differ
_LEAST_WIDTH = 0.5  # of soft labels, in cells: where an action falls within its cell is chance


class Learner(ABC):
    """A policy under training."""

    def __init__(
        self, policy: GreedyPolicy, config: TrainConfig, scale: ReturnScale, action_noise: Sequence[float] = ()
    ) -> None:
        """Sets up training; `action_noise` says of each dimension how noisy the log is, as a share of its range."""
        self.policy, self.config, self.scale = policy, config.learning, scale
        self.num_updates, self._num_steps = 0, config.steps
        self.before_step: Callable[[Figures], None] = lambda figures: None
        """Called with the figures of each update before it changes anything; what it raises ends the update there."""
        self._labels = _label_tables(policy.tokenizer, self.config.label_width, action_noise)
        decayed = [each for each in policy.parameters() if each.ndim > 1]
        others = [each for each in policy.parameters() if each.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        policy.model.is_bfloat16 = self.config.precision == "bfloat16"
        self._loss = torch.compile(self.loss) if self.config.compile else self.loss
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.99), fused=True)

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Returns the loss of a batch of tensors, and detached scalars worth following."""

    def update(self, batch: Batch) -> Figures:
        """Takes one optimizer step on a batch of numpy arrays; returns its figures, values in the log's own unit."""
        device = self.policy.tokenizer.low.device
        batch = batch.map(lambda array: torch.from_numpy(np.asarray(array)).to(device))
        loss, figures = self._grounded(batch, *self._loss(batch))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_gradient_norm)
        figures = {"loss": loss.detach(), **figures, "gradient_norm": norm.detach()}
        self.before_step(figures)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule()
        self.optimizer.step()
        self.num_updates += 1
        return figures

    def _grounded(self, batch: Batch, loss: Tensor, figures: Figures) -> tuple[Tensor, Figures]:
        """Returns both with what it costs that words and tables of the first steps do not find each other."""
        encoder = self.policy.model.encoder
        if not encoder.named:
            return loss, figures
        grounding = encoder.grounding_loss(batch.observations)
        return loss + self.config.grounding_weight * grounding, {**figures, "grounding": grounding.detach()}

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

    def labels(self, tokens: Int[Tensor, "batch time tokens"]) -> Float[Tensor, "batch time tokens bins"]:
        """Returns what the logged tokens say of every bin."""
        return self._rows_of(self._labels, tokens)

    def _rows_of(self, table: Tensor, tokens: Tensor) -> Float[Tensor, "batch time tokens bins"]:
        tokenizer = self.policy.tokenizer
        rows = tokenizer.label_rows(tokens) + tokenizer.token_dimensions * (len(table) // tokenizer.num_dimensions)
        return table.index_select(0, rows.flatten()).view(*tokens.shape, -1)

    def _schedule(self) -> float:
        warm = min(1.0, (self.num_updates + 1) / _WARM_UP)
        return warm * max(_FINAL_RATE, 1 - (1 - _FINAL_RATE) * self.num_updates / self._num_steps)


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

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Returns squared error + alpha * regulariser + density weight * cross-entropy, averaged over real tokens."""
        T = self.policy.model.window
        tokens = self.policy.tokenizer.encode(batch.actions[:, :T])
        outputs = self.policy.model(frames_of(batch, 0, T), tokens)
        targets = self.targets(batch)
        labels = self.labels(tokens)
        is_valid = batch.is_valid[:, :T].unsqueeze(-1).expand_as(tokens)
        error = masked_mean(self._fit(outputs, labels, targets.values), targets.is_known)
        conservative = masked_mean(self._regularizer(outputs, tokens, labels), is_valid)
        to_imitate = losses.advantage_weights(
            targets.advantages, targets.is_known[..., -1], self.config.advantage_sharpness
        )
        cross_entropy = masked_mean(to_imitate.unsqueeze(-1) * losses.density(outputs.density_logits, labels), is_valid)
        weights = self.config.conservative_weight, self.config.density_weight
        with torch.no_grad():
            spreads = backup.action_spread(outputs.q_values, outputs.density_logits)
            figures = {
                "squared_error": error.detach(),
                "conservative": conservative.detach(),
                "cross_entropy": cross_entropy.detach(),
                "q_logged": self._shown(backup.values_at(outputs.q_values, tokens), is_valid),
                "q_greedy": self._shown(self.policy.values(outputs), is_valid),
                "target": self._shown(targets.values, targets.is_known),
                "q_spread": self.scale.width * masked_mean(spreads, is_valid[..., 0]),
                "monte_carlo": masked_mean(batch.monte_carlo_returns[:, :T], is_valid[..., 0]),
            }
        return error + weights[0] * conservative + weights[1] * cross_entropy, figures

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Returns the target of every logged token of the first `window` steps.

        All tokens of a step come from one pass of the target network, and the values of the states that their returns
        end in from one pass over observations alone, the same window shifted by the steps of the return:

            observations   o0  o1  ...  oT-1  oT  oT+1      (T = window, 2 environment steps)
            this pass      └───────────────┘
            next values            └───────────────┘        less far where the episode was cut off before
        """
        T = self.target.model.window
        tokens = self.target.tokenizer.encode(batch.actions[:, :T])
        token_values = self.target.values(self.target.model(frames_of(batch, 0, T), tokens))
        is_known = batch.is_valid & (batch.terminations | batch.has_successor)
        returns = backup.environment_steps_targets(
            batch.rewards,
            batch.terminations,
            self._next_values(batch, is_known),
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

    def _next_values(self, batch: Batch, is_known: Bool[Tensor, "batch steps"]) -> Float[Tensor, "batch steps"]:
        """Returns, in the log's unit, the value of the state after each step that a return ends in; 0 elsewhere.

        One window a segment holds them all: that after `environment_steps` steps, or the last that is known.
        """
        T, num_steps = self.target.model.window, self.config.environment_steps
        first = (is_known.sum(dim=1) + 1 - T).clamp(1, num_steps)
        rows = first.unsqueeze(-1) + torch.arange(T, device=first.device)
        segments = torch.arange(len(rows), device=first.device).unsqueeze(-1)
        values = self._state_values({key: value[segments, rows] for key, value in batch.observations.items()})
        return torch.zeros_like(batch.rewards).scatter(1, rows - 1, self.scale.from_unit(values))

    def _state_values(self, windows: Mapping[str, Tensor]) -> Float[Tensor, "batch time"]:
        """Returns the policy's value of each step: of its first token, or, for n-step, of its last.

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
        prefix = "target."
        self.target.load_state_dict(
            {name.removeprefix(prefix): value for name, value in training.items() if name.startswith(prefix)}
        )

    def _shown(self, values: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(self.scale.from_unit(values), mask)


def _label_tables(
    tokenizer: ActionTokenizer, width: float, action_noise: Sequence[float]
) -> Float[Tensor, "rows bins"]:
    """Returns the soft labels of all tokens of the first dimension, then of the second, and so on.

    Raises:
        ValueError: soft labels need to know the noise of every dimension.
    """
    num_dimensions = tokenizer.num_dimensions
    if width > 0 and len(action_noise) != num_dimensions:
        raise ValueError(
            f"action_noise must have a number for each of {num_dimensions} dimensions, got {len(action_noise)}; "
            "take `statistics.action_noise` of the log, or label_width 0"
        )
    least = _LEAST_WIDTH / tokenizer.num_cells if width > 0 else 0.0
    widths = [max(least, width * noise) for noise in action_noise] if width > 0 else [0.0] * num_dimensions
    tables = [losses.label_table(tokenizer.num_bins, tokenizer.num_levels, each) for each in widths]
    return torch.cat(tables).to(tokenizer.low.device)


def frames_of(batch: Batch, first: int, number: int) -> dict[str, Tensor]:
    """Returns `number` observations of each segment, from `first` on."""
    return {key: value[:, first : first + number] for key, value in batch.observations.items()}


def masked_mean(values: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Returns the mean over True; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp_min(1)
