"""What robomimic's `dones` mark, and from there where an episode terminated and whether it succeeded.

Special about this file: the file does not say whether a done is the state of success, the last step, or both, so the
user says it or the data must show it. A time limit must never be taken for a termination: where neither helps, the
reader refuses. It must not know HDF5.

    steps      0  1  2  3  4  5(last)          a demonstration that succeeds at step 3 and stays there
    rewards    0  0  0  1  1  1
    success    0  0  0  1  1  1
    last-step  0  0  0  0  0  1                a failed demonstration has this 1 as well
    both       0  0  0  1  1  1                and here too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtransformer.batch import Dones

from ..schema import DatasetError
from .flat import are_binary, last_only

_SAY = "say what they mark with --dones success, --dones last-step or --dones both"
_Basis = Literal["dones", "early dones", "rewarded dones", "attribute", "rewards", "nothing"]


@dataclass(frozen=True)
class Marks:
    """What one episode's file says of its course and its end; None where the file has no such mark."""

    num_steps: int
    rewards: np.ndarray | None  # (T,) float64
    dones: np.ndarray | None  # (T,) bool
    success: bool | None  # the attribute `success` that Isaac Lab writes
    source: str


@dataclass(frozen=True)
class Meaning:
    """How success is found in a file's marks, with the words for the user."""

    basis: _Basis
    dones_rule: str
    success_rule: str

    def success_steps(self, marks: Marks) -> np.ndarray:
        """Returns (T,) bool: the steps that led into a state of success."""
        last = last_only(marks.num_steps)
        if self.basis == "attribute":
            return last & bool(marks.success)
        if self.basis == "rewards":
            return _rewarded(marks)
        if self.basis == "nothing":
            return np.zeros(marks.num_steps, bool)
        assert marks.dones is not None
        if self.basis == "early dones":
            return marks.dones & ~last
        return marks.dones & (~last | _rewarded(marks)) if self.basis == "rewarded dones" else marks.dones

    def success(self, marks: Marks) -> bool | None:
        """Returns whether the episode succeeded, None where the file cannot say."""
        has_success = bool(self.success_steps(marks).any())
        return None if self.basis in ("nothing", "early dones") and not has_success else has_success


def find_meaning(marks: Sequence[Marks], asked: Dones, where: str) -> Meaning:
    """Returns how success is found in these episodes.

    Args:
        marks: of all episodes of the file.
        asked: the user's word on `dones`, or "infer".
        where: names the file in messages.

    Raises:
        DatasetError: episodes differ in what they hold, `dones` cannot be understood, or nothing tells success.
    """
    _check_alike(marks)
    meaning = _find(marks, asked, where)
    if marks[0].rewards is None and all(meaning.success(each) is None for each in marks):
        raise DatasetError(
            f"{where} has no rewards, and nothing tells success ({meaning.dones_rule}); write rewards (T,), or pass "
            "--dones success if every done is a success"
        )
    return meaning


def _find(marks: Sequence[Marks], asked: Dones, where: str) -> Meaning:
    if marks[0].dones is None and asked != "infer":
        raise DatasetError(f"{where} has no dones whose meaning {asked!r} could be; leave --dones out")
    if not any(each.dones is not None and each.dones.any() for each in marks):
        return _without_dones(marks, "there are no dones" if marks[0].dones is None else "dones mark no step at all")
    chosen, why = (asked, "as was asked for") if asked != "infer" else _infer(marks, where)
    if chosen == "last-step":
        return _without_dones(marks, f"dones mark the last step of each episode ({why})")
    if chosen == "success":
        return Meaning("dones", f"dones mark success ({why})", "a done in the episode")
    dones_rule = f"dones mark success and the last step ({why})"
    if _are_rewards_binary(marks):
        return Meaning("rewarded dones", dones_rule, "a done before the last step, or at the last step with a reward")
    return Meaning("early dones", dones_rule, "a done before the last step; unknown where the last step alone is done")


def _without_dones(marks: Sequence[Marks], dones_rule: str) -> Meaning:
    if all(each.success is not None for each in marks):
        return Meaning("attribute", dones_rule, "the attribute success of the episode, reached at its last step")
    if _do_rewards_mark_success(marks):
        return Meaning("rewards", dones_rule, "a reward above zero: rewards are zero until success and stay after it")
    return Meaning("nothing", dones_rule, "unknown: neither dones nor rewards mark it")


def _infer(marks: Sequence[Marks], where: str) -> tuple[Dones, str]:
    """Returns what the dones of all episodes can only mean, and why."""
    dones = [each.dones for each in marks if each.dones is not None]
    are_last_only = all(np.array_equal(each, last_only(len(each))) for each in dones)
    if _are_rewards_binary(marks):
        rewarded = [_rewarded(each) for each in marks]
        if all(np.array_equal(*pair) for pair in zip(dones, rewarded, strict=True)):
            return "success", "every done is a rewarded step and every rewarded step is done"
        if are_last_only:
            return "last-step", "the one done of each episode is its last step, rewarded or not"
        if all(each[-1] for each in dones) and not _dones(marks, is_odd=True):
            return "both", "each is a rewarded or a last step, and every last step is done"
        if not any((each & ~reward).any() for each, reward in zip(dones, rewarded, strict=True)):
            return "success", "every done is a rewarded step, and some last steps are not done"
        source, step = (_dones(marks, is_odd=True) or _dones(marks, is_odd=False))[0]
        found = f"step {step} is done without a reward, while others are done with one"
        raise DatasetError(f"{where}: dones cannot be understood from the data: {source} {found}; {_SAY}")
    if not all(each[-1] for each in dones):
        return "success", "some episodes do not end with a done"
    if all(each[:-1].any() for each in dones):
        return "success", "every episode is done before its last step"
    if are_last_only:
        return "last-step", "the one done of each episode is its last step, and nothing says that it is a success"
    source = next(each.source for each, done in zip(marks, dones, strict=True) if not done[:-1].any())
    found = "is done at its last step alone, while others are done before it"
    raise DatasetError(f"{where}: dones cannot be understood from the data: {source} {found}; {_SAY}")


def _dones(marks: Sequence[Marks], *, is_odd: bool) -> list[tuple[str, int]]:
    """Returns the places of the dones that no reward explains; the odd ones are not at the last step either."""
    return [
        (each.source, int(step))
        for each in marks
        if each.dones is not None
        for step in np.flatnonzero(each.dones & ~_rewarded(each) & ~(last_only(each.num_steps) & is_odd))
    ]


def _check_alike(marks: Sequence[Marks]) -> None:
    for name in ("rewards", "dones"):
        having = [getattr(each, name) is not None for each in marks]
        if any(having) and not all(having):
            raise DatasetError(
                f"{marks[having.index(False)].source} must hold {name} as {marks[having.index(True)].source} does; "
                "write them for every episode, or for none"
            )


def _rewarded(marks: Marks) -> np.ndarray:
    return np.zeros(marks.num_steps, bool) if marks.rewards is None else marks.rewards > 0


def _are_rewards_binary(marks: Sequence[Marks]) -> bool:
    return are_binary(np.concatenate([np.zeros(0) if each.rewards is None else each.rewards for each in marks]))


def _do_rewards_mark_success(marks: Sequence[Marks]) -> bool:
    """Returns whether rewards are binary and, once there, stay until the episode's end."""
    return _are_rewards_binary(marks) and not any((np.diff(_rewarded(each).astype(int)) < 0).any() for each in marks)
