"""Bundles of two tiny policies, one token and two tokens a dimension: the graph, its files, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bare_fixtures import passes_self_test
from cpp_fixtures import CAN_BUILD, EXAMPLE, SOURCES, WHY_NOT, built_once, run_example

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec
from qtransformer.config import ModelConfig, TokenConfig
from qtransformer.deploy import export
from qtransformer.deploy.bundle_policy import BundlePolicy
from qtransformer.deploy.card import CardError
from qtransformer.deploy.controller import Controller, ControllerError, make_session
from qtransformer.deploy.export import ExportError, Samples, Wanted, export_bundle
from qtransformer.deploy.golden import tied_bins
from qtransformer.deploy.verify import verify_bundle
from qtransformer.encoders.observations import ObservationEncoder
from qtransformer.model import QTransformer, TokenOutputs
from qtransformer.policy import CheckpointPolicy, GreedyPolicy
from qtransformer.tokens import ActionTokenizer

WINDOW = 3
LOG_HALF = float(np.log(0.5))
OPEN = {"hard_low": None, "hard_high": None}
SPEC = DatasetSpec(
    observations=(
        ObservationSpec("state", (4,), "float32", elements=("x", "y", "vx", "vy"), units=("m", "m", "m/s", "m/s")),
        ObservationSpec("goal", (2,), "float64"),
    ),
    actions=ActionSpec(low=(-1.0, 0.1), high=(1.0, 0.7), elements=("left", "right"), units=("N", "rad")),
    control_hz=20.0,
    environment_id="tests/Tiny-v0",
    environment_kwargs={"size": 3},
)
CARD = {
    "training": {"step": 1000, "gamma": 0.1 + 0.2},
    "git_revision": "0123abcd",
    "observation_ranges": {"state": {"low": [-1.5, -1.5, -1.5, 0.25], "high": [1.5, 1.5, 1.5, 0.25]}},
    "limits": {"actions": {"modes": ["delta", "absolute"]}, "safety": {"fallback": "hold"}},
}


def tiny_policy(num_levels: int = 1, seed: int = 0) -> GreedyPolicy:
    """Random weights, larger than at the start of a training, so that values and the support mask vary."""
    torch.manual_seed(seed)
    statistics = {"state": {"mean": [0.1] * 4, "std": [0.5] * 4}, "goal": {"mean": [0.0] * 2, "std": [1.0, 0.0]}}
    tokenizer = ActionTokenizer(SPEC.actions, TokenConfig(num_bins=8, num_levels=num_levels))
    config = ModelConfig(WINDOW, width=32, num_layers=num_levels, num_heads=2)
    model = QTransformer(ObservationEncoder(SPEC.observations, statistics, config), tokenizer, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name or name.endswith("head.weight"):
                parameter.mul_(15)
    return GreedyPolicy(model, tokenizer, support_threshold=0.2, support_temperature=0.05).eval()


def random_samples(num_samples: int, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    observations = {each.name: rng.normal(size=(num_samples, WINDOW, *each.shape)) for each in SPEC.observations}
    return Samples(observations, np.arange(num_samples) % WINDOW + 1)


def eager(policy: GreedyPolicy, samples: Samples) -> Any:
    observations = {key: torch.from_numpy(array).float() for key, array in samples.observations.items()}
    with torch.no_grad():
        return policy(observations, torch.from_numpy(samples.num_frames))


Bundle = SimpleNamespace  # policy, folder, report


@pytest.fixture(scope="module", params=[1, 2], ids=["one level", "two levels"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    policy, folder = tiny_policy(request.param).train(), tmp_path_factory.mktemp("export") / "bundle"
    report = export_bundle(policy, spec=SPEC, samples=random_samples(40), card=CARD, out=folder)
    assert policy.training, "the export works on a copy"
    return Bundle(policy=policy, folder=folder, report=report)


# --- the graph --------------------------------------------------------------------------------------------------------


class Models:
    """The graphs of a bundle in the order in which the export makes them."""

    def __init__(self, folder: Path) -> None:
        self._names = [folder / "policy.onnx", folder / "policy_flat.onnx"]

    def pop(self, *args: Any) -> Any:
        import onnx

        return onnx.load(self._names.pop(0))


def play(folder: Path, samples: Samples) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields, for each window, the outputs of both graphs for its newest frame, played from a reset on."""
    controller = Controller(folder)
    flat = make_session((folder / "policy_flat.onnx").read_bytes())
    for row, num_frames in enumerate(samples.num_frames):
        window = {key: array[row].astype(np.float32) for key, array in samples.observations.items()}
        state = controller._no_history()
        outputs: dict[str, np.ndarray] = {}
        for step in range(num_frames):
            outputs = controller._run({key: array[step] for key, array in window.items()}, *state)
            state = outputs["history_out"], outputs["num_frames_out"]
        newest_last = [np.roll(array, WINDOW - num_frames, axis=0).ravel() for array in window.values()]
        (actions,) = flat.run(
            None, {"observations": np.concatenate([*newest_last, [num_frames]], dtype=np.float32)[None]}
        )
        yield outputs, actions


@pytest.mark.export
def test_both_graphs_equal_the_network_on_other_windows(bundle: Bundle):
    samples = random_samples(60, seed=1)
    expected = eager(bundle.policy.eval(), samples)
    for row, (got, flat) in enumerate(play(bundle.folder, samples)):
        np.testing.assert_array_equal(got["tokens"], expected.tokens[row : row + 1])
        for actions in (got["actions"], flat):
            np.testing.assert_allclose(actions, expected.actions[row : row + 1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(got["q_max"], expected.q_max[row : row + 1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(got["q_gap"], expected.q_gap[row : row + 1], rtol=0, atol=1e-5)
        assert got["ok"] == [True]
        assert got["num_frames_out"] == [min(samples.num_frames[row], WINDOW - 1)]
    assert len(np.unique(expected.tokens)) > 4, "a policy that always does the same shows nothing"
    assert expected.q_max.std() > 0.03


@pytest.mark.export
def test_a_long_episode_equals_the_network_and_what_left_the_window_is_forgotten(bundle: Bundle):
    """2,000 observations in episodes of 1 to 40 steps, played by the controller: the same tokens, the same actions."""
    rng = np.random.default_rng(5)
    controller = Controller(bundle.folder, raises=True)
    lengths = list(rng.integers(1, 41, 200))
    controller = controller.fork({"safety": {"max_gap_s": None}, "observations": {"state": OPEN, "goal": OPEN}})
    frames: dict[str, list[np.ndarray]] = {"state": [], "goal": []}
    num_frames, tokens, actions = [], [], []
    while len(tokens) < 2000:
        controller.reset()
        episode: list[dict[str, np.ndarray]] = []
        for _ in range(lengths.pop()):
            episode.append({each.name: rng.normal(size=each.shape).astype(np.float32) for each in SPEC.observations})
            action, window = controller.step(episode[-1]), episode[-WINDOW:]
            assert action is not None
            assert controller.last_outputs is not None
            for key, rows in frames.items():
                rows.append(np.stack([frame[key] for frame in [*window, *[window[-1]] * (WINDOW - len(window))]]))
            num_frames.append(len(window))
            tokens.append(controller.last_outputs.tokens)
            actions.append(action)
    samples = Samples({key: np.stack(rows) for key, rows in frames.items()}, np.array(num_frames))
    expected = eager(bundle.policy.eval(), samples)
    assert (np.array(tokens) != expected.tokens.numpy()).sum() == 0
    np.testing.assert_allclose(np.array(actions), expected.actions, rtol=0, atol=1e-6)


@pytest.mark.export
@pytest.mark.parametrize(("name", "num_frames"), [("policy.onnx", 1), ("policy_flat.onnx", WINDOW)])
def test_a_step_encodes_one_frame(bundle: Bundle, name: str, num_frames: int):
    """Counted at the encoder's two matrix products, by the shapes that onnx infers: rows are frames."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.folder / name))
    known = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = {each.name: [size.dim_value for size in each.type.tensor_type.shape.dim] for each in known}
    weights = {each.name: list(each.dims) for each in model.graph.initializer}
    rows = [
        int(np.prod(shapes[node.output[0]][:-1]))
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and weights.get(node.input[1]) in ([6, 64], [64, 32])
    ]
    assert rows == [num_frames] * 2


@pytest.mark.export
@pytest.mark.parametrize("name", ["policy.onnx", "policy_flat.onnx"])
def test_graph_is_one_plain_file(bundle: Bundle, name: str):
    import onnx

    data = (bundle.folder / name).read_bytes()
    model = onnx.load_from_string(data)
    assert model.ir_version == 8
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    operators = {node.op_type for node in model.graph.node}
    assert not {name for name in operators if name.startswith(("Dropout", "Random"))}
    assert not model.functions
    assert b".py" not in data.replace(b"controller.py", b"")
    assert str(Path(__file__).parents[1]).encode() not in data
    (card,) = model.metadata_props
    assert json.loads(card.value) == json.loads((bundle.folder / "policy.json").read_text())
    assert len(model.graph.node) == bundle.report["graphs"][name]["nodes"]


@pytest.mark.export
def test_the_flat_graph_has_one_static_input_and_one_static_output(bundle: Bundle):
    import onnx

    graph = onnx.load(bundle.folder / "policy_flat.onnx").graph
    (row,), (actions,) = described(graph.input), described(graph.output)
    assert row == ("observations", [1, WINDOW * 6 + 1])
    assert actions == ("actions", [1, 2])
    flat = json.loads((bundle.folder / "policy.json").read_text())["flat"]
    assert (flat["size"], flat["parts"]) == (
        WINDOW * 6 + 1,
        [{"name": "state", "offset": 0, "size": 4}, {"name": "goal", "offset": WINDOW * 4, "size": 2}],
    )


@pytest.mark.export
def test_the_card_says_how_the_graph_is_called(bundle: Bundle):
    import onnx

    graph = onnx.load(bundle.folder / "policy.onnx").graph
    card = json.loads((bundle.folder / "policy.json").read_text())
    assert described(graph.input) == [(each["name"], each["shape"]) for each in card["inputs"]]
    assert described(graph.output) == [(each["name"], each["shape"]) for each in card["outputs"]]


def described(ends: Any) -> list[tuple[str, list[int]]]:
    return [(each.name, [size.dim_value for size in each.type.tensor_type.shape.dim]) for each in ends]


@pytest.mark.export
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["state", "goal", "history_in"])
def test_ok_is_false_for_what_is_not_finite(bundle: Bundle, key: str, bad: float):
    inputs = {name: array[:, 0].astype(np.float32) for name, array in random_samples(1).observations.items()}
    inputs["history_in"], num_frames = np.zeros((1, WINDOW - 1, 1, 32), np.float32), np.array([2])
    inputs[key].flat[-1] = bad  # the last element of `goal` never varied: its standardised value is 0 times this
    (ok,) = Controller(bundle.folder)._session.run(["ok"], {**inputs, "num_frames_in": num_frames})
    assert not ok[0]


@pytest.mark.export
@pytest.mark.parametrize(("num_frames", "is_ok"), [(-1, False), (0, True), (2, True), (3, False)])
def test_ok_is_false_for_a_history_that_cannot_be(bundle: Bundle, num_frames: int, is_ok: bool):
    inputs = {name: array[:, 0].astype(np.float32) for name, array in random_samples(1).observations.items()}
    inputs["history_in"] = np.zeros((1, WINDOW - 1, 1, 32), np.float32)
    (ok,) = Controller(bundle.folder)._session.run(["ok"], {**inputs, "num_frames_in": np.array([num_frames])})
    assert bool(ok[0]) == is_ok


@pytest.mark.export
@pytest.mark.parametrize(("place", "bad"), [(0, np.nan), (-2, np.inf), (-1, np.nan), (-1, 0), (-1, 4), (-1, 1.5)])
def test_the_flat_graph_answers_nan_where_it_is_not_ok(bundle: Bundle, place: int, bad: float):
    session = make_session((bundle.folder / "policy_flat.onnx").read_bytes())
    row = np.zeros((1, WINDOW * 6 + 1), np.float32)
    row[0, -1] = WINDOW
    assert np.isfinite(session.run(None, {"observations": row})[0]).all()
    row[0, place] = bad
    assert np.isnan(session.run(None, {"observations": row})[0]).all()


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.export
def test_files(bundle: Bundle):
    names = {"policy.onnx", "policy_flat.onnx", "policy.json", "policy.schema.json", "golden.npz", "parity.json"}
    names |= {"controller.py", "self_test.py", "README.md", "SHA256SUMS", "cpp"}
    assert {path.name for path in bundle.folder.iterdir()} == names
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["bundle"]
    readme = (bundle.folder / "README.md").read_text()
    assert all(name in readme for name in names - {"README.md"})
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=bundle.folder, capture_output=True, check=True).stdout.count(b": OK") == 9 + len(
        list(SOURCES.iterdir())
    )


@pytest.fixture(scope="module")
def example() -> Path:
    return built_once(EXAMPLE)


@pytest.mark.export
@pytest.mark.skipif(not CAN_BUILD, reason=WHY_NOT)
def test_the_cpp_example_of_the_bundle_agrees(bundle: Bundle, example: Path):
    """Built from the sources, which the bundle must hold as they are: both bundles then need one build."""
    for path in SOURCES.iterdir():
        assert (bundle.folder / "cpp" / path.name).read_bytes() == path.read_bytes()
    status, (report, loop), _ = run_example(example, bundle.folder, "--seconds", "0.3")
    assert (status, report["passed"]) == (0, True)
    assert report["steps"] == 79
    assert report["tokens"]["equal"] + 2 >= report["tokens"]["total"]  # near ties excepted
    assert loop["counters"]["accepted"] > 0


@pytest.mark.export
def test_golden_steps_are_logged_frames_in_episodes(bundle: Bundle):
    """Of 40 windows of 1, 2, 3, 1, ... real frames, 8 windows an episode."""
    with np.load(bundle.folder / "golden.npz") as golden:
        samples, is_reset = random_samples(40), golden["is_reset"]
        assert golden["inputs.goal"][:4].tolist() == [
            samples.observations["goal"][row, frame].astype(np.float32).tolist()
            for row, frame in ((0, 0), (1, 0), (1, 1), (2, 0))
        ]
        assert len(is_reset) == samples.num_frames.sum()
        assert np.flatnonzero(is_reset).tolist() == [
            int(samples.num_frames[: 8 * episode].sum()) for episode in range(5)
        ]


@pytest.mark.export
def test_card(bundle: Bundle):
    card = json.loads((bundle.folder / "policy.json").read_text())
    levels = bundle.policy.tokenizer.num_levels
    state, goal = card["observations"]
    assert state["elements"] == ["x", "y", "vx", "vy"]
    assert (state["training_high"], state["hard_high"]) == ([1.5, 1.5, 1.5, 0.25], [4.5, 4.5, 4.5, None])
    assert (state["training_low"], state["hard_low"]) == ([-1.5, -1.5, -1.5, 0.25], [-4.5, -4.5, -4.5, None])
    assert (goal["shape"], goal["dtype"], goal["hard_high"], goal["max_age_s"]) == ([2], "float32", None, 0.1)
    assert card["actions"] == {
        "low": [-1.0, 0.1],
        "high": [1.0, 0.7],
        "elements": ["left", "right"],
        "units": ["N", "rad"],
        "modes": ["delta", "absolute"],
        "rate_limit": None,
    }
    assert card["safety"] == {"fallback": "hold", "faults_before_latching": 5, "max_gap_s": 0.1, "workspace": {}}
    tokenizer = bundle.policy.tokenizer
    assert (card["tokenizer"]["bins"], card["tokenizer"]["levels"]) == (8, levels)
    assert np.array_equal(np.float32(card["tokenizer"]["edges"]), tokenizer.edges.numpy())
    assert np.array_equal(np.float32(card["tokenizer"]["centres"]), tokenizer.centres.numpy())
    assert card["tokenizer"]["token_dimensions"] == [0, 1] * levels
    assert card["tokenizer"]["token_levels"] == [level for level in range(levels) for _ in range(2)]
    assert (card["control_hz"], card["history_length"]) == (20.0, WINDOW)
    assert card["environment"] == {"id": "tests/Tiny-v0", "kwargs": {"size": 3}, "ignored_observations": []}
    assert card["training"]["gamma"] == 0.1 + 0.2
    assert card["inputs"][2:] == [
        {"name": "history_in", "dtype": "float32", "shape": [1, WINDOW - 1, 1, 32]},
        {"name": "num_frames_in", "dtype": "int64", "shape": [1]},
    ]
    outputs = {each["name"]: (each["dtype"], each["shape"]) for each in card["outputs"]}
    assert outputs["tokens"] == ("int64", [1, 2 * levels])
    assert outputs["actions"] == ("float32", [1, 2])
    assert outputs["ok"] == ("bool", [1])


@pytest.mark.export
def test_report(bundle: Bundle):
    assert json.loads((bundle.folder / "parity.json").read_text()) == bundle.report
    num_steps = int(random_samples(40).num_frames.sum())
    total = num_steps * 2 * bundle.policy.tokenizer.num_levels
    assert (bundle.report["steps"], bundle.report["episodes"]) == (num_steps, 5)
    assert bundle.report["tokens"] == {"equal": total, "total": total}
    assert bundle.report["largest_action_difference"] < 1e-6
    assert bundle.report["largest_flat_action_difference"] < 1e-6
    assert bundle.report["largest_q_difference"] < 1e-5
    assert bundle.report["num_near_ties"] == 0
    assert 0 < bundle.report["latency_ms"]["median"] <= bundle.report["latency_ms"]["p99"]
    timing = bundle.report["timing"]
    is_in_time = bundle.report["latency_ms"]["p99"] <= 50.0
    assert timing == {"control_period_ms": 50.0, "budget_ms": None, "fits_the_period": is_in_time}


@pytest.mark.export
def test_verified(bundle: Bundle):
    report = verify_bundle(bundle.folder)
    assert report["failures"] == []
    assert (report["passed"], report["files"]) == (True, 9 + len(list(SOURCES.iterdir())))


# --- the controller on a real bundle ----------------------------------------------------------------------------------


@pytest.mark.export
def test_bundle_plays_as_the_checkpoint_does(bundle: Bundle):
    ours, theirs = CheckpointPolicy(bundle.policy), BundlePolicy(bundle.folder)
    rng = np.random.default_rng(2)
    for step in range(30):
        for slot in (0, 1):
            if step % (7 + 4 * slot) == 0:
                ours.reset(slot)
                theirs.reset(slot)
        observations = [{each.name: rng.normal(size=each.shape) for each in SPEC.observations} for _ in range(2)]
        singles = [{key: value.astype(np.float32) for key, value in each.items()} for each in observations]
        np.testing.assert_allclose(theirs.act([0, 1], observations), ours.act([0, 1], singles), rtol=0, atol=1e-6)


@pytest.mark.export
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e4])
def test_what_no_sensor_reads_leaves_no_trace(bundle: Bundle, bad: float):
    """In any frame of the history: nothing is sent for it but the fallback, and the step after is right again."""
    controller = Controller(bundle.folder).fork({"safety": {"max_gap_s": None}})
    twin = controller.fork()
    controller.reset()
    twin.reset()
    sent = np.array([0.0, 0.3], np.float32)
    controller.reset(sent=sent)
    frames = random_samples(7, seed=4).observations
    for step in range(7):
        good = {key: array[step, 0].clip(-1.4, 1.4) for key, array in frames.items()}
        good["state"][0] = 0.5
        answer = controller.step({**good, "state": good["state"] * bad})
        assert answer is not None
        np.testing.assert_array_equal(answer, [0.0, sent[1]])  # holds: no change of the first, the second where it is
        sent = controller.step(good)
        assert sent is not None
        np.testing.assert_array_equal(sent, twin.step(good))
    assert controller.counters["hard_range" if bad == 1e4 else "not_finite"] == 7


@pytest.mark.export
def test_no_observation_leads_beyond_the_limits(bundle: Bundle):
    controller, rng = Controller(bundle.folder).fork({"safety": {"max_gap_s": None}}), np.random.default_rng(3)
    low, high = (np.array(limit, np.float32) for limit in (SPEC.actions.low, SPEC.actions.high))
    odd = [0.0, -0.0, 1e-45, 1e10, -1e10, 3.4e38, np.nan, np.inf, -np.inf, 1e200]
    for step in range(200):
        if step % 20 == 0:
            controller.reset()
        values = [rng.normal(size=each.shape) * 10.0 ** rng.integers(-9, 2) for each in SPEC.observations]
        if step % 2:
            values[step % 4 // 2][step % 2] = odd[step // 2 % len(odd)]
        action = controller.step(dict(zip(("state", "goal"), values, strict=True)))
        assert action is None or ((low <= action) & (action <= high)).all()
    assert controller.counters["steps"] == 200
    assert controller.counters["accepted"] > 50
    assert controller.counters["not_finite"] > 20
    assert controller.counters["hard_range"] > 5


@pytest.mark.export
def test_self_test_passes_where_numpy_and_onnxruntime_are_all_there_is(bundle: Bundle, tmp_path: Path):
    assert passes_self_test(shutil.copytree(bundle.folder, tmp_path / "elsewhere"), tmp_path / "bare")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.export
def test_a_disagreement_refuses_and_leaves_nothing_behind(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models = Models(bundle.folder)
    monkeypatch.setattr(export, "onnx_model", models.pop)
    other = tiny_policy(bundle.policy.tokenizer.num_levels, seed=9)
    with pytest.raises(
        ExportError, match=r"disagree in \d+ place\(s\) of 9 logged observations: step \d, token \d: bin \d expected"
    ):
        export_bundle(other, spec=SPEC, samples=random_samples(5), card=CARD, out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_weights_that_are_no_numbers_are_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = Models(bundle.folder)
    monkeypatch.setattr(export, "onnx_model", models.pop)
    broken = copy.deepcopy(bundle.policy)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(ExportError, match="step 0: ok is False"):
        export_bundle(broken, spec=SPEC, samples=random_samples(1), card=CARD, out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_an_empty_folder_is_filled(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = Models(bundle.folder)
    monkeypatch.setattr(export, "onnx_model", models.pop)
    export_bundle(bundle.policy, spec=SPEC, samples=random_samples(5), card=CARD, out=tmp_path)
    assert Controller(tmp_path).self_test()["steps"] == 9


@pytest.mark.export
def test_a_budget_that_is_not_kept_refuses(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def export_within(budget_ms: float) -> dict[str, Any]:
        monkeypatch.setattr(export, "onnx_model", Models(bundle.folder).pop)
        arguments = {"spec": SPEC, "samples": random_samples(5), "card": CARD, "out": tmp_path / "new"}
        return export_bundle(bundle.policy, **arguments, wanted=Wanted(budget_ms=budget_ms))

    with pytest.raises(ExportError, match=r"--budget-ms 0.001: a step takes \S+ ms here .* nothing was written"):
        export_within(0.001)
    assert not list(tmp_path.iterdir())
    assert export_within(60_000.0)["timing"]["budget_ms"] == 60_000.0


def refuse(match: str, out: Path, **changes: Any) -> None:
    arguments = {"spec": SPEC, "samples": random_samples(6), "card": CARD, **changes}
    before = sorted(out.parent.rglob("*"))
    with pytest.raises((ExportError, CardError, ControllerError), match=match):
        export_bundle(tiny_policy(), out=out, **arguments)
    assert sorted(out.parent.rglob("*")) == before


def test_existing_out_is_refused(tmp_path: Path):
    (tmp_path / "bundle").mkdir()
    kept = tmp_path / "bundle" / "kept.txt"
    kept.write_text("kept")
    refuse(r"out \(.*bundle\) must not exist or be an empty folder", kept.parent)
    refuse("must not exist or be an empty folder", kept)
    assert kept.read_text() == "kept"


def test_out_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(export, "onnx_model", lambda *args: None)
    refuse("bundle: cannot be written", tmp_path / "file" / "bundle")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    refuse(rf"package {package} is missing; pip install 'qtransformer\[export\]'", tmp_path / "bundle")


def test_samples_that_do_not_fit(tmp_path: Path):
    out, good = tmp_path / "bundle", random_samples(6)
    state = good.observations["state"]
    refuse(
        r"samples: observation keys \['state'\] must be \['goal', 'state'\]",
        out,
        samples=Samples({"state": state}, good.num_frames),
    )
    refuse(
        r"'state': shape \(6, 2, 4\) must be \(6, 3, 4\)",
        out,
        samples=Samples({**good.observations, "state": state[:, 1:]}, good.num_frames),
    )
    for num_frames in (np.zeros(6, np.int64), np.full(6, WINDOW + 1), np.zeros(0, np.int64)):
        refuse(r"num_frames must be .* in 1\.\.3", out, samples=Samples(good.observations, num_frames))


def test_spec_that_does_not_fit(tmp_path: Path):
    other = dataclasses.replace(SPEC, observations=SPEC.observations[:1])
    samples = Samples({"state": random_samples(6).observations["state"]}, random_samples(6).num_frames)
    refuse(
        r"policy: observation keys \['goal', 'state'\] must be \['state'\]",
        tmp_path / "bundle",
        spec=other,
        samples=samples,
    )


def test_names_of_the_graph_are_reserved(tmp_path: Path):
    spec = dataclasses.replace(SPEC, observations=(ObservationSpec("history_in", (2,), "float32"),))
    samples = Samples({"history_in": np.zeros((1, WINDOW, 2))}, np.ones(1, np.int64))
    policy = tiny_policy()
    policy.model.encoder.keys = ("history_in",)
    with pytest.raises(ExportError, match=r"\['history_in'\] are names of the graph"):
        export_bundle(policy, spec=spec, samples=samples, card=CARD, out=tmp_path / "bundle")


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"actions": 1, "flat": 2}, r"card keys \['actions', 'flat'\] are written by the export itself"),
        ({"limits": {"actions": {"max": 1}}}, "limits: actions actions"),
        ({"limits": {"safety": {"fallback": "dance"}}}, r"policy.json.safety.fallback: must be .*; correct the limits"),
        ({"loss": float("nan")}, "card must be plain JSON with finite numbers"),
        ({"step": torch.zeros(1)}, "card must be plain JSON with finite numbers"),
    ],
)
def test_card_that_does_not_fit(tmp_path: Path, card: dict[str, Any], match: str):
    refuse(match, tmp_path / "bundle", card=card)


# --- where rounding may decide ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q_logits", "density_logits", "tied"),
    [
        ([0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2]),  # clear
        ([0.0, 1.99999, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1, 2]),  # two values as good as equal
        ([0.0, 1.999, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2]),
        ([0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, LOG_HALF - 9e-6], [2, 3]),  # bin 3 lies just outside the support
        ([0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, LOG_HALF + 9e-6], [2, 3]),  # and just inside
        ([0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, LOG_HALF - 1e-4], [2]),
    ],
)
def test_tied_bins(q_logits: list[float], density_logits: list[float], tied: list[int]):
    policy = tiny_policy()
    policy.support_threshold, policy.support_temperature = 0.5, 0.0
    outputs = TokenOutputs(torch.tensor([[q_logits]]), torch.tensor([[density_logits]]))
    is_tied = tied_bins(policy, policy.choose(outputs), outputs)
    assert is_tied.shape == (1, 1, 4)
    assert is_tied[0, 0].nonzero().flatten().tolist() == tied
