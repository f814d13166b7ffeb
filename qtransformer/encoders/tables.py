"""Reading a table of rows that are alike (objects on a desk, say) with a question that the rest of the step asks.

Special about this file: attention finds which row matters, whatever its place, so that objects may come in any order
and words can say which is meant. `WordReader` is asked by the words alone, and can be taught without a label what they
mean: an instruction speaks of rows of its own table, and often of none in another episode's. It must not know what the
rows are.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_HEADS = 4  # rows that a step can look at, at once
_NAMED = 2  # rows that words can name, at once: the red can, near the blue cube
_WAVES = (1.0, 2.0, 4.0)  # half waves a standard deviation


class TableReader(nn.Module):
    """What some heads of attention find in a table."""

    def __init__(self, shape: tuple[int, ...], num_context: int, width: int) -> None:
        """For tables of `shape`, (rows, columns); the question is asked by `num_context` numbers and all rows."""
        super().__init__()
        num_rows, num_columns = shape
        self.head_width = width // 2
        self.num_features = _HEADS * self.head_width
        self.rows = nn.Sequential(nn.Linear(num_columns, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.places = nn.Parameter(torch.randn(num_rows, width) * 0.02)  # for tables whose order says something
        hidden = nn.Linear(num_context + width, 2 * width)
        self.queries = nn.Sequential(hidden, nn.GELU(), nn.Linear(2 * width, self.num_features))
        self.keys_values = nn.Linear(width, 2 * self.num_features)

    def forward(
        self, table: Float[Tensor, "*batch rows columns"], context: Float[Tensor, "*batch context"]
    ) -> Float[Tensor, "*batch features"]:
        """Returns what was found."""
        rows = self.rows(table) + self.places
        queries = self.queries(torch.cat([context, rows.mean(dim=-2)], dim=-1)).unflatten(-1, (_HEADS, 1, -1))
        keys, values = self.keys_values(rows).unflatten(-1, (2, _HEADS, -1)).unbind(-3)
        scores = queries @ keys.movedim(-3, -1) * self.head_width**-0.5
        return (scores.softmax(dim=-1) @ values.transpose(-2, -3)).flatten(-3)


class WordReader(nn.Module):
    """The rows of a table that an instruction names."""

    def __init__(self, num_columns: int, num_words: int, width: int) -> None:
        """For rows of `num_columns`; instructions come as `num_words` numbers."""
        super().__init__()
        self.head_width = width // 2
        self.num_features = _NAMED * (self.head_width + num_columns * (1 + 2 * len(_WAVES)))
        num_asked = _NAMED * self.head_width
        self.rows = nn.Sequential(nn.Linear(num_columns, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.queries = nn.Sequential(nn.Linear(num_words, 2 * width), nn.GELU(), nn.Linear(2 * width, num_asked))
        self.keys_values = nn.Linear(width, 2 * num_asked)

    def forward(
        self, table: Float[Tensor, "*batch rows columns"], words: Float[Tensor, "*batch words"]
    ) -> Float[Tensor, "*batch features"]:
        """Returns what the rows that are named say, and these rows as they are and as waves of several lengths.

        A grasp needs centimetres, and a network learns what changes within a tenth of a standard deviation late unless
        it is shown waves as short (Fourier features, arXiv 2006.10739; for tables of numbers arXiv 2203.05556).
        """
        queries, keys, values = self._asked(table, words)
        shares = torch.einsum("...hd,...rhd->...rh", queries, keys).softmax(dim=-2)
        found = torch.einsum("...rh,...rhd->...hd", shares, values)
        named = torch.einsum("...rh,...rc->...hc", shares, table)
        angles = torch.cat([math.pi * each * named for each in _WAVES], dim=-1)
        return torch.cat([found, named, angles.sin(), angles.cos()], dim=-1).flatten(-2)

    def grounding_loss(
        self, tables: Float[Tensor, "batch rows columns"], words: Float[Tensor, "batch words"]
    ) -> Float[Tensor, ""]:
        """Returns how badly words and tables find each other among those of the batch.

        InfoNCE in both directions (arXiv 1807.03748, 2103.00020); words and a table match as the best row does.
        """
        queries, keys, _ = self._asked(tables, words)
        matches = torch.einsum("ihd,jrhd->ijrh", queries, keys).logsumexp(dim=2).sum(dim=-1)
        own = torch.arange(len(words), device=words.device)
        return (functional.cross_entropy(matches, own) + functional.cross_entropy(matches.T, own)) / 2

    def _asked(self, tables: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.keys_values(self.rows(tables)).unflatten(-1, (2, _NAMED, -1)).unbind(-3)
        return self.queries(words).unflatten(-1, (_NAMED, -1)) * self.head_width**-0.5, keys, values
