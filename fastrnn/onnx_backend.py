"""The onnx.backend API for fastrnn: prepare, run_model, run_node, supports_device, is_compatible.

fastrnn must know some values before it runs: the weights of a cell, the shape of a Reshape, the axes of a Squeeze. An
ONNX graph may have them as inputs. Such a graph is imported at its first run, with the arrays of that run built in, and
again if a later run passes other arrays. All other graphs are imported by `prepare`.
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

# Operator -> positions of the inputs that must be constants.
_CELL = (1, 2, 3, 7)  # W, R, B, P
_AXES = (1,)
_KNOWN_BEFORE = {
    "RNN": _CELL,
    "LSTM": _CELL,
    "GRU": _CELL,
    "AffineGrid": (1,),
    "BatchNormalization": (1, 2, 3, 4),
    "BlackmanWindow": (0,),
    "CausalConvWithState": (1, 2),
    "CenterCropPad": (1,),
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "CumProd": (1,),
    "CumSum": (1,),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GroupNormalization": (1, 2),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "InstanceNormalization": (1, 2),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "QuantizeLinear": (1, 2),
    "QLinearConv": (3, 5, 8),
    "ConvInteger": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 2, 3),
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
    """The inputs of the graph (without initializers) that feed such a position, and the lists of integers from which
    the graph computes what feeds it."""
    free = {value.name for value in model.graph.input} - {array.name for array in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output if name}
    wanted = [
        node.input[position]
        for node in model.graph.node
        for position in _KNOWN_BEFORE.get(node.op_type, ())
        if node.domain in ("", "ai.onnx") and position < len(node.input) and node.input[position]
    ]
    found, seen = set(wanted), set()
    while wanted:
        name = wanted.pop()
        node = maker.get(name)
        if name not in seen and node is not None and node.op_type not in ("Shape", "Size"):  # known from dims alone
            wanted += [i for i in node.input if i]
        seen.add(name)
    found |= {v.name for v in model.graph.input if v.name in seen and _is_list_of_integers(v.type.tensor_type)}
    return [value.name for value in model.graph.input if value.name in free & found]


def _is_list_of_integers(kind: onnx.TypeProto.Tensor) -> bool:
    return kind.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and len(kind.shape.dim) < 2


class FastRNNBackendRep(BackendRep):
    """A model that is ready to run, made by `prepare`. Several threads may run it at once."""

    def __init__(self, proto: onnx.ModelProto, options: dict):
        initialized = {array.name for array in proto.graph.initializer}
        self._names = [value.name for value in proto.graph.input if value.name not in initialized]
        self._outputs = [value.name for value in proto.graph.output]
        self._built_in = _known_before(proto)
        self._proto, self._options = proto, options
        # (arrays that are built in, model): replaced together, so that a thread sees both or neither.
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
        ShapeError : an input is missing or unknown, there are too many, or a shape or dtype is wrong.
        UnsupportedError : the graph needs something that fastrnn lacks.
        """
        if kwargs:
            raise UnsupportedError(f"run takes only inputs, got {', '.join(sorted(kwargs))}")
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
            raise ShapeError(f"{what} input {unlike[0]!r}; the inputs are {', '.join(self._names)}")
        return dict(inputs)


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class FastRNNBackend(Backend):
    """The functions of this module as class methods, as onnx.backend.base requires."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for "CPU" and "CPU:0"."""
        try:
            parsed = Device(device)
        except (AttributeError, ValueError):  # an unknown type of device, or its number is not a number
            return False
        return parsed.type == DeviceType.CPU and parsed.device_id == 0

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs) -> bool:
        """Whether `prepare` accepts the model. A graph that is imported at its first run may still fail then."""
        try:
            cls.prepare(model, device, **kwargs)
        except UnsupportedError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs) -> FastRNNBackendRep:
        """Import a model. kwargs are those of `fastrnn.from_onnx`.

        Raises
        ------
        UnsupportedError : the device is not the CPU, or the model needs something that fastrnn lacks.
        onnx.checker.ValidationError : the model is not valid ONNX.
        """
        cls._check_device(device)
        onnx.checker.check_model(model)
        return FastRNNBackendRep(model, kwargs)

    @classmethod
    def _check_device(cls, device: str) -> None:
        if not cls.supports_device(device):
            raise UnsupportedError(f"device {device!r} is not supported: use 'CPU'")

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs, device: str = "CPU", **kwargs):
        """`prepare` the model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(cls, node: onnx.NodeProto, inputs, device: str = "CPU", outputs_info=None, **kwargs):
        """Run one node on arrays, given in the order of its inputs without omitted ones.

        outputs_info : dtypes and shapes of the outputs, as in onnx; not needed, because they are inferred.
        opset_version : the opset of the operator; the newest of the installed onnx by default.
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
        # The node is checked above. The model is not: it has no types for its outputs, which onnx would refuse.
        return FastRNNBackendRep(helper.make_model(graph, opset_imports=[opset]), kwargs).run(arrays)


prepare = FastRNNBackend.prepare
run_model = FastRNNBackend.run_model
run_node = FastRNNBackend.run_node
supports_device = FastRNNBackend.supports_device
is_compatible = FastRNNBackend.is_compatible
