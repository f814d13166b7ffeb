"""A module to one ONNX file that narrow readers load: opset 18, IR 8, static shapes, weights inside.

It must not know what the module computes.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qtransformer.config import RunError

OPSET, IR_VERSION = 18, 8  # the newest that onnxruntime 1.15 reads, too
_FOLD_LIMIT = 2**26  # elements of a weight whose transposition is done here, once, instead of in every step
_FORBIDDEN_OPERATORS = ("Dropout", "Random", "Bernoulli", "Multinomial")


class ExportError(RunError):
    """The bundle was not written; the message says why and what to do."""


@dataclass(frozen=True)
class Signature:
    """What a graph is called with, and the names of its ends, in order."""

    arguments: Mapping[str, Any]
    """Of `forward`, by name: tensors, or dicts of them."""
    inputs: Sequence[str]
    outputs: Sequence[str]


def onnx_model(module: nn.Module, signature: Signature, card: Mapping[str, Any]) -> Any:
    """Returns the graph as an onnx.ModelProto with `card` in its metadata, and no traces of this machine.

    Raises:
        ExportError: a package is missing.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  needed later; better known now
        import onnxscript
    except ImportError as error:
        raise ExportError(f"package {error.name} is missing; pip install 'qtransformer[export]'") from error
    # It remarks on packages that are not installed and not needed, and on its own deprecations.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            module,
            args=(),  # a lone dict here would be taken for keyword arguments
            kwargs=dict(signature.arguments),
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
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
    _regroup_gelu(model)
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, {"policy_card": json.dumps(card, allow_nan=False)})
    onnx.checker.check_model(model, full_check=True)
    _assert_is_plain(model)
    return model


def _regroup_gelu(model: Any) -> None:
    """Turns x * (0.5 * (1 + erf)) into (x * (1 + erf)) * 0.5: so onnxruntime sees GELU, and runs it as one node."""
    nodes = model.graph.node
    erfs = {node.output[0] for node in nodes if node.op_type == "Erf"}
    sums = {node.output[0] for node in nodes if node.op_type == "Add" and erfs & {*node.input}}
    halved = {node.output[0]: node for node in nodes if node.op_type == "Mul" and sums & {*node.input}}
    for node in nodes:
        if node.op_type == "Mul" and halved.keys() & {*node.input}:
            x, inner = sorted(node.input, key=lambda name: name in halved)
            half, total = sorted(halved[inner].input, key=lambda name: name in sums)
            halved[inner].input[:], node.input[:] = [x, total], [inner, half]


def _assert_is_plain(model: Any) -> None:
    graph = model.graph
    assert not any(node.op_type.startswith(_FORBIDDEN_OPERATORS) for node in graph.node), "exported in training mode"
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert [each.version for each in model.opset_import if each.domain == ""] == [OPSET]
