"""A bundle whose two graphs are so small that their outputs are known by hand; the real ones are in test_export."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.deploy import controller as module
from qtransformer.deploy.card import SCHEMA

WINDOW = 3
# A frame is its own token. action = 10 * (mean over the window, missing frames counted as the newest); tokens = (n, n)
# for n frames seen; not ok where the goal is 100 or more.
GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
policy (float[1,2] state, float[1,1] goal, float[1,2,1,2] history_in, int64[1] num_frames_in)
    => (float[1,2] actions, int64[1,2] tokens, float[1,2] q_max, float[1,2] q_gap, bool[1] ok,
        float[1,2,1,2] history_out, int64[1] num_frames_out)
{
    ten = Constant<value_float = 10.0>()
    hundred = Constant<value_float = 100.0>()
    rows = Constant<value_ints = [0, 0]>()
    first = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    two = Constant<value_ints = [2]>()
    three = Constant<value_ints = [3]>()
    slots = Constant<value_ints = [0, 1, 2]>()
    inner = Constant<value_ints = [1, 2]>()
    token_shape = Constant<value_ints = [1, 1, 1, 2]>()
    mask_shape = Constant<value_ints = [1, 3, 1, 1]>()
    flag_shape = Constant<value_ints = [1, 1, 1, 1]>()
    q_max = Constant<value = float[1,2] {0.5, 0.25}>()
    q_gap = Constant<value = float[1,2] {0.1, 0.2}>()
    token = Reshape(state, token_shape)
    joined = Concat<axis = 1>(history_in, token)
    is_before = Less(slots, num_frames_in)
    mask = Reshape(is_before, mask_shape)
    window = Where(mask, joined, token)
    mean = ReduceMean<keepdims = 0>(window, inner)
    actions = Mul(mean, ten)
    seen = Add(num_frames_in, one)
    twice = Gather(seen, rows)
    tokens = Unsqueeze(twice, first)
    largest = ReduceMax<keepdims = 0>(goal)
    is_small = Less(largest, hundred)
    ok = Unsqueeze(is_small, first)
    early = Slice(window, first, two, one)
    late = Slice(window, one, three, one)
    is_two = Equal(num_frames_in, two)
    is_full = Reshape(is_two, flag_shape)
    history_out = Where(is_full, late, early)
    num_frames_out = Min(seen, two)
}
"""
# The row: three states, three goals, the number of frames; the newest frame last.
FLAT = """
<ir_version: 8, opset_import: ["" : 18]>
policy (float[1,10] observations) => (float[1,2] actions)
{
    ten = Constant<value_float = 10.0>()
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    six = Constant<value_ints = [6]>()
    nine = Constant<value_ints = [9]>()
    end = Constant<value_ints = [10]>()
    shape = Constant<value_ints = [3, 2]>()
    last = Constant<value_ints = [2]>()
    slots = Constant<value_ints = [3, 4, 5]>()
    part = Slice(observations, zero, six, one)
    states = Reshape(part, shape)
    number = Slice(observations, nine, end, one)
    count = Cast<to = 7>(number)
    flat_count = Squeeze(count)
    places = Sub(slots, flat_count)
    frames = Min(places, last)
    seen = Gather(states, frames)
    mean = ReduceMean<keepdims = 1>(seen, zero)
    actions = Mul(mean, ten)
}
"""
_OPEN = {"training_low": None, "training_high": None, "hard_low": None, "hard_high": None, "max_age_s": None}
CARD: dict[str, Any] = {
    "schema_version": module.SCHEMA_VERSION,
    "observations": [
        {
            "name": "state",
            "shape": [2],
            "dtype": "float32",
            "kind": "state",
            "elements": ["x", "y"],
            "units": [],
            **_OPEN,
        },
        {"name": "goal", "shape": [1], "dtype": "float32", "kind": "state", "elements": [], "units": [], **_OPEN},
    ],
    "actions": {
        "low": [-1.0, -2.0],
        "high": [1.0, 2.0],
        "elements": ["dx", "grip"],
        "units": [],
        "modes": None,
        "rate_limit": None,
    },
    "tokenizer": {
        "bins": 8,
        "levels": 1,
        "order": "level_major",
        "token_dimensions": [0, 1],
        "token_levels": [0, 0],
        "low": [-1.0, -2.0],
        "high": [1.0, 2.0],
        "edges": [[-1.0, 1.0]],
        "centres": [[0.0]],
        "rule": "none",
        "support_threshold": 0.0,
        "support_temperature": None,
    },
    "control_hz": 10.0,
    "history_length": WINDOW,
    "reset_rule": "zeros",
    "safety": {"fallback": "zero", "faults_before_latching": 3, "max_gap_s": None, "workspace": {}},
    "environment": {"id": None, "kwargs": {}, "ignored_observations": []},
    "inputs": [
        {"name": "state", "dtype": "float32", "shape": [1, 2]},
        {"name": "goal", "dtype": "float32", "shape": [1, 1]},
        {"name": "history_in", "dtype": "float32", "shape": [1, 2, 1, 2]},
        {"name": "num_frames_in", "dtype": "int64", "shape": [1]},
    ],
    "outputs": [
        {"name": "actions", "dtype": "float32", "shape": [1, 2]},
        {"name": "tokens", "dtype": "int64", "shape": [1, 2]},
        {"name": "q_max", "dtype": "float32", "shape": [1, 2]},
        {"name": "q_gap", "dtype": "float32", "shape": [1, 2]},
        {"name": "ok", "dtype": "bool", "shape": [1]},
        {"name": "history_out", "dtype": "float32", "shape": [1, 2, 1, 2]},
        {"name": "num_frames_out", "dtype": "int64", "shape": [1]},
    ],
    "flat": {
        "input": "observations",
        "output": "actions",
        "size": 10,
        "parts": [{"name": "state", "offset": 0, "size": 2}, {"name": "goal", "offset": 6, "size": 1}],
        "layout": "newest last",
    },
}
TIMES = 4  # steps of the golden file; the third starts a new episode


def observation(*state: float, goal: float = 0.0) -> dict[str, np.ndarray]:
    return {"state": np.array(state), "goal": np.array([goal])}


def golden() -> dict[str, np.ndarray]:
    """Two episodes of two steps on the graphs above: the mean of the second step is (first + 2 * second) / 3."""
    state = np.array([[0.03, 0.06], [0.0, 0.03], [-0.05, 0.0], [0.04, 0.0]], np.float32)
    mean = np.array([state[0], (state[0] + 2 * state[1]) / 3, state[2], (state[2] + 2 * state[3]) / 3])
    return {
        "inputs.state": state,
        "inputs.goal": np.zeros((TIMES, 1), np.float32),
        "is_reset": np.array([True, False, True, False]),
        "outputs.actions": 10 * mean,
        "outputs.tokens": np.array([[1, 1], [2, 2], [1, 1], [2, 2]]),
        "outputs.q_max": np.array([[0.5, 0.25]] * TIMES, np.float32),
        "outputs.q_gap": np.array([[0.1, 0.2]] * TIMES, np.float32),
        "outputs.ok": np.ones(TIMES, bool),
        "is_tied": np.zeros((TIMES, 2, 8), bool),
    }


def write_bundle(folder: Path, changes: Mapping[str, np.ndarray] | None = None, **card: Any) -> Path:
    """Writes a bundle folder; `changes` replace arrays of golden.npz, keywords entries of the card."""
    document = {**copy.deepcopy(CARD), **card}
    for name, text in (("policy.onnx", GRAPH), ("policy_flat.onnx", FLAT)):
        write_graph(folder / name, text, document)
    np.savez(folder / "golden.npz", allow_pickle=False, **{**golden(), **(changes or {})})
    (folder / "policy.json").write_text(json.dumps(document))
    for name in ("controller.py", "self_test.py", SCHEMA.name):
        shutil.copyfile(Path(module.__file__).with_name(name), folder / name)
    return write_sums(folder)


def write_graph(path: Path, text: str, card: Mapping[str, Any]) -> None:
    """Writes an ONNX file with the card in its metadata."""
    import onnx.helper
    import onnx.parser

    model = onnx.parser.parse_model(text)
    onnx.helper.set_model_props(model, {"policy_card": json.dumps(card)})
    path.write_bytes(model.SerializeToString())


def with_int8(folder: Path, q_max: str = "0.5, 0.25", num_equal: int = 2 * TIMES) -> Path:
    """Adds policy.int8.onnx to a bundle, which sees the values `q_max`; at its export `num_equal` tokens were equal."""
    text = GRAPH.replace("{0.5, 0.25}", f"{{{q_max}}}")
    write_graph(folder / "policy.int8.onnx", text, json.loads((folder / "policy.json").read_text()))
    formats = {"policy.int8.onnx": {"tokens": {"equal": num_equal, "total": 2 * TIMES}}}
    (folder / "parity.json").write_text(json.dumps({"formats": formats}))
    return write_sums(folder)


def write_sums(folder: Path) -> Path:
    """Makes the checksums those of the files as they are."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS"]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def change_card(folder: Path, **changes: Any) -> None:
    """Replaces entries of the card; None removes one."""
    path = folder / "policy.json"
    card = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in card.items() if value is not None}))
    write_sums(folder)
