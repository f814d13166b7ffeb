"""What is done to a graph after its export; the rest stands in test_export."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from qtransformer.deploy.controller import make_session
from qtransformer.deploy.onnx_model import _regroup_gelu

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
