"""What a policy must know of the log's numbers: the range of observations, and where the actions lie.

Special about this file: moments of episodes are merged pairwise (Chan, Golub, LeVeque 1983, eq. 2.1), which keeps its
digits where the mean is large beside the spread; a sum of squares would not. Quantiles are exact: counts are integers,
so that rounding can neither lose a value that is logged often nor take one twice. Images are described by how often
each of their 256 values occurs, which is counted when they are first walked through, for whatever reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .cache import cache_file, read_record, write_record
from .frames import is_image
from .image_rows import NUM_VALUES, Images
from .schema import EpisodeDataset

QUANTILES = {"q01": 0.01, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q99": 0.99}
_RESOLUTION = 2**20  # steps that a dimension's limits are counted in: values that share one are one value
_WORTH_KEEPING = 2**26  # bytes of numbers: fewer are described anew as soon as a file is found
_BLOCK_BYTES = 2**26  # of numbers that are sorted at a time

_NORMAL_QUARTILE = 0.6745  # half of a normal distribution lies within so many standard deviations


def statistics(dataset: EpisodeDataset) -> dict[str, dict[str, np.ndarray]]:
    """Returns "mean", "std", "min", "max" and the `QUANTILES` by observation key, float64, in the environment's units.

    Each is (*shape) for numbers, element by element, and (channels,) for images. Text has none. A quantile between two
    values is interpolated, as numpy does.
    """
    first = dataset.episodes[0].observations
    images = [key for key, rows in first.items() if is_image(rows)]
    found = _numbers(dataset, [key for key, rows in first.items() if key not in images and rows.dtype.kind != "U"])
    found |= {key: describe_histogram(Images(dataset, key).histogram()) for key in images}
    return {key: found[key] for key in first if key in found}


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, least and greatest of rows, element by element."""

    count: int
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> Moments:
        """Returns the moments of (rows, *shape) numbers; of no rows, what changes nothing when merged."""
        if not len(array):
            zeros = np.zeros(array.shape[1:])
            return cls(0, zeros, zeros, zeros + np.inf, zeros - np.inf)
        rows = array.astype(np.float64)
        squares = rows.var(axis=0) * len(rows)
        return cls(len(rows), rows.mean(axis=0), squares, rows.min(axis=0), rows.max(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Returns the moments of the rows of both."""
        total = self.count + other.count
        if not total:
            return self
        difference = other.mean - self.mean
        squares = self.squares + other.squares + difference**2 * (self.count * other.count / total)
        mean = self.mean + difference * (other.count / total)
        return Moments(total, mean, squares, np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def describe(arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what `statistics` says of the rows of all arrays together, each (*shape) float64; NaN of no rows."""
    moments = Moments.of(arrays[0])
    for array in arrays[1:]:
        moments = moments.merge(Moments.of(array))
    shape = arrays[0].shape[1:]
    if not moments.count:
        return {name: np.full(shape, np.nan) for name in ("mean", "std", "min", "max", *QUANTILES)}
    spread = np.sqrt(moments.squares / moments.count)
    quantiles = np.concatenate(list(_quantile_blocks(arrays)), axis=1).reshape(-1, *shape)
    described = {"mean": moments.mean, "std": spread, "min": moments.low, "max": moments.high}
    return described | dict(zip(QUANTILES, quantiles, strict=True))


def _quantile_blocks(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields (quantiles, elements), some elements at a time."""
    size = int(np.prod(arrays[0].shape[1:]))
    width = max(1, _BLOCK_BYTES // (8 * sum(map(len, arrays))))
    for first in range(0, size, width):
        columns = [array.reshape(len(array), size)[:, first : first + width] for array in arrays]
        rows = np.concatenate([column.T for column in columns], axis=1, dtype=np.float64)
        yield np.quantile(rows, list(QUANTILES.values()), axis=1, overwrite_input=True)


def describe_histogram(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what `statistics` says of images by how often each value occurs in each channel.

    Args:
        counts: (channels, 256) integers; those of several sets add up to those of all.
    """
    values, totals = np.arange(NUM_VALUES), counts.sum(axis=1)
    if not totals.all():
        return {name: np.full(len(counts), np.nan) for name in ("mean", "std", "min", "max", *QUANTILES)}
    mean = counts @ values / totals
    spread = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / totals)
    described = {"mean": mean, "std": spread, "min": _ranked(counts, totals * 0), "max": _ranked(counts, totals - 1)}
    return described | {name: _histogram_quantile(counts, share) for name, share in QUANTILES.items()}


def _histogram_quantile(counts: np.ndarray, share: float) -> np.ndarray:
    places = (counts.sum(axis=1) - 1) * share
    below = np.floor(places).astype(np.int64)
    low, high = _ranked(counts, below), _ranked(counts, np.ceil(places).astype(np.int64))
    return low + (high - low) * (places - below)


def _ranked(counts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns (channels,) float64: the value of each rank, counted from 0, in each channel."""
    return (np.cumsum(counts, axis=1) <= ranks[:, None]).sum(axis=1).astype(np.float64)


def _numbers(dataset: EpisodeDataset, keys: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the statistics of numbers; those of many are kept in the cache."""
    arrays = {key: [np.asarray(episode.observations[key]) for episode in dataset.episodes] for key in keys}
    if sum(array.nbytes for each in arrays.values() for array in each) < _WORTH_KEEPING:
        return {key: describe(each) for key, each in arrays.items()}
    file = cache_file(dataset, "numbers", ".statistics.json")
    identity = {"fingerprint": dataset.fingerprint, "quantiles": QUANTILES}
    record = read_record(file, identity)
    if record is None:
        found = {key: describe(each) for key, each in arrays.items()}
        plain = {key: {name: value.tolist() for name, value in each.items()} for key, each in found.items()}
        write_record(file, {**identity, "statistics": plain})
        return found
    kept = record["statistics"]
    return {key: {name: np.array(value) for name, value in kept[key].items()} for key in keys}


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
