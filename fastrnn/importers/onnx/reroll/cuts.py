"""A cut of a sum is made before the sum: `(y + pad(x))[:T]` becomes `y[:T] + x`.

Sequences that are padded to whole chunks are cut to their length at the end, often after the input was added. Then
nothing that is the recurrence alone has the length of the sequence.
"""

from __future__ import annotations

from ....errors import ModelFormatError
from ....graph import Graph, Node
from ..reading.nodes import OnnxNode, sort_nodes

_SUMS = frozenset("Add Sub Mul Div".split())
_DEEP = 12  # sums and products over each other


def before_sums(
    nodes: list[OnnxNode], constants: dict, known: set[str], outputs: list[str], graph: Graph
) -> list[OnnxNode]:
    """The nodes with cuts made first where that takes a padding away; the same list if there are none.

    graph : what the file is as it is written, for the sizes
    """
    maker = {o: n for n in nodes for o in n.outputs if o}
    cuts = _Cuts(maker, constants, graph)
    changed = dict(maker)
    for node in nodes:
        made = cuts.instead(node)
        if made is not None:
            changed |= made
    if changed == maker:
        return nodes
    try:
        return sort_nodes(changed, known, outputs)
    except ModelFormatError:
        return nodes


class _Cuts:
    def __init__(self, maker: dict[str, OnnxNode], constants: dict, graph: Graph):
        self.constants = constants
        self.maker, self.graph, self.producers = maker, graph, graph.producers()
        self.new: dict[str, OnnxNode] = {}
        self.bare = False  # whether a padding was met

    def instead(self, node: OnnxNode) -> dict[str, OnnxNode] | None:
        """The nodes that replace a slice of the file: name -> node; None if it stays."""
        found = self.producers.get(node.outputs[0]) if node.op == "Slice" and node.domain == "" else None
        if found is None or found.op != "slice" or len(node.inputs) < 4 or node.inputs[0] not in self.graph.values:
            return None
        a, dims = found.attrs, self.graph.values[node.inputs[0]].dims
        if found.inputs[0] != node.inputs[0] or (a["start"], a["step"]) != (0, 1) or a["stop"] == dims[a["axis"]]:
            return None
        self.new, self.bare = {}, False
        axis = a["axis"] - len(dims)
        inner = self.maker.get(node.inputs[0])
        if inner is None or inner.op not in _SUMS or inner.domain:
            return None
        cut = self._cut(node, node.inputs[0], axis, dims[axis], a["stop"], 0)
        if cut is None or not self.bare or cut not in self.new:
            return None
        last = self.new.pop(cut)
        (out,) = node.outputs
        return {**self.new, out: OnnxNode(last.op, last.domain, node.label, last.inputs, [out], last.attrs)}

    def _cut(self, by: OnnxNode, name: str, axis: int, long, length, depth: int) -> str | None:
        """The name of a value cut along an axis (from the end) to `length`; None if that has no form here."""
        dims = self._dims(name)
        if dims is None:
            fixed = self._constant(name)
            return name if fixed is not None and long not in fixed else None
        if len(dims) < -axis or dims[axis] == 1:
            return name
        if dims[axis] != long:
            return None
        node, made = self.maker.get(name), self.producers.get(name)
        if made is not None and made.op == "pad" and self._only_behind(made, axis, length):
            self.bare = True
            return made.inputs[0]
        new = f"{name}/cut of {by.outputs[0]}"
        if node is not None and node.op in _SUMS and not node.domain and depth < _DEEP:
            parts = [self._cut(by, i, axis, long, length, depth + 1) for i in node.inputs]
            if None in parts:
                return None
            self.new[new] = OnnxNode(node.op, "", f"{node.label}/cut of {by.label}", parts, [new], node.attrs)
            return new
        if len(dims) != len(self.graph.values[by.inputs[0]].dims):
            return None  # the axis in the file would be another
        self.new[new] = OnnxNode("Slice", "", f"{node.label if node else name}/cut of {by.label}",
                                 [name, *by.inputs[1:]], [new], by.attrs)  # fmt: skip
        return new

    def _dims(self, name: str) -> tuple | None:
        if name in self.graph.values:
            return self.graph.values[name].dims
        return self.constants[name].shape if name in self.constants else None

    def _constant(self, name: str) -> tuple | None:
        """The sizes of a constant that got more axes of one element; None if it is no constant."""
        node = self.maker.get(name)
        while node is not None and node.op in ("Identity", "Unsqueeze") and not node.domain:
            name = node.inputs[0]
            node = self.maker.get(name)
        if node is not None and node.op == "Constant" and "value" in node.attrs:
            return tuple(node.attrs["value"].t.dims)
        return self.constants[name].shape if name in self.constants else None

    def _only_behind(self, pad: Node, axis: int, length) -> bool:
        """Whether a pad adds constants behind an axis of this length, and nothing else."""
        source, pads = self.graph.values[pad.inputs[0]].dims, pad.attrs["pads"]
        rank = len(source)
        others = [p for k, p in enumerate(pads) if k != 2 * rank + axis]
        return source[axis] == length and all(p == 0 for p in others) and pad.inputs[0] in self.maker
