"""ONNX nodes for a traced module. `Emitter` collects them; a traced value is a `V`, a `Size` or a `Packed`.

Every value carries what torch computed for it on the example, so its rank and dtype are known. Sizes that the module
reads are taken from the live shape, so no size of the example is written into the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from ...records import dataclass
from .lookups import DOMAIN

OPSET = 20
DTYPES = {torch.float32: 1, torch.int64: 7, torch.int32: 6, torch.bool: 9}
_MAX_INT = np.iinfo(np.int64).max


class Unknown(Exception):
    """The tracer met something that it can't express in ONNX; torch's exporters are tried next."""


@dataclass(frozen=True)
class V:
    """A tensor of the traced module. name: of the ONNX value; value: its value on the example."""

    name: str
    value: torch.Tensor


@dataclass(frozen=True)
class Size:
    """A size that the module reads, or computes from sizes. name: an int64 [1]; value: its value on the example."""

    name: str
    value: int


@dataclass(frozen=True)
class Packed:
    """A packed sequence. steps: its padded values; lengths: of its rows; value: torch's on the example."""

    steps: V
    lengths: V
    batch_first: bool
    value: torch.nn.utils.rnn.PackedSequence


class Emitter:
    """Nodes, initializers and inputs of one model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.label = "model"
        self.lengths: dict[str, int] = {}  # values that say how many steps of each row count -> the example's steps
        self._count = 0
        self._held: dict[tuple, str] = {}

    def fresh(self, base: str) -> str:
        self._count += 1
        return f"{base}:{self._count}"

    def ops(self, kind: str, inputs: Sequence[str | None], count: int = 1, **attrs) -> list[str]:
        """Append a node; returns the names of its outputs."""
        names = [self.fresh(self.label) for _ in range(count)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        node = helper.make_node(kind, [n or "" for n in inputs], names, self.fresh(f"{self.label}.{kind}"), **attrs)
        self.nodes.append(node)
        return names

    def op(self, kind: str, *inputs: str | None, **attrs) -> str:
        """Append a node of one output; returns its name."""
        return self.ops(kind, inputs, **attrs)[0]

    def lookup(self, table: str, indices: str, axis: int) -> str:
        """Look up rows by index; -1 is an error. ONNX's Gather takes it as the last row, but PyTorch refuses it."""
        return self.op("Lookup", table, indices, axis=axis, domain=DOMAIN)

    def const(self, array) -> str:
        """An initializer; equal arrays share one copy."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._held:
            self._held[key] = self.fresh("constant")
            self.initializers.append(numpy_helper.from_array(array, self._held[key]))
        return self._held[key]

    def ints(self, *numbers: int) -> str:
        return self.const(np.array(numbers, np.int64))

    def floats(self, tensor: torch.Tensor) -> str:
        """A parameter or buffer."""
        return self.const(tensor.detach().numpy())

    def name(self, x, dtype: torch.dtype | None = None) -> str:
        """The ONNX value of an operand: a traced value, or a Python number as `dtype`."""
        if isinstance(x, V):
            if dtype is None or x.value.dtype == dtype:
                return x.name
            return self.op("Cast", x.name, to=onnx_dtype(dtype))
        if isinstance(x, torch.Tensor):
            return self.const((x if dtype is None else x.to(dtype)).detach().numpy())
        if isinstance(x, bool | int | float) and dtype is not None:
            return self.const(torch.tensor(x, dtype=dtype).numpy())
        raise Unknown(f"an operand that is a {type(x).__name__}")

    def shape_of(self, x: V, start: int, stop: int) -> str:
        """Sizes of axes start..stop-1 as int64 [stop - start]."""
        return self.op("Shape", x.name, start=start, end=stop)

    def dims(self, sizes: Sequence) -> str:
        """A shape of ints and `Size`s as int64 [rank]."""
        if all(isinstance(s, int) for s in sizes):
            return self.ints(*sizes)
        parts = [s.name if isinstance(s, Size) else self.ints(s) for s in sizes if isinstance(s, Size | int)]
        if len(parts) != len(sizes):
            raise Unknown(f"a shape of {[type(s).__name__ for s in sizes]}")
        return self.op("Concat", *parts, axis=0)

    def transpose(self, name: str, *perm: int) -> str:
        return self.op("Transpose", name, perm=list(perm))

    def slice(self, name: str, axis: int, start: int, stop: int = _MAX_INT, step: int = 1) -> str:
        return self.op("Slice", name, self.ints(start), self.ints(stop), self.ints(axis), self.ints(step))

    def proto(self, outputs: Sequence[tuple[str, V]], inputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The model; outputs get the names given with them."""
        ends = []
        for name, value in outputs:
            self.nodes.append(helper.make_node("Identity", [value.name], [name], f"output.{name}"))
            ends.append(helper.make_tensor_value_info(name, onnx_dtype(value.value.dtype), None))
        graph = helper.make_graph(self.nodes, "module", list(inputs), ends, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def onnx_dtype(dtype: torch.dtype) -> int:
    if dtype not in DTYPES:
        raise Unknown(f"values of {dtype}")
    return DTYPES[dtype]
