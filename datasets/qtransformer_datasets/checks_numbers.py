"""Checks of single numbers: finite, inside their limits, moving at all.

Special about this file: images and text never get here. It must not know how the problems are shown.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .finding import Finding, finding
from .steps import Steps, listed

LIMIT_TOLERANCE = 1e-5  # of a dimension's range: float32 rounding, no more
IDLE_SHARE = 0.3  # of the steps: people pause for a moment in most recordings, hardly ever for a third of the time


def check_finite(steps: Steps) -> Iterator[Finding]:
    """Finds numbers that are NaN or infinite."""
    arrays = {f"observations/{key}": rows for key, rows in steps.states.items()}
    for key, values in {**arrays, "actions": steps.actions, "rewards": steps.rewards[:, None]}.items():
        bad = np.any(~np.isfinite(values), axis=1)
        places = steps.at_rows(bad, key) if key in arrays else steps.at_steps(bad, key)
        if places:
            yield finding(
                "not-finite",
                f"{places} is NaN or infinite",
                "one such number destroys the network",
                "drop these episodes, or repair the sensor or the script that wrote them",
                places,
            )


def check_action_limits(steps: Steps) -> Iterator[Finding]:
    """Finds actions outside the limits that the log states."""
    low, high = np.array(steps.spec.actions.low), np.array(steps.spec.actions.high)
    places = steps.at_steps(_is_outside(steps.actions, low, high), "actions")
    if places:
        yield finding(
            "action-limits",
            f"{places} lies outside the limits {_brief(low)} to {_brief(high)} (data: {_reach(steps.actions)})",
            "the robot executed something else than was logged, and a policy can only act within the limits",
            "log executed actions, or correct the limits",
            places,
        )


def check_environment_limits(steps: Steps, low: np.ndarray, high: np.ndarray) -> Iterator[Finding]:
    """Finds actions that the environment would cut off, and limits of the log that are wider than the environment's."""
    spec = steps.spec.actions
    if low.shape != (spec.num_dimensions,):
        yield finding(
            "environment-limits",
            f"{steps.dataset.path}: actions have {spec.num_dimensions} dimensions, the environment's {low.shape}",
            "a policy trained on this log cannot act there",
            "name the environment that the log comes from",
        )
        return
    limits = f"the environment's limits {_brief(low)} to {_brief(high)}"
    places = steps.at_steps(_is_outside(steps.actions, low, high), "actions")
    if places:
        yield finding(
            "environment-limits",
            f"{places} lies outside {limits} (data: {_reach(steps.actions)})",
            "the environment cuts such actions off, so that it does something else than the log says",
            "scale the actions to the environment's units, or name the environment that the log comes from",
            places,
        )
    elif _is_outside(np.array([spec.low, spec.high]), low, high).any():
        yield finding(
            "wider-limits",
            f"{steps.dataset.path}: the log allows actions {_brief(np.array(spec.low))} to "
            f"{_brief(np.array(spec.high))}, beyond {limits}",
            "part of the policy's resolution is spent on actions that are cut off",
            "write the environment's limits into the log's metadata",
        )


def check_rewards(steps: Steps) -> Iterator[Finding]:
    """Finds a log whose rewards make no difference: all zero, or all equal with nothing that ever ends."""
    first = float(steps.rewards[0])
    if not np.all(steps.rewards == first) or (first and steps.terminations.any()):
        return
    text = "zero" if first == 0 else f"{first:g}, and nothing ever terminates,"
    yield finding(
        "no-reward",
        f"{steps.dataset.path}: rewards are {text} at every step of all {len(steps.episodes)} episodes",
        "every action looks as good as any other, so there is nothing to learn from",
        "add successful episodes, or label the rewards",
    )


def check_constants(steps: Steps) -> Iterator[Finding]:
    """Finds elements of observations and dimensions of actions that never change."""
    for key, rows in steps.states.items():
        still = _constant(rows, steps.names[key])
        if still:
            yield finding(
                "constant-observation",
                f"{steps.dataset.path}: observations/{key} never changes in {still}",
                "it tells the policy nothing, and a policy is lost where it does change",
                "harmless if meant so, else look for a dead sensor",
            )
    still = _constant(steps.actions, steps.names["actions"])
    if still:
        yield finding(
            "constant-action",
            f"{steps.dataset.path}: actions never change in {still}",
            "the log does not tell what other actions would do there",
            "harmless if the dimension is not used, else record more variety",
        )


def check_idle(steps: Steps) -> Iterator[Finding]:
    """Finds a log in which the robot does nothing for a large share of the steps."""
    idle = steps.is_still & steps.is_at_rest
    share = float(idle.mean())
    places = steps.at_steps(idle, "actions")
    if places and share > IDLE_SHARE:
        yield finding(
            "idle",
            f"{places} does nothing: no observation changes, the action is zero or the last one again, "
            f"in {share:.0%} of all steps",
            "a policy learns to wait, and values are passed on over many empty steps",
            "cut the waiting out when recording, or record at a lower rate",
            places,
        )


def _is_outside(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns (steps,) bool; NaN is not outside."""
    span = high - low
    slack = LIMIT_TOLERANCE * np.where(np.isfinite(span), span, 1.0)
    return np.any((actions < low - slack) | (actions > high + slack), axis=1)


def _constant(rows: np.ndarray, names: tuple[str, ...]) -> str:
    if len(rows) < 2:
        return ""
    return listed(names, np.flatnonzero(rows.min(axis=0) == rows.max(axis=0)))


def _reach(actions: np.ndarray) -> str:
    return f"{_brief(np.nanmin(actions, axis=0))} to {_brief(np.nanmax(actions, axis=0))}"


def _brief(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
