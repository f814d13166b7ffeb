"""Parts of a Transformer: a pre-norm block that can go on from a key/value cache, and one linear head a token slot.

It must not know observations, actions or values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "length total"] | None,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], KeysValues]:
        """Returns the new features and the keys and values of `past` and `x` together.

        `mask` is True where a token of `x` may look; None lets each look at all.
        """
        B, L, W = x.shape
        rows = x.reshape(B * L, W)  # so that a product with its bias is one node in an exported graph
        joined = self.queries_keys_values(self.attention_norm(rows)).view(B, L, 3 * self.num_heads, -1)
        queries, keys, values = joined.transpose(1, 2).chunk(3, dim=1)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        rows = rows + self.project(attended.transpose(1, 2).reshape(B * L, W))
        return (rows + self.mlp(self.mlp_norm(rows))).view(B, L, W), (keys, values)


class TokenHead(nn.Module):
    """One linear map a token slot: features (..., slots, width) to outputs (..., slots, outputs)."""

    def __init__(self, num_slots: int, width: int, num_outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_slots, width, num_outputs) * 0.02)
        self.bias = nn.Parameter(torch.full((num_slots, num_outputs), bias))

    def forward(self, x: Float[Tensor, "batch time slots width"]) -> Float[Tensor, "batch time slots outputs"]:
        """Applies slot i's map to feature i."""
        B, T, N, W = x.shape
        y = torch.baddbmm(self.bias.unsqueeze(1), x.reshape(B * T, N, W).transpose(0, 1), self.weight)
        return y.transpose(0, 1).reshape(B, T, N, -1)

    def slot(self, x: Float[Tensor, "*batch width"], index: int) -> Float[Tensor, "*batch outputs"]:
        """Applies the map of slot `index` alone."""
        return x @ self.weight[index] + self.bias[index]


def causal_mask(num_steps: int, num_slots: int) -> Bool[Tensor, "length length"]:
    """Returns the mask of `num_steps` steps of `num_slots` tokens: a token looks at its own step and earlier ones."""
    step = torch.arange(num_steps).repeat_interleave(num_slots)
    return step[None, :] <= step[:, None]


def prefix_mask(num_prefix: int, num_tokens: int) -> Bool[Tensor, "length length"]:
    """Returns the mask of a sequence whose first `num_prefix` tokens see each other, each later one all before it."""
    slot = torch.arange(num_prefix + num_tokens)
    return (slot[None, :] < num_prefix) | (slot[None, :] <= slot[:, None])
