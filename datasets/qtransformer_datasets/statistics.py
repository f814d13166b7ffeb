"""Mean, spread and range of every observation element, in one pass and in float64.

Special about this file: moments of episodes are merged pairwise (Chan, Golub, LeVeque 1983, eq. 2.1), which keeps its
digits where the mean is large beside the spread; a sum of squares would not.
"""

from __future__ import annotations

import numpy as np

from .schema import EpisodeDataset


def statistics(dataset: EpisodeDataset) -> dict[str, dict[str, np.ndarray]]:
    """Returns "mean", "std", "min" and "max" by observation key, each (*shape) float64, in the environment's units."""
    keys = [each.name for each in dataset.spec.observations]
    return {key: _describe([episode.observations[key] for episode in dataset.episodes]) for key in keys}


def _describe(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    count, mean, squares = 0, np.zeros(arrays[0].shape[1:]), np.zeros(arrays[0].shape[1:])
    low, high = np.full(mean.shape, np.inf), np.full(mean.shape, -np.inf)
    for array in arrays:
        rows = array.astype(np.float64)
        total = count + len(rows)
        difference = rows.mean(axis=0) - mean
        squares = squares + rows.var(axis=0) * len(rows) + difference**2 * (count * len(rows) / total)
        mean = mean + difference * (len(rows) / total)
        low, high, count = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0)), total
    return {"mean": mean, "std": np.sqrt(squares / count), "min": low, "max": high}
