"""Discounted returns of a log: what was seen from each step on, and the least and the most that can follow.

Special about this file: an episode that was cut off has no known return. What follows it is taken to be the worst that
the log's rewards permit, so that a return is always one that can be had again, as the Monte-Carlo bound assumes
(arXiv 2309.10150, section 4.3). With rewards of 0 and 1 the worst is 0 and nothing changes; with -1 a step until
success an episode that never got there counts as one that never will. It must not know batches or networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .schema import Episode

_HEADROOM = 0.25  # of the range of returns seen: how much better than the best episode a policy may value itself


def discounted_returns(rewards: np.ndarray, discount: float, final: float = 0.0) -> np.ndarray:
    """Returns (T,) float64, G_k = r_k + discount * G_{k+1} with G_T = `final`: the return from each step on."""
    returns = np.full(len(rewards) + 1, float(final))
    for step in reversed(range(len(rewards))):
        returns[step] = rewards[step] + discount * returns[step + 1]
    return returns[:-1]


def monte_carlo_returns(episodes: Sequence[Episode], discount: float) -> list[np.ndarray]:
    """Returns a lower bound of the return from each step of each episode; exact where the episode terminated."""
    worst = least_future(episodes, discount)
    finals = [0.0 if episode.terminations[-1] else worst for episode in episodes]
    return [discounted_returns(each.rewards, discount, final) for each, final in zip(episodes, finals, strict=True)]


def return_range(episodes: Sequence[Episode], discount: float) -> tuple[float, float]:
    """Returns the least and the most that a return can be expected to reach, in the log's own unit, low < high.

    The least is that of the log. The most leaves room above the log where every step can pay, up to the largest reward
    for ever; where only an ending pays, nothing lies above the best return that was seen. Where no episode terminates
    there is no return of nothing, and a constant added to all rewards moves both ends alike.
    """
    nothing = _nothing(episodes)
    returns = np.concatenate([*monte_carlo_returns(episodes, discount), nothing])
    low, high = float(returns.min()), float(returns.max())
    best = max([*nothing, *(float(each.rewards[~each.terminations].max(initial=-np.inf)) for each in episodes)])
    high = max(high, min(_for_ever(best, episodes, discount), high + _HEADROOM * (high - low)))
    return low, high if high > low else low + 1.0


def least_future(episodes: Sequence[Episode], discount: float) -> float:
    """Returns the worst that can follow a step: the least reward for ever, or nothing if that is worse."""
    return _for_ever(least_reward(episodes), episodes, discount)


def least_reward(episodes: Sequence[Episode]) -> float:
    """Returns the worst that a step can pay: the least reward of the log, or nothing if that is worse."""
    return min([*_nothing(episodes), *(float(each.rewards.min()) for each in episodes)])


def _nothing(episodes: Sequence[Episode]) -> list[float]:
    """Returns [0], the return of an episode that is over, or [] where none is ever over."""
    return [0.0] if any(each.terminations.any() for each in episodes) else []


def _for_ever(reward: float, episodes: Sequence[Episode], discount: float) -> float:
    """Returns the discounted sum of `reward` without end; over the longest episode where nothing is discounted."""
    return reward * (1 / (1 - discount) if discount < 1 else max(each.num_steps for each in episodes))
