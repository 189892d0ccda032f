"""What the engines are given: model files and inputs of a case, and the answer that all of them must give.

Each engine gets the model in the form that suits it best; the weights are the same in all of them. A step is a file
with the states as inputs and outputs (`stepped.onnx`) for engines that keep none, and a file without them
(`sequence.onnx`, any batch and length) for fastrnn, whose streams keep them. `onnx` is imported only here.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from ..graph import reference
from ..graph.cells import CellSpec
from .cases import GATES, Case

OPSET = 17
STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


def prepare(case: Case, folder: Path) -> dict:
    """Write the files of a case into `folder` and return the job that its workers get.

    The job: what to load (`file` with static shapes and states as inputs; `free_file` and `weights` for a cell),
    `input`, `output`, `shape` of one call's input, `states` as (input, output, shape), `bind`, and paths of `x`
    (float32 [calls, *shape]) and, for a cell, `expected` (float64, as many numbers as all calls answer).
    """
    seed = zlib.crc32(case.id.encode())
    job = _model_job(case, folder, seed) if case.model is not None else _cell_job(case, folder, seed)
    (folder / "job.json").write_text(json.dumps(job))
    return job


def cell_weights(kind: str, I: int, H: int, seed: int) -> dict[str, np.ndarray]:  # noqa: E741
    """W [G*H, I], R [G*H, H], Wb, Rb [G*H], float32, ONNX gate order, uniform in +-1/sqrt(H) as PyTorch draws."""
    rng = np.random.default_rng(seed)
    rows = GATES[kind] * H
    bound = 1 / np.sqrt(H)
    shapes = {"W": (rows, I), "R": (rows, H), "Wb": (rows,), "Rb": (rows,)}
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def _cell_job(case: Case, folder: Path, seed: int) -> dict:
    weights = cell_weights(case.kind, case.I, case.H, seed)
    np.savez(folder / "weights.npz", **weights)
    steps = case.T if case.sequence else case.check_steps
    x = np.random.default_rng(seed + 1).standard_normal((steps, case.batch, case.I)).astype(np.float32)
    spec = CellSpec(case.kind, case.I, case.H, linear_before_reset=case.kind == "gru")
    expected = reference.cell(spec, x, *(weights[name] for name in ("W", "R", "Wb", "Rb")))[0]
    shape = (case.T, case.batch, case.I) if case.sequence else (1, case.batch, case.I)
    np.save(folder / "x.npy", x.reshape(-1, *shape))
    np.save(folder / "expected.npy", expected)
    write_cell(folder / "free.onnx", case.kind, weights, None, None, stepped=False)
    fixed = "sequence.onnx" if case.sequence else "stepped.onnx"
    write_cell(folder / fixed, case.kind, weights, case.T, case.batch, stepped=not case.sequence)
    lone = fixed
    if case.slots:  # for an engine that has one session per stream
        lone = "lone.onnx"
        write_cell(folder / lone, case.kind, weights, 1, 1, stepped=True)
    states = [] if case.sequence else [(s, f"Y_{s}", (1, case.batch, case.H)) for s in STATES[case.kind]]
    return {
        **case.as_dict(),
        "file": str(folder / fixed),
        "free_file": str(folder / "free.onnx"),
        "lone_file": str(folder / lone),
        "weights": str(folder / "weights.npz"),
        "input": "X",
        "output": "Y" if case.sequence else "Y_h",
        "shape": shape,
        "states": states,
        "bind": [],
        "x": str(folder / "x.npy"),
        "expected": str(folder / "expected.npy"),
    }


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
    # IR 8 is what opset 17 came with: engines older than the installed onnx package read it too.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.save(model, path)


def _model_job(case: Case, folder: Path, seed: int) -> dict:
    model = case.model
    assert model is not None
    source = Path(case.folder) / model.file
    shape = (case.batch, *model.shape[1:]) if case.batch > 1 else model.shape
    calls = 1 if case.sequence else case.check_steps
    # A tenth of full scale: what speech looks like, and far from saturating anything.
    x = 0.1 * np.random.default_rng(seed).standard_normal((calls, *shape))
    np.save(folder / "x.npy", x.astype(np.float32))
    states = []
    for name, output, dims in model.states:
        axis = model.state_batch_axis
        states.append((name, output, dims if axis is None else (*dims[:axis], case.batch, *dims[axis + 1 :])))
    return {
        **case.as_dict(),
        "file": str(without_stated_shapes(source, folder) if case.sequence else source),
        "lone_file": str(source),
        "input": model.input,
        "output": model.output,
        "shape": shape,
        "states": states,
        "bind": model.bind,
        "x": str(folder / "x.npy"),
    }


def without_stated_shapes(source: Path, folder: Path) -> Path:
    """A copy of the file that states no shapes but its inputs': exporters write the example's length into the others,
    and onnxruntime then refuses to write a buffer of the true length."""
    import onnx

    model = onnx.load(source)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    onnx.save(model, folder / source.name)
    return folder / source.name
