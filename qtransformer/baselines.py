"""Baselines on the same tokens, trunk, labels and data path, so that a comparison differs in the method alone.

Each acts by its density alone, and differs in what that imitates: every logged action alike (cloning), the better ones
more (IQL), or those that a return to go was given with (Decision Transformer). Conservative Q-learning is no class of
its own but a preset, `cql`, of the Q-Transformer's learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qtransformer import backup, losses, ranks
from qtransformer.batch import Batch
from qtransformer.config import Algorithm, TrainConfig
from qtransformer.encoders.return_conditioned import RETURN_TO_GO, ReturnConditionedEncoder
from qtransformer.learner import Figures, Goals, Learner, counted, first_frames, masked_mean, observations_looked_at
from qtransformer.model import TokenOutputs
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy
from qtransformer.q_learning import QTransformerLearner

_MAX_WEIGHT = 100.0  # of an imitated action (IQL, appendix B)


class BehaviourCloning(Learner):
    """The action that the log suggests: RT-1's policy (arXiv 2212.06817), with our soft labels."""

    def loss(self, batch: Batch, goals: Goals) -> tuple[Tensor, Figures]:
        """Returns the cross-entropy of the density, averaged over real tokens."""
        T = self.policy.model.window
        tokens = self.policy.tokenizer.encode(batch.actions[:, :T])
        outputs = self.policy.model(self.observations(batch, T), tokens)
        is_valid = batch.is_valid[:, :T].unsqueeze(-1).expand_as(tokens)
        count = goals.num_valid * tokens.shape[-1]
        loss = masked_mean(losses.density(outputs.density_logits, self.labels(tokens)), is_valid, count)
        with torch.no_grad():
            is_equal = outputs.density_logits.argmax(dim=-1) == tokens
            accuracy = masked_mean(is_equal.float(), is_valid, count)
        return loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}

    def observations(self, batch: Batch, number: int) -> Mapping[str, Tensor]:
        """Returns what the policy is shown of the first `number` steps."""
        return first_frames(batch, number)


class DecisionTransformer(BehaviourCloning):
    """Cloning that is told how the episode went on: the policy of arXiv 2106.01345, on our trunk.

    The return to go R_t + R_{t+1} + ... is embedded in the observation's token, not in one of its own, and earlier
    actions are not shown; both keep the trunk that of the other methods. The paper lowers the return it asks for by
    the rewards it receives. A robot receives none, so ours asks for the best return of the log at every step. That is
    the same where only success is rewarded, and asks for too much where rewards come step by step.
    """

    def observations(self, batch: Batch, number: int) -> Mapping[str, Tensor]:
        """Returns the observations, and the return to go in [0, 1]."""
        returns = self.scale.to_unit(batch.monte_carlo_returns[:, :number])
        return {**first_frames(batch, number), RETURN_TO_GO: returns}

    def update(self, batch: Batch) -> Figures:
        """Takes one optimizer step, and lets the policy ask for the best return to go that it has seen."""
        figures = super().update(batch)
        encoder = self.policy.model.encoder
        assert isinstance(encoder, ReturnConditionedEncoder)
        seen = torch.from_numpy(np.asarray(batch.monte_carlo_returns)[np.asarray(batch.is_valid)])
        best = ranks.largest(self.scale.to_unit(seen).max().item())
        encoder.see(encoder.best_return.new_tensor([best]))
        return {**figures, "return_asked_for": self.scale.from_unit(encoder.best_return)}


class ImplicitTargets(NamedTuple):
    """What IQL learns from; values in [0, 1]."""

    q_logged: Float[Tensor, "batch time"]
    """Q of the logged action, by the target network."""
    backups: Float[Tensor, "batch time"]
    """R + gamma V(s'), over as many steps of the log as `environment_steps` says; one in the paper."""
    is_known: Bool[Tensor, "batch time"]
    """False on padding, and where a step was cut off without its successor."""


class ImplicitQLearning(QTransformerLearner):
    """IQL (arXiv 2110.06169): never asks for the value of an action that was not logged.

    Q(s, a) is read at the last token of the logged action; the other tokens' are not trained.
    """

    def __init__(
        self, policy: GreedyPolicy, config: TrainConfig, scale: ReturnScale, action_noise: Sequence[float] = ()
    ) -> None:
        super().__init__(policy, config, scale, action_noise)
        self._implicit_targets = self.compiled(self.implicit_targets)

    @torch.no_grad()
    def goals(self, parts: Sequence[Batch]) -> list[Goals]:
        """Returns the targets of each part."""
        targets = [self._implicit_targets(part) for part in parts]
        counts = [
            torch.stack([self._real(part).sum(dim=1), each.is_known.sum(dim=1)], dim=1)
            for part, each in zip(parts, targets, strict=True)
        ]
        num_valid, num_known = counted(ranks.gathered(torch.cat(counts).float()))
        return [Goals(each, None, num_valid, num_valid, num_known) for each in targets]

    def loss(self, batch: Batch, goals: Goals) -> tuple[Tensor, Figures]:
        """Returns expectile error of V (eq. 5) + squared error of Q (eq. 6) + weighted cross-entropy (eq. 7)."""
        T = self.policy.model.window
        tokens = self.policy.tokenizer.encode(batch.actions[:, :T])
        encoded = self.policy.model.encoder(first_frames(batch, T))
        values, outputs = self.policy.model.state_values(encoded), self.policy.model(encoded, tokens)
        targets, labels, is_valid = goals.targets, self.labels(tokens), batch.is_valid[:, :T]
        num_valid, num_known = goals.num_valid, goals.num_known
        value_errors = losses.expectile(values, targets.q_logged, self.config.expectile)
        value_error = masked_mean(value_errors, is_valid, num_valid)
        last = TokenOutputs(*(each[:, :, -1:] for each in outputs))
        errors = self._fit(last, labels[:, :, -1:], targets.backups.unsqueeze(-1))
        error = masked_mean(errors.squeeze(-1), targets.is_known, num_known)
        weights = implicit_weights(targets.q_logged - values.detach(), self.config.inverse_temperature)
        cross_entropies = losses.density(outputs.density_logits, labels).mean(dim=-1)
        cross_entropy = masked_mean(weights * cross_entropies, is_valid, num_valid)
        figures = {
            "expectile_error": value_error,
            "squared_error": error,
            "cross_entropy": cross_entropy,
            "imitation_weight": masked_mean(weights, is_valid, num_valid),
            "value": self._shown(values, is_valid, num_valid),
            "q_logged": self._shown(backup.values_at(last.q_values, tokens[..., -1:]).squeeze(-1), is_valid, num_valid),
            "target": self._shown(targets.backups, targets.is_known, num_known),
            "monte_carlo": masked_mean(batch.monte_carlo_returns[:, :T], is_valid, num_valid),
        }
        return value_error + error + cross_entropy, {name: value.detach() for name, value in figures.items()}

    @torch.no_grad()
    def implicit_targets(self, batch: Batch) -> ImplicitTargets:
        """Returns the target of V, from the target network, and that of Q, from the V that is being learnt."""
        T, encoder = self.target.model.window, self.policy.model.encoder
        tokens = self.target.tokenizer.encode(batch.actions[:, :T])
        q_values = self.target.model(first_frames(batch, T), tokens).q_values[..., -1, :]
        is_known = batch.is_valid & (batch.terminations | batch.has_successor)
        returns = backup.environment_steps_targets(
            batch.rewards,
            batch.terminations,
            self._next_values(batch, is_known, encoder(observations_looked_at(batch, encoder.image_keys))),
            is_known,
            self.config.discount,
            self.config.environment_steps,
        )[:, :T]
        return ImplicitTargets(
            backup.values_at(q_values, tokens[..., -1]), self.scale.to_unit(returns), is_known[:, :T]
        )

    def _state_values(self, windows: Float[Tensor, "batch time slots width"]) -> Float[Tensor, "batch time"]:
        return self.policy.model.state_values(windows)


def implicit_weights(advantages: Float[Tensor, "*batch"], inverse_temperature: int | float) -> Float[Tensor, "*batch"]:
    """Returns exp(inverse temperature * (Q - V)), at most 100: how much an action is imitated (IQL, eq. 7)."""
    return (inverse_temperature * advantages).exp().clamp_max(_MAX_WEIGHT)


LEARNERS: dict[Algorithm, type[Learner]] = {
    "q_transformer": QTransformerLearner,
    "behaviour_cloning": BehaviourCloning,
    "implicit_q_learning": ImplicitQLearning,
    "decision_transformer": DecisionTransformer,
}
