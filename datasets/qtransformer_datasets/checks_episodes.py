"""Checks of how episodes end: flags inside them, missing flags, time limits taken for terminals, shifted rewards.

Special about this file: what a reward is worth is not known, so a step counts as rewarded where it pays more than the
log's usual step (the median): that holds for 0 and 1, for -1 and 0, and for a bonus on top of a dense reward.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .finding import Finding, finding
from .steps import Steps

TIME_LIMIT_EPISODES = 5  # that end at the greatest length: fewer may do so by chance
TIME_LIMIT_SHARE = 0.05  # of all episodes, for the same reason in a large log
SHIFT_SHARE = 0.5  # of the terminated episodes that hold a reward: a subgoal just before the end is no shift
SHIFT_EPISODES = 3  # at least, for the same reason in a small log
SPARSE_SHARE = 0.2  # of the steps: where more of them are rewarded, a reward does not mark an event
REPEAT_SHARE = 0.5  # of the ends: so many last rows do not stand still by chance ...
REPEAT_FACTOR = 4.0  # ... where they do so that much more often than other rows


def check_early_end(steps: Steps) -> Iterator[Finding]:
    """Finds terminations and truncations before an episode's last step."""
    for name, flags, why in (
        ("terminations", steps.terminations, "what follows counts into a return that ended there"),
        ("truncations", steps.truncations, "the step after it leads from one episode into another"),
    ):
        early = flags.copy()
        early[steps.last] = False
        places = steps.at_steps(early, name)
        if places:
            yield finding(
                "early-end",
                f"{places} is set before the last step",
                why,
                "cut the episode there, or write the flag at its last step alone",
                places,
            )


def check_tail(steps: Steps) -> Iterator[Finding]:
    """Finds episodes that end with neither flag."""
    places = steps.at_episodes(~(steps.terminations | steps.truncations)[steps.last])
    if places:
        yield finding(
            "unterminated-tail",
            f"{places} ends neither terminated nor truncated",
            "it may be torn, and a success at its end is not seen as an ending; it is read as truncated",
            "set truncations at the last step where it was cut off, terminations where the task ended",
            places,
        )


def check_time_limits(steps: Steps) -> Iterator[Finding]:
    """Finds many episodes that terminate, without a reward for it, at the same length, which none exceeds."""
    longest = int(steps.lengths.max())
    if longest < 2:
        return
    ended = steps.terminations[steps.last] & ~steps.is_rewarded[steps.last]
    at_limit = ended & (steps.lengths == longest)
    least = max(TIME_LIMIT_EPISODES, TIME_LIMIT_SHARE * len(steps.episodes))
    if at_limit.sum() < least or at_limit.sum() <= (ended & ~at_limit & (steps.lengths > 0.9 * longest)).sum():
        return
    places = steps.at_episodes(at_limit)
    yield finding(
        "time-limit-terminals",
        f"{places} terminates without a reward after {longest} steps, which no episode exceeds",
        "a time limit that is taken for an ending teaches that the state there is worth nothing",
        "mark these steps as truncations; harmless if the task itself ends after that many steps",
        places,
    )


def check_reward_shift(steps: Steps) -> Iterator[Finding]:
    """Finds logs with rare rewards in which these stand one step before or after the terminations."""
    if steps.is_rewarded.mean() > SPARSE_SHARE:
        return
    terminated = np.maximum.reduceat(steps.terminations, steps.starts)
    rewarded = np.maximum.reduceat(steps.is_rewarded, steps.starts)
    numbers = np.arange(len(steps))
    end = np.minimum.reduceat(np.where(steps.terminations, numbers, len(steps)), steps.starts)
    reward = np.maximum.reduceat(np.where(steps.is_rewarded, numbers, -1), steps.starts)
    both = terminated & rewarded
    for offset, word in ((1, "before"), (-1, "after")):
        shifted = both & (end - reward == offset)
        if shifted.sum() >= max(SHIFT_EPISODES, SHIFT_SHARE * both.sum()):
            places = steps.at_episodes(shifted)
            yield finding(
                "reward-shift",
                f"{places} is rewarded one step {word} its termination",
                "the reward belongs to the action that leads to it; a step off, another action is praised",
                "write reward and termination of the same step from the state after the action",
                places,
            )


def check_final_observations(steps: Steps) -> Iterator[Finding]:
    """Finds last steps without a successor that is needed: none logged, or the row before it once more."""
    cut_off = ~steps.terminations[steps.last]  # where the task ended, nothing follows and none is needed
    missing = steps.at_episodes(cut_off & ~steps.has_final)
    if missing:
        yield finding(
            "no-final-observation",
            f"{missing} has no observation after its last step, and did not terminate there",
            f"{missing.count:,} of {len(steps):,} steps ({missing.count / len(steps):.2g} of all) have no successor to "
            "learn from",
            "harmless for long episodes; else log T + 1 observations for T actions",
            missing,
        )
    ends = cut_off & steps.has_final
    at_rest = (steps.lengths > 1) & steps.repeats[np.maximum(steps.last - 1, 0)]  # a doubled row comes alone
    repeated = ends & steps.repeats[steps.last] & ~at_rest
    inner = np.delete(steps.repeats, steps.last)
    usual = float(inner.mean()) if len(inner) else 0.0
    if repeated.any() and repeated.sum() > max(REPEAT_SHARE, REPEAT_FACTOR * usual) * ends.sum():
        places = steps.at_episodes(repeated)
        yield finding(
            "repeated-final",
            f"{places} has a final observation that repeats the one before, which other steps hardly do",
            "a row that was doubled to fill up teaches that the last action has no effect",
            "log the observation after the last action, or leave the repeated row out",
            places,
        )
