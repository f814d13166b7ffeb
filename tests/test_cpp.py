"""The C++ controller, built here: on a graph that is known by hand, and beside the Python one, step by step."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_fixtures import CARD, GRAPH, change_card, observation, write_bundle, write_sums
from cpp_fixtures import (
    CAN_BUILD,
    DRIVER,
    INSTRUCTIONS,
    LIBRARY,
    SOURCES,
    WHY_NOT,
    Cpp,
    Python,
    built_once,
    compiled,
    digits,
    write_graph,
    write_worded,
)

from qtransformer.deploy.controller import (
    COUNTERS,
    FAULTS,
    SCHEMA_VERSION,
    Controller,
    ControllerError,
    WordEncoder,
    text_encoder,
)

pytestmark = pytest.mark.skipif(not CAN_BUILD, reason=WHY_NOT)

NAN, INF = float("nan"), float("inf")
BAD = observation(NAN, 0.0)
LOW, HIGH = np.array([-1, -2], np.float32), np.array([1, 2], np.float32)
WORDS = "put the red can near the blue cube pick up the cup 2 times"
NARROW = {"hard_low": [-3.0, -3.0], "hard_high": [3.0, 3.0]}


@pytest.fixture(scope="session")
def driver() -> Path:
    return built_once(DRIVER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_worded(tmp_path_factory.mktemp("worded"))


@pytest.fixture
def make(driver: Path, folder: Path) -> Callable[..., Cpp]:
    """Makes a C++ controller with limits, reset once."""

    def made(**limits: Any) -> Cpp:
        cpp = Cpp(driver, folder, limits)
        cpp.reset()
        return cpp

    return made


def actions(cpp: Cpp) -> list[Any]:
    return [each.action and np.round(each.action, 5).tolist() for each in cpp.answers()[0]]


# --- what belongs together stays together -----------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_a_compiler_that_does_not_see_nan_is_refused(tmp_path: Path, flag: str):
    result = compiled(DRIVER, tmp_path / "out", flag, "-E")
    assert "the controller must see NaN: compile without -ffast-math" in result.stderr
    assert result.returncode != 0


def test_versions_and_counters_are_those_of_python(make: Callable[..., Cpp]):
    (version,) = re.findall(r"schema_version = (\d+);", (SOURCES / "bundle.hpp").read_text())
    assert int(version) == SCHEMA_VERSION
    assert list(make().answers()[1]) == [*COUNTERS, *FAULTS]


def test_no_file_of_it_is_long():
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES.iterdir()}
    assert len(lengths) > 10
    assert max(lengths.values()) <= 350, lengths


# --- actions known by hand --------------------------------------------------------------------------------------------


def test_short_history_is_padded_with_the_newest_observation(make: Callable[..., Cpp]):
    cpp = make()
    for x in (0.03, 0.06, 0.0, 0.0):
        cpp.step(observation(x, 0.0))
    cpp.reset()
    cpp.step(observation(0.01, 9.0))
    assert actions(cpp) == [[0.3, 0], [0.5, 0], [0.3, 0], [0.2, 0], [0.1, 2.0]]


@pytest.mark.parametrize(
    ("fallback", "before", "after"),
    [("zero", [0, 0], [0, 0]), ("last", None, [0.3, 0.6]), ("stop", None, None), ("hold", None, [0, 0.6])],
)
def test_a_refused_step_is_answered_by_the_fallback(make: Callable[..., Cpp], fallback: str, before: Any, after: Any):
    cpp = make(safety={"fallback": fallback}, actions={"modes": ["delta", "absolute"]})
    for each in (BAD, observation(0.03, 0.06), BAD, observation(0.03, 0.06)):
        cpp.step(each)
    assert actions(cpp) == [before, [0.3, 0.6], after, [0.3, 0.6]]


def test_states_and_latching(driver: Path, folder: Path):
    cpp, good = Cpp(driver, folder), observation(0.03, 0.06)
    cpp.step(good)
    cpp.reset()
    for each in (good, BAD, BAD, good, BAD, BAD, BAD, good):
        cpp.step(each)
    cpp.reset()
    cpp.step(good)
    answers, counters = cpp.answers()
    states = ["INIT", *["RUNNING"] * 6, "FAULT", "FAULT", "RUNNING"]
    assert [each.state for each in answers] == states
    assert answers[0].message == "step() must follow reset(), got no reset() yet; call it when an episode starts"
    assert answers[8].message == "3 refused steps in a row latched the fault; call reset() when all is well"
    assert answers[8].action == [0.0, 0.0]
    assert answers[9].message == ""
    assert [counters[name] for name in ("steps", "accepted", "not_reset", "latched", "not_finite")] == [10, 3, 1, 1, 5]


def test_the_rate_is_limited_against_what_was_sent(make: Callable[..., Cpp]):
    """Two units a second at 10 Hz: 0.2 a step; the mean over the window asks for 0.9 and then 0.6."""
    cpp = make(actions={"rate_limit": [2.0, None]})
    for each in (observation(0.0, 0.0), observation(0.09, 0.09), observation(0.09, 0.09), BAD):
        cpp.step(each)
    cpp.reset(sent=[-1.0, 0.0])
    cpp.step(observation(0.05, 0.0))
    assert actions(cpp) == [[0, 0], [0.2, 0.6], [0.4, 0.6], [0.2, 0], [-0.8, 0]]


def test_stale_and_late_readings_are_refused(make: Callable[..., Cpp]):
    """At most 0.1 s from now, to either side, and never older than the one before; at most 0.3 s from step to step."""
    cpp = make(safety={"max_gap_s": 0.3}, observations={"state": {"max_age_s": 0.1}})
    times = [(100, 100), (100.05, 99.995), (100.2, 100.25), (100.3, 100.5), (100.4, 100.29), (100.5, None), (101, 101)]
    for now, taken_at in (*times, (101.1, 101.1)):
        cpp.clock(float(now))
        cpp.step(observation(0, 0), taken_at)
    reasons = ["accepted", "stale", "accepted", "stale", "stale", "accepted", "late", "accepted"]
    assert [each.reason for each in cpp.answers()[0]] == reasons


def test_bounds_and_workspace(make: Callable[..., Cpp]):
    """The hand is at state x; an action of 1 moves it by 0.1: at 0.05 it may go to 0.08, at 0.09 it must come back."""
    side = {"observation": "state", "element": "x", "low": 0.0, "high": 0.08, "scale": 0.1}
    cpp = make(safety={"workspace": {"dx": side}}, actions={"low": [-0.5, -2.0]})
    for x in (0.05, 0.09, 0.2):
        cpp.reset()
        cpp.step(observation(x, 0.3))
    cpp.step(BAD)
    answers, counters = cpp.answers()
    assert [np.round(each.action or [], 5).tolist() for each in answers] == [[0.3, 2], [-0.1, 2], [-0.5, 2], [0, 0]]
    assert [counters[name] for name in ("bounds", "workspace", "rate")] == [3, 3, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e4])
def test_what_no_sensor_reads_never_reaches_the_actuators(make: Callable[..., Cpp], bad: float):
    """In any frame of the history: the next action is as if it never came."""
    for place in range(6):
        ours, clean = make(observations={"state": NARROW}), make()
        for index, frame in enumerate(np.random.default_rng(place).uniform(0.01, 0.09, (6, 2))):
            for element in (0, 1) if index == place else ():
                spoilt = frame.copy()
                spoilt[element] *= bad
                ours.step(observation(*spoilt))
            ours.step(observation(*frame))
            clean.step(observation(*frame))
        (steps, counters), expected = ours.answers(), [each.action for each in clean.answers()[0]]
        assert [each.action for each in steps[place : place + 2]] == [[0.0, 0.0]] * 2
        assert [each.action for each in (*steps[:place], *steps[place + 2 :])] == expected
        assert counters["hard_range" if np.isfinite(bad) else "not_finite"] == 2


@pytest.mark.parametrize(
    ("bad", "reason", "match"),
    [
        ({"state": np.zeros(2)}, "keys", "observation 'goal' is missing; send exactly the keys"),
        ({**observation(0, 0), "more": 1}, "keys", "observation 'more' is not of the policy"),
        ({**observation(0, 0), "state": np.zeros(3)}, "shape", "observation 'state': has not the shape"),
        ({**observation(0, 0), "state": np.zeros((1,) * 9)}, "shape", "observation 'state': has not the shape"),
        ({**observation(0, 0), "state": "up"}, "shape", "observation 'state': has not the shape"),
        (observation(0, NAN), "not_finite", "observation 'state': must be finite, got NaN or infinity at element 1"),
        (observation(1e300, 0), "not_finite", "at element 0"),
        (observation(-4, 0), "hard_range", "element 0 is -4, must lie between -3 and 3; look for a wrong unit"),
        (observation(0, 0, goal=101), "network", "outputs of the policy must be finite, got ok = False"),
    ],
)
def test_a_refused_step_says_why(make: Callable[..., Cpp], bad: Any, reason: str, match: str):
    cpp = make(observations={"state": NARROW})
    cpp.step(observation(0.03, 0.03))
    cpp.step(bad)
    cpp.step(observation(0.0, 0.0))
    (_, refused, after), counters = cpp.answers()
    assert (refused.reason, refused.action, counters[reason]) == (reason, [0.0, 0.0], 1)
    assert match in refused.message
    assert np.round(after.action or [], 5).tolist() == [0.1, 0.1]


def test_a_sensor_that_speaks_twice_is_refused(make: Callable[..., Cpp]):
    cpp = make()
    cpp.step(observation(0, 0))
    cpp.commands[-3] = "step - 3"
    cpp.commands.append(cpp.commands[-1])
    ((refused,), _) = cpp.answers()
    assert refused.message.startswith("observation 'goal' is there twice")


# --- beside the Python controller -------------------------------------------------------------------------------------

KINDS = ["float32", "float64", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "bool"]


@pytest.mark.parametrize("target", ["uint8", "int32"])
def test_numbers_of_every_type_are_cast_as_numpy_does(driver: Path, tmp_path: Path, target: str):
    """The graph takes float32 of `state`, and of `goal` integers, which must not wrap around."""
    goal = {**CARD["observations"][1], "dtype": target, "hard_low": [0], "hard_high": [90]}
    inputs = [{**each, "dtype": target} if each["name"] == "goal" else each for each in CARD["inputs"]]
    folder = write_bundle(tmp_path, observations=[CARD["observations"][0], goal], inputs=inputs)
    text = GRAPH.replace("float[1,1] goal", f"{target}[1,1] goal")
    text = text.replace("ReduceMax<keepdims = 0>(goal)", "ReduceMax<keepdims = 0>(number)")
    write_graph(folder, text.replace("largest =", "number = Cast<to = 1>(goal)\n largest ="))
    both = [Cpp(driver, folder), Python(folder, {})]
    for each in both:
        for kind in KINDS:
            each.reset()
            each.step({"state": np.array([0, 1], kind), "goal": np.array([3], target)})
            each.step({"state": np.array([1, 0], kind), "goal": np.array([3], kind)})
            each.step({"state": np.array([1, 0], kind), "goal": np.array([91], kind)})
    assert_equal(*both)
    assert {each.reason for each in both[1].steps} == {"accepted", "dtype", "hard_range"}


def assert_equal(cpp: Cpp, python: Python) -> None:
    answers, counters = cpp.answers()
    assert len(answers) == len(python.steps)
    for index, (ours, theirs) in enumerate(zip(answers, python.steps, strict=True)):
        assert (ours.state, ours.reason, ours.action) == (theirs.state, theirs.reason, theirs.action), (index, ours)
    assert counters == python.controller.counters


LIMITS: list[dict[str, Any]] = [
    {
        "observations": {"state": {"hard_low": [-1.0] * 2, "hard_high": [1.0, None], "max_age_s": 0.1}},
        "safety": {"fallback": "last", "max_gap_s": 0.3},
        "actions": {"rate_limit": [5.0, None]},
    },
    {
        "safety": {
            "fallback": "hold",
            "faults_before_latching": 2,
            "workspace": {"grip": {"observation": "state", "element": "y", "low": -0.1, "high": 0.3, "scale": 0.7}},
        },
        "actions": {"modes": ["delta", "absolute"], "rate_limit": [0.7, 1.3], "low": [-0.3, -2.0]},
    },
    {"safety": {"fallback": "stop", "max_gap_s": None}, "observations": {"goal": {"max_age_s": 0.05}}},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_fuzzed_observations_are_answered_as_in_python(driver: Path, folder: Path, limits: Mapping[str, Any]):
    """Never an action beyond the limits, every step accounted for, each as in Python."""
    rng, now = np.random.default_rng(len(str(limits))), 100.0
    cpp, python = Cpp(driver, folder, limits), Python(folder, limits)
    for _ in range(1500):
        now += float(rng.choice([0.1, 0.4, -1.0], p=[0.9, 0.08, 0.02]))
        times = [None, now, now - 0.05, now - 0.2, NAN, {"goal": now}, {"state": now - 0.06, "goal": now + 1}]
        timestamp = times[rng.integers(3) if rng.random() < 0.8 else rng.integers(len(times))]
        is_reset, sent = rng.random() < 0.1, [None, [0.5, -0.5]][rng.integers(2)]
        newest = fuzzed(rng)
        for each in (cpp, python):
            each.clock(now)
            if is_reset:
                each.reset(sent=sent)
            each.step(newest, timestamp)
    assert_equal(cpp, python)
    counters = python.controller.counters
    assert counters["steps"] == 1500 == counters["accepted"] + sum(counters[reason] for reason in FAULTS)
    assert counters["accepted"] > 100
    assert sum(counters[reason] > 0 for reason in (*COUNTERS, *FAULTS)) >= 10
    sent_actions = np.array([each.action for each in python.steps if each.action])
    assert ((sent_actions >= LOW) & (sent_actions <= HIGH)).all()


def fuzzed(rng: np.random.Generator) -> dict[str, Any]:
    good: dict[str, Any] = {"state": rng.uniform(-0.3, 0.3, 2), "goal": rng.uniform(0, 1, 1)}
    if rng.random() < 0.6:
        return good
    key = ("state", "goal")[rng.integers(2)]
    odd = [0.0, -0.0, 1e-45, 1e10, 3.5e38, -1e300, NAN, INF, -INF, 200.0]
    kinds: list[Callable[[], Any]] = [
        lambda: {**good, key: good[key] * odd[rng.integers(len(odd))]},
        lambda: {**good, key: good[key] + odd[rng.integers(len(odd))]},
        lambda: {name: array for name, array in good.items() if name != key},
        lambda: {**good, "extra": np.zeros(1)},
        lambda: {**good, key: rng.normal(size=tuple(rng.integers(0, 3, rng.integers(0, 4))))},
        lambda: {**good, key: (100 * good[key]).astype(KINDS[rng.integers(len(KINDS))])},
        lambda: {**good, key: good[key].astype(np.float32)},
        lambda: {},
    ]
    return kinds[rng.integers(len(kinds))]()


def test_a_step_allocates_nothing_and_nothing_grows(make: Callable[..., Cpp]):
    cpp, rng = make(safety={"faults_before_latching": 1e9}), np.random.default_rng(1)
    for index in range(2000):
        cpp.step(fuzzed(rng))
        if index in (999, 1999):
            cpp.commands.append("heap")
    lines = cpp.run()
    before, after = (int(line) for line in lines if line.isdigit())
    assert after <= before + 1000
    allocations = [line.split()[1:3] for line in lines if "\t" in line]
    refused = [int(count) for reason, count in allocations if reason not in ("accepted", "network")]
    assert len(refused) > 300
    assert not any(refused)


# --- words and JSON ---------------------------------------------------------------------------------------------------


def test_instructions_are_encoded_bit_for_bit_as_in_python(driver: Path, worded: Path):
    rng, words = np.random.default_rng(0), list(dict.fromkeys(WORDS.split()))
    texts = ["", "!?", *INSTRUCTIONS[:2], "PUT_the", "a\tb"]
    texts += [" ".join(rng.choice(words, size)).title() for size in (*range(1, 60), 200)]
    cpp = Cpp(driver, worded, commands=[f"encode {digits(text.encode())}" for text in texts])
    encoder = WordEncoder(INSTRUCTIONS)
    for text, line in zip(texts, cpp.run(), strict=True):
        if line.startswith("error"):
            with pytest.raises(ControllerError, match="has words that the log never had"):
                encoder.encode(text)
            assert "has words that the log never had: " in line
        else:
            assert [float.fromhex(each) for each in line.split()] == encoder.encode(text).tolist()


def test_letters_beyond_ascii_are_refused(driver: Path, worded: Path):
    cpp = Cpp(driver, worded, commands=[f"encode {digits(text.encode())}" for text in ("größer", "gr", "“cup”")])
    lines = cpp.run()
    assert ["letters beyond ASCII" in line for line in lines] == [True, False, True]
    assert lines[1] == "error has words that the log never had: gr"


def test_words_at_the_reset_and_in_a_step(driver: Path, worded: Path, folder: Path):
    state = {"state": np.array([0.01, 0.02])}
    both = [Cpp(driver, worded), Python(worded, {})]
    for each in both:
        each.reset()
        each.step(state)
        each.step({**state, "goal": "the red can"})
        each.step({**state, "goal": "the red mug"})
        each.step({**state, "goal": np.zeros(128)})
        each.reset("Pick up the cup!")
        each.step(state)
        each.step({**state, "goal": "the red can"})
        each.step(state)
    assert_equal(*both)
    assert [each.reason for each in both[1].steps[:4]] == ["keys", "accepted", "instruction", "instruction"]
    cpp = Cpp(driver, worded)
    cpp.reset("pick up the mug")
    cpp.reset(sent=[NAN, 0.0])
    assert cpp.run() == [
        "error instruction 'pick up the mug' has words that the log never had: mug",
        "error sent must be 2 finite numbers; give the robot's command",
    ]
    cpp = Cpp(driver, folder)
    cpp.reset("pick")
    assert cpp.run() == ["error instruction: this policy has no text observation; leave it out"]


def test_a_table_of_a_language_model_is_read_bit_for_bit(driver: Path, tmp_path: Path):
    """Three numbers a text: base64 without and, of two texts, with its padding."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 3):
        vectors = (rng.normal(size=(len(INSTRUCTIONS), size)) * 10.0 ** rng.integers(-40, 2)).astype(np.float32)
        folder = write_worded(tmp_path / str(size), vectors)
        table = text_encoder(json.loads((folder / "policy.json").read_text()))
        cpp = Cpp(driver, folder, commands=[f"encode {digits(text.encode())}" for text in (*INSTRUCTIONS, "", "cup")])
        *lines, empty, unknown = cpp.run()
        for text, line, vector in zip(INSTRUCTIONS, lines, vectors, strict=True):
            assert [float.fromhex(each) for each in line.split()] == vector.tolist() == table.encode(text).tolist()
        assert empty.startswith("error is none that the policy was trained on; the nearest that it had: ")
        assert unknown == f"error is none that the policy was trained on; the nearest that it had: {INSTRUCTIONS[1]}"
    both = [Cpp(driver, folder), Python(folder, {})]
    for each in both:
        each.reset(INSTRUCTIONS[0])
        each.step({"state": np.array([0.01, 0.02])})
        each.step({"state": np.array([0.01, 0.02]), "goal": INSTRUCTIONS[1]})
        each.step({"state": np.array([0.01, 0.02]), "goal": INSTRUCTIONS[1].title()})
    assert_equal(*both)
    assert [each.reason for each in both[1].steps] == ["accepted", "accepted", "instruction"]


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (["AAA=", "AAAA"], "policy.json: a vector of language is no float32"),
        (["AA!A"], "policy.json: a vector of language is no base64"),
        (["AAAAAA==", "AAAAAAAAAAA="], "policy.json: vectors of language differ in size"),
        ([], "policy.json: language must have a vector for each of the instructions"),
    ],
)
def test_a_table_that_is_none_is_refused(driver: Path, tmp_path: Path, vectors: list[str], match: str):
    folder = write_worded(tmp_path / "bundle")
    missing = [vectors[0]] * (len(INSTRUCTIONS) - len(vectors)) if vectors else []
    change_card(folder, language={"fingerprint": "ab", "vectors": [*vectors, *missing]})
    assert match in refusal(driver, folder)


def told(value: Any) -> str:
    """Returns what the driver prints for this value."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return " ".join(["s", *map(str, value.encode())])
    if isinstance(value, list):
        return "[" + "".join(told(each) + ";" for each in value) + "]"
    if isinstance(value, dict):
        return "{" + "".join(f"{name}:{told(each)};" for name, each in value.items()) + "}"
    return f"{value:.17g}"


def test_json_is_read_as_in_python(driver: Path, folder: Path):
    rng = np.random.default_rng(2)
    numbers = [*(rng.normal(size=50) * 10.0 ** rng.integers(-300, 300, 50)).tolist(), 5e-324, 1e308, -0.0, 0, -12, 1e2]
    texts = ["", "é", "\U0001f916", 'quo"te', "back\\slash", "\b\f\n\r\t/", "\x7f", "\u2028"]
    values = [numbers, texts, {"a": {"b": []}, "": {}, "c": [[None, [1]], {"d": "e"}]}, 3.5, "alone", None]
    documents = [json.dumps(each, indent=1, ensure_ascii=is_ascii) for each in values for is_ascii in (False, True)]
    documents += [json.dumps(each, separators=(",", ":")) for each in values]
    cpp = Cpp(driver, folder, commands=[f"json {digits(each.encode())}" for each in documents])
    assert cpp.run() == [told(json.loads(each)) for each in documents]


def test_json_that_is_none_is_refused(driver: Path, folder: Path):
    texts = [
        "",
        " ",
        "{",
        "[",
        "[1,]",
        "[1 2]",
        '{"a" 1}',
        '{"a":1,}',
        "{1:2}",
        '{"a":1,"a":2}',
        "nul",
        "NaN",
        "Infinity",
    ]
    texts += ["01", "1.", ".5", "+1", "1e", "1e999", "-", "0x1", "1 2", '"a', '"\n"', r'"\x"', r'"\u12"', r'"\ud800"']
    texts += [r'"\ud800\u0041"', "[" * 70 + "]" * 70, "//\n1", "'a'", "tru", "[true", "\ufeff1"]
    lines = Cpp(driver, folder, commands=[f"json {digits(each.encode())}" for each in texts]).run()
    for text, line in zip(texts, lines, strict=True):
        assert re.match(r"error text: is damaged at byte \d+: expected ", line), text


# --- loading ----------------------------------------------------------------------------------------------------------


def refusal(driver: Path, folder: Path, library: Path | str | None = LIBRARY, **limits: Any) -> str:
    command = [str(driver), str(folder), str(library), json.dumps(limits) if limits else ""]
    result = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert result.returncode == 1
    return result.stderr


@pytest.mark.parametrize("name", ["policy.onnx", "policy.json"])
def test_a_damaged_or_missing_file_is_refused(driver: Path, tmp_path: Path, name: str):
    path = write_bundle(tmp_path) / name
    path.write_bytes(path.read_bytes() + b" ")
    assert re.search(rf"{name}: sha256 \(\w{{12}}\) must be \w{{12}} as in SHA256SUMS", refusal(driver, tmp_path))
    path.unlink()
    assert f"{name}: is missing or cannot be read; copy or export the bundle again" in refusal(driver, tmp_path)


def test_what_is_no_bundle_or_another_version_is_refused(driver: Path, tmp_path: Path):
    assert "SHA256SUMS: is missing" in refusal(driver, tmp_path)
    folder = write_bundle(tmp_path, schema_version=1)
    assert f"schema_version (1) must be {SCHEMA_VERSION}; use the cpp/ of that bundle" in refusal(driver, folder)
    write_bundle(folder, tokenizer=[])
    assert "policy.json.tokenizer: must be an object" in refusal(driver, folder)
    write_bundle(folder)
    change_card(folder, actions=None)
    assert "policy.json: must have actions; export the bundle again" in refusal(driver, folder)


def test_a_graph_or_library_that_does_not_fit_is_refused(driver: Path, tmp_path: Path):
    folder = write_bundle(tmp_path)
    assert "cannot be opened" in refusal(driver, folder, tmp_path / "libonnxruntime.so")
    assert "libc.so.6: has no OrtGetApiBase; say where libonnxruntime.so is" in refusal(driver, folder, "libc.so.6")
    write_graph(folder, GRAPH.replace("float[1,2] state", "float[1,2] other").replace("(state,", "(other,"))
    assert re.search(r"policy.onnx: onnxruntime \S+ says: .*state", refusal(driver, folder))
    (folder / "policy.onnx").write_bytes(b"no graph")
    assert re.search(r"policy.onnx: onnxruntime \S+ says: ", refusal(driver, write_sums(folder)))
    outputs = [{**each, "shape": [1, 3]} if each["name"] == "actions" else each for each in CARD["outputs"]]
    assert re.search(
        r"onnxruntime \S+ says: Got invalid dimensions for output: actions",
        refusal(driver, write_bundle(folder, outputs=outputs)),
    )
    outputs = [{**each, "dtype": "int64"} if each["name"] == "ok" else each for each in CARD["outputs"]]
    assert "output ok must be bool" in refusal(driver, write_bundle(folder, outputs=outputs))


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"safety": {"fallback": "dance"}}, "fallback (dance) must be hold, zero, last or stop"),
        ({"safety": {"fallback": "hold"}}, "fallback 'hold' needs actions modes"),
        ({"safety": {"max_gap_s": 0}}, "max_gap_s must be above 0 or null, faults_before_latching at least 1"),
        ({"safety": {"faults_before_latching": 0.5}}, "faults_before_latching at least 1"),
        ({"observations": {"state": {"max_age_s": -1}}}, "max_age_s must be above 0 or null"),
        ({"observations": {"state": {"hard_low": [0]}}}, "hard range of state: must hold 2 numbers, got 1"),
        ({"observations": {"other": {}}}, "limits: no observation is called other"),
        ({"observations": {"state": {"units": []}}}, "limits: observation state has no units"),
        ({"other": {}}, "limits: other must be observations, actions or safety"),
        ({"actions": {"max": []}}, "limits: actions has no max"),
        ({"actions": {"low": [0, None]}}, "low must not lie above high, and neither be missing"),
        ({"actions": {"low": [2, 0]}}, "low must not lie above high"),
        ({"actions": {"modes": ["delta"]}}, "actions modes must be one a dimension"),
        ({"actions": {"modes": ["delta", "far"]}}, "actions modes (far) must be 'absolute', 'delta' or null"),
        ({"actions": {"low": "far"}}, "limits.actions.low: must be an array"),
        (
            {"safety": {"workspace": {"far": {"observation": "state", "element": "x", "low": 0, "high": 1}}}},
            "called far",
        ),
        (
            {"safety": {"workspace": {"dx": {"observation": "state", "element": "x", "low": 1, "high": 0}}}},
            "not below low",
        ),
        (
            {"safety": {"workspace": {"dx": {"observation": "far", "element": "x", "low": 0, "high": 1}}}},
            "workspace dx",
        ),
    ],
)
def test_unsound_limits_are_refused_as_in_python(driver: Path, folder: Path, limits: dict[str, Any], match: str):
    assert match in refusal(driver, folder, **limits)
    with pytest.raises(ControllerError):
        Controller(folder, limits=limits)


def test_a_rate_limit_needs_a_rate(driver: Path, tmp_path: Path):
    folder = write_bundle(tmp_path, control_hz=None)
    assert "rate_limit needs control_hz" in refusal(driver, folder, actions={"rate_limit": [1, None]})
