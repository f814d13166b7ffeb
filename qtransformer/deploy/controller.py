"""Runs an exported policy: one observation in, one action out. Needs numpy and onnxruntime, nothing else.

Special about this file: it is copied into every bundle and works alone there, so it must not know the rest of the
package. A reading that is not a number would make every arg-max return bin 0, a finite action near the lower limit of
every joint: therefore each step is checked before and after the network, and a refused one leaves no trace.

    python controller.py --self-test [FOLDER]     replays the recorded steps of the bundle; exit status 0 or 1
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA_VERSION = 1
_VALUE_TOLERANCE = 1e-4  # of Q, in [0, 1]: more is not rounding
_ACTION_TOLERANCE = 1e-6  # of an action dimension's range, where the tokens are the same
_NEEDED = ("observations", "actions", "history_length", "outputs", "sha256")
_NUM_LISTED = 10  # failures and ties that a report spells out; the rest is counted


class ControllerError(Exception):
    """A bundle cannot be used or a step was refused; the message says which, why and what to do."""


class StepOutputs(NamedTuple):
    """What stands behind an action, for each of its N tokens."""

    tokens: np.ndarray
    """(N,) int64."""
    q_max: np.ndarray
    """(N,) float32 in (0, 1): the value of the bin that was chosen."""
    q_gap: np.ndarray
    """(N,) float32: how far it lies above the mean over all bins."""


class Controller:
    """The policy of one bundle folder and the history of one robot."""

    def __init__(self, folder: str | Path, *, session: Any = None) -> None:
        """Loads and checks the bundle.

        Args:
            folder: what `qtransformer export` wrote.
            session: an onnxruntime session on the bundle's policy.onnx, to run it on another device or with other
                options; by default one thread of the CPU, which waits without spinning.

        Raises:
            ControllerError: a file is missing or damaged, or the bundle has another schema version.
        """
        self._folder = Path(folder)
        self._card = _read_card(self._folder)
        model = _read_verified(self._folder, "policy.onnx", self._card)
        self._session = _make_session(model) if session is None else session
        self._specs = {spec["name"]: spec for spec in self._card["observations"]}
        self._low, self._high = (np.array(self._card["actions"][key], np.float32) for key in ("low", "high"))
        self._history: list[dict[str, np.ndarray]] | None = None
        self._last: StepOutputs | None = None

    @property
    def card(self) -> dict[str, Any]:
        """All of policy.json."""
        return self._card

    @property
    def window(self) -> int:
        """Number of observations that the policy sees, the newest included."""
        return self._card["history_length"]

    @property
    def last_outputs(self) -> StepOutputs | None:
        """What stands behind the last action; None before the first step."""
        return self._last

    def fork(self) -> Controller:
        """Returns a controller with a history of its own on the same session; it needs a `reset`."""
        twin = copy.copy(self)
        twin._history, twin._last = None, None
        return twin

    def reset(self) -> None:
        """Forgets the history: call it at the start of every episode."""
        self._history, self._last = [], None

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Returns the action (A,) float32 for the newest observation, in the environment's units, within the limits.

        Raises:
            ControllerError: the observation or the outputs are unusable; the history is as before the call.
        """
        if self._history is None:
            raise ControllerError("step() must follow reset(), got no reset() yet; call it when an episode starts")
        history = [*self._history, self._checked(observation)][-self.window :]
        outputs = self._run(self._inputs(history))
        action = outputs["actions"][0]
        if not (outputs["ok"].all() and np.isfinite(action).all()):
            raise ControllerError(
                "outputs of the policy must be finite, got ok = False; "
                "hold the robot, look for the sensor that left its range, and step again"
            )
        self._history = history
        self._last = StepOutputs(*(outputs[name][0] for name in StepOutputs._fields))
        return np.clip(action, self._low, self._high)

    def self_test(self) -> dict[str, Any]:
        """Replays golden.npz and returns the report; `passed` says whether all of it agrees.

        A token may differ only to a bin that rounding could choose as well (`is_tied`); what follows it in the same
        sample then stems from another prefix, and is not compared.

        Raises:
            ControllerError: golden.npz is missing or damaged.
        """
        with np.load(io.BytesIO(_read_verified(self._folder, "golden.npz", self._card))) as file:
            golden = dict(file)
        names = [name.removeprefix("inputs.") for name in golden if name.startswith("inputs.")]
        got, latency_ms = [], []
        for row in range(-1, len(golden["is_tied"])):  # the first run, not timed, warms up
            inputs = {name: golden[f"inputs.{name}"][max(row, 0)][None] for name in names}
            started = time.perf_counter()
            outputs = self._run(inputs)
            if row >= 0:
                latency_ms.append(1000 * (time.perf_counter() - started))
                got.append(outputs)
        arrays = {name: np.concatenate([outputs[name] for outputs in got]) for name in got[0]}
        latency = {"median": float(np.median(latency_ms)), "p99": float(np.percentile(latency_ms, 99))}
        return {**_compare(golden, arrays, self._high - self._low), "latency_ms": latency}

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output["name"] for output in self._card["outputs"]]
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def _inputs(self, history: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        frames = [*history, *[history[-1]] * (self.window - len(history))]  # real frames first, then padding
        inputs = {name: np.stack([frame[name] for frame in frames])[None] for name in self._specs}
        return {**inputs, "num_frames": np.array([len(history)], np.int64)}

    def _checked(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if set(observation) != set(self._specs):
            raise ControllerError(
                f"observation keys ({sorted(observation)}) must be {sorted(self._specs)}; "
                "send exactly the keys that the policy was trained on"
            )
        return {name: _checked_array(observation[name], spec) for name, spec in self._specs.items()}


class BundlePolicy:
    """A bundle that plays several episodes side by side (what `qtransformer.evaluation` calls a policy)."""

    def __init__(self, folder: str | Path) -> None:
        self._controller = Controller(folder)
        self._running: dict[int, Controller] = {}

    @property
    def card(self) -> dict[str, Any]:
        """All of policy.json."""
        return self._controller.card

    def reset(self, slot: int) -> None:
        """Forgets the history of `slot`."""
        self._running.setdefault(slot, self._controller.fork()).reset()

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Returns one action a slot, (len(slots), action_dim)."""
        pairs = zip(slots, observations, strict=True)
        return np.stack([self._running[slot].step(observation) for slot, observation in pairs])

    def q_value(self, slot: int) -> float:
        """Returns Q in (0, 1) of the last action of `slot`: that of its last token, which knows all the others."""
        outputs = self._running[slot].last_outputs
        if outputs is None:
            raise ControllerError(f"q_value({slot}) must follow act(), got no act() yet; let the policy act first")
        return float(outputs.q_max[-1])


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "policy.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = card["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ControllerError(f"{path}: is missing or damaged ({error!r}); copy or export the bundle again") from error
    if found != SCHEMA_VERSION:
        raise ControllerError(
            f"{path}: schema_version ({found}) must be {SCHEMA_VERSION}; use the controller.py of that bundle"
        )
    missing = [key for key in _NEEDED if key not in card]
    if missing:
        raise ControllerError(f"{path}: must have the keys {missing}, got {sorted(card)}; export the bundle again")
    return card


def _read_verified(folder: Path, name: str, card: Mapping[str, Any]) -> bytes:
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ControllerError(f"{path}: cannot be read ({error}); copy or export the bundle again") from error
    found, expected = hashlib.sha256(data).hexdigest(), card["sha256"].get(name)
    if found != expected:
        raise ControllerError(
            f"{path}: sha256 ({found[:12]}) must be {str(expected)[:12]} as in policy.json; "
            "the file is damaged or from another export: copy or export the bundle again"
        )
    return data


def _make_session(model: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ControllerError(f"onnxruntime is needed ({error}); pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _checked_array(value: Any, spec: Mapping[str, Any]) -> np.ndarray:
    name, dtype = spec["name"], np.dtype(spec["dtype"])
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise ControllerError(f"observation {name!r}: must be an array ({error})") from error
    if list(given.shape) != list(spec["shape"]):
        raise ControllerError(f"observation {name!r}: shape {given.shape} must be {tuple(spec['shape'])}")
    if not np.can_cast(given.dtype, dtype, "same_kind"):
        raise ControllerError(f"observation {name!r}: dtype {given.dtype} must be {dtype}, or cast to it safely")
    with np.errstate(over="ignore"):  # what overflows is not finite afterwards
        array = np.array(given, dtype)  # a copy: the caller may fill the same array again
    if not np.isfinite(array).all():
        bad = [int(index) for index in np.flatnonzero(~np.isfinite(array))]
        raise ControllerError(f"observation {name!r}: must be finite, got NaN or infinity at element(s) {bad}")
    return array


def _compare(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], ranges: np.ndarray) -> dict[str, Any]:
    """Returns the report on outputs `got` of the inputs whose recorded outputs are `expected`."""
    tokens = expected["outputs.tokens"]
    is_equal = tokens == got["tokens"]
    is_before = np.logical_and.accumulate(is_equal, axis=1)  # up to the first difference: the same prefix
    is_same = is_before[:, -1]
    ties, failures = [], []
    for row in np.flatnonzero(~is_same):
        first = int(is_before[row].sum())
        chosen = got["tokens"][row, first]
        message = f"sample {row}, token {first}: bin {tokens[row, first]} expected, got {chosen}"
        (ties if expected["is_tied"][row, first, chosen] else failures).append(message)
    q_error = np.where(is_before, np.abs(expected["outputs.q_max"] - got["q_max"]), 0.0)
    action_error = np.where(is_same[:, None], np.abs(expected["outputs.actions"] - got["actions"]), 0.0)
    is_bad_action = ~(action_error <= _ACTION_TOLERANCE * ranges).all(axis=1)
    failures += [f"sample {row}: ok is False" for row in np.flatnonzero(~(expected["outputs.ok"] & got["ok"]))]
    failures += [f"sample {row}: action off by {action_error[row].max():.2e}" for row in np.flatnonzero(is_bad_action)]
    failures += [
        f"sample {row}, token {token}: Q off by {q_error[row, token]:.2e}"
        for row, token in np.argwhere(~(q_error <= _VALUE_TOLERANCE))
    ]
    return {
        "passed": not failures,
        "samples": len(tokens),
        "tokens": {"equal": int(is_equal.sum()), "total": int(is_equal.size)},
        "largest_action_difference": float(action_error.max()),
        "largest_q_difference": float(q_error.max()),
        "num_near_ties": len(ties),
        "near_ties": ties[:_NUM_LISTED],
        "num_failures": len(failures),
        "failures": failures[:_NUM_LISTED],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the self-test; returns the exit status."""
    parser = argparse.ArgumentParser(description="Replays the recorded steps of an exported policy.")
    parser.add_argument("--self-test", action="store_true", required=True, help="compare with golden.npz")
    parser.add_argument("folder", nargs="?", default=Path(__file__).parent, type=Path, help="default: beside this file")
    folder = parser.parse_args(arguments).folder
    try:
        report = Controller(folder).self_test()
    except ControllerError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
