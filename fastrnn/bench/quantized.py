"""Files that onnxruntime quantised: a recurrent layer or a dense net with a head of ten classes.

fastrnn and onnxruntime run the same file. The true answer is that of the net before it was quantised, in float64, so
errors and decisions say what quantising cost in each engine. onnx and onnxruntime are imported only here, when needed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .cases import Case
from .cells import IR_VERSION, OPSET, STATES, cell_answer, cell_weights, step_shape

CLASSES = 10
DENSE_LAYERS = 3  # of H units, each with a ReLU, before the head
CALIBRATION_CALLS = 64  # of inputs that a static file's scales are chosen from


def job(case: Case, folder: Path, seed: int) -> dict:
    """Write the float net and what `case.quantized` makes of it; the job as of a model file."""
    rng = np.random.default_rng(seed)
    recurrent = case.kind in STATES
    shape = (1, case.batch, case.I) if recurrent else (case.batch, case.I)
    x = rng.standard_normal((case.check_steps, *shape)).astype(np.float32)
    if recurrent:
        weights = cell_weights(case.kind, case.I, case.H, seed)
        hidden = cell_answer(case.kind, weights, x[:, 0])
    else:
        weights, hidden = dense_layers(case, rng, x)
    weights["head"] = rng.uniform(-1, 1, (case.H, CLASSES)).astype(np.float32) / np.float32(np.sqrt(case.H))
    weights["head_bias"] = rng.uniform(-0.1, 0.1, CLASSES).astype(np.float32)
    expected = hidden @ weights["head"].astype(np.float64) + weights["head_bias"]
    np.save(folder / "x.npy", x)
    np.save(folder / "expected.npy", expected)
    write_net(folder / "float.onnx", case, weights)
    quantize(case.quantized, folder / "float.onnx", folder / "quantized.onnx", x)
    states = [(s, f"Y_{s}", (1, case.batch, case.H)) for s in STATES.get(case.kind, ())]
    return {
        **case.as_dict(),
        "kind": "model",
        "file": str(folder / "quantized.onnx"),
        "lone_file": str(folder / "quantized.onnx"),
        "input": "X",
        "output": "logits",
        "shape": shape,
        "step_shape": step_shape(case),
        "states": states,
        "bind": [],
        "classes": CLASSES,
        "x": str(folder / "x.npy"),
        "expected": str(folder / "expected.npy"),
    }


def dense_layers(case: Case, rng: np.random.Generator, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(weights of the layers, the last one's answers to x in float64)."""
    weights, hidden = {}, x.astype(np.float64)
    for layer in range(DENSE_LAYERS):
        width = hidden.shape[-1]
        bound = np.sqrt(6 / width)  # keeps the size of activations from layer to layer
        weights[f"W{layer}"] = rng.uniform(-bound, bound, (width, case.H)).astype(np.float32)
        weights[f"b{layer}"] = rng.uniform(-0.1, 0.1, case.H).astype(np.float32)
        hidden = np.maximum(hidden @ weights[f"W{layer}"].astype(np.float64) + weights[f"b{layer}"], 0)
    return weights, hidden


def write_net(path: Path, case: Case, weights: dict[str, np.ndarray]) -> None:
    """The float net as an ONNX file: states are inputs and outputs, `logits` is [batch, 10]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def info(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    states = STATES.get(case.kind, ())
    arrays = dict(weights)
    nodes, inputs = [], [info("X", *([1] if states else []), case.batch, case.I)]
    outputs = [info("logits", case.batch, CLASSES)]
    if states:
        arrays = {
            "W": weights["W"][None],
            "R": weights["R"][None],
            "B": np.concatenate([weights["Wb"], weights["Rb"]])[None],
            "axis": np.array([0], np.int64),
            "head": weights["head"],
            "head_bias": weights["head_bias"],
        }
        attrs = {"hidden_size": case.H} | ({"linear_before_reset": 1} if case.kind == "gru" else {})
        feeds, names = ["X", "W", "R", "B", "", *states], ["", *(f"Y_{s}" for s in states)]
        nodes.append(helper.make_node(case.kind.upper(), feeds, names, name="cell", **attrs))
        nodes.append(helper.make_node("Squeeze", ["Y_h", "axis"], ["hidden"], name="squeeze"))
        inputs += [info(s, 1, case.batch, case.H) for s in states]
        outputs += [info(f"Y_{s}", 1, case.batch, case.H) for s in states]
        hidden = "hidden"
    else:
        hidden = "X"
        for layer in range(DENSE_LAYERS):
            nodes.append(helper.make_node("MatMul", [hidden, f"W{layer}"], [f"m{layer}"], name=f"matmul{layer}"))
            nodes.append(helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"], name=f"add{layer}"))
            nodes.append(helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"], name=f"relu{layer}"))
            hidden = f"r{layer}"
    nodes.append(helper.make_node("MatMul", [hidden, "head"], ["product"], name="head_matmul"))
    nodes.append(helper.make_node("Add", ["product", "head_bias"], ["logits"], name="head_add"))
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, case.kind, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)


def quantize(form: str, source: Path, target: Path, x: np.ndarray) -> None:
    """What onnxruntime's tools make of a file. form: "dynamic", or "qdq" and "qoperator" with static scales from x."""
    from onnxruntime import quantization as tools

    with quiet():
        if form == "dynamic":
            tools.quantize_dynamic(source, target, per_channel=True)
            return
        formats = {"qdq": tools.QuantFormat.QDQ, "qoperator": tools.QuantFormat.QOperator}
        tools.quantize_static(source, target, Calls(x), quant_format=formats[form], per_channel=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the tools log: they recommend to prepare the model, which these nets have no need of."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class Calls:
    """The inputs of the first calls, as the calibration of onnxruntime asks for them."""

    def __init__(self, x: np.ndarray):
        self.left = list(x[:CALIBRATION_CALLS])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input by name; None at the end."""
        return {"X": self.left.pop(0)} if self.left else None
