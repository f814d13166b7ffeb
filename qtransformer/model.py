"""The Transformer: observations and action tokens in, one value and one density a bin out.

Two stacks, since an observation is read once and an action token by token. The *trunk* is deep: the observation tokens
of step k see those of steps <= k. The *decoder* is shallow: action tokens see the trunk's features of their own step,
which hold its history, and the action tokens before them. The outputs for action token i are read at the token before
it, so that one pass gives the Q-values of every action token of every step:

    trunk       o_0 ─▶ ... ─▶ o_k               one sequence a segment
                               ▼
    decoder     features of o_k    a_k^1    a_k^2   ...  a_k^{n-1}      one sequence a step
    outputs             Q^1        Q^2      Q^3     ...  Q^n

It must not know rewards, targets or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qtransformer.blocks import Block, KeysValues, TokenHead, causal_mask, prefix_mask
from qtransformer.config import ModelConfig
from qtransformer.encoders.state import StateEncoder
from qtransformer.tokens import ActionTokenizer

_INITIAL_Q_LOGIT = -3.0  # Q = 0.05: values start near the floor and are pulled up by data, not down


class TokenOutputs(NamedTuple):
    """What the model says of each bin of an action token."""

    q_logits: Float[Tensor, "*batch bins"]
    """The value is their sigmoid."""
    density_logits: Float[Tensor, "*batch bins"]
    """Their softmax is the density of the actions to imitate."""

    @property
    def q_values(self) -> Float[Tensor, "*batch bins"]:
        """Q in (0, 1)."""
        return self.q_logits.sigmoid()


Chooser = Callable[[TokenOutputs], Int[Tensor, " batch"]]


class GreedyAction(NamedTuple):
    """A decoded action."""

    tokens: Int[Tensor, "batch tokens"]
    outputs: TokenOutputs
    """What each token was chosen from, (batch, tokens, bins)."""


class QTransformer(nn.Module):
    """Q(s_{t-w:t}, a_t^{1:i-1}, a_t^i) for every bin of every action token."""

    trunk_mask: Tensor
    decoder_mask: Tensor

    def __init__(self, encoder: StateEncoder, tokenizer: ActionTokenizer, config: ModelConfig) -> None:
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
        self.q_head = TokenHead(N, W, K, bias=_INITIAL_Q_LOGIT)
        self.density_head = TokenHead(N, W, K)
        self.register_buffer("trunk_mask", causal_mask(config.window, M), persistent=False)
        self.register_buffer("decoder_mask", prefix_mask(M, N - 1), persistent=False)

    def forward(
        self, observations: Mapping[str, Tensor], action_tokens: Int[Tensor, "batch time tokens"]
    ) -> TokenOutputs:
        """Returns outputs (batch, time, tokens, bins) for the logged tokens, in one pass over the whole segment."""
        slots = torch.arange(self.num_action_tokens - 1, device=action_tokens.device)
        actions = self.action_embedding[slots, action_tokens[..., :-1]] + self.slot_embedding
        x = torch.cat([self.features(observations), actions], dim=2)
        B, T, S, W = x.shape
        x = x.view(B * T, S, W)
        for block in self.decoder:
            x, _ = block(x, self.decoder_mask)
        x = self.norm(x).view(B, T, S, W)[:, :, self.num_observation_tokens - 1 :]
        return TokenOutputs(self.q_head(x), self.density_head(x))

    def first_token_outputs(self, observations: Mapping[str, Tensor]) -> TokenOutputs:
        """Returns outputs (batch, time, bins) of the first action token of each step; observation tokens alone."""
        features = self.features(observations)
        x, _ = self._start(features.flatten(0, 1))
        return self._outputs(x.view(*features.shape[:2], -1), 0)

    def greedy(
        self, observations: Mapping[str, Tensor], num_frames: Int[Tensor, " batch"], choose: Chooser
    ) -> GreedyAction:
        """Decodes an action token by token with a key/value cache; `choose` picks a bin from a token's outputs.

        `observations` hold `window` frames, oldest first, of which the first `num_frames` are real. The rest is padding
        that no token looks at: the newest observation is frame `num_frames - 1`.
        """
        features = self.features(observations)
        newest = features[torch.arange(len(num_frames), device=num_frames.device), num_frames - 1]
        return self.greedy_from(newest, choose)

    def greedy_from(self, features: Float[Tensor, "batch slots width"], choose: Chooser) -> GreedyAction:
        """Decodes the action of the step that `features` are of."""
        x, cache = self._start(features)
        outputs = [self._outputs(x, 0)]
        tokens = [choose(outputs[0])]
        for slot in range(self.num_action_tokens - 1):
            x = (self.action_embedding[slot][tokens[-1]] + self.slot_embedding[slot]).unsqueeze(1)
            for index, block in enumerate(self.decoder):
                x, cache[index] = block(x, None, cache[index])
            outputs.append(self._outputs(self.norm(x).squeeze(1), slot + 1))
            tokens.append(choose(outputs[-1]))
        stacked = TokenOutputs(*(torch.stack(each, dim=1) for each in zip(*outputs, strict=True)))
        return GreedyAction(torch.stack(tokens, dim=1), stacked)

    def features(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time slots width"]:
        """Returns what the trunk makes of the observation tokens of each step and those before it."""
        x = self.encoder(observations)
        B, T, M, W = x.shape
        x = (x + self.step_embedding[:T] + self.observation_embedding).view(B, T * M, W)
        for block in self.trunk:
            x, _ = block(x, self.trunk_mask[: T * M, : T * M])
        return x.view(B, T, M, W)

    def _start(
        self, features: Float[Tensor, "batch slots width"]
    ) -> tuple[Float[Tensor, "batch width"], list[KeysValues]]:
        """Decodes the observation tokens of a step; returns the last one's features, and what later tokens look at."""
        x, cache = features, []
        for block in self.decoder:
            x, keys_values = block(x, None)
            cache.append(keys_values)
        return self.norm(x[:, -1]), cache

    def _outputs(self, x: Float[Tensor, "*batch width"], slot: int) -> TokenOutputs:
        return TokenOutputs(self.q_head.slot(x, slot), self.density_head.slot(x, slot))
