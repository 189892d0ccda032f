"""What an op is: one row of `ROWS`, written beside the function that is the op's float64 meaning.

    @graph_op("gather(x, indices)", attrs={"axis": AXIS, "from_zero": BOOL.or_lacking(False)}, dims=_gather_dims)
    def gather(x, indices, axis, from_zero):
        '''The elements of x along `axis` that the indices name.'''

The rows are in `fastrnn/graph/ops/`, one file per family; `ROWS` is complete as soon as `fastrnn.graph` is imported.
Validation, shape inference, the file format, the reference and the streaming analysis all read the row, so they need no
change for a new op. Only its lowering is elsewhere (fastrnn/compile/lowering).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import field, replace

from ..records import dataclass
from .cells import CellSpec
from .precision import PRECISIONS

_REQUIRED = object()


@dataclass(frozen=True)
class Attribute:
    """The type of an attribute. It decides how a file stores the value and which values are rejected on reading.

    types : types of the value (of each element, if `many`)
    many : the value is a tuple
    dims : numbers may be dims, which a file stores as text
    infinite : a float may be infinite, which a file stores as text
    choices : the allowed values; None for any
    default : the value for a node without the attribute; nodes of older files may lack only attributes with a default
    """

    types: tuple[type, ...]
    many: bool = False
    dims: bool = False
    infinite: bool = False
    choices: Container | None = None
    default: object = _REQUIRED

    def among(self, *choices) -> Attribute:
        """The same attribute, restricted to these values."""
        return replace(self, choices=frozenset(choices))

    def or_lacking(self, default) -> Attribute:
        """The same attribute, but a node may lack it."""
        return replace(self, default=default)

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    def number(self, value, size: Callable):
        """The value with its dims as ints; size(dim) returns the int."""
        if self.many:
            return tuple(map(size, value)) if self.dims else tuple(value)
        return size(value) if self.dims else value


INT = Attribute((int,))
INTS = Attribute((int,), many=True)
BOOL = Attribute((bool,))
TEXT = Attribute((str,))
FLOAT = Attribute((int, float))
ANY_FLOAT = Attribute((int, float), infinite=True)
DIM = Attribute((int,), dims=True)
DIMS = Attribute((int,), many=True, dims=True)
CELL = Attribute((CellSpec,))
PRECISION = TEXT.among(*PRECISIONS).or_lacking("float32")
GROWS = BOOL.or_lacking(False)  # of nodes that streams of single steps make (streaming/caches.py)


@dataclass(frozen=True)
class Meeting:
    """How an op mixes the steps (or the batch rows) of its inputs: only along some axes; else each stays separate.

    This is all that streaming needs to know about an op whose inputs broadcast together. If its output has fewer axes,
    those axes are the missing ones. Ops that do anything else have a rule in fastrnn/streaming/rules.py.

    along : (attributes, rank of the broadcast inputs) -> axes along which elements are mixed
    text : what a node that mixes them does: {symbol} is "time" or "batch", {all} "steps" or "rows of the batch",
        {joined} "sequences one after the other" or "batches"
    """

    along: Callable[[Mapping, int], Container[int]] = lambda attrs, rank: ()
    text: str = ""


ELEMENTWISE = Meeting()


@dataclass(frozen=True)
class GraphOp:
    """One op of the vocabulary.

    inputs, outputs : names, for people and for `least`; any node may omit an output
    least : the number of required inputs; repeats: the last input may be given any number of times
    attrs : name -> Attribute
    dims : (inputs as Values or None, attributes) -> [(dtype, dims)] of each output; ShapeError if the inputs don't fit
    meaning : (*arrays or None, **attributes with dims as ints) -> array, or a tuple for several outputs: what
        the op computes in float64. None for `state`, whose meaning is the schedule of a graph
    meets : the streaming rule, if it is a `Meeting`
    weights : inputs after the first must be constants
    moves : it moves elements and does not change them
    keeps : a stream stores something for it between steps
    """

    name: str
    inputs: tuple[str, ...]
    least: int
    repeats: bool
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attribute]
    dims: Callable
    meaning: Callable | None
    meets: Meeting | None = None
    weights: bool = False
    moves: bool = False
    keeps: bool = False
    doc: str = field(default="", repr=False)

    @property
    def most(self) -> float:
        """The most inputs that a node may have."""
        return float("inf") if self.repeats else len(self.inputs)

    def compute(self, arrays: Sequence, attrs: Mapping, size: Callable):
        """The outputs of a node in float64. arrays: None for an absent input; size(dim) returns the int."""
        given = {name: a.number(attrs.get(name, a.default), size) for name, a in self.attrs.items()}
        results = self.meaning(*arrays, *(None,) * (len(self.inputs) - len(arrays)), **given)
        return results if len(self.outputs) > 1 else (results,)


ROWS: dict[str, GraphOp] = {}


def graph_op(signature: str, dims: Callable, attrs: Mapping[str, Attribute] | None = None, **row) -> Callable:
    """Add an op to the vocabulary; the decorated function is its meaning, and its docstring the op's.

    signature : "name(input, optional?, ...)", with "-> output, output" for several outputs; "..." repeats the input
        before it. row : other fields of `GraphOp`.
    """
    head, _, outputs = signature.partition("->")
    name, _, inside = head.strip().rstrip(")").partition("(")
    names = [part.strip() for part in inside.split(",") if part.strip()]
    repeats = "..." in names
    names = [n for n in names if n != "..."]
    least = sum(not n.endswith("?") for n in names)
    made = tuple(part.strip() for part in outputs.split(",")) if outputs else ("y",)

    def add(meaning: Callable) -> Callable:
        fields = {"meaning": meaning, "doc": meaning.__doc__ or ""} | row
        inputs = tuple(n.rstrip("?") for n in names)
        ROWS[name] = GraphOp(name, inputs, least, repeats, made, dict(attrs or {}), dims, **fields)
        return meaning

    return add


def moves(op: str) -> bool:
    """Whether the op moves elements without changing them; False for an op that is not in the vocabulary."""
    row = ROWS.get(op)
    return row is not None and row.moves


def describe() -> str:
    """The whole vocabulary as text: signature, attributes and meaning of each op."""
    lines = []
    for row in ROWS.values():
        inputs = [n + "?" * (i >= row.least) for i, n in enumerate(row.inputs)] + ["..."] * row.repeats
        attrs = f"; {', '.join(row.attrs)}" if row.attrs else ""
        lines += [f"{row.name}({', '.join(inputs)}{attrs}) -> {', '.join(row.outputs)}"]
        lines += [f"    {line.strip()}" for line in row.doc.strip().splitlines()]
    return "\n".join(lines)
