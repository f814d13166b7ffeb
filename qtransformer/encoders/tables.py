"""Reading a table of rows that are alike (objects on a desk, say) with a question that the rest of the step asks.

Special about this file: attention finds which row matters, whatever its place, so that objects may come in any order
and words can say which is meant. It must not know what the rows are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_HEADS = 4  # rows that a step can look at, at once


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
