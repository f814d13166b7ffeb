"""Equations that tell two policies apart from what they did in the same episodes.

Pure functions of counts and numpy floats, each with its source. Success is 1.0, failure 0.0; differences are shares,
and positive where A is better. It must not know what a policy, an environment or a file is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from scipy import stats

ERROR_RATE = 0.05
POWER = 0.8

_NORMAL = NormalDist()
_BISECTIONS = 60  # halve an interval of length 2 below the spacing of floats
_RESAMPLES = 2000


# --- two policies, paired by episode ----------------------------------------------------------------------------------


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test.

    If the policies are alike, the episodes in which one alone succeeds are fair coins (McNemar 1947; exact: Mosteller
    1952): twice the lower binomial tail, at most 1.
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_interval(only_a: int, only_b: int, episodes: int, error_rate: float = ERROR_RATE) -> tuple[float, float]:
    """Returns the score interval of the difference of two paired success rates (Tango 1998, Stat. Med. 17:891).

    It holds each difference d that the score test does not reject,
        |only_a - only_b - n d| <= z sqrt(n (2 p(d) + d (1 - d))),
    where p(d) is the likeliest share of episodes in which B alone succeeds, given d. Unlike Wald's, it keeps its
    coverage with few or no discordant episodes (Fagerland, Lydersen and Laake 2014, Stat. Med. 33:2850).
    """
    low, high = (_score_limit(*pair, episodes, error_rate) for pair in ((only_b, only_a), (only_a, only_b)))
    return -low, high


def _score_limit(only_a: int, only_b: int, episodes: int, error_rate: float) -> float:
    """Returns the largest difference that the score test accepts; the other limit is minus that of (B, A)."""
    z = _NORMAL.inv_cdf(1 - error_rate / 2)
    accepted, rejected = (only_a - only_b) / episodes, 1.0
    for _ in range(_BISECTIONS):
        d = (accepted + rejected) / 2
        linear = (2 * episodes - only_a + only_b) * d - only_a - only_b
        root = math.sqrt(linear**2 + 8 * episodes * only_b * d * (1 - d))
        share = (root - linear) / (4 * episodes)
        variance = max(0.0, episodes * (2 * share + d * (1 - d)))
        if abs(only_a - only_b - episodes * d) <= z * math.sqrt(variance):
            accepted = d
        else:
            rejected = d
    return accepted


def paired_episodes(difference: float, discordance: float, error_rate: float = ERROR_RATE) -> int:
    """Returns how many paired episodes McNemar's exact test needs to see `difference` with a power of 80 %.

    Connor (1987, Biometrics 43:207): n d^2 = K^2 with K = z_a sqrt(D) + z_b sqrt(D - d^2), for the share D of
    discordant episodes. The exact test behaves like the one that is corrected for continuity (Edwards 1948), whose
    n d - 1 = K sqrt(n) is solved here.

    Args:
        difference: to be seen, in (0, 1).
        discordance: share of the episodes in which one policy alone succeeds; at least the difference.
        error_rate: of the two-sided test.
    """
    discordance = max(discordance, difference)
    tails = _NORMAL.inv_cdf(1 - error_rate / 2), _NORMAL.inv_cdf(POWER)
    spread = tails[0] * math.sqrt(discordance) + tails[1] * math.sqrt(discordance - difference**2)
    return math.ceil(((spread + math.sqrt(spread**2 + 4 * difference)) / (2 * difference)) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns adjusted p-values: rejecting those up to r errs at all with probability r at most (Holm 1979)."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# --- methods, each trained several times ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossedDifference:
    """The difference of two methods, when other trainings and other episodes could have been drawn."""

    difference: float
    variance: float
    """Of the difference."""
    training_part: float
    """What would be left of it after endlessly many episodes."""
    episode_part: float
    """What falls as 1 / episodes, rather too large: the parts add up to the variance at least."""
    degrees_of_freedom: float

    def interval(self, error_rate: float = ERROR_RATE) -> tuple[float, float]:
        """Returns Student's interval, cut to [-1, 1]."""
        margin = float(stats.t.isf(error_rate / 2, self.degrees_of_freedom)) * math.sqrt(self.variance)
        return max(-1.0, self.difference - margin), min(1.0, self.difference + margin)

    def p_value(self) -> float:
        """Returns the two-sided p-value of Student's test of no difference."""
        return 2 * float(stats.t.sf(abs(self.difference) / math.sqrt(self.variance), self.degrees_of_freedom))

    def episodes(self, difference: float, played: int, error_rate: float = ERROR_RATE) -> int | None:
        """Returns how many episodes a training show `difference` with a power of 80 %, if trainings vary as these do.

        Solves d = (t_a + z_b) sqrt(variance) for the episodes; None where the trainings alone vary too much. Two or
        three trainings tell little of how much they vary, and the power falls with that.
        """
        tails = float(stats.t.isf(error_rate / 2, self.degrees_of_freedom)) + _NORMAL.inv_cdf(POWER)
        left = (difference / tails) ** 2 - self.training_part
        return math.ceil(played * self.episode_part / left) if left > 0 else None


def crossed_difference(
    a: Float[np.ndarray, "trainings_a episodes"], b: Float[np.ndarray, "trainings_b episodes"]
) -> CrossedDifference:
    """Returns the difference of the mean success with its variance over trainings and episodes.

    Trainings are crossed with episodes: every training plays all. The variance is what resampling rows and columns
    aims at (Owen 2007, Ann. Appl. Stat. 1:386), without bias for few trainings: that between the episodes' gaps, plus
    that between trainings, less their noise of single episodes, which stands in both (two-way clustering: Cameron,
    Gelbach and Miller 2011, J. Bus. Econ. Stat. 29:238). It is never below either. Half a discordant episode is
    added on both sides, so that agreement in a few episodes is no certainty (Agresti and Min 2005, Stat. Med. 24:729).
    Degrees of freedom are Satterthwaite's (1946).

    A method that was trained once stands for that training alone.

    Args:
        a: success of every training in every episode, at least two episodes.
        b: that of the other method in the same episodes.
    """
    E = a.shape[1]
    gaps = a.mean(axis=0) - b.mean(axis=0)
    by_episode = float((np.sum((gaps - gaps.mean()) ** 2) + 1) / (E * (E - 1)))
    parts = [(len(each) - 1, *_training_variance(each)) for each in (a, b) if len(each) > 1]
    by_training, shared = sum(part for _, part, _ in parts), sum(noise for *_, noise in parts)
    variance = max(by_episode, by_training, by_episode + by_training - shared)
    squares = by_episode**2 / (E - 1) + sum(part**2 / freedom for freedom, part, _ in parts)
    freedom = max(1.0, variance**2 / squares)
    return CrossedDifference(float(gaps.mean()), variance, max(0.0, by_training - shared), by_episode + shared, freedom)


def _training_variance(outcomes: Float[np.ndarray, "trainings episodes"]) -> tuple[float, float]:
    """Returns the variance of the mean over trainings, and the part of it that is noise of single episodes."""
    K, E = outcomes.shape
    rates = outcomes.mean(axis=1)
    residuals = outcomes - rates[:, None] - outcomes.mean(axis=0) + outcomes.mean()
    return float(rates.var(ddof=1) / K), float(np.sum(residuals**2) / ((K - 1) * (E - 1)) / (K * E))


def probability_of_improvement(
    a: Float[np.ndarray, " trainings_a"], b: Float[np.ndarray, " trainings_b"], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Returns P(X > Y) of a training X of A and Y of B, ties counted half, with its 95 % interval.

    Mann and Whitney's U / (trainings_a trainings_b), and the percentiles of a bootstrap that resamples the trainings
    of each method apart (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", section 4.3).

    Args:
        a: success rate of every training.
        b: those of the other method.
        seed: of the resampling.
    """
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(size, size=(_RESAMPLES, size)) for size in wins.shape)
    resampled = wins[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(resampled, (ERROR_RATE / 2, 1 - ERROR_RATE / 2))
    return float(wins.mean()), (float(low), float(high))
