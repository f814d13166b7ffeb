"""What is done to a graph after its export; the rest stands in test_export."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from qtransformer.blocks import Block
from qtransformer.deploy.controller import make_session
from qtransformer.deploy.onnx_model import Signature, _join_reshapes, _regroup_gelu, onnx_model

GELU = """
<ir_version: 8, opset_import: ["" : 18]>
gelu (float[4] x) => (float[4] y)
{
    root = Constant<value_float = 1.4142135>()
    one = Constant<value_float = 1.0>()
    half = Constant<value_float = 0.5>()
    scaled = Div(x, root)
    erf = Erf(scaled)
    total = Add(erf, one)
    halved = Mul(half, total)
    y = Mul(x, halved)
}
"""


def test_gelu_is_seen_as_one_node():
    """Of 0, 1, -1 and 3 it is 0, 0.841345, -0.158655 and 2.995950: x times the normal distribution function."""
    model = onnx.parser.parse_model(GELU)
    _regroup_gelu(model)
    onnx.checker.check_model(model, full_check=True)
    assert [list(node.input) for node in model.graph.node[-2:]] == [["x", "total"], ["halved", "half"]]
    (found,) = make_session(model.SerializeToString()).run(None, {"x": np.array([0, 1, -1, 3], np.float32)})
    np.testing.assert_allclose(found, [0.0, 0.841345, -0.158655, 2.995950], rtol=0, atol=2e-6)


# back is x again; wide and tall are both x as (6, 1); turned is another order; y must keep its name.
RESHAPES = """
<ir_version: 8, opset_import: ["" : 18]>
reshapes (float[1,2,3] x) => (float[6,1] sums, float[3,2] turned, float[2,3] y)
<int64[1] first = {0}, int64[1] last = {1}, int64[2] wide_shape = {1, 6}, int64[3] x_shape = {1, 2, 3},
 int64[2] tall_shape = {6, 1}>
{
    flat = Squeeze(x, first)
    more = Unsqueeze(flat, last)
    idle = Transpose<perm = [1, 0, 2]>(more)
    back = Reshape(idle, x_shape)
    positive = Relu(back)
    wide = Reshape(x, wide_shape)
    tall = Transpose<perm = [1, 0]>(wide)
    again = Reshape(positive, tall_shape)
    sums = Add(tall, again)
    turned = Transpose<perm = [1, 0]>(flat)
    y = Squeeze(positive, first)
}
"""


def test_a_chain_of_reshapes_is_one_or_none():
    model, x = onnx.parser.parse_model(RESHAPES), np.arange(-2, 4, dtype=np.float32).reshape(1, 2, 3)
    before = make_session(model.SerializeToString()).run(None, {"x": x})
    _join_reshapes(model)
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators == ["Relu", "Reshape", "Reshape", "Add", "Reshape", "Transpose", "Squeeze"]
    assert list(model.graph.node[0].input) == ["x"]
    assert sorted(each.name for each in model.graph.initializer) == ["again.shape", "first", "flat.shape", "tall.shape"]
    after = make_session(model.SerializeToString()).run(None, {"x": x})
    assert [each.tolist() for each in after] == [each.tolist() for each in before]
    assert after[0].ravel().tolist() == [-2, -1, 0, 2, 4, 6]


class OneToken(torch.nn.Module):
    """A block that goes on from its cache."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = Block(width=16, num_heads=2)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.block(x, None, (keys, values))[0]


@pytest.mark.export
def test_one_token_takes_few_nodes():
    """Of what only moves numbers: the token's row in and out, its heads in and out, three parts, the keys turned."""
    module = OneToken().eval()
    arguments = {"x": torch.randn(1, 1, 16), "keys": torch.randn(1, 2, 3, 8), "values": torch.randn(1, 2, 3, 8)}
    model = onnx_model(module, Signature(arguments, list(arguments), ["y"]), {})
    operators = Counter(node.op_type for node in model.graph.node)
    moving = ("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Gemm")
    assert [operators[name] for name in moving] == [4, 1, 1, 0, 0, 0, 0]
    assert operators.total() <= 30
    (found,) = make_session(model.SerializeToString()).run(
        None, {name: each.numpy() for name, each in arguments.items()}
    )
    with torch.no_grad():
        np.testing.assert_allclose(found, module(**arguments), rtol=0, atol=1e-6)
