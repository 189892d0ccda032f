"""The onnx.backend API over fastrnn: prepare, run_model, run_node, supports_device, is_compatible.

What fastrnn must know before it runs (weights of a cell, the shape of a Reshape, the axes of a Squeeze) may be inputs
of an ONNX graph. Such a graph is imported at its first run, with the arrays of that run built in, and again if a
later run has other ones; all other graphs are imported by `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from .errors import ShapeError, UnsupportedError
from .loading import from_onnx
from .model import Model

__all__ = [
    "FastRNNBackend",
    "FastRNNBackendRep",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]

# Operator -> the inputs, by position, that fastrnn takes only as constants.
_CELL = (1, 2, 3, 7)  # W, R, B, P
_AXES = (1,)
_KNOWN_BEFORE = {
    "RNN": _CELL,
    "LSTM": _CELL,
    "GRU": _CELL,
    "BatchNormalization": (1, 2, 3, 4),
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "CumSum": (1,),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GroupNormalization": (1, 2),
    "If": (0,),
    "InstanceNormalization": (1, 2),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "SequenceAt": (1,),
    "Squeeze": _AXES,
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": _AXES,
    "Upsample": (1,),
    **{f"Reduce{name}": _AXES for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()},
}


def _known_before(model: onnx.ModelProto) -> list[str]:
    """The graph's inputs (not initializers) that feed such a position."""
    free = {value.name for value in model.graph.input} - {array.name for array in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        for position in _KNOWN_BEFORE.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            if position < len(node.input) and node.input[position] in free:
                found.add(node.input[position])
    return [value.name for value in model.graph.input if value.name in found]


class FastRNNBackendRep(BackendRep):
    """A model that is ready to run; made by `prepare`. Several threads may run it at once."""

    def __init__(self, proto: onnx.ModelProto, options: dict):
        initialized = {array.name for array in proto.graph.initializer}
        self._names = [value.name for value in proto.graph.input if value.name not in initialized]
        self._outputs = [value.name for value in proto.graph.output]
        self._built_in = _known_before(proto)
        self._proto, self._options = proto, options
        # (arrays that are built in, model): replaced as one, so that a thread sees both or neither.
        self._ready: tuple[list[np.ndarray], Model] | None = None
        if not self._built_in:
            self._ready = ([], from_onnx(proto, **options))

    def run(self, inputs, **kwargs):
        """Run the model.

        Parameters
        ----------
        inputs : one array, a list of arrays in the graph's order, or a dict by name

        Returns
        -------
        a named tuple of arrays, one per output

        Raises
        ------
        ShapeError : a missing, surplus or unknown input, a wrong shape or dtype.
        UnsupportedError : what the graph needs and fastrnn lacks.
        """
        if kwargs:
            raise UnsupportedError(f"run takes inputs alone, got {', '.join(sorted(kwargs))}")
        feeds = self._by_name(inputs)
        values = [np.asarray(feeds[name]) for name in self._built_in]
        ready = self._ready
        if ready is None or not all(map(_identical, values, ready[0])):
            bind = self._options.get("bind") or {}
            bind = {**bind, **dict(zip(self._built_in, values, strict=True))}
            model = from_onnx(self._proto, **{**self._options, "bind": bind})
            ready = self._ready = ([value.copy() for value in values], model)
        model = ready[1]
        results = model.run(*(feeds[info.name] for info in model.inputs))
        return namedtupledict("Outputs", self._outputs)(*results)

    def _by_name(self, inputs) -> dict:
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(self._names):
                raise ShapeError(f"got {len(inputs)} inputs, expected {len(self._names)}: {', '.join(self._names)}")
            return dict(zip(self._names, inputs, strict=True))
        unlike = sorted(set(inputs) ^ set(self._names))
        if unlike:
            what = "unknown" if unlike[0] in inputs else "missing"
            raise ShapeError(f"the input {unlike[0]!r} is {what}; inputs are {', '.join(self._names)}")
        return dict(inputs)


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class FastRNNBackend(Backend):
    """See the module; one class with class methods, as onnx.backend.base wants it."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for "CPU" and "CPU:0"."""
        try:
            parsed = Device(device)
        except (AttributeError, ValueError):  # an unknown type of device; its number is not one
            return False
        return parsed.type == DeviceType.CPU and parsed.device_id == 0

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs) -> bool:
        """Whether `prepare` takes the model. For a graph that is imported at its first run, only that run can say."""
        try:
            cls.prepare(model, device, **kwargs)
        except UnsupportedError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs) -> FastRNNBackendRep:
        """Import a model; kwargs are those of `fastrnn.from_onnx`.

        Raises
        ------
        UnsupportedError : another device than the CPU, or what the model needs and fastrnn lacks.
        onnx.checker.ValidationError : the model is not valid ONNX.
        """
        cls._check_device(device)
        onnx.checker.check_model(model)
        return FastRNNBackendRep(model, kwargs)

    @classmethod
    def _check_device(cls, device: str) -> None:
        if not cls.supports_device(device):
            raise UnsupportedError(f"the device {device!r}; there is CPU")

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs, device: str = "CPU", **kwargs):
        """`prepare` and run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(cls, node: onnx.NodeProto, inputs, device: str = "CPU", outputs_info=None, **kwargs):
        """Run one node on arrays, in the order of its inputs that are not omitted.

        outputs_info : dtypes and shapes of the outputs, as onnx allows; they are inferred, so it is not needed.
        opset_version : the version of the operator's set; if absent, the newest that the installed onnx knows.
        """
        cls._check_device(device)
        version = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        opset = helper.make_opsetid(node.domain, version)
        context = onnx.checker.C.CheckerContext()
        context.ir_version, context.opset_imports = onnx.IR_VERSION, {node.domain: version}
        onnx.checker.check_node(node, context)
        names = list(dict.fromkeys(name for name in node.input if name))
        arrays = [np.asarray(array) for array in inputs]
        if len(arrays) != len(names):
            raise ShapeError(
                f"node {node.op_type}: got {len(arrays)} inputs, expected {len(names)}: {', '.join(names)}"
            )
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        shown = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], node.name or node.op_type, values, shown)
        # The node was checked. The model can't be: it does not declare its outputs, which onnx refuses.
        return FastRNNBackendRep(helper.make_model(graph, opset_imports=[opset]), kwargs).run(arrays)


prepare = FastRNNBackend.prepare
run_model = FastRNNBackend.run_model
run_node = FastRNNBackend.run_node
supports_device = FastRNNBackend.supports_device
is_compatible = FastRNNBackend.is_compatible
