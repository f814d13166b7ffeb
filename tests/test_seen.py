"""Images and instructions from log to bundle: what is seen and said decides, and the exported file plays the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bare_fixtures import passes_self_test
from cpp_fixtures import CAN_BUILD, DRIVER, EXAMPLE, WHY_NOT, Cpp, Python, built_once, run_example
from test_cpp import assert_equal
from vision_fixtures import CAMERA, SIZE, STATE, TOLD

from qtransformer.cli import main
from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.deploy.verify import verify_bundle
from qtransformer.loading import load_run, open_policy
from qtransformer.serve.protocol import pack, unpack
from qtransformer.serve.session import Session

COLLECT = ["--env-id", "test/Sight-v0", "--import", "vision_fixtures", "--num-workers", "1", "--episodes", "100"]
NOISE = ["--noise-std", "0.3", "--random-action-probability", "0.3"]
TRAIN = ["--steps", "100", "--batch-size", "32", "--num-bins", "9", "--width", "32", "--num-layers", "1"]
TRAIN += ["--image-tokens", "2", "--learning-rate", "3e-3", "--log-every", "50", "--checkpoint-every", "100"]
PLAY = ["--episodes", "40", "--seed", "7000", "--import", "vision_fixtures", "--json"]
FRAME = {CAMERA: np.zeros((SIZE, SIZE, 3), np.uint8), STATE: np.zeros(1, np.float32), TOLD: "go left"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    assert main(["collect", "--out", str(folder / "log"), *COLLECT, *NOISE]) == 0
    assert main(["train", "--dataset", str(folder / "log"), "--out", str(folder / "run"), *TRAIN]) == 0
    return folder / "run"


def outcomes(capsys, path):
    capsys.readouterr()
    assert main(["evaluate", str(path), *PLAY]) == 0
    found = json.loads(capsys.readouterr().out)
    return found["success_rate"], [(each["seed"], each["success"], each["length"]) for each in found["outcomes"]]


def test_what_is_said_and_seen_is_done(run, capsys):
    assert outcomes(capsys, run)[0] >= 0.9
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["data_share"] < 0.5


def test_the_words_reach_the_cameras_network(run):
    films = {name: each for name, each in load_run(run).policy.named_parameters() if "films" in name}
    assert films
    assert all(each.abs().max() > 0 for each in films.values())


def test_images_must_be_bytes(run):
    policy = open_policy(run).policy
    policy.reset(0)
    assert policy.act([0], [FRAME]).shape == (1, 2)
    with pytest.raises(RunError, match=r"images must be uint8, 0 to 255, as in the log, got \{'image/front': 'float6"):
        policy.act([0], [{**FRAME, CAMERA: np.zeros((SIZE, SIZE, 3))}])


def test_explaining_a_run_reads_images(run, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["explain", str(run), "--dataset", str(run.parent / "log"), "--episode", "0", "--out", str(page)]
    assert main(arguments) == 0
    assert page.exists()


@pytest.fixture(scope="module")
def bundle(run):
    folder = run.parent / "bundle"
    assert main(["export", str(run), "--out", str(folder)]) == 0
    return folder


@pytest.mark.export
def test_its_self_test_passes_where_numpy_and_onnxruntime_are_all_there_is(bundle, tmp_path):
    assert passes_self_test(bundle, tmp_path / "bare")


@pytest.mark.export
@pytest.mark.skipif(not CAN_BUILD, reason=WHY_NOT)
def test_the_cpp_controller_sees_and_obeys_as_that_of_python(bundle):
    """Frames of whole episodes, every fifth spoilt: the same checks, the same counters, actions equal bit by bit."""
    status, (report,), _ = run_example(built_once(EXAMPLE), bundle, "--seconds", "0")
    assert (status, report["passed"]) == (0, True)
    both = [Cpp(built_once(DRIVER), bundle), Python(bundle, {})]
    rng, now = np.random.default_rng(0), 100.0
    spoilt = [
        lambda frame: {**frame, CAMERA: frame[CAMERA].transpose(2, 0, 1)},
        lambda frame: {**frame, CAMERA: frame[CAMERA] / 255},
        lambda frame: {**frame, STATE: np.array([np.nan])},
        lambda frame: {**frame, TOLD: "go up"},
        lambda frame: {STATE: frame[STATE]},
    ]
    for step in range(200):
        told = ("go left", "go right")[rng.integers(2)]
        frame = {CAMERA: rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8), STATE: np.zeros(1)}
        frame = {**frame, TOLD: told} if rng.random() < 0.5 else frame
        newest, now = spoilt[rng.integers(5)](frame) if step % 5 == 4 else frame, now + 0.1
        for each in both:
            each.clock(now)
            if step % 10 == 0:
                each.reset(told)
            each.step(newest, now)
    assert_equal(*both)
    assert {each.reason for each in both[1].steps} == {
        "accepted",
        "shape",
        "dtype",
        "not_finite",
        "instruction",
        "keys",
    }
    assert len({tuple(each.action) for each in both[1].steps if each.action}) > 2


@pytest.mark.export
def test_a_bundle_sees(run, bundle, capsys):
    assert verify_bundle(bundle)["passed"]
    assert outcomes(capsys, bundle) == outcomes(capsys, run)
    card = json.loads((bundle / "policy.json").read_text())
    (camera,) = (each for each in card["observations"] if each["name"] == CAMERA)
    assert [camera[key] for key in ("kind", "dtype", "shape", "layout", "colour_order", "hard_low")] == [
        *("image", "uint8", [SIZE, SIZE, 3], "HWC", "RGB", None)
    ]
    inputs = {each["name"]: (each["dtype"], each["shape"]) for each in card["inputs"]}
    assert inputs[CAMERA] == ("uint8", [1, SIZE, SIZE, 3])
    assert inputs["history_in"] == ("float32", [1, 1, 3, 32])  # two tokens an image and one for all else
    parity = json.loads((bundle / "parity.json").read_text())
    assert parity["passed"]
    assert parity["tokens"]["equal"] + parity["num_near_ties"] >= parity["tokens"]["total"]


@pytest.mark.export
def test_a_controller_checks_images_and_does_not_copy_them(bundle, monkeypatch):
    controller = Controller(bundle)
    controller.reset("go right")
    picture = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    given, run_graph = [], controller._run
    monkeypatch.setattr(controller, "_run", lambda frame, *state: given.append(frame) or run_graph(frame, *state))
    frame = {CAMERA: picture, STATE: np.zeros(1, np.float32)}
    action = controller.step(frame)
    assert action is not None
    assert given[0][CAMERA] is picture
    controller.reset("go right")
    backwards = picture[..., ::-1].copy()[..., ::-1]  # the same numbers, laid out otherwise
    np.testing.assert_array_equal(controller.step({**frame, CAMERA: backwards}), action)  # pyright: ignore
    for wrong, reason in (
        (picture.astype(np.float32) / 255, "dtype"),
        (picture[:-1], "shape"),
        (picture.transpose(2, 0, 1), "shape"),
        (None, "shape"),
    ):
        before = controller.counters[reason]
        assert controller.step({**frame, CAMERA: wrong}) is None
        assert controller.counters[reason] == before + 1
        controller.reset("go right")
    assert CAMERA not in controller.log[0].observation


@pytest.mark.export
def test_a_server_takes_images_by_key_or_nested(bundle):
    session = Session(Controller(bundle, raises=True))
    nested = {**FRAME, "image": {"front": FRAME[CAMERA]}, "reset": True}
    del nested[CAMERA]
    first, second = (unpack(session.answer(pack(each)))["actions"] for each in (FRAME, nested))
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ControllerError, match="observation 'image/front': dtype float32 must be uint8"):
        session.answer(pack({**FRAME, CAMERA: FRAME[CAMERA].astype(np.float32)}))
