"""Replays the recorded steps of a bundle and compares; `controller.py --self-test` runs it. Needs numpy alone.

It lies beside controller.py in every bundle, for it is never needed while a robot moves. It must not know the rest of
the package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_VALUE_TOLERANCE = 1e-4  # of Q, in [0, 1]: more is not rounding
_ACTION_TOLERANCE = 1e-6  # of an action dimension's range, where the tokens are the same
_NUM_LISTED = 10  # failures and ties that a report spells out; the rest is counted


def replay(
    card: Mapping[str, Any], golden: Mapping[str, np.ndarray], run: Callable[..., dict[str, np.ndarray]], flat: Any
) -> dict[str, Any]:
    """Returns the report on the recorded steps, with the latency of the stateful graph.

    A token may differ only to a bin that rounding could choose as well (`is_tied`); what follows it in the same step
    then stems from another prefix, and is not compared.

    Args:
        card: policy.json.
        golden: golden.npz.
        run: (frame, history, num_frames) to the outputs of policy.onnx by name.
        flat: a session on policy_flat.onnx.
    """
    names = [spec["name"] for spec in card["observations"]]
    shapes = {each["name"]: each["shape"] for each in card["inputs"]}
    empty = np.zeros(shapes["history_in"], np.float32), np.zeros(shapes["num_frames_in"], np.int64)
    steps, flat_actions, latency_ms, history = [], [], [], empty
    for row, is_reset in enumerate(golden["is_reset"]):
        frame = {name: golden[f"inputs.{name}"][row] for name in names}
        started = time.perf_counter()
        outputs = run(frame, *(empty if is_reset else history))
        latency_ms.append(1000 * (time.perf_counter() - started))
        history = outputs.pop("history_out"), outputs.pop("num_frames_out")
        steps.append(outputs)
        flat_actions.append(flat.run(None, {card["flat"]["input"]: flat_row(golden, card, row)})[0][0])
    arrays = {name: np.concatenate([outputs[name] for outputs in steps]) for name in steps[0]}
    latency = {"median": float(np.median(latency_ms)), "p99": float(np.percentile(latency_ms, 99))}
    span = np.subtract(card["tokenizer"]["high"], card["tokenizer"]["low"])
    return {**compare(golden, arrays, np.array(flat_actions), span), "latency_ms": latency}


def flat_row(golden: Mapping[str, np.ndarray], card: Mapping[str, Any], row: int) -> np.ndarray:
    """Returns the input of policy_flat.onnx for recorded step `row`: `flat` in policy.json says how it is laid."""
    window, first = card["history_length"], int(np.flatnonzero(golden["is_reset"][: row + 1])[-1])
    frames = np.arange(row + 1 - window, row + 1).clip(min=first)
    parts = [golden[f"inputs.{part['name']}"][frames].ravel() for part in card["flat"]["parts"]]
    return np.concatenate([*parts, [min(row + 1 - first, window)]]).astype(np.float32)[None]


def compare(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], flat: np.ndarray, ranges: np.ndarray
) -> dict[str, Any]:
    """Returns the report on outputs `got` and flat actions of the steps whose recorded outputs are `expected`."""
    tokens, actions = expected["outputs.tokens"], expected["outputs.actions"]
    is_equal = tokens == got["tokens"]
    is_before = np.logical_and.accumulate(is_equal, axis=1)  # up to the first difference: the same prefix
    is_same = is_before[:, -1]
    ties, failures = [], []
    for row in np.flatnonzero(~is_same):
        first = int(is_before[row].sum())
        chosen = got["tokens"][row, first]
        message = f"step {row}, token {first}: bin {tokens[row, first]} expected, got {chosen}"
        (ties if expected["is_tied"][row, first, chosen] else failures).append(message)
    q_error = np.where(is_before, np.abs(expected["outputs.q_max"] - got["q_max"]), 0.0)
    is_clear = (expected["is_tied"].sum(axis=2) <= 1).all(axis=1)  # the flat graph does not tell its tokens
    errors = {
        "action": np.where(is_same[:, None], np.abs(actions - got["actions"]), 0.0),
        "flat action": np.where(is_clear[:, None], np.abs(actions - flat), 0.0),
    }
    failures += [f"step {row}: ok is False" for row in np.flatnonzero(~(expected["outputs.ok"] & got["ok"]))]
    for name, error in errors.items():
        is_bad = ~(error <= _ACTION_TOLERANCE * ranges).all(axis=1)
        failures += [f"step {row}: {name} off by {error[row].max():.2e}" for row in np.flatnonzero(is_bad)]
    failures += [
        f"step {row}, token {token}: Q off by {q_error[row, token]:.2e}"
        for row, token in np.argwhere(~(q_error <= _VALUE_TOLERANCE))
    ]
    return {
        "passed": not failures,
        "steps": len(tokens),
        "episodes": int(expected["is_reset"].sum()),
        "tokens": {"equal": int(is_equal.sum()), "total": int(is_equal.size)},
        "largest_action_difference": float(errors["action"].max()),
        "largest_flat_action_difference": float(errors["flat action"].max()),
        "largest_q_difference": float(q_error.max()),
        "num_near_ties": len(ties),
        "near_ties": ties[:_NUM_LISTED],
        "num_failures": len(failures),
        "failures": failures[:_NUM_LISTED],
    }
