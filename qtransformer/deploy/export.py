"""A greedy policy as a folder that a robot controller loads without torch: the bundle.

Special about this file: nothing is believed. The graphs are run by the very `controller.py` that travels in the bundle,
on logged observations, and where they disagree with the network the export is refused. It must not know how a policy
was trained.
"""

from __future__ import annotations

import copy
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qtransformer.batch import DatasetSpec
from qtransformer.deploy import controller
from qtransformer.deploy.card import SCHEMA, policy_card
from qtransformer.deploy.formats import FILES, Source, write_format
from qtransformer.deploy.golden import Samples, golden_steps
from qtransformer.deploy.graphs import FlatGraph, StepGraph, StepOutputs
from qtransformer.deploy.onnx_model import ExportError, Signature, onnx_model
from qtransformer.files import write_sums
from qtransformer.policy import GreedyPolicy

__all__ = ["ExportError", "Samples", "Wanted", "export_bundle"]

_HERE = Path(__file__).parent
_STATE = ("history_in", "num_frames_in")
_FLAT_INPUT = "observations"
_FLAT_LAYOUT = (
    "float32; each key of `parts` from its offset on: history_length frames of `size` numbers in C order, the newest "
    "last, before the first of an episode anything finite; then, as the last number, how many frames are real. A "
    "reader that cannot count fills the window with copies of the first frame and says history_length. NaN comes out "
    "where the policy is not ok."
)


class Wanted(NamedTuple):
    """What an export shall hold to, beyond being right."""

    formats: Sequence[str] = ()
    """Beside ONNX float32: those of `formats.FILES`."""
    budget_ms: float | None = None
    """Most that 99 of 100 steps may take here."""


def export_bundle(
    policy: GreedyPolicy,
    *,
    spec: DatasetSpec,
    samples: Samples,
    card: Mapping[str, Any],
    out: Path,
    wanted: Wanted | None = None,
) -> dict[str, Any]:
    """Writes the bundle folder `out` and returns what its parity.json holds.

    Args:
        policy: on any device, in any mode; it is copied.
        spec: of the dataset that it was trained on.
        samples: windows of that dataset, for the recorded steps and the comparison; 512 are a good number.
        card: what else policy.json shall say; see `card.policy_card`.
        out: must not exist, or be an empty folder.
        wanted: other formats, and a budget.

    Raises:
        ExportError: `out` is in the way, an argument does not fit the policy, a package or compiler is missing, the
            disk is full, a graph disagrees with the network, a format with rounded weights loses too much, or the step
            is too slow for the budget. Nothing is left behind.
        CardError, ControllerError: the card or its limits do not fit.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"out ({out}) must not exist or be an empty folder; choose another name or remove it")
    samples = _checked_samples(policy, spec, samples)
    policy = copy.deepcopy(policy).cpu().eval()
    golden = golden_steps(policy, samples)
    frame = {each.name: golden[f"inputs.{each.name}"][:1] for each in spec.observations}
    step, flat = _graphs(policy, frame)
    document = policy_card(policy, spec, card, {**_ends(*step), "flat": _flat_ends(flat[0])})
    models = {"policy.onnx": onnx_model(*step, document), "policy_flat.onnx": onnx_model(*flat, document)}
    source = Source(policy, *step, models["policy.onnx"], golden, document)
    beside = out.with_name(out.name + ".writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        report = _write(beside, models, source, wanted or Wanted())
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error}); free space or choose another --out") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return report


def _write(folder: Path, models: Mapping[str, Any], source: Source, wanted: Wanted) -> dict[str, Any]:
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    np.savez_compressed(folder / "golden.npz", allow_pickle=False, **source.golden)
    (folder / "policy.json").write_text(json.dumps(source.card, indent=1), encoding="utf-8")
    for name in ("controller.py", "self_test.py", SCHEMA.name):
        shutil.copyfile(_HERE / name, folder / name)
    shutil.copyfile(_HERE / "bundle_readme.md", folder / "README.md")
    shutil.copytree(_HERE / "cpp", folder / "cpp", ignore=shutil.ignore_patterns("build"))
    write_sums(folder)
    report = _parity(folder)
    report["graphs"] = {
        name: {"nodes": len(model.graph.node), "bytes": (folder / name).stat().st_size}
        for name, model in models.items()
    }
    report["timing"] = _timing(report["latency_ms"]["p99"], source.card["control_hz"], wanted.budget_ms)
    report["formats"] = {
        FILES[name]: {**write_format(name, source, folder), "bytes": (folder / FILES[name]).stat().st_size}
        for name in dict.fromkeys(wanted.formats)
    }
    (folder / "parity.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    write_sums(folder)
    return report


def _checked_samples(policy: GreedyPolicy, spec: DatasetSpec, samples: Samples) -> Samples:
    """Returns the samples as the graphs take them, keys in the order of the dataset."""
    window, names = policy.model.window, [each.name for each in spec.observations]
    for what, found in (("samples", samples.observations), ("policy", policy.model.encoder.keys)):
        if set(found) != set(names):
            raise ExportError(
                f"{what}: observation keys {sorted(found)} must be {sorted(names)}; use the policy's dataset"
            )
    reserved = {*_STATE, *StepOutputs._fields} & set(names)
    if reserved:
        raise ExportError(f"observation keys {sorted(reserved)} are names of the graph; rename them in the dataset")
    num_samples, shapes = len(samples.num_frames), policy.model.encoder.shapes
    is_in_range = (samples.num_frames >= 1) & (samples.num_frames <= window)
    if not (num_samples and is_in_range.all()):
        raise ExportError(f"num_frames must be at least one number in 1..{window}, got {samples.num_frames}")
    observations = {}
    for each in spec.observations:
        array, expected = samples.observations[each.name], (num_samples, window, *shapes[each.name])
        if array.shape != expected:
            raise ExportError(
                f"samples {each.name!r}: shape {array.shape} must be {expected}; cut them with this window"
            )
        is_float = each.kind == "text" or np.dtype(each.dtype).kind == "f"
        observations[each.name] = array.astype(np.float32 if is_float else each.dtype)
    return Samples(observations, samples.num_frames.astype(np.int64))


def _graphs(
    policy: GreedyPolicy, frame: Mapping[str, np.ndarray]
) -> tuple[tuple[StepGraph, Signature], tuple[FlatGraph, Signature]]:
    """Returns both modules, each with how it is called on one frame after a reset."""
    observation = {name: torch.from_numpy(array.copy()) for name, array in frame.items()}
    step, flat = StepGraph(policy), FlatGraph(policy, {name: array.dtype for name, array in observation.items()})
    state = {"history_in": step.initial_history(), "num_frames_in": torch.zeros(1, dtype=torch.int64)}
    called = Signature({"observation": observation, **state}, [*observation, *_STATE], StepOutputs._fields)
    row = torch.zeros(1, flat.size)
    return (step, called), (flat, Signature({"row": row}, [_FLAT_INPUT], ["actions"]))


@torch.no_grad()
def _ends(step: StepGraph, called: Signature) -> dict[str, list[dict[str, Any]]]:
    """Returns name, numpy dtype and shape of what goes in and comes out."""
    observation, *state = called.arguments.values()
    found = step(**called.arguments)
    return {
        "inputs": _described(called.inputs, [*observation.values(), *state]),
        "outputs": _described(called.outputs, found),
    }


def _described(names: Sequence[str], tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    arrays = [tensor.numpy() for tensor in tensors]
    return [
        {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in zip(names, arrays, strict=True)
    ]


def _flat_ends(flat: FlatGraph) -> dict[str, Any]:
    parts = [part._asdict() for part in flat.parts]
    return {"input": _FLAT_INPUT, "output": "actions", "size": flat.size, "parts": parts, "layout": _FLAT_LAYOUT}


def _parity(folder: Path) -> dict[str, Any]:
    """Returns the self-test's report of the bundle in `folder`, with the machine; raises where it did not pass."""
    import onnxruntime

    report = controller.Controller(folder).self_test()
    if not report["passed"]:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} and the network disagree in {report['num_failures']} place(s) "
            f"of {report['steps']} logged observations: {'; '.join(report['failures'])}; nothing was written: "
            "look for NaN in the checkpoint, or try the versions of constraints.txt"
        )
    report["measured_on"] = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__}
    return report


def _timing(p99_ms: float, control_hz: float | None, budget_ms: float | None) -> dict[str, Any]:
    """Returns how the slowest of 100 steps compares with the control period; raises where it is beyond the budget."""
    if budget_ms is not None and p99_ms > budget_ms:
        raise ExportError(
            f"--budget-ms {budget_ms:g}: a step takes {p99_ms:.2f} ms here (99 of 100), nothing was written; "
            "train a smaller network, or raise the budget"
        )
    period_ms = None if control_hz is None else 1000 / control_hz
    return {
        "control_period_ms": period_ms,
        "budget_ms": budget_ms,
        "fits_the_period": None if period_ms is None else p99_ms <= period_ms,
    }
