"""Baselines on the same tokens, trunk, labels and data path, so that a comparison differs in the method alone."""

from __future__ import annotations

import torch
from torch import Tensor

from qtransformer import losses
from qtransformer.batch import Batch
from qtransformer.config import Algorithm
from qtransformer.learner import Figures, Learner, QTransformerLearner, masked_mean


class BehaviourCloning(Learner):
    """The likeliest action of the log: RT-1's policy (arXiv 2212.06817), with our soft labels."""

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Returns the cross-entropy of the density, averaged over real tokens."""
        tokens = self.policy.tokenizer.encode(batch.actions)
        outputs = self.policy.model({key: value[:, :-1] for key, value in batch.observations.items()}, tokens)
        is_valid = batch.is_valid.unsqueeze(-1).expand_as(tokens)
        loss = masked_mean(losses.density(outputs.density_logits, self.labels(tokens)), is_valid)
        with torch.no_grad():
            is_equal = outputs.density_logits.argmax(dim=-1) == tokens
            accuracy = masked_mean(is_equal.float(), is_valid)
        return loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}


LEARNERS: dict[Algorithm, type[Learner]] = {
    "q_transformer": QTransformerLearner,
    "behaviour_cloning": BehaviourCloning,
}
