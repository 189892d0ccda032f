"""Many states in one file: each output is compared with the inputs that it may continue, not with all of them."""

from importlib import import_module

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastrnn.importers.onnx import import_onnx


def caches(count):
    """A file of caches [1, 4, 2], each of which drops its oldest step and takes the newest one of x."""
    nodes, ins, outs = [], [("x", [1, 1, 2])], [("y", [1, 1, 2])]
    tensors = {"one": np.int64([1]), "far": np.int64([9]), "axis": np.int64([1])}
    for k in range(count):
        ins.append((f"a{k}", [1, 4, 2]))
        outs.append((f"b{count - 1 - k}x", [1, 4, 2]))
        nodes.append(helper.make_node("Concat", [f"a{k}", "x"], [f"c{k}"], axis=1))
        nodes.append(helper.make_node("Slice", [f"c{k}", "one", "far", "axis"], [f"b{count - 1 - k}x"]))
    nodes.append(helper.make_node("Tanh", ["x"], ["y"]))
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in side] for side in (ins, outs)]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(a, n) for n, a in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("count", [5, 40])
def test_outputs_are_compared_with_few_inputs(count, monkeypatch):
    compared = []
    links = import_module("fastrnn.importers.onnx.states.links")
    shifts = links._shifts
    monkeypatch.setattr(links, "_shifts", lambda old, new: compared.append(1) or shifts(old, new))
    graph = import_onnx(caches(count))
    assert dict(graph.states) == {f"a{k}": f"b{count - 1 - k}x" for k in range(count)}
    assert len(compared) <= 4 * count
