"""Cells that are measured: their weights, ONNX files and true answers. `onnx` is imported only where it is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..graph import reference
from ..graph.cells import CellSpec
from .cases import GATES, Case

OPSET = 17
IR_VERSION = 8  # what opset 17 came with: engines older than the installed onnx package read it too
STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


def cell_weights(kind: str, I: int, H: int, seed: int) -> dict[str, np.ndarray]:  # noqa: E741
    """W [G*H, I], R [G*H, H], Wb, Rb [G*H], float32, ONNX gate order, uniform in +-1/sqrt(H) as PyTorch draws."""
    rng = np.random.default_rng(seed)
    rows = GATES[kind] * H
    bound = 1 / np.sqrt(H)
    shapes = {"W": (rows, I), "R": (rows, H), "Wb": (rows,), "Rb": (rows,)}
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def step_shape(case: Case) -> tuple[int, ...]:
    """Of what one step of a stream takes: no time axis, and a batch axis if there are several rows."""
    return (case.I,) if case.batch == 1 else (case.batch, case.I)


def cell_answer(kind: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """h of every step in float64, [T, batch, H], for x [T, batch, I] from states of zeros."""
    H, I = weights["R"].shape[1], weights["W"].shape[1]  # noqa: E741
    spec = CellSpec(kind, I, H, linear_before_reset=kind == "gru")
    return reference.cell(spec, x, *(weights[name] for name in ("W", "R", "Wb", "Rb")))[0]


def write_cell(path: Path, kind: str, weights: dict, T: int | None, batch: int | None, *, stepped: bool) -> None:
    """An ONNX file of one cell; T and batch None: symbolic, with Y squeezed to [time, batch, H].

    stepped: the states are inputs h (c) and outputs Y_h (Y_c), and there is no Y. GRU has linear_before_reset = 1,
    which is PyTorch's and Keras's form.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    H, I = weights["R"].shape[1], weights["W"].shape[1]  # noqa: E741
    arrays = {
        "W": weights["W"][None],
        "R": weights["R"][None],
        "B": np.concatenate([weights["Wb"], weights["Rb"]])[None],
    }
    free = T is None
    dims = ["time" if free else T, "batch" if free else batch]

    def info(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    inputs, feeds = [info("X", *dims, I)], ["X", "W", "R", "B"]
    attrs = {"hidden_size": H} | ({"linear_before_reset": 1} if kind == "gru" else {})
    if stepped:
        states = STATES[kind]
        inputs += [info(s, 1, dims[1], H) for s in states]
        names = ["", *(f"Y_{s}" for s in states)]
        feeds += ["", *states]
        outputs = [info(f"Y_{s}", 1, dims[1], H) for s in states]
    else:
        names = ["Y4" if free else "Y"]
        outputs = [info("Y", *dims, H) if free else info("Y", dims[0], 1, dims[1], H)]
    nodes = [helper.make_node(kind.upper(), feeds, names, name="cell", **attrs)]
    if free and not stepped:
        arrays["axis"] = np.array([1], np.int64)
        nodes.append(helper.make_node("Squeeze", ["Y4", "axis"], ["Y"], name="squeeze"))
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, kind, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)


def write_several(path: Path, case: Case, weights: dict[str, np.ndarray]) -> None:
    """An ONNX file of one LSTM whose x comes in `case.inputs` parts; its outputs are Y and the ReLU of Y."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    parts = [f"X{i}" for i in range(case.inputs)]
    arrays = {
        "W": weights["W"][None],
        "R": weights["R"][None],
        "B": np.concatenate([weights["Wb"], weights["Rb"]])[None],
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Concat", parts, ["X"], axis=2, name="join"),
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y4"], hidden_size=case.H, name="cell"),
        helper.make_node("Squeeze", ["Y4", "axis"], ["Y"], name="squeeze"),
        helper.make_node("Relu", ["Y"], ["Z"], name="relu"),
    ]

    def info(name, width):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["time", "batch", width])

    inputs = [info(name, case.I // case.inputs) for name in parts]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "several", inputs, [info("Y", case.H), info("Z", case.H)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)
