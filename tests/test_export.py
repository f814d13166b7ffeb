"""Bundles of two tiny policies, one token and two tokens a dimension: the graph, its files, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec
from qtransformer.config import ModelConfig, TokenConfig
from qtransformer.deploy import export
from qtransformer.deploy.bundle_policy import BundlePolicy
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.deploy.export import ExportError, Samples, export_bundle
from qtransformer.encoders.state import StateEncoder
from qtransformer.model import QTransformer, TokenOutputs
from qtransformer.policy import CheckpointPolicy, GreedyPolicy
from qtransformer.tokens import ActionTokenizer

WINDOW = 3
LOG_HALF = float(np.log(0.5))
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
    "observation_ranges": {"state": {"low": [-1.5] * 4, "high": [1.5] * 4}},
}


def tiny_policy(num_levels: int = 1, seed: int = 0) -> GreedyPolicy:
    """Random weights, larger than at the start of a training, so that values and the support mask vary."""
    torch.manual_seed(seed)
    statistics = {"state": {"mean": [0.1] * 4, "std": [0.5] * 4}, "goal": {"mean": [0.0] * 2, "std": [1.0, 0.0]}}
    tokenizer = ActionTokenizer(SPEC.actions, TokenConfig(num_bins=8, num_levels=num_levels))
    encoder = StateEncoder(SPEC.observations, statistics, 32)
    model = QTransformer(encoder, tokenizer, ModelConfig(WINDOW, width=32, num_layers=num_levels, num_heads=2))
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


@pytest.mark.export
def test_graph_equals_the_network_on_other_windows(bundle: Bundle):
    samples = random_samples(60, seed=1)
    expected = eager(bundle.policy.eval(), samples)
    session = Controller(bundle.folder)._session
    for row in range(60):
        inputs = {key: array[row : row + 1].astype(np.float32) for key, array in samples.observations.items()}
        got = session.run(None, {**inputs, "num_frames": samples.num_frames[row : row + 1]})
        np.testing.assert_array_equal(got[1], expected.tokens[row : row + 1])
        np.testing.assert_allclose(got[0], expected.actions[row : row + 1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(got[2], expected.q_max[row : row + 1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(got[3], expected.q_gap[row : row + 1], rtol=0, atol=1e-5)
        assert got[4] == [True]
    assert len(np.unique(expected.tokens)) > 4, "a policy that always does the same shows nothing"
    assert expected.q_max.std() > 0.03


@pytest.mark.export
def test_graph_is_one_plain_file(bundle: Bundle):
    import onnx

    data = (bundle.folder / "policy.onnx").read_bytes()
    model = onnx.load_from_string(data)
    assert model.ir_version == 8
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    operators = {node.op_type for node in model.graph.node}
    assert not {name for name in operators if name.startswith(("Dropout", "Random"))}
    assert not model.functions
    assert b".py" not in data
    assert str(Path(__file__).parents[1]).encode() not in data
    (card,) = model.metadata_props
    expected = json.loads((bundle.folder / "policy.json").read_text())
    del expected["sha256"]
    assert json.loads(card.value) == expected
    assert len(model.graph.node) == bundle.report["graph"]["nodes"]


@pytest.mark.export
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["state", "goal"])
def test_ok_is_false_for_what_is_not_finite(bundle: Bundle, key: str, bad: float):
    samples = random_samples(1)
    inputs = {name: array.astype(np.float32) for name, array in samples.observations.items()}
    inputs[key][0, 1, -1] = bad  # the last element of `goal` never varied: its standardised value is 0 times this
    (ok,) = Controller(bundle.folder)._session.run(["ok"], {**inputs, "num_frames": np.array([3])})
    assert not ok[0]


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.export
def test_files(bundle: Bundle):
    names = {"policy.onnx", "policy.json", "golden.npz", "parity.json", "controller.py", "README.md"}
    assert {path.name for path in bundle.folder.iterdir()} == names
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["bundle"]
    readme = (bundle.folder / "README.md").read_text()
    assert all(name in readme for name in names - {"README.md"})


@pytest.mark.export
def test_card(bundle: Bundle):
    card = json.loads((bundle.folder / "policy.json").read_text())
    levels = bundle.policy.tokenizer.num_levels
    state, goal = card["observations"]
    assert state["elements"] == ["x", "y", "vx", "vy"]
    assert state["high"] == [1.5] * 4
    assert (goal["shape"], goal["dtype"], "high" in goal) == ([2], "float32", False)
    assert card["actions"] == {
        "low": [-1.0, 0.1],
        "high": [1.0, 0.7],
        "elements": ["left", "right"],
        "units": ["N", "rad"],
        "bins": 8,
        "levels": levels,
    }
    assert (card["control_hz"], card["history_length"]) == (20.0, WINDOW)
    assert card["environment"] == {"id": "tests/Tiny-v0", "kwargs": {"size": 3}, "ignored_observations": []}
    assert card["training"]["gamma"] == 0.1 + 0.2
    assert card["inputs"][2] == {"name": "num_frames", "dtype": "int64", "shape": [1]}
    described = {each["name"]: (each["dtype"], each["shape"]) for each in card["outputs"]}
    assert described["tokens"] == ("int64", [1, 2 * levels])
    assert described["actions"] == ("float32", [1, 2])
    assert described["ok"] == ("bool", [1])


@pytest.mark.export
def test_report(bundle: Bundle):
    assert json.loads((bundle.folder / "parity.json").read_text()) == bundle.report
    total = 40 * 2 * bundle.policy.tokenizer.num_levels
    assert bundle.report["tokens"] == {"equal": total, "total": total}
    assert bundle.report["largest_action_difference"] < 1e-6
    assert bundle.report["largest_q_difference"] < 1e-5
    assert bundle.report["num_near_ties"] == 0
    assert 0 < bundle.report["latency_ms"]["median"] <= bundle.report["latency_ms"]["p99"]


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
def test_a_nan_leaves_no_trace(bundle: Bundle):
    controller = Controller(bundle.folder)
    twin = controller.fork()
    controller.reset()
    twin.reset()
    good = [{key: array[row, 0] for key, array in random_samples(4).observations.items()} for row in range(4)]
    for observation in good:
        with pytest.raises(ControllerError, match="must be finite"):
            controller.step({**observation, "state": np.full(4, np.nan)})
        np.testing.assert_array_equal(controller.step(observation), twin.step(observation))


@pytest.mark.export
def test_no_observation_leads_beyond_the_limits(bundle: Bundle):
    controller, rng = Controller(bundle.folder), np.random.default_rng(3)
    controller.reset()
    low, high = (np.array(limit, np.float32) for limit in (SPEC.actions.low, SPEC.actions.high))
    odd = [0.0, -0.0, 1e-45, 1e10, -1e10, 3.4e38, np.nan, np.inf, -np.inf, 1e200]
    num_accepted = 0
    for step in range(200):
        values = [rng.normal(size=each.shape) * 10.0 ** rng.integers(-9, 9) for each in SPEC.observations]
        if step % 2:
            values[step % 4 // 2][step % 2] = odd[step // 2 % len(odd)]
        try:
            action = controller.step(dict(zip(("state", "goal"), values, strict=True)))
        except ControllerError:
            continue
        num_accepted += 1
        assert ((low <= action) & (action <= high)).all()
    assert 150 <= num_accepted < 200


@pytest.mark.export
def test_self_test_passes_without_torch(bundle: Bundle, tmp_path: Path):
    folder = shutil.copytree(bundle.folder, tmp_path / "elsewhere")
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['qtransformer'] = None\n"
        f"sys.argv = ['controller.py', '--self-test', {str(folder)!r}]\n"
        f"runpy.run_path({str(folder / 'controller.py')!r}, run_name='__main__')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["passed"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.export
def test_a_disagreement_refuses_and_leaves_nothing_behind(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import onnx

    model = onnx.load(bundle.folder / "policy.onnx")
    monkeypatch.setattr(export, "_onnx_model", lambda *args: model)
    other = tiny_policy(bundle.policy.tokenizer.num_levels, seed=9)
    with pytest.raises(
        ExportError, match=r"disagree in \d+ place\(s\) of 5 samples: sample \d, token \d: bin \d expected"
    ):
        export_bundle(other, spec=SPEC, samples=random_samples(5), card=CARD, out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_weights_that_are_no_numbers_are_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import onnx

    model = onnx.load(bundle.folder / "policy.onnx")
    monkeypatch.setattr(export, "_onnx_model", lambda *args: model)
    broken = copy.deepcopy(bundle.policy)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(ExportError, match="sample 0: ok is False"):
        export_bundle(broken, spec=SPEC, samples=random_samples(1), card=CARD, out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_an_empty_folder_is_filled(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import onnx

    model = onnx.load(bundle.folder / "policy.onnx")
    monkeypatch.setattr(export, "_onnx_model", lambda *args: model)
    export_bundle(bundle.policy, spec=SPEC, samples=random_samples(5), card=CARD, out=tmp_path)
    assert Controller(tmp_path).self_test()["samples"] == 5


def refuse(match: str, out: Path, **changes: Any) -> None:
    arguments = {"spec": SPEC, "samples": random_samples(6), "card": CARD, **changes}
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(ExportError, match=match):
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
    monkeypatch.setattr(export, "_onnx_model", lambda *args: None)
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
    spec = dataclasses.replace(SPEC, observations=(ObservationSpec("tokens", (2,), "float32"),))
    samples = Samples({"tokens": np.zeros((1, WINDOW, 2))}, np.ones(1, np.int64))
    policy = tiny_policy()
    policy.model.encoder.keys = ("tokens",)
    with pytest.raises(ExportError, match=r"\['tokens'\] are names of the graph"):
        export_bundle(policy, spec=spec, samples=samples, card=CARD, out=tmp_path / "bundle")


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"actions": 1, "sha256": 2}, r"card keys \['actions', 'sha256'\] are written by the export itself"),
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
    is_tied = export._tied_bins(policy, policy.choose(outputs), outputs)
    assert is_tied.shape == (1, 1, 4)
    assert is_tied[0, 0].nonzero().flatten().tolist() == tied
