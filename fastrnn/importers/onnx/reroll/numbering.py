"""Value numbering: values of a file that must be equal get one number, whatever they are called.

Two nodes are one record if they apply the same operator with the same attributes to values with the same numbers. So a
copy of some nodes for other inputs is found by look-up.
"""

from __future__ import annotations

from dataclasses import field

from onnx import AttributeProto

from ....errors import ModelFormatError
from ....records import dataclass
from ..reading import files
from ..reading.nodes import OnnxNode, reads

_MOST = 1 << 16  # elements of a constant that is compared by its values
_RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial".split())


@dataclass(eq=False)
class Record:
    """Nodes that compute the same. place: of the first one in the file. kind: operator and attributes. inputs: numbers,
    None if absent; those that a node's subgraphs read follow."""

    place: int
    kind: tuple
    inputs: tuple
    outputs: tuple[int, ...]
    nodes: list[OnnxNode] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A sequence whose steps are taken one by one. form: how; keeps: whether a step keeps an axis of one."""

    number: int
    axis: int
    form: str
    keeps: bool


class Numbering:
    """number: name -> number; maker: number -> (record, which output); takes: number -> (source, index) of values that
    are one step of a sequence; arrays: number -> small constant; names: number -> its names."""

    def __init__(self, nodes: list[OnnxNode], constants: dict, opset: int):
        self.opset = opset
        self.number: dict[str, int] = {}
        self.names: list[list[str]] = []
        self.maker: dict[int, tuple[Record, int]] = {}
        self.records: list[Record] = []
        self.takes: dict[int, tuple[Source, int]] = {}
        self.arrays: dict[int, object] = {}
        self._known: dict[tuple, int] = {}
        self._made: dict[tuple, Record] = {}
        for name, array in constants.items():
            self._constant(name, array)
        for place, node in enumerate(nodes):
            self._add(place, node)

    def lookup(self, kind: tuple, inputs: tuple) -> Record | None:
        """The record that applies an operator to these values."""
        return self._made.get((kind, inputs))

    def readers(self) -> dict[int, list[Record]]:
        """Number -> the records that read it."""
        found: dict[int, list[Record]] = {}
        for record in self.records:
            for number in dict.fromkeys(record.inputs):
                if number is not None:
                    found.setdefault(number, []).append(record)
        return found

    def of(self, name: str) -> int:
        """The number of a value."""
        if name not in self.number:
            self.number[name] = self._new(name)
        return self.number[name]

    def _new(self, name: str) -> int:
        self.names.append([name])
        return len(self.names) - 1

    def _constant(self, name: str, array) -> None:
        if array.size > _MOST:
            return
        key = (str(array.dtype), array.shape, array.tobytes())
        if key in self._known:
            self.number[name] = self._known[key]
            self.names[self._known[key]].append(name)
            return
        self._known[key] = self.of(name)
        self.arrays[self._known[key]] = array

    def _add(self, place: int, node: OnnxNode) -> None:
        if node.op == "Constant" and node.domain == "" and "value" in node.attrs:
            try:
                self._constant(node.outputs[0], files.tensor(node.attrs["value"].t, None))
                return
            except ModelFormatError:
                pass  # the walk reports the error
        graphs = any(a.type == AttributeProto.GRAPH for a in node.attrs.values())
        inputs = tuple(self.of(i) if i else None for i in (reads(node) if graphs else node.inputs))
        attrs = () if graphs else tuple(sorted((k, a.SerializeToString()) for k, a in node.attrs.items()))
        kind = (node.domain, node.op, attrs, len(node.outputs))
        single = graphs or node.payload is not None or node.op in _RANDOM or node.domain not in ("", "ai.onnx")
        record = None if single else self._made.get((kind, inputs))
        if record is None:
            record = Record(place, kind, inputs, tuple(self.of(o) if o else -1 for o in node.outputs))
            self.records.append(record)
            self.maker |= {number: (record, k) for k, number in enumerate(record.outputs) if number >= 0}
            if not single:
                self._made[kind, inputs] = record
                self._take(node, record)
        else:
            for name, number in zip(node.outputs, record.outputs, strict=True):
                if name and number >= 0:
                    self.number[name] = number
                    self.names[number].append(name)
        record.nodes.append(node)

    # --- steps of sequences ------------------------------------------------------------------------------------------

    def _whole(self, number: int | None) -> list[int] | None:
        """A constant of whole numbers as a list."""
        array = None if number is None else self.arrays.get(number)
        return None if array is None or array.dtype.kind not in "iu" else [int(v) for v in array.reshape(-1)]

    def _take(self, node: OnnxNode, record: Record) -> None:
        """Note the outputs of a node that takes single steps of a sequence."""
        axis = node.attrs["axis"].i if "axis" in node.attrs else 0
        if not record.inputs or record.inputs[0] is None or record.inputs[0] in self.arrays or node.domain:
            return
        source, rest = record.inputs[0], record.inputs[1:]
        if node.op == "Gather" and len(rest) == 1:
            index = self._whole(rest[0])
            if index is not None and len(index) == 1 and self.arrays[rest[0]].ndim < 2:
                self._note(record.outputs[0], Source(source, axis, "gather", self.arrays[rest[0]].ndim == 1), index[0])
        elif node.op == "Slice" and self.opset >= 10 and len(rest) >= 3:
            start, stop, axes, step = [*(self._whole(i) for i in rest), [1]][:4]
            if None not in (start, stop, axes, step) and len(start) == len(stop) == len(axes) == 1 and step == [1]:
                if stop[0] == start[0] + 1:
                    self._note(record.outputs[0], Source(source, axes[0], "slice", True), start[0])
        elif node.op == "Split":
            sizes = self._whole(rest[0]) if rest else list(node.attrs["split"].ints) if "split" in node.attrs else None
            if sizes is None and (rest or len(record.outputs) < 3):
                return  # halves and the like
            if sizes is None or set(sizes) == {1}:
                for index, number in enumerate(record.outputs):
                    self._note(number, Source(source, axis, "split", True), index)
        elif node.op == "SequenceAt" and source in self.maker and len(rest) == 1:
            self._item(record, self.maker[source][0], self._whole(rest[0]))

    def _item(self, record: Record, split: Record, index: list[int] | None) -> None:
        node = split.nodes[0] if split.nodes else None
        if node is None or node.op != "SplitToSequence" or index is None or len(index) != 1:
            return
        sizes = self._whole(split.inputs[1]) if len(split.inputs) > 1 and split.inputs[1] is not None else None
        if len(split.inputs) > 1 and sizes != [1]:
            return
        axis = node.attrs["axis"].i if "axis" in node.attrs else 0
        keeps = len(split.inputs) > 1 or not ("keepdims" in node.attrs and node.attrs["keepdims"].i == 0)
        self._note(record.outputs[0], Source(split.inputs[0], axis, "sequence", keeps), index[0])

    def _note(self, number: int, source: Source, index: int) -> None:
        if index >= 0 and number >= 0:
            self.takes[number] = (source, index)
