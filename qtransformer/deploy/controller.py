"""Runs an exported policy: one observation in, one action out. Needs numpy and onnxruntime, nothing else.

Special about this file: it is copied into every bundle and works alone there, so it must not know the rest of the
package. A reading that is not a number would make every arg-max return bin 0, a finite action near the lower limit of
every joint: therefore each step is checked before and after the network, and a refused one leaves no trace.

    python controller.py --self-test [FOLDER]     replays the recorded steps of the bundle; exit status 0 or 1
"""

from __future__ import annotations

import argparse
import base64
import copy
import difflib
import functools
import hashlib
import itertools
import json
import math
import re
import runpy
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA_VERSION = 3
INIT, READY, RUNNING, FAULT = "INIT", "READY", "RUNNING", "FAULT"
FAULTS = (  # why a step is refused
    *("not_reset", "latched", "late", "keys", "shape", "dtype", "not_finite", "instruction", "hard_range", "stale"),
    *("network", "internal"),
)
COUNTERS = ("steps", "accepted", "training_range", "bounds", "rate", "workspace")  # the last three: actions changed
LIMITS = {  # what an integrator may set, in the card or here
    "observations": ("hard_low", "hard_high", "max_age_s"),
    "actions": ("low", "high", "modes", "rate_limit"),
    "safety": ("fallback", "faults_before_latching", "max_gap_s", "workspace"),
}
MODELS = ("policy.onnx", "policy.fp16.onnx", "policy.int8.onnx")  # the same step; the last two with rounded weights
FALLBACKS = ("hold", "zero", "last", "stop")
Timestamp = float | Mapping[str, float] | None
_NEEDED = ("observations", "actions", "safety", "control_hz", "history_length", "inputs", "outputs", "tokenizer")
_NUM_KEPT = 4096  # encoded instructions
_NUM_LISTED = 10  # elements that a message spells out
_UNRANGED = ("text", "image")  # words have no range, and every byte of a picture is within its own
_LOG_SECONDS, _DEFAULT_HZ, _MESSAGE_LENGTH = 60.0, 10.0, 300


class ControllerError(Exception):
    """A bundle cannot be used or a step was refused; the message says which, why and what to do."""

    def __init__(self, message: str, reason: str = "bundle") -> None:
        super().__init__(message)
        self.reason = reason  # one of FAULTS where a step was refused


class StepOutputs(NamedTuple):
    """What stands behind an action, for each of its N tokens."""

    tokens: np.ndarray
    """(N,) int64."""
    q_max: np.ndarray
    """(N,) float32 in (0, 1): the value of the bin that was chosen."""
    q_gap: np.ndarray
    """(N,) float32: how far it lies above the mean over all bins."""


class Record(NamedTuple):
    """A step as the log keeps it."""

    time: float
    """Seconds of the controller's clock."""
    state: str
    reason: str | None
    """Why it was refused; None where it was accepted."""
    message: str | None
    observation: dict[str, np.ndarray]
    """The newest that was accepted, as the network took it, without images."""
    action: np.ndarray | None
    """What was sent; None: nothing."""


class WordEncoder:
    """Turns instructions into numbers: each word, each pair of neighbours and each half's words are signs that add up.

    The signs are bits of a hash, so that nothing must be downloaded, and every machine finds the same. Pairs tell what
    is red in "the red can near the blue cube", halves which of the two comes first; the words carry over to new pairs.
    """

    SIZE = 128

    def __init__(self, known: Sequence[str]) -> None:
        """Knows the words of the instructions `known`, those of the log, and no others."""
        self.known = tuple(known)
        self._words = {word for text in known for word in _words(text)}
        self._vectors: dict[str, np.ndarray] = {}

    def encode(self, text: Any) -> np.ndarray:
        """Returns (SIZE,) float32 of unit variance; zeros of a text without words. Equal texts share one array.

        Raises:
            ControllerError: it is not text, or has a word that the log never had: what the policy would do is chance.
        """
        if _text(text) not in self._vectors:
            if len(self._vectors) == _NUM_KEPT:
                self._vectors.clear()
            self._vectors[text] = self._encoded(text)
        return self._vectors[text]

    def _encoded(self, text: str) -> np.ndarray:
        words = _words(text)
        if unknown := [word for word in words if word not in self._words]:
            raise _unknown(text, f"has words that the log never had: {unknown}", self.known)
        placed = (f"{word}/{2 * index // len(words) + 1}" for index, word in enumerate(words))
        parts = [*words, *(" ".join(pair) for pair in itertools.pairwise(words)), *placed]
        signs = [np.zeros(self.SIZE, np.float32), *(_signs(part, self.SIZE) for part in parts)]
        return np.array(np.sum(signs, axis=0) / max(1, len(parts)) ** 0.5, np.float32)


class InstructionTable:
    """The vectors that a language model gave to the instructions of the log; it is not here, so others have none."""

    def __init__(self, known: Sequence[str], vectors: Sequence[str]) -> None:
        """Takes of each instruction float32 numbers, little-endian, in base64."""
        self.known, rows = tuple(known), [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
        self._rows = dict(zip(known, rows, strict=True))

    def encode(self, text: Any) -> np.ndarray:
        """Returns its vector, float32; raises ControllerError where it is not text, or none of these."""
        if _text(text) not in self._rows:
            raise _unknown(text, "is none that the policy was trained on", self.known)
        return self._rows[text]


def text_encoder(described: Mapping[str, Any]) -> WordEncoder | InstructionTable:
    """Returns what encodes the instructions of the policy that a card or a checkpoint describes."""
    known, language = described.get("instructions", ()), described.get("language")
    return InstructionTable(known, language["vectors"]) if language else WordEncoder(known)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ControllerError(f"an instruction must be text, got {type(value).__name__}; give a str", "instruction")
    return value


def _unknown(text: str, what: str, known: Sequence[str]) -> ControllerError:
    nearest = difflib.get_close_matches(text, known, n=3, cutoff=0.0)
    return ControllerError(f"instruction {text!r} {what}; the nearest that it had: {nearest}", "instruction")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _signs(part: str, size: int) -> np.ndarray:
    bits = np.frombuffer(hashlib.shake_128(part.encode()).digest(size // 8), np.uint8)
    return 2.0 * np.unpackbits(bits).astype(np.float32) - 1.0


class Controller:
    """The policy of one bundle folder and the history of one robot.

    States: INIT, until the first `reset`; READY, after a reset; RUNNING, since a step was accepted; FAULT, after too
    many refused steps in a row: every step is answered by the fallback until the next `reset`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str = "policy.onnx",
        limits: Mapping[str, Any] | None = None,
        raises: bool = False,
        session: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Loads and checks the bundle, and runs the network once, since the first run is the slowest.

        Args:
            folder: what `qtransformer export` wrote.
            model: one of `MODELS` that the bundle holds.
            limits: what to obey in place of the card's: {"observations": {name: {...}}, "actions": {...}, "safety":
                {...}} with the entries that `LIMITS` lists; the bundle's README.md describes them.
            raises: a refused step raises ControllerError; otherwise `step` never raises and answers by the fallback.
            session: of onnxruntime on that model, for another device; by default one CPU thread, without spinning.
            clock: seconds, the clock of the timestamps that `step` is given.

        Raises:
            ControllerError: a file is missing or damaged, the bundle has another schema version, or a limit is unsound.
        """
        self._folder, self._model, self._raises, self._clock = Path(folder), model, raises, clock
        self._sums = read_sums(self._folder)
        if model not in MODELS or model not in self._sums:
            found = [name for name in MODELS if name in self._sums]
            raise ControllerError(f"model ({model}) must be one of {found}, which {folder} holds; export it, too")
        graph = read_verified(self._folder, model, self._sums)
        self._session = make_session(graph) if session is None else session
        self._obey(merge_limits(_read_card(self._folder, self._sums), limits or {}))
        zeros = {name: np.zeros(each["shape"], each["dtype"])[0] for name, each in self._inputs.items()}
        self._run({name: zeros[name] for name in self._specs}, *self._no_history())

    @property
    def card(self) -> dict[str, Any]:
        """All of policy.json, with the limits that are obeyed."""
        return self._card

    @property
    def window(self) -> int:
        """Number of observations that the policy sees, the newest included."""
        return self._card["history_length"]

    @property
    def state(self) -> str:
        """INIT, READY, RUNNING or FAULT."""
        return self._state

    @property
    def last_outputs(self) -> StepOutputs | None:
        """What stands behind the last accepted step's action; None before the first."""
        return self._last

    def fork(self, limits: Mapping[str, Any] | None = None) -> Controller:
        """Returns a controller with history, counters and log of its own on the same session; it needs a `reset`.

        Raises:
            ControllerError: one of the `limits`, obeyed in place of this one's, is unsound.
        """
        twin = copy.copy(self)
        twin._obey(merge_limits(self._card, limits or {}))
        return twin

    def reset(self, instruction: str | None = None, sent: Any = None) -> None:
        """Forgets the history and ends a FAULT: call it at the start of every episode.

        Args:
            instruction: what the text observation says where a step's observation has none.
            sent: the command (A,) that the robot obeys now; the first action's rate is limited against it.

        Raises:
            ControllerError: the instruction is unknown, the policy takes none, or `sent` is none; all is as before.
        """
        if instruction is not None:
            if not self._texts:
                raise ControllerError("instruction: this policy has no text observation; leave it out", "instruction")
            self._text_encoder.encode(instruction)
        self._sent = None if sent is None else self._limiter.checked(sent)
        self._instruction, self._last, self._frame = instruction, None, None
        self._history, self._num_frames = self._no_history()
        self._state, self._num_refused, self._stepped_at, self._taken_at = READY, 0, None, {}

    def step(self, observation: Mapping[str, Any], timestamp: Timestamp = None) -> np.ndarray | None:
        """Returns the action (A,) float32 for the newest observation, in the environment's units, within the limits.

        A step that is refused leaves the history as it was, is counted under its reason, and is answered by the
        fallback; None means: send nothing.

        Args:
            observation: {name: array or text} as `card["observations"]` lists them.
            timestamp: when it was taken, of the whole or by name, in seconds of the controller's clock. Without, its
                age is not checked.

        Raises:
            ControllerError: with `raises=True`, the observation or the outputs are unusable.
        """
        self.counters["steps"] += 1
        try:
            frame = self._accepted(observation, timestamp)
            outputs = self._run(frame, self._history, self._num_frames)
            if not (outputs["ok"].all() and np.isfinite(outputs["actions"]).all()):
                raise ControllerError(
                    "outputs of the policy must be finite, got ok = False; "
                    "hold the robot, look for the sensor that left its range, and step again",
                    "network",
                )
        except ControllerError as error:
            return self._refuse(error)
        except Exception as error:  # whatever a sensor's object or the runtime raises: the loop must go on
            return self._refuse(ControllerError(f"step failed ({error!r}); look at the observation", "internal"))
        self._history, self._num_frames = outputs["history_out"], outputs["num_frames_out"]
        self._frame, self._state, self._num_refused = frame, RUNNING, 0
        self._last = StepOutputs(*(outputs[name][0] for name in StepOutputs._fields))
        self.counters["accepted"] += 1
        return self._send(outputs["actions"][0], None)

    def self_test(self) -> dict[str, Any]:
        """Replays golden.npz and returns the report; `passed` says whether the graph does what it did at its export.

        Raises:
            ControllerError: golden.npz, policy_flat.onnx or parity.json is missing or damaged.
        """
        beside = runpy.run_path(str(Path(__file__).with_name("self_test.py")))
        read = functools.partial(read_verified, self._folder, sums=self._sums)
        return beside["self_test"](self._card, self._run, self._model, read, make_session)

    def save_log(self, path: str | Path) -> None:
        """Writes the last minute, one JSON object a step: time, state, reason, observation (no images), action."""
        lines = [json.dumps(record._asdict(), default=lambda array: array.tolist()) for record in self.log]
        Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def _obey(self, card: dict[str, Any]) -> None:
        """Takes the limits of `card` and starts anew."""
        self._card, self._limiter, self._safety = card, _Limiter(card), card["safety"]
        seconds = [self._safety["max_gap_s"], *(spec["max_age_s"] for spec in card["observations"])]
        most = self._safety["faults_before_latching"]
        if not all(each is None or _is_positive(each) for each in seconds) or not (_is_positive(most) and most >= 1):
            raise ControllerError("max_gap_s, max_age_s must be above 0 or null, faults_before_latching at least 1")
        self._inputs = {each["name"]: each for each in card["inputs"]}
        self._specs = {spec["name"]: spec for spec in card["observations"]}
        self._texts = [name for name, spec in self._specs.items() if spec["kind"] == "text"]
        self._ranges = {name: _ranges(spec) for name, spec in self._specs.items() if spec["kind"] not in _UNRANGED}
        self._text_encoder = text_encoder(card)
        self._state, self._num_refused = INIT, 0
        self._stepped_at: float | None = None
        self._taken_at: dict[str, float] = {}
        self._instruction: str | None = None
        self._history, self._num_frames = self._no_history()
        self._frame: dict[str, np.ndarray] | None = None
        self._last: StepOutputs | None = None
        self._sent: np.ndarray | None = None
        self.counters = dict.fromkeys((*COUNTERS, *FAULTS), 0)
        self.log: deque[Record] = deque(maxlen=math.ceil(_LOG_SECONDS * (self._card["control_hz"] or _DEFAULT_HZ)))

    def _no_history(self) -> tuple[np.ndarray, np.ndarray]:
        history, num_frames = self._inputs["history_in"], self._inputs["num_frames_in"]
        return np.zeros(history["shape"], np.float32), np.zeros(num_frames["shape"], np.int64)

    def _run(
        self, frame: Mapping[str, np.ndarray], history: np.ndarray, num_frames: np.ndarray
    ) -> dict[str, np.ndarray]:
        names = [output["name"] for output in self._card["outputs"]]
        inputs = {name: array[None] for name, array in frame.items()}
        found = self._session.run(names, {**inputs, "history_in": history, "num_frames_in": num_frames})
        return dict(zip(names, found, strict=True))

    def _accepted(self, observation: Mapping[str, Any], timestamp: Timestamp) -> dict[str, np.ndarray]:
        """Returns a copy of the observation as the network takes it; raises where it is unusable."""
        if self._state == INIT:
            message = "step() must follow reset(), got no reset() yet; call it when an episode starts"
            raise ControllerError(message, "not_reset")
        if self._state == FAULT:
            message = f"{self._num_refused} refused steps in a row latched the FAULT; call reset() when all is well"
            raise ControllerError(message, "latched")
        now, before = self._clock(), self._stepped_at
        self._stepped_at, most = now, _or_infinity(self._safety["max_gap_s"])
        if before is not None and not now - before <= most:
            raise ControllerError(f"step came {now - before:.3g} s after the one before, at most {most:.3g} s", "late")
        frame = self._checked(observation)
        taken_at = timestamp if isinstance(timestamp, Mapping) else dict.fromkeys(self._specs, timestamp)
        taken_at = {name: time for name, time in taken_at.items() if time is not None}
        for name, taken in taken_at.items():
            most = _or_infinity(self._specs[name]["max_age_s"])
            if not (abs(now - taken) <= most and taken >= self._taken_at.get(name, -math.inf)):
                message = f"observation {name!r}: is {now - taken:.3g} s old, at most {most:.3g} s, and never older "
                raise ControllerError(message + "than the one before", "stale")
        self._taken_at = {**self._taken_at, **taken_at}
        return frame

    def _checked(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if self._instruction is not None:
            observation = {**dict.fromkeys(self._texts, self._instruction), **observation}
        if set(observation) != set(self._specs):
            raise ControllerError(
                f"observation keys ({sorted(map(str, observation))}) must be {sorted(self._specs)}; "
                "send exactly the keys that the policy was trained on",
                "keys",
            )
        frame = {
            name: self._text_encoder.encode(observation[name])
            if name in self._texts
            else _checked_array(observation[name], spec)
            for name, spec in self._specs.items()
        }
        is_usual = True
        for name, (hard, training) in self._ranges.items():
            outside = ~hard.holds(frame[name])
            if outside.any():
                worst = int(np.flatnonzero(outside)[0])
                raise ControllerError(
                    f"observation {name!r}: element {worst} is {frame[name].flat[worst]:.6g}, must lie between "
                    f"{hard.low.flat[worst]:.6g} and {hard.high.flat[worst]:.6g}; look for a wrong unit",
                    "hard_range",
                )
            is_usual &= bool(training.holds(frame[name]).all())
        self.counters["training_range"] += not is_usual
        return frame

    def _refuse(self, error: ControllerError) -> np.ndarray | None:
        self.counters[error.reason] += 1
        self._num_refused += 1
        if self._state != INIT and self._num_refused >= self._safety["faults_before_latching"]:
            self._state = FAULT
        if self._raises:
            raise error
        return self._send(self._limiter.fallback(self._safety["fallback"], self._sent), error)

    def _send(self, wanted: np.ndarray | None, error: ControllerError | None) -> np.ndarray | None:
        action = None
        if wanted is not None:
            frame = self._frame if error is None else None  # where the robot is now, nobody knows
            action, interventions = self._limiter.limited(wanted, self._sent, frame)
            self._sent = action
            for reason in interventions:
                self.counters[reason] += 1
        kept = {name: array for name, array in (self._frame or {}).items() if self._specs[name]["kind"] != "image"}
        reason, message = (None, None) if error is None else (error.reason, str(error)[:_MESSAGE_LENGTH])
        self.log.append(Record(self._clock(), self._state, reason, message, kept, action))
        return None if action is None else action.copy()


class _Limiter:
    """What may be sent: bounds, the rate against the last command, and a box around named positions."""

    def __init__(self, card: Mapping[str, Any]) -> None:
        actions, safety = card["actions"], card["safety"]
        size, hz = len(card["tokenizer"]["low"]), card["control_hz"]
        self._low, self._high = (_numbers(actions[key], (size,), math.nan, key) for key in ("low", "high"))
        if not (self._low <= self._high).all():
            raise ControllerError("actions: low must not lie above high, and neither be missing; correct the limits")
        rate = _numbers(actions["rate_limit"], (size,), math.inf, "rate_limit")
        if not hz and np.isfinite(rate).any():
            raise ControllerError("rate_limit needs control_hz, which the log did not know; leave it out")
        self._most_change = rate / (hz or 1.0)
        modes = actions["modes"] or [None] * size
        if len(modes) != size or not {*modes} <= {"absolute", "delta", None}:
            raise ControllerError(f"actions modes ({modes}) must be 'absolute', 'delta' or null, {size} of them")
        self._is_absolute = np.array([mode != "delta" for mode in modes])
        if safety["fallback"] not in FALLBACKS:
            raise ControllerError(f"fallback ({safety['fallback']}) must be one of {FALLBACKS}; correct it")
        if safety["fallback"] == "hold" and None in modes:
            raise ControllerError("fallback 'hold' needs actions modes: say 'absolute' or 'delta' for each dimension")
        self._box = [_side(name, side, card) for name, side in (safety["workspace"] or {}).items()]

    def checked(self, action: Any) -> np.ndarray:
        """Returns `action` as a float32 copy; raises where it is none."""
        try:
            array = np.array(action, np.float32)
        except (TypeError, ValueError):
            array = np.array(np.nan)
        if array.shape != self._low.shape or not np.isfinite(array).all():
            raise ControllerError(f"action must be {self._low.size} finite numbers, got {action}")
        return array

    def fallback(self, name: str, sent: np.ndarray | None) -> np.ndarray | None:
        """Returns what answers a refused step after the command `sent`; None: nothing."""
        is_kept = {"hold": self._is_absolute, "last": np.ones_like(self._is_absolute)}.get(name, ~self._is_absolute[:0])
        if name == "stop" or (is_kept.any() and sent is None):
            return None
        return np.zeros_like(self._low) if name == "zero" or sent is None else np.where(is_kept, sent, np.float32(0))

    def limited(
        self, action: np.ndarray, sent: np.ndarray | None, frame: Mapping[str, np.ndarray] | None
    ) -> tuple[np.ndarray, list[str]]:
        """Returns what may be sent in place of `action`, and what had to change it: `COUNTERS` names it."""
        bounded = np.clip(action, self._low, self._high)
        smooth = bounded if sent is None else np.clip(bounded, sent - self._most_change, sent + self._most_change)
        boxed = smooth.copy()
        for side in self._box:
            boxed[side.dimension] = side.clip(float(boxed[side.dimension]), frame)
        stages = {"bounds": (action, bounded), "rate": (bounded, smooth), "workspace": (smooth, boxed)}
        changed = [name for name, (before, after) in stages.items() if not np.array_equal(before, after)]
        return np.clip(boxed, self._low, self._high).astype(np.float32), changed


class _Side(NamedTuple):
    """One side of the workspace box: position + scale * action must lie in [low, high]."""

    dimension: int
    observation: str
    element: int
    low: float
    high: float
    scale: float

    def clip(self, value: float, frame: Mapping[str, np.ndarray] | None) -> float:
        if frame is None:
            return 0.0  # stay
        position = float(frame[self.observation].flat[self.element])
        return min(max(value, (self.low - position) / self.scale), (self.high - position) / self.scale)


def _side(name: str, side: Any, card: Mapping[str, Any]) -> _Side:
    elements = {spec["name"]: list(spec["elements"]) for spec in card["observations"]}
    try:
        dimension = list(card["actions"]["elements"]).index(name)
        element = elements[side["observation"]].index(side["element"])
        found = _Side(dimension, side["observation"], element, side["low"], side["high"], side.get("scale", 1.0))
        if found.low <= found.high and found.scale > 0:
            return found
        raise ValueError("low must be at most high, scale positive")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ControllerError(
            f"workspace {name!r}: {error!r}; give observation, element, low, high, scale by names of the card"
        ) from error


class _Range(NamedTuple):
    low: np.ndarray
    high: np.ndarray

    def holds(self, array: np.ndarray) -> np.ndarray:
        return (array >= self.low) & (array <= self.high)


def merge_limits(card: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the card with the entries of `limits` in place of its own.

    Raises:
        ControllerError: a name is none of `LIMITS`, or of no observation, or there is nothing to limit.
    """
    merged = copy.deepcopy(dict(card))
    specs = {spec["name"]: spec for spec in merged["observations"]}
    for part, entries in limits.items():
        names = LIMITS.get(part)
        places, changes = (specs, entries) if part == "observations" else (merged, {part: entries})
        for place, change in changes.items():
            is_known = names is not None and place in places and isinstance(change, Mapping) and {*change} <= {*names}
            if not is_known:
                raise ControllerError(f"limits: {part} {place} {change} must be names of {LIMITS}; correct it")
            if (kind := places[place].get("kind")) in _UNRANGED and any(map(change.get, ("hard_low", "hard_high"))):
                raise ControllerError(f"limits: {place}: a hard range is for numbers, not for {kind}; leave it out")
            places[place].update(change)
    return merged


def _numbers(values: Any, shape: Sequence[int], missing: float, name: str) -> np.ndarray:
    """Returns float32 numbers of a list that may be missing, in whole or in part."""
    size = math.prod(shape)
    try:
        listed = [missing if value is None else value for value in ([None] * size if values is None else values)]
        return np.array(listed, np.float32).reshape(shape)
    except (TypeError, ValueError) as error:
        raise ControllerError(f"{name}: must hold {size} numbers, got {values}; correct the limits") from error


def _ranges(spec: Mapping[str, Any]) -> tuple[_Range, _Range]:
    """Returns the hard range and the training range of an observation."""

    def numbers(name: str, missing: float) -> np.ndarray:
        return _numbers(spec[name], spec["shape"], missing, name)

    hard = _Range(numbers("hard_low", -math.inf), numbers("hard_high", math.inf))
    return hard, _Range(numbers("training_low", -math.inf), numbers("training_high", math.inf))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the digests of the files by name; raises where SHA256SUMS cannot be read."""
    path = folder / "SHA256SUMS"
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
        return {name: digest for digest, name in lines}
    except (OSError, ValueError) as error:
        raise ControllerError(f"{path}: is missing or damaged ({error!r}); copy or export the bundle again") from error


def read_verified(folder: Path, name: str, sums: Mapping[str, str]) -> bytes:
    """Returns the content of a file of the bundle; raises where it is not what SHA256SUMS says."""
    path = folder / name
    try:
        data = b"" if path.is_symlink() else path.read_bytes()  # a link may lead anywhere
    except OSError as error:
        raise ControllerError(f"{path}: cannot be read ({error}); copy or export the bundle again") from error
    found, expected = hashlib.sha256(data).hexdigest(), sums.get(name)
    if found != expected:
        raise ControllerError(
            f"{path}: sha256 ({found[:12]}) must be {str(expected)[:12]} as in SHA256SUMS; "
            "the file is damaged, changed, a link or from another export: copy or export the bundle again"
        )
    return data


def _read_card(folder: Path, sums: Mapping[str, str]) -> dict[str, Any]:
    path = folder / "policy.json"
    try:
        card = json.loads(read_verified(folder, path.name, sums))
        found = card["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ControllerError(f"{path}: is damaged ({error!r}); copy or export the bundle again") from error
    if found != SCHEMA_VERSION:
        raise ControllerError(
            f"{path}: schema_version ({found}) must be {SCHEMA_VERSION}; use the controller.py of that bundle"
        )
    missing = [key for key in _NEEDED if key not in card]
    if missing:
        raise ControllerError(f"{path}: must have the keys {missing}, got {sorted(card)}; export the bundle again")
    return card


def make_session(model: bytes) -> Any:
    """Returns an onnxruntime session on one thread of the CPU, which waits without spinning.

    Raises:
        ControllerError: onnxruntime is not installed, or does not take the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ControllerError(f"onnxruntime is needed ({error}); pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "nowhere/at/all")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a dozen kinds of its own
        raise ControllerError(
            f"onnxruntime {onnxruntime.__version__} cannot load the graph ({error}); use another version"
        ) from error


def _checked_array(value: Any, spec: Mapping[str, Any]) -> np.ndarray:
    name, dtype = spec["name"], np.dtype(spec["dtype"])
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise ControllerError(f"observation {name!r}: must be an array ({error})", "shape") from error
    if list(given.shape) != list(spec["shape"]):
        raise ControllerError(f"observation {name!r}: shape {given.shape} must be {tuple(spec['shape'])}", "shape")
    if not np.can_cast(given.dtype, dtype, "same_kind" if dtype.kind == "f" else "safe"):  # integers would wrap around
        raise ControllerError(f"observation {name!r}: dtype {given.dtype} must be {dtype}, or cast safely", "dtype")
    if spec["kind"] == "image":  # large, always finite, and not kept: no copy
        return given.astype(dtype, copy=False)
    with np.errstate(over="ignore"):  # what overflows is not finite afterwards
        array = np.array(given, dtype)  # a copy: the caller may fill the same array again
    if not np.isfinite(array).all():
        bad = [int(index) for index in np.flatnonzero(~np.isfinite(array))][:_NUM_LISTED]
        message = f"observation {name!r}: must be finite, got NaN or infinity at element(s) {bad}"
        raise ControllerError(message, "not_finite")
    return array


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the self-test; returns the exit status."""
    parser = argparse.ArgumentParser(description="Replays the recorded steps of an exported policy.")
    parser.add_argument("--self-test", action="store_true", required=True, help="compare with golden.npz")
    parser.add_argument("folder", nargs="?", default=Path(__file__).parent, type=Path, help="default: beside this file")
    try:
        report = Controller(parser.parse_args(arguments).folder).self_test()
    except ControllerError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
