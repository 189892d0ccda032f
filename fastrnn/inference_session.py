"""InferenceSession: onnxruntime's calls over a fastrnn model, so that a service tries fastrnn by changing one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import ShapeError, UnsupportedError
from .model import TensorInfo, load

_TYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as onnxruntime describes it. shape: ints, and text such as "batch" for a free size."""

    name: str
    type: str
    shape: list[int | str]


class InferenceSession:
    """A model, called as onnxruntime's session of that name. Several threads may run it at once.

    Parameters
    ----------
    path_or_bytes : whatever `fastrnn.load` takes
    providers : names as for onnxruntime; "CPUExecutionProvider" must be among them
    **options : those of `fastrnn.load` (threads, bind, ...)

    Attributes
    ----------
    model : the `fastrnn.Model`, to step and to stream

    Example
    -------
    session = fastrnn.InferenceSession("model.onnx")
    name = session.get_inputs()[0].name
    (y,) = session.run(None, {name: x})
    """

    def __init__(self, path_or_bytes, *, providers: Sequence | None = None, **options):
        names = [p if isinstance(p, str) else p[0] for p in providers or ["CPUExecutionProvider"]]
        if "CPUExecutionProvider" not in names:
            raise UnsupportedError(f"the providers {names}; there is CPUExecutionProvider")
        self.model = load(path_or_bytes, **options)

    def get_providers(self) -> list[str]:
        """Where the model runs."""
        return ["CPUExecutionProvider"]

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, in the file's order."""
        return [_node_arg(info) for info in self.model.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the file's order."""
        return [_node_arg(info) for info in self.model.outputs]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the model on whole sequences.

        Parameters
        ----------
        output_names : the outputs to return, in this order; None is all
        input_feed : input name -> array

        Returns
        -------
        list of arrays, new memory

        Raises
        ------
        ShapeError : an unknown or missing name, a wrong dtype or shape.
        """
        outputs = [info.name for info in self.model.outputs]
        inputs = [info.name for info in self.model.inputs]
        for name in input_feed:
            if name not in inputs:
                raise ShapeError(_unknown("input", name, inputs))
        missing = [name for name in inputs if name not in input_feed]
        if missing:
            raise ShapeError(f"the input {', '.join(missing)} is missing; inputs are {', '.join(inputs)}")
        wanted = outputs if output_names is None else list(output_names)
        for name in wanted:
            if name not in outputs:
                raise ShapeError(_unknown("output", name, outputs))
        # By position: an input may have the name of an argument of `Model.run`.
        results = dict(zip(outputs, self.model.run(*(input_feed[name] for name in inputs)), strict=True))
        return [results[name] for name in wanted]


def _node_arg(info: TensorInfo) -> NodeArg:
    return NodeArg(info.name, _TYPES[info.dtype], list(info.dims))


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no {what} {name!r}; {what}s are {', '.join(known)}{hint}"
