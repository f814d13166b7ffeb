"""Pictures in the C++ controller, on a graph that is known by hand; a trained bundle is in test_seen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_fixtures import golden, write_sums
from cpp_fixtures import CAN_BUILD, DRIVER, EXAMPLE, LIBRARY, WHY_NOT, Cpp, Python, built_once, run_example, write_seen
from test_cpp import assert_equal

from qtransformer.deploy.controller import Controller, ControllerError

pytestmark = pytest.mark.skipif(not CAN_BUILD, reason=WHY_NOT)

SHAPE = (2, 4, 3)
STATE = np.array([0.01, -0.02])
GREY = np.ones(SHAPE, np.uint8)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seen(tmp_path_factory.mktemp("seen"))


@pytest.fixture
def both(seen: Path) -> list[Any]:
    """The controllers of both languages, reset once."""
    pair = [Cpp(built_once(DRIVER), seen), Python(seen, {})]
    for each in pair:
        each.reset()
    return pair


def test_a_picture_tells_on_the_action(both: list[Any]):
    """Ten times the state, and the mean of the picture: 0; 6 of 24 bytes are 4; bytes of bool count."""
    bright = np.zeros(SHAPE, np.uint8)
    bright[1, 2:] = 4
    for each in both:
        for picture in (np.zeros(SHAPE, np.uint8), bright, bright > 0):
            each.step({"state": np.array([-0.1, -0.2]), "goal": picture})
    assert_equal(*both)
    assert np.round([each.action for each in both[1].steps], 5).tolist() == [[-1, -2], [0, -1], [-0.75, -1.75]]
    assert both[1].controller.counters["training_range"] == 0


@pytest.mark.parametrize(
    ("picture", "reason", "match"),
    [
        (GREY.transpose(2, 0, 1), "shape", "has not the shape that policy.json says"),
        (GREY.ravel(), "shape", "has not the shape"),
        (GREY[..., :1], "shape", "has not the shape"),
        (np.ones((2, 4, 4), np.uint8), "shape", "has not the shape"),
        (GREY[None], "shape", "has not the shape"),
        ("picture", "shape", "has not the shape"),
        (GREY.astype(np.float32), "dtype", "dtype float32 must be uint8, or cast to it safely"),
        (GREY.astype(np.int8), "dtype", "dtype int8 must be uint8"),
        (GREY.astype(np.uint16), "dtype", "dtype uint16 must be uint8"),
    ],
)
def test_a_picture_of_another_kind_is_refused(both: list[Any], picture: Any, reason: str, match: str):
    for each in both:
        each.step({"state": STATE, "goal": GREY})
        each.step({"state": STATE, "goal": picture})
        each.step({"state": STATE, "goal": GREY})
    assert_equal(*both)
    (_, refused, _), counters = both[0].answers()
    assert (refused.reason, counters[reason], refused.allocations) == (reason, 1, 0)
    assert match in refused.message


def test_a_camera_that_hands_over_nothing_is_refused(both: list[Any]):
    cpp = both[0]
    cpp.step({"state": STATE, "goal": np.zeros(0, np.uint8)})
    cpp.commands[-1] = cpp.commands[-1].removesuffix(" 0") + " 2 4 3"
    ((refused,), _) = cpp.answers()
    assert (refused.reason, refused.action) == ("shape", [0.0, 0.0])
    assert refused.message == "observation 'goal': points to nothing, must be what the sensor read"


FUZZ: list[Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]] = [
    lambda good, rng: good,
    lambda good, rng: {**good, "goal": good["goal"].astype(rng.choice(["bool", "int8", "uint16", "float64"]))},
    lambda good, rng: {**good, "goal": good["goal"].transpose(rng.permutation(3))},
    lambda good, rng: {**good, "goal": good["goal"][: rng.integers(3), : rng.integers(1, 5)]},
    lambda good, rng: {**good, "state": good["state"] * rng.choice([np.nan, np.inf, 1e9, 0.0])},
    lambda good, rng: {name: good[name] for name in rng.permutation(["state", "goal"])[: rng.integers(3)]},
    lambda good, rng: {**good, "more": good["goal"]},
]


def test_fuzzed_pictures_are_answered_as_in_python(both: list[Any]):
    rng, now = np.random.default_rng(0), 100.0
    for _ in range(400):
        now += 0.1
        good = {"state": rng.uniform(-0.2, 0.2, 2), "goal": rng.integers(0, 4, SHAPE, dtype=np.uint8)}
        newest = FUZZ[rng.integers(len(FUZZ)) if rng.random() < 0.5 else 0](good, rng)
        is_reset = rng.random() < 0.1
        for each in both:
            each.clock(now)
            if is_reset:
                each.reset()
            each.step(newest, now)
    assert_equal(*both)
    reasons = {each.reason for each in both[1].steps}
    assert reasons == {"accepted", "shape", "dtype", "keys", "not_finite", "latched"}
    assert sum(each.reason == "accepted" for each in both[1].steps) > 150


def test_the_recorded_pictures_agree(seen: Path, tmp_path: Path):
    """Pictures that differ, so that an exchanged one is noticed."""
    picture = np.random.default_rng(0).integers(256, size=(4, *SHAPE), dtype=np.uint8)
    light = picture.reshape(4, -1).mean(axis=1, dtype=np.float32)[:, None]
    arrays = {**golden(), "inputs.goal": picture, "outputs.actions": golden()["outputs.actions"] + light}
    for name, is_right in (("right", True), ("wrong", False)):
        (tmp_path / name).mkdir()
        folder = write_seen(tmp_path / name)
        arrays["inputs.goal"] = picture if is_right else picture[::-1]
        np.savez_compressed(folder / "golden.npz", allow_pickle=False, **arrays)
        status, (report,), _ = run_example(built_once(EXAMPLE), write_sums(folder), "--seconds", "0")
        assert (status, report["passed"]) == (int(not is_right), is_right)


def test_a_picture_has_no_hard_range(seen: Path):
    limits = {"observations": {"goal": {"hard_high": [1.0] * 24}}}
    match = "limits: goal: a hard range is for numbers, not for image; leave it out"
    with pytest.raises(ControllerError, match=match):
        Controller(seen, limits=limits)
    command = [str(built_once(DRIVER)), str(seen), str(LIBRARY), '{"observations": {"goal": {"hard_high": [1]}}}']
    found = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.strip()) == (1, match)
    Controller(seen, limits={"observations": {"goal": {"hard_high": None, "max_age_s": 0.5}}})
