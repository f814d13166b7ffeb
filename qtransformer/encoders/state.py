"""What a robot senses and is told to one observation token: vectors, tables and instructions, standardised and joined.

An observation of two axes is a table, read by attention (see tables.py); one of any other shape is a vector. Text comes
as the vector that the command line's encoder made of it. It must not know words, images or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qtransformer.batch import ObservationSpec
from qtransformer.encoders.tables import TableReader, WordReader
from qtransformer.normalization import Standardizer

Statistics = Mapping[str, Mapping[str, list[float]]]  # key -> "mean" and "std" -> one number an element

_TABLE_AXES = 2


class StateEncoder(nn.Module):
    """One token a step from all keys together."""

    num_tokens = 1

    def __init__(self, specs: tuple[ObservationSpec, ...], statistics: Statistics, width: int) -> None:
        super().__init__()
        self.keys = tuple(spec.name for spec in specs)
        self.text_keys = tuple(spec.name for spec in specs if spec.kind == "text")
        self.shapes = {spec.name: _shape(spec, statistics) for spec in specs}
        self.standardizers = nn.ModuleList(
            Standardizer(statistics[key]["mean"], statistics[key]["std"]) for key in self.keys
        )
        self.tables = tuple(key for key in self.keys if len(self.shapes[key]) == _TABLE_AXES)
        num_context = sum(len(statistics[key]["mean"]) for key in self.keys if key not in self.tables)
        readers = [TableReader(self.shapes[key], num_context, width) for key in self.tables]
        self.readers = nn.ModuleList(readers)
        num_words = sum(len(statistics[key]["mean"]) for key in self.text_keys)
        named = [WordReader(self.shapes[key][-1], num_words, width) for key in self.tables if num_words]
        self.named = nn.ModuleList(named)
        num_features = num_context + sum(reader.num_features for reader in [*readers, *named])
        self.embed = nn.Sequential(nn.Linear(num_features, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time 1 width"]:
        """Returns the observation tokens of each step."""
        vectors, tables = self._split(observations)
        context = torch.cat([*vectors.values()] or [tables[0].flatten(-2)[..., :0]], dim=-1)
        read = [reader(table, context) for reader, table in zip(self.readers, tables, strict=True)]
        if self.named:
            words = self._words(vectors)
            read += [reader(table, words) for reader, table in zip(self.named, tables, strict=True)]
        return self.embed(torch.cat([context, *read], dim=-1)).unsqueeze(-2)

    def grounding_loss(self, observations: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Returns how badly instructions and tables of the first steps find each other; needs both."""
        vectors, tables = self._split({key: observations[key][:, :1] for key in self.keys})
        words = self._words(vectors)[:, 0]
        readers = cast(Iterable[WordReader], self.named)
        losses = [reader.grounding_loss(table[:, 0], words) for reader, table in zip(readers, tables, strict=True)]
        return torch.stack(losses).mean()

    def _words(self, vectors: Mapping[str, Tensor]) -> Float[Tensor, "batch time words"]:
        return torch.cat([vectors[key] for key in self.text_keys], dim=-1)

    def _split(self, observations: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Returns the vectors, (batch, time, size) by key, and the tables, (batch, time, rows, columns)."""
        found = self.standardized(observations, self.keys)
        return found, [found.pop(key).unflatten(-1, self.shapes[key]) for key in self.tables]

    def standardized(self, observations: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
        """Returns each of the keys as (batch, time, numbers), standardised."""
        maps = dict(zip(self.keys, self.standardizers, strict=True))
        return {key: maps[key](observations[key].reshape(*observations[key].shape[:2], -1)) for key in keys}


def _shape(spec: ObservationSpec, statistics: Statistics) -> tuple[int, ...]:
    """Returns the shape of one frame as the network takes it: text comes as the numbers that stand for it."""
    return (len(statistics[spec.name]["mean"]),) if spec.kind == "text" else spec.shape
