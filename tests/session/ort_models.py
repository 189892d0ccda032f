"""Small ONNX models for the tests of the session, and both engines' answers to the same call."""

import numpy as np
from onnx import TensorProto, helper

CPU = ["CPUExecutionProvider"]


def identity(element=TensorProto.FLOAT, dims=("batch", 3), out=("batch", 3), op="Identity", nodes=None, weights=()):
    """x -> y by one node, or by `nodes`; bytes of the file."""
    made = nodes or [helper.make_node(op, ["x"] if op == "Identity" else ["x", "x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, element, size) for name, size in (("x", dims), ("y", out))]
    graph = helper.make_graph(made, "g", ends[:1], ends[1:], initializer=list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def switched(element=TensorProto.INT64, dims=(), compare=16000):
    """y = x @ W16 if rate == 16000 else x @ W8, through h -> hn, as Silero's file has it; bytes."""

    def branch(name, factor):
        weight = helper.make_tensor("w" + name, TensorProto.FLOAT, [3, 3], (np.eye(3) * factor).ravel().tolist())
        out = helper.make_tensor_value_info("b" + name, TensorProto.FLOAT, None)
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w" + name], ["b" + name])], name, [], [out], [weight]
        )

    value = helper.make_tensor("sixteen", element, [], [compare])
    nodes = [
        helper.make_node("Equal", ["rate", "sixteen"], ["same"]),
        helper.make_node("If", ["same"], ["z"], then_branch=branch("16", 2), else_branch=branch("8", 3)),
        helper.make_node("Add", ["z", "h"], ["hn"]),
        helper.make_node("Relu", ["hn"], ["y"]),
    ]
    names = {"x": ["batch", 3], "h": ["batch", 3], "y": ["batch", 3], "hn": ["batch", 3]}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in names.items()}
    infos["rate"] = helper.make_tensor_value_info("rate", element, dims)
    ends = [infos["y"], infos["hn"]]
    graph = helper.make_graph(nodes, "switched", [infos["x"], infos["rate"], infos["h"]], ends, [value])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def both(data: bytes, **options):
    """(fastrnn's session, onnxruntime's) of a file; the latter silent."""
    import onnxruntime

    import fastrnn

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    return fastrnn.InferenceSession(data, **options), onnxruntime.InferenceSession(data, quiet, providers=CPU)
