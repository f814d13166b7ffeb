"""One training step: batch in, weights changed, figures out.

`Learner` holds what every algorithm shares: the policy, the optimizer and its schedule. An algorithm is a subclass that
says what the loss of a batch is. A batch is shared by ranks, and each computes its share in parts; what a mean over the
batch is made of is therefore counted before any loss, and the losses, gradients and figures of parts add up:

    parts of a share ─▶ goals (targets, counts of the whole batch) ─▶ loss of each part ─▶ gradients, summed ─▶ step

It must not know files, environments or the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qtransformer import losses, ranks
from qtransformer.augmentation import Augmentation
from qtransformer.batch import Batch
from qtransformer.config import TrainConfig
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy
from qtransformer.tokens import ActionTokenizer

Figures = dict[str, Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])


_WARM_UP = 100  # updates
_FINAL_RATE = 0.05  # of the peak learning rate
_LEAST_WIDTH = 0.5  # of soft labels, in cells: where an action falls within its cell is chance


class Goals(NamedTuple):
    """What the loss of a part of a batch needs beside the part; nothing of it has a gradient."""

    targets: Any
    """Of the part, as the algorithm has them; None where it has none."""
    imitation: Float[Tensor, "batch time"] | None
    """How much the density imitates each step of the part, 1 on average; None for all alike."""
    num_valid: Int[Tensor, ""]
    """Real steps of the whole batch."""
    num_told: Int[Tensor, ""]
    """Those of them that are told what they do: the segment is not relabelled."""
    num_known: Int[Tensor, ""]
    """Known targets of the whole batch."""


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
        self._augment = Augmentation(self.config.image_shift, self.config.colour_jitter, config.seed)
        self._labels = _label_tables(policy.tokenizer, self.config.label_width, action_noise)
        decayed = [each for each in policy.parameters() if each.ndim > 1]
        others = [each for each in policy.parameters() if each.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        policy.model.is_bfloat16 = policy.model.encoder.is_bfloat16 = self.config.precision == "bfloat16"
        policy.model.recomputes = config.activation_checkpointing
        self._num_parts, self._relabels = config.gradient_accumulation_steps, config.data.relabel > 0
        self._loss = self.compiled(self.loss)
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.99), fused=True)

    @abstractmethod
    def loss(self, batch: Batch, goals: Goals) -> tuple[Tensor, Figures]:
        """Returns what a part of a batch, as tensors, adds to the loss, and to figures worth following, detached."""

    @torch.no_grad()
    def goals(self, parts: Sequence[Batch]) -> list[Goals]:
        """Returns what the loss of each part of this rank's share needs; all ranks are asked at once."""
        num_valid = torch.cat([self._real(part).sum(dim=1, keepdim=True) for part in parts])
        (count,) = counted(ranks.gathered(num_valid.float()))
        return [Goals(None, None, count, count, count)] * len(parts)

    def update(self, batch: Batch) -> Figures:
        """Takes one optimizer step on this rank's share of a batch, numpy arrays.

        Returns the figures of the whole batch, the same on all ranks, values in the log's own unit.
        """
        device = self.policy.tokenizer.low.device
        share = batch.map(lambda array: torch.from_numpy(np.asarray(array)).to(device))
        images = {key: share.observations[key] for key in self.policy.model.encoder.image_keys}
        changed = self._augment(images, self.num_updates, first=ranks.rank() * len(share.is_valid))
        figures = self._backward(replace(share, observations={**share.observations, **changed}))
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_gradient_norm)
        figures["gradient_norm"] = norm.detach()
        self.before_step(figures)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule()
        self.optimizer.step()
        self.num_updates += 1
        return figures

    def compiled(self, function: Function) -> Function:
        """Returns the function as training runs it."""
        return cast(Function, torch.compile(function)) if self.config.compile else function

    def _backward(self, share: Batch) -> Figures:
        """Leaves the gradient of the loss of the whole batch, of which this is a share; returns its figures."""
        parts = _split(share, self._num_parts)
        self.optimizer.zero_grad()
        names, sums = ["loss"], []
        for part, goals in zip(parts, self.goals(parts), strict=True):
            loss, figures = self._loss(part, goals)
            loss, figures = self._grounded(part, loss, figures, len(part.is_valid) / len(share.is_valid))
            loss.backward()
            names, values = ["loss", *figures], [loss.detach(), *figures.values()]
            sums.append(torch.stack(values))
        whole = torch.stack(sums).sum(dim=0)
        ranks.add([*(each.grad for each in self.policy.parameters() if each.grad is not None), whole])
        return dict(zip(names, whole.unbind(), strict=True))

    def _real(self, part: Batch) -> Bool[Tensor, "batch time"]:
        """Returns which of the steps that the policy sees at once are no padding."""
        return part.is_valid[:, : self.policy.model.window]

    def _grounded(self, part: Batch, loss: Tensor, figures: Figures, share: float) -> tuple[Tensor, Figures]:
        """Returns both with what words and tables add that do not find each other among those of this part.

        The part is a `share` of this rank's. Others are not asked: with more segments at once the question is harder.
        """
        weight, encoder = self.config.grounding_weight, self.policy.model.encoder
        asked = _as_told(part, encoder.image_keys) if self._relabels else part.observations
        grounding = encoder.grounding_loss(asked) if weight else None
        if grounding is None:
            return loss, figures
        grounding = grounding * share / ranks.world_size()
        return loss + weight * grounding, {**figures, "grounding": grounding.detach()}

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
        for name, value in under("optimizer.", training).items():
            index, moment = name.split(".")
            state.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.num_updates = int(training["num_updates"])

    def target_parameters(self) -> list[Tensor]:
        """Returns the parameters of the target network; none where there is no such network."""
        return []

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


def first_frames(batch: Batch, number: int) -> dict[str, Tensor]:
    """Returns the first `number` observations of each segment."""
    return {key: value[:, :number] for key, value in batch.observations.items()}


def observations_looked_at(batch: Batch, image_keys: Collection[str]) -> dict[str, Tensor]:
    """Returns the observations of the batch's `frames`; images come as these alone."""
    segments = torch.arange(len(batch.frames), device=batch.frames.device).unsqueeze(-1)
    return {
        key: value if key in image_keys else value[segments, batch.frames] for key, value in batch.observations.items()
    }


def _as_told(part: Batch, image_keys: Collection[str]) -> dict[str, Tensor]:
    """Returns the numbers and words of the segments that are told what they do; where none is, of one alone."""
    rows = torch.nonzero(~part.is_relabelled)[:, 0]
    rows = rows if len(rows) else rows.new_zeros(1)  # which finds itself, with any words
    return {key: value[rows] for key, value in part.observations.items() if key not in image_keys}


def under(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what stands under the names that begin with `prefix`, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def masked_mean(
    values: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], count: Int[Tensor, ""]
) -> Float[Tensor, ""]:
    """Returns what these values add to the mean over `count` of them, those that are True here and in other parts."""
    return (values * mask).sum() / count.clamp_min(1)


def _split(batch: Batch, number: int) -> list[Batch]:
    """Returns the segments of a batch in so many parts, or as many as there are segments, of about the same size."""
    size = -(-len(batch.is_valid) // number)
    return [batch.map(itemgetter(slice(at, at + size))) for at in range(0, len(batch.is_valid), size)]


def counted(rows: Float[Tensor, "batch columns"]) -> tuple[Int[Tensor, ""], ...]:
    """Returns the sum of each column of counts."""
    return rows.double().sum(dim=0).long().unbind()
