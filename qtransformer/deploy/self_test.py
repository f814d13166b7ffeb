"""Replays the recorded steps of a bundle and compares; `controller.py --self-test` runs it. Needs numpy alone.

It lies beside controller.py in every bundle, for it is never needed while a robot moves. It must not know the rest of
the package.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

EXACT = "policy.onnx"
Run = Callable[..., dict[str, np.ndarray]]
"""(frame, history, num_frames) to the outputs of one step by name."""
_VALUE_TOLERANCE = 1e-4  # of Q, in [0, 1]: more is not rounding
_ACTION_TOLERANCE = 1e-6  # of an action dimension's range, where the tokens are the same
_ROUNDED_VALUE_TOLERANCE = 0.1  # of Q, where weights are rounded and the tokens are the same
_LOST_SHARE = 0.05  # of all tokens, that a graph with rounded weights may choose otherwise than at its export
_NUM_LISTED = 10  # failures and ties that a report spells out; the rest is counted


def self_test(
    card: Mapping[str, Any], run: Run, model: str, read: Callable[[str], bytes], make_session: Callable[[bytes], Any]
) -> dict[str, Any]:
    """Returns the report on the graph `model` of a bundle; `passed` says whether it does what it did at its export.

    Args:
        card: policy.json.
        run: the graph.
        model: name of its file. policy.onnx must decide as the network did, policy_flat.onnx too; a graph with rounded
            weights must differ from it no more than it did at the export.
        read: name of a file of the bundle to its content.
        make_session: a graph's content to an onnxruntime session.
    """
    with np.load(io.BytesIO(read("golden.npz"))) as arrays:
        golden = dict(arrays)
    if model == EXACT:
        return replay(card, golden, run, make_session(read("policy_flat.onnx")))
    return replay_rounded(card, golden, run, json.loads(read("parity.json"))["formats"][model])


def replay(card: Mapping[str, Any], golden: Mapping[str, np.ndarray], run: Run, flat: Any = None) -> dict[str, Any]:
    """Returns the report on the recorded steps for a graph that must decide as the network did.

    A token may differ only to a bin that rounding could choose as well (`is_tied`); what follows it in the same step
    then stems from another prefix, and is not compared.

    Args:
        card: policy.json.
        golden: golden.npz.
        run: the graph.
        flat: a session on policy_flat.onnx, compared as well where it is given.
    """
    arrays, latency = play(card, golden, run)
    span = np.subtract(card["tokenizer"]["high"], card["tokenizer"]["low"])
    flat_actions = None
    if flat is not None:
        rows = [flat_row(golden, card, row) for row in range(len(golden["is_reset"]))]
        flat_actions = np.concatenate([flat.run(None, {card["flat"]["input"]: row})[0] for row in rows])
    return {**compare(golden, arrays, flat_actions, span), "latency_ms": latency}


def replay_rounded(
    card: Mapping[str, Any], golden: Mapping[str, np.ndarray], run: Run, exported: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the report on the recorded steps for a graph with rounded weights.

    Machines round sums of small integers differently, so that it need not decide as it did at its export, but must
    choose the network's tokens about as often, and tell about its values.
    """
    arrays, latency = play(card, golden, run)
    found, least = token_counts(golden, arrays), exported["tokens"]["equal"] / exported["tokens"]["total"] - _LOST_SHARE
    q_error = np.where(_is_before(golden, arrays), np.abs(golden["outputs.q_max"] - arrays["q_max"]), 0.0)
    failures = [f"step {row}: ok is False" for row in np.flatnonzero(~arrays["ok"])]
    if not found["equal"] / found["total"] >= least:
        failures.append(f"{found['equal']} of {found['total']} tokens are the network's, at least {least:.1%} were")
    if not q_error.max() <= _ROUNDED_VALUE_TOLERANCE:
        failures.append(f"step {q_error.max(axis=1).argmax()}: Q off by {q_error.max():.2e}")
    return {
        "passed": not failures,
        "steps": len(golden["is_reset"]),
        "episodes": int(golden["is_reset"].sum()),
        "tokens": found,
        "largest_q_difference": float(q_error.max()),
        "num_failures": len(failures),
        "failures": failures[:_NUM_LISTED],
        "latency_ms": latency,
    }


def play(
    card: Mapping[str, Any], golden: Mapping[str, np.ndarray], run: Run
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns what `run` makes of the recorded steps, by output, and the latency."""
    names = [spec["name"] for spec in card["observations"]]
    shapes = {each["name"]: each["shape"] for each in card["inputs"]}
    empty = np.zeros(shapes["history_in"], np.float32), np.zeros(shapes["num_frames_in"], np.int64)
    steps, latency_ms, history = [], [], empty
    for row, is_reset in enumerate(golden["is_reset"]):
        frame = {name: golden[f"inputs.{name}"][row] for name in names}
        started = time.perf_counter()
        outputs = run(frame, *(empty if is_reset else history))
        latency_ms.append(1000 * (time.perf_counter() - started))
        history = outputs.pop("history_out"), outputs.pop("num_frames_out")
        steps.append(outputs)
    arrays = {name: np.concatenate([outputs[name] for outputs in steps]) for name in steps[0]}
    return arrays, {"median": float(np.median(latency_ms)), "p99": float(np.percentile(latency_ms, 99))}


def flat_row(golden: Mapping[str, np.ndarray], card: Mapping[str, Any], row: int) -> np.ndarray:
    """Returns the input of policy_flat.onnx for recorded step `row`: `flat` in policy.json says how it is laid."""
    window, first = card["history_length"], int(np.flatnonzero(golden["is_reset"][: row + 1])[-1])
    frames = np.arange(row + 1 - window, row + 1).clip(min=first)
    parts = [golden[f"inputs.{part['name']}"][frames].ravel() for part in card["flat"]["parts"]]
    return np.concatenate([*parts, [min(row + 1 - first, window)]]).astype(np.float32)[None]


def compare(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], flat: np.ndarray | None, ranges: np.ndarray
) -> dict[str, Any]:
    """Returns the report on outputs `got` and flat actions of the steps whose recorded outputs are `expected`."""
    tokens, actions = expected["outputs.tokens"], expected["outputs.actions"]
    is_before = _is_before(expected, got)
    is_same = is_before[:, -1]
    ties, failures = [], []
    for row in np.flatnonzero(~is_same):
        first = int(is_before[row].sum())
        chosen = got["tokens"][row, first]
        message = f"step {row}, token {first}: bin {tokens[row, first]} expected, got {chosen}"
        (ties if expected["is_tied"][row, first, chosen] else failures).append(message)
    q_error = np.where(is_before, np.abs(expected["outputs.q_max"] - got["q_max"]), 0.0)
    errors = {"action": np.where(is_same[:, None], np.abs(actions - got["actions"]), 0.0)}
    if flat is not None:
        is_clear = (expected["is_tied"].sum(axis=2) <= 1).all(axis=1)  # the flat graph does not tell its tokens
        errors["flat_action"] = np.where(is_clear[:, None], np.abs(actions - flat), 0.0)
    failures += [f"step {row}: ok is False" for row in np.flatnonzero(~(expected["outputs.ok"] & got["ok"]))]
    for name, error in errors.items():
        is_bad = ~(error <= _ACTION_TOLERANCE * ranges).all(axis=1)
        failures += [
            f"step {row}: {name.replace('_', ' ')} off by {error[row].max():.2e}" for row in np.flatnonzero(is_bad)
        ]
    failures += [
        f"step {row}, token {token}: Q off by {q_error[row, token]:.2e}"
        for row, token in np.argwhere(~(q_error <= _VALUE_TOLERANCE))
    ]
    return {
        "passed": not failures,
        "steps": len(tokens),
        "episodes": int(expected["is_reset"].sum()),
        "tokens": token_counts(expected, got),
        **{f"largest_{name}_difference": float(error.max()) for name, error in errors.items()},
        "largest_q_difference": float(q_error.max()),
        "num_near_ties": len(ties),
        "near_ties": ties[:_NUM_LISTED],
        "num_failures": len(failures),
        "failures": failures[:_NUM_LISTED],
    }


def token_counts(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns how many tokens of the steps are those recorded, and how many there are."""
    is_equal = expected["outputs.tokens"] == got["tokens"]
    return {"equal": int(is_equal.sum()), "total": int(is_equal.size)}


def _is_before(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which tokens lie before the first difference of their step: they stem from the same prefix."""
    return np.logical_and.accumulate(expected["outputs.tokens"] == got["tokens"], axis=1)
