"""A greedy policy as a folder that a robot controller loads without torch: the bundle.

Special about this file: nothing is believed. The graph is run by the very `controller.py` that travels in the bundle,
on logged observations, and where it disagrees with the network the export is refused. It must not know how a policy
was trained.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import platform
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qtransformer.batch import DatasetSpec, ObservationSpec
from qtransformer.config import RunError
from qtransformer.deploy import controller
from qtransformer.model import TokenOutputs
from qtransformer.policy import GreedyPolicy, PolicyOutputs

OPSET, IR_VERSION = 18, 8  # the newest that onnxruntime 1.15 reads, too
_FOLD_LIMIT = 2**26  # elements of a weight whose transposition is done here, once, instead of in every step
_FORBIDDEN_OPERATORS = ("Dropout", "Random", "Bernoulli", "Multinomial")
_README = """\
# A policy for a robot controller

Needs numpy and onnxruntime. Run `python controller.py --self-test` on the robot's machine first: it replays recorded
steps and prints `"passed": true` with the latency. Then, once every 1 / `control_hz` seconds:

    from controller import Controller, ControllerError

    controller = Controller("this/folder")
    controller.reset()  # at the start of every episode
    while True:
        observation = read_sensors()  # {name: array} as `observations` in policy.json lists them
        try:
            send(controller.step(observation))  # units and limits: `actions` in policy.json
        except ControllerError as error:  # wrong key or shape, NaN, ...; the history is as if it never came
            hold_the_robot(error)

- `controller.py`: history, checks and limits around the graph. In another language, treat outputs without `ok` as none.
- `policy.onnx` (opset 18): raw observations and `num_frames` in; `actions`, `ok`, `tokens`, `q_max`, `q_gap` out.
- `policy.json`: names, shapes, units, limits, rate, history, origin; hashes of `policy.onnx` and `golden.npz`.
- `golden.npz`: recorded inputs and the network's outputs; `parity.json`: the self-test's report at export.
"""
_ROUNDING = 1e-5  # relative and absolute: how far two correct runs of the network may lie apart in a logit


class ExportError(RunError):
    """The bundle was not written; the message says why and what to do."""


@dataclass(frozen=True)
class Samples:
    """Logged observation windows: n of them, oldest frame first, the first `num_frames` real."""

    observations: Mapping[str, np.ndarray]
    """Each (n, window, *shape)."""
    num_frames: np.ndarray
    """(n,) int64, in 1..window."""


def export_bundle(
    policy: GreedyPolicy, *, spec: DatasetSpec, samples: Samples, card: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Writes the bundle folder `out` and returns what its parity.json holds.

    Args:
        policy: on any device, in any mode; it is copied.
        spec: of the dataset that it was trained on.
        samples: windows of that dataset, for the recorded steps and the comparison; 256 are a good number.
        card: what else policy.json shall say (versions, git revision, dataset fingerprint, training step, ...).
            `card["observation_ranges"]`, {key: {"low": [...], "high": [...]}}, goes to the observations.
        out: must not exist, or be an empty folder.

    Raises:
        ExportError: `out` is in the way, an argument does not fit the policy, a package is missing, the disk is full,
            or the graph disagrees with the network. Nothing is left behind.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"out ({out}) must not exist or be an empty folder; choose another name or remove it")
    inputs = _checked_inputs(policy, spec, samples)
    policy = copy.deepcopy(policy).cpu().eval()
    golden = _golden(policy, inputs)
    document = _document(policy, spec, card, golden)
    model = _onnx_model(policy, inputs, document)
    beside = out.with_name(out.name + ".writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        report = _write(beside, model, golden, document)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error}); free space or choose another --out") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return report


def _write(folder: Path, model: Any, golden: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> dict[str, Any]:
    (folder / "policy.onnx").write_bytes(model.SerializeToString(deterministic=True))
    np.savez_compressed(folder / "golden.npz", allow_pickle=False, **golden)
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("policy.onnx", "golden.npz")}
    (folder / "policy.json").write_text(json.dumps({**document, "sha256": hashes}, indent=1), encoding="utf-8")
    shutil.copyfile(controller.__file__, folder / "controller.py")
    (folder / "README.md").write_text(_README, encoding="utf-8")
    report = _parity(folder)
    report["graph"] = {"nodes": len(model.graph.node), "bytes": (folder / "policy.onnx").stat().st_size}
    (folder / "parity.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _checked_inputs(policy: GreedyPolicy, spec: DatasetSpec, samples: Samples) -> dict[str, np.ndarray]:
    """Returns the graph's inputs for all samples, by name, in order."""
    window, names = policy.model.window, [each.name for each in spec.observations]
    for what, found in (("samples", samples.observations), ("policy", policy.model.encoder.keys)):
        if set(found) != set(names):
            raise ExportError(
                f"{what}: observation keys {sorted(found)} must be {sorted(names)}; use the policy's dataset"
            )
    reserved = {"num_frames", *PolicyOutputs._fields} & set(names)
    if reserved:
        raise ExportError(f"observation keys {sorted(reserved)} are names of the graph; rename them in the dataset")
    num_samples, shapes = len(samples.num_frames), policy.model.encoder.shapes
    is_in_range = (samples.num_frames >= 1) & (samples.num_frames <= window)
    if not (num_samples and is_in_range.all()):
        raise ExportError(f"num_frames must be at least one number in 1..{window}, got {samples.num_frames}")
    inputs = {}
    for each in spec.observations:
        array, expected = samples.observations[each.name], (num_samples, window, *shapes[each.name])
        if array.shape != expected:
            raise ExportError(
                f"samples {each.name!r}: shape {array.shape} must be {expected}; cut them with this window"
            )
        is_float = each.kind == "text" or np.dtype(each.dtype).kind == "f"
        inputs[each.name] = array.astype(np.float32 if is_float else each.dtype)
    return {**inputs, "num_frames": samples.num_frames.astype(np.int64)}


def _document(
    policy: GreedyPolicy, spec: DatasetSpec, card: Mapping[str, Any], golden: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns policy.json without the hashes."""
    rest = dict(card)
    ranges = rest.pop("observation_ranges", {})
    document = {
        "schema_version": controller.SCHEMA_VERSION,
        "observations": [
            {**asdict(each), "dtype": _dtype(each, golden), **ranges.get(each.name, {})} for each in spec.observations
        ],
        "actions": {**asdict(spec.actions), "bins": policy.tokenizer.num_bins, "levels": policy.tokenizer.num_levels},
        "control_hz": spec.control_hz,
        "history_length": policy.model.window,
        "history_order": "oldest first: num_frames observations, then copies of the newest up to history_length",
        "environment": {
            "id": spec.environment_id,
            "kwargs": dict(spec.environment_kwargs),
            "ignored_observations": list(spec.ignored_observations),
        },
        **{
            kind: [
                {"name": name.partition(".")[2], "dtype": str(array.dtype), "shape": [1, *array.shape[1:]]}
                for name, array in golden.items()
                if name.startswith(kind)
            ]
            for kind in ("inputs", "outputs")
        },
    }
    clash = set(rest) & {*document, "sha256"}
    if clash:
        raise ExportError(f"card keys {sorted(clash)} are written by the export itself; rename them")
    try:
        return json.loads(json.dumps({**document, **rest}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"card must be plain JSON with finite numbers ({error}); convert it") from error


def _dtype(spec: ObservationSpec, golden: Mapping[str, np.ndarray]) -> str:
    """Returns what the controller is given: text, or numbers of the graph's type."""
    return spec.dtype if spec.kind == "text" else str(golden[f"inputs.{spec.name}"].dtype)


def _onnx_model(policy: GreedyPolicy, inputs: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> Any:
    """Returns the graph as an onnx.ModelProto: batch 1, static shapes, weights inside, no traces of this machine."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  needed later; better known now
        import onnxscript
    except ImportError as error:
        raise ExportError(f"package {error.name} is missing; pip install 'qtransformer[export]'") from error
    example = {name: torch.from_numpy(array[:1].copy()) for name, array in inputs.items()}
    num_frames = example.pop("num_frames")
    # It remarks on packages that are not installed and not needed, and on its own deprecations.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            policy,
            args=(),  # a lone dict here would be taken for keyword arguments
            kwargs={"observations": example, "num_frames": num_frames},
            input_names=list(inputs),
            output_names=PolicyOutputs._fields,
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        optimize = onnxscript.optimizer.optimize_ir
        optimize(program.model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    model = program.model_proto
    for each in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del each.metadata_props[:]  # names of source files and folders
        each.ClearField("doc_string")
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, {"policy_card": json.dumps(document, allow_nan=False)})
    onnx.checker.check_model(model, full_check=True)
    _assert_is_plain(model, document)
    return model


def _assert_is_plain(model: Any, document: Mapping[str, Any]) -> None:
    graph = model.graph
    for found, described in ((graph.input, document["inputs"]), (graph.output, document["outputs"])):
        shapes = [(each.name, [size.dim_value for size in each.type.tensor_type.shape.dim]) for each in found]
        assert shapes == [(each["name"], each["shape"]) for each in described], shapes
    assert not any(node.op_type.startswith(_FORBIDDEN_OPERATORS) for node in graph.node), "exported in training mode"
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert [each.version for each in model.opset_import if each.domain == ""] == [OPSET]


@torch.no_grad()
def _golden(policy: GreedyPolicy, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of golden.npz: inputs, the network's outputs, and the bins that rounding could choose."""
    observations = {name: torch.from_numpy(array) for name, array in inputs.items()}
    num_frames = observations.pop("num_frames")
    outputs: PolicyOutputs = policy(observations, num_frames)
    tokens, logits = policy.model.greedy(observations, num_frames, policy.choose)
    assert tokens.equal(outputs.tokens)
    return {
        **{f"inputs.{name}": array for name, array in inputs.items()},
        **{f"outputs.{name}": array.numpy() for name, array in outputs._asdict().items()},
        "is_tied": _tied_bins(policy, tokens, logits).numpy(),
    }


def _tied_bins(policy: GreedyPolicy, tokens: Tensor, outputs: TokenOutputs) -> Tensor:
    """Returns which bins (n, tokens, bins) the policy chooses once their logits rise, and the chosen one's fall, a bit.

    This asks the policy itself, so that it holds for any rule by which it weighs values and support.
    """
    num_bins = outputs.q_logits.shape[-1]
    chosen = F.one_hot(tokens, num_bins).float()
    is_tied = []
    for each in torch.eye(num_bins):
        nudged = (logits + (each - chosen) * _ROUNDING * (1 + logits.abs()) for logits in outputs)
        is_tied.append(policy.choose(TokenOutputs(*nudged)) == each.argmax())
    return torch.stack(is_tied, dim=-1)


def _parity(folder: Path) -> dict[str, Any]:
    """Returns the self-test's report of the bundle in `folder`, with the machine; raises where it did not pass."""
    import onnxruntime

    report = controller.Controller(folder).self_test()
    if not report["passed"]:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} and the network disagree in {report['num_failures']} place(s) "
            f"of {report['samples']} samples: {'; '.join(report['failures'])}; nothing was written: "
            "look for NaN in the checkpoint, or try the versions of constraints.txt"
        )
    report["measured_on"] = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__}
    return report
