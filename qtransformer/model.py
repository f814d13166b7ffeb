"""The Transformer: observations and action tokens in, one value and one density a bin out.

Two stacks, since an observation is read once and an action token by token. The *trunk* is deep: the observation tokens
of step k see those of steps <= k. The *decoder* is shallow: action tokens start from the trunk's features of their own
step, which hold its history, and see the action tokens before them. The outputs for action token i are read at the
token before it, so that one pass gives the Q-values of every action token of every step:

    trunk       o_0 ─▶ ... ─▶ o_k               one sequence a segment
                               ▼
    decoder     features of o_k    a_k^1    a_k^2   ...  a_k^{n-1}      one sequence a step
    outputs             Q^1        Q^2      Q^3     ...  Q^n

It must not know rewards, targets or losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qtransformer.blocks import Block, KeysValues, TokenHead, causal_mask, prefix_mask
from qtransformer.config import ModelConfig
from qtransformer.encoders.observations import ObservationEncoder
from qtransformer.hl_gauss import SPREAD, hl_gauss_edges, hl_gauss_labels, hl_gauss_values
from qtransformer.tokens import ActionTokenizer

_INITIAL_Q = 0.05  # values start near the floor and are pulled up by data, not down
_INITIAL_Q_LOGIT = math.log(_INITIAL_Q / (1 - _INITIAL_Q))
_LEAST_LOGIT = -10.0  # of an atom that starts empty


class TokenOutputs(NamedTuple):
    """What the model says of each bin of an action token."""

    q_logits: Float[Tensor, "*batch"]
    """(*batch, bins): the value is their sigmoid. Or (*batch, bins, atoms): it is the mean of their distribution."""
    density_logits: Float[Tensor, "*batch bins"]
    """Their softmax is the density of the actions to imitate."""

    @property
    def q_values(self) -> Float[Tensor, "*batch bins"]:
        """Q in [0, 1]."""
        if self.q_logits.ndim == self.density_logits.ndim:
            return self.q_logits.sigmoid()
        edges = hl_gauss_edges(self.q_logits.shape[-1]).to(self.q_logits)
        return hl_gauss_values(self.q_logits, edges).clamp(0.0, 1.0)


Chooser = Callable[[TokenOutputs], Int[Tensor, " batch"]]
Observations = Mapping[str, Tensor] | Tensor
"""By key, each (batch, time, *shape). Or what the encoder made of them, (batch, time, slots, width): it is the dearest
part where there are images, and a frame stands in several windows."""


class GreedyAction(NamedTuple):
    """A decoded action."""

    tokens: Int[Tensor, "batch tokens"]
    outputs: TokenOutputs
    """What each token was chosen from, (batch, tokens, bins)."""


class QTransformer(nn.Module):
    """Q(s_{t-w:t}, a_t^{1:i-1}, a_t^i) for every bin of every action token."""

    trunk_mask: Tensor
    decoder_mask: Tensor

    def __init__(
        self, encoder: ObservationEncoder, tokenizer: ActionTokenizer, config: ModelConfig, has_value_head: bool = False
    ) -> None:
        super().__init__()
        W, N, K, M = config.width, tokenizer.num_action_tokens, tokenizer.num_bins, encoder.num_tokens
        self.encoder, self.window = encoder, config.window
        self.num_observation_tokens, self.num_action_tokens = M, N
        self.step_embedding = nn.Parameter(torch.randn(config.window, 1, W) * 0.02)
        self.observation_embedding = nn.Parameter(torch.randn(M, W) * 0.02)
        self.trunk = nn.ModuleList(Block(W, config.num_heads) for _ in range(config.num_layers))
        self.action_embedding = nn.Parameter(torch.randn(N - 1, K, W) * 0.02)
        self.slot_embedding = nn.Parameter(torch.randn(N - 1, W) * 0.02)
        self.decoder = nn.ModuleList(Block(W, config.num_heads) for _ in range(config.num_action_layers))
        self.norm = nn.LayerNorm(W)
        self.num_atoms = config.num_atoms
        self.is_bfloat16 = False  # of the matrix products: set by who trains, never where the policy acts
        self.recomputes = False  # the inside of each block on the way back, for its memory: set by who trains
        self.q_head = TokenHead(N, W, K * config.num_atoms, bias=_INITIAL_Q_LOGIT)
        if config.num_atoms > 1:
            edges = hl_gauss_edges(config.num_atoms)
            atoms = hl_gauss_labels(torch.tensor(_INITIAL_Q), edges, SPREAD * (edges[1] - edges[0]).item())
            self.q_head.bias.data.copy_(atoms.log().clamp_min(_LEAST_LOGIT).repeat(K))
        self.density_head = TokenHead(N, W, K)
        self.value_head = TokenHead(1, W, 1, bias=_INITIAL_Q_LOGIT) if has_value_head else None
        self.register_buffer("trunk_mask", causal_mask(config.window, M), persistent=False)
        self.register_buffer("decoder_mask", prefix_mask(M, N - 1), persistent=False)

    def forward(self, observations: Observations, action_tokens: Int[Tensor, "batch time tokens"]) -> TokenOutputs:
        """Returns outputs (batch, time, tokens, bins) for the logged tokens, in one pass over the whole segment."""
        slots = torch.arange(self.num_action_tokens - 1, device=action_tokens.device)
        features = self.features(observations)
        actions = self.action_embedding[slots, action_tokens[..., :-1]] + self.slot_embedding + features[:, :, -1:]
        x = torch.cat([features, actions], dim=2)
        B, T, S, W = x.shape
        x = x.view(B * T, S, W)
        with self._products(x):
            x = self._through(self.decoder, x, self.decoder_mask)
            x = self.norm(x).view(B, T, S, W)[:, :, self.num_observation_tokens - 1 :]
            return self._token_outputs(self.q_head(x), self.density_head(x))

    def first_token_outputs(self, observations: Observations) -> TokenOutputs:
        """Returns outputs (batch, time, bins) of the first action token of each step; observation tokens alone."""
        features = self.features(observations)
        x, _ = self._start(features.flatten(0, 1))
        return self._outputs(x.view(*features.shape[:2], -1), 0)

    def state_values(self, observations: Observations) -> Float[Tensor, "batch time"]:
        """Returns V(s) in (0, 1) of each step from the observation tokens alone; needs the value head."""
        assert self.value_head is not None
        features = self.features(observations)
        x, _ = self._start(features.flatten(0, 1))
        return self.value_head.slot(x, 0).sigmoid().view(features.shape[:2])

    def greedy(self, observations: Observations, num_frames: Int[Tensor, " batch"], choose: Chooser) -> GreedyAction:
        """Decodes an action token by token with a key/value cache; `choose` picks a bin from a token's outputs.

        `observations` hold `window` frames, oldest first, of which the first `num_frames` are real. The rest is padding
        that no token looks at: the newest observation is frame `num_frames - 1`.
        """
        return self.greedy_from(self.newest(self._encoded(observations), num_frames), choose)

    def newest(
        self, tokens: Float[Tensor, "batch window slots width"], num_frames: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch slots width"]:
        """Returns the trunk's features of frame `num_frames - 1` from what the encoder made of the window."""
        features = self._trunk_features(tokens)
        return features[torch.arange(len(num_frames), device=num_frames.device), num_frames - 1]

    def greedy_from(self, features: Float[Tensor, "batch slots width"], choose: Chooser) -> GreedyAction:
        """Decodes the action of the step that `features` are of."""
        x, cache = self._start(features)
        outputs = [self._outputs(x, 0)]
        tokens = [choose(outputs[0])]
        for slot in range(self.num_action_tokens - 1):
            x = F.embedding(tokens[-1], self.action_embedding[slot]) + self.slot_embedding[slot] + features[:, -1]
            x = x.unsqueeze(1)
            with self._products(x):
                for index, block in enumerate(self.decoder):
                    x, cache[index] = block(x, None, cache[index])
            outputs.append(self._outputs(self.norm(x.squeeze(1)), slot + 1))
            tokens.append(choose(outputs[-1]))
        joined = (torch.cat(each, dim=1).unflatten(1, (len(tokens), -1)) for each in zip(*outputs, strict=True))
        return GreedyAction(torch.stack(tokens, dim=1), TokenOutputs(*joined))

    def features(self, observations: Observations) -> Float[Tensor, "batch time slots width"]:
        """Returns what the trunk makes of the observation tokens of each step and those before it."""
        return self._trunk_features(self._encoded(observations))

    def _encoded(self, observations: Observations) -> Float[Tensor, "batch time slots width"]:
        return observations if isinstance(observations, Tensor) else self.encoder(observations)

    def _trunk_features(
        self, tokens: Float[Tensor, "batch time slots width"]
    ) -> Float[Tensor, "batch time slots width"]:
        B, T, M, W = tokens.shape
        x = (tokens + self.step_embedding[:T] + self.observation_embedding).view(B, T * M, W)
        with self._products(x):
            x = self._through(self.trunk, x, self.trunk_mask[: T * M, : T * M])
        return x.view(B, T, M, W)

    def _through(self, blocks: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
        for block in blocks:
            is_inside_forgotten = self.recomputes and torch.is_grad_enabled()
            x, _ = checkpoint(block, x, mask, use_reentrant=False) if is_inside_forgotten else block(x, mask)
        return x

    def _start(
        self, features: Float[Tensor, "batch slots width"]
    ) -> tuple[Float[Tensor, "batch width"], list[KeysValues]]:
        """Decodes the observation tokens of a step; returns the last one's features, and what later tokens look at."""
        x, cache = features, []
        with self._products(x):
            for block in self.decoder:
                x, keys_values = block(x, None)
                cache.append(keys_values)
            return self.norm(x[:, -1]), cache

    def _outputs(self, x: Float[Tensor, "*batch width"], slot: int) -> TokenOutputs:
        return self._token_outputs(self.q_head.slot(x, slot), self.density_head.slot(x, slot))

    def _token_outputs(self, q_logits: Tensor, density_logits: Tensor) -> TokenOutputs:
        q_logits = q_logits if self.num_atoms == 1 else q_logits.unflatten(-1, (-1, self.num_atoms))
        return TokenOutputs(q_logits.float(), density_logits.float())

    def _products(self, x: Tensor) -> AbstractContextManager[object]:
        """Returns the context in which the blocks' matrix products have the precision of the training."""
        return torch.autocast(x.device.type, torch.bfloat16) if self.is_bfloat16 else nullcontext()
