"""Common parts of rolling up: the node that replaces a recurrence, and the view of a graph used to find it."""

from __future__ import annotations

from ....errors import ModelFormatError
from ....records import dataclass
from ..reading import files
from ..reading.nodes import OnnxNode
from .numbering import Source
from .recognise import Base, Recognised

DOMAIN = "fastrnn.rolled"


X, H, C = Base("x of the step"), Base("h of the step"), Base("c of the step")


@dataclass
class Rolled:
    """The payload of a rolled-up node, besides its inputs (sequence, h0, c0, trip count).

    steps : the number of copies; None for a Loop, whose trip count is an input.
    flip_x, flip_y : the steps read the sequence from its end; y is assembled from its end.
    stack : the axis of y along which the steps are stacked, or None if they are concatenated without a new axis.
    """

    cell: Recognised
    steps: int | None = None
    flip_x: bool = False
    flip_y: bool = False
    stack: int | None = 0
    rows: int = 1  # the batch that constants in the steps were written for
    split: bool = False  # the steps come from SplitToSequence: PyTorch's newer exporter unrolled a whole nn.RNN itself
    turned: bool = False  # the steps are counted from the end of the sequence
    lead: bool = False  # h has an axis of one before [batch, H], if there is no h0 to show it


@dataclass(frozen=True)
class Collected:
    """An output: the values of all steps joined along `axis`, from the last to the first if `flipped`; the last step's
    value if `axis` is None. value: its name in the body."""

    value: str
    axis: int | None = None
    flipped: bool = False


@dataclass
class Copies:
    """The payload of the node that replaces the copies.

    count : how many. body : the nodes of one copy. states : name in the body of a value of the step before -> (name in
    the body of the value of this step, or of another state; name in the file of the initial value). steps : name in the
    body -> (name in the file of the sequence, its source). outputs : one per output of the node.
    """

    count: int
    backwards: bool
    body: list[OnnxNode]
    states: dict[str, tuple[str, str]]
    steps: dict[str, tuple[str, Source]]
    outputs: list[Collected]


class NodeGraph:
    """The makers of values, and constants including those of Constant nodes."""

    def __init__(self, nodes: list[OnnxNode], constants: dict, opset: int):
        self.maker = {o: n for n in nodes for o in n.outputs if o}
        self.constants, self.opset = constants, opset
        self.split: set[str] = set()  # sequences that SplitToSequence splits
        for node in nodes:
            if node.op == "Constant" and "value" in node.attrs and node.domain == "":
                tensor = node.attrs["value"].t
                if len(tensor.dims) <= 2 and max(tensor.dims, default=1) <= 1 << 16:
                    try:
                        constants[node.outputs[0]] = files.tensor(tensor, None)
                    except ModelFormatError:
                        continue  # the walk reads it again and reports the error

    def scalar(self, name: str) -> int | None:
        array = self.constants.get(name)
        return int(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind in "iu" else None


def leaves(out) -> set[str]:
    """The outer values that an operand is made of."""
    found: set[str] = set()

    def look(value) -> None:
        if isinstance(value, Base):
            if value not in (X, H, C):
                found.add(value.name)
            return
        for part in getattr(value, "terms", {}):
            look(part)
        for name in ("of", "left", "right"):
            if hasattr(value, name):
                look(getattr(value, name))

    look(out)
    return found


def rolled_node(label: str, inputs: list[str], outputs: list[str], payload: Rolled) -> OnnxNode:
    return OnnxNode("Recurrence", DOMAIN, label, inputs, outputs, {}, payload)
