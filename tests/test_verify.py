"""What `verify` finds in a bundle that was changed since its export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from controller_fixtures import change_card, golden, with_int8, write_bundle, write_sums

from qtransformer.config import RunError
from qtransformer.deploy.controller import SCHEMA_VERSION
from qtransformer.deploy.verify import verify_bundle


def test_a_sound_bundle(tmp_path: Path):
    report = verify_bundle(write_bundle(tmp_path))
    assert report["failures"] == []
    assert (report["passed"], report["files"], list(report["self_tests"])) == (True, 7, ["policy.onnx"])
    assert report["self_tests"]["policy.onnx"]["passed"]


def test_rounded_graphs_are_tested_too(tmp_path: Path):
    report = verify_bundle(with_int8(write_bundle(tmp_path)))
    assert (report["passed"], report["files"], list(report["self_tests"])) == (
        True,
        9,
        ["policy.onnx", "policy.int8.onnx"],
    )
    report = verify_bundle(with_int8(tmp_path, "0.5, 0.5"))
    assert report["failures"] == ["policy.int8.onnx: step 0: Q off by 2.50e-01"]


def no_card_in_graph(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "policy_flat.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "policy_flat.onnx")
    write_sums(folder)


def other_schema(folder: Path) -> None:
    (folder / "policy.schema.json").write_text("{}")
    write_sums(folder)


def wrong_steps(folder: Path) -> None:
    write_bundle(folder, {"outputs.actions": golden()["outputs.actions"] + 0.5})


def shorter_sums(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    write_sums(folder)


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "golden.npz").unlink(), "golden.npz: is missing"),
    (lambda folder: (folder / "controller.py").write_text("pass"), "controller.py: is not what SHA256SUMS says"),
    (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS: is missing or damaged"),
    (shorter_sums, "SHA256SUMS: must list golden.npz"),
    (lambda folder: change_card(folder, schema_version=1), f"schema_version: must be {SCHEMA_VERSION}, got 1"),
    (lambda folder: change_card(folder, control_hz=20.0), "policy.onnx: the card in its metadata is not policy.json"),
    (no_card_in_graph, "policy_flat.onnx: the card in its metadata is not policy.json"),
    (other_schema, "policy.schema.json: is not that of this qtransformer"),
    (wrong_steps, "step 0: action off by 5.0"),
]


@pytest.mark.parametrize(("change", "failure"), CHANGES)
def test_what_was_changed_is_named(tmp_path: Path, change: Callable[[Path], object], failure: str):
    change(write_bundle(tmp_path))
    report = verify_bundle(tmp_path)
    assert not report["passed"]
    assert [each for each in report["failures"] if failure in each], report["failures"]
    json.dumps(report)


def test_no_folder(tmp_path: Path):
    with pytest.raises(RunError, match="must be the folder of a bundle, got no folder"):
        verify_bundle(tmp_path / "none")
