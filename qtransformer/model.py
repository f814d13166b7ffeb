"""The Transformer: observations and action tokens in, one value and one density a bin out.

Token layout of a segment, for each step k: `[observation tokens of k][action tokens 1 .. n-1 of k]`. An observation
token sees the observation tokens of steps <= k. An action token sees those and the earlier action tokens of its own
step, never another step's actions. The outputs for action token i are read at the token before it, so that one pass
gives the Q-values of every action token of every step:

    position   o_k      a_k^1    a_k^2   ...  a_k^{n-1}
    outputs    Q^1      Q^2      Q^3     ...  Q^n

It must not know rewards, targets or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qtransformer.config import ModelConfig
from qtransformer.encoders.state import StateEncoder
from qtransformer.tokens import ActionTokenizer

KeysValues = tuple[Tensor, Tensor]
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


class Block(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Returns the new features (B, L, width) and the keys and values of `past` and `x` together.

        `mask` broadcasts to (B, heads, L, past + L): True where a query may look.
        """
        B, L, W = x.shape
        joined = self.queries_keys_values(self.attention_norm(x)).view(B, L, 3, self.num_heads, -1)
        queries, keys, values = joined.permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x = x + self.project(attended.transpose(1, 2).reshape(B, L, W))
        return x + self.mlp(self.mlp_norm(x)), (keys, values)


class TokenHead(nn.Module):
    """One linear map a token slot: features (..., slots, width) to bins (..., slots, bins)."""

    def __init__(self, num_slots: int, width: int, num_bins: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_slots, width, num_bins) * 0.02)
        self.bias = nn.Parameter(torch.full((num_slots, num_bins), bias))

    def forward(self, x: Float[Tensor, "batch time slots width"]) -> Float[Tensor, "batch time slots bins"]:
        """Applies slot i's map to feature i."""
        B, T, N, W = x.shape
        y = torch.baddbmm(self.bias.unsqueeze(1), x.reshape(B * T, N, W).transpose(0, 1), self.weight)
        return y.transpose(0, 1).reshape(B, T, N, -1)

    def slot(self, x: Float[Tensor, "*batch width"], index: int) -> Float[Tensor, "*batch bins"]:
        """Applies the map of slot `index` alone."""
        return x @ self.weight[index] + self.bias[index]


class QTransformer(nn.Module):
    """Q(s_{t-w:t}, a_t^{1:i-1}, a_t^i) for every bin of every action token."""

    mask: Tensor
    observation_mask: Tensor

    def __init__(self, encoder: StateEncoder, tokenizer: ActionTokenizer, config: ModelConfig) -> None:
        super().__init__()
        W, N, K = config.width, tokenizer.num_action_tokens, tokenizer.num_bins
        self.encoder, self.window = encoder, config.window
        self.num_observation_tokens, self.num_action_tokens = encoder.num_tokens, N
        self.num_slots = self.num_observation_tokens + N - 1
        self.action_embedding = nn.Parameter(torch.randn(N - 1, K, W) * 0.02)
        self.step_embedding = nn.Parameter(torch.randn(config.window, 1, W) * 0.02)
        self.slot_embedding = nn.Parameter(torch.randn(self.num_slots, W) * 0.02)
        self.blocks = nn.ModuleList(Block(W, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(W)
        self.q_head = TokenHead(N, W, K, bias=_INITIAL_Q_LOGIT)
        self.density_head = TokenHead(N, W, K)
        self.register_buffer("mask", segment_mask(config.window, encoder.num_tokens, N), persistent=False)
        self.register_buffer("observation_mask", segment_mask(config.window, encoder.num_tokens, 1), persistent=False)

    def forward(
        self, observations: Mapping[str, Tensor], action_tokens: Int[Tensor, "batch time tokens"]
    ) -> TokenOutputs:
        """Returns outputs (batch, time, tokens, bins) for the logged tokens, in one pass over the whole segment."""
        x = torch.cat([self._embed_observations(observations), self._embed_actions(action_tokens)], dim=2)
        B, T, S, W = x.shape
        x = x.reshape(B, T * S, W)
        for block in self.blocks:
            x, _ = block(x, self.mask[: T * S, : T * S])
        x = self.norm(x).view(B, T, S, W)[:, :, self.num_observation_tokens - 1 :]
        return TokenOutputs(self.q_head(x), self.density_head(x))

    def first_token_outputs(self, observations: Mapping[str, Tensor]) -> TokenOutputs:
        """Returns outputs (batch, time, bins) of the first action token of each step; observation tokens alone."""
        x, _ = self._prefill(observations)
        return self._slot_outputs(x[:, :, -1], 0)

    def greedy(
        self, observations: Mapping[str, Tensor], num_frames: Int[Tensor, " batch"], choose: Chooser
    ) -> GreedyAction:
        """Decodes an action token by token with a key/value cache; `choose` picks a bin from a token's outputs.

        `observations` hold `window` frames, oldest first, of which the first `num_frames` are real. The rest is padding
        that no token looks at: the newest observation is frame `num_frames - 1`.
        """
        x, cache = self._prefill(observations)
        B, T, M, _ = x.shape
        newest = num_frames - 1
        frame_is_real = torch.arange(T, device=x.device) < num_frames[:, None]
        is_visible = frame_is_real.repeat_interleave(M, dim=1)[:, None, None, :]
        outputs = [self._slot_outputs(x[torch.arange(B, device=x.device), newest, -1], 0)]
        tokens = [choose(outputs[0])]
        for slot in range(self.num_action_tokens - 1):
            is_visible = F.pad(is_visible, (0, 1), value=True)
            x = self.action_embedding[slot][tokens[-1]] + self.slot_embedding[M + slot] + self.step_embedding[newest, 0]
            x, cache = self._decode(x, is_visible, cache)
            outputs.append(self._slot_outputs(x, slot + 1))
            tokens.append(choose(outputs[-1]))
        stacked = TokenOutputs(*(torch.stack(each, dim=1) for each in zip(*outputs, strict=True)))
        return GreedyAction(torch.stack(tokens, dim=1), stacked)

    def _prefill(self, observations: Mapping[str, Tensor]) -> tuple[Tensor, list[KeysValues]]:
        """Returns features (batch, time, slots, width) of the observation tokens, and what later tokens look at."""
        x = self._embed_observations(observations)
        B, T, M, W = x.shape
        x, cache = x.reshape(B, T * M, W), []
        for block in self.blocks:
            x, keys_values = block(x, self.observation_mask[: T * M, : T * M])
            cache.append(keys_values)
        return self.norm(x).view(B, T, M, W), cache

    def _decode(
        self, x: Float[Tensor, "batch width"], is_visible: Tensor, cache: list[KeysValues]
    ) -> tuple[Float[Tensor, "batch width"], list[KeysValues]]:
        """Runs one token of each row on the cache; returns its features and the longer cache."""
        x, longer = x.unsqueeze(1), []
        for block, past in zip(self.blocks, cache, strict=True):
            x, keys_values = block(x, is_visible, past)
            longer.append(keys_values)
        return self.norm(x).squeeze(1), longer

    def _embed_observations(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time slots width"]:
        x = self.encoder(observations)
        return x + self.step_embedding[: x.shape[1]] + self.slot_embedding[: self.num_observation_tokens]

    def _embed_actions(self, tokens: Int[Tensor, "batch time tokens"]) -> Float[Tensor, "batch time slots width"]:
        slots = torch.arange(self.num_action_tokens - 1, device=tokens.device)
        x = self.action_embedding[slots, tokens[..., :-1]]
        return x + self.step_embedding[: x.shape[1]] + self.slot_embedding[self.num_observation_tokens :]

    def _slot_outputs(self, x: Float[Tensor, "*batch width"], slot: int) -> TokenOutputs:
        return TokenOutputs(self.q_head.slot(x, slot), self.density_head.slot(x, slot))


def segment_mask(num_steps: int, num_observation_tokens: int, num_action_tokens: int) -> Bool[Tensor, "length length"]:
    """Returns which token (row) may look at which (column) in a segment of `num_steps` steps (module docstring)."""
    slots = num_observation_tokens + num_action_tokens - 1
    step = torch.arange(num_steps).repeat_interleave(slots)
    slot = torch.arange(slots).repeat(num_steps)
    is_observation = slot < num_observation_tokens
    past_observation = is_observation[None, :] & (step[None, :] <= step[:, None])
    own_action = (step[None, :] == step[:, None]) & (slot[None, :] <= slot[:, None])
    return past_observation | own_action
