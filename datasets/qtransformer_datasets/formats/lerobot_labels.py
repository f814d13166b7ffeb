"""What ended an episode, whether it succeeded, and what it was worth, from the optional columns of a LeRobot log.

Special about this file: `next.done` has no fixed meaning and truncation cannot be expressed, so the rule that was used
is returned in words beside the labels. It must not know Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qtransformer.batch import Dones

from ..schema import DatasetError
from .flat import last_only

DONE, SUCCESS, REWARD = "next.done", "next.success", "next.reward"
UNLABELLED = (
    "the log is unlabelled: neither next.reward nor next.success nor a next.done that means success, so all rewards "
    "are zero and no episode counts as a success; write next.success (or next.reward) into the log, or record it again"
)
AMBIGUOUS = (
    "next.done is true at the last step of every episode and nowhere else, and nothing in the log says whether these "
    "ends are successes; it was read as the mere end, --dones success takes them for successes"
)


@dataclass(frozen=True)
class Marks:
    """The columns of an episode, each (T,); None where the log lacks the column."""

    source: str
    num_steps: int
    done: np.ndarray | None  # bool
    success: np.ndarray | None  # bool
    reward: np.ndarray | None  # float64


@dataclass(frozen=True)
class Labels:
    """What the marks of an episode mean."""

    rewards: np.ndarray  # (T,) float64
    terminations: np.ndarray  # (T,) bool, at most the last
    truncations: np.ndarray  # (T,) bool, at most the last
    success: bool | None


def label(marks: Sequence[Marks], dones: Dones) -> tuple[list[Labels], dict[str, str], tuple[str, ...]]:
    """Returns the labels of all episodes, the rules in words, and notes for the user.

    Args:
        marks: of all episodes of the log, which have the same columns; they are read together.
        dones: what `next.done` means, or "infer".

    Raises:
        DatasetError: a meaning was given, but the log has no `next.done`.
    """
    has_flag, has_reward = marks[0].success is not None, marks[0].reward is not None
    if dones != "infer" and marks[0].done is None:
        raise DatasetError(f"{marks[0].source} has no {DONE}, so --dones {dones} has nothing to say; leave it out")
    meaning = dones if dones != "infer" else None if has_flag or _are_sparse(marks) else _infer(marks)
    find, words = _success_rule(marks, meaning)
    given = "as told by --dones" if dones != "infer" else "inferred from the data"
    words = words.replace(DONE, f"{DONE} ({given}: {meaning})")
    worth = "zero, since no success is known" if find is None else "1 at the last step of success, 0 elsewhere"
    rules = {
        "terminated": f"the last step, where it is one of success: {words}",
        "truncated": "the last step of every other episode, since the format cannot express truncation",
        "success": f"{SUCCESS} at any step" if has_flag else f"any step of success: {words}",
        "rewards": REWARD if has_reward else f"{worth}; the log has no {REWARD}",
        "final observation": "none: T observations for T actions, so the last step has no successor",
    }
    notes = [AMBIGUOUS] if find is None and meaning == "last-step" and dones == "infer" else []
    notes += [UNLABELLED] if find is None and not has_reward else []
    return [_label(each, find(each) if find else None) for each in marks], rules, tuple(notes)


def _infer(marks: Sequence[Marks]) -> Dones | None:
    """Returns what `next.done` means by where it is true; None where it never is, or there is none."""
    dones = [each.done for each in marks if each.done is not None]
    if not any(done.any() for done in dones):
        return None
    if not all(done[-1] for done in dones):
        return "success"
    return "both" if any(done[:-1].any() for done in dones) else "last-step"


def _success_rule(
    marks: Sequence[Marks], meaning: Dones | None
) -> tuple[Callable[[Marks], np.ndarray | None] | None, str]:
    """Returns how to find an episode's steps of success, None where nothing tells them, and the rule in words."""
    if meaning == "success":
        return lambda each: each.done, DONE
    if meaning == "both":
        return _without_mere_end, f"{DONE}, at the last step only where one precedes it or {REWARD} is positive"
    if marks[0].success is not None:
        return lambda each: each.success, SUCCESS
    if _are_sparse(marks):
        return lambda each: None if each.reward is None else each.reward == 1, f"{REWARD} is 1, all others are 0"
    return None, "nothing in the log tells it"


def _are_sparse(marks: Sequence[Marks]) -> bool:
    rewards = [each.reward for each in marks if each.reward is not None]
    return bool(rewards) and set(np.unique(np.concatenate(rewards)).tolist()) in ({1.0}, {0.0, 1.0})


def _without_mere_end(marks: Marks) -> np.ndarray | None:
    """Returns the steps of success where the last step is always done; None where its done is all there is."""
    assert marks.done is not None
    has_earlier = bool(marks.done[:-1].any())
    if marks.reward is None and not has_earlier:
        return None
    success = marks.done.copy()
    success[-1] &= bool(marks.done[-2:-1].any()) or (marks.reward is not None and bool(marks.reward[-1] > 0))
    return success


def _label(marks: Marks, success: np.ndarray | None) -> Labels:
    T = marks.num_steps
    steps = np.zeros(T, bool) if success is None else success
    is_end = last_only(T)
    paid = np.arange(T) == np.max(np.flatnonzero(steps), initial=-1)
    flag = marks.success if marks.success is not None else success
    return Labels(
        rewards=paid.astype(np.float64) if marks.reward is None else marks.reward,
        terminations=is_end & steps,
        truncations=is_end & ~steps,
        success=None if flag is None else bool(flag.any()),
    )
