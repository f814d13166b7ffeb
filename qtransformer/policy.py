"""The greedy policy: a window of raw observations in, an action in the environment's units out.

Special about this file: normalisation, decoding, support mask and de-tokenising live in one module, so that what is
evaluated and what is exported are the same graph. It must not know environments or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from qtransformer.backup import median_bins, policy_probabilities, values_at
from qtransformer.batch import DatasetSpec
from qtransformer.config import ACT_BY_DENSITY, RunError, TrainConfig
from qtransformer.encoders.observations import ObservationEncoder
from qtransformer.encoders.return_conditioned import ReturnConditionedEncoder
from qtransformer.encoders.state import Statistics
from qtransformer.model import QTransformer, TokenOutputs
from qtransformer.tokens import ActionTokenizer

_LEAST_SPREAD = 0.01  # of the range of returns: where actions differ less, the density decides
_ROWS = 8  # inference always runs on this many rows, so that rounding cannot depend on how many environments run


class PolicyOutputs(NamedTuple):
    """One decision a row."""

    actions: Float[Tensor, "batch dims"]
    """In the environment's units."""
    tokens: Int[Tensor, "batch tokens"]
    q_max: Float[Tensor, "batch tokens"]
    """Value in (0, 1) of the bin that was chosen, for each token."""
    q_gap: Float[Tensor, "batch tokens"]
    """How far that value lies above the mean over all bins."""
    ok: Bool[Tensor, " batch"]
    """All inputs and outputs were finite. A NaN would otherwise pass as bin 0 of every dimension, an infinite reading
    as the largest plausible one."""


class GreedyPolicy(nn.Module):
    """The greedy bin of each token, token by token, each fed back (section 4.1, held to the support).

    The temperature is in units of `q_spread`, by how much Q of whole actions differs under the log's density, so that
    one temperature suits logs whose values differ much or little, and actions of few tokens or many.
    """

    q_spread: Tensor
    """In [0, 1]; training keeps it up to date (`backup.action_spread`)."""

    def __init__(
        self, model: QTransformer, tokenizer: ActionTokenizer, support_threshold: float, support_temperature: float
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.support_threshold, self.support_temperature = support_threshold, support_temperature
        self.register_buffer("q_spread", torch.ones(()))

    def forward(self, observations: Mapping[str, Tensor], num_frames: Int[Tensor, " batch"]) -> PolicyOutputs:
        """Decides on `observations`, each (batch, window, *shape), oldest first, the first `num_frames` real."""
        return self.decide(self.model.encoder(observations), num_frames, *observations.values())

    def decide(
        self, observation_tokens: Float[Tensor, "batch window slots width"], num_frames: Tensor, *inputs: Tensor
    ) -> PolicyOutputs:
        """Decides on what the encoder made of a window; `ok` looks at `inputs`, too, which stand behind it."""
        features = self.model.newest(observation_tokens, num_frames)
        tokens, outputs = self.model.greedy_from(features, self.choose)
        q_values = outputs.q_values
        q_max = values_at(q_values, tokens)
        return PolicyOutputs(
            actions=self.tokenizer.decode(tokens),
            tokens=tokens,
            q_max=q_max,
            q_gap=q_max - q_values.mean(dim=-1),
            ok=_are_finite(outputs.q_logits, outputs.density_logits, *inputs),
        )

    def choose(self, outputs: TokenOutputs) -> Int[Tensor, "*batch"]:
        """Returns the greedy bin of each token."""
        return median_bins(self.probabilities(outputs))

    def values(self, outputs: TokenOutputs) -> Float[Tensor, "*batch"]:
        """Returns the value of the policy at each token: what stands for the maximum in eq. 1."""
        return (self.probabilities(outputs) * outputs.q_values).sum(dim=-1)

    def probabilities(self, outputs: TokenOutputs) -> Float[Tensor, "*batch bins"]:
        """Returns the probability of each bin of each token."""
        q_values = outputs.q_values / self.q_spread.clamp_min(_LEAST_SPREAD)
        return policy_probabilities(q_values, outputs.density_logits, self.support_threshold, self.support_temperature)


def build_policy(
    config: TrainConfig,
    spec: DatasetSpec,
    statistics: Statistics,
    action_centres: Sequence[Sequence[float]] | None = None,
) -> GreedyPolicy:
    """Returns an untrained policy for the observations and actions of `spec`; quantile bins need `action_centres`."""
    tokenizer = ActionTokenizer(spec.actions, config.tokens, action_centres)
    is_conditioned = config.algorithm == "decision_transformer"
    encoder_class = ReturnConditionedEncoder if is_conditioned else ObservationEncoder
    encoder = encoder_class(spec.observations, statistics, config.model)
    has_value_head = config.algorithm == "implicit_q_learning"
    model = QTransformer(encoder, tokenizer, config.model, has_value_head)
    if config.algorithm in ACT_BY_DENSITY:
        return GreedyPolicy(model, tokenizer, support_threshold=0.0, support_temperature=math.inf)
    return GreedyPolicy(model, tokenizer, config.learning.support_threshold, config.learning.support_temperature)


def _are_finite(*arrays: Shaped[Tensor, "batch ..."]) -> Bool[Tensor, " batch"]:
    """Returns which rows hold neither NaN nor infinity in any of the arrays; the bytes of images cannot."""
    floats = [each for each in arrays if each.is_floating_point()]
    return torch.stack([each.flatten(1).isfinite().all(dim=1) for each in floats]).all(dim=0)


class CheckpointPolicy:
    """A greedy policy with the history of several running episodes (the `Policy` of `evaluation`)."""

    def __init__(self, policy: GreedyPolicy, encode_text: Callable[[Any], np.ndarray] | None = None) -> None:
        """Acts by `policy`; observations that are text need `encode_text`."""
        self._policy, self._encode_text = policy.eval(), encode_text
        self._window = policy.model.window
        self._history: dict[int, list[Tensor]] = {}  # what the encoder made of each frame, (slots, width)
        self._q_values: dict[int, float] = {}

    def reset(self, slot: int) -> None:
        """Forgets the history of `slot`."""
        self._history[slot] = []

    @torch.inference_mode()
    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns one action a slot, (len(slots), action_dim).

        Raises:
            RunError: an observation is not like those of the log, or not finite.
        """
        frames = [self._checked(observation) for observation in observations]
        blocks = [slice(first, first + _ROWS) for first in range(0, len(slots), _ROWS)]
        return np.concatenate([self._act_block(slots[block], frames[block]) for block in blocks])

    def q_value(self, slot: int) -> float:
        """Returns Q in (0, 1) of the last action of `slot`: that of its last token, which knows all the others."""
        return self._q_values[slot]

    def _checked(self, observation: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """Returns a copy of the observation, since an environment may write the next one into the same arrays."""
        encoder = self._policy.model.encoder
        frame = {
            key: self._encode_text(value)
            if self._encode_text and key in encoder.text_keys
            else np.array(value, ndmin=1)
            for key, value in observation.items()
        }
        expected, found = encoder.shapes, {key: value.shape for key, value in frame.items()}
        if found != expected:
            raise RunError(
                f"observation must have the keys and shapes {expected} of the log, got {found}; "
                "play in an environment like that of the log"
            )
        wrong = {key: str(frame[key].dtype) for key in encoder.image_keys if frame[key].dtype != np.uint8}
        if wrong:
            raise RunError(f"images must be uint8, 0 to 255, as in the log, got {wrong}; convert them")
        return frame

    def _act_block(self, slots: Sequence[int], frames: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Encodes the newest frames alone, and decides on them with those before."""
        device, encoder = self._policy.tokenizer.low.device, self._policy.model.encoder
        rows = [*frames, *[frames[0]] * (_ROWS - len(frames))]  # filled up to a whole block
        newest = {key: torch.from_numpy(np.stack([row[key] for row in rows])).to(device) for key in encoder.keys}
        encoded = encoder({key: value.unsqueeze(1) for key, value in newest.items()}).squeeze(1)
        for slot, tokens in zip(slots, encoded, strict=False):
            self._history[slot] = [*self._history[slot], tokens][-self._window :]
        histories = [self._history[slot] for slot in slots]
        histories += [histories[0]] * (_ROWS - len(frames))
        padded = [torch.stack([*each, *[each[-1]] * (self._window - len(each))]) for each in histories]
        num_frames = torch.tensor([len(each) for each in histories], device=device)
        outputs = self._policy.decide(torch.stack(padded), num_frames, *newest.values())
        if not outputs.ok.all():
            raise RunError("an observation or the network's output is not finite; look for a diverged simulation")
        self._q_values.update(zip(slots, outputs.q_max[: len(slots), -1].tolist(), strict=True))
        return outputs.actions[: len(slots)].cpu().numpy()
