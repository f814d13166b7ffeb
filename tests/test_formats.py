"""The step in other formats: what each holds, and by what it is refused."""

from __future__ import annotations

import math
import typing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cpp_fixtures import SOURCES
from onnx import numpy_helper
from test_export import SPEC, random_samples, tiny_policy
from torch._inductor import config

from qtransformer.deploy import formats
from qtransformer.deploy.card import policy_card
from qtransformer.deploy.controller import make_session
from qtransformer.deploy.export import Wanted, _checked_samples, _ends, _flat_ends, _graphs
from qtransformer.deploy.formats import FILES, Source, half_model, int8_model, regret_report, write_format
from qtransformer.deploy.golden import action_values, golden_steps
from qtransformer.deploy.onnx_model import ExportError, onnx_model
from qtransformer.deploy_commands import Format

# y = relu(x A) A, then times B: A is read twice, B once; the bias is no weight of a product.
PRODUCTS = """
<ir_version: 8, opset_import: ["" : 18]>
products (float[1,2] x) => (float[1,2] y)
<float[2,2] a = {1.0, 0.5, -0.25, 2.0}, float[2,2] b = {1.0, 0.0, 0.0, 0.1}, float[2] bias = {0.1, 0.2}>
{
    [first] hidden = MatMul(x, a)
    positive = Relu(hidden)
    [second] again = MatMul(positive, a)
    [third] product = MatMul(again, b)
    y = Add(product, bias)
}
"""


@pytest.fixture
def products() -> Any:
    model = onnx.parser.parse_model(PRODUCTS)
    onnx.helper.set_model_props(model, {"policy_card": "{}"})
    return model


def stored(model: Any) -> dict[str, str]:
    return {each.name: str(numpy_helper.to_array(each).dtype) for each in model.graph.initializer}


def run(model: Any, x: list[float]) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return make_session(model.SerializeToString()).run(None, {"x": np.array([x], np.float32)})[0][0]


def test_half_stores_the_weights_of_products_in_16_bits(products: Any):
    """x = (1, 2): x A = (0.5, 4.5), times A = (-0.625, 9.25), times B with 0.1 as the nearest half."""
    half = half_model(products)
    assert stored(half) == {"a.fp16": "float16", "b.fp16": "float16", "bias": "float32"}
    assert run(half, [1.0, 2.0]).tolist() == pytest.approx([-0.525, 9.25 * float(np.float16(0.1)) + 0.2], abs=1e-6)
    assert run(products, [1.0, 2.0]).tolist() == pytest.approx([-0.525, 1.125], abs=1e-6)
    assert stored(products)["a"] == "float32", "it works on a copy"
    assert half.metadata_props == products.metadata_props


def test_int8_rounds_what_is_read_more_than_once(products: Any):
    rounded = int8_model(products)
    kinds = stored(rounded)
    assert kinds["b"] == "float32"
    assert "a" not in kinds
    assert kinds["a_quantized"] == "uint8"
    assert run(rounded, [1.0, 2.0]).tolist() == pytest.approx([-0.525, 1.125], abs=0.05)
    assert {each.key: each.value for each in rounded.metadata_props}["policy_card"] == "{}"


def test_int8_has_nothing_to_round_where_an_action_is_one_token(products: Any):
    products.graph.node[2].op_type = "Add"
    with pytest.raises(ExportError, match="--formats int8: an action of one token reads every weight once"):
        int8_model(products)


# --- regret -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> tuple[Any, dict[str, np.ndarray]]:
    policy = tiny_policy()
    return policy, golden_steps(policy, _checked_samples(policy, SPEC, random_samples(30)))


def test_the_value_of_an_action_is_that_of_its_last_token(recorded: tuple[Any, dict[str, np.ndarray]]):
    policy, golden = recorded
    tokens = golden["outputs.tokens"].copy()
    np.testing.assert_allclose(action_values(policy, golden, tokens), golden["outputs.q_max"][:, -1], rtol=0, atol=1e-6)
    tokens[5] = (tokens[5] + 1) % 8
    changed = action_values(policy, golden, tokens) - golden["outputs.q_max"][:, -1]
    assert np.flatnonzero(np.abs(changed) > 1e-5).tolist() == [5]


def test_regret_is_what_the_network_gives_less(recorded: tuple[Any, dict[str, np.ndarray]]):
    policy, golden = recorded
    arrays = {name: golden[f"outputs.{name}"].copy() for name in ("tokens", "actions", "q_max")}
    report = regret_report(policy, golden, arrays)
    assert report["regret"] == {"mean": 0.0, "p99": 0.0, "worst": 0.0, "worst_step": 0}
    assert report["tokens"]["equal"] == report["tokens"]["total"] == 2 * report["steps"]
    arrays["tokens"][7, 1] = (arrays["tokens"][7, 1] + 4) % 8
    arrays["actions"][7, 1] += 0.3
    greedy = golden["outputs.q_max"][:, -1]
    lost = greedy[7] - action_values(policy, golden, arrays["tokens"])[7]
    report = regret_report(policy, golden, arrays)
    assert report["range_of_q"] == pytest.approx([greedy.min(), greedy.max()], abs=1e-6)
    assert report["regret"]["mean"] == pytest.approx(lost / (greedy.max() - greedy.min()) / len(greedy), rel=1e-3)
    assert report["tokens"]["equal"] == report["tokens"]["total"] - 1
    assert report["largest_action_difference"] == pytest.approx(0.3, abs=1e-6)
    assert report["largest_q_difference"] == pytest.approx(abs(lost), rel=1e-4)


@pytest.mark.parametrize(
    ("mean", "p99", "is_refused"), [(0.005, 0.1, False), (0.0051, 0.0, True), (0.0, 0.101, True), (math.nan, 0.0, True)]
)
def test_the_rule(mean: float, p99: float, is_refused: bool):
    regret = {"mean": mean, "p99": p99, "worst": 0.2, "worst_step": 17}
    complaint = formats._complaint(regret, np.ones(3, bool))
    assert (complaint is not None) == is_refused
    if complaint:
        assert "at most 0.50% and 10.00%; most, 20.00%, at recorded step 17" in complaint


def test_what_is_not_ok_is_refused():
    regret = {"mean": 0.0, "p99": 0.0, "worst": 0.0, "worst_step": 0}
    assert formats._complaint(regret, np.array([True, False, True])) == "ok is False at recorded step 1"


def test_every_format_has_a_flag_and_a_file():
    assert set(typing.get_args(Format)) == {"onnx", *FILES}


# --- real graphs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Source:
    policy = tiny_policy()
    golden = golden_steps(policy, _checked_samples(policy, SPEC, random_samples(30)))
    step, flat = _graphs(policy, {each.name: golden[f"inputs.{each.name}"][:1] for each in SPEC.observations})
    card = policy_card(policy, SPEC, {}, {**_ends(*step), "flat": _flat_ends(flat[0])})
    return Source(policy, *step, onnx_model(*step, card), golden, card)


@pytest.mark.export
@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_rounded_weights_lose_little_and_say_how_much(source: Source, tmp_path: Path, name: str):
    report = write_format(name, source, tmp_path)
    assert report["tokens"]["equal"] / report["tokens"]["total"] > (0.99 if name == "fp16" else 0.8)
    assert 0 < report["largest_q_difference"] < 0.1
    assert report["latency_ms"]["median"] > 0
    if name == "fp16":
        assert (tmp_path / FILES[name]).stat().st_size < 0.6 * source.model.ByteSize()
    (card,) = (each.value for each in onnx.load(tmp_path / FILES[name]).metadata_props if each.key == "policy_card")
    assert card == source.model.metadata_props[0].value


@pytest.mark.export
@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_what_loses_too_much_is_refused(source: Source, tmp_path: Path, name: str):
    """The graph of another policy."""
    other = tiny_policy(seed=9)
    golden = golden_steps(other, _checked_samples(other, SPEC, random_samples(30)))
    match = (
        rf"--formats {name}: its actions lose \d+.\d\d% of the range of Q on average .* at recorded step \d+; nothing"
    )
    with pytest.raises(ExportError, match=match):
        write_format(name, source._replace(policy=other, golden=golden), tmp_path)


@pytest.mark.export
def test_a_policy_without_values_has_no_regret(source: Source, tmp_path: Path):
    cloned = tiny_policy()
    cloned.support_temperature = math.inf
    with pytest.raises(ExportError, match="--formats fp16: this policy acts without values"):
        write_format("fp16", source._replace(policy=cloned), tmp_path)


@pytest.mark.export
def test_a_torch_program_equals_the_network(source: Source, tmp_path: Path):
    report = write_format("pt2", source, tmp_path)
    assert (report["passed"], report["tokens"]["equal"]) == (True, report["tokens"]["total"])
    assert report["largest_action_difference"] < 1e-6
    assert report["largest_q_difference"] < 1e-5
    assert b".py" not in (tmp_path / "policy.pt2").read_bytes()
    broken = {**source.golden, "outputs.actions": source.golden["outputs.actions"] + 0.5}
    with pytest.raises(
        ExportError, match=r"--formats pt2: torch \S+ and the network disagree in \d+ place.*: step 0: action off by"
    ):
        write_format("pt2", source._replace(golden=broken), tmp_path)


@pytest.mark.export
def test_no_compiler(source: Source, tmp_path: Path):
    match = r"--formats aoti: needs a C\+\+ compiler \(.*/nowhere/g\+\+.*; install g\+\+"
    with config.patch({"cpp.cxx": (None, "/nowhere/g++")}), pytest.raises(ExportError, match=match):
        write_format("aoti", source, tmp_path)


@pytest.mark.slow
@pytest.mark.export
def test_a_compiled_package_equals_the_network(source: Source, tmp_path: Path):
    with config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):  # sooner compiled
        report = write_format("aoti", source, tmp_path)
    assert (report["passed"], report["tokens"]["equal"]) == (True, report["tokens"]["total"])
    assert (tmp_path / "policy.aoti.pt2").exists()


@pytest.mark.export
def test_a_bundle_with_all_of_them(tmp_path: Path):
    """The export writes their sums, and what it reports of them is what the self-test holds them to."""
    from qtransformer.deploy.export import export_bundle
    from qtransformer.deploy.verify import verify_bundle

    wanted = Wanted(("fp16", "int8", "pt2"))
    report = export_bundle(
        tiny_policy(), spec=SPEC, samples=random_samples(30), card={}, out=tmp_path / "bundle", wanted=wanted
    )
    assert list(report["formats"]) == ["policy.fp16.onnx", "policy.int8.onnx", "policy.pt2"]
    for name, each in report["formats"].items():
        assert each["bytes"] == (tmp_path / "bundle" / name).stat().st_size
    found = verify_bundle(tmp_path / "bundle")
    assert (found["failures"], found["files"]) == ([], 12 + len(list(SOURCES.iterdir())))
    assert list(found["self_tests"]) == ["policy.onnx", "policy.fp16.onnx", "policy.int8.onnx"]
    assert found["self_tests"]["policy.int8.onnx"]["tokens"] == report["formats"]["policy.int8.onnx"]["tokens"]
