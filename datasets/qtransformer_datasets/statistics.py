"""What a policy must know of the log's numbers: the range of observations, and where the actions lie.

Special about this file: moments of episodes are merged pairwise (Chan, Golub, LeVeque 1983, eq. 2.1), which keeps its
digits where the mean is large beside the spread; a sum of squares would not. Quantiles are exact: counts are integers,
so that rounding can neither lose a value that is logged often nor take one twice.
"""

from __future__ import annotations

import numpy as np

from .schema import EpisodeDataset

_RESOLUTION = 2**20  # steps that a dimension's limits are counted in: values that share one are one value

_NORMAL_QUARTILE = 0.6745  # half of a normal distribution lies within so many standard deviations


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


def action_centres(dataset: EpisodeDataset, num_cells: int) -> np.ndarray:
    """Returns (dims, num_cells) float64, increasing: the actions that quantile bins stand for.

    They are logged values at the middles of `num_cells` equal shares of the log, dimension by dimension. A value that
    fills a share of its own (a closed gripper, a saturated motor) is a centre, exactly, and counts no further: the
    others share what is left. One step more is spread evenly over the limits, so that there are enough values in a
    dimension that knows but two, or one.
    """
    actions = np.concatenate([episode.actions for episode in dataset.episodes]).astype(np.float64)
    low, high = np.array(dataset.spec.actions.low), np.array(dataset.spec.actions.high)
    width = np.where(high > low, high - low, 1.0)
    steps = np.rint((np.clip(actions, low, high) - low) / width * _RESOLUTION).astype(np.int64)
    chosen = np.stack([_middles(column, num_cells) for column in steps.T])
    return low[:, None] + (high - low)[:, None] * chosen / _RESOLUTION


def _middles(steps: np.ndarray, num: int) -> np.ndarray:
    """Returns `num` different ones of the values 0.._RESOLUTION: those at the middles of equal shares of `steps`."""
    spread = ((2 * np.arange(num) + 1) * _RESOLUTION + num) // (2 * num)
    values, index, counts = np.unique(np.concatenate([steps, spread]), return_inverse=True, return_counts=True)
    num_spread = np.bincount(index[len(steps) :], minlength=len(values))
    weights = num * (counts - num_spread) + num_spread  # a logged step weighs as much as all `num` that are spread
    ends = np.cumsum(_capped(weights, num))
    return values[np.searchsorted(2 * ends, (2 * np.arange(num) + 1) * (ends[-1] // num))]


def _capped(weights: np.ndarray, num: int) -> np.ndarray:
    """Returns integers in proportion to `weights`, none above a `num`-th of their sum: larger ones are cut to that.

    With the s largest cut, the others keep their sum S and the cap is S / (num - s); s is the least that suffices. All
    is times num - s, which keeps it whole.
    """
    order = np.argsort(-weights, kind="stable")
    falling = weights[order]
    remaining = falling.sum() - np.cumsum(falling) + falling
    left = num - np.arange(num)
    num_cut = int(np.argmax(falling[:num] * left <= remaining[:num]))
    capped = weights * (num - num_cut)
    capped[order[:num_cut]] = remaining[num_cut]
    return capped


def action_noise(dataset: EpisodeDataset) -> np.ndarray:
    """Returns (dims,) float64, the standard deviation of the noise in each action dimension, as a share of its range.

    Estimated from the differences between consecutive actions (Rice 1984), by their median, so that what was meant,
    which is slow or rare against the noise, does not count: median |a_{t+1} - a_t| / (0.6745 sqrt 2).
    """
    differences = np.concatenate([np.abs(np.diff(episode.actions, axis=0)) for episode in dataset.episodes])
    if not len(differences):
        return np.zeros(dataset.spec.actions.num_dimensions)
    spread = np.subtract(dataset.spec.actions.high, dataset.spec.actions.low, dtype=np.float64)
    noise = np.median(differences.astype(np.float64), axis=0) / (_NORMAL_QUARTILE * np.sqrt(2))
    return np.divide(noise, spread, out=np.zeros_like(noise), where=spread > 0)
