"""Graph: what a model means, free of machine and of length.

A `Graph` is a list of `Node`s in an order in which every value is made before it is used. A `Value` is a name, a
dtype and dims; a dim is an int or a `fastrnn.dims.Dim` over BATCH and TIME. Constants (weights) are values whose
array is in `Graph.constants`. All three are immutable: a pass builds a new graph. `validate` checks what every
later stage relies on, so later stages don't check again.

What the ops mean is in `fastrnn.graph.ops`, one row each (fastrnn.graph.vocabulary). The vocabulary is small on
purpose; importers lower what they read to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from types import MappingProxyType

import numpy as np

from ..records import dataclass
from .cells import CellSpec
from .dims import Dim

# Every type of an element, and how arrays hold it. Plans hold it the same way (compile/tensors.py has the exceptions),
# and `ops/_items.pxd` reads and writes it. Integers wrap around in their own type.
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}
INTEGERS = frozenset(name for name in DTYPES if "int" in name)

# The dtype in which the float64 reference computes each declared dtype.
WIDE = DTYPES | {"float32": np.float64}


@dataclass(frozen=True)
class Value:
    """An edge of the graph. name: unique in the graph; dtype: a key of DTYPES; dims: ints or `Dim`s."""

    name: str
    dtype: str
    dims: tuple

    def __str__(self):
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Node:
    """One operation. inputs: value names, None if an optional one is absent; outputs likewise (None: omitted).

    `name` is for people: the exporter's name if there is one, unique in the graph. `attrs` are those of the op's row in
    the vocabulary. All are present except those that a node may lack.
    """

    op: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    attrs: Mapping = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def __str__(self):
        outs = ", ".join(o or "_" for o in self.outputs)
        args = ", ".join(i or "_" for i in self.inputs)
        attrs = "".join(f", {k}={_show(v)}" for k, v in self.attrs.items())
        return f"{outs} = {self.op}({args}{attrs})  # {self.name}"


def _show(value) -> str:
    if isinstance(value, CellSpec):
        acts = "/".join(a.name for a in value.activations)
        flags = [f for f in ("reverse", "input_forget", "linear_before_reset") if getattr(value, f)]
        flags += [f"clip {value.clip:g}"] if value.clip is not None else []
        return f"{value.kind} {value.input_size}->{value.hidden_size} {acts}" + "".join(f" {f}" for f in flags)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_show, value)) + "]"
    return str(value)


@dataclass(frozen=True)
class Graph:
    """A whole model.

    inputs, outputs : names of values, in the file's own order.
    values : every value by name (constants too).
    constants : name -> array of the value's dtype and dims; read-only.
    states : input name -> output name, for each state that the caller threads by hand through the file
        (the output of one call is the input of the next).
    requires : (dim, int) pairs: other conditions on the sizes of the inputs, for example that an input holds exactly
        one window. The code that fixes the sizes checks them (`check_required`).
    held : (input, axis, why) of each input axis that keeps the file's number because of evidence in the file.
    undecided : (input, outputs) of each input that looks like a state but may continue from several outputs; a
        stream needs to be told which.
    integers : of an imported file with 8-bit weights: what they are worth (graph/precision.py). Empty after the passes,
        which hold such weights as integers.
    metadata : what the file says of itself as key and text (`metadata_props` of an ONNX file).
    notes : lines for people about what import and passes did ("thawed time from 19", "folded 12 nodes").
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, np.ndarray]
    states: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    requires: tuple[tuple[Dim, int], ...] = ()
    held: tuple[tuple[str, int, str], ...] = ()
    undecided: tuple[tuple[str, tuple[str, ...]], ...] = ()
    integers: Mapping[float, frozenset[tuple[float, str]]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("values", "constants", "states", "integers", "metadata"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for array in self.constants.values():
            array.flags.writeable = False

    def __str__(self):
        lines = [f"graph {self.name}"]
        lines += [f"  input  {self.values[n]}" for n in self.inputs]
        lines += [f"  output {self.values[n]}" for n in self.outputs]
        lines += [f"  state  {a} -> {b}" for a, b in self.states.items()]
        lines += [f"  where  {dim} = {number}" for dim, number in self.requires]
        lines += [f"  {node}" for node in self.nodes]
        return "\n".join(lines)

    def replace(self, **changes) -> Graph:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that makes it."""
        return {o: n for n in self.nodes for o in n.outputs if o is not None}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, in graph order."""
        out: dict[str, list[Node]] = {}
        for n in self.nodes:
            for i in n.inputs:
                if i is not None:
                    out.setdefault(i, []).append(n)
        return out
