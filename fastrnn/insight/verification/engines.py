"""The engines that a model is compared with: each runs feeds at any size that its file accepts.

An engine has `title`, `tolerance`, `notes`, `dims(name)`, which returns the sizes that its file fixes of an input (None
if it fixes none), and `run(feeds, outputs)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ...graph import Graph
from ...graph.precision import ROUNDED_EACH_CALL
from ...passes import precision_of

# An element passes at |got - expected| <= tolerance * (1 + |expected|). Two float32 engines that sum in different
# orders differ by about 1e-6 after a few layers of saturating cells; a wrong gate order or activation by 1e-2 and more.
TOLERANCE = 1e-4
# An engine that keeps float16 values rounds each of them by up to 2^-11; a few layers add up to ten of those.
TOLERANCE_FLOAT16 = 5e-3
# A model that rounds weights, inputs and states: the largest error of 100 steps of LSTM and GRU 512 is 4e-3 in
# bfloat16, 1.4e-2 in int8 and 7e-3 in int8-a16 (docs/decisions/0025), and layers add up.
TOLERANCE_REDUCED = {"bfloat16": 2e-2, "int8": 5e-2, "int8-a16": 3e-2}
ENGINES = ("onnxruntime", "torch", "keras", "reference")


def allowed(graph: Graph, own: float, *, beside_file: bool = False) -> float:
    """The tolerance for a graph, beside an engine whose own tolerance is this. beside_file: it runs the file itself,
    which may round values that the graph does not."""
    known = [own, *(TOLERANCE_REDUCED.get(precision, 0) for precision in precision_of(graph).values())]
    if beside_file and any(note.startswith(ROUNDED_EACH_CALL) for note in graph.notes):
        known.append(TOLERANCE_REDUCED["int8"])
    return max(known)


def engine(name: str, graph: Graph, path: str | None, bind: Mapping[str, Any], beside: Mapping[str, Any]) -> Any:
    """The engine `name` of ENGINES over a file; the reference needs only the graph.

    bind : values of the inputs that were fixed at load. beside : `layers`, `key` and `config` of `fastrnn.load`.

    Raises UnsupportedError if the engine is not installed, or the file is missing or not its kind.
    """
    if name == "reference":
        return ReferenceEngine(graph)
    if name == "torch":
        from . import engine_torch

        file = _own_file(path, engine_torch.SUFFIXES, "torch needs the file of weights")
        return engine_torch.TorchEngine(file, beside["layers"], beside["key"])
    if name == "keras":
        from . import engine_keras

        file = _own_file(path, engine_keras.SUFFIXES, "Keras needs its own file")
        return engine_keras.KerasEngine(file, TOLERANCE, beside["config"])
    return OnnxRuntimeEngine(_onnx_file(path), bind)


def _own_file(path: str | None, suffixes: Sequence[str], needs: str) -> str:
    if path is None or not path.lower().endswith(tuple(suffixes)):
        raise UnsupportedError(f"{needs} ({' '.join(suffixes)}): give source=, got {path}")
    return path


def _onnx_file(path: str | None) -> str:
    if path is None:
        raise UnsupportedError("onnxruntime needs the ONNX file: give its path, or source=path beside a loaded model")
    if os.path.splitext(path)[1].lower() != ".onnx":
        raise UnsupportedError(
            f"{path} is not an ONNX file, so onnxruntime can't run it: "
            'give source="model.onnx", or against="reference"'
        )
    return path


class ReferenceEngine:
    """The float64 oracle as an engine."""

    tolerance = TOLERANCE
    notes: tuple[str, ...] = ()
    is_own = True  # it runs fastrnn's own reading of the file

    def __init__(self, graph: Graph):
        self.graph = graph
        self.title = "fastrnn's float64 reference"

    def dims(self, name: str) -> tuple | None:
        return None

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        from ...graph.reference import run

        return [np.asarray(array) for array in run(self.graph, feeds)]


class OnnxRuntimeEngine:
    """onnxruntime, one thread, its warnings kept off the terminal."""

    is_own = False

    def __init__(self, path: str, bind: Mapping[str, Any]):
        try:
            import onnxruntime
        except ImportError:
            raise UnsupportedError(
                "verifying against onnxruntime needs onnxruntime, which is not installed: "
                'pip install "fastrnn[verify]", or verify against="reference"'
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, one per status code
            raise UnsupportedError(f"onnxruntime can't load {path}: {first_line(error)}") from None
        self.title = f"onnxruntime {onnxruntime.__version__}"
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        kinds = [v.type for v in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.tolerance = TOLERANCE_FLOAT16 if any("float16" in kind for kind in kinds) else TOLERANCE
        self.notes = tuple(f"{name} is bound to {value}" for name, value in bind.items())
        self.bind = {name: self._cast(name, np.asarray(value)) for name, value in bind.items()}

    def _cast(self, name: str, array: np.ndarray) -> np.ndarray:
        if name not in self.inputs:
            known = ", ".join(self.inputs)
            raise ShapeError(f"the ONNX file has no input {name}; it has {known}")
        kind = self.inputs[name].type
        dtype = _ORT_DTYPES.get(kind)
        if dtype is None:
            raise UnsupportedError(f"can't make inputs of onnxruntime's type {kind} (input {name})")
        return array.astype(dtype)

    def dims(self, name: str) -> tuple | None:
        return tuple(self.inputs[name].shape) if name in self.inputs else None

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        arrays = {name: self._cast(name, array) for name, array in feeds.items()}
        return self.session.run(list(outputs), {**arrays, **self.bind})


_ORT_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def first_line(error: Exception) -> str:
    """The first line of an error's text; the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
