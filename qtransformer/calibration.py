"""Does a predicted value mean what it says? Predictions against what was realised: bias, ranks, and groups of ten.

Steps of one episode tell much the same story, so every interval counts episodes and not steps: the variance of the mean
is that of the episodes' sums (cluster-robust; Liang and Zeger 1986). Pure functions of numpy arrays. It must not know
networks, datasets or pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Mean:
    """A mean over steps with its 95 % interval; the interval is NaN where there is only one episode."""

    mean: float
    low: float
    high: float
    num_steps: int
    num_episodes: int


@dataclass(frozen=True)
class Group:
    """Steps of like prediction: a tenth of all."""

    prediction: float
    """Mean prediction of the group."""
    realised: Mean


@dataclass(frozen=True)
class Calibration:
    """Predictions against realised returns, in the unit of the returns."""

    groups: tuple[Group, ...]
    """By rising prediction."""
    bias: Mean
    """Mean of prediction - return: above 0 the predictions promise too much of this behaviour."""
    error: float
    """Root of the mean squared difference."""
    rank_correlation: float
    """Spearman's, -1 to 1; NaN where all predictions or all returns are equal."""


def calibrate(
    predictions: Float[np.ndarray, " steps"],
    returns: Float[np.ndarray, " steps"],
    episodes: Int[np.ndarray, " steps"],
    num_groups: int = 10,
) -> Calibration:
    """Returns how `predictions` compare with `returns`; `episodes` says which episode a step belongs to."""
    order = np.argsort(predictions, kind="stable")
    groups = [rows for rows in np.array_split(order, num_groups) if len(rows)]
    difference = predictions - returns
    return Calibration(
        groups=tuple(Group(float(predictions[rows].mean()), mean_of(returns[rows], episodes[rows])) for rows in groups),
        bias=mean_of(difference, episodes),
        error=float(np.sqrt(np.mean(difference**2))),
        rank_correlation=rank_correlation(predictions, returns),
    )


def mean_of(values: Float[np.ndarray, " steps"], episodes: Int[np.ndarray, " steps"]) -> Mean:
    """Returns the mean over all steps, with an interval that takes steps of one episode as one piece of evidence.

    With n_e steps and residual sum r_e = sum(values of e) - n_e * mean of each of E episodes, the variance of the mean
    is E / (E - 1) * sum(r_e^2) / (sum n_e)^2.
    """
    _, cluster = np.unique(episodes, return_inverse=True)
    sizes = np.bincount(cluster)
    mean = float(values.mean())
    residuals = np.bincount(cluster, weights=values - mean)
    E = len(sizes)
    variance = E / (E - 1) * float(np.sum(residuals**2)) / len(values) ** 2 if E > 1 else np.nan
    half = _NORMAL_95 * float(np.sqrt(variance))
    return Mean(mean, mean - half, mean + half, len(values), E)


def rank_correlation(left: Float[np.ndarray, " steps"], right: Float[np.ndarray, " steps"]) -> float:
    """Returns Spearman's rank correlation, equal values sharing their mean rank; NaN where one side is constant."""
    ranks = [_ranks(each) for each in (left, right)]
    centred = [each - each.mean() for each in ranks]
    spread = float(np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2)))
    return float(np.sum(centred[0] * centred[1])) / spread if spread > 0 else float("nan")


def _ranks(values: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
