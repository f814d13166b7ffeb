"""The example of the C++ controller, built as an integrator does: its replay of recorded steps, its loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from controller_fixtures import CARD, TIMES, golden, write_bundle, write_sums
from cpp_fixtures import CAN_BUILD, EXAMPLE, WHY_NOT, built, built_once, run_example, write_worded
from documentation_fixtures import blocks_of

from qtransformer.deploy.controller import FAULTS, Controller

pytestmark = pytest.mark.skipif(not CAN_BUILD, reason=WHY_NOT)

NAN = float("nan")


@pytest.fixture(scope="session")
def example() -> Path:
    """With CMake where it is there, as the integrator does; the compiler alone otherwise."""
    return built_once(EXAMPLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def compress(folder: Path) -> Path:
    with np.load(folder / "golden.npz") as arrays:
        np.savez_compressed(folder / "golden.npz", allow_pickle=False, **dict(arrays))
    return write_sums(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"outputs.tokens": np.ones((TIMES, 3), np.int64)}, "an array has not the type or shape that policy.json says"),
        ({"inputs.state": np.zeros((TIMES, 2))}, "an array has not the type or shape that policy.json says"),
        ({"outputs.q_max": np.zeros((TIMES - 1, 2), np.float32)}, "its arrays differ in length"),
        ({name: array[:0] for name, array in golden().items()}, "it holds no steps"),
        ({"is_tied": np.zeros((TIMES, 2, 8), np.complex64)}, "an array of an unknown type"),
        ({"inputs.state": np.asfortranarray(golden()["inputs.state"])}, "an array in Fortran's order"),
    ],
)
def test_recorded_steps_that_do_not_fit_are_refused(
    example: Path, tmp_path: Path, changes: dict[str, np.ndarray], match: str
):
    status, _, error = run_example(example, write_bundle(tmp_path, changes), "--seconds", "0")
    assert status == 2
    assert f"golden.npz: {match}; export the bundle again" in error


@pytest.mark.parametrize("is_compressed", [False, True])
def test_the_recorded_steps_agree(example: Path, tmp_path: Path, is_compressed: bool):
    folder = write_bundle(tmp_path)
    status, (report,), _ = run_example(example, compress(folder) if is_compressed else folder, "--seconds", "0")
    assert (status, report["passed"], report["first_failure"]) == (0, True, "")
    assert (report["steps"], report["tokens"], report["near_ties"]) == (TIMES, {"equal": 8, "total": 8}, 0)
    theirs = Controller(folder).self_test()
    assert report["largest_action_difference"] == pytest.approx(theirs["largest_action_difference"], rel=1e-5)


TOKENS = np.array([[1, 1], [2, 2], [1, 1], [2, 3]])  # the second token of the last step differs


def with_value(name: str, place: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    array = golden()[name].copy()
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"outputs.tokens": TOKENS}, "step 3: token 1: bin 3 expected, got 2"),
        (with_value("outputs.actions", (2, 0), -0.4999), "step 2: action 0 is off"),
        (with_value("outputs.q_max", (1, 0), 0.6), "step 1: token 0: Q is off"),
        (with_value("outputs.q_max", (1, 0), NAN), "step 1: token 0: Q is off"),
        (with_value("outputs.ok", (1,), False), "step 1: ok is False"),
        (with_value("is_reset", (2,), False), "step 2: token 0: bin 1 expected, got 3"),
        (with_value("inputs.goal", (0, 0), 100), "step 0: ok is False"),
    ],
)
def test_recorded_steps_that_differ_fail(example: Path, tmp_path: Path, changes: dict[str, np.ndarray], failure: str):
    folder = compress(write_bundle(tmp_path, changes))
    status, (report,), _ = run_example(example, folder, "--seconds", "0")
    assert (status, report["passed"], report["first_failure"]) == (1, False, failure)
    assert report["failures"] >= 1
    assert not Controller(folder).self_test()["passed"]


def test_a_near_tie_is_counted_and_forgiven(example: Path, tmp_path: Path):
    is_tied = np.arange(8) == np.full((TIMES, 2, 1), 2)
    folder = write_bundle(tmp_path, {"outputs.tokens": TOKENS, "is_tied": is_tied})
    status, (report,), _ = run_example(example, folder, "--seconds", "0")
    assert (status, report["near_ties"], report["tokens"]) == (0, 1, {"equal": 7, "total": 8})


def test_arrays_of_every_kind_are_unpacked(example: Path, tmp_path: Path):
    """Much, little, repeated and random: all kinds of blocks. Any wrong byte makes an action differ."""
    rng, num_steps = np.random.default_rng(0), 3000
    state = rng.integers(-3, 4, (num_steps, 2)).astype(np.float32) / 100
    state[1000:1500] = 0.01
    state[2000:] = rng.uniform(-0.09, 0.09, (1000, 2))
    arrays = {name: np.resize(array[[0, 2]], (num_steps, *array.shape[1:])) for name, array in golden().items()}
    arrays |= {"inputs.state": state, "is_reset": np.ones(num_steps, bool), "outputs.actions": 10 * state}
    folder = compress(write_bundle(tmp_path, arrays))
    status, (report,), _ = run_example(example, folder, "--seconds", "0")
    assert (status, report["steps"], report["failures"]) == (0, num_steps, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[: len(data) // 2], "no zip archive"),
        (lambda data: b"", "no zip archive"),
        (lambda data: data[:-6] + b"\xff" * 4 + data[-2:], "ends too early"),
        (lambda data: data[100:], "golden.npz: "),
        (lambda data: data.replace(b"PK\1\2", b"PK\1\3", 1), "its directory is damaged"),
        (lambda data: data[:60] + bytes(reversed(data[60:200])) + data[200:], "golden.npz: "),
        (lambda data: data.replace(b"outputs.ok", b"outputs.no"), "golden.npz: must have outputs.ok"),
    ],
)
def test_a_damaged_archive_is_refused(example: Path, tmp_path: Path, change: Callable[[bytes], bytes], match: str):
    path = compress(write_bundle(tmp_path)) / "golden.npz"
    path.write_bytes(change(path.read_bytes()))
    assert "golden.npz: sha256" in run_example(example, tmp_path)[2]
    write_sums(tmp_path)
    status, _, error = run_example(example, tmp_path, "--seconds", "0")
    assert status == 2
    assert match in error


def test_the_loop_keeps_its_rate_and_tells_its_timing(example: Path, tmp_path: Path):
    folder = write_bundle(
        tmp_path, safety={**CARD["safety"], "max_gap_s": 1e-9}
    )  # the rate's own gap is obeyed instead
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"observations": {"state": {"hard_low": [-0.04, None]}}}))
    status, (_, loop), _ = run_example(example, folder, "--seconds", "1", "--rate", "50", "--limits", str(limits))
    counters = loop["counters"]
    assert status == 0
    assert loop["rate"] == 50
    assert 0 < loop["steps"] <= 51
    assert loop["steps"] + loop["deadline_misses"] >= 50  # a tick without a step is a miss
    assert counters["steps"] == loop["steps"] == counters["accepted"] + sum(counters[reason] for reason in FAULTS)
    assert 0 < counters["hard_range"] <= loop["steps"] / TIMES + 1  # the third of the recorded steps reads -0.05
    for name in ("latency_ms", "late_ms"):
        spread = loop[name]
        assert 0 <= spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["max"]


def test_the_loop_of_a_policy_that_takes_words(example: Path, tmp_path: Path):
    worded = write_worded(tmp_path)
    rows = {**golden(), "inputs.goal": np.zeros((TIMES, 128), np.float32)}
    np.savez(worded / "golden.npz", allow_pickle=False, **rows)
    status, (report, loop), _ = run_example(example, write_sums(worded), "--seconds", "0.2", "--realtime")
    assert (status, report["passed"]) == (0, True)
    assert loop["counters"]["accepted"] > 0
    assert loop["realtime"] in (True, False)  # as this machine permits


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--rate", "fast"], "--rate (fast) must be a number, at least 0.1"),
        (["--rate", "0"], "--rate (0) must be a number"),
        (["--seconds"], "--seconds needs a value"),
        (["--dance"], "--dance is not understood"),
    ],
)
def test_flags_that_make_no_sense(example: Path, folder: Path, flags: list[str], match: str):
    status, _, error = run_example(example, folder, *flags)
    assert status == 2
    assert match in error


PRELUDE = """
#include <cstddef>
#include <cstdint>
#include <vector>
#include "qtransformer_controller.hpp"
static const std::vector<double> positions(33);
static const std::uint8_t pixels[96 * 96 * 3] = {};
static const double taken_at = 0.0;
static void send(const float*, std::size_t) {}
int main() {
"""


def test_the_blocks_of_the_page_compile(tmp_path: Path):
    """One after the other, as one program."""
    page = Path(__file__).resolve().parents[1] / "docs" / "robot-cpp.md"
    blocks = [block.text for block in blocks_of(page) if block.language == "cpp"]
    assert blocks
    source = tmp_path / "blocks.cpp"
    source.write_text(PRELUDE + "\n".join(blocks).replace('#include "qtransformer_controller.hpp"', "") + "}\n")
    built(source, tmp_path / "blocks")
