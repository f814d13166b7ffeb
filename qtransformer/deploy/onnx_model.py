"""A module to one ONNX file that narrow readers load: opset 18, IR 8, static shapes, weights inside.

It must not know what the module computes.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
            custom_translation_table=_translations(),
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
    _join_reshapes(model)
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, {"policy_card": json.dumps(card, allow_nan=False)})
    onnx.checker.check_model(model, full_check=True)
    _assert_is_plain(model)
    return model


def _translations() -> dict[Any, Any]:
    """Returns what stands for two operators, so that onnxruntime finds the patterns that it runs as one node.

    The exporter's own translations hide the scale and the transposed keys of attention behind reshapes, and write
    products of matrices as Gemm, which the quantizer cannot read where a weight has several readers.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
        return product if bias is None else op.Add(product, bias)

    def attention(queries: Any, keys: Any, values: Any, mask: Any = None) -> Any:
        scaled = op.Mul(queries, op.Constant(value_float=queries.shape[-1] ** -0.5))
        scores = op.MatMul(scaled, op.Transpose(keys, perm=[0, 1, 3, 2]))
        if mask is not None:
            scores = op.Where(mask, scores, op.Constant(value_float=-math.inf))
        return op.MatMul(op.Softmax(scores, axis=-1), values)

    return {
        torch.ops.aten.linear.default: linear,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
    }


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


def _join_reshapes(model: Any) -> None:
    """Turns each chain of nodes that keep all numbers in their order into one Reshape, or into none.

    Every node takes its share of a microsecond, and the decoding of one token has a dozen of these.
    """
    from onnx import helper, numpy_helper

    shapes, graph = _shapes(model), model.graph
    outputs = {each.name for each in graph.output}
    sources: dict[str, str] = {}  # of what such a chain gives: what it is given
    made: dict[tuple[str, tuple[int, ...]], str] = {}
    kept: list[Any] = []

    def reshaped(name: str) -> str:
        """Returns the name of a tensor like `name`, which may be made no more."""
        source = sources.get(name, name)
        if source == name or shapes[source] == shapes[name]:
            return source
        if (source, shapes[name]) not in made:
            target = numpy_helper.from_array(np.array(shapes[name], np.int64), f"{name}.shape")
            graph.initializer.append(target)
            kept.append(helper.make_node("Reshape", [source, target.name], [name], name=f"{name}.reshape"))
            made[source, shapes[name]] = name
        return made[source, shapes[name]]

    for node in graph.node:
        if _keeps_order(node, shapes) and node.output[0] not in outputs:
            given: str = node.input[0]
            sources[node.output[0]] = sources.get(given, given)
        else:
            node.input[:] = [reshaped(name) for name in node.input]
            kept.append(node)
    read = {name for node in kept for name in node.input}
    initializers = [each for each in graph.initializer if each.name in read]
    for field, entries in ((graph.node, kept), (graph.initializer, initializers)):
        del field[:]
        field.extend(entries)


def _keeps_order(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether a node only gives other axes to its numbers."""
    if not (node.input and node.input[0] in shapes and node.output[0] in shapes):
        return False
    if node.op_type == "Transpose":
        sizes, (order,) = shapes[node.input[0]], (each.ints for each in node.attribute)
        moved = [axis for axis in order if sizes[axis] > 1]
        return moved == sorted(moved)
    return node.op_type in ("Reshape", "Squeeze", "Unsqueeze")


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that are known, of tensors that are not empty."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {each.name: tuple(each.dims) for each in graph.initializer}
    for each in (*graph.value_info, *graph.input, *graph.output):
        if each.type.tensor_type.HasField("shape"):
            found[each.name] = tuple(size.dim_value for size in each.type.tensor_type.shape.dim)
    return {name: shape for name, shape in found.items() if all(shape)}


def _assert_is_plain(model: Any) -> None:
    graph = model.graph
    assert not any(node.op_type.startswith(_FORBIDDEN_OPERATORS) for node in graph.node), "exported in training mode"
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert [each.version for each in model.opset_import if each.domain == ""] == [OPSET]
