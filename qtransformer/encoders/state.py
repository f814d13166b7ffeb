"""State vectors to one observation token: every key of kind `state` is standardised, joined and embedded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qtransformer.batch import ObservationSpec
from qtransformer.normalization import Standardizer

Statistics = Mapping[str, Mapping[str, list[float]]]  # key -> "mean" and "std" -> one number an element


class StateEncoder(nn.Module):
    """One token a step from all state keys together."""

    num_tokens = 1

    def __init__(self, specs: tuple[ObservationSpec, ...], statistics: Statistics, width: int) -> None:
        super().__init__()
        self.keys = tuple(spec.name for spec in specs)
        self.shapes = {spec.name: spec.shape for spec in specs}
        self.standardizers = nn.ModuleList(
            Standardizer(statistics[key]["mean"], statistics[key]["std"]) for key in self.keys
        )
        num_features = sum(len(statistics[key]["mean"]) for key in self.keys)
        self.embed = nn.Sequential(nn.Linear(num_features, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time 1 width"]:
        """Returns the observation tokens of each step."""
        B, T = observations[self.keys[0]].shape[:2]
        parts = [
            standardize(observations[key].reshape(B, T, -1))
            for key, standardize in zip(self.keys, self.standardizers, strict=True)
        ]
        return self.embed(torch.cat(parts, dim=-1)).unsqueeze(-2)
